//! When the kernel of a host sent its last notification. Reading whether a thousand objects are right again
//! takes longer than repairing them. The kernel sends a notification for every change at once, so the last
//! notification before the state was found right marks the exact moment of the repair.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::net::if_::if_indextoname;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, setsockopt, socket,
};

use crate::host::Host;

/// RTMGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE of linux/rtnetlink.h, and the groups of
/// forwarding switches, RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF (24 and 25).
const ROUTE_GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << 23 | 1 << 24;
/// NFNLGRP_NFTABLES (7) of linux/netfilter/nfnetlink.h.
const RULE_GROUPS: u32 = 1 << 6;

/// Receives the notifications of one host until it is dropped.
#[derive(Debug)]
pub(super) struct Notices {
    received: Arc<Mutex<Received>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What was received since the last mark.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Received {
    /// The first notification of any kind.
    pub(super) first: Option<Instant>,
    /// The last notification that may concern our objects, not those that the kernel changes by itself.
    pub(super) last: Option<Instant>,
}

impl Notices {
    pub(super) fn listen(host: &Host) -> Result<Self> {
        let open = || -> Result<[File; 2]> {
            let all =
                [(SockProtocol::NetlinkRoute, ROUTE_GROUPS), (SockProtocol::NetlinkNetFilter, RULE_GROUPS)];
            let [route, rules] = all.map(|(protocol, groups)| subscribe(protocol, groups));
            Ok([route?, rules?])
        };
        let sockets = host.run(open)?.context("cannot subscribe to the kernel's notifications")?;
        let (received, stop) = (Arc::<Mutex<Received>>::default(), Arc::<AtomicBool>::default());
        let (host, receiving, stopping) = (host.clone(), received.clone(), stop.clone());
        // The names of links are read from the host's own kernel, so the thread runs there.
        let thread = thread::spawn(move || host.run(|| receive(sockets, &receiving, &stopping)));
        Ok(Self { received, stop, thread: Some(thread) })
    }

    /// Forgets what was received.
    pub(super) fn mark(&self) {
        *lock(&self.received) = Received::default();
    }

    pub(super) fn received(&self) -> Received {
        *lock(&self.received)
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread holds the host.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn subscribe(protocol: SockProtocol, groups: u32) -> Result<File> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    // Room for the notifications of a flush of thousands. Where it is refused, an overrun loses
    // notifications, but never the last one.
    let _ = setsockopt(&socket, RcvBufForce, &(16 << 20));
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(File::from(socket))
}

fn receive(mut sockets: [File; 2], received: &Mutex<Received>, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut asked = sockets.each_ref().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let _ = poll(&mut asked, PollTimeout::from(10_u8));
        for (n, socket) in sockets.iter_mut().enumerate() {
            loop {
                match socket.read(&mut buffer) {
                    Ok(length) => note(&buffer[..length], n == 1, received),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // An overrun: more notifications follow.
                    Err(_) => {}
                }
            }
        }
    }
}

fn note(datagram: &[u8], is_rule: bool, received: &Mutex<Received>) {
    let now = Instant::now();
    let name = |index: u32| if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    let counts = is_rule || may_be_ours(datagram, name);
    let mut received = lock(received);
    received.first.get_or_insert(now);
    if counts {
        received.last = Some(now);
    }
}

/// True for everything but what the kernel changes by itself: neighbours on other links than tunnels, its own
/// routes, link-local addresses, and links other than tunnels. The header of a message has 16 bytes; the type
/// is at the fourth byte.
fn may_be_ours(message: &[u8], name: impl Fn(u32) -> Option<String>) -> bool {
    const NEWLINK: u16 = 16;
    const DELLINK: u16 = 17;
    const NEWADDR: u16 = 20;
    const DELADDR: u16 = 21;
    const NEWROUTE: u16 = 24;
    const DELROUTE: u16 = 25;
    const NEWNEIGH: u16 = 28;
    const DELNEIGH: u16 = 29;
    const RTPROT_KERNEL: u8 = 2;
    const RT_SCOPE_LINK: u8 = 253;
    let Some(kind) = message.get(4..6).map(|it| u16::from_ne_bytes([it[0], it[1]])) else { return false };
    let body = message.get(16..).unwrap_or_default();
    let index = body.get(4..8).and_then(|it| it.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let tunnel = || name(index).is_some_and(|name| name.starts_with("flannel"));
    match kind {
        NEWLINK | NEWNEIGH | DELNEIGH => tunnel(),
        // Its name is gone; only tunnels and the links of pods are deleted here.
        DELLINK => true,
        NEWADDR | DELADDR => body.get(3).is_none_or(|scope| *scope < RT_SCOPE_LINK),
        NEWROUTE | DELROUTE => body.get(5).is_none_or(|protocol| *protocol != RTPROT_KERNEL),
        _ => true,
    }
}

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this type, whose body begins with these bytes.
    fn message(kind: u16, body: [u8; 8]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn what_the_kernel_does_by_itself_does_not_count() {
        let name = |index| Some(if index == 3 { "flannel.1" } else { "cni0" }.to_owned());
        let on = |index: u32| -> [u8; 8] {
            let mut body = [0; 8];
            body[4..].copy_from_slice(&index.to_ne_bytes());
            body
        };
        for kind in [16, 28, 29] {
            assert!(may_be_ours(&message(kind, on(3)), name), "{kind}");
            assert!(!may_be_ours(&message(kind, on(4)), name), "{kind}");
        }
        assert!(!may_be_ours(&message(24, [2, 24, 0, 0, 254, 2, 0, 1]), name), "a connected prefix");
        assert!(may_be_ours(&message(24, [2, 24, 0, 0, 254, 67, 0, 1]), name), "a peer's route");
        assert!(!may_be_ours(&message(20, [10, 64, 0, 253, 3, 0, 0, 0]), name), "a link-local address");
    }
}
