//! What to do, in order; prints itself as the lines an operator would type.

mod conflict;
mod diff;
mod owner;

pub use conflict::conflicts;
pub use diff::diff;
pub use owner::{Owner, Ownership, Wanted, tag};

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::netlink::link::RT_SCOPE_UNIVERSE;
use crate::rules::iptables::restore;
use crate::state::{Address, Fdb, Link, Neigh, Object, Route, RouteKind, Sysctl, default_metric};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Make this so: create it, or replace what holds its key.
    Put {
        /// The wish.
        want: Object,
        /// What the dump showed in its place.
        have: Option<Object>,
    },
    /// Take this away.
    Delete(Object),
}

impl Op {
    /// The object in question.
    pub fn object(&self) -> &Object {
        match self {
            Self::Put { want, .. } => want,
            Self::Delete(have) => have,
        }
    }

    /// The lines for a shell. A link that is known by its index alone is named by `name`.
    pub fn shell<'a>(&'a self, name: &'a dyn Fn(u32) -> String) -> impl fmt::Display + 'a {
        Shell { op: self, name }
    }
}

/// Steps in dependency order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps.
    pub ops: Vec<Op>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// How many steps create, replace and delete.
    pub fn counts(&self) -> (usize, usize, usize) {
        self.ops.iter().fold((0, 0, 0), |(c, r, d), op| match op {
            Op::Put { have: None, .. } => (c + 1, r, d),
            Op::Put { .. } => (c, r + 1, d),
            Op::Delete(_) => (c, r, d + 1),
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

/// Where nobody knows the links' names, as in the daemon's log: `if` and the index.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shell(&|index| format!("if{index}")).fmt(f)
    }
}

struct Shell<'a> {
    op: &'a Op,
    name: &'a dyn Fn(u32) -> String,
}

impl fmt::Display for Shell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Op::Put { want: Object::Link(want), have: Some(Object::Link(have)) } => {
                change_link(f, have, want, self.name)
            }
            Op::Put { want: Object::Iptables(want), have } => {
                let have = if let Some(Object::Iptables(have)) = have { Some(&**have) } else { None };
                iptables(f, &want.program(), &restore(Some(want), have))
            }
            Op::Delete(Object::Iptables(have)) => iptables(f, &have.program(), &restore(None, Some(have))),
            Op::Put { want, .. } => put(f, want, self.name),
            Op::Delete(have) => delete(f, have),
        }
    }
}

fn iptables(f: &mut fmt::Formatter<'_>, program: &str, input: &str) -> fmt::Result {
    write!(f, "{program}-restore --noflush -w <<'END'\n{}\nEND", input.trim_end())
}

/// A word that a shell takes as it is: names and the network's id may hold any character.
fn word<'a>(text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
    let text = text.into();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/@%+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

fn put(f: &mut fmt::Formatter<'_>, object: &Object, name: &dyn Fn(u32) -> String) -> fmt::Result {
    match object {
        Object::Link(link) => add_link(f, link, name),
        Object::Sysctl(link, Sysctl::TxChecksum, value) => {
            let on = if *value == 0 { "off" } else { "on" };
            write!(f, "ethtool -K {} tx-checksum-ip-generic {on}", word(link.as_str()))
        }
        Object::Sysctl(link, sysctl, value) => write!(f, "echo {value} > {}", word(sysctl.path(*link))),
        Object::Address(a) => write!(f, "ip{} address replace {}", six(a), address(a)),
        Object::Up(link) => write!(f, "ip link set {} up", word(link.as_str())),
        Object::Fdb(Fdb { link, mac, dst, .. }) => {
            write!(f, "bridge fdb replace {mac} dev {} dst {dst} self permanent", word(link.as_str()))
        }
        Object::Neigh(Neigh { link, address, mac }) => {
            write!(f, "ip neigh replace {address} lladdr {mac} dev {} nud permanent", word(link.as_str()))
        }
        Object::Route(r) => write!(f, "ip{} route replace {}", route_family(r), route(r)),
        Object::Table(t) => write!(f, "nft -f - <<'END'\n{}\nEND", t.to_nft().trim_end()),
        Object::Iptables(rules) => iptables(f, &rules.program(), &restore(Some(rules), None)),
        Object::Trusted(net) => write!(f, "firewall-cmd --zone=trusted --add-source={net}"),
    }
}

fn delete(f: &mut fmt::Formatter<'_>, object: &Object) -> fmt::Result {
    match object {
        Object::Link(link) => write!(f, "ip link delete {}", word(link.name.as_str())),
        Object::Sysctl(link, name, _) => write!(f, "# {} of {link} is left as it is", name.path(*link)),
        Object::Address(a) => write!(f, "ip{} address delete {}", six(a), address(a)),
        Object::Up(link) => write!(f, "ip link set {} down", word(link.as_str())),
        Object::Fdb(Fdb { link, mac, diverted: true, .. }) => {
            write!(f, "bridge fdb delete {mac} dev {} self", word(link.as_str()))
        }
        Object::Fdb(Fdb { link, mac, dst, .. }) => {
            write!(f, "bridge fdb delete {mac} dev {} dst {dst} self", word(link.as_str()))
        }
        Object::Neigh(Neigh { link, address, .. }) => {
            write!(f, "ip neigh delete {address} dev {}", word(link.as_str()))
        }
        Object::Route(r) => write!(f, "ip{} route delete {}", route_family(r), route(&r.deletable())),
        Object::Table(t) => write!(f, "nft delete table {} {}", t.nft_family(), t.name()),
        Object::Iptables(rules) => iptables(f, &rules.program(), &restore(None, Some(rules))),
        Object::Trusted(net) => write!(f, "firewall-cmd --zone=trusted --remove-source={net}"),
    }
}

fn add_link(f: &mut fmt::Formatter<'_>, link: &Link, name: &dyn Fn(u32) -> String) -> fmt::Result {
    let (tunnel, mac, mtu) = (word(link.name.as_str()), link.mac, link.mtu);
    write!(f, "ip link add {tunnel} address {mac} mtu {mtu}")?;
    link.kind.write_new(f, &|index| word(name(index)).into_owned())?;
    write!(f, "\nip link set {tunnel} alias {}", word(&*link.tag))
}

fn change_link(
    f: &mut fmt::Formatter<'_>,
    have: &Link,
    want: &Link,
    name: &dyn Fn(u32) -> String,
) -> fmt::Result {
    if have.name != want.name {
        let (old, new) = (word(have.name.as_str()), word(want.name.as_str()));
        return write!(f, "ip link set {old} name {new}");
    }
    write!(f, "ip link set {}", word(want.name.as_str()))?;
    if have.mtu != want.mtu {
        write!(f, " mtu {}", want.mtu)?;
    }
    if have.mac != want.mac {
        write!(f, " address {}", want.mac)?;
    }
    if have.tag != want.tag {
        write!(f, " alias {}", word(&*want.tag))?;
    }
    if have.master != want.master {
        f.write_str(" nomaster")?;
    }
    if have.kind == want.kind {
        return Ok(());
    }
    want.kind.write_change(f, &|index| word(name(index)).into_owned())
}

fn address(a: &Address) -> String {
    format!("{} dev {}{}", a.net, word(a.link.as_str()), if a.net.is_ipv6() { " nodad" } else { "" })
}

fn route(r: &Route) -> String {
    let via = r.via.map(|v| format!(" via {v}")).unwrap_or_default();
    let link = r.link.map(|l| format!(" dev {}", word(l.as_str()))).unwrap_or_default();
    let onlink = if r.onlink { " onlink" } else { "" };
    let scope = if r.scope == RT_SCOPE_UNIVERSE { String::new() } else { format!(" scope {}", r.scope) };
    let metric =
        if r.metric == default_metric(&r.dst) { String::new() } else { format!(" metric {}", r.metric) };
    format!("{}{}{via}{link}{onlink} proto {}{scope}{metric}", route_kind(r.kind), r.dst, r.protocol)
}

/// The word before the destination, with a blank.
fn route_kind(kind: RouteKind) -> String {
    // RTN_… of linux/rtnetlink.h.
    const NAMES: [(u8, &str); 9] = [
        (2, "local"),
        (3, "broadcast"),
        (4, "anycast"),
        (5, "multicast"),
        (7, "unreachable"),
        (8, "prohibit"),
        (9, "throw"),
        (10, "nat"),
        (11, "xresolve"),
    ];
    match kind {
        RouteKind::Unicast | RouteKind::Special => String::new(),
        RouteKind::Blackhole => "blackhole ".to_owned(),
        RouteKind::Other(n) => {
            let name = NAMES.iter().find(|(number, _)| *number == n);
            name.map_or_else(|| format!("{n} "), |(_, name)| format!("{name} "))
        }
    }
}

fn route_family(r: &Route) -> &'static str {
    if r.dst.is_ipv6() { " -6" } else { "" }
}

fn six(a: &Address) -> &'static str {
    if a.net.is_ipv6() { " -6" } else { "" }
}
