//! Taking a container's link away.
//!
//! The kernel takes an interface out of sight at once and then lets the caller wait 10 to 40 ms until nobody can
//! still be using it. That wait is nobody's business here: a child of ours does the request and waits, and we return
//! when the kernel says that the link is gone.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use backends::IfName;
use backends::netlink::link::{LinkView, get_link};
use backends::netlink::veth::delete_link;
use backends::netlink::{AF_UNSPEC, Batch, NetlinkError, RawMessage, Received, Socket};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cni::{Code, During, Failure};
use crate::netns::Namespace;

/// The name under which this program is the child.
pub(crate) const FINISHER: &str = "cni-link-finisher";

/// The event comes within a millisecond or two. After this long the child is taken for lost and its work done here.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// Deletes the container's interface; none there, or no namespace to enter, is fine. An interface that is no veth is
/// not of our making and stays.
pub(super) fn remove_link(namespace: &Namespace, name: IfName) -> Result<(), Failure> {
    if namespace.enter().is_err() {
        return Ok(());
    }
    let what = || format!("cannot delete {name}");
    let mut socket = Socket::route().during(Code::Kernel, what)?;
    let found = socket.get(&mut get_link(name), |message| {
        let link = LinkView::parse(&message).ok()?;
        Some((link.index, link.kind == "veth"))
    });
    let index = match found {
        Ok(Some((index, true))) => index,
        Ok(_) => return Ok(()),
        Err(error) if error.errno() == Errno::ENODEV => return Ok(()),
        Err(error) => return Err(error).during(Code::Kernel, what),
    };
    if hand_over(index).is_some_and(|mut events| gone(&mut events, index)) {
        return Ok(());
    }
    delete(&mut socket, index).during(Code::Kernel, what)
}

/// The child's work: delete the link of this index in the namespace that it was started in.
pub(crate) fn finish(index: &str) -> bool {
    let deleted = index.parse().ok().and_then(|index| Some(delete(&mut Socket::route().ok()?, index)));
    deleted.is_some_and(|result| result.is_ok())
}

fn delete(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    delete_link(&mut batch, index);
    match socket.request(&mut batch) {
        Err(error) if error.errno() == Errno::ENODEV => Ok(()),
        other => other,
    }
}

/// Starts the child, and listens from before it has begun. Its standard files are closed, since a runtime reads ours
/// to their end. None when it cannot be started.
fn hand_over(index: u32) -> Option<Socket> {
    let events = Socket::subscribe(libc::NETLINK_ROUTE, &[RTNLGRP_LINK]).ok()?;
    let mut child = Command::new("/proc/self/exe");
    child.arg0(FINISHER).arg(index.to_string()).env_clear().current_dir("/");
    child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    child.spawn().ok()?;
    Some(events)
}

/// Whether the kernel says in time that the link is gone.
fn gone(events: &mut Socket, index: u32) -> bool {
    let timeout = PollTimeout::try_from(GONE_WITHIN).unwrap_or(PollTimeout::MAX);
    // One event at least per wait; a container's namespace has no storms of them.
    for _ in 0..MOST_EVENTS {
        match events.receive() {
            Ok(Received::Messages(mut messages)) => {
                if messages.any(|message| is_removal(&message, index)) {
                    return true;
                }
            }
            Ok(Received::Empty) => {
                let ready = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], timeout);
                if !matches!(ready, Ok(1..) | Err(Errno::EINTR)) {
                    return false;
                }
            }
            Ok(Received::Overrun) | Err(_) => return false,
        }
    }
    false
}

/// The removal of the link itself: a bridge also reports, in its own family, that a port has left.
fn is_removal(message: &RawMessage<'_>, index: u32) -> bool {
    message.kind == RTM_DELLINK
        && message.payload.first() == Some(&AF_UNSPEC)
        && LinkView::parse(message).is_ok_and(|link| link.index == index)
}

const MOST_EVENTS: usize = 1000;
const RTM_DELLINK: u16 = 17;
/// `RTNLGRP_LINK`.
const RTNLGRP_LINK: u32 = 1;
