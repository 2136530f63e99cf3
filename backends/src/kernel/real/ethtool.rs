//! One feature of a device, the way `ethtool` asks for it: by a request of its own. Netlink does the same since Linux 5.7,
//! which is exactly where it is no longer needed.
#![allow(
    unsafe_code,
    reason = "the request carries a pointer, and no crate that we have wraps it; see `call`"
)]

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::state::IfName;

/// Whether the device leaves checksums of what it sends to the hardware.
pub(super) fn tx_checksum(link: IfName) -> Result<bool, Errno> {
    call(link, ETHTOOL_GTXCSUM, 0).map(|on| on != 0)
}

/// Lets it do that, or not. Without, it does not segment for the sender either.
pub(super) fn set_tx_checksum(link: IfName, on: bool) -> Result<(), Errno> {
    call(link, ETHTOOL_STXCSUM, u32::from(on)).map(drop)
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` as far as this request goes: a name, and a union of 24 bytes (16 on 32 bits) that begins with the pointer.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: *mut Value,
    rest: [u8; 16],
}

fn call(link: IfName, command: u32, data: u32) -> Result<u32, Errno> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    let mut request = Request { name: [0; libc::IFNAMSIZ], value: &raw mut value, rest: [0; 16] };
    // A name has at most 15 bytes, so a zero follows.
    for (to, from) in request.name.iter_mut().zip(link.as_str().bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from;
    }
    // SAFETY: the descriptor is open until the end of this function. The kernel reads and writes `struct ifreq`, which `Request`
    // is at least as large as, and through its pointer eight bytes, which `value` has; both outlive the call, and nothing
    // else refers to them meanwhile.
    let done = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Errno::result(done)?;
    Ok(value.data)
}

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM` of linux/ethtool.h.
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;
