//! Addresses of links: requests to write and to dump them, and the contents of the answers.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::link::{CREATE, DUMP, EXCLUSIVE, PUT, REQUEST};
use super::{
    AF_INET, AF_INET6, Attrs, Batch, RawMessage, Unread, address_bytes, address_from, family_of, read_u32,
};

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
    let mut header = [0; IFADDR];
    header[4..].copy_from_slice(&link.to_ne_bytes());
    Batch::of(|batch| batch.message(RTM_GETADDR, REQUEST | DUMP, &header))
}

/// Asks for the addresses of another namespace, by the number that it has in this one (`IFLA_LINK_NETNSID`). The
/// kernel supports the request since Linux 4.20.
pub fn dump_addresses_in(namespace: u32) -> Batch {
    Batch::of(|batch| {
        batch.message(RTM_GETADDR, REQUEST | DUMP, &[0; IFADDR]).attr_u32(IFA_TARGET_NETNSID, namespace)
    })
}

/// Adds to the batch: a new address, usable at once (no duplicate address detection). EEXIST when it is there.
pub fn add_address(batch: &mut Batch, link: u32, net: IpNetwork) {
    new_address(batch, CREATE | EXCLUSIVE, link, net, NODAD);
}

/// The same, but the kernel first looks for another host that has the address: it is tentative for a second or two.
pub fn add_address_after_detection(batch: &mut Batch, link: u32, net: IpNetwork) {
    new_address(batch, CREATE | EXCLUSIVE, link, net, 0);
}

/// Adds to the batch: create an address, or replace it, usable at once.
pub fn put_address(batch: &mut Batch, link: u32, net: IpNetwork) {
    new_address(batch, PUT, link, net, NODAD);
}

/// Adds to the batch: delete an address.
pub fn delete_address(batch: &mut Batch, link: u32, net: IpNetwork) {
    address(batch, RTM_DELADDR, 0, link, net, NODAD);
}

fn new_address(batch: &mut Batch, flags: u16, link: u32, net: IpNetwork, address_flags: u8) {
    address(batch, RTM_NEWADDR, flags, link, net, address_flags);
    if let IpNetwork::V4(v4) = net
        && v4.prefix() < 31
    {
        batch.attr(IFA_BROADCAST, &v4.broadcast().octets());
    }
}

fn address(batch: &mut Batch, kind: u16, flags: u16, link: u32, net: IpNetwork, address_flags: u8) {
    let mut header = [0; IFADDR];
    header[0] = family_of(&net.ip());
    header[1] = net.prefix();
    header[2] = if net.is_ipv6() { address_flags } else { 0 };
    header[4..].copy_from_slice(&link.to_ne_bytes());
    let bytes = address_bytes(&net.ip());
    batch.message(kind, REQUEST | flags, &header).attr(IFA_LOCAL, &bytes).attr(IFA_ADDRESS, &bytes);
}

/// `RTNLGRP_IPV4_IFADDR`.
pub const RTNLGRP_IPV4_IFADDR: u32 = 5;
/// `RTNLGRP_IPV6_IFADDR`.
pub const RTNLGRP_IPV6_IFADDR: u32 = 9;

pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

/// Size of `struct ifaddrmsg`.
const IFADDR: usize = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_TARGET_NETNSID: u16 = 10;

/// `IFA_F_NODAD` in the byte that the header has for flags.
const NODAD: u8 = IFA_F_NODAD.to_le_bytes()[0];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Messages;

    #[test]
    fn an_ipv6_address_skips_duplicate_detection_and_an_ipv4_address_names_its_broadcast() {
        let mut batch = Batch::new();
        add_address(&mut batch, 3, "fc00::2/64".parse().unwrap());
        add_address(&mut batch, 3, "10.1.2.3/24".parse().unwrap());
        let bytes = batch.seal_for_test(1);
        let [six, four] = Messages::new(&bytes).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(six.payload[2], NODAD);
        assert_eq!(Attrs::after(four.payload, IFADDR).find(IFA_BROADCAST), Some(&[10, 1, 2, 255][..]));
    }
}
