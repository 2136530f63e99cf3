//! Chains of others that forwarded packets pass, and those of iptables that our rules may stand in. Only read.
//!
//! One dump of all chains, then the rules of a handful of them: thousands of foreign rules elsewhere cost nothing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use subnet_lease::Family;

use super::expr::Foreign;
use super::message::{GETCHAIN, GETRULE, NEWCHAIN, NEWRULE, attributes, be32, begin_dump, text};
use crate::netlink::{AF_INET, AF_INET6, AF_UNSPEC, Attrs, NetlinkError, RawMessage, Socket};
use crate::rules::iptables::{FWD, Flavour, POSTRTG};
use crate::rules::{End, Fate, ForeignChain, Home};

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// The kernel has nf_tables.
    pub nf_tables: bool,
    /// Chains of others.
    pub chains: Vec<ForeignChain>,
    /// iptables over nf_tables has chains of its own.
    pub used: bool,
    /// Containers behind a drop in table raw.
    pub walled: Vec<IpAddr>,
    /// Networks whose packets firewalld takes for trusted.
    pub trusted: Vec<IpNetwork>,
    /// Families in which iptables over nf_tables has chains of ours.
    pub ours: Vec<Family>,
    /// A number that changes with the rules of the chains that we read of iptables.
    pub fingerprint: u64,
}

/// A chain as far as it counts here.
struct Seen {
    proto: u8,
    table: String,
    name: String,
    /// The forward hook calls it.
    forwards: bool,
    drops: bool,
}

/// Looks at all chains of this namespace.
///
/// # Errors
/// Refused by the kernel (permission), or its answer was lost. A kernel without nf_tables is an answer.
pub fn survey(socket: &mut Socket) -> Result<Survey, NetlinkError> {
    let mut attempts = 4;
    loop {
        match survey_once(socket) {
            // A change in between is a notification that makes everything look again.
            Ok((survey, interrupted)) if !interrupted || attempts == 0 => return Ok(survey),
            Ok(_) => attempts -= 1,
            Err(error) if [Errno::EINVAL, Errno::EOPNOTSUPP].contains(&error.errno()) => {
                return Ok(Survey::default());
            }
            Err(error) => return Err(error),
        }
    }
}

fn survey_once(socket: &mut Socket) -> Result<(Survey, bool), NetlinkError> {
    let mut seen = Vec::new();
    let mut request = begin_dump(GETCHAIN, AF_UNSPEC);
    let mut interrupted = socket.dump(&mut request, |message| seen.extend(read_chain(&message)))?.interrupted;
    let mut survey = Survey { nf_tables: true, ..Survey::default() };
    let mut hasher = DefaultHasher::new();
    let mut reader = Reader { socket, seen: &seen, interrupted, left: FOLLOWED, failed: None };
    for chain in seen.iter().filter(|chain| chain.counts()) {
        let rules = reader.rules(chain, Some(&mut hasher))?;
        survey.take(chain, &rules, &mut reader);
    }
    if let Some(error) = reader.failed {
        return Err(error);
    }
    interrupted = reader.interrupted;
    survey.used = seen.iter().any(|chain| chain.is_iptables() && !chain.is_ours());
    survey.fingerprint = hasher.finish();
    Ok((survey, interrupted))
}

/// Reads rules of chains that were seen.
struct Reader<'a> {
    socket: &'a mut Socket,
    seen: &'a [Seen],
    interrupted: bool,
    /// So many more chains are followed that others call.
    left: u32,
    failed: Option<NetlinkError>,
}

impl Reader<'_> {
    fn rules(
        &mut self,
        chain: &Seen,
        mut hasher: Option<&mut DefaultHasher>,
    ) -> Result<Vec<Foreign>, NetlinkError> {
        let mut rules = Vec::new();
        let mut request = begin_dump(GETRULE, chain.proto);
        request.attr_str(RULE_TABLE, &chain.table).attr_str(RULE_CHAIN, &chain.name);
        let dump = self.socket.dump(&mut request, |message| {
            rules.extend(read_rule(&message, chain, hasher.as_deref_mut()));
        });
        match dump {
            Ok(dump) => self.interrupted |= dump.interrupted,
            // Gone since.
            Err(error) if error.errno() == Errno::ENOENT => self.interrupted = true,
            Err(error) => return Err(error),
        }
        Ok(rules)
    }

    /// What becomes of every packet in a chain that this one hands it to. The kernel knows no calls in circles.
    fn called(&mut self, from: &Seen, name: &str) -> Fate {
        let seen = self.seen;
        let same = |c: &&Seen| c.proto == from.proto && c.table == from.table && c.name == name;
        let chain = seen.iter().find(same).filter(|chain| !chain.is_ours() && self.left > 0);
        let Some(chain) = chain else { return Fate::Returned };
        self.left -= 1;
        match self.rules(chain, None) {
            Ok(rules) => outcome(&rules, Fate::Returned, &mut |name| self.called(chain, name)).0,
            Err(error) => {
                self.failed = Some(error);
                Fate::Returned
            }
        }
    }
}

impl Survey {
    fn take(&mut self, chain: &Seen, rules: &[Foreign], reader: &mut Reader<'_>) {
        if chain.is_ours() {
            self.ours.extend(
                chain.families().iter().filter(|f| !self.ours.contains(f)).copied().collect::<Vec<_>>(),
            );
            return;
        }
        if chain.table == RAW {
            self.walled
                .extend(rules.iter().filter(|rule| rule.fate == Some(Fate::Dropped)).filter_map(|r| r.to));
            return;
        }
        if !chain.forwards && chain.home() == Home::Firewalld {
            let sources = rules.iter().filter(|r| r.calls.as_deref() == Some("filter_FWD_trusted"));
            self.trusted.extend(
                sources.filter_map(|r| r.only).filter(|(end, _)| *end == End::Source).map(|(_, net)| net),
            );
            return;
        }
        let policy = match (chain.forwards, chain.drops) {
            (true, true) => Fate::Dropped,
            (true, false) => Fate::Accepted,
            (false, _) => Fate::Returned,
        };
        let (fate, end, calls) = outcome(rules, policy, &mut |name| reader.called(chain, name));
        let passed = passed(rules, end);
        let home = chain.home();
        let table = match chain.proto {
            _ if matches!(home, Home::Iptables(_)) => chain.table.clone(),
            proto => format!("{} {}", word(proto), chain.table),
        };
        for family in chain.families() {
            let (table, name, calls, passed) =
                (table.clone(), chain.name.clone(), calls.clone(), passed.clone());
            self.chains.push(ForeignChain { family: *family, home, table, name, fate, end, calls, passed });
        }
    }
}

/// What rules with no other condition accept, before the one that takes all.
pub(crate) fn passed(rules: &[Foreign], end: u32) -> Vec<(End, IpNetwork)> {
    let before = usize::try_from(end).ok().filter(|end| *end > 0).map_or(rules.len(), |end| end - 1);
    let accepts = rules.iter().take(before).filter(|rule| rule.fate == Some(Fate::Accepted));
    accepts.filter_map(|rule| rule.only).collect()
}

/// What a chain does with a packet that no condition of it holds for, which rule says so, and what it calls before.
/// `called` tells the same of a chain that it calls: returned where it does nothing, or is not known.
pub(crate) fn outcome(
    rules: &[Foreign],
    policy: Fate,
    called: &mut dyn FnMut(&str) -> Fate,
) -> (Fate, u32, Vec<String>) {
    let mut calls = Vec::new();
    for (rule, number) in rules.iter().zip(1..).filter(|(rule, _)| !rule.conditional) {
        match (&rule.calls, rule.fate) {
            (_, Some(Fate::Returned)) => return (policy, number, calls),
            (_, Some(fate)) => return (fate, number, calls),
            (Some(chain), None) => {
                calls.push(chain.clone());
                let fate = called(chain);
                if fate != Fate::Returned {
                    return (fate, number, calls);
                }
            }
            (None, None) => {}
        }
    }
    (policy, 0, calls)
}

impl Seen {
    fn families(&self) -> &'static [Family] {
        match self.proto {
            AF_INET => &[Family::V4],
            AF_INET6 => &[Family::V6],
            NFPROTO_INET => &Family::ALL,
            _ => &[],
        }
    }

    fn is_iptables(&self) -> bool {
        [AF_INET, AF_INET6].contains(&self.proto) && ["filter", "nat", RAW].contains(&self.table.as_str())
    }

    fn is_ours(&self) -> bool {
        self.is_iptables() && [FWD, POSTRTG].contains(&self.name.as_str())
    }

    fn home(&self) -> Home {
        match self.table.as_str() {
            "firewalld" => Home::Firewalld,
            _ if self.is_iptables() => Home::Iptables(Flavour::Nft),
            _ => Home::Nftables,
        }
    }

    /// Whether its rules are looked at.
    fn counts(&self) -> bool {
        let foreign = self.forwards && !self.families().is_empty() && !self.table.starts_with("flannel-ipv");
        let place = match self.table.as_str() {
            "filter" => ["DOCKER-USER", FWD].contains(&self.name.as_str()),
            "nat" => ["POSTROUTING", POSTRTG].contains(&self.name.as_str()),
            RAW => self.name == "PREROUTING",
            "firewalld" => return foreign || ZONES.contains(&self.name.as_str()),
            _ => false,
        };
        foreign || self.is_iptables() && place
    }
}

fn read_chain(message: &RawMessage<'_>) -> Option<Seen> {
    let attrs = attributes(message, NEWCHAIN)?;
    let hook = attrs.clone().find(CHAIN_HOOK).map(Attrs::new);
    let number = hook.and_then(|hook| hook.find(HOOK_NUMBER)).and_then(be32);
    Some(Seen {
        proto: *message.payload.first()?,
        table: text(&attrs, CHAIN_TABLE)?.to_owned(),
        name: text(&attrs, CHAIN_NAME)?.to_owned(),
        forwards: number == Some(NF_FORWARD) && text(&attrs, CHAIN_TYPE) == Some("filter"),
        drops: attrs.clone().find(CHAIN_POLICY).and_then(be32) == Some(NF_DROP),
    })
}

/// A rule of this chain: old kernels don't know the filter.
fn read_rule(message: &RawMessage<'_>, chain: &Seen, hasher: Option<&mut DefaultHasher>) -> Option<Foreign> {
    let attrs = attributes(message, NEWRULE)?;
    let of_chain =
        text(&attrs, RULE_TABLE) == Some(&chain.table) && text(&attrs, RULE_CHAIN) == Some(&chain.name);
    if !of_chain || message.payload.first() != Some(&chain.proto) {
        return None;
    }
    let list = attrs.clone().find(RULE_EXPRESSIONS).unwrap_or_default();
    if let Some(hasher) = hasher.filter(|_| chain.is_iptables()) {
        (chain.proto, &chain.table, &chain.name, attrs.find(RULE_HANDLE)).hash(hasher);
        Foreign::hash_list(list, hasher);
    }
    Some(Foreign::read(list))
}

fn word(proto: u8) -> &'static str {
    match proto {
        AF_INET => "ip",
        AF_INET6 => "ip6",
        _ => "inet",
    }
}

/// Ours: a host has a handful of chains that all forwarded packets go through, and each costs a question.
const FOLLOWED: u32 = 32;
/// Where firewalld tells zones apart, in its versions 1 and 0.
const ZONES: [&str; 2] = ["filter_FORWARD_ZONES", "filter_FORWARD_IN_ZONES"];
/// The table of iptables before all others.
const RAW: &str = "raw";
/// `NFPROTO_INET`: a chain of both families.
const NFPROTO_INET: u8 = 1;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const NF_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(conditional: bool, fate: Option<Fate>, calls: Option<&str>) -> Foreign {
        Foreign { conditional, fate, calls: calls.map(str::to_owned), ..Foreign::default() }
    }

    #[test]
    fn a_chain_does_what_its_first_rule_for_all_says_and_else_its_policy() {
        use Fate::{Accepted, Dropped, Returned};
        let some = |fate| rule(true, Some(fate), None);
        let all = |fate| rule(false, Some(fate), None);
        let call = || rule(false, None, Some("other"));
        for (rules, policy, fate, end) in [
            (vec![], Accepted, Accepted, 0),
            (vec![some(Dropped), call()], Accepted, Accepted, 0),
            (vec![call(), some(Accepted), all(Dropped), all(Accepted)], Accepted, Dropped, 3),
            (vec![all(Accepted)], Dropped, Accepted, 1),
            (vec![some(Accepted), all(Returned)], Dropped, Dropped, 2),
            (vec![rule(true, None, Some("other"))], Dropped, Dropped, 0),
            (vec![some(Accepted), rule(false, None, Some("refuses")), all(Accepted)], Accepted, Dropped, 2),
            (vec![rule(true, None, Some("refuses"))], Accepted, Accepted, 0),
        ] {
            let mut called = |name: &str| if name == "refuses" { Dropped } else { Returned };
            let (found, at, calls) = outcome(&rules, policy, &mut called);
            assert_eq!((found, at), (fate, end), "{rules:?}");
            let follows = |rule: &&Foreign| !rule.conditional && rule.calls.is_some();
            assert_eq!(calls.len(), rules.iter().filter(follows).count(), "{rules:?}");
        }
    }

    #[test]
    fn only_what_is_accepted_before_the_end_counts_as_passed() {
        let net = "10.244.0.0/16".parse().unwrap();
        let accepts = Foreign { only: Some((End::Source, net)), ..rule(true, Some(Fate::Accepted), None) };
        let rules = [accepts.clone(), rule(false, Some(Fate::Dropped), None), accepts];
        assert_eq!(passed(&rules, 2), [(End::Source, net)]);
        assert_eq!(passed(&rules[1..], 1), []);
        assert_eq!(passed(&rules[2..], 0).len(), 1);
    }
}
