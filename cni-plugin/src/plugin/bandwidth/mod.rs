//! The bandwidth plugin: limits of what a container receives and sends.
//!
//! ```text
//!   host ── tbf ──▶ veth … ══ eth0          to the container
//!   host ◀── … tbf ── bwp… ◀── u32 filter ── veth … ══ eth0          from the container
//! ```
//!
//! What leaves through a link can be made to wait, what comes in cannot: so it leaves through an intermediate device
//! first. All but that device ends with the container's link.

mod conf;
mod tc;

use std::collections::BTreeSet;

use backends::netlink::link::{LinkView, delete_link, dump_links, get_link, get_link_at};
use backends::netlink::{Batch, NetlinkError, Socket};
use backends::{IfName, Mac};
use nix::errno::Errno;

use conf::{Bandwidth, Limit};
use tc::Bucket;

use crate::contract::{Attachment, Call, Code, Device, During, Failure, Interface};
use crate::plugin::Plugin;
use crate::plugin::chained::{self, owner, owner_network};
use crate::sys::netns::Namespace;
use crate::sys::{hash, small_file};

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin { name: "bandwidth", add, del, check, status, gc };

/// A link of the host.
#[derive(Debug, Clone)]
struct Link {
    index: u32,
    name: IfName,
    mtu: u32,
    mac: Option<Mac>,
    alias: String,
}

fn add(call: &Call) -> Result<Attachment, Failure> {
    let limits = Bandwidth::read(call)?;
    let mut result = chained::previous(call)?;
    if limits == Bandwidth::default() {
        return Ok(result);
    }
    let mut socket = route()?;
    let host = host_end(call, &mut socket, &result)?;
    let made = limit(call, &mut socket, &host, limits).inspect_err(|_| {
        let mut undo = Batch::new();
        tc::clear(&mut undo, host.index);
        let _ = socket.apply(&mut undo);
        let _ = remove(&mut socket, call);
    })?;
    result.interfaces.extend(made.map(|ifb| Interface {
        name: ifb.name,
        mac: ifb.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: 0,
        sandbox: String::new(),
        device: Device::default(),
    }));
    Ok(result)
}

/// Sets both limits; yields the intermediate device if one was needed.
fn limit(call: &Call, socket: &mut Socket, host: &Link, limits: Bandwidth) -> Result<Option<Link>, Failure> {
    let ticks = ticks()?;
    let mut batch = Batch::new();
    if let Some(limit) = limits.ingress {
        tc::add_bucket(&mut batch, host.index, Bucket::of(limit, ticks), limit.burst);
    }
    let ifb = limits.egress.map(|_| intermediate(call, socket, host.mtu)).transpose()?;
    if let (Some(ifb), Some(limit)) = (&ifb, limits.egress) {
        tc::add_bucket(&mut batch, ifb.index, Bucket::of(limit, ticks), limit.burst);
        tc::redirect(&mut batch, host.index, ifb.index);
    }
    let failed = socket.apply(&mut batch).into_iter().find_map(Result::err);
    failed.map_or(Ok(()), Err).map_err(|error| refused(&error, host.name))?;
    Ok(ifb)
}

fn refused(error: &NetlinkError, name: IfName) -> Failure {
    let failure = Failure::new(Code::Kernel, format!("cannot limit the bandwidth of {name}: {error}"));
    match error.errno() {
        Errno::ENOENT => {
            failure.details("this kernel lacks the module sch_tbf, sch_ingress, cls_u32 or act_mirred")
        }
        Errno::EEXIST => failure.details("something limits it already"),
        _ => failure,
    }
}

/// Makes the intermediate device. Its usual name lacks the interface's, so a container's second interface on the
/// network needs another one.
fn intermediate(call: &Call, socket: &mut Socket, mtu: u32) -> Result<Link, Failure> {
    let own = own_name(call);
    let what = |name| format!("cannot make the intermediate device {name}");
    for name in names(call) {
        if let Some(there) = find(socket, name)? {
            if there.alias != own {
                continue;
            }
            // What an ADD left behind that was cut short.
            delete(socket, there.index).during(Code::Kernel, || what(name))?;
        }
        let mut batch = Batch::new();
        tc::add_ifb(&mut batch, name, mtu, &own);
        let failed = socket.apply(&mut batch).into_iter().find_map(Result::err);
        match failed {
            None => {}
            Some(error) if error.errno() == Errno::EOPNOTSUPP => {
                return Err(
                    Failure::new(Code::Kernel, what(name)).details("this kernel lacks the module ifb")
                );
            }
            Some(error) => return Err(error).during(Code::Kernel, || what(name)),
        }
        return find(socket, name)?.ok_or_else(|| Failure::new(Code::Kernel, what(name)));
    }
    let msg = format!("the intermediate devices of {} are there already", call.container);
    Err(Failure::new(Code::Exists, msg).details("a DEL removes them"))
}

/// The names that the device can have: the reference plugin's, and one for every further interface.
fn names(call: &Call) -> [IfName; 2] {
    let (network, container) = (&call.network, &call.container);
    let name = |hashed: &str| IfName::from_kernel(hash::name("bwp", hashed, 15).as_bytes());
    [name(&format!("{network}{container}")), name(&format!("{network}{container}/{}", call.ifname))]
}

fn del(call: &Call) -> Result<(), Failure> {
    remove(&mut route()?, call)
}

/// Removes the intermediate device, ours or the reference plugin's, unless its alias names another attachment.
fn remove(socket: &mut Socket, call: &Call) -> Result<(), Failure> {
    let own = own_name(call);
    for name in names(call) {
        if let Some(link) = find(socket, name)?.filter(|link| link.alias.is_empty() || link.alias == own) {
            delete(socket, link.index).during(Code::Kernel, || format!("cannot delete {name}"))?;
        }
    }
    Ok(())
}

fn check(call: &Call) -> Result<(), Failure> {
    let limits = Bandwidth::read(call)?;
    let result = chained::previous(call)?;
    if limits == Bandwidth::default() {
        return Ok(());
    }
    let mut socket = route()?;
    let host = host_end(call, &mut socket, &result)?;
    if let Some(limit) = limits.ingress {
        compare(&mut socket, &host, limit)?;
    }
    if let Some(limit) = limits.egress {
        let own = own_name(call);
        let mut ifb = None;
        for name in names(call) {
            ifb = ifb.or(find(&mut socket, name)?.filter(|link| link.alias.is_empty() || link.alias == own));
        }
        let gone =
            || Failure::new(Code::Check, format!("the intermediate device {} is gone", names(call)[0]));
        let ifb = ifb.ok_or_else(gone)?;
        compare(&mut socket, &ifb, limit)?;
        if !tc::redirects(&mut socket, host.index, ifb.index).during(Code::Kernel, reading)? {
            return Err(Failure::new(
                Code::Check,
                format!("what comes from {} is not limited any more", host.name),
            ));
        }
    }
    Ok(())
}

fn compare(socket: &mut Socket, link: &Link, limit: Limit) -> Result<(), Failure> {
    let wanted = Bucket::of(limit, ticks()?);
    let there = tc::bucket_of(socket, link.index).during(Code::Kernel, reading)?;
    let differs = |what: &str| Err(Failure::new(Code::Check, format!("the limit of {} {what}", link.name)));
    match there {
        None => differs("is gone"),
        Some(there) if there.rate != wanted.rate => differs("has another rate"),
        Some(there) if there.limit != wanted.limit => differs("has another burst or latency"),
        Some(there) if wanted.buffer.is_some() && there.buffer != wanted.buffer => {
            differs("has another burst")
        }
        Some(_) => Ok(()),
    }
}

fn status(call: &Call) -> Result<(), Failure> {
    Bandwidth::read(call)?;
    ticks().map(|_| ())
}

/// Removes intermediate devices of ours whose attachment is not valid any more. Those of the reference plugin say not
/// whose they are.
fn gc(call: &Call) -> Result<(), Failure> {
    let valid: BTreeSet<_> =
        call.valid()?.iter().map(|(container, ifname)| owner(&call.network, container, ifname)).collect();
    let network = owner_network(&call.network);
    let mut socket = route()?;
    let mut stale = Vec::new();
    let read = socket.dump(&mut dump_links(Some("ifb")), |message| {
        let link = LinkView::parse(&message).ok().filter(|link| link.kind == "ifb");
        let alias = link.as_ref().and_then(|link| link.alias).unwrap_or_default();
        if alias.starts_with(&network) && !valid.contains(alias) {
            stale.extend(link.map(|link| link.index));
        }
    });
    read.during(Code::Kernel, reading)?;
    Failure::all(stale.into_iter().filter_map(|index| {
        delete(&mut socket, index)
            .during(Code::Kernel, || "cannot delete an intermediate device".into())
            .err()
    }))
}

/// The host's end of the container's link, which the result before must name.
fn host_end(call: &Call, socket: &mut Socket, result: &Attachment) -> Result<Link, Failure> {
    let own = Namespace::own()?;
    let mut inside = Namespace::of(call, &own)?.socket(&own)?;
    let peer = inside
        .get(&mut get_link(call.ifname), |message| LinkView::parse(&message).ok().map(|link| link.peer));
    let none = || {
        Failure::new(Code::Config, format!("{} of the container has no other end on this host", call.ifname))
    };
    let peer = peer.ok().flatten().filter(|index| *index != 0).ok_or_else(none)?;
    let link = socket.get(&mut get_link_at(peer), |message| LinkView::parse(&message).ok().map(Link::of));
    let link = link.ok().flatten().ok_or_else(none)?;
    let named = result.interfaces.iter().any(|i| i.sandbox.is_empty() && i.name == link.name);
    if named { Ok(link) } else { Err(none().details(format!("prevResult does not name {}", link.name))) }
}

impl Link {
    fn of(view: LinkView<'_>) -> Self {
        let alias = view.alias.unwrap_or_default().to_owned();
        Self { index: view.index, name: view.name, mtu: view.mtu, mac: view.mac, alias }
    }
}

fn find(socket: &mut Socket, name: IfName) -> Result<Option<Link>, Failure> {
    match socket.get(&mut get_link(name), |message| LinkView::parse(&message).ok().map(Link::of)) {
        Err(error) if error.errno() == Errno::ENODEV => Ok(None),
        other => other.during(Code::Kernel, || format!("cannot read {name}")),
    }
}

fn delete(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    delete_link(&mut batch, index);
    match socket.request(&mut batch) {
        Err(error) if error.errno() == Errno::ENODEV => Ok(()),
        other => other,
    }
}

fn ticks() -> Result<f64, Failure> {
    const PSCHED: &str = "/proc/net/psched";
    let text = small_file::read(PSCHED.as_ref()).during(Code::Io, || format!("cannot read {PSCHED}"))?;
    let missing = || Failure::new(Code::Kernel, format!("{PSCHED} does not say what a tick is"));
    tc::ticks_in_us(&text).ok_or_else(missing)
}

fn own_name(call: &Call) -> String {
    owner(&call.network, &call.container, call.ifname.as_str())
}

fn route() -> Result<Socket, Failure> {
    Socket::route().during(Code::Kernel, || "no netlink socket".into())
}

fn reading() -> String {
    "cannot read the host's limits".to_owned()
}
