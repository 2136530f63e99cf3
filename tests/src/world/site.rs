//! Where a node stands.

use std::net::IpAddr;

use backends::{IfName, Route, RouteKind, default_metric};
use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::Shape;

/// Where a node stands: its underlay.
#[derive(Debug, Clone)]
pub struct Site {
    /// Which of the underlay networks.
    pub rack: usize,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<IpNetwork>,
    /// MTU in bytes.
    pub mtu: u32,
    pub(super) number: usize,
    /// How often it got another address.
    turn: usize,
}

impl Site {
    /// The place of node `n`.
    pub fn new(n: usize, shape: &Shape) -> Self {
        Self::at(n, n % shape.racks, 0, shape.six)
    }

    /// The same host in another network.
    pub(super) fn next_rack(&self, shape: &Shape) -> Self {
        Self::at(self.number, (self.rack + 1) % (shape.racks + 1), self.turn, shape.six)
    }

    /// The same host with another address.
    pub(super) fn next_address(&self, shape: &Shape) -> Self {
        Self::at(self.number, self.rack, (self.turn + 1) % 8, shape.six)
    }

    fn at(n: usize, rack: usize, turn: usize, six: bool) -> Self {
        // Below thirty for seven thousand hosts.
        let (high, low) = ((n + 1) / 250 + 30 * turn, (n + 1) % 250 + 1);
        let host = high << 8 | low;
        let four = format!("172.{}.{high}.{low}/16", 16 + rack).parse().unwrap();
        let mut addresses = vec![four];
        addresses
            .extend(six.then(|| format!("fd00:{:x}::{host:x}/64", 16 + rack).parse::<IpNetwork>().unwrap()));
        Self { rack, addresses, mtu: 1500, number: n, turn }
    }

    /// Its address of one family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().map(|net| net.ip()).find(|ip| Family::of(ip) == family)
    }

    /// The default routes.
    pub(super) fn gateways(&self) -> Vec<Route> {
        let via = |net: &IpNetwork| match net {
            IpNetwork::V4(_) => format!("172.{}.255.254", 16 + self.rack).parse().unwrap(),
            IpNetwork::V6(_) => format!("fd00:{:x}::ffff", 16 + self.rack).parse::<IpAddr>().unwrap(),
        };
        let any = |six| if six { "::/0" } else { "0.0.0.0/0" }.parse().unwrap();
        self.addresses.iter().map(|net| outward(any(net.is_ipv6()), via(net))).collect()
    }
}

/// A route of the host's own over the underlay.
pub(super) fn outward(dst: IpNetwork, via: IpAddr) -> Route {
    let (metric, kind, link) = (default_metric(&dst), RouteKind::Unicast, Some(eth0()));
    Route { dst, metric, kind, via: Some(via), link, onlink: false, scope: 0, protocol: 4 }
}

pub(super) fn eth0() -> IfName {
    "eth0".parse().unwrap()
}
