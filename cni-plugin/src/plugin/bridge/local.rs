//! Waiting until the kernel takes packets for new addresses.
//!
//! IPv4 addresses work at once. The kernel inserts the route that makes an IPv6 address local in a work item of its own, also
//! without duplicate detection. While others hold the kernel's lock, that is 10 to 40 ms later, and until then an answer to the
//! address is lost: the asker asks again after a second.

use std::net::IpAddr;

use backends::netlink::route::{RTN_LOCAL, RTNLGRP_IPV6_ROUTE, RouteView, get_route};
use backends::netlink::{Batch, Socket};

use super::conf::PORT_UP_WITHIN;
use super::events::Events;
use crate::contract::{Code, Failure};
use crate::sys::netns::Namespace;

/// Returns when packets to these addresses of a namespace are taken, which is nearly always at once.
pub(super) fn wait_until_local(
    socket: &mut Socket,
    namespace: &Namespace,
    addresses: impl Iterator<Item = IpAddr>,
) -> Result<(), Failure> {
    let addresses: Vec<_> = addresses.filter(IpAddr::is_ipv6).collect();
    if missing(socket, &addresses).is_none() {
        return Ok(());
    }
    let mut events = Events::within(namespace, RTNLGRP_IPV6_ROUTE, PORT_UP_WITHIN)?;
    while let Some(address) = missing(socket, &addresses) {
        if !events.wait()? {
            return Err(Failure::new(Code::Kernel, format!("the kernel does not take packets to {address}")));
        }
    }
    Ok(())
}

/// The first address that is not local yet.
fn missing(socket: &mut Socket, addresses: &[IpAddr]) -> Option<IpAddr> {
    let mut ask = Batch::new();
    addresses.iter().for_each(|address| ask.append(get_route(*address)));
    let mut local = vec![false; addresses.len()];
    if !ask.is_empty() {
        // A refusal means that there is no route at all.
        let _ = socket.get_each(&mut ask, |n, message| {
            let _ = RouteView::parse(&message, |route| local[n] = route.kind == RTN_LOCAL);
        });
    }
    addresses.iter().zip(local).find(|(_, local)| !local).map(|(address, _)| *address)
}
