//! Masquerade rules that the reference plugin made for one container, with either of its backends: our DEL removes them as
//! well, so that a node can change to this plugin while containers run. GC removes those of attachments that are gone.
//!
//! ```text
//!   backend iptables   table nat                         POSTROUTING ──▶ CNI-<hash of network and container>,
//!                                                        with the comment `name: "<network>" id: "<container>"`
//!   backend nftables   table inet cni_plugins_masquerade   masq_checks: a rule with the comment "<hash>-<hash>, net: …"
//! ```

use std::collections::BTreeSet;

use backends::netlink::nft::{Change, Reader, TableFamily};
use backends::netlink::{NetlinkError, Socket};
use nix::errno::Errno;
use subnet_lease::Family;

use crate::contract::{Call, Code, During, Failure};
use crate::sys::hash;
use crate::sys::iptables::{Plan, Saved, SavedRule, Table, Turn, has_legacy};

const TABLE: &str = "cni_plugins_masquerade";
const CHAIN: &str = "masq_checks";
const NAT: &str = "nat";
const ENTRY: &str = "POSTROUTING";
/// Longest name of a chain of iptables.
const NAME: usize = 28;
/// Hexadecimal digits of a hash in a comment.
const HASH: usize = 16;

/// Removes what exists of the call's attachment; nothing there, or no nf_tables, is no error.
pub(super) fn remove_masquerade(call: &Call) -> Result<(), Failure> {
    let what =
        || format!("cannot remove the masquerade rules that another plugin made for {}", call.container);
    let own = mark(&call.network, &call.container, call.ifname.as_str());
    let chain = chain(&call.network, &call.container);
    if let Ok(mut socket) = Socket::netfilter() {
        remove_rules(&mut socket, |note| note.starts_with(&own)).during(Code::Kernel, what)?;
        remove_chain(&mut socket, &chain).during(Code::Kernel, what)?;
    }
    remove_legacy(|_| BTreeSet::from([chain.clone()]))
}

/// Removes what exists of attachments of the call's network that are not valid any more. A chain of iptables belongs to a
/// container with all its interfaces.
pub(super) fn collect(call: &Call) -> Result<(), Failure> {
    let what = || format!("cannot remove the masquerade rules that another plugin made in {}", call.network);
    let valid = call.valid()?;
    let marks: BTreeSet<_> = valid.iter().map(|(id, ifname)| mark(&call.network, id, ifname)).collect();
    let containers: BTreeSet<_> = valid.iter().map(|(id, _)| &**id).collect();
    let is_left = |note: &str| marked(&call.network, note).is_some_and(|mark| !marks.contains(mark));
    let left = |chain: &str, comment: &str| {
        let id = container(&call.network, comment).filter(|id| !containers.contains(id))?;
        (self::chain(&call.network, id) == chain).then(|| chain.to_owned())
    };
    if let Ok(mut socket) = Socket::netfilter() {
        remove_rules(&mut socket, is_left).during(Code::Kernel, what)?;
        for chain in chains(&mut socket, &left) {
            remove_chain(&mut socket, &chain).during(Code::Kernel, what)?;
        }
    }
    remove_legacy(|saved| {
        let of_rule = |rule: &SavedRule| left(rule.after("-j")?, rule.after("--comment")?);
        saved.rules(ENTRY).filter_map(of_rule).collect()
    })
}

/// The chains of both families that are left, by the rules that lead to them.
fn chains(socket: &mut Socket, left: &dyn Fn(&str, &str) -> Option<String>) -> BTreeSet<String> {
    let mut reader = Reader { socket, table: NAT };
    let mut found = BTreeSet::new();
    for family in Family::ALL {
        // Without nf_tables there are no rules.
        let _ = reader.rules(family, Some(ENTRY), |rule| {
            found.extend(rule.target().and_then(|target| left(&target, &rule.comment())));
        });
    }
    found
}

fn remove_rules(socket: &mut Socket, is_meant: impl Fn(&str) -> bool) -> Result<(), NetlinkError> {
    let mut change = Change::of(TABLE);
    let read = Reader { socket, table: TABLE }.rules(TableFamily::INET, Some(CHAIN), |rule| {
        if is_meant(rule.note) {
            change.delete_rule(TableFamily::INET, CHAIN, rule.handle);
        }
    });
    // A kernel without nf_tables has no rules.
    if read.is_ok() { gone(change.commit(socket, None)) } else { Ok(()) }
}

/// How the comments of an attachment's rules begin.
fn mark(network: &str, container: &str, ifname: &str) -> String {
    let attachment = format!("{ifname}:{container}");
    format!("{}-{}, ", hash::name("", network, HASH), hash::name("", &attachment, HASH))
}

/// The mark of a comment that is an attachment's of this network.
fn marked<'a>(network: &str, note: &'a str) -> Option<&'a str> {
    let mark = note.get(..2 * HASH + 3)?;
    let digits = mark.strip_prefix(&hash::name("", network, HASH))?.strip_prefix('-')?.strip_suffix(", ")?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then_some(mark)
}

/// The container that a comment of iptables names, if it is of this network.
fn container<'a>(network: &str, comment: &'a str) -> Option<&'a str> {
    comment.strip_prefix(&format!("name: \"{network}\" id: \""))?.strip_suffix('"')
}

fn chain(network: &str, container: &str) -> String {
    hash::name("CNI-", &format!("{network}{container}"), NAME)
}

fn remove_chain(socket: &mut Socket, chain: &str) -> Result<(), NetlinkError> {
    for family in Family::ALL {
        let mut reader = Reader { socket, table: NAT };
        if !reader.has_chain(family, chain).unwrap_or(false) {
            continue;
        }
        let _turn = Turn::take();
        let mut change = Change::of(NAT);
        change.delete_chain_from(&mut reader, family, chain, ENTRY)?;
        gone(change.commit(socket, None))?;
    }
    Ok(())
}

/// From tables of the old kernel interface, where there are any.
fn remove_legacy(meant: impl Fn(&Saved) -> BTreeSet<String>) -> Result<(), Failure> {
    for family in Family::ALL.into_iter().filter(|family| has_legacy(*family, NAT)) {
        Table { family, name: NAT, legacy: true }.change(|saved| {
            let mut plan = Plan::default();
            meant(saved).iter().for_each(|chain| plan.delete_chain(saved, chain, ENTRY));
            plan
        })?;
    }
    Ok(())
}

/// What another process removed meanwhile is no error.
fn gone(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == Errno::ENOENT => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_known_to_be_an_attachments_of_a_network_or_is_nobodys() {
        let mark = mark("net", "c1", "eth0");
        let note = format!("{mark}net: net, if: eth0, id: c1");
        assert_eq!(marked("net", &note), Some(&*mark));
        for other in ["", "net", &note[..34], &note.replace('-', "_"), &note.replacen(", ", "é", 1)] {
            assert_eq!(marked("net", other), None, "{other}");
        }
        assert_eq!(marked("other", &note), None);
        assert_eq!(container("net", r#"name: "net" id: "c1""#), Some("c1"));
        for other in [r#"name: "net2" id: "c1""#, r#"name: "net" id: c1"#, r#"name: "net""#, ""] {
            assert_eq!(container("net", other), None, "{other}");
        }
    }
}
