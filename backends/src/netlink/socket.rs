//! The socket: batches with an answer per message, dumps that say when they were interrupted, notifications.

use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::SocketAddr;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::attrs::{Attrs, HEADER, Messages, RawMessage, align, read_u32};
use super::{Batch, NetlinkError};

/// A netlink socket in the network namespace it was made in.
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dump {
    /// The table changed meanwhile: what was read may lack objects or hold some twice.
    pub interrupted: bool,
}

/// What a subscription received.
pub enum Received<'a> {
    /// A datagram of notifications.
    Messages(Messages<'a>),
    /// The receive buffer was full: notifications were lost.
    Overrun,
    /// Nothing is waiting.
    Empty,
}

/// More messages than this in one send can fill the receive buffer of an unprivileged socket with answers: 256
/// replies fit the kernel's default, the 257th is dropped together with the last acknowledgement (measured).
const BATCH: usize = 200;
/// Bytes that hold one datagram of any dump: the kernel fills at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// Answers come within microseconds; a kernel that is silent for this long has lost them.
const ANSWER_WITHIN_S: i64 = 5;
/// Room for the notifications of a storm.
const EVENT_ROOM: usize = 8 * 1024 * 1024;

impl Socket {
    /// A socket for requests to rtnetlink.
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(libc::NETLINK_ROUTE, 1024 * 1024)
    }

    /// A socket for requests to nf_tables.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(libc::NETLINK_NETFILTER, 1024 * 1024)
    }

    /// A socket that hears the notifications of these groups (`RTNLGRP_…` or `NFNLGRP_…`) of a protocol
    /// (`NETLINK_ROUTE`, `NETLINK_NETFILTER`). Non-blocking.
    pub fn subscribe(protocol: i32, groups: &[u32]) -> Result<Self, NetlinkError> {
        let socket = Self::open(protocol, EVENT_ROOM)?;
        for group in groups {
            socket.inner.add_membership(*group)?;
        }
        socket.inner.set_non_blocking(true)?;
        Ok(socket)
    }

    fn open(protocol: i32, room: usize) -> Result<Self, NetlinkError> {
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
        Ok(Self { inner, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends every message and returns one result for each, in order. Errors do not stop the batch (law 15).
    pub fn apply(&mut self, batch: &mut Batch) -> Vec<Result<(), NetlinkError>> {
        let first = self.next_sequence(batch.len());
        let mut results = vec![Ok(()); batch.len()];
        for (n, range) in batch.seal(first, BATCH).into_iter().enumerate() {
            let from = n * BATCH;
            let to = (from + BATCH).min(results.len());
            let start = first.wrapping_add(u32::try_from(from).unwrap_or(u32::MAX));
            if let Err(lost) = self.exchange(&batch.bytes()[range], start, &mut results[from..to]) {
                results[from..to].fill(Err(lost));
            }
        }
        results
    }

    /// Sends every message in one send, for a kernel part that does all of them or none (nf_tables). The caller has
    /// asked for an acknowledgement on the last message that does something: the closing one has none before Linux
    /// 6.10. Errors come in order and all before that acknowledgement, hence the first answer is the verdict on all.
    ///
    /// # Errors
    /// With the place, in the batch, of the message that was refused; nothing was done. Or the answer was lost.
    pub fn transaction(&mut self, batch: &mut Batch) -> Result<(), (usize, NetlinkError)> {
        let first = self.next_sequence(batch.len());
        batch.seal(first, usize::MAX);
        self.send(batch.bytes()).map_err(|error| (0, error))?;
        loop {
            self.read().map_err(|errno| (0, NetlinkError::Unknown(errno)))?;
            for message in Messages::new(&self.buffer) {
                let n = message.sequence.wrapping_sub(first) as usize;
                if message.kind == NLMSG_ERROR && n < batch.len() {
                    return answer(message.payload).map_err(|error| (n, error));
                }
            }
        }
    }

    /// Sends one message and returns its result.
    pub fn request(&mut self, batch: &mut Batch) -> Result<(), NetlinkError> {
        self.apply(batch).pop().unwrap_or(Ok(()))
    }

    /// Sends one message that is answered by one object, and passes that to `read`.
    pub fn get<T>(
        &mut self,
        batch: &mut Batch,
        mut read: impl FnMut(RawMessage<'_>) -> Option<T>,
    ) -> Result<Option<T>, NetlinkError> {
        let first = self.next_sequence(1);
        let mut found = None;
        for range in batch.seal(first, BATCH) {
            self.send(&batch.bytes()[range])?;
        }
        self.replies(first, |message| {
            match message.kind {
                NLMSG_ERROR => return answer(message.payload).map(|()| true),
                _ => found = found.take().or_else(|| read(message)),
            }
            Ok(false)
        })?;
        Ok(found)
    }

    /// Sends a dump request (one message with `NLM_F_DUMP`) and passes every object to `each`.
    /// A dump that failed is an error, also when the kernel says so only inside the closing message.
    pub fn dump(
        &mut self,
        batch: &mut Batch,
        mut each: impl FnMut(RawMessage<'_>),
    ) -> Result<Dump, NetlinkError> {
        let first = self.next_sequence(1);
        let mut dump = Dump { interrupted: false };
        for range in batch.seal(first, BATCH) {
            self.send(&batch.bytes()[range])?;
        }
        self.replies(first, |message| {
            dump.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_DONE => return answer(message.payload).map(|()| true),
                NLMSG_ERROR => answer(message.payload)?,
                _ => each(message),
            }
            Ok(false)
        })?;
        Ok(dump)
    }

    /// The next datagram of notifications, if one is waiting.
    pub fn receive(&mut self) -> Result<Received<'_>, NetlinkError> {
        match self.read() {
            Ok(()) => Ok(Received::Messages(Messages::new(&self.buffer))),
            Err(Errno::ENOBUFS) => Ok(Received::Overrun),
            Err(Errno::EAGAIN) => Ok(Received::Empty),
            Err(errno) => Err(NetlinkError::Socket(errno)),
        }
    }

    /// This socket's port id, as it stands in the notifications that our requests cause.
    pub fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        self.inner.get_address(&mut address).map_or(0, |()| address.port_number())
    }

    /// Sends one range of a batch and files the answers under their sequence numbers.
    fn exchange(
        &mut self,
        bytes: &[u8],
        first: u32,
        results: &mut [Result<(), NetlinkError>],
    ) -> Result<(), NetlinkError> {
        self.send(bytes)?;
        let last = results.len() - 1;
        let mut done = false;
        while !done {
            self.read().map_err(NetlinkError::Unknown)?;
            for message in Messages::new(&self.buffer) {
                let n = message.sequence.wrapping_sub(first) as usize;
                if message.kind != NLMSG_ERROR || n >= results.len() {
                    continue;
                }
                results[n] = answer(message.payload);
                done |= n == last;
            }
        }
        Ok(())
    }

    /// Reads until `each` says that the answer is complete, passing over what answers another request.
    fn replies(
        &mut self,
        sequence: u32,
        mut each: impl FnMut(RawMessage<'_>) -> Result<bool, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        loop {
            self.read().map_err(NetlinkError::Unknown)?;
            for message in Messages::new(&self.buffer) {
                if message.sequence == sequence && each(message)? {
                    return Ok(());
                }
            }
        }
    }

    fn next_sequence(&mut self, messages: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(u32::try_from(messages).unwrap_or(u32::MAX));
        first
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.inner.send(bytes, 0).map(|_| ()).map_err(NetlinkError::from)
    }

    fn read(&mut self) -> Result<(), Errno> {
        self.buffer.clear();
        loop {
            match self.inner.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) {
                    Errno::EINTR => {}
                    errno => return Err(errno),
                },
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// The verdict inside an `NLMSG_ERROR` or `NLMSG_DONE` message: a code, then the failed request's header, then (with
/// extended acknowledgements) attributes with the kernel's words.
fn answer(payload: &[u8]) -> Result<(), NetlinkError> {
    let code = read_u32(payload).unwrap_or(0).cast_signed();
    if code >= 0 {
        return Ok(());
    }
    // The words follow the header of the request in an error, the code itself in a closing message.
    let text = [4 + HEADER, 4].into_iter().find_map(|skip| {
        let bytes = Attrs::after(payload, align(skip)).find(NLMSGERR_ATTR_MSG)?;
        let text = std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()?;
        Some(text.to_owned())
    });
    Err(NetlinkError::refused(code, text))
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSGERR_ATTR_MSG: u16 = 1;
