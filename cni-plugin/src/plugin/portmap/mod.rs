//! The portmap plugin: ports of the host that lead into the container.
//!
//! ```text
//!   PortMap + prevResult ──▶ Wish of each family ──▶ one transaction ──▶ old connections of UDP forgotten
//! ```
//!
//! Each element in the kernel names its attachment, and DEL and GC go by that name: neither the configuration, nor the
//! namespace, nor a `prevResult` is needed to take away what an ADD made.

mod chains;
mod conditions;
mod conf;
mod conntrack;
mod native;
mod reference;
mod table;

use std::collections::BTreeSet;
use std::net::IpAddr;

use backends::LinkKind;
use backends::netlink::Socket;
use backends::netlink::link::{LinkView, dump_links, get_link_at};
use backends::netlink::route::link_towards;
use subnet_lease::Family;

use conf::{Backend, Mapping, PortMap, Protocol};
use native::Removed;
use table::Wish;

use crate::contract::{Attachment, Call, Code, During, Failure};
use crate::plugin::Plugin;
use crate::plugin::chained::{self, owner, owner_network};
use crate::sys::iptables::Turn;
use crate::sys::sysctl;

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin { name: "portmap", add, del, check, status, gc };

fn add(call: &Call) -> Result<Attachment, Failure> {
    let result = chained::previous(call)?;
    let conf = PortMap::read(call)?;
    if conf.mappings.is_empty() {
        return Ok(result);
    }
    spare_tunnels(&conf)?;
    let mut socket = netfilter()?;
    put_in_force(call, &conf, &result, &mut socket).inspect_err(|_| {
        let _ = native::remove(&mut socket, &|owner| owner == own_name(call));
        let _ = remove_chains(call, &mut socket);
    })?;
    Ok(result)
}

fn put_in_force(
    call: &Call,
    conf: &PortMap,
    result: &Attachment,
    socket: &mut Socket,
) -> Result<(), Failure> {
    match conf.backend {
        Backend::Nftables => native::add(socket, &wishes(call, conf, result)?)?,
        Backend::Iptables => chains::add(call, conf, &conf::addresses(call, result))?,
    }
    let addresses = conf::addresses(call, result);
    let mut route = Socket::route().during(Code::Kernel, || "no netlink socket".into())?;
    for (family, pod) in addresses {
        if family == Family::V4 && conf.snat {
            allow_loopback(&mut route, pod.ip())?;
        }
        let udp: Vec<_> = conf.of(family).filter(|m| m.protocol == Protocol::Udp).collect();
        if !udp.is_empty() {
            // The forward is in force; what an old connection keeps from it ends by itself, later.
            let _ = forget_before(socket, &mut route, (family, pod.ip()), &udp)
                .inspect_err(|error| eprintln!("portmap: old connections of UDP are not forgotten: {error}"));
        }
    }
    Ok(())
}

/// Refuses a port of UDP that a tunnel of this host receives on: the container would get the packets of the tunnel.
fn spare_tunnels(conf: &PortMap) -> Result<(), Failure> {
    let udp: Vec<_> = conf.mappings.iter().filter(|m| m.protocol == Protocol::Udp).collect();
    if udp.is_empty() {
        return Ok(());
    }
    let what = || "cannot read the host's tunnels".to_owned();
    let mut route = Socket::route().during(Code::Kernel, what)?;
    let mut taken = None;
    for word in LinkKind::words() {
        let read = route.dump(&mut dump_links(Some(word)), |message| {
            let Ok(link) = LinkView::parse(&message) else { return };
            let port = LinkKind::read(&link).and_then(|kind| kind.udp_port());
            if let Some(port) = port.filter(|port| udp.iter().any(|m| m.host_port == *port)) {
                taken = Some((port, link.name));
            }
        });
        read.during(Code::Kernel, what)?;
    }
    let Some((port, name)) = taken else { return Ok(()) };
    let msg = format!("host port {port} of UDP is that of the host's tunnel {name}");
    Err(Failure::new(Code::Config, msg)
        .details("another host port, or another port of the tunnel, is needed"))
}

fn wishes(call: &Call, conf: &PortMap, result: &Attachment) -> Result<Vec<Wish>, Failure> {
    let owner = own_name(call);
    let wish = |(family, pod)| Wish::new(conf, family, pod, &owner);
    conf::addresses(call, result).into_iter().map(wish).collect()
}

fn own_name(call: &Call) -> String {
    owner(&call.network, &call.container, call.ifname.as_str())
}

/// Lets what comes from the loopback leave for the container: the kernel drops it else.
fn allow_loopback(route: &mut Socket, pod: IpAddr) -> Result<(), Failure> {
    let link = link_towards(route, pod);
    let name = link.and_then(|link| {
        let read =
            route.get(&mut get_link_at(link), |message| LinkView::parse(&message).ok().map(|link| link.name));
        read.ok().flatten()
    });
    match name {
        Some(name) => sysctl::set(&format!("ipv4/conf/{name}/route_localnet"), "1"),
        None => Ok(()),
    }
}

/// Forgets connections to the mapped ports that lead elsewhere than to this container.
fn forget_before(
    socket: &mut Socket,
    route: &mut Socket,
    (family, pod): (Family, IpAddr),
    udp: &[Mapping],
) -> Result<(), backends::netlink::NetlinkError> {
    let own = conntrack::host_addresses(route)?;
    conntrack::forget(socket, family, |flow| {
        let (ip, port) = flow.to;
        let mapping = udp.iter().find(|m| m.host_port == port && m.host_ip.is_none_or(|only| only == ip));
        // A connection that only passes this host has its port by chance.
        let here = own.contains(&ip) || ip.is_loopback();
        mapping.is_some_and(|m| here && flow.answers != (pod, m.container_port))
    })
}

fn del(call: &Call) -> Result<(), Failure> {
    let socket = netfilter().ok().map(|mut socket| native::usable(&mut socket).map(|()| socket));
    // A kernel without nf_tables has nothing of ours.
    let Some(Ok(mut socket)) = socket else { return chains::remove_legacy(call) };
    let own = own_name(call);
    let ending = native::expire(&mut socket, &|owner| owner == own)?;
    // A rule of the reference plugin's table names the container alone: it may be of another network than this one,
    // unless this one has ports.
    let runtime = call.conf.object("runtimeConfig").ok().flatten();
    if runtime.is_some_and(|runtime| runtime.list("portMappings").is_ok_and(|list| !list.is_empty())) {
        reference::remove_rules(&mut socket, &call.container)?;
    }
    remove_chains(call, &mut socket)?;
    let removed = native::end(&mut socket, ending, &|owner| owner == own)?;
    // Last, so that no packet finds a forward any more and is remembered anew.
    if removed.is_empty() {
        forget_mapped(call, &mut socket);
    } else {
        forget_removed(&mut socket, &removed);
    }
    Ok(())
}

/// Removes what either backend `iptables`, ours or the reference plugin's, made.
fn remove_chains(call: &Call, socket: &mut Socket) -> Result<(), Failure> {
    {
        let _turn = Turn::take();
        reference::remove_chains(socket, &call.network, &call.container)?;
    }
    chains::remove_legacy(call)
}

/// Forgets the connections that went through forwards which are gone.
fn forget_removed(socket: &mut Socket, removed: &[Removed]) {
    for family in Family::ALL {
        let of_family =
            removed.iter().filter(|(f, _)| *f == family).filter_map(|(_, element)| table::meaning(element));
        let udp: BTreeSet<_> = of_family.filter(|(protocol, ..)| *protocol == Protocol::Udp as u8).collect();
        if !udp.is_empty() {
            let through = |flow: &conntrack::Flow| {
                let (pod, container_port) = flow.answers;
                udp.contains(&(Protocol::Udp as u8, flow.to.1, pod, container_port))
            };
            let _ = conntrack::forget(socket, family, through)
                .inspect_err(|error| eprintln!("portmap: old connections of UDP are not forgotten: {error}"));
        }
    }
}

/// Forgets the connections that went through another backend's forwards, as far as the configuration still shows them.
fn forget_mapped(call: &Call, socket: &mut Socket) {
    let (Ok(conf), Ok(Some(result))) = (PortMap::read(call), call.previous()) else { return };
    let udp: Vec<_> = conf.mappings.iter().filter(|m| m.protocol == Protocol::Udp).collect();
    for (family, pod) in conf::addresses(call, &result).into_iter().filter(|_| !udp.is_empty()) {
        let through = |flow: &conntrack::Flow| {
            udp.iter().any(|m| flow.to.1 == m.host_port && flow.answers == (pod.ip(), m.container_port))
        };
        let _ = conntrack::forget(socket, family, through)
            .inspect_err(|error| eprintln!("portmap: old connections of UDP are not forgotten: {error}"));
    }
}

fn check(call: &Call) -> Result<(), Failure> {
    let result = chained::previous(call)?;
    let conf = PortMap::read(call)?;
    if conf.mappings.is_empty() {
        return Ok(());
    }
    match conf.backend {
        Backend::Nftables => native::check(&mut netfilter()?, &wishes(call, &conf, &result)?),
        Backend::Iptables => chains::check(call, &conf, &conf::addresses(call, &result)),
    }
}

fn status(call: &Call) -> Result<(), Failure> {
    PortMap::read(call)?;
    native::usable(&mut netfilter()?)
}

fn gc(call: &Call) -> Result<(), Failure> {
    let keys = call.valid()?;
    let valid: BTreeSet<_> =
        keys.iter().map(|(container, ifname)| owner(&call.network, container, ifname)).collect();
    let network = owner_network(&call.network);
    let mut socket = netfilter()?;
    let removed =
        native::remove(&mut socket, &|owner| owner.starts_with(&network) && !valid.contains(owner))?;
    forget_removed(&mut socket, &removed);
    let is_valid = |id: &str| keys.iter().any(|(container, _)| container == id);
    reference::collect(&mut socket, &call.network, &is_valid)?;
    chains::collect_legacy(&call.network, &is_valid)
}

fn netfilter() -> Result<Socket, Failure> {
    Socket::netfilter().during(Code::Kernel, || "no netlink socket for nf_tables".into())
}
