//! Links: requests to make, change, delete and read them, and the contents of the answers ([`LinkView`]).
//!
//! A request begins with [`create`], [`change`] or [`change_named`]; the functions after them add one attribute each to the
//! message begun last.

mod view;

use std::os::fd::{AsRawFd, BorrowedFd};

pub use view::{CONTAINER_ALIAS, LinkView, Port, port_from};

use super::{AF_INET, AF_INET6, Batch, IfName, Mac};

/// Adds to the batch: a new link with these `IFF_…` flags. EEXIST when its name is taken.
pub fn create(batch: &mut Batch, flags: u32) -> &mut Batch {
    batch.message(RTM_NEWLINK, REQUEST | CREATE | EXCLUSIVE, &header(0, flags, flags))
}

/// Adds to the batch: change a link. Of its `IFF_…` flags those that `mask` names become what they are in `flags`.
pub fn change(batch: &mut Batch, link: u32, flags: u32, mask: u32) -> &mut Batch {
    batch.message(RTM_NEWLINK, REQUEST, &header(link, flags, mask))
}

/// Adds to the batch: change a link by name, so that this can follow its creation in one batch.
pub fn change_named(batch: &mut Batch, link: IfName) -> &mut Batch {
    name(change(batch, 0, 0, 0), link)
}

/// Its name.
pub fn name(batch: &mut Batch, name: IfName) -> &mut Batch {
    batch.attr_str(IFLA_IFNAME, name.as_str())
}

/// Its Ethernet address.
pub fn mac(batch: &mut Batch, mac: Mac) -> &mut Batch {
    batch.attr(IFLA_ADDRESS, &mac.0)
}

/// Its MTU in bytes; 0 leaves it as it is.
pub fn mtu(batch: &mut Batch, mtu: u32) -> &mut Batch {
    if mtu == 0 { batch } else { batch.attr_u32(IFLA_MTU, mtu) }
}

/// The index of the bridge that it becomes a port of.
pub fn master(batch: &mut Batch, bridge: u32) -> &mut Batch {
    batch.attr_u32(IFLA_MASTER, bridge)
}

/// Its alias. The kernel ignores one in the message that creates the link.
pub fn alias<'b>(batch: &'b mut Batch, alias: &str) -> &'b mut Batch {
    batch.attr(IFLA_IFALIAS, alias.as_bytes())
}

/// One queue in each direction. Without the number the kernel makes one for each processor.
pub fn one_queue(batch: &mut Batch) -> &mut Batch {
    batch.attr_u32(IFLA_NUM_TX_QUEUES, 1).attr_u32(IFLA_NUM_RX_QUEUES, 1)
}

/// The length of its transmit queue in packets.
pub fn queue_length(batch: &mut Batch, packets: u32) -> &mut Batch {
    batch.attr_u32(IFLA_TXQLEN, packets)
}

/// The namespace that it is created in.
pub fn namespace<'b>(batch: &'b mut Batch, namespace: BorrowedFd<'_>) -> &'b mut Batch {
    batch.attr_u32(IFLA_NET_NS_FD, namespace.as_raw_fd().cast_unsigned())
}

/// Its kind (`bridge`, `ifb`, …), without settings of the kind.
pub fn kind<'a>(batch: &'a mut Batch, kind: &str) -> &'a mut Batch {
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_KIND, kind.as_bytes()).end(info)
}

/// It is a veth, and these are the attributes of its other end.
pub fn veth(batch: &mut Batch, other_end: impl FnOnce(&mut Batch)) {
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_KIND, b"veth");
    let data = batch.nest(IFLA_INFO_DATA);
    let peer = batch.nest(VETH_INFO_PEER);
    other_end(batch.raw(&[0; IFINFO]));
    batch.end(peer).end(data).end(info);
}

/// What a bridge does with the frames of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortMode {
    /// A frame may go back where it came from.
    pub hairpin: bool,
    /// No frame goes to another port of this mode.
    pub isolated: bool,
}

/// What the bridge does with its frames.
pub fn port_mode(batch: &mut Batch, mode: PortMode) {
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_SLAVE_KIND, b"bridge");
    let data = batch.nest(IFLA_INFO_SLAVE_DATA);
    batch.attr_u8(IFLA_BRPORT_MODE, u8::from(mode.hairpin));
    if mode.isolated {
        batch.attr_u8(IFLA_BRPORT_ISOLATED, 1);
    }
    batch.end(data).end(info);
}

/// It gets no IPv6 address by itself. EAFNOSUPPORT without IPv6.
pub fn no_link_local(batch: &mut Batch) {
    let families = batch.nest(IFLA_AF_SPEC);
    let family = batch.nest(u16::from(AF_INET6));
    batch.attr_u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
    batch.end(family).end(families);
}

/// The kernel announces its IPv4 addresses to the neighbours (the sysctl `arp_notify`).
pub fn announce_ipv4(batch: &mut Batch) {
    let families = batch.nest(IFLA_AF_SPEC);
    let family = batch.nest(u16::from(AF_INET));
    let settings = batch.nest(IFLA_INET_CONF);
    batch.attr_u32(IPV4_DEVCONF_ARP_NOTIFY, 1);
    batch.end(settings).end(family).end(families);
}

/// Adds to the batch: delete a link, and with a veth its other end.
pub fn delete_link(batch: &mut Batch, link: u32) {
    batch.message(RTM_DELLINK, REQUEST, &header(link, 0, 0));
}

/// Asks for all links of a kind, or of every kind.
pub fn dump_links(kind: Option<&str>) -> Batch {
    let mut batch = Batch::of(|batch| batch.message(RTM_GETLINK, REQUEST | DUMP, &[0; IFINFO]));
    if let Some(kind) = kind {
        self::kind(&mut batch, kind);
    }
    batch
}

/// Asks for the ports of a bridge.
pub fn dump_ports(bridge: u32) -> Batch {
    Batch::of(|batch| batch.message(RTM_GETLINK, REQUEST | DUMP, &[0; IFINFO]).attr_u32(IFLA_MASTER, bridge))
}

/// Asks for one link by name, without its counters.
pub fn get_link(name: IfName) -> Batch {
    Batch::of(|batch| {
        let batch = self::name(batch.message(RTM_GETLINK, REQUEST, &[0; IFINFO]), name);
        batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    })
}

/// Asks for one link by index.
pub fn get_link_at(link: u32) -> Batch {
    Batch::of(|batch| batch.message(RTM_GETLINK, REQUEST, &header(link, 0, 0)))
}

fn header(link: u32, flags: u32, mask: u32) -> [u8; IFINFO] {
    let mut header = [0; IFINFO];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&mask.to_ne_bytes());
    header
}

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 1;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE | NLM_F_REPLACE`.
pub(crate) const PUT: u16 = 0x400 | 0x100;

/// `RTNLGRP_LINK`.
pub const RTNLGRP_LINK: u32 = 1;

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

/// Size of `struct ifinfomsg`.
pub(crate) const IFINFO: usize = 16;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_PROTO_DOWN: u16 = 39;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// `IFF_UP`.
pub const IFF_UP: u32 = 1;
/// `IFF_LOOPBACK`.
pub const IFF_LOOPBACK: u32 = 8;
/// `IFF_POINTOPOINT`.
pub const IFF_POINTOPOINT: u32 = 0x10;
/// `IFF_LOWER_UP`: there is carrier.
pub const IFF_LOWER_UP: u32 = 0x1_0000;
/// `IFF_PROMISC`.
pub const IFF_PROMISC: u32 = 0x100;
/// `IFF_ALLMULTI`.
pub const IFF_ALLMULTI: u32 = 0x200;

/// `RT_SCOPE_UNIVERSE`.
pub const RT_SCOPE_UNIVERSE: u8 = 0;
/// `RT_SCOPE_LINK`.
pub const RT_SCOPE_LINK: u8 = 253;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::netlink::{Attrs, Messages, read_u32};

    #[test]
    fn a_veth_request_carries_the_other_end_inside_with_its_namespace() {
        let here = std::fs::File::open("/proc/self/ns/net").unwrap();
        let mut batch = Batch::new();
        master(create(&mut batch, IFF_UP), 7);
        veth(&mut batch, |batch| {
            namespace(mtu(name(batch, "eth0".parse().unwrap()), 1450), here.as_fd());
        });
        let bytes = batch.seal_for_test(1);
        let message = Messages::new(&bytes).next().unwrap();
        let attrs = Attrs::after(message.payload, IFINFO);
        assert_eq!(attrs.clone().find(IFLA_MASTER).and_then(read_u32), Some(7));
        let info = Attrs::new(attrs.find(IFLA_LINKINFO).unwrap());
        let peer = Attrs::new(info.find(IFLA_INFO_DATA).unwrap()).find(VETH_INFO_PEER).unwrap();
        let inside = Attrs::after(peer, IFINFO);
        assert_eq!(inside.clone().find(IFLA_IFNAME), Some(&b"eth0\0"[..]));
        assert_eq!(inside.clone().find(IFLA_MTU).and_then(read_u32), Some(1450));
        assert_eq!(inside.find(IFLA_NET_NS_FD).and_then(read_u32), Some(here.as_raw_fd().cast_unsigned()));
    }
}
