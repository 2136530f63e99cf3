use ipnetwork::IpNetwork;

use super::*;
use crate::netlink::Messages;
use crate::rules::{ChainKind, End, Hook, Match, Policy, Rule, RuleInput, Verdict, rules};

/// The expression list as it goes into the message.
fn list(rule: &Rule, family: Family) -> Vec<u8> {
    let mut batch = Batch::new();
    chain::write_rule(&mut batch, rule, "postrtg", family).unwrap();
    let bytes = batch.seal_for_test(1);
    let message = Messages::new(&bytes).next().unwrap();
    attributes(&message, message::NEWRULE).unwrap().find(4).unwrap().to_vec()
}

fn every_rule() -> Vec<(Family, Rule)> {
    let input = |fully_random| RuleInput {
        networks: [("10.244.0.0/16", "10.244.3.0/24"), ("fd00:10:244::/56", "fd00:10:244:3::/64")]
            .map(|(c, p)| (c.parse().unwrap(), p.parse().unwrap()))
            .to_vec(),
        masquerade: true,
        fully_random,
        forward_rules: true,
        no_masquerade: vec!["0.0.0.0/0".parse().unwrap(), "172.16.0.0/12".parse().unwrap()],
    };
    let tables = [true, false].into_iter().flat_map(|random| rules(&input(random)));
    tables
        .flat_map(|t| t.chains.into_iter().flat_map(move |c| c.rules.into_iter().map(move |r| (t.family, r))))
        .collect()
}

#[test]
fn every_rule_we_make_reads_back_as_itself() {
    for (family, rule) in every_rule() {
        assert_eq!(expr::read(&list(&rule, family), family), rule);
    }
}

#[test]
fn a_network_of_any_length_reads_back_as_itself() {
    for (family, address) in
        [(Family::V4, "203.0.113.255"), (Family::V6, "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")]
    {
        for prefix in 0..=family.bits() {
            let sloppy = IpNetwork::new(address.parse().unwrap(), prefix).unwrap();
            let net = IpNetwork::new(sloppy.network(), prefix).unwrap();
            let matches = [End::Source, End::Destination]
                .map(|end| Match::Address { end, inside: end == End::Source, net })
                .to_vec();
            let rule = Rule::When(matches, Verdict::Return);
            assert_eq!(expr::read(&list(&rule, family), family), rule);
        }
    }
}

#[test]
fn a_truncated_list_is_never_a_rule_of_ours() {
    for (family, rule) in every_rule() {
        let list = list(&rule, family);
        // Of the last octets, some are padding.
        for cut in 0..list.len().saturating_sub(4) {
            assert!(matches!(expr::read(&list[..cut], family), Rule::Unknown(_)), "{rule} cut at {cut}");
        }
    }
}

#[test]
fn one_changed_octet_never_reads_as_the_same_rule() {
    for (family, rule) in every_rule() {
        let list = list(&rule, family);
        for at in 0..list.len() {
            let mut changed = list.clone();
            changed[at] ^= 0x11;
            // Only padding says nothing.
            let same = expr::read(&changed, family) == rule;
            assert!(!same || list[at] == 0, "{rule}: octet {at} does not matter");
        }
    }
}

#[test]
fn a_rule_of_the_other_family_is_not_ours() {
    for (family, rule) in every_rule() {
        let other = Family::ALL[usize::from(family == Family::V4)];
        let read = expr::read(&list(&rule, family), other);
        let no_address =
            matches!(&rule, Rule::When(matches, _) if matches.iter().all(|m| matches!(m, Match::Mark(_))));
        assert!(no_address || read != rule);
    }
}

#[test]
fn a_chain_that_is_not_ours_is_refused_before_anything_is_sent() {
    let chain = Chain {
        name: "raw".to_owned(),
        kind: ChainKind::Other("route".to_owned()),
        hook: Hook::Forward,
        priority: 0,
        policy: Policy::Accept,
        rules: vec![],
    };
    let error = chain::write_chain(&mut Batch::new(), &chain, Family::V4).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
}

#[test]
fn a_kernel_without_nf_tables_is_named_as_such() {
    for code in [-22, -95] {
        let error = explain(NetlinkError::refused(code, None));
        assert!(error.to_string().ends_with("(this kernel has no nf_tables)"), "{error}");
    }
}
