//! GC: removes what is left of attachments that are gone.

use std::collections::BTreeSet;

use backends::netlink::Socket;
use backends::netlink::link::{LinkView, dump_ports};

use super::{conf, device, key, masquerade, reference, removal, spoof};
use crate::contract::{Call, Code, During, Failure};
use crate::plugin::ipam;
use crate::sys::alive;

/// Removes the links of attachments that are not valid, then frees their addresses. A failure does not stop it.
pub(crate) fn gc(call: &Call) -> Result<(), Failure> {
    let valid = call.valid()?;
    let links = links(call);
    let addresses = ipam::collect_of(call);
    let rules = if valid.is_empty() { masquerade::remove(&call.network) } else { Ok(()) };
    let (spoof, others) = (spoof::collect(call), reference::collect(call));
    Failure::all([links, addresses, rules, spoof, others].into_iter().filter_map(Result::err))
}

fn links(call: &Call) -> Result<(), Failure> {
    let mut socket = Socket::route().during(Code::Kernel, || "no netlink socket".into())?;
    let name = conf::name(&call.conf)?;
    let Some((bridge, ..)) = device::find(&mut socket, name)? else { return Ok(()) };
    let mut ports = Vec::new();
    let read = socket.dump(&mut dump_ports(bridge.index), |message| {
        let port = LinkView::parse(&message).ok().filter(|link| link.master == Some(bridge.index));
        ports.extend(port.map(|link| (link.index, link.alias.unwrap_or_default().to_owned())));
    });
    read.during(Code::Kernel, || format!("cannot read the ports of {name}"))?;
    let left = left(call, &ports)?;
    let failures = left.into_iter().filter_map(|index| {
        removal::delete(&mut socket, index).during(Code::Kernel, || "cannot delete a link".into()).err()
    });
    Failure::all(failures)
}

/// The ports of this network's attachments that are not valid any more. The alias of a port of ours names its attachment. A
/// port that another plugin made is found by the address at its other end, where that is reserved for a container that is gone.
fn left(call: &Call, ports: &[(u32, String)]) -> Result<Vec<u32>, Failure> {
    let valid = call.valid()?;
    let is_left =
        |alias: &str| key::attachment(&call.network, alias).is_some_and(|key| !valid.contains(&key));
    let mut left: BTreeSet<_> =
        ports.iter().filter(|(_, alias)| is_left(alias)).map(|(index, _)| *index).collect();
    let strangers: BTreeSet<_> =
        ports.iter().filter(|(_, alias)| alias.is_empty()).map(|(index, _)| *index).collect();
    if !strangers.is_empty() {
        let freed: BTreeSet<_> =
            ipam::leftovers(&ipam::place(call), &valid)?.into_iter().map(|(ip, _)| ip).collect();
        let live = if freed.is_empty() { vec![] } else { alive::behind_pairs()? };
        let ends = live.into_iter().filter(|address| freed.contains(&address.ip)).filter_map(|a| a.host_end);
        left.extend(ends.filter(|end| strangers.contains(end)));
    }
    Ok(left.into_iter().collect())
}
