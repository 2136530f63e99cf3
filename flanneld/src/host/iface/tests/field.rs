//! Hosts as they are met in the field: one case each, with what is chosen and why.

use super::*;

/// (the host, the flags, the families, the choice, a part of the reason)
type Met = (&'static str, &'static str, &'static str, &'static str, &'static str);

fn met(cases: &[Met]) {
    for (facts, flags, families, expected, why) in cases {
        assert_eq!(outcome(facts, flags, families), *expected, "{facts} with {flags:?} for {families}");
        let text = chosen(facts, flags, families).map_or_else(|error| error.tried, |choice| choice.why);
        assert!(text.contains(why), "{why:?} in {text:?}");
    }
}

const TWO_WAYS_OUT: &str = "link lan\naddr lan 10.0.0.5/24\nlink lte\naddr lte 100.64.0.9/30\n\
    route 0.0.0.0/0 lte via 100.64.0.10 metric 700\nroute 0.0.0.0/0 lan via 10.0.0.1 metric 100";

#[test]
fn of_several_default_routes_the_best_metric_decides_and_the_others_are_named() {
    met(&[
        (TWO_WAYS_OUT, "", "v4", "lan 10.0.0.5", "default route with metric 100, before lte"),
        (TWO_WAYS_OUT, "--iface=lte", "v4", "lte 100.64.0.9", "--iface=lte"),
        (
            "link lan\naddr lan 10.0.0.5/24\nroute 0.0.0.0/0 lan via 10.0.0.1",
            "",
            "v4",
            "lan 10.0.0.5",
            "default route",
        ),
    ]);
}

#[test]
fn of_a_default_route_with_several_ways_the_first_with_an_address_counts() {
    let ways = "link a\nlink b\naddr b 10.0.1.5/24\nlink c\naddr c 10.0.2.5/24\n\
        route 0.0.0.0/0 a via 10.0.0.1\nroute 0.0.0.0/0 b via 10.0.1.1\nroute 0.0.0.0/0 c via 10.0.2.1";
    met(&[(ways, "", "v4", "b 10.0.1.5", "before a, c")]);
}

#[test]
fn where_rules_and_other_tables_decide_the_kernel_is_asked_for_the_way_to_an_address() {
    // The main table leads to eth0; a rule sends what goes to the storage network through eth1.
    let policy = "link eth0\naddr eth0 10.0.0.5/24\nlink eth1\naddr eth1 10.1.0.5/24\naddr eth1 10.1.0.6/24\n\
        route 0.0.0.0/0 eth0 via 10.0.0.1\nreach 10.9.0.1/32 eth1 via 10.1.0.1 src 10.1.0.6";
    met(&[
        (policy, "--iface-can-reach=10.9.0.1", "v4", "eth1 10.1.0.6", "--iface-can-reach=10.9.0.1"),
        (policy, "", "v4", "eth0 10.0.0.5", "default route"),
    ]);
}

#[test]
fn the_whole_stands_for_a_part_that_has_no_address() {
    let bond = "link bond0 kind bond\naddr bond0 10.0.0.5/24\nlink eth0 master bond0\nlink eth1 master bond0\n\
        route 0.0.0.0/0 bond0 via 10.0.0.1";
    let bridge =
        "link br0 kind bridge\naddr br0 10.0.0.5/24\nlink eth0 master br0\nroute 0.0.0.0/0 br0 via 10.0.0.1";
    let vlan = "link eth0\nlink eth0.7 kind vlan mtu 1496\naddr eth0.7 10.7.0.5/24\nroute 0.0.0.0/0 eth0.7 via 10.7.0.1";
    met(&[
        (bond, "", "v4", "bond0 10.0.0.5", "default route"),
        (bond, "--iface=eth1", "v4", "bond0 10.0.0.5", "--iface=eth1, a part of bond0"),
        (bridge, "--iface=eth0", "v4", "br0 10.0.0.5", "a part of br0"),
        (
            bridge,
            "--iface-regex=^eth",
            "v4",
            "--iface-regex=^eth: matches no interface with IPv4 addresses",
            "",
        ),
        (vlan, "", "v4", "eth0.7 10.7.0.5", "default route"),
        (vlan, "--iface=eth0", "v4", "--iface=eth0: eth0 has no usable IPv4 address", ""),
    ]);
}

#[test]
fn a_part_with_an_address_of_its_own_is_itself() {
    let vrf = "link red kind vrf\nlink eth0 master red\naddr eth0 10.0.0.5/24";
    met(&[(vrf, "--iface=eth0", "v4", "eth0 10.0.0.5", "--iface=eth0")]);
}

#[test]
fn a_point_to_point_device_serves_with_its_own_end() {
    let tun = "link eth0\naddr eth0 192.168.1.5/24\nlink tun0 kind tun mtu 1420 point-to-point\naddr tun0 10.8.0.5/32\n\
        route 0.0.0.0/0 eth0 via 192.168.1.1\nroute 10.8.0.0/24 tun0";
    let ppp = "link ppp0 mtu 1492 point-to-point\naddr ppp0 198.51.100.5/32\nroute 0.0.0.0/0 ppp0";
    met(&[
        (tun, "--iface=tun0", "v4", "tun0 10.8.0.5", "--iface=tun0"),
        (tun, "--iface-can-reach=10.8.0.1", "v4", "tun0 10.8.0.5", "--iface-can-reach"),
        (tun, "", "v4", "eth0 192.168.1.5", "default route"),
        (ppp, "", "v4", "ppp0 198.51.100.5", "default route"),
    ]);
}

#[test]
fn a_cloud_s_address_of_full_length_with_an_onlink_gateway_serves() {
    let cloud = "link eth0 mtu 1460\naddr eth0 10.132.0.5/32 dynamic\nroute 10.132.0.1/32 eth0\n\
        route 0.0.0.0/0 eth0 via 10.132.0.1 src 10.132.0.5";
    met(&[
        (cloud, "", "v4", "eth0 10.132.0.5", "default route"),
        (cloud, "--iface-can-reach=10.132.0.9", "v4", "eth0 10.132.0.5", "--iface-can-reach"),
    ]);
}

#[test]
fn a_host_of_one_family_serves_a_network_of_that_family_alone() {
    let six = "link eth0\naddr eth0 fe80::1/64 link\naddr eth0 2001:db8::5/64 dynamic\n\
        route ::/0 eth0 via fe80::ff metric 1024";
    met(&[
        (six, "", "v6", "eth0 2001:db8::5", "default route"),
        (six, "", "v4", "there is no default route (IPv4); --iface names an interface", ""),
        (six, "", "v4v6", "default route: eth0 has no usable IPv4 address", ""),
        (
            six,
            "--iface=eth0 --public-ip=203.0.113.5",
            "v4v6",
            "--iface=eth0: eth0 has no usable IPv4 address",
            "",
        ),
    ]);
}

#[test]
fn link_local_alone_serves_as_the_last_resort_and_temporary_and_deprecated_ones_late_or_never() {
    let local = "link eth0\naddr eth0 fe80::1/64 link\nroute ::/0 eth0 via fe80::ff";
    let privacy = "link eth0\naddr eth0 2001:db8::aaaa/64 dynamic temporary\naddr eth0 2001:db8::5/64 dynamic\n\
        route ::/0 eth0 via fe80::ff";
    let renumbered = "link eth0\naddr eth0 2001:db8:1::5/64 dynamic deprecated\naddr eth0 2001:db8:2::5/64 dynamic\n\
        route ::/0 eth0 via fe80::ff";
    let only_temporary =
        "link eth0\naddr eth0 2001:db8::aaaa/64 dynamic temporary\nroute ::/0 eth0 via fe80::ff";
    let coming = "link eth0\naddr eth0 2001:db8::5/64 tentative\nroute ::/0 eth0 via fe80::ff";
    met(&[
        (local, "", "v6", "eth0 fe80::1", "default route"),
        (privacy, "", "v6", "eth0 2001:db8::5", "default route"),
        (renumbered, "", "v6", "eth0 2001:db8:2::5", "default route"),
        (only_temporary, "", "v6", "eth0 2001:db8::aaaa", "default route"),
        (coming, "", "v6", "default route: eth0 has no usable IPv6 address", ""),
    ]);
}

#[test]
fn behind_nat_the_outer_address_is_published_and_the_inner_one_used() {
    let inner = "link eth0\naddr eth0 10.0.0.5/24\naddr eth0 fd00::5/64\nroute 0.0.0.0/0 eth0 via 10.0.0.1\n\
        route ::/0 eth0 via fe80::ff";
    met(&[
        (
            inner,
            "--iface=eth0 --public-ip=203.0.113.5 --public-ipv6=2001:db8::5",
            "v4v6",
            "eth0 10.0.0.5 fd00::5 as 203.0.113.5 2001:db8::5",
            "203.0.113.5 (not on this host) stands for 10.0.0.5",
        ),
        (
            inner,
            "--iface-can-reach=8.8.8.8 --public-ip=203.0.113.5",
            "v4",
            "eth0 10.0.0.5 as 203.0.113.5",
            "--iface-can-reach=8.8.8.8",
        ),
    ]);
}

#[test]
fn the_same_address_on_every_machine_is_left_for_a_better_one_by_hand() {
    let vagrant = "link eth0\naddr eth0 10.0.2.15/24 dynamic\nlink eth1\naddr eth1 192.168.56.11/24\nlink eth2\n\
        route 0.0.0.0/0 eth0 via 10.0.2.2";
    met(&[
        (vagrant, "", "v4", "eth0 10.0.2.15", "default route"),
        (vagrant, "--iface-regex=^192[.]168[.]56", "v4", "eth1 192.168.56.11", "--iface-regex"),
    ]);
    let facts = host(vagrant);
    assert_eq!(candidates(&facts, &[Family::V4], 1), ["eth1 (192.168.56.11)"]);
    assert!(candidates(&facts, &[Family::V4, Family::V6], 1).is_empty());
}
