//! What a rule consists of: expressions over registers of four bytes each, which we call slots.

use std::net::IpAddr;

use backends::netlink::address_bytes;
use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::encode::{attr, nest, number, text};
use super::{LIST_ELEMENT, VALUE};

/// One expression as an element of a rule's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expr(pub(super) Vec<u8>);

/// What a packet has, and where it is loaded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// Number of the transport protocol.
    Protocol,
    /// An address of the packet.
    Address(Family, End),
    /// A port of the packet.
    Port(End),
    /// The port to which the connection was before anything translated it.
    OriginalPort,
    /// Ethernet address of the sender.
    EthernetSource,
    /// Name of the interface that the packet came through, or goes out through.
    Interface(End),
    /// The packet's mark.
    Mark,
}

/// Which of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl Expr {
    /// Load a field into the slots from this one on.
    pub(crate) fn load(field: Field, slot: u32) -> Self {
        match field {
            Field::Protocol => meta(META_PROTOCOL, slot),
            Field::Mark => meta(META_MARK, slot),
            Field::Interface(End::Source) => meta(META_IN, slot),
            Field::Interface(End::Destination) => meta(META_OUT, slot),
            Field::Address(family, end) => {
                let (source, len) = if family == Family::V4 { (12, 4) } else { (8, 16) };
                let offset = if end == End::Source { source } else { source + len };
                payload(NETWORK, offset, len, slot)
            }
            Field::Port(end) => payload(TRANSPORT, if end == End::Source { 0 } else { 2 }, 2, slot),
            Field::EthernetSource => payload(LINK, 6, 6, slot),
            Field::OriginalPort => {
                let parts = [number(1, register(slot)), number(2, CT_PORT), attr(3, &[CT_ORIGINAL])];
                expr("ct", &parts)
            }
        }
    }

    /// Keep the bits of a mask.
    pub(crate) fn keep(slot: u32, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let value = |kind, bytes: &[u8]| nest(kind, &[attr(VALUE, bytes)]);
        let parts = [
            number(1, register(slot)),
            number(2, register(slot)),
            number(3, len),
            value(4, mask),
            value(5, &vec![0; mask.len()]),
        ];
        expr("bitwise", &parts)
    }

    /// Go on only if a slot holds these bytes, or only if it does not.
    pub(crate) fn compare(slot: u32, equal: bool, bytes: &[u8]) -> Self {
        let value = nest(3, &[attr(VALUE, bytes)]);
        expr("cmp", &[number(1, register(slot)), number(2, u32::from(!equal)), value])
    }

    /// Go on only if the slots from this one on are a key of a set; a map's value goes to the slots from `into` on.
    pub(crate) fn lookup(set: &str, slot: u32, into: Option<u32>) -> Self {
        let mut parts = vec![text(1, set), number(2, register(slot))];
        parts.extend(into.map(|into| number(3, register(into))));
        expr("lookup", &parts)
    }

    /// Translate the destination to the address and the port in these slots.
    pub(crate) fn translate(family: Family, address: u32, port: u32) -> Self {
        let number_of_family = u32::from(super::encode::fixed(family)[0]);
        let parts = [
            number(1, NAT_DESTINATION),
            number(2, number_of_family),
            number(3, register(address)),
            number(5, register(port)),
        ];
        expr("nat", &parts)
    }

    /// Translate the source to the address of the interface that the packet goes out through.
    pub(crate) fn masquerade() -> Self {
        expr("masq", &[])
    }

    /// Go on in another chain, and come back from its end.
    pub(crate) fn jump(chain: &str) -> Self {
        verdict(&[number(1, JUMP.cast_unsigned()), text(2, chain)])
    }

    /// Go on behind the jump that led here.
    pub(crate) fn back() -> Self {
        verdict(&[number(1, RETURN.cast_unsigned())])
    }

    /// The packet is lost.
    pub(crate) fn drop() -> Self {
        verdict(&[number(1, DROP)])
    }

    /// Go on only for a destination that is one of the host's own addresses.
    pub(crate) fn to_host() -> [Self; 2] {
        let kind = expr("fib", &[number(1, register(0)), number(2, FIB_KIND), number(3, FIB_DESTINATION)]);
        [kind, Self::compare(0, true, &RTN_LOCAL.to_ne_bytes())]
    }

    /// Go on only for a connection whose destination was translated.
    pub(crate) fn translated() -> [Self; 3] {
        let status = expr("ct", &[number(1, register(0)), number(2, CT_STATUS)]);
        let bit = IPS_DST_NAT.to_ne_bytes();
        [status, Self::keep(0, &bit), Self::compare(0, false, &[0; 4])]
    }

    /// Go on only if an address lies in a network, or only if it does not.
    pub(crate) fn within(end: End, net: IpNetwork, inside: bool) -> Vec<Self> {
        let family = Family::of(&net.network());
        let load = Self::load(Field::Address(family, end), 0);
        let whole = |ip: IpAddr| address_bytes(&ip).to_vec();
        let compare = Self::compare(0, inside, &whole(net.network()));
        if net.prefix() == family.bits() {
            return vec![load, compare];
        }
        vec![load, Self::keep(0, &whole(net.mask())), compare]
    }
}

fn expr(name: &str, body: &[Vec<u8>]) -> Expr {
    Expr(nest(LIST_ELEMENT, &[text(1, name), nest(2, body)]))
}

fn verdict(parts: &[Vec<u8>]) -> Expr {
    expr("immediate", &[number(1, VERDICT_REGISTER), nest(2, &[nest(VERDICT, parts)])])
}

fn meta(key: u32, slot: u32) -> Expr {
    expr("meta", &[number(2, key), number(1, register(slot))])
}

fn payload(base: u32, offset: u32, len: u32, slot: u32) -> Expr {
    let parts = [number(1, register(slot)), number(2, base), number(3, offset), number(4, len)];
    expr("payload", &parts)
}

/// The number of a slot as the kernel writes it: every fourth has the old number of a register of sixteen bytes.
fn register(slot: u32) -> u32 {
    if slot.is_multiple_of(4) { 1 + slot / 4 } else { 8 + slot }
}

const VERDICT: u16 = 2;
const VERDICT_REGISTER: u32 = 0;
const JUMP: i32 = -3;
const RETURN: i32 = -5;
const DROP: u32 = 0;
const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const META_MARK: u32 = 3;
const META_IN: u32 = 6;
const META_OUT: u32 = 7;
const META_PROTOCOL: u32 = 16;
const CT_STATUS: u32 = 2;
const CT_PORT: u32 = 12;
const CT_ORIGINAL: u8 = 0;
/// `IPS_DST_NAT`.
const IPS_DST_NAT: u32 = 1 << 5;
const FIB_KIND: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const RTN_LOCAL: u32 = 2;
const NAT_DESTINATION: u32 = 1;
