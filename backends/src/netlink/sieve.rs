//! A filter in the kernel for a socket of notifications: only the notifications that pass wake the process.
//!
//! The kernel runs a program of classic BPF over each datagram, which for notifications of rtnetlink is one message.
#![allow(unsafe_code, reason = "SO_ATTACH_FILTER takes a pointer to a program")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

use super::AF_UNSPEC;
use super::link::RTM_DELLINK;

/// Passes only the notification that the link of this index is gone, in the link's own family (a bridge sends one of its own
/// for each port).
pub(super) fn keep_removal(socket: BorrowedFd<'_>, link: u32) -> Result<(), Errno> {
    // The program reads numbers of the message in network order; they are in the host's.
    let kind = u16::from_be_bytes(RTM_DELLINK.to_ne_bytes());
    let link = u32::from_be_bytes(link.to_ne_bytes());
    attach(
        socket,
        &mut [
            load(HALF, KIND_AT),
            unless_equal(u32::from(kind), 5),
            load(BYTE, FAMILY_AT),
            unless_equal(u32::from(AF_UNSPEC), 3),
            load(WORD, INDEX_AT),
            unless_equal(link, 1),
            accept(u32::MAX),
            accept(0),
        ],
    )
}

fn attach(socket: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&program)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the option takes a `sock_fprog` of that size, whose `filter` points to `len` instructions. Both live until the
    // call returns, and before it returns the kernel has copied and checked the instructions.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    Errno::result(done).map(drop)
}

/// Loads a number from this far into the datagram; a datagram that is shorter does not pass.
fn load(size: u16, at: u32) -> libc::sock_filter {
    libc::sock_filter { code: LOAD | size, jt: 0, jf: 0, k: at }
}

/// Skips so many instructions unless the loaded number is this one.
fn unless_equal(number: u32, skip: u8) -> libc::sock_filter {
    libc::sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: skip, k: number }
}

/// Ends, and so many bytes pass.
fn accept(bytes: u32) -> libc::sock_filter {
    libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: bytes }
}

/// `nlmsg_type` of `struct nlmsghdr`; `ifi_family` and `ifi_index` of the `struct ifinfomsg` behind it.
const KIND_AT: u32 = 4;
const FAMILY_AT: u32 = 16;
const INDEX_AT: u32 = 20;

/// `BPF_LD | BPF_ABS` and its sizes.
const LOAD: u16 = 0x20;
const WORD: u16 = 0x00;
const HALF: u16 = 0x08;
const BYTE: u16 = 0x10;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
