//! Links and addresses: dump requests and what their answers say.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{
    AF_INET, AF_INET6, Attrs, Batch, RawMessage, Unread, address_from, family_of, read_u16, read_u32,
};
use crate::state::{IfName, Mac};

/// Begins the alias of every link that our CNI plugin makes; the attachment follows.
pub const CONTAINER_ALIAS: &str = "cni ";

/// A link as the kernel reports it; borrowed from the message.
#[derive(Debug)]
pub struct LinkView<'a> {
    /// Interface index.
    pub index: u32,
    /// `IFF_…`.
    pub flags: u32,
    /// Interface name.
    pub name: IfName,
    /// MTU in bytes.
    pub mtu: u32,
    /// Ethernet address, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// `ip link … alias`.
    pub alias: Option<&'a str>,
    /// Kind (`vxlan`, `veth`, …); empty for physical links.
    pub kind: &'a str,
    /// The attributes of that kind.
    pub data: Attrs<'a>,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// `ip link … protodown on`: up, and yet without carrier.
    pub held_down: bool,
}

impl<'a> LinkView<'a> {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`. A link always has a name.
    pub fn parse(message: &RawMessage<'a>) -> Result<Self, Unread> {
        if !matches!(message.kind, RTM_NEWLINK | RTM_DELLINK) {
            return Err(Unread::Other);
        }
        Self::read(message.payload).ok_or(Unread::Broken)
    }

    /// Whether our CNI plugin made it, for a container.
    pub fn is_containers(&self) -> bool {
        self.kind == "veth" && self.alias.is_some_and(|alias| alias.starts_with(CONTAINER_ALIAS))
    }

    fn read(payload: &'a [u8]) -> Option<Self> {
        if payload.len() < IFINFO {
            return None;
        }
        let mut link = Self {
            index: read_u32(&payload[4..])?,
            flags: read_u32(&payload[8..])?,
            name: IfName::default(),
            mtu: 0,
            mac: None,
            alias: None,
            kind: "",
            data: Attrs::new(&[]),
            master: None,
            held_down: false,
        };
        for (kind, bytes) in Attrs::after(payload, IFINFO) {
            match kind {
                IFLA_IFNAME => link.name = IfName::from_kernel(bytes),
                IFLA_MTU => link.mtu = read_u32(bytes).unwrap_or(0),
                IFLA_ADDRESS => link.mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
                IFLA_IFALIAS => link.alias = text(bytes),
                IFLA_MASTER => link.master = read_u32(bytes),
                IFLA_PROTO_DOWN => link.held_down = bytes.first().is_some_and(|b| *b != 0),
                IFLA_LINKINFO => {
                    let info = Attrs::new(bytes);
                    link.kind = info.clone().find(IFLA_INFO_KIND).and_then(text).unwrap_or_default();
                    link.data = Attrs::new(info.find(IFLA_INFO_DATA).unwrap_or_default());
                }
                _ => {}
            }
        }
        Some(link).filter(|link| link.name != IfName::default())
    }
}

/// Asks for all links of a kind, or of every kind.
pub fn dump_links(kind: Option<&str>) -> Batch {
    let mut batch = Batch::new();
    batch.message(RTM_GETLINK, REQUEST | DUMP, &[0; IFINFO]);
    if let Some(kind) = kind {
        let info = batch.nest(IFLA_LINKINFO);
        batch.attr(IFLA_INFO_KIND, kind.as_bytes());
        batch.end(info);
    }
    batch
}

/// Asks to create a link of a kind of which nothing else is said. A kind that needs more, as vxlan does its number, refuses.
pub fn bare_link(kind: &str) -> Batch {
    let mut batch = Batch::new();
    batch.message(RTM_NEWLINK, REQUEST | CREATE | EXCLUSIVE, &[0; IFINFO]);
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_KIND, kind.as_bytes());
    batch.end(info);
    batch
}

/// Asks for one link by name, without its counters.
pub fn get_link(name: IfName) -> Batch {
    let mut batch = Batch::new();
    batch.message(RTM_GETLINK, REQUEST, &[0; IFINFO]);
    batch.attr_str(IFLA_IFNAME, name.as_str()).attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    batch
}

/// An address as the kernel reports it.
#[derive(Debug, Clone, Copy)]
pub struct AddressView {
    /// Interface index.
    pub link: u32,
    /// The address with its prefix length, host bits kept.
    pub net: IpNetwork,
    /// The other end, where that differs from the address.
    pub peer: Option<IpAddr>,
    /// `IFA_F_…`.
    pub flags: u32,
    /// `RT_SCOPE_…`.
    pub scope: u8,
}

impl AddressView {
    /// Reads an `RTM_NEWADDR` or `RTM_DELADDR` of IPv4 or IPv6.
    pub fn parse(message: &RawMessage<'_>) -> Result<Self, Unread> {
        let payload = message.payload;
        match (message.kind, payload.first()) {
            (RTM_NEWADDR | RTM_DELADDR, Some(&(AF_INET | AF_INET6)) | None) => {
                Self::read(payload).ok_or(Unread::Broken)
            }
            _ => Err(Unread::Other),
        }
    }

    fn read(payload: &[u8]) -> Option<Self> {
        if payload.len() < IFADDR {
            return None;
        }
        let (mut local, mut address, mut flags) = (None, None, u32::from(payload[2]));
        for (kind, bytes) in Attrs::after(payload, IFADDR) {
            match kind {
                IFA_LOCAL => local = address_from(bytes),
                IFA_ADDRESS => address = address_from(bytes),
                IFA_FLAGS => flags = read_u32(bytes).unwrap_or(flags),
                _ => {}
            }
        }
        let own = local.or(address).filter(|own| family_of(own) == payload[0])?;
        Some(Self {
            link: read_u32(&payload[4..])?,
            net: IpNetwork::new(own, payload[1]).ok()?,
            peer: address.filter(|a| *a != own),
            flags,
            scope: payload[3],
        })
    }
}

/// Asks for the addresses of both families, of one link or of all (index 0).
pub fn dump_addresses(link: u32) -> Batch {
    let mut batch = Batch::new();
    let mut header = [0; IFADDR];
    header[4..].copy_from_slice(&link.to_ne_bytes());
    batch.message(RTM_GETADDR, REQUEST | DUMP, &header);
    batch
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|b| *b == 0).next()?).ok()
}

/// The two-byte value of an attribute in network order.
pub fn port_from(bytes: &[u8]) -> Option<u16> {
    read_u16(bytes).map(u16::from_be)
}

pub(crate) const REQUEST: u16 = 1;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE | NLM_F_REPLACE`.
pub(crate) const PUT: u16 = 0x400 | 0x100;

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;

/// Size of `struct ifinfomsg`.
pub(crate) const IFINFO: usize = 16;
/// Size of `struct ifaddrmsg`.
pub(crate) const IFADDR: usize = 8;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_PROTO_DOWN: u16 = 39;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

/// `IFF_UP`.
pub const IFF_UP: u32 = 1;
/// `IFF_LOOPBACK`.
pub const IFF_LOOPBACK: u32 = 8;
/// `IFF_POINTOPOINT`.
pub const IFF_POINTOPOINT: u32 = 0x10;
/// `IFF_LOWER_UP`: there is carrier.
pub const IFF_LOWER_UP: u32 = 0x1_0000;

/// `IFA_F_PERMANENT`.
pub const IFA_F_PERMANENT: u32 = 0x80;
/// `IFA_F_TEMPORARY`.
pub const IFA_F_TEMPORARY: u32 = 1;
/// `IFA_F_NODAD`.
pub const IFA_F_NODAD: u32 = 2;
/// `IFA_F_DADFAILED`.
pub const IFA_F_DADFAILED: u32 = 8;
/// `IFA_F_DEPRECATED`.
pub const IFA_F_DEPRECATED: u32 = 0x20;
/// `IFA_F_TENTATIVE`.
pub const IFA_F_TENTATIVE: u32 = 0x40;

/// `RT_SCOPE_UNIVERSE`.
pub const RT_SCOPE_UNIVERSE: u8 = 0;
/// `RT_SCOPE_LINK`.
pub const RT_SCOPE_LINK: u8 = 253;
