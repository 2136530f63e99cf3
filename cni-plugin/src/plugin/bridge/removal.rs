//! Taking a container's link away.
//!
//! The kernel hides an interface at once, and then the caller waits 10 to 40 ms until no reader can still be using it. Nothing
//! here needs that wait. So another process makes the request and waits, and we return when the kernel notifies that the link
//! is gone. Which process that is:
//!
//! ```text
//!   a daemon of ours answers on its socket   ──▶ the daemon, many links in one request
//!   process 1 is known to reap orphans       ──▶ a child of ours, which is an orphan for those milliseconds
//!   otherwise                                ──▶ ourselves: slower, but no zombie stays
//! ```

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use backends::netlink::link::{LinkView, RTNLGRP_LINK, delete_link, get_link};
use backends::netlink::{AF_UNSPEC, Batch, NetlinkError, RawMessage, Received, Socket};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::events::now;
use super::key::{self, HostEnd};
use crate::contract::json::{Object, wrong};
use crate::contract::{Call, Code, During, Failure};
use crate::sys::daemon::Daemon;
use crate::sys::netns::{Namespace, NoEntry};
use crate::sys::small_file;

/// The name under which this program is the child.
pub(crate) const FINISHER: &str = "cni-link-finisher";

/// The notification comes within a millisecond or two. After this time the other process is given up and its work done here.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// Programs that, as process 1, wait for every orphan.
const REAPERS: [&str; 14] = [
    "systemd",
    "init",
    "tini",
    "docker-init",
    "podman-init",
    "dumb-init",
    "catatonit",
    "runit",
    "s6-svscan",
    "openrc-init",
    "busybox",
    "procd",
    "launchd",
    "finit",
];

/// Which process waits for the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    Child,
    Ourselves,
}

impl Removal {
    /// The key `removal`: `child` and `wait` force it, for administrators who know the host's process 1.
    pub(super) fn read(conf: &Object) -> Result<Option<Self>, Failure> {
        match conf.text("removal")? {
            None | Some("auto") => Ok(None),
            Some("child") => Ok(Some(Self::Child)),
            Some("wait") => Ok(Some(Self::Ourselves)),
            Some(_) => Err(wrong("removal", "\"auto\", \"child\" or \"wait\"")),
        }
    }

    /// What suits this host.
    fn choose() -> Self {
        let comm = small_file::read(Path::new("/proc/1/comm")).unwrap_or_default();
        if REAPERS.contains(&comm.trim_end()) { Self::Child } else { Self::Ourselves }
    }
}

/// Deletes the link of the call's attachment. A link of ours is found on the host, by the name that follows from the
/// attachment, and its host's end is returned. A link that another plugin made is found in the container. No link, or no
/// namespace to enter, is no error. An interface that is no veth was not made by a bridge plugin and stays.
pub(super) fn remove_link(call: &Call) -> Result<Option<HostEnd>, Failure> {
    let what = || format!("cannot delete {}", call.ifname);
    let mut socket = Socket::route().during(Code::Kernel, what)?;
    if let Some(end) = key::find(&mut socket, call)? {
        return remove(call, &mut socket, end.index, true).map(|()| Some(end)).during(Code::Kernel, what);
    }
    remove_inside(call, &mut socket).map(|()| None)
}

/// A link that another plugin made is found only in the container.
fn remove_inside(call: &Call, host: &mut Socket) -> Result<(), Failure> {
    let own = Namespace::own()?;
    match Namespace::of(call, &own) {
        Ok(namespace) if namespace.enter().is_ok() => {}
        // Gone with everything in it; or the host's, in which an ADD has made nothing.
        Ok(_) | Err(NoEntry::Gone(_) | NoEntry::Own(_)) => return Ok(()),
    }
    let removed = remove_found(call, host);
    own.enter().and(removed)
}

/// Deletes the interface of the namespace that the thread is in (the child that may do it will be there, too). Where a path of
/// a namespace was used again, the interface is another container's, as the alias of its host's end shows: it stays.
fn remove_found(call: &Call, host: &mut Socket) -> Result<(), Failure> {
    let what = || format!("cannot delete {}", call.ifname);
    let mut inside = Socket::route().during(Code::Kernel, what)?;
    let found = inside.get(&mut get_link(call.ifname), |message| {
        let link = LinkView::parse(&message).ok()?;
        Some((link.index, link.kind == "veth", link.peer))
    });
    match found {
        Ok(Some((index, true, peer))) if !key::is_anothers(host, peer, index, call) => {
            remove(call, &mut inside, index, false).during(Code::Kernel, what)
        }
        Ok(_) => Ok(()),
        Err(error) if error.errno() == Errno::ENODEV => Ok(()),
        Err(error) => Err(error).during(Code::Kernel, what),
    }
}

/// Deletes a link of the namespace that the thread and the socket are in.
fn remove(call: &Call, socket: &mut Socket, index: u32, on_host: bool) -> Result<(), NetlinkError> {
    let forced = Removal::read(&call.conf).ok().flatten();
    // Subscribed before the removal begins.
    let events = || {
        let socket = Socket::subscribe(libc::NETLINK_ROUTE, &[RTNLGRP_LINK]).ok();
        socket.inspect(|socket| socket.hear_only_removal_of(index))
    };
    let (mut taken, mut heard) = (false, None);
    if on_host && forced.is_none() {
        heard = events();
        // The daemon reads the request from its socket.
        taken = heard.is_some() && Daemon::find().is_some_and(|daemon| daemon.unlink(index));
    }
    if !taken && forced.unwrap_or_else(Removal::choose) == Removal::Child {
        heard = heard.or_else(events);
        taken = heard.is_some() && start_child(index);
    }
    if taken && heard.is_some_and(|mut heard| gone(&mut heard, index)) {
        return Ok(());
    }
    delete(socket, index)
}

/// The child's work: delete the link of this index in the namespace that it was started in.
pub(crate) fn finish(index: &str) -> bool {
    let deleted = index.parse().ok().and_then(|index| Some(delete(&mut Socket::route().ok()?, index)));
    deleted.is_some_and(|result| result.is_ok())
}

/// Deletes a link and waits for the kernel; a link that is gone is no error.
pub(super) fn delete(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    delete_link(&mut batch, index);
    match socket.request(&mut batch) {
        Err(error) if error.errno() == Errno::ENODEV => Ok(()),
        other => other,
    }
}

/// Starts the child. Its standard files are closed, since a runtime reads ours to their end.
fn start_child(index: u32) -> bool {
    let mut child = Command::new("/proc/self/exe");
    child.arg0(FINISHER).arg(index.to_string()).env_clear().current_dir("/");
    child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    child.spawn().is_ok()
}

/// Whether the kernel notifies in time that the link is gone.
fn gone(events: &mut Socket, index: u32) -> bool {
    let Ok(deadline) = now().map(|now| now + GONE_WITHIN) else { return false };
    loop {
        match events.receive() {
            Ok(Received::Messages(mut messages)) => {
                if messages.any(|message| is_removal(&message, index)) {
                    return true;
                }
            }
            Ok(Received::Empty) => {
                let left = now().map_or(Duration::ZERO, |now| deadline.saturating_sub(now));
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                let ready = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], timeout);
                if left.is_zero() || !matches!(ready, Ok(1..) | Err(Errno::EINTR)) {
                    return false;
                }
            }
            Ok(Received::Overrun) | Err(_) => return false,
        }
    }
}

/// The removal of the link itself: a bridge also reports, in its own family, that a port has left.
fn is_removal(message: &RawMessage<'_>, index: u32) -> bool {
    message.kind == RTM_DELLINK
        && message.payload.first() == Some(&AF_UNSPEC)
        && LinkView::parse(message).is_ok_and(|link| link.index == index)
}

const RTM_DELLINK: u16 = 17;
