//! The wire: a netlink socket as something that carries datagrams. What they mean is the affair of [`Socket`].
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

    /// Replaces the buffer by the next datagram. EAGAIN when there is none: at once, or where `wait` is asked for after
    /// some seconds; ENOBUFS when some were lost; EMSGSIZE when this one did not fit.
    fn receive(&mut self, buffer: &mut Vec<u8>, wait: bool) -> Result<(), Errno>;
}

/// A netlink socket in the network namespace it was made in.
pub struct KernelWire(netlink_sys::Socket);

/// Answers come within microseconds; a kernel that is silent for this long has lost them.
const ANSWER_WITHIN_S: i64 = 5;
/// No datagram is larger (bytes): the kernel fills at most 32 KiB with a dump, but for one object that needs more.
const LARGEST: usize = 4 * 1024 * 1024;

impl KernelWire {
    /// A socket of this protocol with `room` bytes for what is not read yet.
    pub(super) fn open(protocol: i32, room: usize) -> Result<Self, NetlinkError> {
        let mut inner = netlink_sys::Socket::new(protocol as isize)?;
        inner.bind_auto()?;
        // Old kernels lack these; what they add (shorter answers, the kernel's words, filtered dumps) is not vital:
        // every message of a dump is checked again by its reader.
        for set in [netlink_sys::Socket::set_cap_ack, netlink_sys::Socket::set_ext_ack] {
            let _ = set(&inner, true);
        }
        let _ = inner.set_netlink_get_strict_chk(true);
        // The forced size needs CAP_NET_ADMIN in the first user namespace; the other one is cut to the system's limit.
        if setsockopt(&inner, sockopt::RcvBufForce, &room).is_err() {
            let _ = setsockopt(&inner, sockopt::RcvBuf, &room);
        }
        let wait = TimeVal::seconds(ANSWER_WITHIN_S);
        setsockopt(&inner, sockopt::ReceiveTimeout, &wait).map_err(NetlinkError::Socket)?;
        Ok(Self(inner))
    }

    pub(super) fn join(&mut self, groups: &[u32]) -> Result<(), NetlinkError> {
        groups.iter().try_for_each(|group| Ok(self.0.add_membership(*group)?))
    }

    pub(super) fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        self.0.get_address(&mut address).map_or(0, |()| address.port_number())
    }
}

impl Wire for KernelWire {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.0.send(bytes, 0).map(drop).map_err(|error| errno(&error))
    }

    fn receive(&mut self, buffer: &mut Vec<u8>, wait: bool) -> Result<(), Errno> {
        // With MSG_TRUNC the kernel tells how long the datagram is, not how much of it fitted.
        let flags = if wait { libc::MSG_TRUNC } else { libc::MSG_TRUNC | libc::MSG_DONTWAIT };
        loop {
            buffer.clear();
            match self.0.recv_from(buffer, flags) {
                // Whoever may write here can also write into the kernel; but what another process says is no answer.
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
}

impl AsFd for KernelWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
