//! Writing: a transaction.

use backends::netlink::{Batch, NetlinkError, Socket};
use nix::sys::socket::{setsockopt, sockopt};
use subnet_lease::Family;

use super::encode::{TableFamily, attr, comment, fixed, nest, number, text};
use super::read::{Element, Reader};
use super::*;

/// A set or map to make: its key and value as types of nft (for people) and their lengths in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) key: &'static [Kind],
    /// None for a set.
    pub(crate) value: &'static [Kind],
}

/// Part of a key or of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Protocol,
    Port,
    Address,
}

/// What is to change in a table, done as a whole or not at all.
pub(crate) struct Change {
    table: &'static str,
    messages: Vec<(u16, u16, Vec<u8>, TableFamily)>,
}

impl Change {
    pub(crate) fn of(table: &'static str) -> Self {
        Self { table, messages: Vec::new() }
    }

    fn push(&mut self, kind: u16, flags: u16, family: impl Into<TableFamily>, parts: &[Vec<u8>]) {
        self.messages.push((kind, flags, parts.concat(), family.into()));
    }

    /// Make the table; there already is fine, and so it is with all that is made here but elements.
    pub(crate) fn table(&mut self, family: impl Into<TableFamily>, note: &str) {
        let mut parts = vec![text(1, self.table)];
        if !note.is_empty() {
            parts.push(comment(TABLE_COMMENT, note));
        }
        self.push(NEWTABLE, CREATE, family, &parts);
    }

    /// Make a set or map whose elements can expire.
    pub(crate) fn set(&mut self, family: Family, set: &Set) {
        let mut flags = SET_TIMEOUT;
        let mut parts = vec![
            text(1, self.table),
            text(2, &set.name),
            number(4, kinds(set.key, family)),
            number(5, length(set.key, family)),
            // The kernel demands one for each set of a transaction.
            number(10, u32::try_from(self.messages.len()).unwrap_or(u32::MAX)),
        ];
        if !set.value.is_empty() {
            flags |= SET_MAP;
            parts.push(number(6, kinds(set.value, family)));
            parts.push(number(7, length(set.value, family)));
        }
        parts.push(number(3, flags));
        self.push(NEWSET, CREATE, family, &parts);
    }

    /// Make a chain that other chains jump to.
    pub(crate) fn chain(&mut self, family: impl Into<TableFamily>, name: &str) {
        self.push(NEWCHAIN, CREATE, family, &[text(1, self.table), text(3, name)]);
    }

    /// Make a chain of a type (`nat`, `filter`) that a hook calls.
    pub(crate) fn base_chain(
        &mut self,
        family: impl Into<TableFamily>,
        name: &str,
        kind: &str,
        (hook, priority): (u32, i32),
    ) {
        let at = nest(4, &[number(1, hook), number(2, priority.cast_unsigned())]);
        self.push(NEWCHAIN, CREATE, family, &[text(1, self.table), text(3, name), at, text(7, kind)]);
    }

    /// Add a rule behind the others of its chain, or before them.
    pub(crate) fn rule(&mut self, family: impl Into<TableFamily>, rule: &Rule) {
        let exprs: Vec<_> = rule.exprs.iter().map(|e| e.0.clone()).collect();
        let mut parts = vec![
            text(rule::TABLE, self.table),
            text(rule::CHAIN, &rule.chain),
            nest(rule::EXPRESSIONS, &exprs),
        ];
        if !rule.note.is_empty() {
            parts.push(comment(rule::COMMENT, &rule.note));
        }
        let place = if rule.first { 0 } else { APPEND };
        self.push(NEWRULE, CREATE | place, family, &parts);
    }

    /// Add elements; one that is there, whoever's it is, fails the whole.
    pub(crate) fn add(&mut self, family: Family, set: &str, elements: &[Element]) {
        self.elements(NEWELEMENT, CREATE | EXCLUSIVE, family, set, elements, Element::whole);
    }

    /// Let elements end now.
    pub(crate) fn expire(&mut self, family: Family, set: &str, elements: &[Element]) {
        self.elements(NEWELEMENT, CREATE, family, set, elements, Element::ending);
    }

    /// Delete elements, which must be there.
    pub(crate) fn delete(&mut self, family: Family, set: &str, elements: &[Element]) {
        self.elements(DELELEMENT, 0, family, set, elements, Element::key_alone);
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        set: &str,
        elements: &[Element],
        form: fn(&Element) -> Vec<u8>,
    ) {
        for some in elements.chunks(PER_MESSAGE) {
            let list: Vec<_> = some.iter().map(form).collect();
            let parts = [
                text(element::LIST_TABLE, self.table),
                text(element::LIST_SET, set),
                nest(element::LIST_ELEMENTS, &list),
            ];
            self.push(kind, flags, family, &parts);
        }
    }

    /// Delete a rule of this table.
    pub(crate) fn delete_rule(&mut self, family: impl Into<TableFamily>, chain: &str, handle: u64) {
        let handle = attr(rule::HANDLE, &handle.to_be_bytes());
        self.push(DELRULE, 0, family, &[text(rule::TABLE, self.table), text(rule::CHAIN, chain), handle]);
    }

    /// Delete the rules of a chain, which must be there.
    pub(crate) fn empty_chain(&mut self, family: impl Into<TableFamily>, chain: &str) {
        self.push(DELRULE, 0, family, &[text(rule::TABLE, self.table), text(rule::CHAIN, chain)]);
    }

    /// Delete a chain with the rules in it; nothing may jump to it any more.
    pub(crate) fn delete_chain(&mut self, family: impl Into<TableFamily>, chain: &str) {
        let family = family.into();
        self.empty_chain(family, chain);
        self.push(DELCHAIN, 0, family, &[text(1, self.table), text(3, chain)]);
    }

    /// Delete a chain with the rules in it, and those of another chain that jump to it, as they are now.
    pub(crate) fn delete_chain_from(
        &mut self,
        reader: &mut Reader<'_>,
        family: Family,
        chain: &str,
        entry: &str,
    ) -> Result<(), NetlinkError> {
        let rules = reader.rules(family, Some(entry))?;
        for rule in rules.iter().filter(|rule| rule.jumps_to(chain)) {
            self.delete_rule(family, entry, rule.handle);
        }
        self.delete_chain(family, chain);
        Ok(())
    }

    /// Does it. With a generation it is done only if nothing has changed since that was read; ERESTART else.
    ///
    /// # Errors
    /// The kernel's refusal, and nothing was done; or its answer was lost.
    pub(crate) fn commit(self, socket: &mut Socket, generation: Option<u32>) -> Result<(), NetlinkError> {
        let Some(last) = self.messages.len().checked_sub(1) else { return Ok(()) };
        let bytes: usize = self.messages.iter().map(|m| m.2.len()).sum();
        if bytes > USUAL_ROOM {
            // Without the privilege the kernel refuses a batch this large with a sentence of its own.
            let _ = setsockopt(socket, sockopt::SndBufForce, &(4 * bytes));
        }
        let mut batch = Batch::new();
        batch.message(BATCH_BEGIN, REQUEST, &BATCH_HEADER);
        if let Some(generation) = generation {
            batch.attr(BATCH_GENERATION, &generation.to_be_bytes());
        }
        for (n, (kind, flags, parts, family)) in self.messages.iter().enumerate() {
            let flags = flags | REQUEST | if n == last { ACK } else { 0 };
            batch.message(*kind, flags, &fixed(*family)).raw(parts);
        }
        batch.message(BATCH_END, REQUEST, &BATCH_HEADER);
        socket.transaction(&mut batch).map_err(|(_, error)| error)
    }
}

/// The types of a key's parts as nft numbers them, six bits each.
fn kinds(parts: &[Kind], family: Family) -> u32 {
    let number = |kind: &Kind| match (kind, family) {
        (Kind::Protocol, _) => 12,
        (Kind::Port, _) => 13,
        (Kind::Address, Family::V4) => 7,
        (Kind::Address, Family::V6) => 8,
    };
    parts.iter().fold(0, |all, kind| all << 6 | number(kind))
}

fn length(parts: &[Kind], family: Family) -> u32 {
    let bytes = |kind: &Kind| if *kind == Kind::Address { u32::from(family.bits() / 8) } else { 4 };
    parts.iter().map(bytes).sum()
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Family, version, and the subsystem in network order.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, 10];
const BATCH_GENERATION: u16 = 1;

const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const TABLE_COMMENT: u16 = 6;

/// So many elements of any size fit under the 64 KiB that one attribute can hold.
const PER_MESSAGE: usize = 150;
/// What a socket's send buffer holds anyway (bytes): half of the default of 208 KiB, for the kernel counts its own
/// bookkeeping.
const USUAL_ROOM: usize = 96 * 1024;
