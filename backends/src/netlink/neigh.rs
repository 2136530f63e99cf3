//! Neighbour and FDB entries: requests to write and to dump them, and the contents of the answers.

use std::net::IpAddr;

use super::link::{DUMP, PUT, REQUEST};
use super::{
    AF_BRIDGE, Attrs, Batch, Mac, RawMessage, Unread, address_bytes, address_from, family_of, read_u16,
    read_u32,
};

/// A neighbour or FDB entry as the kernel reports it.
#[derive(Debug, Clone, Copy)]
pub struct NeighView {
    /// `AF_INET`, `AF_INET6` or `AF_BRIDGE`.
    pub family: u8,
    /// Interface index.
    pub link: u32,
    /// `NUD_…`.
    pub state: u16,
    /// `NTF_…`.
    pub flags: u8,
    /// The neighbour's address, or the FDB entry's destination.
    pub dst: Option<IpAddr>,
    /// The Ethernet address.
    pub mac: Option<Mac>,
    /// An FDB entry over another port, VNI or link than its device's, or to a next hop object.
    pub diverted: bool,
    /// An FDB entry that a bridge has of one of its ports.
    pub of_port: bool,
}

impl NeighView {
    /// Reads an `RTM_NEWNEIGH` or `RTM_DELNEIGH`.
    pub fn parse(message: &RawMessage<'_>) -> Result<Self, Unread> {
        if !matches!(message.kind, RTM_NEWNEIGH | RTM_DELNEIGH) {
            return Err(Unread::Other);
        }
        Self::read(message.payload).ok_or(Unread::Broken)
    }

    fn read(payload: &[u8]) -> Option<Self> {
        if payload.len() < NDM {
            return None;
        }
        let (mut dst, mut mac, mut diverted, mut of_port) = (None, None, false, false);
        for (kind, bytes) in Attrs::after(payload, NDM) {
            match kind {
                NDA_DST => dst = address_from(bytes),
                NDA_LLADDR => mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
                NDA_PORT | NDA_VNI | NDA_IFINDEX | NDA_SRC_VNI | NDA_NH_ID => diverted = true,
                NDA_MASTER => of_port = true,
                _ => {}
            }
        }
        Some(Self {
            family: payload[0],
            link: read_u32(&payload[4..])?,
            state: read_u16(&payload[8..])?,
            flags: payload[10],
            dst,
            mac,
            diverted,
            of_port,
        })
    }
}

/// Asks for the entries of one family on one link: `AF_INET`, `AF_INET6`, or `AF_BRIDGE` for the FDB.
pub fn dump_neighbours(family: u8, link: u32) -> Batch {
    Batch::of(|batch| match family {
        // The FDB dump filters by the index in the header, the neighbour dump by attribute (strict checking refuses
        // the other way round).
        AF_BRIDGE => batch.message(RTM_GETNEIGH, REQUEST | DUMP, &header(family, link, 0, 0)),
        _ => {
            let batch = batch.message(RTM_GETNEIGH, REQUEST | DUMP, &header(family, 0, 0, 0));
            batch.attr_u32(NDA_IFINDEX, link)
        }
    })
}

/// Adds to the batch: create or replace a permanent neighbour.
pub fn put_neighbour(batch: &mut Batch, link: u32, address: IpAddr, mac: Mac) {
    batch
        .message(RTM_NEWNEIGH, REQUEST | PUT, &header(family_of(&address), link, NUD_PERMANENT, 0))
        .attr(NDA_DST, &address_bytes(&address))
        .attr(NDA_LLADDR, &mac.0);
}

/// Adds to the batch: delete a neighbour.
pub fn delete_neighbour(batch: &mut Batch, link: u32, address: IpAddr) {
    batch
        .message(RTM_DELNEIGH, REQUEST, &header(family_of(&address), link, 0, 0))
        .attr(NDA_DST, &address_bytes(&address));
}

/// Adds to the batch: create or replace a permanent FDB entry of a vxlan device. Needs the "own" flag (law 9).
pub fn put_fdb(batch: &mut Batch, link: u32, mac: Mac, dst: IpAddr) {
    batch
        .message(RTM_NEWNEIGH, REQUEST | PUT, &header(AF_BRIDGE, link, NUD_PERMANENT | NUD_NOARP, NTF_SELF))
        .attr(NDA_LLADDR, &mac.0)
        .attr(NDA_DST, &address_bytes(&dst));
}

/// Adds to the batch: delete an FDB entry of a vxlan device, or with no destination all there is of that address.
pub fn delete_fdb(batch: &mut Batch, link: u32, mac: Mac, dst: Option<IpAddr>) {
    batch.message(RTM_DELNEIGH, REQUEST, &header(AF_BRIDGE, link, 0, NTF_SELF)).attr(NDA_LLADDR, &mac.0);
    if let Some(dst) = dst {
        batch.attr(NDA_DST, &address_bytes(&dst));
    }
}

fn header(family: u8, link: u32, state: u16, flags: u8) -> [u8; NDM] {
    let mut header = [0; NDM];
    header[0] = family;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// Size of `struct ndmsg`.
const NDM: usize = 12;

pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
const NDA_MASTER: u16 = 9;
const NDA_SRC_VNI: u16 = 11;
const NDA_NH_ID: u16 = 13;

/// `NUD_PERMANENT`.
pub const NUD_PERMANENT: u16 = 0x80;
/// `NUD_NOARP`.
pub const NUD_NOARP: u16 = 0x40;
/// `NTF_SELF`: the entry belongs to the device itself, not to its bridge.
pub const NTF_SELF: u8 = 2;
