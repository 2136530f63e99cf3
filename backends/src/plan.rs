//! What to do, in order; prints itself as the lines an operator would type.

use std::fmt;

use crate::netlink::link::RT_SCOPE_UNIVERSE;
use crate::state::{Address, Fdb, Link, LinkKind, Neigh, Object, Route, RouteKind, default_metric};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// Steps in dependency order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { want: Object::Link(want), have: Some(Object::Link(have)) } => {
                change_link(f, have, want)
            }
            Self::Put { want, .. } => put(f, want),
            Self::Delete(have) => delete(f, have),
        }
    }
}

fn put(f: &mut fmt::Formatter<'_>, object: &Object) -> fmt::Result {
    match object {
        Object::Link(link) => add_link(f, link),
        Object::Sysctl(link, name, value) => write!(f, "echo {value} > {}", name.path(*link)),
        Object::Address(a) => write!(f, "ip{} address replace {}", six(a), address(a)),
        Object::Up(link) => write!(f, "ip link set {link} up"),
        Object::Fdb(Fdb { link, mac, dst }) => {
            write!(f, "bridge fdb replace {mac} dev {link} dst {dst} self permanent")
        }
        Object::Neigh(Neigh { link, address, mac }) => {
            write!(f, "ip neigh replace {address} lladdr {mac} dev {link} nud permanent")
        }
        Object::Route(r) => write!(f, "ip{} route replace {}", route_family(r), route(r)),
        Object::Table(t) => write!(f, "{}", t.to_nft().trim_end()),
    }
}

fn delete(f: &mut fmt::Formatter<'_>, object: &Object) -> fmt::Result {
    match object {
        Object::Link(link) => write!(f, "ip link delete {}", link.name),
        Object::Sysctl(link, name, _) => write!(f, "# {} of {link} is left as it is", name.path(*link)),
        Object::Address(a) => write!(f, "ip{} address delete {}", six(a), address(a)),
        Object::Up(link) => write!(f, "ip link set {link} down"),
        Object::Fdb(Fdb { link, mac, dst }) => write!(f, "bridge fdb delete {mac} dev {link} dst {dst} self"),
        Object::Neigh(Neigh { link, address, .. }) => write!(f, "ip neigh delete {address} dev {link}"),
        Object::Route(r) => write!(f, "ip{} route delete {}", route_family(r), route(r)),
        Object::Table(t) => write!(f, "nft delete table {} {}", t.nft_family(), t.name()),
    }
}

fn add_link(f: &mut fmt::Formatter<'_>, link: &Link) -> fmt::Result {
    let LinkKind::Vxlan(v) = link.kind;
    let learning = if v.learning { "learning" } else { "nolearning" };
    write!(f, "ip link add {} address {} mtu {} type vxlan id {}", link.name, link.mac, link.mtu, v.vni)?;
    if let Some(local) = v.local {
        write!(f, " local {local}")?;
    }
    write!(f, " dev if{} dstport {} {learning}{}", v.parent, v.port, if v.gbp { " gbp" } else { "" })?;
    write!(f, "\nip link set {} alias {}", link.name, link.tag)
}

fn change_link(f: &mut fmt::Formatter<'_>, have: &Link, want: &Link) -> fmt::Result {
    write!(f, "ip link set {}", want.name)?;
    if have.mtu != want.mtu {
        write!(f, " mtu {}", want.mtu)?;
    }
    if have.mac != want.mac {
        write!(f, " address {}", want.mac)?;
    }
    if have.tag != want.tag {
        write!(f, " alias {}", want.tag)?;
    }
    let (LinkKind::Vxlan(old), LinkKind::Vxlan(new)) = (have.kind, want.kind);
    if old == new {
        return Ok(());
    }
    let learning = if new.learning { "learning" } else { "nolearning" };
    write!(f, " type vxlan id {} dev if{} {learning}", new.vni, new.parent)?;
    new.local.map_or(Ok(()), |local| write!(f, " local {local}"))
}

fn address(a: &Address) -> String {
    format!("{} dev {}{}", a.net, a.link, if a.net.is_ipv6() { " nodad" } else { "" })
}

fn route(r: &Route) -> String {
    let kind = match r.kind {
        RouteKind::Unicast => String::new(),
        RouteKind::Blackhole => "blackhole ".to_owned(),
        RouteKind::Other(n) => format!("type {n} "),
    };
    let via = r.via.map(|v| format!(" via {v}")).unwrap_or_default();
    let link = r.link.map(|l| format!(" dev {l}")).unwrap_or_default();
    let onlink = if r.onlink { " onlink" } else { "" };
    let scope = if r.scope == RT_SCOPE_UNIVERSE { String::new() } else { format!(" scope {}", r.scope) };
    let metric =
        if r.metric == default_metric(&r.dst) { String::new() } else { format!(" metric {}", r.metric) };
    format!("{kind}{}{via}{link}{onlink} proto {}{scope}{metric}", r.dst, r.protocol)
}

fn route_family(r: &Route) -> &'static str {
    if r.dst.is_ipv6() { " -6" } else { "" }
}

fn six(a: &Address) -> &'static str {
    if a.net.is_ipv6() { " -6" } else { "" }
}
