//! Sets, maps and their elements.

use subnet_lease::Family;

use super::message::{DATA_VALUE, LIST_ELEMENT, comment, comment_text, value};
use crate::netlink::{Attrs, Batch};

/// A set or map to make: its key and value as types of `nft` (for people) and their lengths in bytes.
#[derive(Debug, Clone)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The parts of a key.
    pub key: &'static [Kind],
    /// The parts of a value; none for a set.
    pub value: &'static [Kind],
}

/// Part of a key or of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Number of a transport protocol.
    Protocol,
    /// Port.
    Port,
    /// Address of the table's family.
    Address,
}

impl Kind {
    /// The types of these parts as `nft` numbers them, six bits each.
    pub(super) fn types(parts: &[Self], family: Family) -> u32 {
        let number = |kind: &Self| match (kind, family) {
            (Self::Protocol, _) => 12,
            (Self::Port, _) => 13,
            (Self::Address, Family::V4) => 7,
            (Self::Address, Family::V6) => 8,
        };
        parts.iter().fold(0, |all, kind| all << 6 | number(kind))
    }

    /// Their length together, in bytes.
    pub(super) fn length(parts: &[Self], family: Family) -> u32 {
        let bytes = |kind: &Self| if *kind == Self::Address { u32::from(family.bits() / 8) } else { 4 };
        parts.iter().map(bytes).sum()
    }
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its key.
    pub key: Vec<u8>,
    /// Empty in a set.
    pub value: Vec<u8>,
    /// Its comment.
    pub owner: String,
    /// The kernel ends it by itself, with its next tick.
    pub ends: bool,
}

/// Which parts of an element a message contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Whole,
    /// The element as it is, with the end of its life at this moment.
    Ending,
    KeyAlone,
}

impl Element {
    pub(super) fn write(&self, batch: &mut Batch, form: Form) {
        let element = batch.nest(LIST_ELEMENT);
        value(batch, KEY, &self.key);
        if !self.value.is_empty() && form != Form::KeyAlone {
            value(batch, DATA, &self.value);
        }
        match form {
            Form::Whole => comment(batch, COMMENT, &self.owner),
            // Milliseconds.
            Form::Ending => {
                batch.attr(TIMEOUT, &1u64.to_be_bytes()).attr(EXPIRATION, &0u64.to_be_bytes());
            }
            Form::KeyAlone => {}
        }
        batch.end(element);
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let attrs = Attrs::new(bytes);
        let value = |kind| Attrs::new(attrs.clone().find(kind)?).find(DATA_VALUE).map(<[u8]>::to_vec);
        let owner = attrs.clone().find(COMMENT).and_then(comment_text).unwrap_or_default();
        Some(Self {
            key: value(KEY)?,
            value: value(DATA).unwrap_or_default(),
            owner: owner.to_owned(),
            ends: attrs.clone().find(EXPIRATION).is_some(),
        })
    }
}

/// `NFTA_SET_NAME` and `NFTA_SET_ELEM_LIST_SET`.
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LENGTH: u16 = 5;
pub(super) const SET_VALUE_TYPE: u16 = 6;
pub(super) const SET_VALUE_LENGTH: u16 = 7;
pub(super) const SET_ID: u16 = 10;
/// `NFT_SET_MAP`.
pub(super) const MAP: u32 = 8;
/// `NFT_SET_TIMEOUT`.
pub(super) const EXPIRES: u32 = 0x10;
pub(super) const ELEMENTS: u16 = 3;

const KEY: u16 = 1;
const DATA: u16 = 2;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const COMMENT: u16 = 6;
