//! Writing: a transaction on one table.

use nix::sys::socket::{setsockopt, sockopt};
use subnet_lease::Family;

use super::message::*;
use super::set::*;
use super::{Expr, Reader, Rule};
use crate::netlink::link::{CREATE, EXCLUSIVE, REQUEST};
use crate::netlink::{Batch, NetlinkError, Socket};

/// What is to change in a table, done as a whole or not at all. Making what exists is no error, but for elements.
pub struct Change<'a> {
    table: &'a str,
    batch: Batch,
}

/// A chain that a hook calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain<'a> {
    /// `filter` or `nat`.
    pub kind: &'a str,
    /// `PREROUTING`, `FORWARD`, ….
    pub hook: u32,
    /// When, among the chains of the hook; lower is earlier.
    pub priority: i32,
    /// `NF_ACCEPT` or `NF_DROP`; none leaves the kernel's default, which is to accept.
    pub policy: Option<u32>,
}

impl<'a> Change<'a> {
    /// Nothing yet.
    pub fn of(table: &'a str) -> Self {
        Self { table, batch: Batch::new() }
    }

    /// Begins a message about something in the table, or the table.
    fn begin(&mut self, kind: u16, flags: u16, family: impl Into<TableFamily>) -> &mut Batch {
        message(&mut self.batch, kind, flags, family.into()).attr_str(TABLE, self.table)
    }

    /// Make the table.
    pub fn table(&mut self, family: impl Into<TableFamily>, note: &str) {
        let batch = self.begin(NEWTABLE, CREATE, family);
        if !note.is_empty() {
            comment(batch, TABLE_COMMENT, note);
        }
    }

    /// Delete the table, which must be there, with everything in it.
    pub fn delete_table(&mut self, family: impl Into<TableFamily>) {
        self.begin(DELTABLE, 0, family);
    }

    /// Make a set or map whose elements can expire.
    pub fn set(&mut self, family: Family, set: &Set) {
        // The kernel demands a number for each set of a transaction.
        let id = u32::try_from(self.batch.len()).unwrap_or(u32::MAX);
        let batch = self.begin(NEWSET, CREATE, family).attr_str(SET_NAME, &set.name);
        number(batch, SET_KEY_TYPE, Kind::types(set.key, family));
        number(batch, SET_KEY_LENGTH, Kind::length(set.key, family));
        number(batch, SET_ID, id);
        if !set.value.is_empty() {
            number(batch, SET_VALUE_TYPE, Kind::types(set.value, family));
            number(batch, SET_VALUE_LENGTH, Kind::length(set.value, family));
        }
        number(batch, SET_FLAGS, if set.value.is_empty() { EXPIRES } else { EXPIRES | MAP });
    }

    /// Make a chain that other chains jump to.
    pub fn chain(&mut self, family: impl Into<TableFamily>, name: &str) {
        self.begin(NEWCHAIN, CREATE, family).attr_str(CHAIN_NAME, name);
    }

    /// Make a chain that a hook calls.
    pub fn base_chain(&mut self, family: impl Into<TableFamily>, name: &str, base: BaseChain<'_>) {
        let batch = self.begin(NEWCHAIN, CREATE, family).attr_str(CHAIN_NAME, name);
        let hook = batch.nest(CHAIN_HOOK);
        number(batch, HOOK_NUMBER, base.hook);
        number(batch, HOOK_PRIORITY, base.priority.cast_unsigned());
        batch.end(hook);
        if let Some(policy) = base.policy {
            number(batch, CHAIN_POLICY, policy);
        }
        batch.attr_str(CHAIN_TYPE, base.kind);
    }

    /// Add a rule behind the others of its chain, or before them.
    pub fn rule(&mut self, family: impl Into<TableFamily>, rule: &Rule) {
        let place = if rule.first { 0 } else { APPEND };
        let batch = self.begin(NEWRULE, CREATE | place, family).attr_str(RULE_CHAIN, &rule.chain);
        let list = batch.nest(RULE_EXPRESSIONS);
        rule.exprs.iter().for_each(|expr| expr.write(batch));
        batch.end(list);
        if !rule.note.is_empty() {
            comment(batch, RULE_COMMENT, &rule.note);
        }
    }

    /// Add elements; the whole change fails when one of them exists.
    pub fn add(&mut self, family: Family, set: &str, elements: &[Element]) {
        self.elements(NEWELEMENT, CREATE | EXCLUSIVE, family, set, (elements, Form::Whole));
    }

    /// Let elements end now.
    pub fn expire(&mut self, family: Family, set: &str, elements: &[Element]) {
        self.elements(NEWELEMENT, CREATE, family, set, (elements, Form::Ending));
    }

    /// Delete elements, which must be there.
    pub fn delete(&mut self, family: Family, set: &str, elements: &[Element]) {
        self.elements(DELELEMENT, 0, family, set, (elements, Form::KeyAlone));
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        set: &str,
        (elements, form): (&[Element], Form),
    ) {
        for some in elements.chunks(PER_MESSAGE) {
            let batch = self.begin(kind, flags, family).attr_str(SET_NAME, set);
            let list = batch.nest(ELEMENTS);
            some.iter().for_each(|element| element.write(batch, form));
            batch.end(list);
        }
    }

    /// Delete a rule.
    pub fn delete_rule(&mut self, family: impl Into<TableFamily>, chain: &str, handle: u64) {
        let batch = self.begin(DELRULE, 0, family).attr_str(RULE_CHAIN, chain);
        batch.attr(RULE_HANDLE, &handle.to_be_bytes());
    }

    /// Delete the rules of a chain, which must be there.
    pub fn empty_chain(&mut self, family: impl Into<TableFamily>, chain: &str) {
        self.begin(DELRULE, 0, family).attr_str(RULE_CHAIN, chain);
    }

    /// Delete a chain with the rules in it; nothing may jump to it any more.
    pub fn delete_chain(&mut self, family: impl Into<TableFamily>, chain: &str) {
        let family = family.into();
        self.empty_chain(family, chain);
        self.begin(DELCHAIN, 0, family).attr_str(CHAIN_NAME, chain);
    }

    /// Delete a chain with the rules in it, and the rules of another chain that jump to it, as they are now.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn delete_chain_from(
        &mut self,
        reader: &mut Reader<'_>,
        family: Family,
        chain: &str,
        entry: &str,
    ) -> Result<(), NetlinkError> {
        let jump = Expr::jump(chain);
        reader.rules(family, Some(entry), |rule| {
            if rule.exprs().last().as_ref() == Some(&jump) {
                self.delete_rule(family, entry, rule.handle);
            }
        })?;
        self.delete_chain(family, chain);
        Ok(())
    }

    /// Nothing is to change.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Does it. With a generation it is done only if nothing has changed since that was read, and ERESTART is the answer
    /// otherwise.
    ///
    /// # Errors
    /// The kernel's refusal, and nothing was done; or its answer was lost.
    pub fn commit(self, socket: &mut Socket, generation: Option<u32>) -> Result<(), NetlinkError> {
        self.commit_or_place(socket, generation).map_err(|(_, error)| error)
    }

    /// The same; a refusal comes with the number of the message that was refused, from 1, or 0 for the whole.
    ///
    /// # Errors
    /// The same.
    pub fn commit_or_place(
        mut self,
        socket: &mut Socket,
        generation: Option<u32>,
    ) -> Result<(), (usize, NetlinkError)> {
        if self.is_empty() {
            return Ok(());
        }
        // Sealed before it is closed: the last message that does something asks for the acknowledgement.
        self.batch.seal(0, usize::MAX);
        let bytes = self.batch.bytes().len();
        if bytes > USUAL_ROOM {
            // Without the privilege the kernel refuses a batch this large by itself.
            let _ = setsockopt(socket, sockopt::SndBufForce, &(4 * bytes));
        }
        let mut whole = Batch::new();
        whole.message(BATCH_BEGIN, REQUEST, &BATCH_HEADER);
        if let Some(generation) = generation {
            number(&mut whole, BATCH_GENERATION, generation);
        }
        whole.append(self.batch);
        whole.message(BATCH_END, REQUEST, &BATCH_HEADER);
        socket.transaction(&mut whole)
    }

    #[cfg(test)]
    pub(crate) fn bytes_for_test(self) -> Vec<u8> {
        self.batch.seal_for_test(1)
    }
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Family, version, and the subsystem in network order.
const BATCH_HEADER: [u8; 4] = (SUBSYSTEM as u32).to_be_bytes();
const BATCH_GENERATION: u16 = 1;
/// `NLM_F_APPEND`.
const APPEND: u16 = 0x800;
/// So many elements of any size fit under the 64 KiB that one attribute can hold.
const PER_MESSAGE: usize = 150;
/// What a socket's send buffer holds anyway (bytes): half of the default of 208 KiB, for the kernel counts its own
/// bookkeeping.
const USUAL_ROOM: usize = 96 * 1024;
