//! A rule of ours as expressions, and back. The encoding is the one that `nft` chooses, so that a table loaded from our
//! text by hand equals one that we wrote.
//!
//! Reading is exact: a list is a rule of ours only if writing that rule gives the same list again.

use subnet_lease::Family;

use super::not_ours;
use crate::netlink::NetlinkError;
use crate::netlink::nft::{self, Expr, FULLY_RANDOM, RuleView, mask_length, network_at};
use crate::rules::{Chain, Match, Rule, Verdict};

/// The rule as it is written into its chain.
///
/// # Errors
/// For a rule that is not ours.
pub(super) fn encode(rule: &Rule, chain: &Chain, family: Family) -> Result<nft::Rule, NetlinkError> {
    let exprs = expressions(rule, family).ok_or_else(|| not_ours("rule in chain", &chain.name))?;
    Ok(nft::Rule { chain: chain.name.clone(), note: String::new(), exprs, first: false })
}

/// Reads a rule of the kernel.
pub(super) fn decode(view: &RuleView<'_>, family: Family) -> Rule {
    let found: Vec<_> = view.exprs().collect();
    let exact = recognise(&found).filter(|rule| expressions(rule, family).as_ref() == Some(&found));
    exact.unwrap_or_else(|| {
        let names: Vec<_> = found.iter().map(Expr::name).collect();
        Rule::Unknown(names.join(" "))
    })
}

/// The expressions of a rule; none for one that is not ours, or whose addresses are of another family.
fn expressions(rule: &Rule, family: Family) -> Option<Vec<Expr>> {
    let Rule::When(matches, verdict) = rule else { return None };
    let mut exprs = Vec::new();
    for condition in matches {
        match condition {
            Match::Mark(bits) => exprs.extend(Expr::marked(*bits)),
            Match::Address { net, .. } if Family::of(&net.ip()) != family => return None,
            Match::Address { end, inside, net } => exprs.extend(Expr::within(*end, *net, *inside)),
        }
    }
    exprs.push(match verdict {
        Verdict::Accept => Expr::Verdict(nft::Verdict::Accept),
        Verdict::Return => Expr::Verdict(nft::Verdict::Return),
        Verdict::Masquerade { fully_random } => {
            Expr::Masquerade { flags: if *fully_random { FULLY_RANDOM } else { 0 } }
        }
    });
    Some(exprs)
}

/// The rule that these may be; see [`decode`] for whether they are.
fn recognise(exprs: &[Expr]) -> Option<Rule> {
    let mut matches = Vec::new();
    let mut rest = exprs;
    loop {
        let (found, after) = match rest {
            [Expr::Verdict(nft::Verdict::Accept)] => return Some(Rule::When(matches, Verdict::Accept)),
            [Expr::Verdict(nft::Verdict::Return)] => return Some(Rule::When(matches, Verdict::Return)),
            [Expr::Masquerade { flags }] => {
                let fully_random = *flags == FULLY_RANDOM;
                return Some(Rule::When(matches, Verdict::Masquerade { fully_random }));
            }
            [Expr::Meta { .. }, Expr::Mask { mask, .. }, Expr::Compare { .. }, after @ ..] => {
                (Match::Mark(u32::from_ne_bytes(mask.as_slice().try_into().ok()?)), after)
            }
            [
                Expr::Payload { offset, .. },
                Expr::Mask { mask, .. },
                Expr::Compare { equal, bytes, .. },
                after @ ..,
            ] => (address(*offset, *equal, bytes, mask_length(mask))?, after),
            [Expr::Payload { offset, len, .. }, Expr::Compare { equal, bytes, .. }, after @ ..] => {
                (address(*offset, *equal, bytes, u8::try_from(len.checked_mul(8)?).ok()?)?, after)
            }
            _ => return None,
        };
        matches.push(found);
        rest = after;
    }
}

fn address(offset: u32, inside: bool, bytes: &[u8], prefix: u8) -> Option<Match> {
    let (end, net) = network_at(offset, bytes, prefix)?;
    Some(Match::Address { end, inside, net })
}
