//! Reading what the host is.

use std::net::IpAddr;
use std::path::Path;

use super::read::Unreadable;
use crate::kernel::KernelError;
use crate::netlink::address::{
    self, AddressView, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_PERMANENT, IFA_F_TEMPORARY, IFA_F_TENTATIVE,
};
use crate::netlink::link::{
    self, IFF_LOOPBACK, IFF_LOWER_UP, IFF_POINTOPOINT, IFF_UP, LinkView, RT_SCOPE_LINK,
};
use crate::netlink::route::{RT_TABLE_MAIN, RTN_UNICAST, RTPROT_KERNEL, RouteView, get_route, read_routes};
use crate::netlink::{AF_INET, AF_INET6, RawMessage, Socket};
use crate::state::{Facts, HostAddress, HostLink, HostRoute, LinkKind, ROUTE_PROTOCOL};

/// Routes beyond the defaults and those that come with an address are only of interest when the interface is chosen by what it can
/// reach; a router with a full table has a million of them, and this many are enough.
const GATEWAY_ROUTES: usize = 1000;

/// With the way to this address, where one is asked for.
pub(super) fn facts(socket: &mut Socket, reach: Option<IpAddr>) -> Result<(Facts, Unreadable), KernelError> {
    let mut reader = HostReader::default();
    let links = socket.dump(&mut link::dump_links(None), |message| reader.link(&message))?;
    let addresses = socket.dump(&mut address::dump_addresses(0), |message| reader.address(&message))?;
    let mut interrupted = links.interrupted || addresses.interrupted;
    for family in [AF_INET, AF_INET6] {
        let routes = read_routes(socket, family, |message| reader.route(message, family))?;
        interrupted |= routes.interrupted;
    }
    let HostReader { facts, unreadable, .. } = reader;
    let reach = reach.and_then(|to| way(socket, to));
    Ok((Facts { reach, ipv6: Path::new("/proc/sys/net/ipv6").exists(), interrupted, ..facts }, unreadable))
}

/// None where the kernel knows none.
fn way(socket: &mut Socket, to: IpAddr) -> Option<HostRoute> {
    let read = |message: RawMessage<'_>| {
        let mut found = None;
        RouteView::parse(&message, |view| found = found.or_else(|| Some(route(&view)))).ok();
        found
    };
    socket.get(&mut get_route(to), read).ok().flatten()
}

/// What the host is, message by message.
#[derive(Debug, Default)]
pub struct HostReader {
    /// So far.
    pub facts: Facts,
    /// What could not be read.
    pub unreadable: Unreadable,
    beyond: [usize; 2],
}

impl HostReader {
    /// A message of the dump of links.
    pub fn link(&mut self, message: &RawMessage<'_>) {
        let view = self.unreadable.note(LinkView::parse(message));
        self.facts.links.extend(view.as_ref().map(host_link));
    }

    /// A message of the dump of addresses.
    pub fn address(&mut self, message: &RawMessage<'_>) {
        let view = self.unreadable.note(AddressView::parse(message));
        self.facts.addresses.extend(view.as_ref().map(address));
    }

    /// A message of the dump of a family's routes.
    pub fn route(&mut self, message: &RawMessage<'_>, family: u8) {
        let six = family == AF_INET6;
        let beyond = &mut self.beyond[usize::from(six)];
        let read = RouteView::parse(message, |view| {
            let (main, unicast) = (view.table == u32::from(RT_TABLE_MAIN), view.kind == RTN_UNICAST);
            let ours = view.protocol == ROUTE_PROTOCOL;
            if !main || !unicast || view.cloned || view.dst.is_ipv6() != six || ours {
                return;
            }
            if view.protocol != RTPROT_KERNEL && view.dst.prefix() > 0 {
                *beyond += 1;
                if *beyond > GATEWAY_ROUTES {
                    return;
                }
            }
            self.facts.routes.push(route(&view));
        });
        self.unreadable.note(read);
    }
}

pub(super) fn host_link(view: &LinkView<'_>) -> HostLink {
    let is = |flag| view.flags & flag != 0;
    HostLink {
        index: view.index,
        name: view.name,
        kind: view.kind.to_owned(),
        mtu: view.mtu,
        up: is(IFF_UP),
        carrier: is(IFF_LOWER_UP),
        loopback: is(IFF_LOOPBACK),
        point_to_point: is(IFF_POINTOPOINT),
        master: view.master.unwrap_or(0),
        tunnel: LinkKind::read(view),
    }
}

fn address(view: &AddressView) -> HostAddress {
    let is = |flag| view.flags & flag != 0;
    HostAddress {
        link: view.link,
        net: view.net,
        peer: view.peer,
        global: view.scope < RT_SCOPE_LINK,
        permanent: is(IFA_F_PERMANENT),
        temporary: view.net.is_ipv6() && is(IFA_F_TEMPORARY),
        deprecated: is(IFA_F_DEPRECATED),
        tentative: is(IFA_F_TENTATIVE) || is(IFA_F_DADFAILED),
    }
}

fn route(view: &RouteView) -> HostRoute {
    HostRoute {
        dst: view.dst,
        gateway: view.gateway,
        link: view.link,
        metric: view.metric,
        source: view.source,
        mtu: view.mtu,
    }
}
