//! The same rules for iptables: flannel's two chains, and the jumps by which the chains of others reach them.
//!
//! ```text
//!   RuleInput ── rules() ──▶ IptablesRules ── restore() ──▶ one input of `iptables-restore --noflush`
//!                                 ▲
//!                                 └── read() ── what `iptables-save` prints
//! ```
//!
//! A rule is kept as the text that `iptables-save` prints for it: what is written and what is read are the same words.

mod text;

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use super::{RuleInput, RuleNames, forward, postrouting};

/// The two programs that are called iptables. They fill different hooks of the kernel and don't see each other's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// Over nf_tables.
    Nft,
    /// Over the older interface of the kernel.
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The word in the programs' names: `iptables-nft-restore`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// The tables of iptables that we have rules in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IptablesTable {
    /// Rewrites addresses.
    Nat,
    /// Accepts and drops.
    Filter,
}

impl IptablesTable {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// flannel's chain of table nat.
pub const POSTRTG: &str = "FLANNEL-POSTRTG";
/// flannel's chain of table filter.
pub const FWD: &str = "FLANNEL-FWD";

/// What is ours in one flavour and family.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IptablesRules {
    /// Which iptables.
    pub flavour: Flavour,
    /// Address family.
    pub family: Family,
    /// Whose: what the chains are called.
    #[serde(default, skip_serializing_if = "RuleNames::are_flannels")]
    pub names: RuleNames,
    /// Our chains, by table and name.
    pub chains: Vec<OwnChain>,
    /// What calls them, by table and chain, in the order of the chain.
    pub jumps: Vec<Jump>,
}

/// A chain of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OwnChain {
    /// Its table.
    pub table: IptablesTable,
    /// Its name.
    pub name: String,
    /// Its rules in order, as `iptables-save` prints them after `-A NAME`.
    pub rules: Vec<String>,
}

/// A rule of ours in a chain of others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Jump {
    /// Its table.
    pub table: IptablesTable,
    /// The chain it stands in.
    pub chain: String,
    /// The rule, as `iptables-save` prints it after `-A CHAIN`.
    pub rule: String,
    /// No rule that takes every packet stands before it.
    pub reached: bool,
    /// Of a wish: put it before the rule of this number, counted from one; 0: at the end.
    #[serde(default)]
    pub before: Hint,
}

/// A number that says how to make something and not what it is: it makes no two things different.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hint(pub u32);

impl PartialEq for Hint {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Hint {}

impl Hash for Hint {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// Where a jump to the forward rules stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate<'a> {
    /// The chain of table filter.
    pub chain: &'a str,
    /// Its first rule that takes every packet, counted from one; 0 when it has none.
    pub end: u32,
}

/// Which of our rules iptables is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Masquerade rules, with the end of `POSTROUTING`.
    pub masquerade: Option<u32>,
    /// Forward rules, and where.
    pub forward: Option<Gate<'a>>,
}

/// The rules that should stand; none when there is nothing to put in.
pub fn rules(input: &RuleInput, flavour: Flavour, family: Family, parts: Parts<'_>) -> Option<IptablesRules> {
    let masquerade = parts.masquerade.and_then(|end| {
        let from = Gate { chain: "POSTROUTING", end };
        Some((postrouting(input, family)?, IptablesTable::Nat, POSTRTG, from, "flanneld masq"))
    });
    let accept = parts.forward.and_then(|gate| {
        Some((forward(input, family)?, IptablesTable::Filter, FWD, gate, "flanneld forward"))
    });
    let (mut chains, mut jumps) = (Vec::new(), Vec::new());
    for (chain, table, name, gate, comment) in [masquerade, accept].into_iter().flatten() {
        let rules = chain.rules.iter().map(|rule| text::rule(rule, comment)).collect();
        let name = input.names.chain(name);
        jumps.push(Jump {
            table,
            chain: gate.chain.to_owned(),
            rule: format!("-m comment --comment \"{comment}\" -j {name}"),
            reached: true,
            before: Hint(gate.end),
        });
        chains.push(OwnChain { table, name, rules });
    }
    let names = input.names;
    (!chains.is_empty()).then_some(IptablesRules { flavour, family, names, chains, jumps })
}

impl IptablesRules {
    /// The word for the program: `iptables-nft`, `ip6tables-legacy`.
    pub fn program(&self) -> String {
        program(self.flavour, self.family)
    }
}

/// The program of a flavour and family, to which `-restore` and `-save` are added.
pub fn program(flavour: Flavour, family: Family) -> String {
    let six = if family == Family::V6 { "6" } else { "" };
    format!("ip{six}tables-{}", flavour.word())
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iptables-{}", self.word())
    }
}

pub use text::{read, restore};

#[cfg(test)]
mod tests;
