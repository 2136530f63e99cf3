//! Changing a link of any kind.

use backends::Mac;
use backends::netlink::Batch;

/// Adds to the batch: set those of the `IFF_…` flags that `mask` names to what they are in `flags`.
pub(crate) fn set_flags(batch: &mut Batch, index: u32, flags: u32, mask: u32) {
    batch.message(NEWLINK, REQUEST, &header(index, flags, mask));
}

/// Adds to the batch: another Ethernet address.
pub(crate) fn set_mac(batch: &mut Batch, index: u32, mac: Mac) {
    batch.message(NEWLINK, REQUEST, &header(index, 0, 0)).attr(ADDRESS, &mac.0);
}

/// Adds to the batch: another MTU (bytes).
pub(crate) fn set_mtu(batch: &mut Batch, index: u32, mtu: u32) {
    batch.message(NEWLINK, REQUEST, &header(index, 0, 0)).attr_u32(MTU, mtu);
}

/// Adds to the batch: another length of the transmit queue (packets).
pub(crate) fn set_queue(batch: &mut Batch, index: u32, length: u32) {
    batch.message(NEWLINK, REQUEST, &header(index, 0, 0)).attr_u32(QUEUE, length);
}

/// `struct ifinfomsg`.
pub(crate) fn header(index: u32, flags: u32, mask: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&mask.to_ne_bytes());
    header
}

pub(crate) const REQUEST: u16 = 1;
/// `RTM_NEWLINK`.
pub(crate) const NEWLINK: u16 = 16;
const ADDRESS: u16 = 1;
pub(crate) const MTU: u16 = 4;
pub(crate) const QUEUE: u16 = 13;
