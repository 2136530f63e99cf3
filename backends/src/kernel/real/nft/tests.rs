use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::*;
use crate::netlink::Messages;
use crate::rules::{End, Match, Rule, RuleInput, RuleNames, RuleSettings, Verdict, rules};

/// The message that makes a rule of ours.
fn written(rule: &Rule, family: Family) -> Vec<u8> {
    let chain = Chain {
        name: "postrtg".to_owned(),
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        priority: 0,
        policy: Policy::Accept,
        rules: vec![],
    };
    let mut change = Change::of("flannel");
    change.rule(family, &rule::encode(rule, &chain, family).unwrap());
    change.bytes_for_test()
}

/// The rule that a message describes.
fn read(message: &[u8], family: Family) -> Rule {
    let message = Messages::new(message).next().unwrap();
    rule::decode(&RuleView::parse(&message).unwrap(), family)
}

/// Where the rule's expressions are in its message: behind the table, the chain and the list's own header.
fn list_at(message: &[u8]) -> usize {
    message.windows(8).position(|bytes| bytes == b"postrtg\0").unwrap() + 12
}

fn every_rule() -> Vec<(Family, Rule)> {
    let input = |fully_random| RuleInput {
        names: RuleNames::Flannel,
        networks: [("10.244.0.0/16", "10.244.3.0/24"), ("fd00:10:244::/56", "fd00:10:244:3::/64")]
            .map(|(c, p)| (c.parse().unwrap(), p.parse().unwrap()))
            .to_vec(),
        settings: RuleSettings {
            masquerade: true,
            fully_random,
            forward_rules: true,
            no_masquerade: vec!["0.0.0.0/0".parse().unwrap(), "172.16.0.0/12".parse().unwrap()],
            ..RuleSettings::default()
        },
    };
    let tables = [true, false].into_iter().flat_map(|random| rules(&input(random)));
    tables
        .flat_map(|t| t.chains.into_iter().flat_map(move |c| c.rules.into_iter().map(move |r| (t.family, r))))
        .collect()
}

#[test]
fn every_rule_we_make_reads_back_as_itself() {
    for (family, rule) in every_rule() {
        assert_eq!(read(&written(&rule, family), family), rule);
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
            assert_eq!(read(&written(&rule, family), family), rule);
        }
    }
}

#[test]
fn a_truncated_list_is_never_a_rule_of_ours() {
    for (family, rule) in every_rule() {
        let message = written(&rule, family);
        let (at, end) = (list_at(&message), message.len());
        // Of the last octets, some are padding.
        for cut in at..end.saturating_sub(4) {
            let mut short = message[..cut].to_vec();
            short[..4].copy_from_slice(&u32::try_from(cut).unwrap().to_ne_bytes());
            let length = u16::try_from(cut - at + 4).unwrap();
            short[at - 4..at - 2].copy_from_slice(&length.to_ne_bytes());
            assert!(matches!(read(&short, family), Rule::Unknown(_)), "{rule} cut at {cut}");
        }
    }
}

#[test]
fn one_changed_octet_never_reads_as_the_same_rule() {
    for (family, rule) in every_rule() {
        let message = written(&rule, family);
        for at in list_at(&message)..message.len() {
            let mut changed = message.clone();
            changed[at] ^= 0x11;
            // Only padding says nothing.
            let same = read(&changed, family) == rule;
            assert!(!same || message[at] == 0, "{rule}: octet {at} does not matter");
        }
    }
}

#[test]
fn a_rule_of_the_other_family_is_not_ours() {
    for (family, rule) in every_rule() {
        let other = Family::ALL[usize::from(family == Family::V4)];
        let read = read(&written(&rule, family), other);
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
    let error = base(&chain).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
}

#[test]
fn a_kernel_without_nf_tables_is_named_as_such() {
    for code in [-22, -95] {
        let error = explain(NetlinkError::refused(code, None));
        assert!(error.to_string().ends_with("(this kernel has no nf_tables)"), "{error}");
    }
}
