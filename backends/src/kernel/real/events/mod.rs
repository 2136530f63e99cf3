//! Notifications, reduced to what is to be read again, and to who it was.

mod filter;
mod touches;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::libc;

use super::read::Unreadable;
use crate::kernel::{KernelEvent, Touch};
use crate::netlink::address::{RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR};
use crate::netlink::link::RTNLGRP_LINK;
use crate::netlink::route::RTNLGRP_IPV6_ROUTE;
use crate::netlink::{NetlinkError, Received, Socket};
pub use filter::EventFilter;
use touches::Touches;

/// What was waiting.
#[derive(Debug, Default)]
pub struct Notice {
    /// The gravest of it; none when nothing of it matters.
    pub event: Option<KernelEvent>,
    /// Who touched what, the first few.
    pub touches: Vec<Touch>,
}

/// A subscription to rtnetlink or nf_tables. Wait for its descriptor to become readable, then drain it.
pub struct Events {
    socket: Socket,
    netfilter: bool,
    unreadable: Unreadable,
}

impl Events {
    /// Links, addresses, routes, neighbours and forwarding of both families.
    pub fn route() -> Result<Self, NetlinkError> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV4_NETCONF,
            RTNLGRP_IPV6_NETCONF,
        ];
        Self::subscribe(libc::NETLINK_ROUTE, &groups)
    }

    /// Changes of nf_tables rules.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::subscribe(libc::NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])
    }

    fn subscribe(protocol: i32, groups: &[u32]) -> Result<Self, NetlinkError> {
        let socket = Socket::subscribe(protocol, groups)?;
        let netfilter = protocol == libc::NETLINK_NETFILTER;
        Ok(Self { socket, netfilter, unreadable: Unreadable::default() })
    }

    /// Notifications that could not be read, so far.
    pub fn unreadable(&self) -> u64 {
        self.unreadable.0
    }

    /// Reads everything that is waiting.
    pub fn drain(&mut self, filter: &EventFilter) -> Result<Notice, NetlinkError> {
        let before = self.unreadable;
        let (mut gravest, mut touches) = (None, Touches::default());
        loop {
            match self.socket.receive()? {
                Received::Empty => break,
                Received::Overrun => gravest = Some(KernelEvent::Overrun),
                Received::Messages(messages) => {
                    touches.read(messages.clone(), self.netfilter, filter);
                    gravest = filter.gravest(messages, self.netfilter, gravest, &mut self.unreadable);
                }
            }
        }
        if before.0 == 0 && self.unreadable.0 > 0 {
            tracing::warn!(
                "a notification of the kernel could not be read; each such is taken for a lost one"
            );
        }
        Ok(Notice { event: gravest, touches: touches.finish() })
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

const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const NFNLGRP_NFTABLES: u32 = 7;
