//! The wire: a netlink socket that carries datagrams. [`Socket`] interprets them.
//!
//! [`Socket`]: super::Socket

use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::SocketAddr;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::NetlinkError;

/// What carries datagrams to the kernel and back. Tests put a script in its place.
pub trait Wire {
    /// Sends one datagram.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Errno>;

    /// Replaces the buffer's content with the next datagram. EAGAIN when there is none (at once, or with `wait` after some
    /// seconds), ENOBUFS when some were lost, EMSGSIZE when this one did not fit.
    fn receive(&mut self, buffer: &mut Vec<u8>, wait: bool) -> Result<(), Errno>;

    /// The next request is a dump.
    fn before_dump(&mut self) {}

    /// The next requests may have many answers before the first of them is read.
    fn before_many(&mut self) {}
}

/// A netlink socket in the network namespace that it was made in. Options that only some requests need are set before the
/// first such request, since a CNI plugin makes two sockets for a handful of messages.
pub struct KernelWire {
    inner: netlink_sys::Socket,
    is_strict: bool,
    has_room: bool,
}

/// Room for answers (bytes).
const ANSWER_ROOM: usize = 1024 * 1024;
/// Answers come within microseconds; an answer that is missing for this long is lost.
const ANSWER_WITHIN_S: i64 = 5;
/// No datagram is larger (bytes): the kernel fills at most 32 KiB with a dump, unless one object needs more.
const LARGEST: usize = 4 * 1024 * 1024;

impl KernelWire {
    /// A socket of this protocol.
    pub(super) fn open(protocol: i32) -> Result<Self, NetlinkError> {
        let mut inner = netlink_sys::Socket::new(protocol as isize)?;
        // The kernel chooses the port id.
        inner.bind(&SocketAddr::new(0, 0))?;
        // Old kernels lack these options. They add shorter answers and the kernel's error texts, which are not vital.
        for set in [netlink_sys::Socket::set_cap_ack, netlink_sys::Socket::set_ext_ack] {
            let _ = set(&inner, true);
        }
        let wait = TimeVal::seconds(ANSWER_WITHIN_S);
        setsockopt(&inner, sockopt::ReceiveTimeout, &wait).map_err(NetlinkError::Socket)?;
        Ok(Self { inner, is_strict: false, has_room: false })
    }

    /// Room for so many bytes that are not read yet.
    pub(super) fn make_room(&mut self, bytes: usize) {
        self.has_room = true;
        // The forced size needs CAP_NET_ADMIN in the first user namespace; the other one is cut to the system's limit.
        if setsockopt(&self.inner, sockopt::RcvBufForce, &bytes).is_err() {
            let _ = setsockopt(&self.inner, sockopt::RcvBuf, &bytes);
        }
    }

    pub(super) fn join(&mut self, groups: &[u32]) -> Result<(), NetlinkError> {
        groups.iter().try_for_each(|group| Ok(self.inner.add_membership(*group)?))
    }

    pub(super) fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        self.inner.get_address(&mut address).map_or(0, |()| address.port_number())
    }
}

impl Wire for KernelWire {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.inner.send(bytes, 0).map(drop).map_err(|error| errno(&error))
    }

    fn receive(&mut self, buffer: &mut Vec<u8>, wait: bool) -> Result<(), Errno> {
        // With MSG_TRUNC the kernel returns the length of the datagram, not of the part that fitted.
        let flags = if wait { libc::MSG_TRUNC } else { libc::MSG_TRUNC | libc::MSG_DONTWAIT };
        loop {
            buffer.clear();
            match self.inner.recv_from(buffer, flags) {
                // Another process sent it, so it is no answer.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok((len, _)) if len > buffer.len() => {
                    // The next one of its kind fits.
                    buffer.clear();
                    buffer.reserve(len.min(LARGEST));
                    return Err(Errno::EMSGSIZE);
                }
                Ok(_) => return Ok(()),
                Err(error) => match errno(&error) {
                    Errno::EINTR => {}
                    errno => return Err(errno),
                },
            }
        }
    }

    /// Old kernels lack it, so each reader checks every message of a dump again.
    fn before_dump(&mut self) {
        if !self.is_strict {
            self.is_strict = true;
            let _ = self.inner.set_netlink_get_strict_chk(true);
        }
    }

    fn before_many(&mut self) {
        if !self.has_room {
            self.make_room(ANSWER_ROOM);
        }
    }
}

impl AsFd for KernelWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
