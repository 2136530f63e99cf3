//! Notifications, reduced to what is to be read again.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use ipnetwork::IpNetwork;
use nix::libc;
use nix::net::if_::if_indextoname;
use subnet_lease::contains_net;

use crate::kernel::KernelEvent;
use crate::name::IfName;
use crate::netlink::link::{LinkView, RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK};
use crate::netlink::neigh::{NeighView, RTM_DELNEIGH, RTM_NEWNEIGH};
use crate::netlink::route::{RT_TABLE_MAIN, RTPROT_KERNEL, RouteView};
use crate::netlink::{NetlinkError, RawMessage, Received, Socket};
use crate::owner::ROUTE_PROTOCOL;

/// What tells our notifications from the noise of the host.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// The cluster's networks.
    pub networks: Vec<IpNetwork>,
    /// The links this configuration produces.
    pub links: Vec<IfName>,
}

/// A subscription to rtnetlink or nf_tables. Wait for its descriptor to become readable, then drain it.
pub struct Events {
    socket: Socket,
    netfilter: bool,
}

impl Events {
    /// Links, addresses, routes and neighbours of both families.
    pub fn route() -> Result<Self, NetlinkError> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ];
        Ok(Self { socket: Socket::subscribe(libc::NETLINK_ROUTE, &groups)?, netfilter: false })
    }

    /// Changes of nf_tables rules.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        let socket = Socket::subscribe(libc::NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
        Ok(Self { socket, netfilter: true })
    }

    /// Reads everything that is waiting; the gravest of it, or none.
    pub fn drain(&mut self, filter: &EventFilter) -> Result<Option<KernelEvent>, NetlinkError> {
        let netfilter = self.netfilter;
        let mut gravest = None;
        loop {
            match self.socket.receive()? {
                Received::Empty => return Ok(gravest),
                Received::Overrun => gravest = Some(KernelEvent::Overrun),
                Received::Messages(messages) => {
                    // After a pass of ours thousands of its own messages wait here: what can add nothing is not read.
                    for message in messages {
                        if gravest.is_none_or(|e| e == KernelEvent::Own) {
                            let event =
                                if netfilter { rules(&message) } else { filter.judge(&message, gravest) };
                            gravest = graver(gravest, event);
                        }
                    }
                }
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

impl EventFilter {
    /// What a message of rtnetlink asks for. Link down and the loss of the last address send no route messages, so
    /// every link and address message counts.
    fn judge(&self, message: &RawMessage<'_>, known: Option<KernelEvent>) -> Option<KernelEvent> {
        match message.kind {
            RTM_NEWLINK | RTM_DELLINK => LinkView::parse(message).map(|_| KernelEvent::Host),
            RTM_NEWADDR | RTM_DELADDR => Some(KernelEvent::Host),
            RTM_NEWNEIGH | RTM_DELNEIGH if known.is_some() => None,
            RTM_NEWNEIGH | RTM_DELNEIGH => NeighView::parse(message).and_then(|view| self.neighbour(&view)),
            _ => self.route(message),
        }
    }

    fn neighbour(&self, view: &NeighView) -> Option<KernelEvent> {
        let name = if_indextoname(view.link).ok()?;
        self.links.contains(&IfName::from_kernel(name.as_bytes())).then_some(KernelEvent::Own)
    }

    fn route(&self, message: &RawMessage<'_>) -> Option<KernelEvent> {
        let mut gravest = None;
        RouteView::parse(message, |view| {
            if view.table != u32::from(RT_TABLE_MAIN) || view.cloned {
                return;
            }
            let inside = self.networks.iter().any(|net| contains_net(*net, view.dst));
            let connected = view.gateway.is_none() && view.protocol == RTPROT_KERNEL;
            let event = match (view.protocol == ROUTE_PROTOCOL || inside, connected || view.dst.prefix() == 0)
            {
                (_, true) => Some(KernelEvent::Host),
                (true, false) => Some(KernelEvent::Own),
                (false, false) => None,
            };
            gravest = graver(gravest, event);
        });
        gravest
    }
}

/// Most nf_tables messages name their table in the first attribute; a new generation without our table is not ours.
fn rules(message: &RawMessage<'_>) -> Option<KernelEvent> {
    let table = crate::netlink::Attrs::after(message.payload, NFGENMSG).find(NFTA_TABLE)?;
    table.starts_with(b"flannel-").then_some(KernelEvent::Own)
}

fn graver(a: Option<KernelEvent>, b: Option<KernelEvent>) -> Option<KernelEvent> {
    let weight = |e: Option<KernelEvent>| match e {
        None => 0,
        Some(KernelEvent::Own) => 1,
        Some(KernelEvent::Host) => 2,
        Some(KernelEvent::Overrun) => 3,
    };
    if weight(b) > weight(a) { b } else { a }
}

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const NFNLGRP_NFTABLES: u32 = 7;
/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`: all number one.
const NFTA_TABLE: u16 = 1;
