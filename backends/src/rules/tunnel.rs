//! Chains of others that keep tunnel packets out of this host. Never changed: an input chain is its operator's decision.

use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use super::{Home, RuleInput, iptables};

/// A chain of the input hook that drops or rejects what peers send to the tunnel's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelDrop {
    /// Of the outer packets.
    pub family: Family,
    /// What made the chain.
    pub home: Home,
    /// Its table, with the family as nft says it where that differs: `inet filter`.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Which of its rules, counted from one; 0 is its policy.
    pub rule: u32,
    /// The chain that this rule calls, where it is one that drops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// The tunnel's UDP port.
    pub port: u16,
}

impl TunnelDrop {
    /// One sentence, with the line that lets the packets in.
    fn sentence(&self) -> String {
        let Self { table, chain, port, .. } = self;
        let rule = match (self.rule, &self.call) {
            (0, _) => "by its policy".to_owned(),
            (number, None) => format!("with rule {number}"),
            (number, Some(call)) => format!("with rule {number}, which calls {call}"),
        };
        let (place, line) = match self.home {
            Home::Iptables(flavour) => (
                format!("chain {chain} of {flavour} (table {table})"),
                format!(
                    "{} -I {chain} -p udp --dport {port} -j ACCEPT",
                    iptables::program(flavour, self.family)
                ),
            ),
            Home::Firewalld => (
                format!("chain {chain} of firewalld"),
                format!("firewall-cmd --permanent --add-port={port}/udp; firewall-cmd --reload"),
            ),
            Home::Nftables => (
                format!("chain {chain} of table {table}"),
                format!("nft insert rule {table} {chain} udp dport {port} accept"),
            ),
        };
        format!("{place} drops what peers send to the tunnel (UDP port {port}) {rule}: `{line}` lets it in")
    }
}

/// A sentence for each chain that keeps tunnel packets of the network out.
pub(super) fn kept_out(drops: &[TunnelDrop], input: &RuleInput) -> Vec<String> {
    let concerned = |drop: &&TunnelDrop| input.of(drop.family).next().is_some();
    let mut sentences: Vec<String> = Vec::new();
    for sentence in drops.iter().filter(concerned).map(TunnelDrop::sentence) {
        // A table of both families has the same line for each.
        if !sentences.contains(&sentence) {
            sentences.push(sentence);
        }
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::iptables::Flavour;
    use crate::rules::tests::input;

    #[test]
    fn a_chain_that_keeps_the_tunnel_out_is_named_with_its_rule_and_the_line_to_add() {
        let drop = |family, home, table: &str, chain: &str, rule, call: Option<&str>| TunnelDrop {
            family,
            home,
            table: table.to_owned(),
            chain: chain.to_owned(),
            rule,
            call: call.map(str::to_owned),
            port: 8472,
        };
        let both = Family::ALL.map(|family| drop(family, Home::Nftables, "inet site", "guard", 0, None));
        let said = kept_out(&both, &input(&Family::ALL));
        assert_eq!(
            said,
            [
                "chain guard of table inet site drops what peers send to the tunnel (UDP port 8472) by its policy: \
              `nft insert rule inet site guard udp dport 8472 accept` lets it in"
            ]
        );
        let legacy = Home::Iptables(Flavour::Legacy);
        let ufw = drop(Family::V6, legacy, "filter", "INPUT", 3, Some("ufw-reject"));
        assert_eq!(
            kept_out(std::slice::from_ref(&ufw), &input(&Family::ALL)),
            [
                "chain INPUT of iptables-legacy (table filter) drops what peers send to the tunnel (UDP port 8472) with rule \
              3, which calls ufw-reject: `ip6tables-legacy -I INPUT -p udp --dport 8472 -j ACCEPT` lets it in"
            ]
        );
        assert!(kept_out(&[ufw], &input(&[Family::V4])).is_empty(), "the network has no IPv6");
        let firewalld = drop(Family::V4, Home::Firewalld, "inet firewalld", "filter_INPUT", 7, None);
        assert!(kept_out(&[firewalld], &input(&[Family::V4]))[0].contains("--add-port=8472/udp"));
    }
}
