//! What rules of others do with a tunnel packet that comes in from another host: the first of its flow, UDP to the
//! tunnel's port. Pure: conditions in, a fate out.
//!
//! A condition may hold for some such packets only (a source, a rate, a set). A rule with one can let packets in, and
//! then nothing is said; where it drops some, that is an operator's choice, and nothing is said either.

use std::net::IpAddr;

use nix::net::if_::if_indextoname;
use subnet_lease::Family;

use crate::netlink::address_bytes;
use crate::netlink::nft::{Expr, META_FAMILY, NETWORK, TRANSPORT, Verdict};
use crate::rules::Fate;
use crate::state::{IfName, Link};

/// A tunnel packet on its way in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    /// The address of this host that it goes to.
    pub(super) to: IpAddr,
    /// The port that it goes to.
    pub(super) port: u16,
    /// The interface that it comes in by, and its index.
    pub(super) link: (IfName, u32),
}

/// For which tunnel packets a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    All,
    Some,
    None,
}

/// What a rule does with the packets that it holds for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Decide(Fate),
    Jump(String),
    Goto(String),
    Nothing,
}

/// A rule of somebody else, for one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) holds: Holds,
    pub(super) act: Act,
}

/// What becomes of the packet in a chain, by which rule (counted from one; 0 is the policy), and which chain that rule
/// calls. `called` answers the same of a chain that is called: returned where it decides nothing, or is not known.
pub(super) fn fate(
    steps: &[Step],
    policy: Fate,
    called: &mut dyn FnMut(&str) -> Fate,
) -> (Fate, u32, Option<String>) {
    for (step, number) in steps.iter().zip(1..).filter(|(step, _)| step.holds != Holds::None) {
        let (fate, call) = match &step.act {
            Act::Decide(fate) => (*fate, None),
            Act::Jump(chain) | Act::Goto(chain) => (called(chain), Some(chain)),
            Act::Nothing => continue,
        };
        let ends = match &step.act {
            // A jump comes back.
            Act::Jump(_) => fate != Fate::Returned,
            _ => true,
        };
        match (step.holds, fate) {
            (Holds::All, Fate::Returned) if ends => return (policy, 0, None),
            (Holds::All, fate) if ends => return (fate, number, call.cloned()),
            // Some of them get in.
            (_, Fate::Accepted) => return (fate, number, call.cloned()),
            _ => {}
        }
    }
    (policy, 0, None)
}

impl Holds {
    /// Of an answer that is the same for all of them, if there is one.
    pub(super) fn of(known: Option<bool>) -> Self {
        match known {
            Some(true) => Self::All,
            Some(false) => Self::None,
            None => Self::Some,
        }
    }

    /// Both conditions.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::All, Self::All) => Self::All,
            _ => Self::Some,
        }
    }
}

impl Packet {
    /// What a link of ours, which lies over another, receives from other hosts.
    pub(super) fn of(link: &Link) -> Option<Self> {
        let over = link.kind.over();
        let name = if_indextoname(over).ok().map(|name| IfName::from_kernel(name.as_bytes()))?;
        Some(Self { to: link.kind.local()?, port: link.kind.udp_port()?, link: (name, over) })
    }

    /// Of the outer header.
    pub(super) fn family(&self) -> Family {
        Family::of(&self.to)
    }

    /// A rule of nf_tables.
    pub(super) fn step(&self, exprs: &[Expr]) -> Step {
        let mut step = Step { holds: Holds::All, act: Act::Nothing };
        // What the first slot has, where that is the same for all tunnel packets.
        let mut slot = None;
        for expr in exprs {
            let condition = match expr {
                Expr::Payload { base, offset, len, slot: 0 } => {
                    slot = self.header(*base, *offset, *len);
                    continue;
                }
                Expr::Meta { key, slot: 0 } => {
                    slot = self.meta(*key);
                    continue;
                }
                Expr::Connection { key, slot: 0, .. } => {
                    slot = connection(*key);
                    continue;
                }
                Expr::RouteType { slot: 0 } => {
                    slot = Some(RTN_LOCAL.to_ne_bytes().to_vec());
                    continue;
                }
                Expr::Mask { slot: 0, mask } => {
                    slot = slot.filter(|value| value.len() == mask.len());
                    slot = slot.map(|value| value.iter().zip(mask).map(|(a, b)| a & b).collect());
                    continue;
                }
                // A name with a wildcard is compared as far as it goes.
                Expr::Compare { slot: 0, equal, bytes } => Holds::of(
                    slot.as_ref()
                        .and_then(|value: &Vec<u8>| value.get(..bytes.len()))
                        .map(|v| (v == bytes) == *equal),
                ),
                Expr::Match { name, info } => self.extension(name, info),
                Expr::Verdict(verdict) => {
                    step.act = act(verdict);
                    continue;
                }
                Expr::Target { name } if name == "REJECT" => {
                    step.act = Act::Decide(Fate::Dropped);
                    continue;
                }
                Expr::Other(name) if name == "reject" => {
                    step.act = Act::Decide(Fate::Dropped);
                    continue;
                }
                Expr::Other(name) if ["counter", "log"].contains(&&**name) => continue,
                Expr::Target { .. } | Expr::Masquerade { .. } | Expr::TranslateTo { .. } => continue,
                _ => Holds::Some,
            };
            step.holds = step.holds.and(condition);
        }
        step
    }

    /// A match of iptables, of either kind.
    pub(super) fn extension(&self, name: &str, info: &[u8]) -> Holds {
        match name {
            "comment" => Holds::All,
            // `struct xt_udp`: two pairs of ports in the host's order, flags of inversion.
            "udp" => {
                let port = |at: usize| info.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
                let (Some(low), Some(high), Some(flags)) = (port(4), port(6), info.get(8)) else {
                    return Holds::Some;
                };
                let to = (low..=high).contains(&self.port) != (flags & XT_UDP_INV_DSTPT != 0);
                let from = port(0) == Some(0) && port(2) == Some(u16::MAX);
                Holds::of(Some(to)).and(if from { Holds::All } else { Holds::Some })
            }
            "tcp" | "icmp" | "icmp6" | "sctp" | "esp" | "ah" => Holds::None,
            "conntrack" => {
                let short = |at: usize| info.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
                match (short(146), short(148), short(150)) {
                    (Some(XT_CONNTRACK_STATE), Some(inverted), Some(states)) => Holds::of(Some(
                        (u32::from(states) & STATE_NEW != 0) != (inverted & XT_CONNTRACK_STATE != 0),
                    )),
                    _ => Holds::Some,
                }
            }
            "state" => {
                let states = info.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
                Holds::of(states.map(|states| states & STATE_NEW != 0))
            }
            _ => Holds::Some,
        }
    }

    fn header(&self, base: u32, offset: u32, len: u32) -> Option<Vec<u8>> {
        let (protocol, destination) = if self.to.is_ipv4() { (9, 16) } else { (6, 24) };
        match (base, offset, len) {
            (NETWORK, at, 1) if at == protocol => Some(vec![UDP]),
            (NETWORK, at, len) if at == destination => {
                address_bytes(&self.to).get(..usize::try_from(len).ok()?).map(<[u8]>::to_vec)
            }
            (TRANSPORT, 2, 2) => Some(self.port.to_be_bytes().to_vec()),
            _ => None,
        }
    }

    fn meta(&self, key: u32) -> Option<Vec<u8>> {
        let (name, index) = self.link;
        match key {
            META_FAMILY => Some(vec![if self.to.is_ipv4() { AF_INET } else { AF_INET6 }]),
            META_PROTOCOL => Some(vec![UDP]),
            META_LINK => Some(index.to_ne_bytes().to_vec()),
            META_LINK_NAME => Some(padded(name).to_vec()),
            _ => None,
        }
    }
}

/// The name as the kernel has it.
pub(super) fn padded(name: IfName) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(name.as_str().as_bytes()).for_each(|(to, from)| *to = *from);
    bytes
}

fn connection(key: u32) -> Option<Vec<u8>> {
    match key {
        CT_STATE => Some(STATE_NEW.to_ne_bytes().to_vec()),
        // Nothing is translated, and nobody has answered.
        CT_STATUS => Some(vec![0; 4]),
        _ => None,
    }
}

fn act(verdict: &Verdict) -> Act {
    match verdict {
        Verdict::Accept => Act::Decide(Fate::Accepted),
        Verdict::Drop => Act::Decide(Fate::Dropped),
        Verdict::Return => Act::Decide(Fate::Returned),
        Verdict::Jump(chain) => Act::Jump(chain.clone()),
        Verdict::Goto(chain) => Act::Goto(chain.clone()),
    }
}

/// `IPPROTO_UDP`.
pub(super) const UDP: u8 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RTN_LOCAL: u32 = 2;
/// `NFT_META_IIF`, `NFT_META_IIFNAME`, `NFT_META_L4PROTO`.
const META_LINK: u32 = 4;
const META_LINK_NAME: u32 = 6;
const META_PROTOCOL: u32 = 16;
/// `NFT_CT_STATE`, `NFT_CT_STATUS`.
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`. The ports of the two directions of a tunnel differ, so each of its packets is new.
const STATE_NEW: u32 = 8;
/// `XT_UDP_INV_DSTPT`.
const XT_UDP_INV_DSTPT: u8 = 2;
/// Of `match_flags` and `invert_flags` in `struct xt_conntrack_mtinfo3`, at 146 and 148; the states are at 150.
const XT_CONNTRACK_STATE: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::nft::{End, Field};

    const PORT: u16 = 8472;

    fn packet() -> Packet {
        Packet { to: [192, 0, 2, 1].into(), port: PORT, link: ("eth0".parse().unwrap(), 2) }
    }

    fn name(text: &str, len: usize) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(len, 0);
        bytes
    }

    fn to_port(port: u16) -> Vec<Expr> {
        vec![
            Expr::load(Field::Protocol, 0),
            Expr::compare(true, &[UDP]),
            Expr::load(Field::Port(End::Destination), 0),
            Expr::compare(true, &port.to_be_bytes()),
        ]
    }

    fn states(bits: u32) -> Vec<Expr> {
        let load = Expr::Connection { key: CT_STATE, original: false, slot: 0 };
        vec![load, Expr::Mask { slot: 0, mask: bits.to_ne_bytes().to_vec() }, Expr::compare(false, &[0; 4])]
    }

    #[test]
    fn a_rule_of_nf_tables_holds_for_all_tunnel_packets_for_some_or_for_none() {
        let by = |text: &str, len| {
            vec![Expr::load(Field::Interface(End::Source), 0), Expr::compare(true, &name(text, len))]
        };
        let from = "192.0.2.0/24".parse().unwrap();
        for (what, exprs, expected) in [
            ("no condition", vec![], Holds::All),
            ("counted", vec![Expr::Other("counter".to_owned())], Holds::All),
            ("to the port", to_port(PORT), Holds::All),
            ("to another port", to_port(53), Holds::None),
            ("TCP", vec![Expr::load(Field::Protocol, 0), Expr::compare(true, &[6])], Holds::None),
            ("by eth0", by("eth0", 16), Holds::All),
            ("by eth*", by("eth", 3), Holds::All),
            ("by lo", by("lo", 16), Holds::None),
            ("established or related", states(2 | 4), Holds::None),
            ("new", states(STATE_NEW), Holds::All),
            ("from a network", Expr::within(End::Source, from, true), Holds::Some),
            ("a rate", vec![Expr::Other("limit".to_owned())], Holds::Some),
            (
                "of a set, not to the port",
                {
                    let set = Expr::Lookup { set: "x".to_owned(), slot: 0, into: None };
                    [vec![set], to_port(53)].concat()
                },
                Holds::None,
            ),
            (
                "IPv6",
                vec![Expr::Meta { key: META_FAMILY, slot: 0 }, Expr::compare(true, &[AF_INET6])],
                Holds::None,
            ),
            ("to the host", Expr::to_host().to_vec(), Holds::All),
            (
                "to its address",
                Expr::within(End::Destination, "192.0.2.0/24".parse().unwrap(), true),
                Holds::All,
            ),
            (
                "to another",
                Expr::within(End::Destination, "192.0.2.9/32".parse().unwrap(), true),
                Holds::None,
            ),
        ] {
            assert_eq!(packet().step(&exprs).holds, expected, "{what}");
        }
    }

    #[test]
    fn a_match_of_iptables_holds_for_all_tunnel_packets_for_some_or_for_none() {
        let udp = |low: u16, high: u16, flags: u8| {
            let ports = [0, u16::MAX, low, high];
            [ports.iter().flat_map(|p| p.to_ne_bytes()).collect::<Vec<_>>(), vec![flags, 0]].concat()
        };
        let conntrack = |states: u16, inverted: u16| {
            let mut info = vec![0; 160];
            for (at, value) in [(146, XT_CONNTRACK_STATE), (148, inverted), (150, states)] {
                info[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            }
            info
        };
        for (name, info, expected) in [
            ("comment", vec![], Holds::All),
            ("udp", udp(PORT, PORT, 0), Holds::All),
            ("udp", udp(8000, 9000, 0), Holds::All),
            ("udp", udp(53, 53, 0), Holds::None),
            ("udp", udp(PORT, PORT, XT_UDP_INV_DSTPT), Holds::None),
            ("udp", vec![0; 3], Holds::Some),
            ("tcp", vec![], Holds::None),
            ("conntrack", conntrack(2 | 4, 0), Holds::None),
            ("conntrack", conntrack(8, 0), Holds::All),
            ("conntrack", conntrack(8, 1), Holds::None),
            ("conntrack", vec![0; 10], Holds::Some),
            ("state", 6u32.to_ne_bytes().to_vec(), Holds::None),
            ("multiport", vec![0; 48], Holds::Some),
        ] {
            assert_eq!(packet().extension(name, &info), expected, "{name} {info:?}");
        }
    }

    #[test]
    fn a_chain_drops_tunnel_packets_only_where_no_rule_may_let_one_in() {
        use Fate::{Accepted, Dropped, Returned};
        let step = |holds, act| Step { holds, act };
        let decide = |holds, fate| step(holds, Act::Decide(fate));
        let jump = |chain: &str| step(Holds::All, Act::Jump(chain.to_owned()));
        let goto = |chain: &str| step(Holds::All, Act::Goto(chain.to_owned()));
        for (what, steps, policy, expected) in [
            ("nothing", vec![], Accepted, (Accepted, 0)),
            ("a policy", vec![decide(Holds::None, Accepted)], Dropped, (Dropped, 0)),
            ("accepted before", vec![decide(Holds::All, Accepted)], Dropped, (Accepted, 1)),
            ("some accepted before", vec![decide(Holds::Some, Accepted)], Dropped, (Accepted, 1)),
            ("some dropped", vec![decide(Holds::Some, Dropped)], Accepted, (Accepted, 0)),
            (
                "a drop",
                vec![decide(Holds::None, Accepted), decide(Holds::All, Dropped)],
                Accepted,
                (Dropped, 2),
            ),
            ("a call that drops", vec![jump("drops"), decide(Holds::All, Accepted)], Accepted, (Dropped, 1)),
            (
                "a call that comes back",
                vec![jump("nothing"), decide(Holds::All, Dropped)],
                Accepted,
                (Dropped, 2),
            ),
            (
                "a call for some that accepts",
                vec![step(Holds::Some, Act::Jump("accepts".to_owned()))],
                Dropped,
                (Accepted, 1),
            ),
            (
                "a call without a way back",
                vec![goto("nothing"), decide(Holds::All, Accepted)],
                Dropped,
                (Dropped, 0),
            ),
            (
                "back",
                vec![decide(Holds::All, Returned), decide(Holds::All, Dropped)],
                Accepted,
                (Accepted, 0),
            ),
        ] {
            let mut called = |chain: &str| match chain {
                "drops" => Dropped,
                "accepts" => Accepted,
                _ => Returned,
            };
            let (fate, rule, _) = fate(&steps, policy, &mut called);
            assert_eq!((fate, rule), expected, "{what}");
        }
    }
}
