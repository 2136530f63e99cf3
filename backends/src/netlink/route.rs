//! Routes: requests to write and to dump them, and the contents of the answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::link::{CREATE, DUMP, PUT, REQUEST};
use super::{
    AF_INET, AF_INET6, Attrs, Batch, Dump, NetlinkError, RawMessage, Socket, Unread, address_bytes,
    address_from, family_of, read_u16, read_u32,
};

/// One way of a route as the kernel reports it. A multipath route is several of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteView {
    /// Destination.
    pub dst: IpNetwork,
    /// Routing table.
    pub table: u32,
    /// Type of service; routes that differ in it are different routes.
    pub tos: u8,
    /// What made it (`RTPROT_…`).
    pub protocol: u8,
    /// `RT_SCOPE_…`.
    pub scope: u8,
    /// `RTN_…`.
    pub kind: u8,
    /// Metric; 0 when the kernel names none.
    pub metric: u32,
    /// Gateway.
    pub gateway: Option<IpAddr>,
    /// Interface index; 0 when there is none.
    pub link: u32,
    /// The gateway counts as on the link, whatever the addresses are.
    pub onlink: bool,
    /// Preferred source.
    pub source: Option<IpAddr>,
    /// A copy that the kernel keeps for one destination, not a route of the table.
    pub cloned: bool,
    /// The largest packet in bytes, where the route itself says so; 0 = the interface's.
    pub mtu: u32,
    /// Several ways, a next hop object, metrics or an encapsulation; or a source, unless the kernel made the route.
    pub special: bool,
}

impl RouteView {
    /// Reads an `RTM_NEWROUTE` or `RTM_DELROUTE` of IPv4 or IPv6 and passes each of its ways to `each`; those before
    /// the place where it breaks off, too.
    pub fn parse(message: &RawMessage<'_>, mut each: impl FnMut(Self)) -> Result<(), Unread> {
        let any = match (message.kind, message.payload.first()) {
            (RTM_NEWROUTE | RTM_DELROUTE, Some(&AF_INET)) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            (RTM_NEWROUTE | RTM_DELROUTE, Some(&AF_INET6)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            (RTM_NEWROUTE | RTM_DELROUTE, None) => return Err(Unread::Broken),
            _ => return Err(Unread::Other),
        };
        let (route, mut hops) = Self::read(message.payload, any).ok_or(Unread::Broken)?;
        if hops.is_empty() {
            each(route);
        }
        // struct rtnexthop: length (2), flags (1), hops (1), interface index (4), then attributes.
        while !hops.is_empty() {
            let len = read_u16(hops).map(usize::from).filter(|l| *l >= RTNH && *l <= hops.len());
            let len = len.ok_or(Unread::Broken)?;
            let gateway = gateway(Attrs::new(&hops[RTNH..len]));
            let onlink = hops[2] & RTNH_F_ONLINK != 0;
            each(Self { gateway, onlink, link: read_u32(&hops[4..]).unwrap_or(0), special: true, ..route });
            hops = hops.get(super::attrs::align(len)..).unwrap_or_default();
        }
        Ok(())
    }

    fn read(payload: &[u8], any: IpAddr) -> Option<(Self, &[u8])> {
        if payload.len() < RTM {
            return None;
        }
        let flags = read_u32(&payload[8..])?;
        let mut route = Self {
            dst: IpNetwork::new(any, 0).ok()?,
            table: u32::from(payload[4]),
            tos: payload[3],
            protocol: payload[5],
            scope: payload[6],
            kind: payload[7],
            metric: 0,
            gateway: None,
            link: 0,
            onlink: flags & u32::from(RTNH_F_ONLINK) != 0,
            source: None,
            cloned: flags & RTM_F_CLONED != 0,
            mtu: 0,
            special: false,
        };
        let (mut dst, mut hops) = (any, &[][..]);
        let attrs = Attrs::after(payload, RTM);
        for (kind, bytes) in attrs.clone() {
            match kind {
                RTA_DST => dst = address_from(bytes).filter(|dst| dst.is_ipv4() == any.is_ipv4())?,
                RTA_OIF => route.link = read_u32(bytes)?,
                RTA_PRIORITY => route.metric = read_u32(bytes)?,
                RTA_PREFSRC => route.source = address_from(bytes),
                RTA_TABLE => route.table = read_u32(bytes)?,
                RTA_MULTIPATH => hops = bytes,
                RTA_METRICS => {
                    route.mtu = Attrs::new(bytes).find(RTAX_MTU).and_then(read_u32).unwrap_or(0);
                    route.special = true;
                }
                RTA_ENCAP | RTA_NH_ID => route.special = true,
                _ => {}
            }
        }
        route.gateway = gateway(attrs);
        route.special |= route.source.is_some() && route.protocol != RTPROT_KERNEL;
        route.dst = IpNetwork::new(dst, payload[1]).ok()?;
        Some((route, hops))
    }
}

/// Asks for the routes of one family in the main table.
pub fn dump_routes(family: u8) -> Batch {
    let mut header = [0; RTM];
    header[0] = family;
    header[4] = RT_TABLE_MAIN;
    Batch::of(|batch| {
        batch.message(RTM_GETROUTE, REQUEST | DUMP, &header).attr_u32(RTA_TABLE, u32::from(RT_TABLE_MAIN))
    })
}

/// The link that a packet of this host to one address leaves through now; none when there is no way.
pub fn link_towards(socket: &mut Socket, to: IpAddr) -> Option<u32> {
    let read = |message: RawMessage<'_>| {
        let mut link = None;
        RouteView::parse(&message, |route| link = link.or(Some(route.link))).ok()?;
        link.filter(|link| *link != 0)
    };
    socket.get(&mut get_route(to), read).ok().flatten()
}

/// Asks for the way to one address, as a packet of this host would take it now.
pub fn get_route(to: IpAddr) -> Batch {
    let mut header = [0; RTM];
    header[0] = family_of(&to);
    header[1] = if to.is_ipv4() { 32 } else { 128 };
    Batch::of(|batch| batch.message(RTM_GETROUTE, REQUEST, &header).attr(RTA_DST, &address_bytes(&to)))
}

/// Passes every route message of one family in the main table to `each`. A namespace that never had an
/// address of the family has no such table and answers ENOENT: no routes.
pub fn read_routes(
    socket: &mut Socket,
    family: u8,
    mut each: impl FnMut(&RawMessage<'_>),
) -> Result<Dump, NetlinkError> {
    let read = socket.dump(&mut dump_routes(family), |message| each(&message));
    match read {
        Err(error) if error.errno() == Errno::ENOENT => Ok(Dump { interrupted: false }),
        read => read,
    }
}

/// Adds to the batch: create a route, or take over the one with the same destination and metric (law 6).
pub fn put_route(batch: &mut Batch, route: &RouteView) {
    write(batch, RTM_NEWROUTE, REQUEST | PUT, route);
}

/// Adds to the batch: delete exactly this route. One with neither gateway nor link stands for any way.
pub fn delete_route(batch: &mut Batch, route: &RouteView) {
    write(batch, RTM_DELROUTE, REQUEST, route);
}

fn write(batch: &mut Batch, kind: u16, flags: u16, route: &RouteView) {
    let mut header = [0; RTM];
    header[0] = family_of(&route.dst.ip());
    header[1] = route.dst.prefix();
    header[3] = route.tos;
    header[4] = RT_TABLE_MAIN;
    header[5] = route.protocol;
    header[6] = route.scope;
    header[7] = route.kind;
    if route.onlink {
        header[8] = RTNH_F_ONLINK;
    }
    batch.message(kind, flags, &header).attr(RTA_DST, &address_bytes(&route.dst.network()));
    if let Some(gateway) = route.gateway {
        batch.attr(RTA_GATEWAY, &address_bytes(&gateway));
    }
    if route.link != 0 {
        batch.attr_u32(RTA_OIF, route.link);
    }
    if route.metric != 0 {
        batch.attr_u32(RTA_PRIORITY, route.metric);
    }
    if let Some(source) = route.source {
        batch.attr(RTA_PREFSRC, &address_bytes(&source));
    }
}

/// A route to add beside those of the same destination that are there.
#[derive(Debug, Clone, Copy)]
pub struct NewRoute {
    /// Destination.
    pub dst: IpNetwork,
    /// Gateway; none for a route to the link itself.
    pub gateway: Option<IpAddr>,
    /// Interface index.
    pub link: u32,
    /// Routing table; 0 is the main one.
    pub table: u32,
    /// `RT_SCOPE_…`.
    pub scope: u8,
    /// Metric; 0 leaves the kernel's default.
    pub metric: u32,
    /// Path MTU in bytes; 0 for none.
    pub mtu: u32,
    /// Advertised TCP segment size in bytes; 0 for none.
    pub advmss: u32,
}

/// Adds to the batch: a route after those of the same destination and metric, so that it takes nothing over.
pub fn add_route(batch: &mut Batch, route: &NewRoute) {
    let table = if route.table == 0 { u32::from(RT_TABLE_MAIN) } else { route.table };
    let mut header = [0; RTM];
    header[0] = family_of(&route.dst.ip());
    header[1] = route.dst.prefix();
    header[5] = RTPROT_BOOT;
    header[6] = route.scope;
    header[7] = RTN_UNICAST;
    batch
        .message(RTM_NEWROUTE, REQUEST | CREATE | APPEND, &header)
        .attr(RTA_DST, &address_bytes(&route.dst.network()))
        .attr_u32(RTA_OIF, route.link)
        .attr_u32(RTA_TABLE, table);
    if let Some(gateway) = route.gateway {
        batch.attr(RTA_GATEWAY, &address_bytes(&gateway));
    }
    if route.metric != 0 {
        batch.attr_u32(RTA_PRIORITY, route.metric);
    }
    if route.mtu != 0 || route.advmss != 0 {
        let metrics = batch.nest(RTA_METRICS);
        for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
            if value != 0 {
                batch.attr_u32(kind, value);
            }
        }
        batch.end(metrics);
    }
}

fn gateway(attrs: Attrs<'_>) -> Option<IpAddr> {
    let mut attrs = attrs;
    attrs.find_map(|(kind, bytes)| match kind {
        RTA_GATEWAY => address_from(bytes),
        // An IPv4 route through an IPv6 neighbour: family (2), then the address.
        RTA_VIA => bytes.get(2..).and_then(address_from),
        _ => None,
    })
}

/// `NLM_F_APPEND`.
const APPEND: u16 = 0x800;

/// Size of `struct rtmsg`.
const RTM: usize = 12;
/// Size of `struct rtnexthop`.
const RTNH: usize = 8;

pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

const RTNH_F_ONLINK: u8 = 4;
const RTM_F_CLONED: u32 = 0x200;
/// The main table.
pub const RT_TABLE_MAIN: u8 = 254;
/// `RTNLGRP_IPV6_ROUTE`.
pub const RTNLGRP_IPV6_ROUTE: u32 = 11;
/// `RTN_LOCAL`.
pub const RTN_LOCAL: u8 = 2;
/// `RTN_UNICAST`.
pub const RTN_UNICAST: u8 = 1;
/// `RTN_BLACKHOLE`.
pub const RTN_BLACKHOLE: u8 = 6;
/// `RTPROT_KERNEL`: made by the kernel itself (connected prefixes).
pub const RTPROT_KERNEL: u8 = 2;
/// `RTPROT_BOOT`: what `ip route` and flannel use.
pub const RTPROT_BOOT: u8 = 3;
