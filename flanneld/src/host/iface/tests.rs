use std::net::IpAddr;

use super::*;
use crate::cli::{self, Command};
use crate::config::{Environment, NodeConfig, RawConfig};

/// A host in text: `link NAME [kind WORD] [mtu N] [master LINK] [loopback] [point-to-point]`, `addr LINK NET [FLAG]...`,
/// `route NET LINK [via IP] [metric N] [src IP]`, and `reach`, the same for what the kernel answers when it is asked.
fn host(text: &str) -> Facts {
    let mut facts = Facts { ipv6: true, ..Facts::default() };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let has = |word| words.contains(&word);
        let after = |word| words.iter().position(|w| *w == word).map(|at| words[at + 1]);
        let index = |name: &str| facts.links.iter().find(|l| l.name.as_str() == name).unwrap().index;
        match words[0] {
            "link" => facts.links.push(HostLink {
                index: u32::try_from(facts.links.len()).unwrap() + 1,
                name: words[1].parse().unwrap(),
                kind: after("kind").unwrap_or_default().to_owned(),
                mtu: after("mtu").map_or(1500, |mtu| mtu.parse().unwrap()),
                up: true,
                carrier: true,
                loopback: has("loopback"),
                point_to_point: has("point-to-point"),
                master: after("master").map_or(0, &index),
                tunnel: None,
            }),
            "addr" => facts.addresses.push(HostAddress {
                link: index(words[1]),
                net: words[2].parse().unwrap(),
                peer: None,
                global: !has("link") && !has("host"),
                permanent: !has("dynamic"),
                temporary: has("temporary"),
                deprecated: has("deprecated"),
                tentative: has("tentative"),
            }),
            word => {
                let route = HostRoute {
                    dst: words[1].parse().unwrap(),
                    gateway: after("via").map(|gateway| gateway.parse().unwrap()),
                    link: index(words[2]),
                    metric: after("metric").map_or(0, |metric| metric.parse().unwrap()),
                    source: after("src").map(|source| source.parse::<IpAddr>().unwrap()),
                    mtu: after("mtu").map_or(0, |mtu| mtu.parse().unwrap()),
                };
                match word {
                    "reach" => facts.reach = Some(route),
                    _ => facts.routes.push(route),
                }
            }
        }
    }
    facts
}

mod field;

/// Two networks: `eth0` with the default routes and everything, `eth1` inside; loopback with an address of its own.
const TWO: &str = "
    link lo loopback
    addr lo 127.0.0.1/8 host
    addr lo ::1/128 host
    addr lo 10.255.0.1/32
    link eth0
    addr eth0 10.0.0.1/24
    addr eth0 fe80::1/64 link
    addr eth0 fd00::1/64
    link eth1 mtu 9000
    addr eth1 192.168.1.1/24
    addr eth1 192.168.1.2/24
    addr eth1 fd01::1/64
    link eth2
    route 0.0.0.0/0 eth0 metric 100
    route ::/0 eth0 metric 1024
    route 10.0.0.0/24 eth0
    route 192.168.1.0/24 eth1 src 192.168.1.2
    route fd01::/64 eth1";

fn chosen(facts: &str, flags: &str, families: &str) -> Result<Choice, IfaceError> {
    let arguments: Vec<_> = flags.split_whitespace().map(str::to_owned).collect();
    let Ok(Command::Run(given)) = cli::parse(&arguments) else { panic!("{flags}") };
    let raw = RawConfig::gather(&given, &Environment::new());
    let config = NodeConfig::understand(&raw, "host").unwrap();
    let families: Vec<_> =
        Family::ALL.into_iter().filter(|f| families.contains(&f.to_string()[3..])).collect();
    choose(&host(facts), &config.core.iface, &families)
}

/// The link, its own addresses, and `as` the public ones where they differ.
fn outcome(facts: &str, flags: &str, families: &str) -> String {
    let text = |addrs: PublicAddrs| {
        Family::ALL.iter().filter_map(|f| addrs.family(*f)).map(|a| format!(" {a}")).collect::<String>()
    };
    match chosen(facts, flags, families) {
        Ok(Choice { external: e, .. }) if e.local == e.public => format!("{}{}", e.link, text(e.local)),
        Ok(Choice { external: e, .. }) => format!("{}{} as{}", e.link, text(e.local), text(e.public)),
        Err(error) => error.tried,
    }
}

fn check(facts: &str, cases: &[(&str, &str, &str)]) {
    for (flags, families, expected) in cases {
        assert_eq!(outcome(facts, flags, families), *expected, "with {flags:?} for {families}");
    }
}

#[test]
fn an_interface_is_found_by_name_or_by_an_address_on_it_and_the_first_that_fits_wins() {
    check(
        TWO,
        &[
            ("--iface=eth1", "v4", "eth1 192.168.1.1"),
            ("--iface=eth1", "v6", "eth1 fd01::1"),
            ("--iface=eth1", "v4v6", "eth1 192.168.1.1 fd01::1"),
            ("--iface=192.168.1.2", "v4", "eth1 192.168.1.2"),
            ("--iface=192.168.1.2", "v4v6", "eth1 192.168.1.2 fd01::1"),
            ("--iface=fd01::1", "v4v6", "eth1 192.168.1.1 fd01::1"),
            ("--iface=eth9 --iface=eth1 --iface=eth0", "v4", "eth1 192.168.1.1"),
            ("--iface=eth2 --iface=eth0", "v4", "eth0 10.0.0.1"),
            ("--iface=lo", "v4", "eth0 10.255.0.1"),
            ("--iface=10.255.0.1", "v4", "eth0 10.255.0.1"),
            ("--public-ip=10.255.0.1", "v4", "eth0 10.255.0.1"),
            ("--iface=eth9 --iface-regex=eth1", "v4", "eth1 192.168.1.1"),
        ],
    );
}

/// Addresses on loopback, and routes by IPv6 with these as their source: BGP down to the host.
const ROUTED: &str = "
    link lo loopback
    addr lo 127.0.0.1/8 host
    addr lo 10.255.0.7/32
    addr lo fd00::7/128
    link eth0 mtu 9000
    addr eth0 fe80::1/64 link
    link eth1
    addr eth1 fe80::2/64 link
    route 0.0.0.0/0 eth0 metric 20 src 10.255.0.7
    route ::/0 eth0 via fe80::ffff metric 20 src fd00::7
    route ::/0 eth1 via fe80::ffff metric 30 src fd00::7
";

#[test]
fn a_routed_host_has_the_source_of_its_default_route_and_the_mtu_of_the_way_out() {
    check(
        ROUTED,
        &[
            ("", "v4", "eth0 10.255.0.7"),
            ("", "v6", "eth0 fd00::7"),
            ("", "v4v6", "eth0 10.255.0.7 fd00::7"),
            ("--iface=lo", "v4v6", "eth0 10.255.0.7 fd00::7"),
            ("--iface=10.255.0.7", "v4", "eth0 10.255.0.7"),
        ],
    );
    let chosen = chosen(ROUTED, "--iface=lo", "v4").unwrap();
    assert_eq!((chosen.external.mtu, &*chosen.why), (9000, "--iface=lo, by the default route over eth0"));
}

#[test]
fn an_expression_is_matched_with_addresses_before_names() {
    check(
        TWO,
        &[
            ("--iface-regex=^192[.]168", "v4", "eth1 192.168.1.1"),
            ("--iface-regex=1[.]2$", "v4", "eth1 192.168.1.2"),
            ("--iface-regex=eth", "v4", "eth0 10.0.0.1"),
            ("--iface-regex=.", "v4", "eth0 10.0.0.1"),
            ("--iface-regex=^fd01", "v6", "eth1 fd01::1"),
            ("--iface-regex=nothing --iface-regex=h1$", "v4", "eth1 192.168.1.1"),
            ("--iface-regex=1$", "v4v6", "eth0 10.0.0.1 fd00::1"),
            ("--iface-regex=^lo$", "v4", "--iface-regex=^lo$: matches no interface with IPv4 addresses"),
        ],
    );
}

#[test]
fn with_two_families_an_expression_matches_both_on_one_interface_or_none() {
    // Only an IPv4 address matches, on eth1: its name does not, eth0 must not be mixed in.
    check(
        TWO,
        &[
            (
                "--iface-regex=^192",
                "v4v6",
                "--iface-regex=^192: matches no interface with IPv4 and IPv6 addresses",
            ),
            (
                "--iface-regex=^192|^fd00",
                "v4v6",
                "--iface-regex=^192|^fd00: matches no interface with IPv4 and IPv6 addresses",
            ),
            ("--iface-regex=^192|^fd0", "v4v6", "eth1 192.168.1.1 fd01::1"),
        ],
    );
}

#[test]
fn the_way_to_an_address_is_its_longest_matching_route_with_that_route_s_source() {
    check(
        TWO,
        &[
            ("--iface-can-reach=192.168.1.77", "v4", "eth1 192.168.1.2"),
            ("--iface-can-reach=192.168.1.77", "v4v6", "eth1 192.168.1.2 fd01::1"),
            ("--iface-can-reach=8.8.8.8", "v4", "eth0 10.0.0.1"),
            ("--iface-can-reach=fd01::9", "v4", "eth1 192.168.1.1"),
            ("--iface-can-reach=192.168.1.1", "v4", "eth1 192.168.1.1"),
            ("--iface=eth9 --iface-can-reach=8.8.8.8", "v4", "eth0 10.0.0.1"),
        ],
    );
    let longer_wins = "link eth0\naddr eth0 10.0.0.1/24\nlink eth1\naddr eth1 10.1.0.1/24\nroute 0.0.0.0/0 eth0\n\
                       route 10.9.0.0/16 eth1 metric 500\nroute 10.9.0.0/16 eth0 metric 600";
    check(longer_wins, &[("--iface-can-reach=10.9.1.1", "v4", "eth1 10.1.0.1")]);
    let cut_off = "link eth0\naddr eth0 10.0.0.1/24\nroute 10.0.0.0/24 eth0";
    check(cut_off, &[("--iface-can-reach=8.8.8.8", "v4", "--iface-can-reach=8.8.8.8: no route leads there")]);
}

#[test]
fn a_public_address_of_this_host_is_used_and_leads_to_its_interface() {
    check(
        TWO,
        &[
            ("--public-ip=192.168.1.2", "v4", "eth1 192.168.1.2"),
            ("--public-ip=192.168.1.2", "v4v6", "eth1 192.168.1.2 fd01::1"),
            ("--public-ipv6=fd01::1", "v6", "eth1 fd01::1"),
            ("--public-ip=192.168.1.2", "v6", "eth0 fd00::1"),
            ("--iface=eth1 --public-ip=192.168.1.2", "v4", "eth1 192.168.1.2"),
            ("--iface=eth0 --public-ip=10.255.0.1", "v4", "eth0 10.255.0.1"),
        ],
    );
}

#[test]
fn an_address_behind_nat_is_published_while_the_interface_s_own_is_used() {
    check(
        TWO,
        &[
            ("--iface=eth0 --public-ip=203.0.113.5", "v4", "eth0 10.0.0.1 as 203.0.113.5"),
            (
                "--iface=eth0 --public-ipv6=2001:db8::5",
                "v4v6",
                "eth0 10.0.0.1 fd00::1 as 10.0.0.1 2001:db8::5",
            ),
            ("--iface=192.168.1.2 --public-ip=203.0.113.5", "v4", "eth1 192.168.1.2 as 203.0.113.5"),
            (
                "--public-ip=203.0.113.5",
                "v4",
                "--public-ip=203.0.113.5: not an address of this host (for one behind NAT set --iface as well)",
            ),
        ],
    );
}

#[test]
fn the_default_route_with_the_lowest_metric_decides_and_of_several_ways_the_first() {
    let links = "link eth0\naddr eth0 10.0.0.1/24\naddr eth0 fd00::1/64\nlink eth1\naddr eth1 10.1.0.1/24\n";
    let with = |routes: &str| format!("{links}{routes}");
    check(
        TWO,
        &[("", "v4", "eth0 10.0.0.1"), ("", "v6", "eth0 fd00::1"), ("", "v4v6", "eth0 10.0.0.1 fd00::1")],
    );
    check(
        &with("route 0.0.0.0/0 eth0 metric 200\nroute 0.0.0.0/0 eth1 metric 100"),
        &[("", "v4", "eth1 10.1.0.1")],
    );
    check(&with("route 0.0.0.0/0 eth1\nroute 0.0.0.0/0 eth0"), &[("", "v4", "eth1 10.1.0.1")]);
    check(
        &with("route 0.0.0.0/0 eth1\nroute 0.0.0.0/0 eth0 metric 9\nroute ::/0 eth0"),
        &[("", "v4", "eth1 10.1.0.1"), ("", "v4v6", "eth0 10.0.0.1 fd00::1")],
    );
    check(
        &with("route 0.0.0.0/0 eth0"),
        &[
            ("", "v4v6", "eth0 10.0.0.1 fd00::1"),
            ("", "v6", "there is no default route (IPv6); --iface names an interface"),
        ],
    );
    check(&with("route 0.0.0.0/0 eth1"), &[("", "v4v6", "default route: eth1 has no usable IPv6 address")]);
    check(
        "link lo loopback\naddr lo 127.0.0.1/8 host\nroute 0.0.0.0/0 lo",
        &[("", "v4", "there is no default route (IPv4); --iface names an interface")],
    );
    // Both would do for two families; the way out that both share is the better one.
    let both =
        with("addr eth1 fd01::1/64\nroute 0.0.0.0/0 eth1\nroute 0.0.0.0/0 eth0 metric 9\nroute ::/0 eth0");
    check(&both, &[("", "v4", "eth1 10.1.0.1"), ("", "v4v6", "eth0 10.0.0.1 fd00::1")]);
}

#[test]
fn of_several_addresses_global_permanent_and_lasting_ones_are_preferred() {
    for (addresses, expected) in [
        ("169.254.1.1/16 | 10.0.0.1/24", "10.0.0.1"),
        ("169.254.1.1/16 link", "169.254.1.1"),
        ("10.0.0.1/24 dynamic | 10.0.0.2/24", "10.0.0.2"),
        ("10.0.0.1/24 deprecated | 10.0.0.2/24 dynamic", "10.0.0.2"),
        ("10.0.0.2/24 | 10.0.0.1/24", "10.0.0.2"),
        ("fe80::1/64 link | fd00::2/64 dynamic temporary | fd00::3/64 dynamic", "fd00::3"),
        ("fd00::1/64 tentative | fe80::1/64 link", "fe80::1"),
        ("fd00::1/64 deprecated | fd00::2/64 tentative", "--iface=e: e has no usable IPv6 address"),
    ] {
        let lines: String = addresses.split('|').map(|a| format!("addr e {}\n", a.trim())).collect();
        let family = if addresses.contains("::") { "v6" } else { "v4" };
        let outcome = outcome(&format!("link e\n{lines}"), "--iface=e", family);
        assert_eq!(outcome.strip_prefix("e ").unwrap_or(&outcome), expected, "{addresses}");
    }
}

#[test]
fn the_overlay_s_own_devices_are_never_the_underlay_by_pattern() {
    let facts = "link flannel.1\naddr flannel.1 10.244.1.0/32\nlink cni0\naddr cni0 10.244.1.1/24\n\
                 link eth0\naddr eth0 10.0.0.1/24";
    check(facts, &[("--iface-regex=^10", "v4", "eth0 10.0.0.1"), ("--iface=cni0", "v4", "cni0 10.244.1.1")]);
}

#[test]
fn an_error_names_everything_that_was_looked_for_and_what_there_is() {
    let error = chosen(TWO, "--iface=eth9 --iface=10.9.9.9 --iface=eth2 --iface-regex=x", "v4").unwrap_err();
    assert_eq!(
        error.to_string(),
        "no interface fits: --iface=eth9: there is no such interface; --iface=10.9.9.9: no interface has this \
         address; --iface=eth2: eth2 has no usable IPv4 address; --iface-regex=x: matches no interface with IPv4 \
         addresses; this host has eth0 (10.0.0.1, fe80::1, fd00::1), eth1 (192.168.1.1, 192.168.1.2, fd01::1), \
         eth2 (no address)"
    );
    let empty = chosen("link lo loopback", "", "v4").unwrap_err().to_string();
    assert!(empty.ends_with("this host has no interface but loopback"), "{empty}");
    let many: String = (0..20).map(|n| format!("link eth{n}\n")).collect();
    let long = chosen(&many, "--iface=x", "v4").unwrap_err().to_string();
    assert!(long.ends_with("eth11 (no address) and 8 more"), "{long}");
}

#[test]
fn an_interface_without_mtu_does_not_fit() {
    check("link e mtu 0\naddr e 10.0.0.1/24", &[("--iface=e", "v4", "--iface=e: e has no MTU")]);
}

#[test]
fn the_reason_says_what_led_to_the_choice_and_what_stands_for_what() {
    let choice = chosen(TWO, "--iface=eth1 --public-ip=203.0.113.5", "v4").unwrap();
    assert_eq!(choice.why, "--iface=eth1, 203.0.113.5 (not on this host) stands for 192.168.1.1");
    assert_eq!(choice.external.mtu, 9000);
    assert_eq!(chosen(TWO, "", "v4").unwrap().why, "default route");
}

#[test]
fn only_a_link_local_address_is_no_successor_of_a_global_one() {
    let addrs = |text: &str| text.split_whitespace().map(|a| a.parse().unwrap()).collect();
    for (old, new, expected) in [
        ("10.0.0.1 fd00::1", "10.0.0.1 fe80::1", true),
        ("10.0.0.1 fd00::1", "10.0.0.2 fd00::2", false),
        ("fe80::1", "fe80::2", false),
        ("fe80::1", "fd00::1", false),
        ("10.0.0.1", "169.254.0.9", true),
        ("10.0.0.1", "10.0.0.1 fe80::1", false),
    ] {
        assert_eq!(falls_back(addrs(old), addrs(new)), expected, "{old} → {new}");
    }
}
