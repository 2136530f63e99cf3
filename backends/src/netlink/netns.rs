//! Network namespaces by the numbers that they have in this one.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::link::REQUEST;
use super::{Attrs, Batch, RawMessage, read_u32};

/// Asks which number a network namespace has in ours (`IFLA_LINK_NETNSID` of links that lead there).
pub fn namespace_number(namespace: BorrowedFd<'_>) -> Batch {
    let descriptor = namespace.as_raw_fd().cast_unsigned();
    Batch::of(|batch| batch.message(RTM_GETNSID, REQUEST, &[0; RTGEN]).attr_u32(NETNSA_FD, descriptor))
}

/// The answer; none where the namespace has no number because no link of ours leads there.
pub fn read_namespace_number(message: &RawMessage<'_>) -> Option<u32> {
    let number = Attrs::after(message.payload, RTGEN).find(NETNSA_NSID).and_then(read_u32);
    number.filter(|number| message.kind == RTM_NEWNSID && number.cast_signed() >= 0)
}

/// Size of `struct rtgenmsg`, with what fills it up.
const RTGEN: usize = 4;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
