//! The real kernel, in a network namespace of each test's own: what we wish for is what it then shows.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says no more than that it failed")]

mod disturbed;
mod lab;
mod provoked;
mod strangers;

use std::net::IpAddr;

use backends::kernel::{Kernel, OpError};
use backends::{Feature, KernelState, Object, Op, Route, Sysctl};
use lab::{Lab, ip, name, type_lines};
use subnet_lease::Family;

#[test]
fn a_dual_stack_wish_is_what_the_kernel_shows_after_one_pass() {
    let mut lab = Lab::new();
    let want = lab.want(200);
    lab.converge(&want);
    let fewer = lab.want(50);
    lab.converge(&fewer);
    lab.converge(&want);
    lab.converge(&KernelState::default());
}

#[test]
fn a_link_that_was_down_gets_everything_back_that_the_kernel_threw_away() {
    let mut lab = Lab::new();
    let want = lab.want(20);
    lab.converge(&want);
    ip(&["link", "set", "flannel.7", "down"]);
    ip(&["link", "set", "flannel-v6.7", "down"]);
    let lost = lab.plan(&want);
    assert!(lost.ops.len() > 2 + 20 * 4, "{lost}");
    lab.converge(&want);
    ip(&["link", "set", "flannel-v6.7", "up"]);
    lab.converge(&want);
}

#[test]
fn a_deleted_or_altered_device_is_put_right_in_one_pass() {
    let mut lab = Lab::new();
    let want = lab.want(5);
    lab.converge(&want);
    for disturb in [
        &["link", "delete", "flannel.7"][..],
        &["link", "set", "flannel.7", "address", "02:de:ad:00:00:01"],
        &["link", "set", "flannel-v6.7", "mtu", "1300"],
        &["link", "set", "flannel.7", "type", "vxlan", "id", "7", "learning"],
        &["link", "set", "flannel.7", "alias", "mine"],
        &["-6", "address", "flush", "dev", "flannel-v6.7"],
        &["route", "flush", "dev", "flannel.7"],
        &["neigh", "flush", "dev", "flannel.7", "nud", "permanent"],
        &["address", "add", "10.244.9.9/32", "dev", "flannel.7"],
        &["route", "add", "10.244.77.0/24", "dev", "flannel.7"],
    ] {
        ip(disturb);
        assert!(!lab.plan(&want).is_empty(), "{disturb:?} was not seen");
        lab.converge(&want);
    }
}

#[test]
fn what_a_go_flannel_left_is_taken_over_in_place() {
    let mut lab = Lab::new();
    ip(&[
        "link",
        "add",
        "flannel.7",
        "address",
        "02:00:00:00:00:01",
        "type",
        "vxlan",
        "id",
        "7",
        "local",
        "172.16.0.1",
        "dev",
        "eth0",
        "dstport",
        "8472",
        "nolearning",
    ]);
    ip(&["address", "add", "10.244.1.0/32", "dev", "flannel.7"]);
    ip(&["link", "set", "flannel.7", "up"]);
    for n in [2, 3, 99] {
        let (dst, via) = (format!("10.244.{n}.0/24"), format!("10.244.{n}.0"));
        ip(&["route", "add", &dst, "via", &via, "dev", "flannel.7", "onlink"]);
    }
    let want = lab.want(2);
    let plan = lab.plan(&want).to_string();
    assert!(!plan.contains("link delete"), "{plan}");
    assert!(plan.contains("route replace 10.244.2.0/24"), "{plan}");
    assert!(plan.contains("route delete 10.244.99.0/24"), "{plan}");
    lab.converge(&want);
}

#[test]
fn an_ipv6_gateway_that_another_device_covers_is_reached_all_the_same() {
    let mut lab = Lab::new();
    ip(&["-6", "route", "add", "fd00:244::/40", "dev", "lo"]);
    let want = lab.want(3);
    lab.converge(&want);
}

#[test]
fn foreign_routes_and_a_duplicate_of_ours_are_distinguished() {
    let mut lab = Lab::new();
    let want = lab.want(2);
    lab.converge(&want);
    let foreign = "10.244.200.0/28 dev lo proto static scope link";
    ip(&["route", "add", "10.244.200.0/28", "dev", "lo", "proto", "static"]);
    ip(&["route", "prepend", "10.244.2.0/24", "dev", "lo", "proto", "static"]);
    assert!(!lab.plan(&want).is_empty());
    lab.converge(&want);
    let shown = ip(&["route", "show"]);
    assert!(shown.contains(foreign.trim()), "{shown}");
}

#[test]
fn a_link_that_cannot_be_made_takes_only_what_hangs_on_it() {
    let mut lab = Lab::new();
    ip(&["link", "add", "flannel.7", "type", "bridge"]);
    let want = lab.want(2);
    let plan = lab.plan(&want);
    let results = lab.kernel.apply(&plan.ops);
    let skipped = results.iter().filter(|r| matches!(r, Err(OpError::Skipped(_)))).count();
    let failed = results.iter().filter(|r| matches!(r, Err(OpError::Failed(_)))).count();
    assert_eq!((failed, skipped), (1, 5 + 3 * 2), "the IPv4 side, and nothing of the IPv6 side");
}

#[test]
fn a_blackhole_route_reads_back_as_it_was_written() {
    let mut lab = Lab::new();
    let hole = |dst: &str| Object::Route(Route::blackhole(dst.parse().unwrap()));
    let want = [hole("10.244.1.0/24"), hole("fd00:244:0:1::/64")].into_iter().collect();
    lab.converge(&want);
}

#[test]
fn checksums_are_left_to_software_where_that_is_wanted_and_put_back_when_somebody_turns_them_on() {
    let mut lab = Lab::new();
    lab.node.tx_checksum = Some(false);
    let want = lab.want(2);
    lab.converge(&want);
    let on = Object::Sysctl(name("flannel.7"), Sysctl::TxChecksum, 1);
    let done = lab.kernel.apply(&[Op::Put { want: on, have: None }]);
    assert_eq!(done, [Ok(())]);
    let plan = lab.plan(&want).to_string();
    assert_eq!(plan, "ethtool -K flannel.7 tx-checksum-ip-generic off\n");
    lab.converge(&want);
    // Where nobody asked, it is as the kernel made it.
    lab.node.tx_checksum = None;
    let indifferent = lab.want(2);
    assert!(lab.plan(&indifferent).is_empty());
}

#[test]
fn a_device_for_ipv6_has_it_where_new_links_have_none() {
    let mut lab = Lab::new();
    type_lines("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    let want = lab.want(2);
    lab.converge(&want);
    type_lines("echo 1 > /proc/sys/net/ipv6/conf/flannel-v6.7/disable_ipv6");
    assert!(!lab.plan(&want).is_empty());
    // The kernel takes all that is IPv6 from such a link; with it comes back what hangs on it.
    lab.pass(&want);
    lab.converge(&want);
}

#[test]
fn the_facts_say_what_the_kernel_is_and_which_way_leads_to_an_address() {
    let lab = Lab::new();
    type_lines(
        "ip route add 198.51.100.0/24 via 172.16.0.9 dev eth0 table 77
         ip rule add to 198.51.100.0/24 lookup 77",
    );
    let mut kernel = lab.kernel.looking_for(Some("198.51.100.7".parse().unwrap()));
    let facts = kernel.host().unwrap();
    let way = facts.reach.unwrap();
    assert_eq!(
        (way.gateway, way.source),
        (Some("172.16.0.9".parse().unwrap()), Some("172.16.0.1".parse().unwrap()))
    );
    assert_eq!(facts.link(way.link).unwrap().name, name("eth0"));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(facts.system.release, release.trim());
    assert!(facts.system.version() > Some((4, 0)));
    assert!(
        !facts.system.lacks.contains(&Feature::Vxlan) && !facts.system.lacks.contains(&Feature::NfTables)
    );
    let links = facts.links.len();
    assert_eq!(kernel.host().unwrap().links.len(), links, "asking for vxlan made no device");
}

#[test]
fn the_facts_say_what_the_host_is() {
    let mut lab = Lab::new();
    ip(&["link", "add", "eth9", "index", "9", "type", "veth", "peer", "name", "peer9"]);
    ip(&["link", "set", "eth9", "up"]);
    ip(&["address", "add", "192.0.2.5/24", "dev", "eth9"]);
    ip(&["route", "add", "default", "via", "192.0.2.1", "metric", "50"]);
    let facts = lab.kernel.host().unwrap();
    assert!(facts.ipv6);
    assert!(facts.has_address("192.0.2.5".parse::<IpAddr>().unwrap()));
    assert!(facts.on_link(9, "192.0.2.77".parse().unwrap()));
    assert!(!facts.on_link(9, "192.0.3.77".parse().unwrap()));
    let route = facts.defaults(Family::V4)[0];
    assert_eq!((route.gateway, route.metric), (Some("192.0.2.1".parse().unwrap()), 50));
}
