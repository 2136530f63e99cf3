//! Inside of the container: settings, addresses, routes. The thread is in its namespace throughout.

use std::time::Duration;

use backends::IfName;
use backends::netlink::address::{
    AddressView, IFA_F_DADFAILED, IFA_F_TENTATIVE, RTNLGRP_IPV6_IFADDR, add_address,
    add_address_after_detection, dump_addresses,
};
use backends::netlink::link::{self, IFF_UP, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE};
use backends::netlink::route::{NewRoute, add_route};
use backends::netlink::{Batch, Socket};

use super::conf::Bridge;
use super::events::Events;
use super::pod::Pair;
use crate::contract::{Code, During, Failure, Route};
use crate::plugin::ipam::Lease;
use crate::sys::netns::Namespace;
use crate::sys::sysctl;

/// Duplicate detection takes a second or two; the reference plugin waits as long.
const DETECTED_WITHIN: Duration = Duration::from_secs(5);

/// Sets everything in one batch: addresses, link up, routes.
pub(super) fn furnish(
    conf: &Bridge,
    pair: &Pair,
    inside: &mut Socket,
    leases: &[Lease],
    routes: &[Route],
) -> Result<(), Failure> {
    let name = pair.pod.0;
    settings(name, leases, conf)?;
    let mut batch = Batch::new();
    let mut steps = Vec::with_capacity(leases.len() + routes.len() + 1);
    for lease in leases {
        let add = if conf.detect_duplicates { add_address_after_detection } else { add_address };
        add(&mut batch, pair.peer, lease.net);
        steps.push(format!("give {} to {name}", lease.net));
    }
    let flags = if conf.stay_down { 0 } else { IFF_UP };
    link::announce_ipv4(link::change(&mut batch, pair.peer, flags, flags));
    steps.push(format!("set {name} {}", if conf.stay_down { "to announce addresses" } else { "up" }));
    for route in routes {
        add_route(&mut batch, &new_route(pair.peer, route));
        steps.push(format!("add the route to {}", route.dst));
    }
    let mut results = inside.apply(&mut batch).into_iter().zip(steps);
    results.try_for_each(|(result, step)| result.during(Code::Kernel, || format!("cannot {step}")))
}

/// Announces the addresses once more: the kernel's announcement when the link came up was sent before packets passed. The
/// kernel announces them whenever an Ethernet address is set, even to the same value (`arp_notify`, `ndisc_notify`).
pub(super) fn announce(pair: &Pair, inside: &mut Socket) -> Result<(), Failure> {
    let mut batch = Batch::new();
    link::mac(link::change(&mut batch, pair.peer, 0, 0), pair.pod.1);
    inside.request(&mut batch).during(Code::Kernel, || format!("cannot announce {}", pair.pod.0))
}

/// Waits until the kernel has finished duplicate detection of all IPv6 addresses.
///
/// # Errors
/// Another host has one of them, which the error names.
pub(super) fn detect(pair: &Pair, inside: &mut Socket, namespace: &Namespace) -> Result<(), Failure> {
    let mut events = Events::within(namespace, RTNLGRP_IPV6_IFADDR, DETECTED_WITHIN)?;
    loop {
        let addresses = addresses(inside, pair.peer)?;
        if let Some(twice) = addresses.iter().find(|address| address.flags & IFA_F_DADFAILED != 0) {
            let msg = format!("another host of the network has the address {}", twice.net.ip());
            return Err(Failure::new(Code::Exists, msg).details("enabledad looks for it"));
        }
        if !addresses.iter().any(|address| address.flags & IFA_F_TENTATIVE != 0) {
            return Ok(());
        }
        if !events.wait()? {
            let within = DETECTED_WITHIN.as_secs();
            let msg = format!("duplicate detection on {} is not over after {within} s", pair.pod.0);
            return Err(Failure::new(Code::Kernel, msg));
        }
    }
}

fn addresses(inside: &mut Socket, link: u32) -> Result<Vec<AddressView>, Failure> {
    let mut found = Vec::new();
    let read = inside.dump(&mut dump_addresses(link), |message| {
        found.extend(AddressView::parse(&message).ok().filter(|address| address.link == link));
    });
    read.during(Code::Kernel, || "cannot read the container's addresses".into())?;
    Ok(found)
}

/// What the kernel does by itself on the container's interface.
fn settings(name: IfName, leases: &[Lease], conf: &Bridge) -> Result<(), Failure> {
    let detect = conf.detect_duplicates;
    if conf.gateway && !leases.is_empty() {
        // The gateway is known: no other container may announce itself as a router.
        sysctl::try_set(&format!("ipv6/conf/{name}/accept_ra"), "0");
    }
    // Its frames may come back to it (hairpinMode), and look like those of another host with the same address.
    sysctl::try_set(&format!("ipv6/conf/{name}/accept_dad"), if detect { "1" } else { "0" });
    if detect {
        // Distinguishes its own frames that came back from those of others.
        sysctl::try_set(&format!("ipv6/conf/{name}/enhanced_dad"), "1");
    }
    if !leases.iter().any(|lease| lease.net.is_ipv6()) {
        return Ok(());
    }
    // The kernel announces the address to the neighbours, as arp_notify makes it do for IPv4.
    sysctl::try_set(&format!("ipv6/conf/{name}/ndisc_notify"), "1");
    sysctl::try_set(&format!("ipv6/conf/{name}/keep_addr_on_down"), "1");
    sysctl::set("ipv6/conf/lo/disable_ipv6", "0")?;
    sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")
}

fn new_route(link: u32, route: &Route) -> NewRoute {
    let scope = if route.gateway.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
    NewRoute {
        dst: route.dst,
        gateway: route.gateway,
        link,
        table: route.table,
        scope: route.scope.unwrap_or(scope),
        metric: route.priority,
        mtu: route.mtu,
        advmss: route.advmss,
    }
}
