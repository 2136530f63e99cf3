//! What a rule consists of: expressions over registers of four bytes each, which we call slots. Both directions: an
//! expression that we write reads back as itself, and an expression with more in it reads as [`Expr::Other`].

mod body;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use self::body::ExprBody;
use super::message::{LIST_ELEMENT, NF_ACCEPT, NF_DROP, TableFamily, number, text, value};
use crate::netlink::{Attrs, Batch, address_bytes};

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Load bytes of a header.
    Payload {
        /// `LINK`, `NETWORK` or `TRANSPORT`.
        base: u32,
        /// From this byte of the header on.
        offset: u32,
        /// So many bytes.
        len: u32,
        /// Into the slots from this one on.
        slot: u32,
    },
    /// Load what the kernel knows about a packet (`NFT_META_…`).
    Meta {
        /// What it knows.
        key: u32,
        /// Into this slot.
        slot: u32,
    },
    /// Load what the kernel knows about a packet's connection (`NFT_CT_…`).
    Connection {
        /// What it knows.
        key: u32,
        /// Of the original direction, or the packet's own.
        original: bool,
        /// Into this slot.
        slot: u32,
    },
    /// Load the type of the route to the packet's destination.
    RouteType {
        /// Into this slot.
        slot: u32,
    },
    /// Keep the bits of a mask.
    Mask {
        /// In the slots from this one on.
        slot: u32,
        /// As many bytes as are kept.
        mask: Vec<u8>,
    },
    /// Go on only if the slots hold these bytes, or only if they do not.
    Compare {
        /// The first slot.
        slot: u32,
        /// They hold them.
        equal: bool,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Go on only if the slots are a key of a set; a map's value goes to the slots from `into` on.
    Lookup {
        /// The set's name.
        set: String,
        /// The first slot.
        slot: u32,
        /// None for a set.
        into: Option<u32>,
    },
    /// Decide.
    Verdict(Verdict),
    /// Translate the source to the address of the outgoing interface.
    Masquerade {
        /// `NF_NAT_RANGE_…`.
        flags: u32,
    },
    /// Translate the destination.
    TranslateTo {
        /// Version of the address.
        family: Family,
        /// Slot of the address.
        address: u32,
        /// Slot of the port.
        port: u32,
    },
    /// A match of iptables. Only read.
    Match {
        /// Its name.
        name: String,
        /// Its own structure.
        info: Vec<u8>,
    },
    /// A target of iptables. Only read.
    Target {
        /// Its name.
        name: String,
    },
    /// Anything else, by its name. Only read.
    Other(String),
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passes the hook.
    Accept,
    /// It is lost.
    Drop,
    /// It goes on behind the jump that led here, or to the chain's policy.
    Return,
    /// It goes through another chain and comes back from its end.
    Jump(String),
    /// It goes through another chain and does not come back.
    Goto(String),
}

/// What a packet has, and where it is loaded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum End {
    /// Where a packet comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl Expr {
    /// Load a field into the slots from this one on.
    pub fn load(field: Field, slot: u32) -> Self {
        match field {
            Field::Protocol => Self::Meta { key: META_PROTOCOL, slot },
            Field::Mark => Self::Meta { key: META_MARK, slot },
            Field::Interface(End::Source) => Self::Meta { key: META_IN, slot },
            Field::Interface(End::Destination) => Self::Meta { key: META_OUT, slot },
            Field::Address(family, end) => {
                let len = u32::from(family.bits() / 8);
                Self::Payload { base: NETWORK, offset: address_offset(family, end), len, slot }
            }
            Field::Port(end) => {
                let offset = if end == End::Source { 0 } else { 2 };
                Self::Payload { base: TRANSPORT, offset, len: 2, slot }
            }
            Field::EthernetSource => Self::Payload { base: LINK, offset: 6, len: 6, slot },
            Field::OriginalPort => Self::Connection { key: CT_PORT, original: true, slot },
        }
    }

    /// Go on only if the first slots hold these bytes, or only if they do not.
    pub fn compare(equal: bool, bytes: &[u8]) -> Self {
        Self::Compare { slot: 0, equal, bytes: bytes.to_vec() }
    }

    /// Go on only if all these bits of the packet's mark are set.
    pub fn marked(bits: u32) -> [Self; 3] {
        // The mark is in the host's byte order, unlike the numbers of the protocol itself.
        let mask = bits.to_ne_bytes();
        [Self::load(Field::Mark, 0), Self::Mask { slot: 0, mask: mask.to_vec() }, Self::compare(true, &mask)]
    }

    /// Go on only if an address lies in a network, or only if it does not, as `nft` writes it: a prefix of whole bytes is
    /// compared as those, any other as a masked address.
    pub fn within(end: End, net: IpNetwork, inside: bool) -> Vec<Self> {
        let family = Family::of(&net.ip());
        let (whole, prefix) = (address_bytes(&net.network()), net.prefix());
        let octets = prefix / 8;
        if prefix.is_multiple_of(8) && octets > 0 {
            let offset = address_offset(family, end);
            let load = Self::Payload { base: NETWORK, offset, len: u32::from(octets), slot: 0 };
            return vec![load, Self::compare(inside, &whole[..usize::from(octets)])];
        }
        let mask = Self::Mask { slot: 0, mask: address_bytes(&net.mask()).to_vec() };
        vec![Self::load(Field::Address(family, end), 0), mask, Self::compare(inside, &whole)]
    }

    /// Go on only for a destination that is one of the host's own addresses.
    pub fn to_host() -> [Self; 2] {
        [Self::RouteType { slot: 0 }, Self::compare(true, &RTN_LOCAL.to_ne_bytes())]
    }

    /// Go on only for a connection whose destination was translated.
    pub fn translated() -> [Self; 3] {
        let status = Self::Connection { key: CT_STATUS, original: false, slot: 0 };
        let mask = Self::Mask { slot: 0, mask: IPS_DST_NAT.to_ne_bytes().to_vec() };
        [status, mask, Self::compare(false, &[0; 4])]
    }

    /// Go on in another chain, and come back from its end.
    pub fn jump(chain: &str) -> Self {
        Self::Verdict(Verdict::Jump(chain.to_owned()))
    }

    /// The name under which the kernel knows it.
    pub fn name(&self) -> &str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } => "meta",
            Self::Connection { .. } => "ct",
            Self::RouteType { .. } => "fib",
            Self::Mask { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Verdict(_) => "immediate",
            Self::Masquerade { .. } => "masq",
            Self::TranslateTo { .. } => "nat",
            Self::Match { .. } => "match",
            Self::Target { .. } => "target",
            Self::Other(name) => name,
        }
    }

    /// Adds to the batch: an element of a rule's list.
    pub(super) fn write(&self, batch: &mut Batch) {
        let element = batch.nest(LIST_ELEMENT);
        batch.attr_str(NAME, self.name());
        let body = batch.nest(DATA);
        match self {
            Self::Payload { base, offset, len, slot } => {
                numbers(batch, &[(1, register(*slot)), (2, *base), (3, *offset), (4, *len)]);
            }
            Self::Meta { key, slot } => numbers(batch, &[(2, *key), (1, register(*slot))]),
            Self::Connection { key, original, slot } => {
                numbers(batch, &[(1, register(*slot)), (2, *key)]);
                if *original {
                    batch.attr_u8(3, CT_ORIGINAL);
                }
            }
            Self::RouteType { slot } => {
                numbers(batch, &[(1, register(*slot)), (2, FIB_TYPE), (3, FIB_DESTINATION)]);
            }
            Self::Mask { slot, mask } => {
                let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                numbers(batch, &[(1, register(*slot)), (2, register(*slot)), (3, len)]);
                value(batch, 4, mask);
                value(batch, 5, &vec![0; mask.len()]);
            }
            Self::Compare { slot, equal, bytes } => {
                numbers(batch, &[(1, register(*slot)), (2, u32::from(!*equal))]);
                value(batch, 3, bytes);
            }
            Self::Lookup { set, slot, into } => {
                number(batch.attr_str(1, set), 2, register(*slot));
                if let Some(into) = into {
                    number(batch, 3, register(*into));
                }
            }
            Self::Verdict(verdict) => verdict.write(batch),
            Self::Masquerade { flags: 0 } => {}
            Self::Masquerade { flags } => numbers(batch, &[(1, *flags)]),
            Self::TranslateTo { family, address, port } => {
                let family = u32::from(TableFamily::from(*family).0);
                let (address, port) = (register(*address), register(*port));
                numbers(batch, &[(1, NAT_DESTINATION), (2, family), (3, address), (5, port)]);
            }
            // The kernel refuses an expression without content.
            Self::Match { .. } | Self::Target { .. } | Self::Other(_) => {}
        }
        batch.end(body).end(element);
    }

    /// Reads an element of a rule's list.
    pub(super) fn read(element: &[u8]) -> Self {
        let name = Attrs::new(element).find(NAME).and_then(text).unwrap_or("?");
        let body = Attrs::new(element).find(DATA).map(ExprBody);
        body.and_then(|body| body.read(name)).unwrap_or_else(|| Self::Other(name.to_owned()))
    }
}

impl Verdict {
    fn write(&self, batch: &mut Batch) {
        let (code, chain) = match self {
            Self::Accept => (NF_ACCEPT, None),
            Self::Drop => (NF_DROP, None),
            Self::Return => (RETURN, None),
            Self::Jump(chain) => (JUMP, Some(chain)),
            Self::Goto(chain) => (GOTO, Some(chain)),
        };
        number(batch, 1, VERDICT_REGISTER);
        let data = batch.nest(2);
        let verdict = batch.nest(DATA_VERDICT);
        number(batch, 1, code);
        if let Some(chain) = chain {
            batch.attr_str(2, chain);
        }
        batch.end(verdict).end(data);
    }
}

/// The network that these bytes of the network header, from this offset on, are an address of.
pub fn network_at(offset: u32, bytes: &[u8], prefix: u8) -> Option<(End, IpNetwork)> {
    // Only IPv4 has an address at 12 and 16, only IPv6 at 8 and 24.
    let places =
        Family::ALL.into_iter().flat_map(|family| [End::Source, End::Destination].map(|end| (family, end)));
    let (family, end) = places.into_iter().find(|(family, end)| address_offset(*family, *end) == offset)?;
    let mut whole = [0; 16];
    let whole = &mut whole[..usize::from(family.bits() / 8)];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let address: IpAddr = crate::netlink::address_from(whole)?;
    Some((end, IpNetwork::new(address, prefix).ok()?))
}

/// Leading ones of a mask.
pub fn mask_length(mask: &[u8]) -> u8 {
    let whole = mask.iter().take_while(|b| **b == 0xff).count();
    let ones = mask.get(whole).map_or(0, |b| b.leading_ones());
    u8::try_from(whole * 8 + ones as usize).unwrap_or(u8::MAX)
}

/// Where an address is in the network header.
fn address_offset(family: Family, end: End) -> u32 {
    match (family, end) {
        (Family::V4, End::Source) => 12,
        (Family::V4, End::Destination) => 16,
        (Family::V6, End::Source) => 8,
        (Family::V6, End::Destination) => 24,
    }
}

fn numbers(batch: &mut Batch, all: &[(u16, u32)]) {
    for (kind, value) in all {
        number(batch, *kind, *value);
    }
}

/// The number of a slot as the kernel writes it: every fourth has the old number of a register of sixteen bytes.
fn register(slot: u32) -> u32 {
    if slot.is_multiple_of(4) { 1 + slot / 4 } else { 8 + slot }
}

const NAME: u16 = 1;
const DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_REGISTER: u32 = 0;
/// `NFT_RETURN`, `NFT_JUMP`, `NFT_GOTO`: minus five, three and four.
const RETURN: u32 = (-5i32).cast_unsigned();
const JUMP: u32 = (-3i32).cast_unsigned();
const GOTO: u32 = (-4i32).cast_unsigned();
/// `NFT_PAYLOAD_LL_HEADER`.
const LINK: u32 = 0;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
pub const NETWORK: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
pub const TRANSPORT: u32 = 2;
const META_MARK: u32 = 3;
const META_IN: u32 = 6;
const META_OUT: u32 = 7;
/// `NFT_META_NFPROTO`.
pub const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const CT_STATUS: u32 = 2;
const CT_PORT: u32 = 12;
const CT_ORIGINAL: u8 = 0;
/// `IPS_DST_NAT`.
const IPS_DST_NAT: u32 = 1 << 5;
const FIB_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const RTN_LOCAL: u32 = 2;
const NAT_DESTINATION: u32 = 1;
/// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED`, which the kernel adds by itself.
const NAT_MAPS: u32 = 3;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
pub const FULLY_RANDOM: u32 = 0x10;
/// `NFT_BITWISE_MASK_XOR`.
const MASK_AND_FLIP: u32 = 0;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn element(expr: &Expr) -> Vec<u8> {
        let mut batch = Batch::new();
        expr.write(batch.message(0, 0, &[]));
        let bytes = batch.seal_for_test(1);
        Attrs::new(&bytes[16..]).next().unwrap().1.to_vec()
    }

    #[test]
    fn every_expression_that_we_write_reads_back_as_itself() {
        let fields = [
            Field::Protocol,
            Field::Address(Family::V4, End::Source),
            Field::Address(Family::V6, End::Destination),
            Field::Port(End::Destination),
            Field::OriginalPort,
            Field::EthernetSource,
            Field::Interface(End::Source),
            Field::Interface(End::Destination),
            Field::Mark,
        ];
        let mut all: Vec<_> =
            fields.into_iter().flat_map(|f| (0..8).map(move |slot| Expr::load(f, slot))).collect();
        all.extend(Expr::to_host().into_iter().chain(Expr::translated()).chain(Expr::marked(0x4000)));
        all.extend([Some(3), None].map(|into| Expr::Lookup { set: "ports".to_owned(), slot: 1, into }));
        all.extend([Verdict::Accept, Verdict::Drop, Verdict::Return].map(Expr::Verdict));
        all.extend([Expr::jump("x"), Expr::Verdict(Verdict::Goto("y".to_owned()))]);
        all.extend([0, FULLY_RANDOM].map(|flags| Expr::Masquerade { flags }));
        all.extend(Family::ALL.map(|family| Expr::TranslateTo { family, address: 0, port: 4 }));
        for expr in all {
            assert_eq!(Expr::read(&element(&expr)), expr);
        }
    }

    #[test]
    fn an_expression_that_says_more_than_ours_is_another_one() {
        let mut batch = Batch::new();
        batch.message(0, 0, &[]);
        batch.attr_str(NAME, "masq");
        let body = batch.nest(DATA);
        numbers(&mut batch, &[(1, FULLY_RANDOM), (2, 1)]);
        batch.end(body);
        let bytes = batch.seal_for_test(1);
        assert_eq!(Expr::read(&bytes[16..]), Expr::Other("masq".to_owned()));
    }
}
