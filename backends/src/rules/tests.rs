use std::net::IpAddr;

use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::*;

const GOLDEN: &str = include_str!("golden.nft");

pub(super) fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn pair(family: Family) -> (IpNetwork, IpNetwork) {
    match family {
        Family::V4 => (net("10.244.0.0/16"), net("10.244.3.0/24")),
        Family::V6 => (net("fd00:10:244::/56"), net("fd00:10:244:3::/64")),
    }
}

fn all_on() -> RuleSettings {
    RuleSettings { masquerade: true, fully_random: true, forward_rules: true, ..RuleSettings::default() }
}

pub(super) fn input(families: &[Family]) -> RuleInput {
    let networks = families.iter().copied().map(pair).collect();
    RuleInput { networks, settings: all_on(), ..RuleInput::default() }
}

/// Every combination of the flags, with a heading that says it.
pub(super) fn combinations(families: &[Family]) -> impl Iterator<Item = (String, RuleInput)> {
    (0..8).map(|bits| {
        let [masquerade, fully_random, forward_rules] = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
        let on = [(masquerade, "masquerade"), (fully_random, "fully-random"), (forward_rules, "forward")];
        let heading = on.map(|(on, name)| if on { name } else { "-" }).join(" ");
        let settings = RuleSettings { masquerade, fully_random, forward_rules, ..RuleSettings::default() };
        (heading, RuleInput { settings, ..input(families) })
    })
}

fn text(tables: &[RuleTable]) -> String {
    tables.iter().map(RuleTable::to_nft).collect()
}

/// `UPDATE_GOLDEN=1` writes the file anew.
#[test]
fn every_combination_of_flags_gives_the_rules_of_the_golden_file() {
    let mut all = String::new();
    for family in Family::ALL {
        for (heading, input) in combinations(&[family]) {
            all += &format!("# {family}: {heading}\n{}\n", text(&rules(&input)));
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/rules/golden.nft"), &all).unwrap();
        return;
    }
    assert_eq!(all, GOLDEN);
}

#[test]
fn two_families_give_the_tables_of_each() {
    for (_, input) in combinations(&Family::ALL) {
        let one = |family| rules(&RuleInput { networks: vec![pair(family)], ..input.clone() });
        let each: Vec<_> = Family::ALL.into_iter().flat_map(one).collect();
        assert_eq!(rules(&input), each);
    }
}

#[test]
fn without_masquerading_and_forwarding_no_table_is_wished_for() {
    let input = RuleInput { settings: RuleSettings::default(), ..input(&Family::ALL) };
    assert_eq!(rules(&input), []);
    assert_eq!(rules(&RuleInput { settings: all_on(), ..RuleInput::default() }), []);
}

#[test]
fn host_bits_of_a_network_make_no_difference() {
    let [sloppy, exact] = ["10.244.3.1/24", "10.244.3.0/24"]
        .map(|own| RuleInput { networks: vec![(pair(Family::V4).0, net(own))], ..input(&[]) });
    assert_eq!(rules(&sloppy), rules(&exact));
}

#[test]
fn an_exempt_destination_stands_before_the_masquerade_of_its_family_only() {
    let no_masquerade = vec![net("192.168.0.0/16"), net("2001:db8::/33")];
    let tables =
        rules(&RuleInput { settings: RuleSettings { no_masquerade, ..all_on() }, ..input(&Family::ALL) });
    let exempt: Vec<_> = tables.iter().map(|t| t.chains[1].rules[4].to_string()).collect();
    assert_eq!(
        exempt,
        [
            "ip saddr 10.244.0.0/16 ip daddr 192.168.0.0/16 return",
            "ip6 saddr fd00:10:244::/56 ip6 daddr 2001:db8::/33 return"
        ]
    );
    assert!(tables.iter().all(|t| t.chains[1].rules.len() == 7));
}

/// What the chain decides about a packet; none when no rule does.
fn fate(chain: &Chain, source: &str, destination: &str, mark: u32) -> Option<Verdict> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let holds = |m: &Match| match *m {
        Match::Mark(bits) => mark & bits == bits,
        Match::Address { end: End::Source, inside, net } => net.contains(source) == inside,
        Match::Address { end: End::Destination, inside, net } => net.contains(destination) == inside,
    };
    chain.rules.iter().find_map(|rule| match rule {
        Rule::When(matches, verdict) => matches.iter().all(holds).then_some(*verdict),
        Rule::Unknown(_) => None,
    })
}

#[test]
fn a_packet_is_masqueraded_exactly_when_its_answer_would_not_find_back() {
    let hidden = Some(Verdict::Masquerade { fully_random: true });
    let seen = Some(Verdict::Return);
    let cases = [
        ("10.244.3.9", "10.244.7.9", 0, seen, "pod here to pod elsewhere"),
        ("10.244.7.9", "10.244.3.9", 0, seen, "pod elsewhere to pod here"),
        ("192.0.2.1", "10.244.3.9", 0, seen, "the world to a pod here"),
        ("192.0.2.1", "10.244.7.9", 0, hidden, "this host, or the world through it, to a pod elsewhere"),
        ("10.244.3.9", "192.0.2.1", 0, hidden, "pod here to the world"),
        ("10.244.3.9", "239.1.2.3", 0, None, "pod here to a multicast group"),
        ("192.0.2.1", "198.51.100.1", 0, None, "the host to the world"),
        ("10.244.3.9", "192.0.2.1", 0x4000, seen, "marked by kube-proxy"),
        ("10.244.3.9", "192.0.2.1", 0xc001, seen, "marked by kube-proxy and by somebody else"),
        ("10.244.3.9", "192.0.2.1", 0x8000, hidden, "marked by somebody else"),
    ];
    let table = &rules(&input(&[Family::V4]))[0];
    for (source, destination, mark, expected, what) in cases {
        assert_eq!(fate(&table.chains[1], source, destination, mark), expected, "{what}");
    }
    let table = &rules(&input(&[Family::V6]))[0];
    assert_eq!(fate(&table.chains[1], "2001:db8::1", "fd00:10:244:7::9", 0), hidden);
    assert_eq!(fate(&table.chains[1], "fd00:10:244:3::9", "ff02::fb", 0), None);
}
