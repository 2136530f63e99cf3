//! Reading: the generation, a table's rules, a set's elements.

use backends::netlink::{Attrs, Batch, NetlinkError, Socket};
use nix::errno::Errno;
use subnet_lease::Family;

use super::encode::{FIXED, TableFamily, attr, comment, comment_text, fixed, nest, text};
use super::*;

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// Empty in a set.
    pub(crate) value: Vec<u8>,
    /// Its comment: the attachment that it belongs to.
    pub(crate) owner: String,
    /// The kernel ends it by itself, with its next tick.
    pub(crate) ends: bool,
}

impl Element {
    pub(super) fn whole(&self) -> Vec<u8> {
        let mut parts = self.parts();
        parts.push(comment(element::COMMENT, &self.owner));
        nest(LIST_ELEMENT, &parts)
    }

    /// The element as it is, with the end of its life at this moment (milliseconds).
    pub(super) fn ending(&self) -> Vec<u8> {
        let mut parts = self.parts();
        parts.push(attr(element::TIMEOUT, &1u64.to_be_bytes()));
        parts.push(attr(element::EXPIRATION, &0u64.to_be_bytes()));
        nest(LIST_ELEMENT, &parts)
    }

    pub(super) fn key_alone(&self) -> Vec<u8> {
        nest(LIST_ELEMENT, &self.parts()[..1])
    }

    fn parts(&self) -> Vec<Vec<u8>> {
        let mut parts = vec![nest(element::KEY, &[attr(VALUE, &self.key)])];
        if !self.value.is_empty() {
            parts.push(nest(element::DATA, &[attr(VALUE, &self.value)]));
        }
        parts
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let attrs = Attrs::new(bytes);
        let value = |kind| Attrs::new(attrs.clone().find(kind)?).find(VALUE).map(<[u8]>::to_vec);
        let owner = attrs.clone().find(element::COMMENT).and_then(comment_text).unwrap_or_default();
        Some(Self {
            key: value(element::KEY)?,
            value: value(element::DATA).unwrap_or_default(),
            owner: owner.to_owned(),
            ends: attrs.clone().find(element::EXPIRATION).is_some(),
        })
    }
}

/// A rule of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleView {
    pub(crate) chain: String,
    pub(crate) handle: u64,
    pub(crate) note: String,
    exprs: Vec<u8>,
}

impl RuleView {
    /// Whether it stands in the same chain and says the same; what the kernel adds of its own makes no difference.
    pub(crate) fn is(&self, rule: &Rule) -> bool {
        let theirs: Vec<_> = Attrs::new(&self.exprs).collect();
        let same =
            |(ours, (_, theirs)): (&Expr, &(u16, &[u8]))| covers(theirs, ours.0.get(4..).unwrap_or_default());
        self.chain == rule.chain
            && theirs.len() == rule.exprs.len()
            && rule.exprs.iter().zip(&theirs).all(same)
    }

    /// The name of the interface that it asks packets to have come in through, before anything else.
    pub(crate) fn input(&self) -> Option<&str> {
        let mut theirs = Attrs::new(&self.exprs).map(|(_, expr)| expr);
        let load = Expr::load(Field::Interface(End::Source), 0);
        theirs.next().filter(|theirs| covers(theirs, load.0.get(4..).unwrap_or_default()))?;
        let asked = body(theirs.next()?, "cmp")?;
        let value = Attrs::new(asked.clone().find(CMP_DATA)?).find(VALUE)?;
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        let equal = asked.clone().find(CMP_OPERATOR) == Some(&[0; 4]);
        std::str::from_utf8(value.get(..end)?).ok().filter(|_| equal)
    }

    /// Its comment, be it nft's or iptables's, which is a match among its expressions.
    pub(crate) fn comment(&self) -> &str {
        self.iptables_comment().unwrap_or(&self.note)
    }

    fn iptables_comment(&self) -> Option<&str> {
        let of_match = |(_, expr)| {
            let said = body(expr, "match")?;
            let info = said.clone().find(MATCH_INFO)?;
            let end = info.iter().position(|byte| *byte == 0)?;
            (name_of(said.clone().find(MATCH_NAME)?) == Some("comment")).then(|| info.get(..end))?
        };
        Attrs::new(&self.exprs).find_map(of_match).and_then(|text| std::str::from_utf8(text).ok())
    }

    /// The chain that its last expression jumps to.
    pub(crate) fn target(&self) -> Option<&str> {
        let said = body(Attrs::new(&self.exprs).last()?.1, "immediate")?;
        let verdict = Attrs::new(said.clone().find(IMMEDIATE_DATA)?).find(VERDICT)?;
        Attrs::new(verdict).find(VERDICT_CHAIN).and_then(name_of)
    }

    /// Whether its last expression jumps to this chain.
    pub(crate) fn jumps_to(&self, chain: &str) -> bool {
        let jump = Expr::jump(chain);
        let last = Attrs::new(&self.exprs).last();
        last.is_some_and(|(_, theirs)| covers(theirs, jump.0.get(4..).unwrap_or_default()))
    }
}

/// What an expression of this name says.
fn body<'a>(expr: &'a [u8], name: &str) -> Option<Attrs<'a>> {
    let expr = Attrs::new(expr);
    let found = expr.clone().find(1).and_then(name_of) == Some(name);
    found.then(|| expr.clone().find(2).map(Attrs::new))?
}

/// Whether every attribute of ours is among theirs, at every depth of the trees.
fn covers(theirs: &[u8], ours: &[u8]) -> bool {
    Attrs::new(ours).all(|(kind, mine)| {
        let found = Attrs::new(theirs).find(kind);
        // What is not made of attributes is compared as it is.
        found.is_some_and(|found| found == mine || (is_nest(mine) && is_nest(found) && covers(found, mine)))
    })
}

/// Whether bytes are attributes throughout.
fn is_nest(bytes: &[u8]) -> bool {
    let whole: usize = Attrs::new(bytes).map(|(_, inner)| (inner.len() + 4).next_multiple_of(4)).sum();
    !bytes.is_empty() && whole == bytes.len()
}

/// Reads of one table.
pub(crate) struct Reader<'a> {
    pub(crate) socket: &'a mut Socket,
    pub(crate) table: &'a str,
}

impl Reader<'_> {
    /// The number of the ruleset's present state.
    pub(crate) fn generation(&mut self) -> Result<Option<u32>, NetlinkError> {
        let mut ask = Batch::new();
        ask.message(GETGENERATION, REQUEST, &[0; FIXED]);
        self.socket.get(&mut ask, |message| {
            let id = Attrs::after(message.payload, FIXED).find(1)?;
            (message.kind == NEWGENERATION).then(|| id.try_into().ok().map(u32::from_be_bytes))?
        })
    }

    /// The rules of the table, or of one chain; none when there is no such table.
    pub(crate) fn rules(
        &mut self,
        family: impl Into<TableFamily>,
        chain: Option<&str>,
    ) -> Result<Vec<RuleView>, NetlinkError> {
        let mut parts = text(rule::TABLE, self.table);
        parts.extend(chain.map(|chain| text(rule::CHAIN, chain)).unwrap_or_default());
        let mut rules = Vec::new();
        let table = self.table;
        self.dump(GETRULE, family, &parts, |attrs| {
            let name = |kind| attrs.clone().find(kind).and_then(name_of);
            // Old kernels do not filter.
            if name(rule::TABLE) == Some(table) && (chain.is_none() || name(rule::CHAIN) == chain) {
                rules.push(RuleView {
                    chain: name(rule::CHAIN).unwrap_or_default().to_owned(),
                    handle: attrs.clone().find(rule::HANDLE).and_then(be64).unwrap_or(0),
                    note: attrs
                        .clone()
                        .find(rule::COMMENT)
                        .and_then(comment_text)
                        .unwrap_or_default()
                        .to_owned(),
                    exprs: attrs.clone().find(rule::EXPRESSIONS).unwrap_or_default().to_vec(),
                });
            }
        })?;
        Ok(rules)
    }

    /// The names of the table's sets.
    pub(crate) fn sets(&mut self, family: Family) -> Result<Vec<String>, NetlinkError> {
        let mut names = Vec::new();
        let table = self.table;
        self.dump(GETSET, family, &text(1, self.table), |attrs| {
            let name = |kind| attrs.clone().find(kind).and_then(name_of);
            if name(1) == Some(table) {
                names.extend(name(2).map(str::to_owned));
            }
        })?;
        Ok(names)
    }

    /// The elements of a set that have not expired; none when there is no such set.
    pub(crate) fn elements(&mut self, family: Family, set: &str) -> Result<Vec<Element>, NetlinkError> {
        let parts = [text(element::LIST_TABLE, self.table), text(element::LIST_SET, set)].concat();
        let mut found = Vec::new();
        self.dump(GETELEMENT, family, &parts, |attrs| {
            let list = attrs.clone().find(element::LIST_ELEMENTS).unwrap_or_default();
            found.extend(Attrs::new(list).filter_map(|(_, bytes)| Element::read(bytes)));
        })?;
        Ok(found)
    }

    /// Whether there is such a chain.
    pub(crate) fn has_chain(
        &mut self,
        family: impl Into<TableFamily>,
        chain: &str,
    ) -> Result<bool, NetlinkError> {
        let mut ask = Batch::new();
        ask.message(GETCHAIN, REQUEST, &fixed(family)).raw(&text(1, self.table)).raw(&text(3, chain));
        match self.socket.get(&mut ask, |message| (message.kind == NEWCHAIN).then_some(())) {
            Err(error) if absent(&error) => Ok(false),
            other => other.map(|found| found.is_some()),
        }
    }

    fn dump(
        &mut self,
        kind: u16,
        family: impl Into<TableFamily>,
        parts: &[u8],
        mut each: impl FnMut(&Attrs<'_>),
    ) -> Result<(), NetlinkError> {
        let mut ask = Batch::new();
        ask.message(kind, REQUEST | DUMP, &fixed(family)).raw(parts);
        let read = self.socket.dump(&mut ask, |message| {
            // Each answer has the type of the request that would make the object: one less.
            if message.kind == kind - 1 {
                each(&Attrs::after(message.payload, FIXED));
            }
        });
        match read {
            Err(error) if absent(&error) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

const CMP_OPERATOR: u16 = 2;
const CMP_DATA: u16 = 3;
const IMMEDIATE_DATA: u16 = 2;
const VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

fn absent(error: &NetlinkError) -> bool {
    error.errno() == Errno::ENOENT
}

fn name_of(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

fn be64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}
