//! Our tables in nf_tables: reading one as data, replacing it whole in one transaction, deleting it. What others filter
//! beside them is in `survey.rs`.
//!
//! ```text
//!   RuleTable ──▶ make, delete, make, chains, rules ──▶ one transaction: all or nothing
//!   RuleTable ◀── table, chains, rules ◀── three reads of one generation
//! ```
//!
//! What is not understood is kept as unknown and so equals no wish: a foreign rule, chain or flag is seen, never
//! passed over.

mod foreign;
mod rule;
mod survey;

pub(super) use foreign::{Foreign, outcome, passed};
pub(super) use survey::{Survey, survey};

use nix::errno::Errno;

use crate::netlink::nft::{
    BaseChain, ChainView, Change, FORWARD, NF_ACCEPT, NF_DROP, POSTROUTING, RuleView, TableFamily,
    dump_chains, get_table, rules, table_flags,
};
use crate::netlink::{NetlinkError, RawMessage, Socket};
use crate::rules::{Chain, ChainKind, Hook, Policy, RuleTable};
use crate::state::TableKey;

/// Reads a table; none when it does not exist. A wish that equals it is in force, rule for rule.
///
/// # Errors
/// Refused by the kernel (permission, no nf_tables), or its answer was lost.
pub fn read(socket: &mut Socket, key: TableKey) -> Result<Option<RuleTable>, NetlinkError> {
    let mut attempts = 4;
    loop {
        let mut reader = TableReader::new(key);
        read_once(socket, &mut reader).map_err(explain)?;
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
/// Refused by the kernel, and then nothing has changed; the error names the chain and rule. Or its answer was lost.
pub fn replace(socket: &mut Socket, table: &RuleTable) -> Result<(), NetlinkError> {
    let count: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
    if count > MOST_RULES {
        return Err(explain(NetlinkError::Socket(Errno::EMSGSIZE)));
    }
    let name = table.name();
    let change = replacement(table, &name)?;
    change.commit_or_place(socket, None).map_err(|(message, error)| match message {
        0 => explain(error),
        _ => at(error, &place(table, message)),
    })
}

/// Deletes a table with all that is in it; absent is fine.
///
/// # Errors
/// Refused by the kernel, or its answer was lost.
pub fn delete(socket: &mut Socket, key: TableKey) -> Result<(), NetlinkError> {
    let name = key.names.table(key.family);
    let mut change = Change::of(&name);
    change.delete_table(key.family);
    match change.commit(socket, None).map_err(explain) {
        Err(error) if error.errno() == Errno::ENOENT => Ok(()),
        other => other,
    }
}

fn replacement<'a>(table: &RuleTable, name: &'a str) -> Result<Change<'a>, NetlinkError> {
    let family = table.family;
    let mut change = Change::of(name);
    // Only what exists can be deleted, so it is made first.
    change.table(family, "");
    change.delete_table(family);
    change.table(family, "");
    for chain in &table.chains {
        change.base_chain(family, &chain.name, base(chain)?);
        for rule in &chain.rules {
            change.rule(family, &rule::encode(rule, chain, family)?);
        }
    }
    Ok(change)
}

fn base(chain: &Chain) -> Result<BaseChain<'_>, NetlinkError> {
    let kind = match &chain.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Other(_) => return Err(not_ours("chain", &chain.name)),
    };
    let hook = match chain.hook {
        Hook::Forward => FORWARD,
        Hook::Postrouting => POSTROUTING,
        Hook::Other(_) => return Err(not_ours("chain", &chain.name)),
    };
    let policy = if chain.policy == Policy::Drop { NF_DROP } else { NF_ACCEPT };
    Ok(BaseChain { kind, hook, priority: chain.priority, policy: Some(policy) })
}

fn read_once(socket: &mut Socket, reader: &mut TableReader) -> Result<(), NetlinkError> {
    let (family, name) = (reader.key.family, reader.name.clone());
    match socket.get(&mut get_table(family, &name), |message| reader.take(&message)) {
        Ok(Some(())) => {}
        Ok(None) => return Ok(()),
        Err(error) if error.errno() == Errno::ENOENT => return Ok(()),
        Err(error) => return Err(error),
    }
    let chains = socket.dump(&mut dump_chains(family), |message| {
        reader.take(&message);
    })?;
    let rules = rules(socket, family, &name, None, |message, _| {
        reader.take(message);
    })?;
    reader.changed |= chains.interrupted || rules.interrupted;
    Ok(())
}

/// Our table, message by message: the table, its chains, their rules. Messages about other tables are ignored.
#[derive(Debug)]
pub struct TableReader {
    key: TableKey,
    name: String,
    flags: Option<u32>,
    chains: Vec<Chain>,
    /// Each answer carries the low half of its generation: whether not all showed the ruleset in the same state.
    generation: Option<[u8; 2]>,
    changed: bool,
}

impl TableReader {
    /// Nothing read so far.
    pub fn new(key: TableKey) -> Self {
        let name = key.names.table(key.family);
        Self { key, name, flags: None, chains: Vec::new(), generation: None, changed: false }
    }

    /// Reads one message; none if it says nothing about our table.
    pub fn take(&mut self, message: &RawMessage<'_>) -> Option<()> {
        let (family, name) = (TableFamily::from(self.key.family), self.name.as_str());
        if let Some(now) = message.payload.get(2..4).and_then(|b| <[u8; 2]>::try_from(b).ok()) {
            self.changed |= *self.generation.get_or_insert(now) != now;
        }
        if let Some(flags) = table_flags(message) {
            self.flags = Some(flags);
        } else if let Some(view) = ChainView::parse(message) {
            if view.family != family || view.table != name {
                return None;
            }
            self.chains.push(chain(&view));
        } else {
            let view = RuleView::parse(message).filter(|view| view.family == family && view.table == name)?;
            let chain = self.chains.iter_mut().find(|chain| chain.name == view.chain)?;
            chain.rules.push(rule::decode(&view, self.key.family));
        }
        Some(())
    }

    /// The table, if there is one.
    pub fn finish(mut self) -> Option<RuleTable> {
        self.chains.sort_by(|a, b| a.name.cmp(&b.name));
        let TableKey { family, names } = self.key;
        Some(RuleTable { family, names, flags: self.flags?, chains: self.chains })
    }
}

/// A chain of the kernel, without its rules.
fn chain(view: &ChainView<'_>) -> Chain {
    Chain {
        name: view.name.to_owned(),
        kind: match view.kind {
            "filter" if view.flags == 0 => ChainKind::Filter,
            "nat" if view.flags == 0 => ChainKind::Nat,
            other => ChainKind::Other(other.to_owned()),
        },
        hook: match view.hook.map(|(number, _)| number) {
            Some(FORWARD) => Hook::Forward,
            Some(POSTROUTING) => Hook::Postrouting,
            other => Hook::Other(other),
        },
        priority: view.hook.map_or(0, |(_, priority)| priority),
        policy: if view.drops { Policy::Drop } else { Policy::Accept },
        rules: Vec::new(),
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
        // The kernel knows the protocol and has no nf_tables: it answers invalid, or in a batch not supported.
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

fn not_ours(what: &str, name: &str) -> NetlinkError {
    NetlinkError::Refused {
        errno: Errno::EINVAL,
        text: Some(format!("{what} {name} is of a kind that is never ours")),
    }
}

/// Rules of one table. Ours: some megabytes of messages, and each packet to the outside passes all of them.
const MOST_RULES: usize = 10_000;

#[cfg(test)]
mod tests;
