//! Rules of others, as far as they decide about every packet.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::netlink::nft::{End, Expr, META_FAMILY, NETWORK, Verdict, mask_length, network_at};
use crate::rules::Fate;

/// A rule of somebody else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// It holds for some packets only, as far as we know.
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
    /// Of a rule's expressions.
    pub(super) fn read(exprs: impl Iterator<Item = Expr>) -> Self {
        let mut rule = Self::default();
        let (mut at, mut mask, mut conditions) = (None, None, 0);
        let mut of_family = false;
        for expr in exprs {
            match expr {
                Expr::Other(name) if ["counter", "log"].contains(&&*name) => {}
                Expr::Match { name, .. } if name == "comment" => {}
                Expr::Target { name } if name == "REJECT" => rule.fate = Some(Fate::Dropped),
                Expr::Target { .. } => {}
                Expr::Other(name) if name == "reject" => rule.fate = Some(Fate::Dropped),
                Expr::Verdict(verdict) => rule.verdict(verdict),
                Expr::Payload { base, offset, .. } => {
                    at = (base == NETWORK).then_some(offset);
                    (mask, of_family) = (None, false);
                }
                Expr::Mask { mask: bits, .. } => mask = Some(mask_length(&bits)),
                // In a chain of both families: whose packets an address is looked for in.
                Expr::Meta { key: META_FAMILY, .. } => of_family = true,
                Expr::Compare { .. } if of_family => rule.conditional = true,
                Expr::Compare { equal, bytes, .. } => {
                    rule.conditional = true;
                    conditions += 1;
                    let found = at.filter(|_| equal).and_then(|at| {
                        let length = mask.or_else(|| u8::try_from(bytes.len() * 8).ok())?;
                        network_at(at, &bytes, length)
                    });
                    rule.only = rule.only.or(found);
                    let exact = found.filter(|(end, net)| *end == End::Destination && is_whole(net));
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

    fn verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Accept => self.fate = Some(Fate::Accepted),
            Verdict::Drop => self.fate = Some(Fate::Dropped),
            Verdict::Return => self.fate = Some(Fate::Returned),
            Verdict::Jump(chain) | Verdict::Goto(chain) => self.calls = Some(chain),
        }
    }
}

/// It is one address.
fn is_whole(net: &IpNetwork) -> bool {
    net.prefix() == if net.is_ipv4() { 32 } else { 128 }
}

/// What rules with no other condition accept, before the one that takes all.
pub(crate) fn passed(rules: &[Foreign], end: u32) -> Vec<(End, IpNetwork)> {
    let before = usize::try_from(end).ok().filter(|end| *end > 0).map_or(rules.len(), |end| end - 1);
    let accepts = rules.iter().take(before).filter(|rule| rule.fate == Some(Fate::Accepted));
    accepts.filter_map(|rule| rule.only).collect()
}

/// What a chain does with a packet that none of its conditions holds for, the rule that decides, and what it calls before.
/// `called` returns the same of a chain that it calls: returned where it does nothing, or is not known.
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
