//! Settings of links and of the host as rtnetlink reports them: whether packets are forwarded.

use super::link::REQUEST;
use super::{Attrs, Batch, RawMessage, read_u32};

/// Asks whether packets of a family (`AF_INET`, `AF_INET6`) pass the host.
pub fn get_forwarding(family: u8) -> Batch {
    let header = [family, 0, 0, 0];
    Batch::of(|batch| {
        batch.message(RTM_GETNETCONF, REQUEST, &header).attr_u32(NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL)
    })
}

/// The answer.
pub fn read_forwarding(message: &RawMessage<'_>) -> Option<bool> {
    let state = Attrs::after(message.payload, NETCONF).find(NETCONFA_FORWARDING).and_then(read_u32);
    if message.kind == RTM_NEWNETCONF { state.map(|state| state != 0) } else { None }
}

/// Whether a notification reports that forwarding changed, of a link or of the host. A notification that names other settings
/// too belongs to a new link, which has a notification of its own.
#[cfg(feature = "kernel")]
pub(crate) fn is_forwarding_change(message: &RawMessage<'_>) -> bool {
    let attrs = Attrs::after(message.payload, NETCONF);
    attrs.clone().find(NETCONFA_FORWARDING).is_some() && attrs.find(NETCONFA_PROXY_NEIGH).is_none()
}

/// Size of `struct netconfmsg`, with what fills it up.
const NETCONF: usize = 4;
pub(crate) const RTM_NEWNETCONF: u16 = 80;
const RTM_GETNETCONF: u16 = 82;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
#[cfg(feature = "kernel")]
const NETCONFA_PROXY_NEIGH: u16 = 5;
const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;
