//! The socket: batches with an answer per message, dumps that report when they were interrupted, notifications.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

use super::attrs::{Attrs, HEADER, Messages, RawMessage, align, read_u32};
use super::wire::{KernelWire, Wire};
use super::{Batch, NetlinkError, sieve};

/// Requests and their answers, and notifications, over a netlink socket.
pub struct Socket<W = KernelWire> {
    wire: W,
    sequence: u32,
    buffer: Vec<u8>,
    /// A request was given up before its last answer, so more answers may come.
    unsettled: bool,
}

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dump {
    /// The table changed meanwhile: objects may be missing or read twice.
    pub interrupted: bool,
}

/// What a subscription received.
pub enum Received<'a> {
    /// A datagram of notifications.
    Messages(Messages<'a>),
    /// The receive buffer was full, or too small for this one: notifications were lost.
    Overrun,
    /// Nothing is waiting.
    Empty,
}

/// More messages than this in one send can fill the receive buffer of an unprivileged socket with answers: 256
/// replies fit the kernel's default, the 257th is dropped together with the last acknowledgement (measured).
const BATCH: usize = 200;
/// Bytes that hold one datagram of any dump: the kernel fills at most 32 KiB. Two such buffers fit into the first memory that
/// a small program gets.
const BUFFER: usize = 40 * 1024;
/// Room for the notifications of a storm (bytes).
const EVENT_ROOM: usize = 8 * 1024 * 1024;
/// So many answers fit into the default receive buffer: it has 200 KiB, and each answer counts for less than 1 KiB.
const FEW: usize = 32;
/// Datagrams in a row that a request skips. The rest of a dump of a million routes is 5000 datagrams.
const STRANGERS: usize = 100_000;

impl Socket {
    /// A socket for requests to rtnetlink.
    pub fn route() -> Result<Self, NetlinkError> {
        KernelWire::open(libc::NETLINK_ROUTE).map(Self::over)
    }

    /// A socket for requests to nf_tables.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        KernelWire::open(libc::NETLINK_NETFILTER).map(Self::over)
    }

    /// A socket that receives the notifications of these groups (`RTNLGRP_…` or `NFNLGRP_…`) of a protocol
    /// (`NETLINK_ROUTE`, `NETLINK_NETFILTER`).
    pub fn subscribe(protocol: i32, groups: &[u32]) -> Result<Self, NetlinkError> {
        let mut wire = KernelWire::open(protocol)?;
        wire.make_room(EVENT_ROOM);
        wire.join(groups)?;
        Ok(Self::over(wire))
    }

    /// Receives only the notification that one link was removed. A kernel that cannot filter delivers everything.
    pub fn hear_only_removal_of(&self, link: u32) {
        let _ = sieve::keep_removal(self.wire.as_fd(), link);
    }

    /// This socket's port id, which is in the notifications that our requests cause.
    pub fn port(&self) -> u32 {
        self.wire.port()
    }
}

impl<W: Wire> Socket<W> {
    /// Over this wire.
    pub fn over(wire: W) -> Self {
        Self { wire, sequence: 0, buffer: Vec::with_capacity(BUFFER), unsettled: false }
    }

    /// Sends every message and returns one result for each, in order. Errors do not stop the batch (law 15).
    pub fn apply(&mut self, batch: &mut Batch) -> Vec<Result<(), NetlinkError>> {
        self.before(batch);
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
        self.before(batch);
        let first = self.next_sequence(batch.len());
        let messages = batch.len();
        batch.seal(first, usize::MAX);
        self.send(batch.bytes()).map_err(|error| (0, error))?;
        // More errors may follow the first one; they are not read here.
        self.unsettled = true;
        let mut verdict = Ok(());
        let lost = self.answers(|message| {
            let n = message.sequence.wrapping_sub(first) as usize;
            if message.kind != NLMSG_ERROR || n >= messages {
                return Ok(AnswerPart::Stranger);
            }
            verdict = answer(message.payload).map_err(|error| (n, error));
            Ok(AnswerPart::Last)
        });
        lost.map_err(|error| (0, error)).and(verdict)
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
        let mut found = None;
        self.get_each(batch, |_, message| found = read(message))?;
        Ok(found)
    }

    /// Sends messages that are each answered by one object, all in one send, and passes each object with the place of its
    /// message in the batch to `read`.
    ///
    /// # Errors
    /// The first refusal, and then the rest is not read. Or an answer was lost.
    pub fn get_each(
        &mut self,
        batch: &mut Batch,
        mut read: impl FnMut(usize, RawMessage<'_>),
    ) -> Result<(), NetlinkError> {
        let mut left = batch.len();
        self.ask(batch, |n, message| {
            match message.kind {
                NLMSG_ERROR => answer(message.payload)?,
                _ => read(n, message),
            }
            left = left.saturating_sub(1);
            Ok(if left == 0 { AnswerPart::Last } else { AnswerPart::Ours })
        })
    }

    /// Sends a dump request (one message with `NLM_F_DUMP`) and passes every object to `each`.
    /// A dump that failed is an error, also when only the closing message contains it.
    pub fn dump(
        &mut self,
        batch: &mut Batch,
        mut each: impl FnMut(RawMessage<'_>),
    ) -> Result<Dump, NetlinkError> {
        self.wire.before_dump();
        let mut dump = Dump { interrupted: false };
        self.ask(batch, |_, message| {
            dump.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_DONE => return answer(message.payload).map(|()| AnswerPart::Last),
                NLMSG_ERROR => answer(message.payload)?,
                _ => each(message),
            }
            Ok(AnswerPart::Ours)
        })?;
        Ok(dump)
    }

    /// The next datagram of notifications, if one is waiting.
    pub fn receive(&mut self) -> Result<Received<'_>, NetlinkError> {
        match self.wire.receive(&mut self.buffer, false) {
            Ok(()) => Ok(Received::Messages(Messages::new(&self.buffer))),
            Err(Errno::ENOBUFS | Errno::EMSGSIZE) => Ok(Received::Overrun),
            Err(Errno::EAGAIN) => Ok(Received::Empty),
            Err(errno) => Err(NetlinkError::Socket(errno)),
        }
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
        self.answers(|message| {
            let n = message.sequence.wrapping_sub(first) as usize;
            if message.kind != NLMSG_ERROR || n >= results.len() {
                return Ok(AnswerPart::Stranger);
            }
            results[n] = answer(message.payload);
            Ok(if n == last { AnswerPart::Last } else { AnswerPart::Ours })
        })
    }

    /// Sends messages that ask for something, and passes their answers or refusals to `each`, with the place of the message.
    /// No acknowledgement is asked for, which would only follow the answer.
    fn ask(
        &mut self,
        batch: &mut Batch,
        mut each: impl FnMut(usize, RawMessage<'_>) -> Result<AnswerPart, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let (first, messages) = (self.next_sequence(batch.len()), batch.len());
        batch.number(first);
        self.send(batch.bytes())?;
        self.answers(|message| {
            let n = message.sequence.wrapping_sub(first) as usize;
            if n < messages { each(n, message) } else { Ok(AnswerPart::Stranger) }
        })
    }

    /// Reads until `each` reports the end of the answer. Answers to earlier requests are skipped, up to a limit. When a
    /// datagram is cut short, a part of the answer is lost.
    fn answers(
        &mut self,
        mut each: impl FnMut(RawMessage<'_>) -> Result<AnswerPart, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let settled = !self.unsettled;
        self.unsettled = true;
        let mut strangers = 0;
        while strangers < STRANGERS {
            self.wire.receive(&mut self.buffer, true).map_err(NetlinkError::Unknown)?;
            let mut messages = Messages::new(&self.buffer);
            strangers += 1;
            for message in messages.by_ref() {
                match each(message)? {
                    AnswerPart::Stranger => {}
                    AnswerPart::Ours => strangers = 0,
                    AnswerPart::Last => {
                        self.unsettled = !settled;
                        return Ok(());
                    }
                }
            }
            if messages.is_broken() {
                return Err(NetlinkError::Unknown(Errno::EBADMSG));
            }
        }
        Err(NetlinkError::Unknown(Errno::EPROTO))
    }

    /// Before a batch whose answers may be many.
    fn before(&mut self, batch: &Batch) {
        if batch.len() > FEW {
            self.wire.before_many();
        }
    }

    /// The first sequence number for a request of so many messages.
    fn next_sequence(&mut self, messages: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(u32::try_from(messages).unwrap_or(u32::MAX));
        first
    }

    /// Reads what is left of a request that was given up. The kernel refuses a dump (EBUSY) until the one before it was read
    /// to its end, and answers that are not read fill the receive buffer.
    fn settle(&mut self) {
        let mut most = if self.unsettled { STRANGERS } else { 0 };
        while most > 0 && self.wire.receive(&mut self.buffer, false) != Err(Errno::EAGAIN) {
            most -= 1;
        }
        self.unsettled = false;
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        self.settle();
        self.wire.send(bytes).map_err(NetlinkError::Socket)
    }
}

/// What a message is to the request that waits.
enum AnswerPart {
    /// It belongs to another request.
    Stranger,
    /// It is part of the answer.
    Ours,
    /// It completes the answer.
    Last,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

/// The verdict inside an `NLMSG_ERROR` or `NLMSG_DONE` message: a code, then the failed request's header, then (with
/// extended acknowledgements) attributes with the kernel's error text.
fn answer(payload: &[u8]) -> Result<(), NetlinkError> {
    let code = read_u32(payload).ok_or(NetlinkError::Unknown(Errno::EBADMSG))?.cast_signed();
    if code >= 0 {
        return Ok(());
    }
    // The text follows the header of the request in an error, and the code itself in a closing message.
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

#[cfg(test)]
mod tests;
