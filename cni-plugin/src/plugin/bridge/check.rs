//! CHECK: is what ADD made still there? What chained plugins change is not looked at: the host end's Ethernet
//! address, further addresses and routes.

use backends::netlink::address::{AddressView, dump_addresses};
use backends::netlink::link::{IFF_PROMISC, IFF_UP, LinkView, get_link, get_link_at};
use backends::netlink::route::{RouteView, dump_routes};
use backends::netlink::{AF_INET, AF_INET6, Socket};
use backends::{IfName, Mac};

use super::conf::Bridge;
use super::{default_gateway, device, masquerade, spoof};
use crate::contract::{Address, Attachment, Call, Code, During, Failure, Route};
use crate::plugin::ipam::Lease;
use crate::sys::netns::Namespace;

/// Compares the kernel and the reservations with `prevResult`.
pub(crate) fn check(call: &Call) -> Result<(), Failure> {
    let bridge = Bridge::read(call)?;
    let result =
        call.previous()?.ok_or_else(|| Failure::new(Code::Config, "CHECK needs a \"prevResult\""))?;
    bridge.source.check(call)?;
    let mut host = Socket::route().during(Code::Kernel, || "no netlink socket".into())?;
    let own = Namespace::own()?;
    let mut inside = Namespace::of(call, &own)?.socket(&own)?;
    let (peer, mac, leases) = container(call, &bridge, &mut inside, &result)?;
    on_bridge(&mut host, &bridge, &result, &leases)?;
    let port = port(&mut host, &bridge, peer, call.ifname)?;
    if bridge.spoof_check
        && let Some(chain) = spoof::missing(call, port, mac)?
    {
        return Err(differs(format!("a rule of macspoofchk is gone or altered in chain {chain}")));
    }
    if bridge.masquerade
        && let Some(subnet) = masquerade::missing(&call.network, &leases)?
    {
        return Err(differs(format!("the masquerade rule of {subnet} is gone or altered")));
    }
    Ok(())
}

/// The container's side; yields the index of the host's end, its Ethernet address and its addresses.
fn container(
    call: &Call,
    bridge: &Bridge,
    inside: &mut Socket,
    result: &Attachment,
) -> Result<(u32, Mac, Vec<Lease>), Failure> {
    let name = call.ifname;
    let position = result.interfaces.iter().position(|i| i.name == name && !i.sandbox.is_empty());
    let recorded = position.and_then(|n| result.interfaces.get(n));
    let recorded =
        recorded.ok_or_else(|| differs(format!("prevResult names no interface {name} of the container")))?;
    let found = inside.get(&mut get_link(name), |message| {
        let link = LinkView::parse(&message).ok()?;
        Some((link.index, link.peer, link.mac, link.flags & IFF_UP != 0))
    });
    let (index, peer, mac, up) =
        found.ok().flatten().ok_or_else(|| differs(format!("interface {name} of the container is gone")))?;
    if !up && !bridge.stay_down {
        return Err(differs(format!("interface {name} of the container is down")));
    }
    if !recorded.mac.is_empty() && recorded.mac.parse().ok() != mac {
        return Err(differs(format!("interface {name} has another Ethernet address than {}", recorded.mac)));
    }
    let is_its = |ip: &&Address| ip.interface.is_none() || ip.interface == position;
    let lease = |ip: &Address| Lease { net: ip.net, gateway: ip.gateway };
    let leases: Vec<_> = result.ips.iter().filter(is_its).map(lease).collect();
    addresses(inside, index, &leases)?;
    result.routes.iter().try_for_each(|wanted| route(inside, wanted))?;
    Ok((peer, mac.unwrap_or_default(), leases))
}

fn addresses(inside: &mut Socket, index: u32, leases: &[Lease]) -> Result<(), Failure> {
    let mut there = Vec::new();
    let read = inside.dump(&mut dump_addresses(index), |message| {
        there.extend(AddressView::parse(&message).ok().filter(|a| a.link == index).map(|a| a.net));
    });
    read.during(Code::Kernel, || "cannot read the container's addresses".into())?;
    match leases.iter().find(|lease| !there.contains(&lease.net)) {
        Some(lease) => Err(differs(format!("the container has lost its address {}", lease.net))),
        None => Ok(()),
    }
}

/// A route to the same destination, and through the same gateway where one is recorded. Those of other tables are
/// moved about by other plugins.
fn route(inside: &mut Socket, wanted: &Route) -> Result<(), Failure> {
    if wanted.table != 0 && wanted.table != u32::from(backends::netlink::route::RT_TABLE_MAIN) {
        return Ok(());
    }
    let family = if wanted.dst.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut found = false;
    let read = inside.dump(&mut dump_routes(family), |message| {
        let _ = RouteView::parse(&message, |route| {
            let same_way = wanted.gateway.is_none() || route.gateway == wanted.gateway;
            found |= route.dst.ip() == wanted.dst.network()
                && route.dst.prefix() == wanted.dst.prefix()
                && same_way;
        });
    });
    read.during(Code::Kernel, || "cannot read the container's routes".into())?;
    if found { Ok(()) } else { Err(differs(format!("the container has lost its route to {}", wanted.dst))) }
}

/// The host's side: the other end is a port of the bridge, in the mode that was asked for; yields its name.
fn port(host: &mut Socket, bridge: &Bridge, peer: u32, name: IfName) -> Result<IfName, Failure> {
    let (device, kind, _) =
        device::find(host, bridge.name)?.ok_or_else(|| differs(format!("bridge {} is gone", bridge.name)))?;
    let found = host.get(&mut get_link_at(peer), |message| {
        let link = LinkView::parse(&message).ok()?;
        Some((link.name, link.master?, link.port?, link.running))
    });
    let Some((name_of_port, master, port, running)) = found.ok().flatten().filter(|_| kind == "bridge")
    else {
        return Err(differs(format!("the link of {name} is no port of bridge {}", bridge.name)));
    };
    if master != device.index {
        return Err(differs(format!("the link of {name} is no port of bridge {}", bridge.name)));
    }
    if port.mode != bridge.port {
        return Err(differs(format!("the port of {name} has another mode: hairpinMode or portIsolation")));
    }
    if port.waits_for_spanning_tree() {
        let name_of_bridge = bridge.name;
        let msg = format!(
            "bridge {name_of_bridge} runs spanning tree and does not forward through the port of {name} yet"
        );
        return Err(differs(msg));
    }
    if !(bridge.stay_down || running && port.forwards()) {
        return Err(differs(format!("bridge {} does not forward through the port of {name}", bridge.name)));
    }
    Ok(name_of_port)
}

/// The bridge itself: its Ethernet address, up, and where it is the gateway, its addresses.
fn on_bridge(
    host: &mut Socket,
    bridge: &Bridge,
    result: &Attachment,
    leases: &[Lease],
) -> Result<(), Failure> {
    let name = bridge.name;
    let Some((device, _, flags)) = device::find(host, name)? else {
        return Err(differs(format!("bridge {name} is gone")));
    };
    if flags & IFF_UP == 0 {
        return Err(differs(format!("bridge {name} is down")));
    }
    if bridge.promiscuous && flags & IFF_PROMISC == 0 {
        return Err(differs(format!("bridge {name} is not promiscuous any more")));
    }
    let recorded = result.interfaces.iter().find(|i| i.name == name && i.sandbox.is_empty());
    if recorded.is_some_and(|i| !i.mac.is_empty() && i.mac.parse() != Ok(device.mac)) {
        return Err(differs(format!("bridge {name} has another Ethernet address than at the ADD")));
    }
    if !bridge.gateway {
        return Ok(());
    }
    let there = device.addresses(host)?;
    for lease in leases {
        let mut lease = *lease;
        default_gateway(&mut lease);
        if let Some(net) = device::gateway(&lease)?.filter(|net| !there.contains(net)) {
            return Err(differs(format!("bridge {name} has lost its address {net}")));
        }
    }
    Ok(())
}

fn differs(msg: String) -> Failure {
    Failure::new(Code::Check, msg)
}
