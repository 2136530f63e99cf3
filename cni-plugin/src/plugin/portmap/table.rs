//! Port maps in nf_tables: the rules, which are the same for all, and the elements of an attachment.
//!
//! ```text
//!   prerouting, output ── to an address of the host ──▶ hostports ── at_ADDRESS, ports: map ──▶ container : port
//!   postrouting ── translated, from the container's own subnet or the loopback, in hairpin ──▶ masquerade
//!               ── translated, in masquerade_all ────────────────────────────────────────────▶ masquerade
//! ```
//!
//! One table of each family. Conditions of a configuration have maps of their own, named after them, before the others.

use backends::netlink::nft::{
    BaseChain, Change, Element, End, Expr, Field, Kind, OUTPUT, POSTROUTING, PREROUTING, Rule, Set,
};
use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::conditions;
use super::conf::{Mapping, PortMap};
use crate::contract::Failure;
use crate::sys::hash;

/// The table's name in both families.
pub(super) const TABLE: &str = "selvage_portmap";

/// What an attachment wants in the table of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) family: Family,
    pub(super) rules: Vec<Rule>,
    /// Elements by the name of their set, none of them twice.
    pub(super) elements: Vec<(String, Vec<Element>)>,
    maps: Maps,
}

/// The names of the maps that an attachment's conditions choose.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Maps {
    ports: String,
    at: String,
}

/// Container ports by host port.
const PORTS: &str = "ports";
/// Container ports by the host's address and port.
const AT: &str = "ports_at";
/// Connections that are masqueraded when the container or the loopback makes them.
const HAIRPIN: &str = "hairpin";
/// Connections that are masqueraded whatever their source.
const MASQUERADE_ALL: &str = "masquerade_all";
const HOSTPORTS: &str = "hostports";

impl Wish {
    /// What `conf` means for a container that has this address.
    pub(super) fn new(conf: &PortMap, family: Family, pod: IpNetwork, owner: &str) -> Result<Self, Failure> {
        let words = conf.conditions(family);
        let maps = Maps::of(words);
        let mut wish = Self { family, rules: rules(family), elements: Vec::new(), maps };
        if !words.is_empty() {
            for conditions in conditions::parse(words, family)? {
                wish.rules.extend(translations(family, &wish.maps, &conditions, &words.join(" ")));
            }
        }
        if conf.snat && !conf.masquerade_all {
            wish.rules.push(hairpin(family, pod));
        }
        let (mut ports, mut at, mut connections) = (vec![], vec![], vec![]);
        for mapping in conf.of(family) {
            let list = if mapping.host_ip.is_some() { &mut at } else { &mut ports };
            put(list, forward(&mapping, pod, owner));
            put(&mut connections, connection(&mapping, pod, owner));
        }
        let source = if conf.masquerade_all { MASQUERADE_ALL } else { HAIRPIN };
        wish.elements.push((wish.maps.ports.clone(), ports));
        wish.elements.push((wish.maps.at.clone(), at));
        if conf.snat || conf.masquerade_all {
            wish.elements.push((source.to_owned(), connections));
        }
        wish.elements.retain(|(_, elements)| !elements.is_empty());
        Ok(wish)
    }

    /// Make what is missing of the table, and these rules.
    pub(super) fn structure(&self, change: &mut Change<'_>, missing: &[&Rule]) {
        change.table(self.family, "port maps of containers; made anew when missing");
        let maps = [(PORTS, AT), (&*self.maps.ports, &*self.maps.at)];
        for (ports, at) in maps {
            change.set(self.family, &map(ports, &[Kind::Protocol, Kind::Port]));
            change.set(self.family, &map(at, &[Kind::Protocol, Kind::Address, Kind::Port]));
        }
        for name in [HAIRPIN, MASQUERADE_ALL] {
            let key = &[Kind::Protocol, Kind::Port, Kind::Address, Kind::Port];
            change.set(self.family, &Set { name: name.to_owned(), key, value: &[] });
        }
        change.chain(self.family, HOSTPORTS);
        for (name, hook, priority) in HOOKS {
            change.base_chain(self.family, name, BaseChain { kind: "nat", hook, priority, policy: None });
        }
        missing.iter().for_each(|rule| change.rule(self.family, rule));
    }
}

impl Maps {
    fn of(conditions: &[String]) -> Self {
        let suffix =
            if conditions.is_empty() { String::new() } else { hash::name("_", &conditions.join(" "), 9) };
        Self { ports: format!("{PORTS}{suffix}"), at: format!("{AT}{suffix}") }
    }
}

/// Of elements with the same key the last one counts.
fn put(list: &mut Vec<Element>, element: Element) {
    list.retain(|other| other.key != element.key);
    list.push(element);
}

fn map(name: &str, key: &'static [Kind]) -> Set {
    Set { name: name.to_owned(), key, value: &[Kind::Address, Kind::Port] }
}

/// The rules of every attachment.
fn rules(family: Family) -> Vec<Rule> {
    let mut all = Vec::new();
    for chain in ["prerouting", "output"] {
        let exprs = [&Expr::to_host()[..], &[Expr::jump(HOSTPORTS)]].concat();
        all.push(rule(chain, "to an address of this host", exprs));
    }
    let plain = Maps::of(&[]);
    all.extend(translations(family, &plain, &[], "").map(|rule| Rule { first: false, ..rule }));
    all.push(rule("postrouting", "masqAll", masquerade(family, &[], MASQUERADE_ALL)));
    if family == Family::V4 {
        let from = IpNetwork::V4(LOOPBACK);
        all.push(rule(
            "postrouting",
            "from the loopback",
            masquerade(family, &Expr::within(End::Source, from, true), HAIRPIN),
        ));
    }
    all
}

/// The two lookups that translate, after these conditions. They stand before those that have no conditions, the one
/// with an address first.
fn translations(family: Family, maps: &Maps, conditions: &[Expr], note: &str) -> impl Iterator<Item = Rule> {
    let translate = move |load: Vec<Expr>, map: &str| {
        let port = u32::from(family.bits()) / 32;
        let lookup = Expr::Lookup { set: map.to_owned(), slot: 0, into: Some(0) };
        let end = [lookup, Expr::TranslateTo { family, address: 0, port }];
        [conditions, &load, &end].concat()
    };
    let address = Field::Address(family, End::Destination);
    let width = u32::from(family.bits()) / 32;
    let at = vec![
        Expr::load(Field::Protocol, 0),
        Expr::load(address, 1),
        Expr::load(Field::Port(End::Destination), 1 + width),
    ];
    let any = vec![Expr::load(Field::Protocol, 0), Expr::load(Field::Port(End::Destination), 1)];
    let plain = conditions.is_empty();
    let made = move |exprs| Rule { chain: HOSTPORTS.to_owned(), note: note.to_owned(), exprs, first: true };
    let mut two = [made(translate(at, &maps.at)), made(translate(any, &maps.ports))];
    if !plain {
        // Each goes before all others, so the last one to go ends up first.
        two.reverse();
    }
    two.into_iter()
}

/// Masquerades what a container's own subnet sends to it by way of the host: otherwise the answers would not come back
/// here.
fn hairpin(family: Family, pod: IpNetwork) -> Rule {
    let subnet = IpNetwork::new(pod.network(), pod.prefix()).unwrap_or(pod);
    let from = Expr::within(End::Source, subnet, true);
    rule("postrouting", &format!("hairpin of {subnet}"), masquerade(family, &from, HAIRPIN))
}

fn masquerade(family: Family, conditions: &[Expr], set: &str) -> Vec<Expr> {
    let width = u32::from(family.bits()) / 32;
    let key = [
        Expr::load(Field::Protocol, 0),
        Expr::load(Field::OriginalPort, 1),
        Expr::load(Field::Address(family, End::Destination), 2),
        Expr::load(Field::Port(End::Destination), 2 + width),
        Expr::Lookup { set: set.to_owned(), slot: 0, into: None },
        Expr::Masquerade { flags: 0 },
    ];
    [&Expr::translated()[..], conditions, &key].concat()
}

fn rule(chain: &str, note: &str, exprs: Vec<Expr>) -> Rule {
    Rule { chain: chain.to_owned(), note: note.to_owned(), exprs, first: false }
}

/// The element that sends a host port to the container.
fn forward(mapping: &Mapping, pod: IpNetwork, owner: &str) -> Element {
    let at = mapping.host_ip.map(bytes).unwrap_or_default();
    Element {
        key: [slot(&[mapping.protocol as u8]), at, port(mapping.host_port)].concat(),
        value: [bytes(pod.ip()), port(mapping.container_port)].concat(),
        owner: owner.to_owned(),
        ends: false,
    }
}

/// The element that knows a connection to be translated by that one.
fn connection(mapping: &Mapping, pod: IpNetwork, owner: &str) -> Element {
    let (from, to) = (port(mapping.host_port), port(mapping.container_port));
    let key = [slot(&[mapping.protocol as u8]), from, bytes(pod.ip()), to].concat();
    Element { key, value: vec![], owner: owner.to_owned(), ends: false }
}

fn port(port: u16) -> Vec<u8> {
    slot(&port.to_be_bytes())
}

fn bytes(ip: std::net::IpAddr) -> Vec<u8> {
    backends::netlink::address_bytes(&ip).to_vec()
}

/// Four bytes: a register holds no fewer.
fn slot(bytes: &[u8]) -> Vec<u8> {
    let mut four = bytes.to_vec();
    four.resize(4, 0);
    four
}

/// Protocol, host port, container address and container port of an element of a map of ports, for messages and for
/// connection tracking.
pub(super) fn meaning(element: &Element) -> Option<(u8, u16, std::net::IpAddr, u16)> {
    let tail = |bytes: &[u8]| bytes.last_chunk::<4>().map(|b| u16::from_be_bytes([b[0], b[1]]));
    let address = element.value.get(..element.value.len().checked_sub(4)?)?;
    let pod = backends::netlink::address_from(address)?;
    Some((*element.key.first()?, tail(&element.key)?, pod, tail(&element.value)?))
}

const LOOPBACK: ipnetwork::Ipv4Network =
    match ipnetwork::Ipv4Network::new_checked(std::net::Ipv4Addr::new(127, 0, 0, 0), 8) {
        Some(net) => net,
        None => panic!("a constant"),
    };

/// Hook and priority. One after the usual priority of destination translation: translations of other plugins come first,
/// so that an element that we left behind takes no port from the plugin that replaced us. One before the usual priority of
/// masquerading, since masquerading would treat our connections as ordinary ones.
const HOOKS: [(&str, u32, i32); 3] =
    [("prerouting", PREROUTING, -99), ("output", OUTPUT, -99), ("postrouting", POSTROUTING, 99)];
