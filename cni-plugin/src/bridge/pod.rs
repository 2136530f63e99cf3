//! A container's link: the veth pair, what is set inside its namespace, and the wait until its port forwards.

use std::net::IpAddr;
use std::os::fd::AsFd;

use backends::netlink::link::{IFF_UP, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, get_link};
use backends::netlink::veth::{
    NewRoute, VethPair, VethView, add_address, add_route, create_veth, delete_link, set_flags, set_hairpin,
};
use backends::netlink::{Batch, NetlinkError, Received, Socket};
use backends::{IfName, Mac};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use super::conf::{Bridge, PORT_UP_WITHIN};
use super::device::Device;
use crate::cni::{Code, During, Failure, Route};
use crate::ipam::Lease;
use crate::netns::Namespace;
use crate::{random, sysctl};

/// A veth pair that exists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    /// The host's end.
    pub(super) host: (IfName, Mac),
    /// The container's end.
    pub(super) pod: (IfName, Mac),
    /// The host's end: its own index.
    index: u32,
    /// The container's end: its index there.
    peer: u32,
}

impl Pair {
    /// Makes the pair: the host's end up and a port of the bridge, the container's end born in its namespace.
    pub(super) fn create(
        socket: &mut Socket,
        conf: &Bridge,
        device: &Device,
        pod: &Namespace,
        ends: (IfName, Mac),
    ) -> Result<Self, Failure> {
        let mut attempts = 3;
        loop {
            let host = (host_name(), random::mac());
            let pair =
                VethPair { host, pod: ends, mtu: conf.mtu, bridge: device.index, namespace: pod.as_fd() };
            let mut batch = Batch::new();
            create_veth(&mut batch, &pair);
            if conf.hairpin {
                set_hairpin(&mut batch, host.0);
            }
            attempts -= 1;
            match socket.apply(&mut batch).into_iter().collect::<Result<(), NetlinkError>>() {
                Ok(()) => {
                    let view = look(socket, host.0)?;
                    return Ok(Self { host, pod: ends, index: view.index, peer: view.peer });
                }
                // Either end's name may be the one that is taken. Four billion names make it the container's.
                Err(error) if error.errno() == Errno::EEXIST && attempts > 0 => {}
                Err(error) if error.errno() == Errno::EEXIST => {
                    let msg = format!("interface {} exists already in the container's namespace", ends.0);
                    return Err(Failure::new(Code::Exists, msg));
                }
                Err(error) => {
                    undo_create(socket, host.0);
                    return Err(error).during(Code::Kernel, || format!("cannot make the link of {}", ends.0));
                }
            }
        }
    }

    /// Takes it away again, after a failure; both ends go.
    pub(super) fn delete(&self, socket: &mut Socket) {
        let mut batch = Batch::new();
        delete_link(&mut batch, self.index);
        let _ = socket.request(&mut batch);
    }

    /// Inside the container: addresses, link up, routes. The thread must be in that namespace, for the settings.
    pub(super) fn furnish(
        &self,
        inside: &mut Socket,
        leases: &[Lease],
        routes: &[Route],
    ) -> Result<(), Failure> {
        let name = self.pod.0;
        settings(name, leases)?;
        let mut batch = Batch::new();
        let mut steps = Vec::with_capacity(leases.len() + routes.len() + 1);
        for lease in leases {
            add_address(&mut batch, self.peer, lease.net);
            steps.push(format!("give {} to {name}", lease.net));
        }
        set_flags(&mut batch, self.peer, IFF_UP);
        steps.push(format!("set {name} up"));
        for route in routes {
            add_route(&mut batch, &new_route(self.peer, route));
            steps.push(format!("add the route to {}", route.dst));
        }
        let mut results = inside.apply(&mut batch).into_iter().zip(steps);
        results.try_for_each(|(result, step)| result.during(Code::Kernel, || format!("cannot {step}")))
    }

    /// Returns when the bridge forwards through the port: the container's first packet is not to be lost.
    /// It nearly always does at once, so it is asked before anything is subscribed to.
    pub(super) fn wait_forwarding(&self, socket: &mut Socket, own: &Namespace) -> Result<(), Failure> {
        if self.forwards(socket)? {
            return Ok(());
        }
        own.enter()?;
        let events = Socket::subscribe(libc::NETLINK_ROUTE, &[RTNLGRP_LINK]);
        let mut events = events.during(Code::Kernel, || "cannot listen to link events".into())?;
        let deadline = now()? + PORT_UP_WITHIN;
        while !self.forwards(socket)? {
            let left = deadline.saturating_sub(now()?);
            if left.is_zero() {
                return Err(Failure::new(
                    Code::Kernel,
                    format!("bridge port {} does not come up", self.host.0),
                ));
            }
            wait_for(&mut events, left)?;
        }
        Ok(())
    }

    fn forwards(&self, socket: &mut Socket) -> Result<bool, Failure> {
        look(socket, self.host.0).map(|view| view.running && view.forwarding)
    }
}

/// The Ethernet address of a container: the one asked for, else one that follows from its address, so that who
/// remembers the neighbour that had this address before remembers the right thing.
pub(super) fn pod_mac(asked: Option<Mac>, leases: &[Lease]) -> Mac {
    let of_address = |lease: &Lease| match lease.net.ip() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            Mac([0x0a, 0x58, a, b, c, d])
        }
        IpAddr::V6(ip) => {
            let [_, _, _, _, a, b, c, d] = fold(&ip.octets()).to_be_bytes();
            Mac([0x0a, 0x59, a, b, c, d])
        }
    };
    asked.or_else(|| leases.first().map(of_address)).unwrap_or_else(random::mac)
}

/// FNV-1a: spreads addresses that differ anywhere.
fn fold(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// What the kernel does by itself on the container's interface.
fn settings(name: IfName, leases: &[Lease]) -> Result<(), Failure> {
    // Tells the neighbours about the address when the link comes up; so does ndisc_notify.
    sysctl::try_set(&format!("ipv4/conf/{name}/arp_notify"), "1");
    // Its frames may come back to it (hairpinMode), and look like somebody else's who has the same address.
    sysctl::try_set(&format!("ipv6/conf/{name}/accept_dad"), "0");
    if !leases.iter().any(|lease| lease.net.is_ipv6()) {
        return Ok(());
    }
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

/// A name that runtimes and tools know as a container's link, and that is never an interface's inside of one.
fn host_name() -> IfName {
    let [a, b, c, d, ..] = random::bytes();
    IfName::from_kernel(format!("veth{a:02x}{b:02x}{c:02x}{d:02x}").as_bytes())
}

fn look(socket: &mut Socket, name: IfName) -> Result<VethView, Failure> {
    let view = socket.get(&mut get_link(name), |message| VethView::parse(&message));
    let gone = || Failure::new(Code::Kernel, format!("{name} is gone"));
    view.during(Code::Kernel, || format!("cannot read {name}"))?.ok_or_else(gone)
}

/// The pair may be there though a later message of its batch was refused.
fn undo_create(socket: &mut Socket, host: IfName) {
    if let Ok(view) = look(socket, host) {
        let mut batch = Batch::new();
        delete_link(&mut batch, view.index);
        let _ = socket.request(&mut batch);
    }
}

/// Waits until something is told, and takes all that is.
fn wait_for(events: &mut Socket, left: std::time::Duration) -> Result<(), Failure> {
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        other => return other.map(drop).during(Code::Kernel, || "cannot wait for link events".into()),
    }
    while !matches!(events.receive(), Ok(Received::Empty) | Err(_)) {}
    Ok(())
}

fn now() -> Result<std::time::Duration, Failure> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map(std::time::Duration::from).during(Code::Io, || "no clock".into())
}

/// `RTNLGRP_LINK`.
const RTNLGRP_LINK: u32 = 1;
