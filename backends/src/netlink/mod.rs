//! The raw netlink layer: sockets, byte builders, an attribute iterator, batches and checked dumps, and the requests of each
//! kind of object. It is synchronous and has no runtime, no packet crates and no policy, since the CNI plugin uses it as well.
//!
//! Which layer is used when: everything is written and read by this layer, except that the daemon builds the messages which
//! create and change its own tunnel links, with their many attributes, by the types of netlink-packet-route.
//!
//! ```text
//!   Batch ── message, attributes ──▶ Socket::apply ──▶ one result per message, in order
//!   Request ───────────────────────▶ Socket::dump  ──▶ each message to a closure, then Dump { interrupted }
//!   (group) ───────────────────────▶ Socket::receive ─▶ notifications, or Overrun
//! ```
//!
//! Everything that arrives is treated as hostile: a truncated message or attribute ends the iteration, and an attribute of an
//! unexpected size reads as absent. Nothing here panics on bytes.

pub mod address;
mod attrs;
mod batch;
mod error;
pub mod link;
mod name;
pub mod neigh;
pub mod netconf;
pub mod netns;
pub mod nft;
pub mod route;
mod sieve;
mod socket;
mod wire;

pub use attrs::{Attrs, Messages, RawMessage, read_u16, read_u32};
pub use batch::{Batch, Nest};
pub(crate) use error::errno;
pub use error::{NetlinkError, Unread};
pub use name::{BadIfName, BadMac, IfName, Mac};
pub use socket::{Dump, Received, Socket};
pub use wire::{KernelWire, Wire};

use std::net::IpAddr;

/// The bytes of an address as netlink carries them: 4 or 16, network order.
pub fn address_bytes(address: &IpAddr) -> AddressBytes {
    match address {
        IpAddr::V4(a) => AddressBytes { bytes: widen(a.octets()), len: 4 },
        IpAddr::V6(a) => AddressBytes { bytes: a.octets(), len: 16 },
    }
}

/// An address in network order, held inline.
#[derive(Clone, Copy)]
pub struct AddressBytes {
    bytes: [u8; 16],
    len: usize,
}

impl std::ops::Deref for AddressBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn widen(four: [u8; 4]) -> [u8; 16] {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(&four);
    wide
}

/// An address from 4 or 16 bytes; anything else is none.
pub fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// `AF_INET` or `AF_INET6`.
pub fn family_of(address: &IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// `AF_UNSPEC`.
pub const AF_UNSPEC: u8 = 0;
/// `AF_INET`.
pub const AF_INET: u8 = 2;
/// `AF_BRIDGE`, the family of FDB entries.
pub const AF_BRIDGE: u8 = 7;
/// `AF_INET6`.
pub const AF_INET6: u8 = 10;
