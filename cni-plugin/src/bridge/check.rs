//! CHECK: is what ADD made still there? What chained plugins change is not looked at: the host end's Ethernet
//! address, further addresses and routes.

use backends::IfName;
use backends::netlink::link::{AddressView, IFF_UP, LinkView, dump_addresses, get_link};
use backends::netlink::route::{RouteView, dump_routes};
use backends::netlink::veth::VethView;
use backends::netlink::{AF_INET, AF_INET6, Socket};

use super::conf::Bridge;
use super::device;
use crate::cni::{Attachment, Call, Code, During, Failure, Route};
use crate::json::Object;
use crate::netns::Namespace;

/// Compares the kernel and the reservations with `prevResult`.
pub(crate) fn check(call: &Call, conf: &Object) -> Result<(), Failure> {
    let bridge = Bridge::read(call, conf)?;
    let result = call.conf.object("prevResult")?;
    let result = result.ok_or_else(|| Failure::new(Code::Config, "CHECK needs a \"prevResult\""))?;
    let result = Attachment::parse(result)?;
    if let Some(ipam) = &bridge.ipam {
        ipam.check_held(&call.holder())?;
    }
    let mut host = Socket::route().during(Code::Kernel, || "no netlink socket".into())?;
    let own = Namespace::own()?;
    let mut inside = Namespace::of(call, &own)?.socket(&own)?;
    let peer = container(call, &mut inside, &result)?;
    port(&mut host, &bridge, peer, call.ifname)
}

/// The container's side; yields the index of the host's end.
fn container(call: &Call, inside: &mut Socket, result: &Attachment) -> Result<u32, Failure> {
    let name = call.ifname;
    let position = result.interfaces.iter().position(|i| i.name == name && !i.sandbox.is_empty());
    let recorded = position.and_then(|n| result.interfaces.get(n));
    let recorded =
        recorded.ok_or_else(|| differs(format!("prevResult names no interface {name} of the container")))?;
    let found = inside.get(&mut get_link(name), |message| {
        let link = LinkView::parse(&message).ok()?;
        Some((VethView::parse(&message)?, link.mac, link.flags & IFF_UP != 0))
    });
    let (view, mac, up) =
        found.ok().flatten().ok_or_else(|| differs(format!("interface {name} of the container is gone")))?;
    if !up {
        return Err(differs(format!("interface {name} of the container is down")));
    }
    if recorded.mac.is_some() && recorded.mac != mac {
        return Err(differs(format!(
            "interface {name} has another Ethernet address than {}",
            recorded.mac.unwrap_or_default()
        )));
    }
    addresses(inside, view.index, result, position)?;
    result.routes.iter().try_for_each(|wanted| route(inside, wanted))?;
    Ok(view.peer)
}

fn addresses(
    inside: &mut Socket,
    index: u32,
    result: &Attachment,
    position: Option<usize>,
) -> Result<(), Failure> {
    let mut there = Vec::new();
    let read = inside.dump(&mut dump_addresses(index), |message| {
        there.extend(AddressView::parse(&message).ok().filter(|a| a.link == index).map(|a| a.net));
    });
    read.during(Code::Kernel, || "cannot read the container's addresses".into())?;
    let ours = result.ips.iter().filter(|ip| ip.interface.is_none() || ip.interface == position);
    match ours.map(|ip| ip.net).find(|net| !there.contains(net)) {
        Some(net) => Err(differs(format!("the container has lost its address {net}"))),
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

/// The host's side: the other end is a port of the bridge.
fn port(host: &mut Socket, bridge: &Bridge, peer: u32, name: IfName) -> Result<(), Failure> {
    let (device, kind, _) =
        device::find(host, bridge.name)?.ok_or_else(|| differs(format!("bridge {} is gone", bridge.name)))?;
    let by_index = &mut backends::netlink::veth::get_link_at(peer);
    let master = host.get(by_index, |message| LinkView::parse(&message).ok()?.master);
    if kind == "bridge" && master.ok().flatten() == Some(device.index) {
        return Ok(());
    }
    Err(differs(format!("the link of {name} is no port of bridge {}", bridge.name)))
}

fn differs(msg: String) -> Failure {
    Failure::new(Code::Check, msg)
}
