//! Masquerade (`ipMasq`): what leaves a subnet of the network for elsewhere has the host's address. One chain with one
//! rule for every subnet, in a table of our own, made on first need; nothing per container, so a DEL has no part in it.
//!
//! ```text
//!   table ip selvage-masquerade { chain cbr0-10.244.1.0/24 {
//!       type nat hook postrouting priority 100
//!       ip saddr 10.244.1.0/24 ip daddr != 10.244.1.0/24 ip daddr != 224.0.0.0/4 masquerade comment "cbr0 10.244.1.0/24"
//!   } }
//! ```

use std::collections::BTreeSet;

use backends::local::hash::Fnv64;
use backends::netlink::{AF_INET, AF_INET6, Attrs, Batch, NetlinkError, RawMessage, Socket, address_bytes};
use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::contract::{Code, During, Failure};
use crate::plugin::ipam::Lease;

const TABLE: &str = "selvage-masquerade";
/// After the address a connection is for has been settled (`srcnat`).
const PRIORITY: i32 = 100;
/// The longest name of a chain, in bytes.
const LONGEST_NAME: usize = 120;

/// Sees that the rules of the leases' subnets stand.
pub(super) fn ensure(network: &str, leases: &[Lease]) -> Result<(), Failure> {
    let mut socket = open()?;
    for subnet in subnets(leases) {
        if !stands(&mut socket, network, subnet)? {
            put(&mut socket, network, subnet)
                .during(Code::Kernel, || format!("cannot masquerade {subnet}"))?;
        }
    }
    Ok(())
}

/// Names the first of the leases' subnets whose rule does not stand.
pub(super) fn missing(network: &str, leases: &[Lease]) -> Result<Option<IpNetwork>, Failure> {
    let mut socket = open()?;
    for subnet in subnets(leases) {
        if !stands(&mut socket, network, subnet)? {
            return Ok(Some(subnet));
        }
    }
    Ok(None)
}

/// Removes the rules of a network; none there, or no table, is fine.
pub(super) fn remove(network: &str) -> Result<(), Failure> {
    let Ok(mut socket) = Socket::netfilter() else { return Ok(()) };
    for family in [AF_INET, AF_INET6] {
        let mut request = Batch::new();
        header(&mut request, GETCHAIN, DUMP, family);
        let mut chains = Vec::new();
        let read = socket.dump(&mut request, |message| chains.extend(chain_of(&message, network)));
        if read.is_err() {
            continue; // no nf_tables: no rules
        }
        for chain in chains {
            let mut batch = Batch::new();
            begin(&mut batch);
            for kind in [DELRULE, DELCHAIN] {
                let ack = if kind == DELCHAIN { ACK } else { 0 };
                header(&mut batch, kind, ack, family).attr_str(1, TABLE);
                batch.attr_str(if kind == DELCHAIN { CHAIN_NAME } else { RULE_CHAIN }, &chain);
            }
            end(&mut batch);
            match socket.transaction(&mut batch) {
                Err((_, error)) if error.errno() == Errno::ENOENT => {}
                other => other
                    .map_err(|(_, error)| error)
                    .during(Code::Kernel, || format!("cannot remove chain {chain}"))?,
            }
        }
    }
    Ok(())
}

fn open() -> Result<Socket, Failure> {
    Socket::netfilter().during(Code::Kernel, || "ipMasq needs nf_tables: no netlink socket".into())
}

fn subnets(leases: &[Lease]) -> BTreeSet<IpNetwork> {
    leases.iter().filter_map(|l| IpNetwork::new(l.net.network(), l.net.prefix()).ok()).collect()
}

/// Whether the subnet's rule is there as we would write it.
fn stands(socket: &mut Socket, network: &str, subnet: IpNetwork) -> Result<bool, Failure> {
    let (family, name) = (family(subnet), chain_name(network, subnet));
    let mut request = Batch::new();
    header(&mut request, GETRULE, DUMP, family).attr_str(RULE_TABLE, TABLE).attr_str(RULE_CHAIN, &name);
    let (mut rules, mut right) = (0, 0);
    let wanted = expressions(subnet);
    let read = socket.dump(&mut request, |message| {
        // Old kernels ignore the filter.
        let Some(attrs) = attributes(&message, NEWRULE) else { return };
        if text(&attrs, RULE_TABLE) == Some(TABLE) && text(&attrs, RULE_CHAIN) == Some(&*name) {
            rules += 1;
            right += u32::from(says(attrs.find(RULE_EXPRESSIONS).unwrap_or_default(), &wanted));
        }
    });
    match read {
        Err(error) if error.errno() == Errno::ENOENT => Ok(false),
        Err(error) => Err(error).during(Code::Kernel, || "cannot read the masquerade rules".into()),
        Ok(_) => Ok(rules == 1 && right == 1),
    }
}

/// Makes the chain hold the one rule, whatever it held: two processes that do so at once agree.
fn put(socket: &mut Socket, network: &str, subnet: IpNetwork) -> Result<(), NetlinkError> {
    let (family, name) = (family(subnet), chain_name(network, subnet));
    let mut batch = Batch::new();
    begin(&mut batch);
    header(&mut batch, NEWTABLE, CREATE, family).attr_str(1, TABLE);
    header(&mut batch, NEWCHAIN, CREATE, family).attr_str(1, TABLE).attr_str(CHAIN_NAME, &name);
    let hook = batch.nest(CHAIN_HOOK);
    batch.attr(1, &NF_POSTROUTING.to_be_bytes()).attr(2, &PRIORITY.to_be_bytes());
    batch.end(hook);
    batch.attr(CHAIN_POLICY, &NF_ACCEPT.to_be_bytes()).attr_str(CHAIN_TYPE, "nat");
    header(&mut batch, DELRULE, 0, family).attr_str(RULE_TABLE, TABLE).attr_str(RULE_CHAIN, &name);
    header(&mut batch, NEWRULE, CREATE | APPEND | ACK, family);
    batch.attr_str(RULE_TABLE, TABLE).attr_str(RULE_CHAIN, &name);
    let list = batch.nest(RULE_EXPRESSIONS);
    for expression in expressions(subnet) {
        expression.write(&mut batch);
    }
    batch.end(list);
    batch.attr(RULE_USERDATA, &comment(&format!("{network} {subnet}")));
    end(&mut batch);
    socket.transaction(&mut batch).map_err(|(_, error)| error)
}

/// A chain of the network in our table.
fn chain_of(message: &RawMessage<'_>, network: &str) -> Option<String> {
    let attrs = attributes(message, NEWCHAIN).filter(|attrs| text(attrs, 1) == Some(TABLE))?;
    let name = text(&attrs, CHAIN_NAME)?;
    let subnet = name.strip_prefix(&format!("masq-{network}-"))?.replace('_', ":").parse().ok()?;
    (chain_name(network, subnet) == name).then(|| name.to_owned())
}

/// nft's own names have no colons.
fn chain_name(network: &str, subnet: IpNetwork) -> String {
    let name = format!("masq-{network}-{}", subnet.to_string().replace(':', "_"));
    if name.len() <= LONGEST_NAME { name } else { format!("masq-{}", Fnv64::of(name.as_bytes())) }
}

/// An expression of a rule: its name and its attributes.
struct Expression(&'static str, Vec<(u16, Vec<u8>)>);

/// From the subnet, to elsewhere, not to many: masquerade.
fn expressions(subnet: IpNetwork) -> Vec<Expression> {
    let many = if subnet.is_ipv4() { "224.0.0.0/4" } else { "ff00::/8" };
    let (source, destination) = if subnet.is_ipv4() { (12, 16) } else { (8, 24) };
    let mut all = address(source, EQUAL, subnet);
    all.extend(address(destination, NOT_EQUAL, subnet));
    all.extend(many.parse().map(|many| address(destination, NOT_EQUAL, many)).unwrap_or_default());
    all.push(Expression("masq", vec![]));
    all
}

/// Whether the address at this place of the network header is of a network.
fn address(offset: u32, operator: u32, net: IpNetwork) -> Vec<Expression> {
    let (bytes, mask) = (address_bytes(&net.network()), address_bytes(&net.mask()));
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let number = |kind, value: u32| (kind, value.to_be_bytes().to_vec());
    vec![
        Expression(
            "payload",
            vec![number(1, REGISTER), number(2, NETWORK_HEADER), number(3, offset), number(4, len)],
        ),
        Expression(
            "bitwise",
            vec![
                number(1, REGISTER),
                number(2, REGISTER),
                number(3, len),
                (4 | NESTED, value(&mask)),
                (5 | NESTED, value(&vec![0; bytes.len()])),
            ],
        ),
        Expression("cmp", vec![number(1, REGISTER), number(2, operator), (3 | NESTED, value(&bytes))]),
    ]
}

impl Expression {
    fn write(&self, batch: &mut Batch) {
        let element = batch.nest(1);
        batch.attr_str(1, self.0);
        let data = batch.nest(2);
        for (kind, bytes) in &self.1 {
            batch.attr(*kind, bytes);
        }
        batch.end(data).end(element);
    }

    /// Whether an element of the kernel's list says all of it.
    fn is(&self, element: &[u8]) -> bool {
        let element = Attrs::new(element);
        let data = Attrs::new(element.clone().find(2).unwrap_or_default());
        let has =
            |(kind, bytes): &(u16, Vec<u8>)| data.clone().find(kind & !NESTED) == Some(bytes.as_slice());
        text(&element, 1) == Some(self.0) && self.1.iter().all(has)
    }
}

fn says(list: &[u8], wanted: &[Expression]) -> bool {
    let there: Vec<_> = Attrs::new(list).map(|(_, element)| element).collect();
    there.len() == wanted.len() && there.iter().zip(wanted).all(|(element, wanted)| wanted.is(element))
}

/// Bytes as a data attribute.
fn value(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len() + 4).unwrap_or(u16::MAX);
    [&len.to_ne_bytes()[..], &1u16.to_ne_bytes(), bytes].concat()
}

/// As nft keeps comments: type 0, length, text with its closing NUL.
fn comment(text: &str) -> Vec<u8> {
    let text: String = text.chars().take(120).collect();
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, len][..], text.as_bytes(), &[0]].concat()
}

fn family(net: IpNetwork) -> u8 {
    if net.is_ipv4() { AF_INET } else { AF_INET6 }
}

pub(super) fn header(batch: &mut Batch, kind: u16, flags: u16, family: u8) -> &mut Batch {
    batch.message(SUBSYSTEM << 8 | kind, REQUEST | flags, &[family, 0, 0, 0])
}

pub(super) fn begin(batch: &mut Batch) {
    batch.message(BATCH_BEGIN, REQUEST, &[0, 0, 0, 10]);
}

pub(super) fn end(batch: &mut Batch) {
    batch.message(BATCH_END, REQUEST, &[0, 0, 0, 10]);
}

pub(super) fn attributes<'a>(message: &RawMessage<'a>, kind: u16) -> Option<Attrs<'a>> {
    (message.kind == SUBSYSTEM << 8 | kind).then(|| Attrs::after(message.payload, 4))
}

pub(super) fn text<'a>(attrs: &Attrs<'a>, kind: u16) -> Option<&'a str> {
    let bytes = attrs.clone().find(kind)?;
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

const NEWTABLE: u16 = 0;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
pub(super) const NEWRULE: u16 = 6;
pub(super) const GETRULE: u16 = 7;
pub(super) const DELRULE: u16 = 8;

const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;

const NF_POSTROUTING: u32 = 4;
const NF_ACCEPT: u32 = 1;
/// `NFT_REG_1`: holds sixteen octets.
const REGISTER: u32 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_named_after_its_network_and_subnet_and_read_back() {
        let six = "fc00::/64".parse().unwrap();
        assert_eq!(chain_name("cbr0", six), "masq-cbr0-fc00__/64");
        let long = chain_name(&"n".repeat(200), six);
        assert!(long.len() <= LONGEST_NAME && long.starts_with("masq-"), "{long}");
    }
}
