//! A container's link: the veth pair, and the wait until packets pass it.

use std::net::IpAddr;
use std::os::fd::AsFd;

use backends::local::hash::Fnv64;
use backends::netlink::link::{
    self, IFF_UP, LinkView, PortMode, RTNLGRP_LINK, delete_link, get_link, get_link_at,
};
use backends::netlink::{Batch, NetlinkError, Socket};
use backends::{IfName, Mac};
use nix::errno::Errno;

use super::conf::{Bridge, PORT_UP_WITHIN};
use super::device::Device;
use super::events::Events;
use super::key;
use crate::contract::{Call, Code, During, Failure};
use crate::plugin::ipam::Lease;
use crate::sys::netns::Namespace;
use crate::sys::random;

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
    pub(super) peer: u32,
}

impl Pair {
    /// Makes the pair: the host's end up and a port of the bridge, the container's end born in its namespace.
    pub(super) fn create(
        socket: &mut Socket,
        (call, conf): (&Call, &Bridge),
        device: &Device,
        namespace: &Namespace,
        mac: Mac,
    ) -> Result<Self, Failure> {
        let pod = (call.ifname, mac);
        let alias = if conf.spoof_check { key::checked_alias(call) } else { key::alias(call) };
        let mut name = key::host_name(call);
        for _ in 0..3 {
            let host = (name, random::mac());
            match make(socket, (host, pod), conf, device, namespace, &alias) {
                Ok((index, peer)) => return Ok(Self { host, pod, index, peer }),
                // Either end's name may be the one that is taken; the host's by another attachment, or by this one.
                Err(error) if error.errno() == Errno::EEXIST => {
                    if key::find(socket, call)?.is_some() {
                        return Err(exists(call, "has a link already, which a DEL removes"));
                    }
                    name = key::named(backends::local::random::bytes());
                }
                Err(error) => {
                    return Err(error).during(Code::Kernel, || format!("cannot make the link of {}", pod.0));
                }
            }
        }
        Err(exists(call, "exists already in the container's namespace"))
    }

    /// Takes it away again, after a failure; both ends go.
    pub(super) fn delete(&self, socket: &mut Socket) {
        let mut batch = Batch::new();
        delete_link(&mut batch, self.index);
        let _ = socket.request(&mut batch);
    }

    /// Returns when packets pass, since the container's first packet must not be lost: the bridge forwards through the port,
    /// and both devices can send. When the port comes up, the kernel switches on each device's transmit side in a turn of its
    /// own: a bridge whose first port this is follows 10 to 40 ms later on a busy host. Packets nearly always pass at once, so
    /// both devices are read before anything is subscribed to.
    pub(super) fn wait_until_packets_pass(
        &self,
        socket: &mut Socket,
        own: &Namespace,
        bridge: &Device,
    ) -> Result<(), Failure> {
        if self.blocked(socket, bridge)?.is_none() {
            return Ok(());
        }
        let mut events = Events::within(own, RTNLGRP_LINK, PORT_UP_WITHIN)?;
        while let Some(name) = self.blocked(socket, bridge)? {
            if !events.wait()? {
                return Err(Failure::new(Code::Kernel, format!("{name} does not come up")));
            }
        }
        Ok(())
    }

    /// The device that packets do not pass yet. A port that waits for spanning tree does not count: that takes half a minute,
    /// and CHECK and STATUS report it.
    fn blocked(&self, socket: &mut Socket, bridge: &Device) -> Result<Option<String>, Failure> {
        let mut ask = get_link(self.host.0);
        ask.append(get_link_at(bridge.index));
        let (mut port, mut bridge_runs) = (None, false);
        let read = socket.get_each(&mut ask, |n, message| match (n, LinkView::parse(&message)) {
            (0, Ok(link)) => port = link.port.map(|port| (link.running, port)),
            (_, Ok(link)) => bridge_runs = link.running,
            (_, Err(_)) => {}
        });
        read.during(Code::Kernel, || format!("cannot read {} and {}", self.host.0, bridge.name))?;
        Ok(match port {
            Some((_, port)) if port.waits_for_spanning_tree() => None,
            Some((true, port)) if port.forwards() && bridge_runs => None,
            Some((true, port)) if port.forwards() => Some(format!("bridge {}", bridge.name)),
            _ => Some(format!("bridge port {}", self.host.0)),
        })
    }
}

type End = (IfName, Mac);

/// Makes the pair in one batch; yields the indexes of its ends. After a failure nothing is left of it.
fn make(
    socket: &mut Socket,
    (host, pod): (End, End),
    conf: &Bridge,
    device: &Device,
    namespace: &Namespace,
    alias: &str,
) -> Result<(u32, u32), NetlinkError> {
    let end = |batch: &mut Batch, (name, mac): End| {
        link::mtu(link::one_queue(link::mac(link::name(batch, name), mac)), conf.mtu);
    };
    let mut batch = Batch::new();
    end(link::create(&mut batch, IFF_UP), host);
    link::master(&mut batch, device.index);
    // The container's end cannot be up from the start: the kernel answers ENOTCONN while it has no other end yet.
    link::veth(&mut batch, |batch| {
        end(batch, pod);
        link::namespace(batch, namespace.as_fd());
    });
    set_port(&mut batch, host.0, alias, conf.port, true);
    let mut results = socket.apply(&mut batch).into_iter();
    results.next().unwrap_or(Ok(()))?;
    let (index, peer) = look(socket, host.0, |port| (port.index, port.peer))?;
    let mut port = results.next().unwrap_or(Ok(()));
    if port.as_ref().is_err_and(|error| error.errno() == Errno::EAFNOSUPPORT) {
        let mut batch = Batch::new();
        set_port(&mut batch, host.0, alias, conf.port, false);
        port = socket.request(&mut batch);
    }
    port.inspect_err(|_| {
        let mut batch = Batch::new();
        delete_link(&mut batch, index);
        let _ = socket.request(&mut batch);
    })?;
    Ok((index, peer))
}

/// Adds to the batch: the alias and the mode of the port. It has no use for an IPv6 address: the kernel would make one, ask
/// all ports whether another has it, and remove it again.
fn set_port(batch: &mut Batch, port: IfName, alias: &str, mode: PortMode, has_ipv6: bool) {
    link::alias(link::change_named(batch, port), alias);
    if has_ipv6 {
        link::no_link_local(batch);
    }
    if mode != PortMode::default() {
        link::port_mode(batch, mode);
    }
}

fn exists(call: &Call, what: &str) -> Failure {
    let msg = format!("interface {} {what}", call.ifname);
    Failure::new(Code::Exists, msg).details(format!("container {}", call.container))
}

/// The Ethernet address of a container: the one asked for, or one that follows from its address. So a neighbour entry for an
/// earlier container with the same address stays right.
pub(super) fn pod_mac(asked: Option<Mac>, leases: &[Lease]) -> Mac {
    let of_address = |lease: &Lease| match lease.net.ip() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            Mac([0x0a, 0x58, a, b, c, d])
        }
        IpAddr::V6(ip) => {
            let [_, _, _, _, a, b, c, d] = Fnv64::of(&ip.octets()).value().to_be_bytes();
            Mac([0x0a, 0x59, a, b, c, d])
        }
    };
    asked.or_else(|| leases.first().map(of_address)).unwrap_or_else(random::mac)
}

fn look<T>(
    socket: &mut Socket,
    name: IfName,
    read: impl FnOnce(&LinkView<'_>) -> T,
) -> Result<T, NetlinkError> {
    let mut read = Some(read);
    let found = socket.get(&mut get_link(name), |message| {
        let link = LinkView::parse(&message).ok()?;
        read.take().map(|read| read(&link))
    })?;
    found.ok_or(NetlinkError::Refused { errno: Errno::ENODEV, text: None })
}
