//! The tuning plugin: sysctls of the container's network, and what its interface is like.

mod allowed;
mod backup;
mod conf;

use std::fs;

use backends::netlink::link::{self, IFF_ALLMULTI, IFF_PROMISC};
use backends::netlink::{Batch, Socket};

use backup::State;
use conf::Tuning;

use crate::contract::{Attachment, Call, Code, During, Failure};
use crate::plugin::Plugin;
use crate::plugin::chained;
use crate::sys::netns::Namespace;
use crate::sys::small_file;

/// The row of the table. What ADD leaves behind is a file that names no network, so GC has nothing to go by.
pub(crate) const PLUGIN: Plugin =
    Plugin { name: "tuning", add, del, check, status, gc: |call| call.valid().map(|_| ()) };

fn add(call: &Call) -> Result<Attachment, Failure> {
    let mut result = chained::previous(call)?;
    let conf = Tuning::read(call)?;
    let files = conf.files(call.ifname.as_str())?;
    let mut inside = enter(call)?;
    for (file, value) in files {
        fs::write(&file, value)
            .during(Code::Io, || format!("cannot set {file} to {value:?} in the container"))?;
    }
    if conf.changes_link() {
        let state = State::read(&mut inside, call.ifname)?;
        backup::write(call, &conf, &state)?;
        change(call, &conf, &mut inside, state.index).inspect_err(|_| {
            backup::restore(call, &conf, &mut inside);
        })?;
    }
    if let Some(mac) = conf.mac {
        let links = result.interfaces.iter_mut().filter(|link| link.name == call.ifname);
        links.for_each(|link| link.mac = mac.to_string());
    }
    Ok(result)
}

fn change(call: &Call, conf: &Tuning, inside: &mut Socket, index: u32) -> Result<(), Failure> {
    let (mut batch, mut names) = (Batch::new(), Vec::new());
    if let Some(mac) = conf.mac {
        link::mac(link::change(&mut batch, index, 0, 0), mac);
        names.push("mac");
    }
    if conf.promiscuous {
        link::change(&mut batch, index, IFF_PROMISC, IFF_PROMISC);
        names.push("promisc");
    }
    if conf.mtu != 0 {
        link::mtu(link::change(&mut batch, index, 0, 0), conf.mtu);
        names.push("mtu");
    }
    if let Some(on) = conf.all_multicast {
        link::change(&mut batch, index, if on { IFF_ALLMULTI } else { 0 }, IFF_ALLMULTI);
        names.push("allmulti");
    }
    if let Some(queue) = conf.queue {
        link::queue_length(link::change(&mut batch, index, 0, 0), queue);
        names.push("txQLen");
    }
    for (result, name) in inside.apply(&mut batch).into_iter().zip(names) {
        result.during(Code::Kernel, || format!("cannot set {name} of {}", call.ifname))?;
    }
    Ok(())
}

/// Sets the interface back where it is there still.
fn del(call: &Call) -> Result<(), Failure> {
    // Whatever the rest of the configuration has become, the folder is what counts.
    let conf = Tuning::read(call).or_else(|_| Tuning::read(&only_folder(call)))?;
    match enter(call) {
        Ok(mut inside) => backup::restore(call, &conf, &mut inside),
        Err(_) => backup::forget(call, &conf),
    }
    Ok(())
}

fn only_folder(call: &Call) -> Call {
    let mut conf = crate::contract::json::Object::default();
    if let Ok(Some(folder)) = call.conf.text("dataDir") {
        conf.set("dataDir", folder);
    }
    Call { conf, args: String::new(), ..call.clone() }
}

fn check(call: &Call) -> Result<(), Failure> {
    chained::previous(call)?;
    let conf = Tuning::read(call)?;
    let files = conf.files(call.ifname.as_str())?;
    let mut inside = enter(call)?;
    let differs = |what: String| Err(Failure::new(Code::Check, what));
    for (file, wanted) in files {
        let there = small_file::read(file.as_ref()).during(Code::Io, || format!("cannot read {file}"))?;
        // The kernel puts tabs between numbers.
        if !there.split_whitespace().eq(wanted.split_whitespace()) {
            return differs(format!("{file} is {:?} and not {wanted:?} any more", there.trim_end()));
        }
    }
    let state = State::read(&mut inside, call.ifname)?;
    let kept = [
        ("mac", conf.mac.is_none_or(|mac| mac == state.mac)),
        ("promisc", !conf.promiscuous || state.watchers != 0),
        ("mtu", conf.mtu == 0 || conf.mtu == state.mtu),
        ("allmulti", conf.all_multicast.is_none_or(|on| on == state.all_multicast)),
        ("txQLen", conf.queue.is_none_or(|queue| queue == state.queue)),
    ];
    match kept.into_iter().find(|(_, kept)| !kept) {
        Some((name, _)) => differs(format!("{name} of {} is not as it was set any more", call.ifname)),
        None => Ok(()),
    }
}

fn status(call: &Call) -> Result<(), Failure> {
    Tuning::read(call)?.files("lo").map(|_| ())
}

/// Moves into the container for good, since `/proc/sys/net` is that of where one is.
fn enter(call: &Call) -> Result<Socket, Failure> {
    let own = Namespace::own()?;
    Namespace::of(call, &own)?.enter()?;
    Socket::route().during(Code::Kernel, || "no netlink socket in the container".into())
}
