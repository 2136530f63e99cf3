//! What we read of the host: links, addresses, and the routes that say what is reachable directly.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use crate::IfName;
use crate::state::{LinkKind, System};

/// The host as the backends see it. Read from the kernel when an event asks for it; never changed in place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Every link of the namespace, by index.
    pub links: Vec<HostLink>,
    /// Every address of the namespace.
    pub addresses: Vec<HostAddress>,
    /// Unicast routes of the main table that are not ours: all defaults and connected prefixes, and a bounded number of others.
    pub routes: Vec<HostRoute>,
    /// The way to the address that was asked for, as the kernel would send a packet there now: by rules and tables that
    /// are not read here.
    pub reach: Option<HostRoute>,
    /// The kernel speaks IPv6 in this namespace.
    pub ipv6: bool,
    /// The kernel itself.
    pub system: System,
    /// A dump was interrupted: something may be missing. No interface is chosen anew on such facts.
    pub interrupted: bool,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostLink {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: IfName,
    /// Kind (`bridge`, `veth`, …); empty for physical links.
    pub kind: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Has carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// A loopback device.
    pub loopback: bool,
    /// A point-to-point device.
    pub point_to_point: bool,
    /// Index of the bridge, bond, team or VRF that it is a part of; 0 = none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub master: u32,
    /// Its settings, where it is of a kind that we make, ours or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<LinkKind>,
}

impl HostLink {
    /// A link that is up, with the MTU of Ethernet and nothing special.
    pub fn plain(index: u32, name: IfName, kind: &str) -> Self {
        Self {
            index,
            name,
            kind: kind.to_owned(),
            mtu: 1500,
            up: true,
            carrier: true,
            loopback: false,
            point_to_point: false,
            master: 0,
            tunnel: None,
        }
    }

    /// Whether it says the same as another, but for what changes with a bridge's ports and a cable, and is asked of the underlay
    /// alone: MTU and carrier.
    pub fn is_still(&self, other: &Self) -> bool {
        let Self { mtu, carrier, .. } = *other;
        *other == Self { mtu, carrier, ..self.clone() }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn is_none(index: &u32) -> bool {
    *index == 0
}

/// One address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostAddress {
    /// Interface index.
    pub link: u32,
    /// Address with its prefix length, host bits kept.
    pub net: IpNetwork,
    /// The other end of a point-to-point address, if that differs.
    pub peer: Option<IpAddr>,
    /// Scope global or site (not link or host).
    pub global: bool,
    /// Permanent, that is not leased from a router or a DHCP server.
    pub permanent: bool,
    /// A privacy address (RFC 8981).
    pub temporary: bool,
    /// Deprecated: to be replaced soon.
    pub deprecated: bool,
    /// Not usable yet, or found to be a duplicate.
    pub tentative: bool,
}

impl HostAddress {
    /// An address that an operator gave, usable everywhere.
    pub fn plain(link: u32, net: IpNetwork) -> Self {
        Self {
            link,
            net,
            peer: None,
            global: true,
            permanent: true,
            temporary: false,
            deprecated: false,
            tentative: false,
        }
    }
}

/// One way out of a route: a multipath route is several of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostRoute {
    /// Destination; length 0 for a default route.
    pub dst: IpNetwork,
    /// Gateway; none for a connected prefix.
    pub gateway: Option<IpAddr>,
    /// Interface index.
    pub link: u32,
    /// Metric; lower wins.
    pub metric: u32,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// The largest packet for it in bytes, where the route itself says so; 0 = the interface's.
    #[serde(default, skip_serializing_if = "is_none")]
    pub mtu: u32,
}

impl HostRoute {
    /// A route without anything but its destination.
    pub fn to(dst: IpNetwork) -> Self {
        Self { dst, gateway: None, link: 0, metric: 0, source: None, mtu: 0 }
    }
}

impl Facts {
    /// The link with this index.
    pub fn link(&self, index: u32) -> Option<&HostLink> {
        self.links.iter().find(|l| l.index == index)
    }

    /// The link with this name.
    pub fn link_named(&self, name: IfName) -> Option<&HostLink> {
        self.links.iter().find(|l| l.name == name)
    }

    /// The addresses of a link.
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &HostAddress> {
        self.addresses.iter().filter(move |a| a.link == index)
    }

    /// Links with an address inside these networks that are no tunnels: with our subnets, the pods' bridges. Each once.
    pub fn links_within(&self, nets: &[IpNetwork]) -> Vec<IfName> {
        let within = |a: &&HostAddress| nets.iter().any(|net| net.contains(a.net.ip()));
        let mut indexes: Vec<u32> = self.addresses.iter().filter(within).map(|a| a.link).collect();
        indexes.sort_unstable();
        indexes.dedup();
        let links = indexes.into_iter().filter_map(|index| self.link(index));
        links.filter(|link| !LinkKind::is_word(&link.kind)).map(|link| link.name).collect()
    }

    /// Bridges with a port, but for these.
    pub fn other_bridges(&self, except: &[IfName]) -> Vec<IfName> {
        let has_port = |bridge: &HostLink| self.links.iter().any(|link| link.master == bridge.index);
        let others = self.links.iter().filter(|l| l.kind == "bridge" && !except.contains(&l.name));
        others.filter(|bridge| has_port(bridge)).map(|bridge| bridge.name).collect()
    }

    /// Whether one of these links is a bridge.
    pub fn on_bridge(&self, links: &[IfName]) -> bool {
        links.iter().any(|name| self.link_named(*name).is_some_and(|link| link.kind == "bridge"))
    }

    /// Whether this very address is on the host.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.net.ip() == address)
    }

    /// The prefixes that are on the wire of this link: reachable without a gateway.
    pub fn connected(&self, index: u32) -> impl Iterator<Item = IpNetwork> {
        self.routes
            .iter()
            .filter(move |r| r.link == index && r.gateway.is_none() && r.dst.prefix() > 0)
            .map(|r| r.dst)
    }

    /// Whether an address is on the wire of this link. Behind a point-to-point device somebody's tunnel decides that.
    pub fn on_wire(&self, index: u32, address: IpAddr) -> bool {
        self.on_link(index, address) && !self.link(index).is_some_and(|link| link.point_to_point)
    }

    /// Whether an address is inside a prefix of this link.
    pub fn on_link(&self, index: u32, address: IpAddr) -> bool {
        self.connected(index).any(|net| net.contains(address))
    }

    /// The default routes of a family, best metric first.
    pub fn defaults(&self, family: Family) -> Vec<HostRoute> {
        let is = |r: &&HostRoute| r.dst.prefix() == 0 && r.dst.is_ipv4() == (family == Family::V4);
        let mut found: Vec<_> = self.routes.iter().filter(is).copied().collect();
        found.sort_by_key(|r| r.metric);
        found
    }
}
