//! `macspoofchk`: frames that a container sends from another Ethernet address than its own are dropped at its port. Table,
//! chains, rules and comments are those of the reference plugin, name for name: each plugin removes what the other made.
//!
//! ```text
//!   table bridge nat {
//!     chain PREROUTING { type filter hook prerouting priority -300
//!                        iifname "veth1a2b3c4d" jump cni-br-iface-ID }     ID: <container>-<interface>
//!     chain cni-br-iface-ID     { jump cni-br-iface-ID-mac }
//!     chain cni-br-iface-ID-mac { ether saddr 0a:58:0a:f4:01:02 return     each rule with the comment "macspoofchk-ID"
//!                                 drop }
//!   }
//! ```

use std::collections::BTreeSet;

use backends::netlink::link::{LinkView, get_link};
use backends::netlink::nft::{
    BaseChain, Change, End, Expr, Field, PREROUTING, Reader, Rule, RuleView, TableFamily, Verdict,
};
use backends::netlink::{NetlinkError, Socket};
use backends::{IfName, Mac};
use nix::errno::Errno;

use super::key;
use crate::contract::{Call, Code, During, Failure, Key};

const TABLE: &str = "nat";
const FAMILY: TableFamily = TableFamily::BRIDGE;
/// All attachments share it: it stays.
const ENTRY: &str = "PREROUTING";
/// Before anything else of the bridge.
const BASE: BaseChain<'_> = BaseChain { kind: "filter", hook: PREROUTING, priority: -300, policy: None };
/// Bytes of an interface's name as the kernel compares it.
const NAME: usize = 16;
/// Looks at rules that others change at the same time.
const TRIES: u32 = 20;

/// The names that an attachment's chains and rules have. With the longest ID that a container can have they are 253 and
/// 248 bytes long; the kernel takes 255, and a comment 254.
struct Names {
    /// What the entry jumps to for the attachment's port.
    port: String,
    /// The Ethernet addresses that may pass.
    mac: String,
    note: String,
}

impl Names {
    fn of(call: &Call) -> Self {
        Self::new(&id(&call.container, call.ifname.as_str()))
    }

    fn new(id: &str) -> Self {
        let port = format!("cni-br-iface-{id}");
        Self { mac: format!("{port}-mac"), port, note: format!("{NOTE}{id}") }
    }

    /// The rule's last expression jumps to the attachment's chain.
    fn is_target_of(&self, rule: &RuleView<'_>) -> bool {
        rule.exprs().last() == Some(Expr::jump(&self.port))
    }

    /// The rules of a container with this Ethernet address behind this port, the entry's first.
    fn rules(&self, port: IfName, mac: Mac) -> [Rule; 4] {
        let mut name = port.as_str().as_bytes().to_vec();
        name.resize(NAME, 0);
        let from_port = [Expr::load(Field::Interface(End::Source), 0), Expr::compare(true, &name)];
        let from_mac = [Expr::load(Field::EthernetSource, 0), Expr::compare(true, &mac.0)];
        let rule = |chain: &str, exprs: Vec<Expr>| Rule {
            chain: chain.to_owned(),
            note: self.note.clone(),
            exprs,
            first: false,
        };
        [
            rule(ENTRY, [&from_port[..], &[Expr::jump(&self.port)]].concat()),
            rule(&self.port, vec![Expr::jump(&self.mac)]),
            rule(&self.mac, [&from_mac[..], &[Expr::Verdict(Verdict::Return)]].concat()),
            rule(&self.mac, vec![Expr::Verdict(Verdict::Drop)]),
        ]
    }
}

const NOTE: &str = "macspoofchk-";

fn id(container: &str, ifname: &str) -> String {
    format!("{container}-{ifname}")
}

/// Drops all frames from this port but those from this Ethernet address. What a killed ADD left behind is replaced.
pub(super) fn ensure(call: &Call, port: IfName, mac: Mac) -> Result<(), Failure> {
    let what = || "cannot set up macspoofchk, which needs nf_tables for bridges".to_owned();
    let mut socket = Socket::netfilter().during(Code::Kernel, what)?;
    let names = Names::of(call);
    let rules = names.rules(port, mac);
    match addition(&names, &rules, false).commit(&mut socket, None) {
        Err(error) if error.errno() == Errno::ENOENT => {
            addition(&names, &rules, true).commit(&mut socket, None).during(Code::Kernel, what)
        }
        other => other.during(Code::Kernel, what),
    }
}

/// The shared parts are written only where they are missing: the kernel treats a base chain that exists as a changed one,
/// and waits for its readers.
fn addition(names: &Names, rules: &[Rule], whole: bool) -> Change<'static> {
    let mut change = Change::of(TABLE);
    if whole {
        change.table(FAMILY, "");
        change.base_chain(FAMILY, ENTRY, BASE);
    }
    for chain in [&names.port, &names.mac] {
        change.chain(FAMILY, chain);
        change.empty_chain(FAMILY, chain);
    }
    rules.iter().for_each(|rule| change.rule(FAMILY, rule));
    change
}

/// Removes what exists of the call's attachment; nothing there, or no nf_tables, is no error.
pub(super) fn remove(call: &Call) -> Result<(), Failure> {
    let Ok(mut socket) = Socket::netfilter() else { return Ok(()) };
    remove_named(&mut socket, &Names::of(call))
}

fn remove_named(socket: &mut Socket, names: &Names) -> Result<(), Failure> {
    let what = || format!("cannot remove chain {}", names.port);
    for _ in 0..TRIES {
        let change = match removal(&mut Reader { socket, table: TABLE }, names) {
            Err(error) if is_missing(&error) => return Ok(()),
            other => other.during(Code::Kernel, what)?,
        };
        match change.commit(socket, None) {
            // Another process removed a part of it, or a rule was not seen because others came and went meanwhile.
            Err(error) if matches!(error.errno(), Errno::ENOENT | Errno::EBUSY) => {}
            other => return other.during(Code::Kernel, what),
        }
    }
    Err(Failure::new(Code::Kernel, what()).details("the host's rules change faster than they can be read"))
}

/// Removes everything that is there; an empty change when there is nothing.
fn removal(reader: &mut Reader<'_>, names: &Names) -> Result<Change<'static>, NetlinkError> {
    let mut change = Change::of(TABLE);
    reader.rules(FAMILY, Some(ENTRY), |rule| {
        if rule.note == names.note || names.is_target_of(rule) {
            change.delete_rule(FAMILY, ENTRY, rule.handle);
        }
    })?;
    for chain in [&names.port, &names.mac] {
        if reader.has_chain(FAMILY, chain)? {
            change.delete_chain(FAMILY, chain);
        }
    }
    Ok(change)
}

/// The chain that has lost a rule of a container with this Ethernet address behind this port.
pub(super) fn missing(call: &Call, port: IfName, mac: Mac) -> Result<Option<String>, Failure> {
    let what = || "cannot read the rules of macspoofchk".to_owned();
    let mut socket = Socket::netfilter().during(Code::Kernel, what)?;
    let mut reader = Reader { socket: &mut socket, table: TABLE };
    let names = Names::of(call);
    let wanted = names.rules(port, mac);
    let mut lost = None;
    for _ in 0..TRIES {
        let before = reader.generation().during(Code::Kernel, what)?;
        let mut missing: Vec<_> = wanted.iter().collect();
        for chain in [ENTRY, &names.port, &names.mac] {
            let read = reader.rules(FAMILY, Some(chain), |there| missing.retain(|rule| !there.is(rule)));
            read.during(Code::Kernel, what)?;
        }
        lost = missing.first().map(|rule| rule.chain.clone());
        // A chain that others change while it is read may show too little.
        if lost.is_none() || reader.generation().during(Code::Kernel, what)? == before {
            break;
        }
    }
    Ok(lost)
}

/// Removes the chains of attachments that are not valid any more. The names of the chains do not contain their network. So only
/// those are removed whose port is gone, or is another attachment's by now, whose packets they would drop.
pub(super) fn collect(call: &Call) -> Result<(), Failure> {
    let what = || "cannot read the rules of macspoofchk".to_owned();
    let valid: BTreeSet<_> = call.valid()?.iter().map(|(container, ifname)| id(container, ifname)).collect();
    let Ok(mut socket) = Socket::netfilter() else { return Ok(()) };
    let mut ports = Vec::new();
    let read = Reader { socket: &mut socket, table: TABLE }.rules(FAMILY, Some(ENTRY), |rule| {
        let Some(id) = rule.note.strip_prefix(NOTE).filter(|id| !valid.contains(*id)) else { return };
        let names = Names::new(id);
        if names.is_target_of(rule) {
            ports.extend(port(rule).map(|port| (port, id.to_owned(), names)));
        }
    });
    match read {
        Err(error) if is_missing(&error) => return Ok(()),
        other => other.during(Code::Kernel, what)?,
    }
    let mut route = Socket::route().during(Code::Kernel, what)?;
    let mut failures = Vec::new();
    for (port, id, names) in ports {
        match is_left(&mut route, port, &id) {
            Ok(true) => failures.extend(remove_named(&mut socket, &names).err()),
            Ok(false) => {}
            Err(failure) => failures.push(failure),
        }
    }
    Failure::all(failures)
}

/// The port whose packets a rule of the entry is about.
fn port(rule: &RuleView<'_>) -> Option<IfName> {
    let mut exprs = rule.exprs();
    let load = exprs.next()?;
    match exprs.next()? {
        Expr::Compare { equal: true, bytes, .. } if load == Expr::load(Field::Interface(End::Source), 0) => {
            Some(IfName::from_kernel(&bytes))
        }
        _ => None,
    }
}

fn is_left(route: &mut Socket, name: IfName, id: &str) -> Result<bool, Failure> {
    let found = route.get(&mut get_link(name), |message| {
        let link = LinkView::parse(&message).ok()?;
        Some(
            link.alias
                .and_then(key::any_attachment)
                .is_some_and(|(container, ifname): Key| self::id(&container, &ifname) != id),
        )
    });
    match found {
        Err(error) if error.errno() == Errno::ENODEV => Ok(true),
        other => Ok(other.during(Code::Kernel, || format!("cannot read {name}"))?.unwrap_or(false)),
    }
}

/// A kernel without nf_tables, or without them for bridges, has no such rules.
fn is_missing(error: &NetlinkError) -> bool {
    matches!(error.errno(), Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_reference_plugin() {
        let names = Names::new(&id("c1", "eth0"));
        assert_eq!(names.port, "cni-br-iface-c1-eth0");
        assert_eq!(names.mac, "cni-br-iface-c1-eth0-mac");
        assert_eq!(names.note, "macspoofchk-c1-eth0");
        let longest = Names::new(&id(&"c".repeat(crate::contract::LONGEST_NAME), "0123456789abcde"));
        assert!(longest.mac.len() <= 255 && longest.note.len() <= 254);
    }
}
