//! Changing a link of any kind.

use backends::netlink::Batch;

/// Adds to the batch: set those of the `IFF_…` flags that `mask` names to what they are in `flags`.
pub(crate) fn set_flags(batch: &mut Batch, index: u32, flags: u32, mask: u32) {
    batch.message(NEWLINK, REQUEST, &header(index, flags, mask));
}

/// `struct ifinfomsg`.
fn header(index: u32, flags: u32, mask: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&mask.to_ne_bytes());
    header
}

const REQUEST: u16 = 1;
/// `RTM_NEWLINK`.
const NEWLINK: u16 = 16;
