//! `macspoofchk`: what a container sends with another Ethernet address than its own is lost at its port. Table, chains,
//! rules and comments are those of the reference plugin, name for name: either takes away what the other made.
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
use backends::netlink::{NetlinkError, Socket};
use backends::{IfName, Mac};
use nix::errno::Errno;

use super::key;
use crate::contract::{Call, Code, During, Failure, Key};
use crate::sys::nft::{Change, End, Expr, Field, Reader, Rule, RuleView, TableFamily};

const TABLE: &str = "nat";
const FAMILY: TableFamily = TableFamily::Bridge;
/// Everybody's: it stays.
const ENTRY: &str = "PREROUTING";
/// `NF_BR_PRE_ROUTING`, and before anything else of the bridge.
const HOOK: (u32, i32) = (0, -300);
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

    /// The rules of a container with this Ethernet address behind this port, the entry's first.
    fn rules(&self, port: IfName, mac: Mac) -> [Rule; 4] {
        let mut name = port.as_str().as_bytes().to_vec();
        name.resize(NAME, 0);
        let from_port = [Expr::load(Field::Interface(End::Source), 0), Expr::compare(0, true, &name)];
        let from_mac = [Expr::load(Field::EthernetSource, 0), Expr::compare(0, true, &mac.0)];
        let rule = |chain: &str, exprs: Vec<Expr>| Rule {
            chain: chain.to_owned(),
            note: self.note.clone(),
            exprs,
            first: false,
        };
        [
            rule(ENTRY, [&from_port[..], &[Expr::jump(&self.port)]].concat()),
            rule(&self.port, vec![Expr::jump(&self.mac)]),
            rule(&self.mac, [&from_mac[..], &[Expr::back()]].concat()),
            rule(&self.mac, vec![Expr::drop()]),
        ]
    }
}

const NOTE: &str = "macspoofchk-";

fn id(container: &str, ifname: &str) -> String {
    format!("{container}-{ifname}")
}

/// Lets nothing pass from this port but what has this Ethernet address. What a killed ADD left of it is replaced.
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

/// With what is everybody's only where it is missing: the kernel takes a base chain that is there for a changed one, and
/// waits for its readers.
fn addition(names: &Names, rules: &[Rule], whole: bool) -> Change {
    let mut change = Change::of(TABLE);
    if whole {
        change.table(FAMILY, "");
        change.base_chain(FAMILY, ENTRY, "filter", HOOK);
    }
    for chain in [&names.port, &names.mac] {
        change.chain(FAMILY, chain);
        change.empty_chain(FAMILY, chain);
    }
    rules.iter().for_each(|rule| change.rule(FAMILY, rule));
    change
}

/// Removes what there is of the call's attachment; none there, or no nf_tables, is fine.
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
        let Some(change) = change else { return Ok(()) };
        match change.commit(socket, None) {
            // Somebody else took a part of it away; or a rule was not seen, since others came and went meanwhile.
            Err(error) if matches!(error.errno(), Errno::ENOENT | Errno::EBUSY) => {}
            other => return other.during(Code::Kernel, what),
        }
    }
    Err(Failure::new(Code::Kernel, what()).details("the host's rules change faster than they can be read"))
}

/// What takes away all that there is; none when that is nothing.
fn removal(reader: &mut Reader<'_>, names: &Names) -> Result<Option<Change>, NetlinkError> {
    let (mut change, mut some) = (Change::of(TABLE), false);
    let is_its = |rule: &&RuleView| rule.note == names.note || rule.jumps_to(&names.port);
    for rule in reader.rules(FAMILY, Some(ENTRY))?.iter().filter(is_its) {
        change.delete_rule(FAMILY, ENTRY, rule.handle);
        some = true;
    }
    for chain in [&names.port, &names.mac] {
        if reader.has_chain(FAMILY, chain)? {
            change.delete_chain(FAMILY, chain);
            some = true;
        }
    }
    Ok(some.then_some(change))
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
        let mut there = Vec::new();
        for chain in [ENTRY, &names.port, &names.mac] {
            there.extend(reader.rules(FAMILY, Some(chain)).during(Code::Kernel, what)?);
        }
        lost = wanted.iter().find(|rule| !there.iter().any(|t| t.is(rule))).map(|rule| rule.chain.clone());
        // One that others change while it is read may show too little.
        if lost.is_none() || reader.generation().during(Code::Kernel, what)? == before {
            break;
        }
    }
    Ok(lost)
}

/// Removes the chains of what is no valid attachment. Their names have no network in them, so those go alone that have
/// nothing to hold back any more: the port is gone, or another attachment's, whose packets they would drop.
pub(super) fn collect(call: &Call) -> Result<(), Failure> {
    let what = || "cannot read the rules of macspoofchk".to_owned();
    let valid: BTreeSet<_> = call.valid()?.iter().map(|(container, ifname)| id(container, ifname)).collect();
    let Ok(mut socket) = Socket::netfilter() else { return Ok(()) };
    let rules = match (Reader { socket: &mut socket, table: TABLE }).rules(FAMILY, Some(ENTRY)) {
        Err(error) if is_missing(&error) => return Ok(()),
        other => other.during(Code::Kernel, what)?,
    };
    let mut route = Socket::route().during(Code::Kernel, what)?;
    let mut failures = Vec::new();
    for rule in rules {
        let Some(id) = rule.note.strip_prefix(NOTE).filter(|id| !valid.contains(*id)) else { continue };
        let names = Names::new(id);
        let Some(port) = rule.input().filter(|_| rule.jumps_to(&names.port)) else { continue };
        match is_left(&mut route, port, id) {
            Ok(true) => failures.extend(remove_named(&mut socket, &names).err()),
            Ok(false) => {}
            Err(failure) => failures.push(failure),
        }
    }
    Failure::all(failures)
}

fn is_left(route: &mut Socket, port: &str, id: &str) -> Result<bool, Failure> {
    let Ok(name) = port.parse() else { return Ok(false) };
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
