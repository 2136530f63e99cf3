//! Bridges: requests to make one and to pin its Ethernet address.

use super::Batch;
use super::link::{IFF_UP, REQUEST, RTM_NEWLINK};
use super::veth::{IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, NEW, link_header};
use crate::state::{IfName, Mac};

/// Adds to the batch: make a bridge that is up. Its address is given at birth, since a bridge without one of its own
/// takes the lowest of its ports' and changes it as they come and go. EEXIST when the name is taken.
/// `mtu` in bytes, 0 leaves the kernel's default.
pub fn create_bridge(batch: &mut Batch, name: IfName, mac: Mac, mtu: u32) {
    batch
        .message(RTM_NEWLINK, REQUEST | NEW, &link_header(0, IFF_UP, IFF_UP))
        .attr_str(IFLA_IFNAME, name.as_str())
        .attr(IFLA_ADDRESS, &mac.0);
    if mtu != 0 {
        batch.attr_u32(IFLA_MTU, mtu);
    }
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_KIND, b"bridge");
    batch.end(info);
}

/// Adds to the batch: give a link this Ethernet address. Set to what it is already, it pins that of a bridge.
pub fn set_mac(batch: &mut Batch, link: u32, mac: Mac) {
    batch.message(RTM_NEWLINK, REQUEST, &link_header(link, 0, 0)).attr(IFLA_ADDRESS, &mac.0);
}
