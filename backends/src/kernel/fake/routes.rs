//! The main routing table: several routes may share a destination and a metric, the first is in force.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::netlink::route::RTPROT_KERNEL;
use crate::state::{Route, RouteKind};

/// Where a new route goes among those of the same destination and metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutePlace {
    /// In place of the first (`ip route replace`).
    Replace,
    /// Only if there is none (`ip route add`).
    Alone,
    /// Before the others (`ip route prepend`), in force.
    First,
    /// Behind the others (`ip route append`), without effect.
    Last,
}

/// Where a packet goes from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// Over a link, to a gateway or straight to the destination.
    Link(crate::IfName, IpAddr),
    /// Through a tunnel device, in a packet to this host, in a frame to this address.
    Tunnel(crate::IfName, IpAddr, crate::Mac),
    /// Nowhere; what is missing.
    Lost(&'static str),
}

/// A route with the index of its link, since a link may get another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// `link` is empty.
    pub(super) route: Route,
    /// 0 where it has none.
    pub(super) out: u32,
    /// Preferred source of what the kernel makes itself.
    pub(super) source: Option<IpAddr>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Routes {
    held: BTreeMap<(IpNetwork, u32), Vec<Held>>,
    /// How many routes of each family have each prefix length.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Routes {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.values().flatten()
    }

    pub(super) fn put(&mut self, new: Held, place: RoutePlace) -> Result<(), Errno> {
        let key = (new.route.dst, new.route.metric);
        // Most are alone: the first push into an empty one would make room for four.
        let same = self.held.entry(key).or_insert_with(|| Vec::with_capacity(1));
        let before = same.len();
        match (place, same.first()) {
            (RoutePlace::Alone, Some(_)) => return Err(Errno::EEXIST),
            (RoutePlace::Replace, Some(first)) if *first == new => {}
            // Law 18. IPv6 has no twins: equal gateway routes are one multipath route there, replaced as a whole.
            (RoutePlace::Replace, Some(_)) if new.route.dst.is_ipv4() => {
                if same[1..].contains(&new) {
                    return Err(Errno::EEXIST);
                }
                same[0] = new;
            }
            (RoutePlace::Replace, Some(_)) => {
                same.retain(|h| h.route.via.is_none() != new.route.via.is_none());
                if same.len() == before {
                    same.remove(0);
                }
                same.insert(0, new);
            }
            (RoutePlace::First | RoutePlace::Last, Some(_)) if same.contains(&new) => {
                return Err(Errno::EEXIST);
            }
            (RoutePlace::First, Some(_)) => same.insert(0, new),
            _ => same.push(new),
        }
        let after = same.len();
        let count = self.lengths.entry((key.0.is_ipv4(), key.0.prefix())).or_default();
        *count = *count + after - before;
        Ok(())
    }

    /// Deletes exactly this route (laws 10, 14, 20).
    pub(super) fn delete(&mut self, gone: &Held, any_metric: bool) -> Result<(), Errno> {
        let dst = gone.route.dst;
        let most = if any_metric { u32::MAX } else { gone.route.metric };
        // One that names no way stands for all (law 25).
        let any_way = gone.route.kind.sends_on() && dst.is_ipv4() && (gone.out, gone.route.via) == (0, None);
        let fits = |h: &Held| {
            if any_way {
                let notified = |r: &Route| (r.protocol, r.scope, r.kind.sends_on());
                return (any_metric || h.route.metric == gone.route.metric)
                    && notified(&h.route) == notified(&gone.route);
            }
            let nameless = h.route.kind == RouteKind::Special && dst.is_ipv4();
            !nameless
                && Held { route: Route { metric: gone.route.metric, ..h.route }, source: None, ..*h } == *gone
        };
        let mut range = self.held.range_mut((dst, gone.route.metric)..=(dst, most));
        let found = range.find_map(|(key, same)| Some((*key, same.iter().position(fits)?, same)));
        let (key, at, same) = found.ok_or(Errno::ESRCH)?;
        same.remove(at);
        if same.is_empty() {
            self.held.remove(&key);
        }
        self.forget(dst);
        Ok(())
    }

    /// Takes away every route for which `gone` holds, without a message.
    pub(super) fn flush(&mut self, gone: impl Fn(&Held) -> bool) {
        let mut dropped = Vec::new();
        self.held.retain(|key, same| {
            let before = same.len();
            same.retain(|h| !gone(h));
            dropped.extend(std::iter::repeat_n(key.0, before - same.len()));
            !same.is_empty()
        });
        dropped.into_iter().for_each(|dst| self.forget(dst));
    }

    fn forget(&mut self, dst: IpNetwork) {
        let key = (dst.is_ipv4(), dst.prefix());
        if let Some(count) = self.lengths.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key);
            }
        }
    }

    pub(super) fn holds(&self, held: &Held) -> bool {
        let same = self.held.get(&(held.route.dst, held.route.metric));
        same.is_some_and(|same| same.iter().any(|h| Held { source: held.source, ..*h } == *held))
    }

    /// The route in force for an address: longest prefix, lowest metric, first.
    pub(super) fn lookup(&self, address: IpAddr) -> Option<&Held> {
        self.prefixes(address).find_map(|dst| self.first(dst))
    }

    /// Destination and link of the route in force for a gateway.
    pub(super) fn covering(&self, gateway: IpAddr) -> Option<(IpNetwork, u32)> {
        self.lookup(gateway).map(|h| (h.route.dst, h.out))
    }

    /// Whether an address is on the wire of a link.
    pub(super) fn connected(&self, address: IpAddr, out: u32) -> bool {
        let direct = |h: &Held| h.out == out && h.route.via.is_none() && h.route.kind.sends_on();
        self.prefixes(address)
            .any(|dst| self.held.range((dst, 0)..=(dst, u32::MAX)).any(|(_, s)| s.iter().any(direct)))
    }

    fn first(&self, dst: IpNetwork) -> Option<&Held> {
        self.held.range((dst, 0)..=(dst, u32::MAX)).next().and_then(|(_, same)| same.first())
    }

    /// Every prefix of the table's lengths that holds an address, longest first.
    fn prefixes(&self, address: IpAddr) -> impl Iterator<Item = IpNetwork> {
        let four = address.is_ipv4();
        let lengths = self.lengths.range((four, 0)..=(four, u8::MAX)).rev().map(|((_, len), _)| *len);
        lengths.filter_map(move |len| {
            let net = IpNetwork::new(address, len).ok()?;
            IpNetwork::new(net.network(), len).ok()
        })
    }
}

/// The connected prefix of an address, as the kernel makes it; none for an IPv4 host address, which is only local.
pub(super) fn connected(net: IpNetwork, out: u32) -> Option<Held> {
    let dst = IpNetwork::new(net.network(), net.prefix()).ok()?;
    let (metric, scope) = if dst.is_ipv4() { (0, 253) } else { (256, 0) };
    let kind = RouteKind::Unicast;
    let route =
        Route { dst, metric, kind, via: None, link: None, onlink: false, scope, protocol: RTPROT_KERNEL };
    let source = dst.is_ipv4().then_some(net.ip());
    (net.is_ipv6() || net.prefix() < 32).then_some(Held { route, out, source })
}
