//! Settings of links and of the host that our traffic depends on.

use std::fs;

use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use crate::state::IfName;

/// A setting. All but one are files under `/proc/sys`. The order counts: the underlay's advertisements are kept before the
/// host forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Sysctl {
    /// `net.ipv6.conf.DEV.accept_ra`: router advertisements from inside the overlay must not configure the host.
    AcceptRa,
    /// The same of the underlay. Where it is 1 the host loses its advertised default route in the moment it begins to
    /// forward (law 21): 2 keeps it. Reads as 2 wherever forwarding costs nothing.
    RouterRa,
    /// `net.ipv4.ip_forward` or `net.ipv6.conf.all.forwarding`, of the host: without it no pod is reached.
    HostForward(Family),
    /// `net.ipv4.conf.DEV.forwarding`: IPv4 packets that come in here go on. IPv6 asks the host only.
    Forward,
    /// `net.ipv4.conf.DEV.rp_filter`: a packet counts though answers to its source would leave by another link. Reads as
    /// 2 (loose) wherever the greater of this and the host's own is not 1 (strict), which is what the kernel goes by.
    ReturnPath,
    /// `net.ipv6.conf.DEV.disable_ipv6`: a device for IPv6 has IPv6, whatever the host gives to new ones.
    NoIpv6,
    /// `net.bridge.bridge-nf-call-iptables`, `…ip6tables`, of the host: packets between pods of one bridge meet the rules
    /// of Services.
    BridgeCall(Family),
    /// `net.ipv4.neigh.default.gc_thresh3`, `net.ipv6…`, of the machine: room for so many neighbours. More is as good.
    NeighbourRoom(Family),
    /// `tx-checksum-ip-generic` of ethtool: the device leaves checksums to the hardware. Not a file.
    TxChecksum,
}

/// Settings of the host that exist only with a module, or only in the machine's first network namespace.
const OPTIONAL: [Sysctl; 4] = [
    Sysctl::BridgeCall(Family::V4),
    Sysctl::BridgeCall(Family::V6),
    Sysctl::NeighbourRoom(Family::V4),
    Sysctl::NeighbourRoom(Family::V6),
];

impl Sysctl {
    /// The file that holds it; for the one that has none, how people call it.
    pub fn path(self, link: IfName) -> String {
        let six = |family| if family == Family::V6 { "6" } else { "" };
        match self {
            Self::AcceptRa | Self::RouterRa => format!("/proc/sys/net/ipv6/conf/{link}/accept_ra"),
            Self::HostForward(Family::V4) => "/proc/sys/net/ipv4/ip_forward".to_owned(),
            Self::HostForward(Family::V6) => "/proc/sys/net/ipv6/conf/all/forwarding".to_owned(),
            Self::Forward => format!("/proc/sys/net/ipv4/conf/{link}/forwarding"),
            Self::ReturnPath => format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"),
            Self::NoIpv6 => format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"),
            Self::BridgeCall(family) => {
                format!("/proc/sys/net/bridge/bridge-nf-call-ip{}tables", six(family))
            }
            Self::NeighbourRoom(Family::V4) => "/proc/sys/net/ipv4/neigh/default/gc_thresh3".to_owned(),
            Self::NeighbourRoom(Family::V6) => "/proc/sys/net/ipv6/neigh/default/gc_thresh3".to_owned(),
            Self::TxChecksum => format!("tx-checksum-ip-generic of {link}"),
        }
    }

    /// The value to compare, from what its file says and what the host's own says that goes with it: whether the host
    /// forwards IPv6 yet, its own `rp_filter`.
    #[cfg(any(feature = "kernel", feature = "fake"))]
    pub(crate) fn read(self, text: i32, host: i32) -> i32 {
        match self {
            // An advertisement is lost only where it is taken now (1) and the host does not forward yet.
            Self::RouterRa if text == 1 && host == 0 => 1,
            Self::ReturnPath if text.max(host) == 1 => 1,
            Self::RouterRa | Self::ReturnPath => 2,
            _ => text,
        }
    }

    /// The host's file that [`Self::read`] wants to know of.
    #[cfg(feature = "kernel")]
    pub(crate) fn beside(self) -> Option<&'static str> {
        match self {
            Self::RouterRa => Some("/proc/sys/net/ipv6/conf/all/forwarding"),
            Self::ReturnPath => Some("/proc/sys/net/ipv4/conf/all/rp_filter"),
            _ => None,
        }
    }

    /// Whether a greater value does as well.
    pub(crate) fn is_a_least(self) -> bool {
        matches!(self, Self::NeighbourRoom(_))
    }

    /// Whether it is one of the host, filed under the underlay.
    pub fn is_of_host(self) -> bool {
        matches!(self, Self::HostForward(_) | Self::BridgeCall(_) | Self::NeighbourRoom(_))
    }

    /// Those of the host that not every host has, and that this one has.
    pub fn optional_here() -> Vec<Self> {
        let is_here = |name: &Self| fs::exists(name.path(IfName::default())).unwrap_or(false);
        OPTIONAL.into_iter().filter(is_here).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_reads_as_what_it_amounts_to() {
        for (name, text, host, expected) in [
            (Sysctl::ReturnPath, 0, 0, 2),
            (Sysctl::ReturnPath, 1, 0, 1),
            (Sysctl::ReturnPath, 0, 1, 1),
            (Sysctl::ReturnPath, 2, 1, 2),
            (Sysctl::ReturnPath, 1, 2, 2),
            (Sysctl::RouterRa, 1, 0, 1),
            (Sysctl::RouterRa, 1, 1, 2),
            (Sysctl::RouterRa, 0, 0, 2),
            (Sysctl::Forward, 0, 1, 0),
        ] {
            assert_eq!(name.read(text, host), expected, "{name:?} {text} {host}");
        }
    }
}
