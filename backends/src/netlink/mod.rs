//! The raw netlink layer: sockets, our own byte builders and attribute iterator, batches and checked dumps.
//! Synchronous, without a runtime and without packet crates, since the CNI plugin lives on it as well.
//!
//! ```text
//!   Batch ── message, attributes ──▶ Socket::apply ──▶ one result per message, in order
//!   Request ───────────────────────▶ Socket::dump  ──▶ each message to a closure, then Dump { interrupted }
//!   (group) ───────────────────────▶ Socket::receive ─▶ notifications, or Overrun
//! ```
//!
//! Everything that arrives is taken as hostile: a truncated message or attribute ends the iteration, an attribute
//! of an unexpected size reads as absent. Nothing here panics on bytes.

mod attrs;
mod batch;
pub mod bridge;
mod error;
pub mod link;
pub mod neigh;
pub mod netconf;
pub mod nft;
pub mod route;
mod sieve;
mod socket;
pub mod veth;
mod wire;

pub use attrs::{Attrs, Messages, RawMessage, read_u16, read_u32};
pub use batch::{Batch, Nest};
pub(crate) use error::errno;
pub use error::{NetlinkError, Unread};
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
