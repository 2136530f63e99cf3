//! One kernel thing and its identity.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::rules::{IptablesKey, TableKey};
use super::{LinkKind, Sysctl};
use crate::rules::RuleTable;
use crate::rules::iptables::IptablesRules;
use crate::state::{IfName, Mac};

/// The route protocol number of every route that we make. Chosen once; it is on users' disks and in their kernels.
/// Free in iproute2's list (`rt_protos`) and among the routing daemons we know of.
pub const ROUTE_PROTOCOL: u8 = 67;

/// The identity of an object. **The order of the variants is the dependency order**: objects are created in this
/// order and deleted in reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// A link, by name.
    Link(IfName),
    /// A setting of a device; one of the host is filed under the underlay.
    Sysctl(IfName, Sysctl),
    /// An address on a link.
    Address(IfName, IpNetwork),
    /// That a link is administratively up.
    Up(IfName),
    /// A forwarding entry of a tunnel link, by Ethernet address.
    Fdb(IfName, Mac),
    /// A neighbour, by address.
    Neigh(IfName, IpAddr),
    /// A route of the main table, by destination and metric.
    Route(IpNetwork, u32),
    /// A table of traffic rules.
    Table(TableKey),
    /// Traffic rules in iptables.
    Iptables(IptablesKey),
    /// That firewalld trusts a network.
    Trusted(IpNetwork),
}

impl Key {
    /// The link that must exist for this object to exist; routes name theirs in [`Object::link`].
    pub fn link(&self) -> Option<IfName> {
        match self {
            Self::Sysctl(link, _) | Self::Address(link, _) | Self::Up(link) => Some(*link),
            Self::Fdb(link, _) | Self::Neigh(link, _) => Some(*link),
            Self::Link(_) | Self::Route(..) | Self::Table(_) | Self::Iptables(_) | Self::Trusted(_) => None,
        }
    }
}

/// One kernel thing in the form the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Object {
    /// A link.
    Link(Box<Link>),
    /// A setting with its value.
    Sysctl(IfName, Sysctl, i32),
    /// An address.
    Address(Address),
    /// A link is up.
    Up(IfName),
    /// A forwarding entry.
    Fdb(Fdb),
    /// A permanent neighbour.
    Neigh(Neigh),
    /// A route.
    Route(Route),
    /// Traffic rules.
    Table(Box<RuleTable>),
    /// Traffic rules in iptables.
    Iptables(Box<IptablesRules>),
    /// What comes from this network is trusted by firewalld.
    Trusted(IpNetwork),
}

impl Object {
    /// Its identity.
    pub fn key(&self) -> Key {
        match self {
            Self::Link(link) => Key::Link(link.name),
            Self::Sysctl(link, name, _) => Key::Sysctl(*link, *name),
            Self::Address(a) => Key::Address(a.link, a.net),
            Self::Up(link) => Key::Up(*link),
            Self::Fdb(f) => Key::Fdb(f.link, f.mac),
            Self::Neigh(n) => Key::Neigh(n.link, n.address),
            Self::Route(r) => Key::Route(r.dst, r.metric),
            Self::Table(t) => Key::Table(t.key()),
            Self::Iptables(rules) => Key::Iptables(rules.key()),
            Self::Trusted(net) => Key::Trusted(*net),
        }
    }

    /// The link it hangs on, and goes with.
    pub fn link(&self) -> Option<IfName> {
        match self {
            Self::Route(r) => r.link,
            other => other.key().link(),
        }
    }

    /// The same with its link under another name.
    pub(crate) fn renamed(&self, name: impl Fn(IfName) -> IfName) -> Self {
        let mut other = self.clone();
        match &mut other {
            Self::Link(l) => l.name = name(l.name),
            Self::Sysctl(link, ..) | Self::Up(link) => *link = name(*link),
            Self::Address(a) => a.link = name(a.link),
            Self::Fdb(f) => f.link = name(f.link),
            Self::Neigh(n) => n.link = name(n.link),
            Self::Route(r) => r.link = r.link.map(name),
            Self::Table(_) | Self::Iptables(_) | Self::Trusted(_) => {}
        }
        other
    }

    /// Whether this, found in the kernel, is what is wanted: equal, or a setting that is at least as large as it need be.
    pub(crate) fn is_as(&self, want: &Self) -> bool {
        match (self, want) {
            (Self::Sysctl(link, name, have), Self::Sysctl(of, wanted, least)) if name.is_a_least() => {
                (link, name) == (of, wanted) && have >= least
            }
            _ => self == want,
        }
    }

    /// Whether the kernel would take a replacement and change nothing: such a thing is deleted first (laws 22, 24).
    pub(crate) fn is_stubborn(&self) -> bool {
        match self {
            Self::Fdb(f) => f.diverted,
            Self::Address(a) => a.narrow,
            _ => false,
        }
    }
}

/// A link that we make.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Link {
    /// Interface name.
    pub name: IfName,
    /// What it is.
    pub kind: LinkKind,
    /// MTU in bytes.
    pub mtu: u32,
    /// Ethernet address.
    pub mac: Mac,
    /// The alias, which says whose it is; see [`Owner`](crate::Owner).
    pub tag: String,
    /// Index of the bridge or VRF that somebody made it a part of, which swallows its packets; 0 = none.
    #[serde(default)]
    pub master: u32,
}

/// An address on a link; every IPv6 one carries `nodad`, since a tentative address is unusable for over a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The link.
    pub link: IfName,
    /// Address and prefix length.
    pub net: IpNetwork,
    /// Of scope link or host, hence no source of packets to elsewhere. We never make such.
    #[serde(default)]
    pub narrow: bool,
}

/// A permanent forwarding entry: frames to `mac` go to `dst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fdb {
    /// The tunnel link.
    pub link: IfName,
    /// Ethernet address of the peer's tunnel end.
    pub mac: Mac,
    /// Public address of the peer; unspecified when it leads to a next hop object.
    pub dst: IpAddr,
    /// Over another port, VNI or link than the device's own, or to a next hop object. We never make such.
    #[serde(default)]
    pub diverted: bool,
}

/// A permanent neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Neigh {
    /// The link.
    pub link: IfName,
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNetwork,
    /// Metric as the kernel reports it: an IPv6 route without one has 1024 (law 7).
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
    /// Gateway.
    pub via: Option<IpAddr>,
    /// The way out; none for a blackhole.
    pub link: Option<IfName>,
    /// Take the gateway as on the link.
    pub onlink: bool,
    /// `RT_SCOPE_…`; always 0 for IPv6.
    pub scope: u8,
    /// Who made it (`RTPROT_…`).
    pub protocol: u8,
}

impl Route {
    /// What identifies it in a deletion: a special IPv4 route with a next hop object can't be named by its way, and all
    /// ways of one with several go together (law 25).
    pub(crate) fn deletable(&self) -> Self {
        match self.kind {
            RouteKind::Special if self.dst.is_ipv4() => {
                Self { via: None, link: None, onlink: false, ..*self }
            }
            _ => *self,
        }
    }

    /// A route of ours that drops what no better one takes: its metric is the worst there is, since the pods' bridge has a
    /// route to the very same prefix.
    pub fn blackhole(dst: IpNetwork) -> Self {
        let (metric, kind) = (u32::MAX, RouteKind::Blackhole);
        Self { dst, metric, kind, via: None, link: None, onlink: false, scope: 0, protocol: ROUTE_PROTOCOL }
    }
}

impl RouteKind {
    /// Whether a packet that takes such a route goes on.
    pub fn sends_on(self) -> bool {
        matches!(self, Self::Unicast | Self::Special)
    }
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Sends it on with something that we never set: several ways, a next hop object, metrics, an encapsulation, a
    /// source of its own.
    Special,
    /// Drops it silently.
    Blackhole,
    /// Something we never make (`prohibit`, `unreachable`, …), by its kernel number.
    Other(u8),
}

/// The metric the kernel gives to a route that names none: 0 for IPv4, 1024 for IPv6 (law 7).
pub fn default_metric(dst: &IpNetwork) -> u32 {
    if dst.is_ipv4() { 0 } else { 1024 }
}
