//! The bridge itself: made on first need, with a fixed Ethernet address and the gateway addresses of its subnets.

use std::net::IpAddr;

use backends::netlink::address::{AddressView, add_address, delete_address, dump_addresses};
use backends::netlink::link::{self, IFF_PROMISC, IFF_UP, LinkView, dump_ports, get_link};
use backends::netlink::netconf::{get_forwarding, read_forwarding};
use backends::netlink::{Batch, NetlinkError, Socket, family_of};
use backends::{IfName, Mac};
use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::conf::Bridge;
use super::local::wait_until_local;
use crate::contract::{Code, During, Failure};
use crate::plugin::ipam::Lease;
use crate::sys::netns::Namespace;
use crate::sys::{random, sysctl};

/// A bridge that exists and is up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: IfName,
    pub(super) mac: Mac,
}

impl Device {
    /// Finds the bridge or makes it, and sees that it is up.
    pub(super) fn ensure(socket: &mut Socket, conf: &Bridge) -> Result<Self, Failure> {
        let found = find(socket, conf.name)?.map_or_else(|| make(socket, conf), Ok);
        let (mut device, kind, flags) = found?;
        if kind != "bridge" {
            return Err(Failure::new(Code::Config, format!("{} exists and is no bridge", conf.name)));
        }
        let wanted = if conf.promiscuous { IFF_UP | IFF_PROMISC } else { IFF_UP };
        if flags & wanted != wanted {
            let mut batch = Batch::new();
            link::change(&mut batch, device.index, wanted, wanted);
            socket
                .request(&mut batch)
                .during(Code::Kernel, || format!("cannot set bridge {} up", conf.name))?;
        }
        if device.mac == Mac::default() {
            // Where no Ethernet address was set, the kernel removes it with the last port. It would follow the
            // next ports', and neighbours would remember one that is gone.
            device.mac = random::mac();
            let mut batch = Batch::new();
            link::mac(link::change(&mut batch, device.index, 0, 0), device.mac);
            socket.request(&mut batch).during(Code::Kernel, || {
                format!("cannot set the Ethernet address of bridge {}", conf.name)
            })?;
        }
        Ok(device)
    }

    /// Gives it the gateway address of every lease and lets packets of those families pass the host.
    pub(super) fn serve(
        &self,
        socket: &mut Socket,
        own: &Namespace,
        leases: &[Lease],
        force: bool,
    ) -> Result<(), Failure> {
        let there = self.addresses(socket)?;
        for lease in leases {
            let Some(net) = gateway(lease)? else { continue };
            if !there.contains(&net) {
                self.make_room(socket, net, &there, force)?;
                self.add(socket, net)?;
                wait_until_local(socket, own, std::iter::once(net.ip()))?;
            }
            forward(socket, &net)?;
        }
        Ok(())
    }

    /// Its addresses; read by index, so that the cost does not grow with the host's.
    pub(super) fn addresses(&self, socket: &mut Socket) -> Result<Vec<IpNetwork>, Failure> {
        let mut found = Vec::new();
        let read = socket.dump(&mut dump_addresses(self.index), |message| {
            found.extend(AddressView::parse(&message).ok().filter(|a| a.link == self.index).map(|a| a.net));
        });
        read.during(Code::Kernel, || format!("cannot read the addresses of {}", self.name))?;
        Ok(found)
    }

    /// A second IPv4 subnet, or one that overlaps, is left over from another configuration. It is replaced when the bridge has
    /// no ports or when that is allowed; otherwise the error names it.
    fn make_room(
        &self,
        socket: &mut Socket,
        net: IpNetwork,
        there: &[IpNetwork],
        force: bool,
    ) -> Result<(), Failure> {
        for other in there.iter().filter(|other| excludes(**other, net)) {
            if !force && self.has_ports(socket)? {
                let msg =
                    format!("bridge {} has the address {other}, and this network needs {net}", self.name);
                return Err(Failure::new(Code::Config, msg)
                    .details("containers are on it; forceAddress replaces it nevertheless"));
            }
            let mut batch = Batch::new();
            delete_address(&mut batch, self.index, *other);
            socket
                .request(&mut batch)
                .during(Code::Kernel, || format!("cannot remove {other} from {}", self.name))?;
        }
        Ok(())
    }

    fn has_ports(&self, socket: &mut Socket) -> Result<bool, Failure> {
        let mut any = false;
        let read = socket.dump(&mut dump_ports(self.index), |message| {
            any |= LinkView::parse(&message).is_ok_and(|link| link.master == Some(self.index));
        });
        read.during(Code::Kernel, || format!("cannot read the ports of {}", self.name))?;
        Ok(any)
    }

    fn add(&self, socket: &mut Socket, net: IpNetwork) -> Result<(), Failure> {
        let mut result = self.try_add(socket, net);
        if net.is_ipv6() && result.as_ref().is_err_and(|error| error.errno() == Errno::EACCES) {
            // IPv6 is off by default on this host, and the network has it.
            sysctl::set(&format!("ipv6/conf/{}/disable_ipv6", self.name), "0")?;
            result = self.try_add(socket, net);
        }
        result.during(Code::Kernel, || format!("cannot give {net} to bridge {}", self.name))
    }

    fn try_add(&self, socket: &mut Socket, net: IpNetwork) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        add_address(&mut batch, self.index, net);
        // A bridge that another program made may take its ports' Ethernet addresses; this pins the one it has.
        link::mac(link::change(&mut batch, self.index, 0, 0), self.mac);
        let results = socket.apply(&mut batch);
        let failed = results.into_iter().filter_map(Result::err).find(|error| error.errno() != Errno::EEXIST);
        failed.map_or(Ok(()), Err)
    }
}

/// Lets packets of a network's family pass the host. Netlink is asked first, since looking up a name below
/// `/proc/sys/net` takes the longer the more namespaces there are.
fn forward(socket: &mut Socket, net: &IpNetwork) -> Result<(), Failure> {
    let is_on = socket.get(&mut get_forwarding(family_of(&net.ip())), |message| read_forwarding(&message));
    match is_on {
        Ok(Some(true)) => Ok(()),
        _ => sysctl::set(if net.is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" }, "1"),
    }
}

/// Makes the bridge, with an Ethernet address from the start: a bridge without one of its own takes the lowest of its ports'
/// and changes it as they come and go. Of several processes that do so at once, the later ones find the first one's.
fn make(socket: &mut Socket, conf: &Bridge) -> Result<(Device, String, u32), Failure> {
    let what = || format!("cannot make bridge {}", conf.name);
    let mut batch = Batch::new();
    link::mac(link::name(link::create(&mut batch, IFF_UP), conf.name), random::mac());
    link::kind(link::mtu(&mut batch, conf.mtu), "bridge");
    match socket.request(&mut batch) {
        Err(error) if error.errno() != Errno::EEXIST => return Err(error).during(Code::Kernel, what),
        _ => {}
    }
    // The routes on it are ours to make.
    sysctl::try_set(&format!("ipv6/conf/{}/accept_ra", conf.name), "0");
    // Its Ethernet address was just drawn, so no other host has the link-local address that follows from it. Looking for a
    // duplicate would keep it from answering its pods for a second or two.
    sysctl::try_set(&format!("ipv6/conf/{}/accept_dad", conf.name), "0");
    find(socket, conf.name)?.ok_or_else(|| Failure::new(Code::Kernel, what()))
}

/// A bridge by its name, with its kind and its flags.
pub(super) fn find(socket: &mut Socket, name: IfName) -> Result<Option<(Device, String, u32)>, Failure> {
    let found = socket.get(&mut get_link(name), |message| {
        let link = LinkView::parse(&message).ok()?;
        let device = Device { index: link.index, name, mac: link.mac.unwrap_or_default() };
        Some((device, link.kind.to_owned(), link.flags))
    });
    match found {
        Err(error) if error.errno() == Errno::ENODEV => Ok(None),
        other => other.during(Code::Kernel, || format!("cannot read {name}")),
    }
}

/// The seconds until a new port of this bridge forwards, where the bridge runs spanning tree.
pub(super) fn spanning_tree_delay(name: IfName) -> Option<u32> {
    let mut socket = Socket::route().ok()?;
    let found =
        socket.get(&mut get_link(name), |message| LinkView::parse(&message).ok()?.spanning_tree_delay());
    found.ok().flatten()
}

/// The gateway address of a lease with the length of its subnet.
pub(super) fn gateway(lease: &Lease) -> Result<Option<IpNetwork>, Failure> {
    let Some(gateway) = lease.gateway else { return Ok(None) };
    let net = IpNetwork::new(gateway, lease.net.prefix());
    net.map(Some).during(Code::Config, || format!("gateway {gateway} of {}", lease.net))
}

/// Whether a bridge that has one may not have the other.
fn excludes(there: IpNetwork, wanted: IpNetwork) -> bool {
    let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    match (there, wanted) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => true,
        (IpNetwork::V6(a), IpNetwork::V6(b)) if !link_local(there.ip()) => {
            a.contains(b.ip()) || b.contains(a.ip())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ipv4_subnet_excludes_another_and_ipv6_subnets_only_when_they_overlap() {
        let excludes = |a: &str, b: &str| excludes(a.parse().unwrap(), b.parse().unwrap());
        assert!(excludes("10.1.2.1/24", "10.1.3.1/24"));
        assert!(!excludes("10.1.2.1/24", "fc00::1/64"));
        assert!(!excludes("fc00::1/64", "fc00:0:0:1::1/64"));
        assert!(excludes("fc00::1/64", "fc00::2/48"));
        assert!(!excludes("fe80::1/64", "fe80::2/10"));
    }
}
