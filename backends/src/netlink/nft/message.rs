//! What all messages of nf_tables share: headers, attributes, numbers.

use subnet_lease::Family;

use crate::netlink::link::{DUMP, REQUEST};
use crate::netlink::{AF_INET, AF_INET6, AF_UNSPEC, Attrs, Batch, RawMessage};
use crate::rules::table_name;

/// The kernel takes what lies between these two as one transaction.
pub(super) fn begin(batch: &mut Batch) {
    batch.message(BATCH_BEGIN, REQUEST, &[AF_UNSPEC, 0, 0, SUBSYSTEM]);
}

pub(super) fn end(batch: &mut Batch) {
    batch.message(BATCH_END, REQUEST, &[AF_UNSPEC, 0, 0, SUBSYSTEM]);
}

pub(super) fn table_message(batch: &mut Batch, kind: u16, flags: u16, family: Family) {
    header(batch, kind, flags, family).attr_str(TABLE_NAME, table_name(family));
}

pub(super) fn header(batch: &mut Batch, kind: u16, flags: u16, family: Family) -> &mut Batch {
    let family = if family == Family::V4 { AF_INET } else { AF_INET6 };
    batch.message((u16::from(SUBSYSTEM) << 8) | kind, REQUEST | flags, &[family, 0, 0, 0])
}

/// Asks for everything of a kind, in all families with `AF_UNSPEC`.
pub(super) fn begin_dump(kind: u16, proto: u8) -> Batch {
    let mut batch = Batch::new();
    batch.message((u16::from(SUBSYSTEM) << 8) | kind, REQUEST | DUMP, &[proto, 0, 0, 0]);
    batch
}

/// The attributes of an answer of this kind.
pub(super) fn attributes<'a>(message: &RawMessage<'a>, kind: u16) -> Option<Attrs<'a>> {
    let fits = message.kind == (u16::from(SUBSYSTEM) << 8) | kind;
    fits.then(|| Attrs::after(message.payload, NFGENMSG))
}

pub(super) fn text<'a>(attrs: &Attrs<'a>, kind: u16) -> Option<&'a str> {
    let bytes = attrs.clone().find(kind)?;
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

/// Numbers of nf_tables are big-endian.
pub(super) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Size of `struct nfgenmsg`: family, version, low half of the generation.
const NFGENMSG: usize = 4;

pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

pub(super) const NEWTABLE: u16 = 0;
pub(super) const GETTABLE: u16 = 1;
pub(super) const DELTABLE: u16 = 2;
pub(super) const NEWCHAIN: u16 = 3;
pub(super) const GETCHAIN: u16 = 4;
pub(super) const NEWRULE: u16 = 6;
pub(super) const GETRULE: u16 = 7;

const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
