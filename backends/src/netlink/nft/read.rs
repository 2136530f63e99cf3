//! Reading: the contents of messages about tables, chains and rules, and the questions that they answer.

use nix::errno::Errno;
use subnet_lease::Family;

use super::message::*;
use super::set::{ELEMENTS, Element, SET_NAME};
use super::{Expr, Rule, Verdict};
use crate::netlink::link::DUMP;
use crate::netlink::{Attrs, Batch, Dump, NetlinkError, RawMessage, Socket};

/// A chain of the kernel, or one that came or went.
#[derive(Debug, Clone, Copy)]
pub struct ChainView<'a> {
    /// Of its table.
    pub family: TableFamily,
    /// Its table.
    pub table: &'a str,
    /// Its name.
    pub name: &'a str,
    /// `filter`, `nat`, …; empty when no hook calls it.
    pub kind: &'a str,
    /// The number of the hook that calls it, and its priority there.
    pub hook: Option<(u32, i32)>,
    /// It drops what no rule decides.
    pub drops: bool,
    /// `NFT_CHAIN_…`, but for that a hook calls it.
    pub flags: u32,
}

impl<'a> ChainView<'a> {
    /// Reads a chain that is, came or went.
    pub fn parse(message: &RawMessage<'a>) -> Option<Self> {
        let attrs = attributes(message, &[NEWCHAIN, DELCHAIN])?;
        let find = |kind| attrs.clone().find(kind);
        let hook = find(CHAIN_HOOK).map(Attrs::new);
        let of_hook = |kind| hook.clone()?.find(kind).and_then(be32);
        Some(Self {
            family: TableFamily(*message.payload.first()?),
            table: find(TABLE).and_then(text)?,
            name: find(CHAIN_NAME).and_then(text)?,
            kind: find(CHAIN_TYPE).and_then(text).unwrap_or_default(),
            hook: of_hook(HOOK_NUMBER)
                .map(|number| (number, of_hook(HOOK_PRIORITY).unwrap_or(0).cast_signed())),
            drops: find(CHAIN_POLICY).and_then(be32) == Some(NF_DROP),
            flags: find(CHAIN_FLAGS).and_then(be32).unwrap_or(0) & !CHAIN_BASE,
        })
    }
}

/// A rule of the kernel, or one that came or went.
#[derive(Debug, Clone, Copy)]
pub struct RuleView<'a> {
    /// Of its table.
    pub family: TableFamily,
    /// Its table.
    pub table: &'a str,
    /// Its chain.
    pub chain: &'a str,
    /// Its number in the table.
    pub handle: u64,
    /// Its comment.
    pub note: &'a str,
    list: &'a [u8],
}

impl<'a> RuleView<'a> {
    /// Reads a rule that is, came or went.
    pub fn parse(message: &RawMessage<'a>) -> Option<Self> {
        let attrs = attributes(message, &[NEWRULE, DELRULE])?;
        let find = |kind| attrs.clone().find(kind);
        Some(Self {
            family: TableFamily(*message.payload.first()?),
            table: find(TABLE).and_then(text)?,
            chain: find(RULE_CHAIN).and_then(text)?,
            handle: find(RULE_HANDLE).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes),
            note: find(RULE_COMMENT).and_then(comment_text).unwrap_or_default(),
            list: find(RULE_EXPRESSIONS).unwrap_or_default(),
        })
    }

    /// Its expressions.
    pub fn exprs(&self) -> impl Iterator<Item = Expr> + 'a {
        Attrs::new(self.list).map(|(kind, element)| match kind {
            LIST_ELEMENT => Expr::read(element),
            _ => Expr::Other("?".to_owned()),
        })
    }

    /// The bytes of its expressions, by their names.
    pub fn raw_exprs(&self) -> impl Iterator<Item = &'a [u8]> {
        Attrs::new(self.list).map(|(_, element)| element)
    }

    /// Whether it is in the same chain and does the same.
    pub fn is(&self, rule: &Rule) -> bool {
        let mut theirs = self.exprs();
        let mut same = |ours: &Expr| theirs.next().as_ref() == Some(ours);
        self.chain == rule.chain && rule.exprs.iter().all(&mut same) && theirs.next().is_none()
    }

    /// Its comment, be it of `nft` or of iptables, where it is a match among its expressions.
    pub fn comment(&self) -> String {
        let of_match = self.exprs().find_map(|expr| match expr {
            Expr::Match { name, info } if name == "comment" => {
                let end = info.iter().position(|byte| *byte == 0)?;
                std::str::from_utf8(&info[..end]).ok().map(str::to_owned)
            }
            _ => None,
        });
        of_match.unwrap_or_else(|| self.note.to_owned())
    }

    /// The chain that its last expression leads to.
    pub fn target(&self) -> Option<String> {
        match self.exprs().last()? {
            Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain),
            _ => None,
        }
    }
}

/// The table that a message is about.
pub fn table_of<'a>(message: &RawMessage<'a>) -> Option<&'a str> {
    let attrs = (message.kind >> 8 == SUBSYSTEM).then(|| Attrs::after(message.payload, NFGENMSG))?;
    attrs.find(TABLE).and_then(text)
}

/// Whether a message reports that a table is gone.
pub fn is_deleted_table(message: &RawMessage<'_>) -> bool {
    attributes(message, &[DELTABLE]).is_some()
}

/// The flags of the table that a message describes (1 is *dormant*).
pub fn table_flags(message: &RawMessage<'_>) -> Option<u32> {
    Some(attributes(message, &[NEWTABLE])?.find(TABLE_FLAGS).and_then(be32).unwrap_or(0))
}

/// Whether a message ends a transaction, and the name of the program that made it, as the kernel keeps it.
pub fn generation_program<'a>(message: &RawMessage<'a>) -> Option<&'a [u8]> {
    let attrs = attributes(message, &[NEWGENERATION])?;
    Some(attrs.find(GENERATION_PROGRAM).unwrap_or_default())
}

/// Asks for one table.
pub fn get_table(family: impl Into<TableFamily>, table: &str) -> Batch {
    Batch::of(|batch| message(batch, GETTABLE, 0, family.into()).attr_str(TABLE, table))
}

/// Asks for all chains of a family; the kernel does not filter further.
pub fn dump_chains(family: impl Into<TableFamily>) -> Batch {
    Batch::of(|batch| message(batch, GETCHAIN, DUMP, family.into()))
}

/// Passes the rules of a table, or of one chain of it, to `each`.
///
/// # Errors
/// ENOENT when there is no such table or chain; refused, or the answer was lost.
pub fn rules(
    socket: &mut Socket,
    family: impl Into<TableFamily>,
    table: &str,
    chain: Option<&str>,
    mut each: impl FnMut(&RawMessage<'_>, &RuleView<'_>),
) -> Result<Dump, NetlinkError> {
    let (family, mut ask) = (family.into(), Batch::new());
    message(&mut ask, GETRULE, DUMP, family).attr_str(TABLE, table);
    if let Some(chain) = chain {
        ask.attr_str(RULE_CHAIN, chain);
    }
    socket.dump(&mut ask, |message| {
        let Some(rule) = RuleView::parse(&message) else { return };
        // Old kernels do not filter.
        if rule.family == family && rule.table == table && chain.is_none_or(|chain| chain == rule.chain) {
            each(&message, &rule);
        }
    })
}

/// Questions about one table. What is not there reads as empty.
pub struct Reader<'a> {
    /// Of nf_tables.
    pub socket: &'a mut Socket,
    /// The table's name.
    pub table: &'a str,
}

impl Reader<'_> {
    /// The number of the ruleset's present state.
    ///
    /// # Errors
    /// Refused by the kernel, which may have no nf_tables, or its answer was lost.
    pub fn generation(&mut self) -> Result<Option<u32>, NetlinkError> {
        let mut ask = Batch::of(|batch| message(batch, GETGENERATION, 0, TableFamily::ANY));
        let number = |message: RawMessage<'_>| {
            attributes(&message, &[NEWGENERATION])?.find(GENERATION_ID).and_then(be32)
        };
        self.socket.get(&mut ask, number)
    }

    /// Passes the rules of the table, or of one chain, to `each`.
    ///
    /// # Errors
    /// Refused by the kernel, or its answer was lost.
    pub fn rules(
        &mut self,
        family: impl Into<TableFamily>,
        chain: Option<&str>,
        mut each: impl FnMut(&RuleView<'_>),
    ) -> Result<(), NetlinkError> {
        none_if_absent(rules(self.socket, family, self.table, chain, |_, rule| each(rule)).map(drop))
    }

    /// Passes the table's chains to `each`.
    ///
    /// # Errors
    /// The same.
    pub fn chains(
        &mut self,
        family: impl Into<TableFamily>,
        mut each: impl FnMut(&ChainView<'_>),
    ) -> Result<(), NetlinkError> {
        let read = self.socket.dump(&mut dump_chains(family), |message| {
            ChainView::parse(&message).filter(|chain| chain.table == self.table).iter().for_each(&mut each);
        });
        none_if_absent(read.map(drop))
    }

    /// The names of the table's sets.
    ///
    /// # Errors
    /// The same.
    pub fn sets(&mut self, family: Family) -> Result<Vec<String>, NetlinkError> {
        let (mut names, mut ask) = (Vec::new(), Batch::new());
        message(&mut ask, GETSET, DUMP, family.into()).attr_str(TABLE, self.table);
        let read = self.socket.dump(&mut ask, |message| {
            let Some(attrs) = attributes(&message, &[NEWSET]) else { return };
            let name = |kind| attrs.clone().find(kind).and_then(text);
            if name(TABLE) == Some(self.table) {
                names.extend(name(SET_NAME).map(str::to_owned));
            }
        });
        none_if_absent(read.map(drop)).map(|()| names)
    }

    /// The elements of a set that have not expired.
    ///
    /// # Errors
    /// The same.
    pub fn elements(&mut self, family: Family, set: &str) -> Result<Vec<Element>, NetlinkError> {
        let (mut found, mut ask) = (Vec::new(), Batch::new());
        message(&mut ask, GETELEMENT, DUMP, family.into())
            .attr_str(TABLE, self.table)
            .attr_str(SET_NAME, set);
        let read = self.socket.dump(&mut ask, |message| {
            let list = attributes(&message, &[NEWELEMENT]).and_then(|attrs| attrs.find(ELEMENTS));
            found.extend(Attrs::new(list.unwrap_or_default()).filter_map(|(_, bytes)| Element::read(bytes)));
        });
        none_if_absent(read.map(drop)).map(|()| found)
    }

    /// Whether there is such a chain.
    ///
    /// # Errors
    /// The same.
    pub fn has_chain(&mut self, family: impl Into<TableFamily>, chain: &str) -> Result<bool, NetlinkError> {
        let mut ask = Batch::new();
        message(&mut ask, GETCHAIN, 0, family.into()).attr_str(TABLE, self.table).attr_str(CHAIN_NAME, chain);
        let found = self.socket.get(&mut ask, |message| ChainView::parse(&message).map(|_| ()));
        match found {
            Err(error) if error.errno() == Errno::ENOENT => Ok(false),
            found => found.map(|found| found.is_some()),
        }
    }
}

fn none_if_absent(read: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match read {
        Err(error) if error.errno() == Errno::ENOENT => Ok(()),
        read => read,
    }
}

/// `NFT_CHAIN_BASE`: a hook calls it.
const CHAIN_BASE: u32 = 1;
