//! From any state of the kernel: our objects become as wished, foreign objects stay, and the order of events
//! does not matter.

use std::time::Duration;

use backends::kernel::fake::FakeKernel;
use backends::kernel::{Kernel, KernelEvent};
use backends::{Object, Route};
use flanneld::core::Input;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use subnet_lease::{Lease, StoreEvent};
use tests::lines::type_line;
use tests::solo::{Solo, settings};

const NETWORK: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
    "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;

/// Peer `n`; every third one is behind a router.
fn lease(n: u8) -> Lease {
    let net = if n.is_multiple_of(3) { "172.20" } else { "172.16" };
    let record = format!(
        r#"{{"PublicIP":"{net}.0.{n}","PublicIPv6":"fd00:172::{n:x}","BackendType":"vxlan",
        "BackendData":{{"VNI":1,"VtepMAC":"02:04:00:00:00:{n:02x}"}},
        "BackendV6Data":{{"VNI":1,"VtepMAC":"02:06:00:00:00:{n:02x}"}}}}"#
    );
    Lease::from_record(&format!("10.244.{n}.0-24&fd00:244:0:{n:x}::-64"), record.as_bytes()).unwrap()
}

const PLUGGED: [&str; 6] = [
    "ip link add eth0 address 02:ee:00:00:00:01",
    "ip link set eth0 up",
    "ip address add 172.16.0.1/24 dev eth0",
    "ip -6 address add fd00:172::1/64 dev eth0",
    "ip route add 0.0.0.0/0 via 172.16.0.254 dev eth0",
    "ip -6 route add ::/0 via fd00:172::fe dev eth0",
];

/// Lines that may have been typed: ours, nearly ours, and foreign. Lines that the kernel refuses are left
/// out.
fn clutter() -> impl Strategy<Value = Vec<String>> {
    let n = 1u8..9;
    let device = (select(vec!["flannel.1", "flannel-v6.1", "flannel.7"]), 1u8..3, select(vec!["selvage:default", "", "selvage:other"]))
        .prop_map(|(name, vni, tag)| {
            let local = if name.contains("v6") { "fd00:172::1" } else { "172.16.0.1" };
            let alias = if tag.is_empty() { String::new() } else { format!("alias {tag}") };
            format!("ip link add {name} mtu 1400 type vxlan id {vni} local {local} dev if2 dstport 8472 nolearning {alias}")
        })
        // Only its owner can remove a device of another network with our VNI.
        .prop_filter("a conflict", |line| !line.ends_with("selvage:other") || line.contains("flannel.7") && line.contains("id 2"))
        .prop_filter("a conflict", |line| !line.contains("flannel.7") || line.contains("id 2") || line.ends_with("default"));
    let place = select(vec!["add", "append", "prepend"]);
    let scope = select(vec!["", "scope 9"]);
    let hung = select(vec!["flannel.1", "flannel.7"]);
    prop::collection::vec(
        prop_oneof![
            device,
            select(vec!["flannel.1", "flannel-v6.1", "flannel.7"])
                .prop_map(|d| format!("ip link set {d} up")),
            n.clone().prop_map(|n| format!("ip address add 10.244.{n}.0/32 dev flannel.1")),
            n.clone().prop_map(|n| format!("ip address add 10.77.{n}.0/32 dev flannel.7")),
            (n.clone(), n.clone()).prop_map(|(n, m)| format!(
                "bridge fdb replace 02:04:00:00:00:{n:02x} dev flannel.1 dst 172.16.0.{m} self"
            )),
            (n.clone(), n.clone()).prop_map(|(n, m)| format!(
                "ip neigh replace 10.244.{n}.0 lladdr 02:04:00:00:00:{m:02x} dev flannel.1"
            )),
            (n.clone(), n.clone()).prop_map(|(n, m)| format!(
                "ip neigh replace fd00:244:0:{n:x}:: lladdr 02:06:00:00:00:{m:02x} dev flannel-v6.1"
            )),
            (place.clone(), n.clone(), hung, select(vec![3u8, 4, 67]), scope).prop_map(
                |(p, n, d, proto, s)| format!(
                    "ip route {p} 10.244.{n}.0/24 via 10.244.{n}.0 dev {d} onlink proto {proto} {s}"
                )
            ),
            (place.clone(), n.clone(), n.clone(), select(vec![3u8, 4, 67]), select(vec![0u32, 7])).prop_map(
                |(p, n, m, proto, metric)| format!(
                    "ip route {p} 10.244.{n}.0/24 via 172.16.0.{} dev eth0 proto {proto} metric {metric}",
                    m + 1
                )
            ),
            (place, n.clone(), n.clone(), select(vec![3u8, 4, 67])).prop_map(|(p, n, m, proto)| format!(
                "ip -6 route {p} fd00:244:0:{n:x}::/64 via fd00:172::{:x} dev eth0 proto {proto}",
                m + 1
            )),
            n.clone().prop_map(|n| format!("ip route add 10.244.{n}.64/26 via 172.16.0.9 dev eth0 proto 4")),
            n.prop_map(|n| format!("ip route add 192.0.{n}.0/24 via 172.16.0.9 dev eth0 proto 67")),
        ],
        0..40,
    )
}

fn host(clutter: &[String]) -> FakeKernel {
    let mut kernel = FakeKernel::new(0);
    PLUGGED.iter().for_each(|line| type_line(&mut kernel.net, line).unwrap());
    for line in clutter {
        // Some lines make no sense after the ones before; the kernel refuses those.
        let _ = type_line(&mut kernel.net, line);
    }
    kernel
}

fn start(clutter: &[String], leases: Vec<Lease>) -> Solo {
    let mut solo = Solo::new(settings(), host(clutter), lease(1));
    solo.start(NETWORK.as_bytes(), leases);
    quiet(&mut solo);
    solo
}

fn quiet(solo: &mut Solo) {
    solo.notice();
    solo.wait(Duration::from_secs(5));
}

/// Routes that are not ours by any rule: elsewhere, or more specific than a lease.
fn strangers(kernel: &FakeKernel) -> Vec<Route> {
    let inside: ipnetwork::IpNetwork = "10.244.0.0/16".parse().unwrap();
    let stranger = |r: &Route| {
        r.dst.is_ipv4() && r.protocol != 2 && (!inside.contains(r.dst.ip()) || r.dst.prefix() == 26)
    };
    let all = kernel.net.everything();
    all.iter()
        .filter_map(|o| if let Object::Route(r) = o { Some(*r).filter(stranger) } else { None })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_there_becomes_as_wished_and_stays_so(clutter in clutter(), peers in subsequence((1..9u8).collect::<Vec<_>>(), 1..8)) {
        let before = host(&clutter);
        let mut solo = start(&clutter, peers.into_iter().map(lease).collect());
        solo.take_plans();
        solo.hear(Input::Kernel(KernelEvent::Overrun));
        prop_assert!(solo.take_plans().is_empty(), "{}", solo.kernel);
        prop_assert!(solo.core.readiness().ready, "{:?}", solo.core.readiness());
        for route in strangers(&before) {
            // What depends on a device of ours goes when the device is made again.
            let ours = route.link.is_some_and(|l| l.as_str() != "eth0");
            prop_assert!(ours || solo.kernel.net.has_route(&route), "{route:?} is gone");
        }
    }

    #[test]
    fn the_order_in_which_leases_come_does_not_matter(peers in Just((1..9u8).collect::<Vec<_>>()).prop_shuffle(), at_once in 0usize..8) {
        let mut reference = start(&[], (1..9).map(lease).collect());
        let (first, later) = peers.split_at(at_once);
        // Our own lease has our MAC, so it is known from the start.
        let mut solo = start(&[], first.iter().chain([&1]).map(|n| lease(*n)).collect());
        for n in later {
            solo.hear(Input::Store(StoreEvent::Upsert(lease(*n))));
        }
        quiet(&mut solo);
        quiet(&mut reference);
        prop_assert_eq!(solo.kernel.to_string(), reference.kernel.to_string());
    }

    #[test]
    fn the_lines_of_a_plan_do_what_the_plan_does(clutter in clutter(), peers in subsequence((1..9u8).collect::<Vec<_>>(), 1..8)) {
        let (mut typed, mut applied) = (host(&clutter), host(&clutter));
        let mut solo = Solo::new(settings(), host(&clutter), lease(1));
        solo.start(NETWORK.as_bytes(), peers.into_iter().map(lease).collect());
        for (plan, failed) in solo.take_plans() {
            applied.apply(&plan.ops);
            for line in plan.to_string().lines() {
                let done = type_line(&mut typed.net, line);
                prop_assert!(done.is_ok() || failed > 0 || line.contains(" delete ") || line.starts_with("ip -6 route"), "{done:?}");
            }
            if failed == 0 {
                prop_assert_eq!(typed.to_string(), applied.to_string());
            }
        }
        prop_assert_eq!(applied.to_string(), solo.kernel.to_string());
    }
}
