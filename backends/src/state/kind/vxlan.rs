//! VXLAN (RFC 7348).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

#[cfg(feature = "kernel")]
use super::Feature;
use super::{Kind, LinkKind, Row};
use crate::netlink::link::port_from;
use crate::netlink::{Attrs, address_from, read_u32};

/// The settings of a vxlan link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vxlan {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Source of the outer packets.
    pub local: Option<IpAddr>,
    /// Index of the underlay link.
    pub parent: u32,
    /// Learns forwarding entries from traffic.
    pub learning: bool,
    /// Group policy extension.
    pub gbp: bool,
}

pub(super) const ROW: Row = Row {
    word: "vxlan",
    #[cfg(feature = "kernel")]
    feature: Feature::Vxlan,
    read,
};

fn read(attributes: Attrs<'_>) -> LinkKind {
    let mut kind = Vxlan { vni: 0, port: 0, local: None, parent: 0, learning: false, gbp: false };
    for (attribute, bytes) in attributes {
        match attribute {
            IFLA_VXLAN_ID => kind.vni = read_u32(bytes).unwrap_or(0),
            IFLA_VXLAN_LINK => kind.parent = read_u32(bytes).unwrap_or(0),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => kind.local = address_from(bytes),
            IFLA_VXLAN_LEARNING => kind.learning = bytes.first().is_some_and(|b| *b != 0),
            IFLA_VXLAN_PORT => kind.port = port_from(bytes).unwrap_or(0),
            IFLA_VXLAN_GBP => kind.gbp = true,
            _ => {}
        }
    }
    LinkKind::Vxlan(kind)
}

impl Vxlan {
    fn learning(&self) -> &'static str {
        if self.learning { "learning" } else { "nolearning" }
    }
}

impl Kind for Vxlan {
    fn word(&self) -> &'static str {
        ROW.word
    }

    /// VNI, port, group policy, and the family of the outer packets.
    fn fixed(&self) -> Vec<u64> {
        let family = self.local.map_or(0, |local| if local.is_ipv4() { 4 } else { 6 });
        vec![self.vni.into(), self.port.into(), self.gbp.into(), family]
    }

    /// One VNI on one port in one outer family.
    fn is_exclusive(&self) -> bool {
        true
    }

    /// One socket per port and outer family takes packets of one form. A device without a VNI takes every VNI of its port.
    fn taken_from(&self, other: &LinkKind) -> Option<String> {
        let LinkKind::Vxlan(other) = other;
        let family = |vxlan: &Self| vxlan.local.is_some_and(|local| local.is_ipv6());
        if self.port != other.port || family(self) != family(other) {
            return None;
        }
        match self.vni {
            0 => Some(format!("every VNI of UDP port {}", self.port)),
            vni if vni == other.vni => Some(format!("VNI {vni} of UDP port {}", self.port)),
            _ if self.gbp != other.gbp => {
                Some(format!("UDP port {} with another group policy setting", self.port))
            }
            _ => None,
        }
    }

    fn over(&self) -> u32 {
        self.parent
    }

    fn local(&self) -> Option<IpAddr> {
        self.local
    }

    fn udp_port(&self) -> Option<u16> {
        Some(self.port)
    }

    /// Outer IP header (20 or 40), UDP (8), VXLAN (8), inner Ethernet (14).
    fn overhead(&self) -> u32 {
        if self.local.is_some_and(|local| local.is_ipv6()) { 70 } else { 50 }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("local", self.local.map_or_else(|| "none".to_owned(), |local| local.to_string())),
            ("underlay", format!("if{}", self.parent)),
            ("learning", self.learning.to_string()),
        ]
    }

    fn write_new(&self, f: &mut fmt::Formatter<'_>, name: &dyn Fn(u32) -> String) -> fmt::Result {
        write!(f, " id {}", self.vni)?;
        if let Some(local) = self.local {
            write!(f, " local {local}")?;
        }
        let gbp = if self.gbp { " gbp" } else { "" };
        write!(f, " dev {} dstport {} {}{gbp}", name(self.parent), self.port, self.learning())
    }

    fn write_change(&self, f: &mut fmt::Formatter<'_>, name: &dyn Fn(u32) -> String) -> fmt::Result {
        write!(f, " id {} dev {} {}", self.vni, name(self.parent), self.learning())?;
        self.local.map_or(Ok(()), |local| write!(f, " local {local}"))
    }

    #[cfg(feature = "kernel")]
    fn attributes(
        &self,
        new: bool,
    ) -> (rtnetlink::packet_route::link::InfoKind, rtnetlink::packet_route::link::InfoData) {
        use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan};
        let mut all =
            vec![InfoVxlan::Id(self.vni), InfoVxlan::Link(self.parent), InfoVxlan::Learning(self.learning)];
        all.extend(self.local.map(|local| match local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        }));
        if new {
            all.push(InfoVxlan::Port(self.port));
        }
        if new && self.gbp {
            // A flag: its presence means yes, whatever its value.
            all.push(InfoVxlan::Gbp);
        }
        (InfoKind::Vxlan, InfoData::Vxlan(all))
    }
}

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;
