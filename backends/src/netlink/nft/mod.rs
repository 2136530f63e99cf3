//! Our tables in nf_tables: reading one as data, replacing it whole in one transaction, deleting it.
//!
//! ```text
//!   RuleTable ──▶ begin, add, delete, add, chains, rules, end ──▶ one batch: all or nothing
//!   RuleTable ◀── table, chains, rules ◀── three reads of one generation
//! ```
//!
//! What is not understood is kept as unknown and so equals no wish: a foreign rule, chain or flag is seen, never
//! passed over.

mod chain;
mod expr;
mod foreign;
mod message;

#[cfg(feature = "kernel")]
pub(crate) use expr::Foreign;
pub use foreign::{Survey, survey};
#[cfg(feature = "kernel")]
pub(crate) use foreign::{outcome, passed};

use nix::errno::Errno;
use subnet_lease::Family;

use self::message::{
    CREATE, DELTABLE, GETCHAIN, GETTABLE, NEWTABLE, TABLE_FLAGS, attributes, be32, begin, end, header,
    table_message,
};
use super::link::DUMP;
use super::{Batch, NetlinkError, RawMessage, Socket};
use crate::rules::{Chain, RuleTable};

/// Reads the table of a family; none when it does not exist. A wish that equals it is in force, rule for rule.
///
/// # Errors
/// Refused by the kernel (permission, no nf_tables), or its answer was lost.
pub fn read(socket: &mut Socket, family: Family) -> Result<Option<RuleTable>, NetlinkError> {
    let mut attempts = 4;
    loop {
        let mut reader = TableReader::new(family);
        read_once(socket, family, &mut reader).map_err(explain)?;
        attempts -= 1;
        // A mixture of two generations costs one needless replacement at worst, and the change between them is a
        // notification that makes everything look again.
        if !reader.changed || attempts == 0 {
            return Ok(reader.finish());
        }
    }
}

/// Makes the table exactly this, in one transaction: packets see the old rules or the new ones, never neither.
///
/// # Errors
/// Refused by the kernel, and then nothing has changed; its words name the chain and rule. Or its answer was lost.
pub fn replace(socket: &mut Socket, table: &RuleTable) -> Result<(), NetlinkError> {
    let family = table.family;
    let mut batch = Batch::new();
    begin(&mut batch);
    // Only what exists can be deleted, so it is added first.
    table_message(&mut batch, NEWTABLE, CREATE, family);
    table_message(&mut batch, DELTABLE, 0, family);
    table_message(&mut batch, NEWTABLE, CREATE, family);
    for chain in &table.chains {
        chain::write_chain(&mut batch, chain, family)?;
        chain.rules.iter().try_for_each(|rule| chain::write_rule(&mut batch, rule, &chain.name, family))?;
    }
    commit(socket, batch).map_err(|(message, error)| match message {
        0 => explain(error),
        _ => at(error, &place(table, message)),
    })
}

/// Deletes the table of a family with all that is in it; absent is fine.
///
/// # Errors
/// Refused by the kernel, or its answer was lost.
pub fn delete(socket: &mut Socket, family: Family) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    begin(&mut batch);
    table_message(&mut batch, DELTABLE, 0, family);
    match commit(socket, batch).map_err(|(_, error)| explain(error)) {
        Err(error) if error.errno() == Errno::ENOENT => Ok(()),
        other => other,
    }
}

/// Closes the batch and sends it: all of it happens, or nothing.
fn commit(socket: &mut Socket, mut batch: Batch) -> Result<(), (usize, NetlinkError)> {
    // Sealed before it is closed, so that the last message that does something asks for an acknowledgement.
    batch.seal(0, usize::MAX);
    end(&mut batch);
    socket.transaction(&mut batch)
}

fn read_once(socket: &mut Socket, family: Family, reader: &mut TableReader) -> Result<(), NetlinkError> {
    let mut request = Batch::new();
    table_message(&mut request, GETTABLE, 0, family);
    match socket.get(&mut request, |message| reader.take(&message)) {
        Ok(Some(())) => {}
        Ok(None) => return Ok(()),
        Err(error) if error.errno() == Errno::ENOENT => return Ok(()),
        Err(error) => return Err(error),
    }
    // The kernel filters chains by family only.
    let mut chains = Batch::new();
    header(&mut chains, GETCHAIN, DUMP, family);
    for mut request in [chains, chain::dump_rules(family)] {
        let dump = socket.dump(&mut request, |message| {
            reader.take(&message);
        })?;
        reader.changed |= dump.interrupted;
    }
    Ok(())
}

/// Our table, message by message: the table, its chains, their rules. What is of other tables is passed over.
#[derive(Debug)]
pub struct TableReader {
    family: Family,
    flags: Option<u32>,
    chains: Vec<Chain>,
    /// Each answer carries the low half of its generation: whether not all showed the ruleset in the same state.
    generation: Option<[u8; 2]>,
    changed: bool,
}

impl TableReader {
    /// Nothing read so far.
    pub fn new(family: Family) -> Self {
        Self { family, flags: None, chains: Vec::new(), generation: None, changed: false }
    }

    /// One message; none if it tells nothing of our table.
    pub fn take(&mut self, message: &RawMessage<'_>) -> Option<()> {
        if let Some(now) = message.payload.get(2..4).and_then(|b| <[u8; 2]>::try_from(b).ok()) {
            self.changed |= *self.generation.get_or_insert(now) != now;
        }
        if let Some(attrs) = attributes(message, NEWTABLE) {
            self.flags = Some(attrs.find(TABLE_FLAGS).and_then(be32).unwrap_or(0));
        } else if let Some(chain) = chain::read_chain(message, self.family) {
            self.chains.push(chain);
        } else {
            let (name, rule) = chain::read_rule(message, self.family)?;
            self.chains.iter_mut().find(|c| c.name == name)?.rules.push(rule);
        }
        Some(())
    }

    /// The table, if there is one.
    pub fn finish(mut self) -> Option<RuleTable> {
        self.chains.sort_by(|a, b| a.name.cmp(&b.name));
        Some(RuleTable { family: self.family, flags: self.flags?, chains: self.chains })
    }
}

/// Which part of the table a message of [`replace`] was about.
fn place(table: &RuleTable, message: usize) -> String {
    let mut first = 4;
    for chain in &table.chains {
        match message.checked_sub(first) {
            Some(0) => return format!("chain {}", chain.name),
            Some(n) if n <= chain.rules.len() => {
                return format!("chain {}, rule {n}: {}", chain.name, chain.rules[n - 1]);
            }
            _ => first += 1 + chain.rules.len(),
        }
    }
    format!("table {}", table.name())
}

fn at(error: NetlinkError, place: &str) -> NetlinkError {
    let NetlinkError::Refused { errno, text } = error else { return error };
    let words = match (text, errno) {
        (Some(words), _) => format!(": {words}"),
        // A chain type or an expression that no module provides.
        (None, Errno::ENOENT) => ": the kernel lacks what this needs".to_owned(),
        (None, _) => String::new(),
    };
    NetlinkError::Refused { errno, text: Some(format!("{place}{words}")) }
}

/// Errors that are about no part of the table, in words.
fn explain(error: NetlinkError) -> NetlinkError {
    let (errno, words) = match error {
        // Such a kernel knows the protocol and finds nobody behind it: invalid, or in a batch not supported.
        NetlinkError::Refused { errno: errno @ (Errno::EINVAL | Errno::EOPNOTSUPP), text: None } => {
            (errno, "this kernel has no nf_tables")
        }
        NetlinkError::Refused { errno: Errno::EPERM, text: None } => {
            (Errno::EPERM, "this needs CAP_NET_ADMIN")
        }
        NetlinkError::Socket(Errno::EMSGSIZE) => {
            (Errno::EMSGSIZE, "more rules than fit into one transaction: name fewer networks")
        }
        other => return other,
    };
    NetlinkError::Refused { errno, text: Some(words.to_owned()) }
}

#[cfg(test)]
mod tests;
