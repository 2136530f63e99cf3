//! A rule as the kernel has it: a list of expressions over registers. The encoding is the one nft itself chooses, so
//! that a table loaded from our text by hand equals one that we wrote.
//!
//! Reading is exact: a list is a rule of ours only if writing that rule gives the same list again.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::message::be32;
use crate::netlink::{Attrs, Batch, address_bytes, address_from};
use crate::rules::{End, Fate, Match, Rule, Verdict};

/// An expression that we use, with everything that it says. All go through one register.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expr {
    /// Load bytes of the network header.
    Payload { offset: u32, len: u8 },
    /// Load the packet's mark.
    Mark,
    /// Keep the bits of this mask.
    Mask(Vec<u8>),
    /// Go on only if the register is equal, else only if it differs.
    Compare { equal: bool, bytes: Vec<u8> },
    /// Accept, return, ….
    Verdict(i32),
    /// Masquerade with these flags.
    Masquerade(u32),
}

/// Appends a rule's expressions as list elements; none for a rule that is not ours.
pub(super) fn write(batch: &mut Batch, rule: &Rule, family: Family) -> Option<()> {
    expressions(rule, family)?.iter().for_each(|expr| element(batch, expr));
    Some(())
}

/// Reads the list of a rule.
pub(super) fn read(list: &[u8], family: Family) -> Rule {
    let element = |(kind, bytes)| if kind == LIST_ELEMENT { parse(bytes) } else { None };
    let found: Option<Vec<_>> = Attrs::new(list).map(element).collect();
    let rule = found.as_deref().and_then(|exprs| recognise(exprs, family));
    let exact = rule.filter(|rule| expressions(rule, family) == found);
    exact.unwrap_or_else(|| Rule::Unknown(names(list)))
}

/// The expressions of a rule.
fn expressions(rule: &Rule, family: Family) -> Option<Vec<Expr>> {
    let Rule::When(matches, verdict) = rule else { return None };
    let mut exprs: Vec<_> = matches.iter().flat_map(|m| conditions(m, family)).collect();
    exprs.push(match verdict {
        Verdict::Accept => Expr::Verdict(NF_ACCEPT),
        Verdict::Return => Expr::Verdict(NFT_RETURN),
        Verdict::Masquerade { fully_random } => {
            Expr::Masquerade(if *fully_random { FULLY_RANDOM } else { 0 })
        }
    });
    Some(exprs)
}

fn conditions(condition: &Match, family: Family) -> Vec<Expr> {
    match condition {
        Match::Mark(bits) => {
            // The mark is in the host's byte order, unlike the numbers of the protocol itself.
            let bits = bits.to_ne_bytes().to_vec();
            vec![Expr::Mark, Expr::Mask(bits.clone()), Expr::Compare { equal: true, bytes: bits }]
        }
        Match::Address { end, inside, net } => {
            let offset = offset(*end, family);
            let whole = address_bytes(&net.network());
            let octets = net.prefix() / 8;
            // A prefix of whole octets is compared as those, any other as a masked address.
            if net.prefix().is_multiple_of(8) && octets > 0 {
                let bytes = whole[..usize::from(octets)].to_vec();
                vec![Expr::Payload { offset, len: octets }, Expr::Compare { equal: *inside, bytes }]
            } else {
                let mask = Expr::Mask(address_bytes(&net.mask()).to_vec());
                let bytes = whole.to_vec();
                vec![
                    Expr::Payload { offset, len: width(family) },
                    mask,
                    Expr::Compare { equal: *inside, bytes },
                ]
            }
        }
    }
}

/// The rule that these may be; see [`read`] for whether they are.
fn recognise(exprs: &[Expr], family: Family) -> Option<Rule> {
    let mut matches = Vec::new();
    let mut rest = exprs;
    loop {
        let (found, after) = match rest {
            [Expr::Verdict(NF_ACCEPT)] => return Some(Rule::When(matches, Verdict::Accept)),
            [Expr::Verdict(NFT_RETURN)] => return Some(Rule::When(matches, Verdict::Return)),
            [Expr::Masquerade(flags)] => {
                let fully_random = *flags == FULLY_RANDOM;
                return Some(Rule::When(matches, Verdict::Masquerade { fully_random }));
            }
            [Expr::Mark, Expr::Mask(bits), Expr::Compare { .. }, after @ ..] => {
                (Match::Mark(u32::from_ne_bytes(bits.as_slice().try_into().ok()?)), after)
            }
            [Expr::Payload { offset, .. }, Expr::Mask(mask), Expr::Compare { equal, bytes }, after @ ..] => {
                (address(*offset, *equal, bytes, mask_length(mask), family)?, after)
            }
            [Expr::Payload { offset, len }, Expr::Compare { equal, bytes }, after @ ..] => {
                (address(*offset, *equal, bytes, len.checked_mul(8)?, family)?, after)
            }
            _ => return None,
        };
        matches.push(found);
        rest = after;
    }
}

fn address(at: u32, inside: bool, bytes: &[u8], prefix: u8, family: Family) -> Option<Match> {
    let end = [End::Source, End::Destination].into_iter().find(|end| offset(*end, family) == at)?;
    let mut whole = bytes.to_vec();
    whole.resize(usize::from(width(family)), 0);
    let address: IpAddr = address_from(&whole)?;
    Some(Match::Address { end, inside, net: IpNetwork::new(address, prefix).ok()? })
}

/// Leading ones; a mask with holes is not what writing it again gives.
fn mask_length(mask: &[u8]) -> u8 {
    let whole = mask.iter().take_while(|b| **b == 0xff).count();
    let ones = mask.get(whole).map_or(0, |b| b.leading_ones());
    u8::try_from(whole * 8 + ones as usize).unwrap_or(u8::MAX)
}

/// Where an address stands in the network header.
fn offset(end: End, family: Family) -> u32 {
    match (family, end) {
        (Family::V4, End::Source) => 12,
        (Family::V4, End::Destination) => 16,
        (Family::V6, End::Source) => 8,
        (Family::V6, End::Destination) => 24,
    }
}

/// Octets of an address.
fn width(family: Family) -> u8 {
    family.bits() / 8
}

fn element(batch: &mut Batch, expr: &Expr) {
    let element = batch.nest(LIST_ELEMENT);
    batch.attr_str(EXPR_NAME, expr.name());
    let body = batch.nest(EXPR_DATA);
    match expr {
        Expr::Payload { offset, len } => {
            for (kind, value) in [(1, REGISTER), (2, NETWORK_HEADER), (3, *offset), (4, u32::from(*len))] {
                number(batch, kind, value);
            }
        }
        Expr::Mark => {
            number(batch, 2, META_MARK);
            number(batch, 1, REGISTER);
        }
        Expr::Mask(mask) => {
            let octets = u32::try_from(mask.len()).unwrap_or(u32::MAX);
            for (kind, value) in [(1, REGISTER), (2, REGISTER), (3, octets)] {
                number(batch, kind, value);
            }
            value(batch, 4, mask);
            value(batch, 5, &vec![0; mask.len()]);
        }
        Expr::Compare { equal, bytes } => {
            number(batch, 1, REGISTER);
            number(batch, 2, if *equal { EQUAL } else { NOT_EQUAL });
            value(batch, 3, bytes);
        }
        Expr::Verdict(code) => {
            number(batch, 1, VERDICT_REGISTER);
            let data = batch.nest(2);
            let verdict = batch.nest(DATA_VERDICT);
            number(batch, 1, code.cast_unsigned());
            batch.end(verdict).end(data);
        }
        Expr::Masquerade(0) => {}
        Expr::Masquerade(flags) => number(batch, 1, *flags),
    }
    batch.end(body);
    batch.end(element);
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Mark => "meta",
            Self::Mask(_) => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Verdict(_) => "immediate",
            Self::Masquerade(_) => "masq",
        }
    }
}

/// One element; none if it says anything that we would not.
fn parse(element: &[u8]) -> Option<Expr> {
    let body = Body(Attrs::new(element).find(EXPR_DATA)?);
    let found = match name(element)? {
        "payload" if body.is(1, REGISTER) && body.is(2, NETWORK_HEADER) && body.has_only(4) => {
            Expr::Payload { offset: body.number(3)?, len: body.number(4)?.try_into().ok()? }
        }
        "meta" if body.is(1, REGISTER) && body.is(2, META_MARK) && body.has_only(2) => Expr::Mark,
        "bitwise" if body.is(1, REGISTER) && body.is(2, REGISTER) && body.has_only(6) => {
            let (mask, flip) = (body.value(4)?, body.value(5)?);
            // The operation has a name only since Linux 5.6; before, there was no other.
            let plain =
                flip.iter().all(|b| *b == 0) && body.number(6).unwrap_or(MASK_AND_FLIP) == MASK_AND_FLIP;
            let whole = body.number(3)? as usize == mask.len() && flip.len() == mask.len();
            (plain && whole).then(|| Expr::Mask(mask.to_vec()))?
        }
        "cmp" if body.is(1, REGISTER) && body.has_only(3) => {
            let operator = body.number(2)?;
            let known = operator == EQUAL || operator == NOT_EQUAL;
            known.then_some(Expr::Compare { equal: operator == EQUAL, bytes: body.value(3)?.to_vec() })?
        }
        "immediate" if body.is(1, VERDICT_REGISTER) && body.has_only(2) => {
            let verdict = Body(Attrs::new(body.find(2)?).find(DATA_VERDICT)?);
            verdict.has_only(1).then_some(Expr::Verdict(verdict.number(1)?.cast_signed()))?
        }
        "masq" if body.has_only(1) => Expr::Masquerade(body.find(1).map_or(Some(0), be32)?),
        _ => return None,
    };
    Some(found)
}

fn name(element: &[u8]) -> Option<&str> {
    let bytes = Attrs::new(element).find(EXPR_NAME)?;
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

/// What to call a list that is not ours.
fn names(list: &[u8]) -> String {
    let names: Vec<_> = Attrs::new(list).map(|(_, element)| name(element).unwrap_or("?")).collect();
    names.join(" ")
}

/// A rule of somebody else, as far as it decides about every packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// It holds for some packets only, as far as we can tell.
    pub(crate) conditional: bool,
    /// What it does with them, if it decides.
    pub(crate) fate: Option<Fate>,
    /// The chain it hands them to.
    pub(crate) calls: Option<String>,
    /// Its only condition, where that is one on an address.
    pub(crate) only: Option<(End, IpNetwork)>,
    /// The one address that they go to, besides other conditions.
    pub(crate) to: Option<IpAddr>,
}

impl Foreign {
    /// Of a rule's list of expressions.
    pub(super) fn read(list: &[u8]) -> Self {
        let mut rule = Self::default();
        let (mut at, mut mask, mut conditions) = (None, None, 0);
        let mut of_family = false;
        for (_, element) in Attrs::new(list) {
            let body = Body(Attrs::new(element).find(EXPR_DATA).unwrap_or_default());
            // `NFTA_MATCH_NAME` and `NFTA_TARGET_NAME`: what iptables uses through nf_tables.
            let extension = || body.find(1).map(|name| name.strip_suffix(&[0]).unwrap_or(name));
            match name(element).unwrap_or_default() {
                "counter" | "log" => {}
                "match" if extension() == Some(b"comment") => {}
                "target" if extension() == Some(b"REJECT") => rule.fate = Some(Fate::Dropped),
                "target" => {}
                "reject" => rule.fate = Some(Fate::Dropped),
                "immediate" if body.is(1, VERDICT_REGISTER) => rule.verdict(&body),
                "payload" => {
                    at = body.number(3).filter(|_| body.is(2, NETWORK_HEADER));
                    (mask, of_family) = (None, false);
                }
                "bitwise" => mask = body.value(4).map(mask_length),
                // In a chain of both families: whose packets an address is looked for in.
                "meta" if body.is(2, META_NFPROTO) => of_family = true,
                "cmp" if of_family => rule.conditional = true,
                "cmp" => {
                    rule.conditional = true;
                    conditions += 1;
                    let bytes = body.value(3).filter(|_| body.is(2, EQUAL));
                    let found = bytes.zip(at).and_then(|(bytes, at)| of_header(at, bytes, mask));
                    rule.only = rule.only.or(found);
                    let exact =
                        found.filter(|(end, net)| *end == End::Destination && net.prefix() == full(net));
                    rule.to = rule.to.or_else(|| exact.map(|(_, net)| net.ip()));
                }
                _ => {
                    rule.conditional = true;
                    conditions += 2;
                }
            }
        }
        rule.only = rule.only.filter(|_| conditions == 1);
        rule
    }

    fn verdict(&mut self, body: &Body<'_>) {
        let verdict = body.find(2).and_then(|data| Attrs::new(data).find(DATA_VERDICT)).map(Body);
        let Some(verdict) = verdict else { return };
        match verdict.number(1).map(u32::cast_signed) {
            Some(NF_ACCEPT) => self.fate = Some(Fate::Accepted),
            Some(NF_DROP) => self.fate = Some(Fate::Dropped),
            Some(NFT_RETURN) => self.fate = Some(Fate::Returned),
            _ => {
                let chain =
                    verdict.find(2).and_then(|c| std::str::from_utf8(c.strip_suffix(&[0]).unwrap_or(c)).ok());
                self.calls = chain.map(str::to_owned);
            }
        }
    }

    /// Everything but what packets change.
    pub(super) fn hash_list(list: &[u8], hasher: &mut impl Hasher) {
        let lasting = Attrs::new(list).filter(|(_, element)| name(element) != Some("counter"));
        lasting.for_each(|(_, element)| element.hash(hasher));
    }
}

/// The network that these bytes of the header at this offset say, of the family that has an address there.
fn of_header(at: u32, bytes: &[u8], mask: Option<u8>) -> Option<(End, IpNetwork)> {
    // Only IPv4 has one at 12 and 16, only IPv6 at 8 and 24.
    let family = if [12, 16].contains(&at) { Family::V4 } else { Family::V6 };
    let length = mask.or_else(|| u8::try_from(bytes.len() * 8).ok())?;
    Some(match address(at, true, bytes, length, family)? {
        Match::Address { end, net, .. } => (end, net),
        Match::Mark(_) => return None,
    })
}

fn full(net: &IpNetwork) -> u8 {
    if net.is_ipv4() { 32 } else { 128 }
}

/// The attributes of an expression.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn find(&self, kind: u16) -> Option<&'a [u8]> {
        Attrs::new(self.0).find(kind)
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(be32)
    }

    fn is(&self, kind: u16, value: u32) -> bool {
        self.number(kind) == Some(value)
    }

    fn value(&self, kind: u16) -> Option<&'a [u8]> {
        Attrs::new(self.find(kind)?).find(DATA_VALUE)
    }

    /// Nothing beyond the attributes that we read.
    fn has_only(&self, highest: u16) -> bool {
        Attrs::new(self.0).all(|(kind, _)| kind <= highest)
    }
}

fn number(batch: &mut Batch, kind: u16, value: u32) {
    batch.attr(kind, &value.to_be_bytes());
}

fn value(batch: &mut Batch, kind: u16, bytes: &[u8]) {
    let nest = batch.nest(kind);
    batch.attr(DATA_VALUE, bytes).end(nest);
}

const LIST_ELEMENT: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// `NFT_REG_1`: holds sixteen octets.
const REGISTER: u32 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;
/// `NFT_META_MARK`.
const META_MARK: u32 = 3;
/// `NFT_META_NFPROTO`.
const META_NFPROTO: u32 = 15;
/// `NFT_BITWISE_MASK_XOR`.
const MASK_AND_FLIP: u32 = 0;
/// `NFT_CMP_EQ`.
const EQUAL: u32 = 0;
/// `NFT_CMP_NEQ`.
const NOT_EQUAL: u32 = 1;
/// `NF_ACCEPT`.
const NF_ACCEPT: i32 = 1;
/// `NF_DROP`.
const NF_DROP: i32 = 0;
/// `NFT_RETURN`.
const NFT_RETURN: i32 = -5;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const FULLY_RANDOM: u32 = 0x10;
