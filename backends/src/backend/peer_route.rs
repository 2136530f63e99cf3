//! The routes to peers' subnets.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::state::{IfName, Object, ROUTE_PROTOCOL, Route, RouteKind, default_metric};

/// A plain route through a neighbour on the underlay. Its scope stays universe, since a Go flannel that takes over
/// names that scope when it deletes.
pub(super) fn direct(dst: IpNetwork, via: IpAddr, link: IfName) -> Object {
    route(dst, via, link, false, 0)
}

/// A route into a tunnel device; the gateway is the subnet's own network address, which the device's neighbour
/// entries answer for.
pub(super) fn onlink(dst: IpNetwork, link: IfName) -> Object {
    route(dst, dst.network(), link, true, spread_scope(&dst))
}

fn route(dst: IpNetwork, via: IpAddr, link: IfName, onlink: bool, scope: u8) -> Object {
    let metric = default_metric(&dst);
    let kind = RouteKind::Unicast;
    Object::Route(Route {
        dst,
        metric,
        kind,
        via: Some(via),
        link: Some(link),
        onlink,
        scope,
        protocol: ROUTE_PROTOCOL,
    })
}

/// The kernel files an IPv4 route's descriptor under (protocol, scope, preferred source, metric, device), so that all
/// peer routes of a device share one hash chain: ten thousand take 1.4 s to add. Spread over this many scopes they take
/// 0.1 s (law 14). The scopes 1 to 199 mean nothing to the kernel.
const SCOPES: u32 = 199;

fn spread_scope(dst: &IpNetwork) -> u8 {
    let IpNetwork::V4(net) = dst else { return 0 };
    let index = u32::from(net.network()).checked_shr(32 - u32::from(net.prefix())).unwrap_or(0);
    u8::try_from(index % SCOPES + 1).unwrap_or(1)
}
