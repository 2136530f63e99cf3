//! Chains and rules as messages.

use nix::errno::Errno;
use subnet_lease::Family;

use super::expr;
use super::message::{APPEND, CREATE, GETRULE, NEWCHAIN, NEWRULE, attributes, be32, header, text};
use crate::netlink::link::DUMP;
use crate::netlink::{Attrs, Batch, NetlinkError, RawMessage};
use crate::rules::{Chain, ChainKind, Hook, Policy, Rule, table_name};

/// A chain of the kernel, without its rules; none if it is of another table.
pub(super) fn read_chain(message: &RawMessage<'_>, family: Family) -> Option<Chain> {
    let attrs =
        attributes(message, NEWCHAIN).filter(|attrs| text(attrs, CHAIN_TABLE) == Some(table_name(family)))?;
    let attrs = &attrs;
    let number = |kind| attrs.clone().find(kind).and_then(be32);
    let hook = attrs.clone().find(CHAIN_HOOK).map(Attrs::new);
    let in_hook = |kind| hook.clone().and_then(|h| h.find(kind)).and_then(be32);
    let known_flags = number(CHAIN_FLAGS).unwrap_or(0) & !CHAIN_BASE == 0;
    Some(Chain {
        name: text(attrs, CHAIN_NAME).unwrap_or_default().to_owned(),
        kind: match text(attrs, CHAIN_TYPE).unwrap_or_default() {
            "filter" if known_flags => ChainKind::Filter,
            "nat" if known_flags => ChainKind::Nat,
            other => ChainKind::Other(other.to_owned()),
        },
        hook: match in_hook(HOOK_NUMBER) {
            Some(NF_FORWARD) => Hook::Forward,
            Some(NF_POSTROUTING) => Hook::Postrouting,
            other => Hook::Other(other),
        },
        priority: in_hook(HOOK_PRIORITY).unwrap_or(0).cast_signed(),
        policy: if number(CHAIN_POLICY) == Some(NF_DROP) { Policy::Drop } else { Policy::Accept },
        rules: Vec::new(),
    })
}

/// Adds to the batch: make this chain, still empty.
pub(super) fn write_chain(batch: &mut Batch, chain: &Chain, family: Family) -> Result<(), NetlinkError> {
    let kind = match &chain.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Other(_) => return Err(not_ours("chain", &chain.name)),
    };
    let number = match chain.hook {
        Hook::Forward => NF_FORWARD,
        Hook::Postrouting => NF_POSTROUTING,
        Hook::Other(_) => return Err(not_ours("chain", &chain.name)),
    };
    let policy = if chain.policy == Policy::Drop { NF_DROP } else { NF_ACCEPT };
    header(batch, NEWCHAIN, CREATE, family)
        .attr_str(CHAIN_TABLE, table_name(family))
        .attr_str(CHAIN_NAME, &chain.name);
    let hook = batch.nest(CHAIN_HOOK);
    batch.attr(HOOK_NUMBER, &number.to_be_bytes()).attr(HOOK_PRIORITY, &chain.priority.to_be_bytes());
    batch.end(hook);
    batch.attr(CHAIN_POLICY, &policy.to_be_bytes()).attr_str(CHAIN_TYPE, kind);
    Ok(())
}

/// Asks for the rules of the table.
pub(super) fn dump_rules(family: Family) -> Batch {
    let mut batch = Batch::new();
    header(&mut batch, GETRULE, DUMP, family).attr_str(RULE_TABLE, table_name(family));
    batch
}

/// A rule of the kernel with its chain's name; none if it is of another table, as old kernels ignore the filter.
pub(super) fn read_rule<'a>(message: &RawMessage<'a>, family: Family) -> Option<(&'a str, Rule)> {
    let attrs =
        attributes(message, NEWRULE).filter(|attrs| text(attrs, RULE_TABLE) == Some(table_name(family)))?;
    let rule = expr::read(attrs.clone().find(RULE_EXPRESSIONS).unwrap_or_default(), family);
    Some((text(&attrs, RULE_CHAIN)?, rule))
}

/// Adds to the batch: append this rule.
pub(super) fn write_rule(
    batch: &mut Batch,
    rule: &Rule,
    chain: &str,
    family: Family,
) -> Result<(), NetlinkError> {
    header(batch, NEWRULE, CREATE | APPEND, family)
        .attr_str(RULE_TABLE, table_name(family))
        .attr_str(RULE_CHAIN, chain);
    let list = batch.nest(RULE_EXPRESSIONS);
    expr::write(batch, rule, family).ok_or_else(|| not_ours("rule in chain", chain))?;
    batch.end(list);
    Ok(())
}

fn not_ours(what: &str, name: &str) -> NetlinkError {
    NetlinkError::Refused {
        errno: Errno::EINVAL,
        text: Some(format!("{what} {name} is of a kind that is never ours")),
    }
}

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const CHAIN_FLAGS: u16 = 10;
/// `NFT_CHAIN_BASE`: a hook calls it.
const CHAIN_BASE: u32 = 1;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;

const NF_FORWARD: u32 = 2;
const NF_POSTROUTING: u32 = 4;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
