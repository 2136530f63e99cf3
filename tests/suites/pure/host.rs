//! The host of one daemon: what it lacks, what is odd, and how its changes are followed.

use std::time::Duration;

use backends::kernel::fake::FakeKernel;
use backends::rules::RuleSettings;
use backends::{Feature, System};
use flanneld::core::{Effect, Input, NodeCore, Settings, Status, Tick};
use flanneld::exit::Exit;
use flanneld::host::iface::IfaceWish;
use subnet_lease::{Family, StoreEvent};
use tests::lines::type_line;
use tests::solo::{Solo, settings};

use crate::daemon::{NETWORK, host, record};

const DIRECT: &[u8] = br#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;

const HOST_GW: &[u8] = br#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#;

const DUAL_HOST_GW: &[u8] = br#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48",
    "Backend": {"Type": "host-gw"}}"#;

fn system(release: &str, lacks: Vec<Feature>) -> System {
    System { release: release.to_owned(), distribution: "ubuntu".to_owned(), lacks, settings: Vec::new() }
}

/// What the daemon reported until it ended, and its exit code; or that it still runs.
fn ending(
    settings: Settings,
    mut kernel: FakeKernel,
    network: &[u8],
    until: Duration,
) -> (NodeCore, Option<Exit>) {
    use backends::kernel::Kernel as _;
    let mut core = NodeCore::new(settings);
    let mut inputs = vec![Input::Store(StoreEvent::Config(network.to_vec()))];
    let mut now = Tick::ZERO;
    loop {
        let effects: Vec<_> = match inputs.pop() {
            Some(input) => core.handle(now, input),
            None if core.next_deadline() > until => return (core, None),
            None => {
                now = now.max(core.next_deadline());
                core.tick(now)
            }
        };
        for effect in effects {
            match effect {
                Effect::Exit(exit) => return (core, Some(exit)),
                Effect::ReadHost => inputs.push(Input::Host(kernel.host())),
                Effect::ReadOwn(owner) => inputs.push(Input::Own(kernel.own(&owner))),
                _ => {}
            }
        }
    }
}

fn asking_for(link: &str) -> IfaceWish {
    IfaceWish { names: vec![link.parse().unwrap()], ..IfaceWish::default() }
}

fn running(settings: Settings, kernel: FakeKernel, network: &[u8], peers: &[u8]) -> Solo {
    let own = record("10.244.1.0-24", "172.16.0.1", 1, None);
    let others =
        peers.iter().map(|n| record(&format!("10.244.{n}.0-24"), &format!("172.16.0.{n}"), *n, None));
    let leases = std::iter::once(own.clone()).chain(others).collect();
    let mut solo = Solo::new(settings, kernel, own);
    solo.start(network, leases);
    solo.notice();
    solo.wait(Duration::from_secs(1));
    solo
}

fn type_all(solo: &mut Solo, lines: &[&str]) {
    lines.iter().for_each(|line| type_line(&mut solo.kernel.net, line).unwrap());
    solo.notice();
    solo.wait(Duration::from_secs(1));
}

fn fact<'a>(status: &'a Status, what: &str) -> (&'a str, &'a str) {
    let found = status.facts.iter().find(|fact| fact.what == what);
    found.map_or(("", ""), |fact| (&fact.value, &fact.from))
}

#[test]
fn a_missing_kernel_feature_ends_the_daemon_at_its_start_and_is_named() {
    for (network, lacks, expected) in [
        (NETWORK, vec![Feature::Vxlan], Some(Exit::Unsupported)),
        (NETWORK, vec![Feature::Ipv6, Feature::BridgeNetfilter], None),
        (HOST_GW, vec![Feature::Vxlan], None),
        (DUAL_HOST_GW, vec![Feature::Ipv6], Some(Exit::Unsupported)),
    ] {
        let mut kernel = host(&[]);
        kernel.net.set_system(system("6.1.0", lacks.clone()));
        let (core, exit) = ending(settings(), kernel, network, Duration::from_secs(1));
        assert_eq!(exit, expected, "{lacks:?}");
        let module = format!("modprobe {}", lacks[0].module());
        assert_eq!(
            core.ending().is_some_and(|output| output.contains(&module)),
            expected.is_some(),
            "{lacks:?}"
        );
    }
    // Rules are required, and nothing on this host can make them.
    for (forward_rules, expected) in [(true, Some(Exit::Unsupported)), (false, None)] {
        let mut kernel = host(&[]);
        kernel.net.firewall.nf_tables = false;
        let settings =
            Settings { rules: RuleSettings { forward_rules, ..RuleSettings::default() }, ..settings() };
        let (core, exit) = ending(settings, kernel, NETWORK, Duration::from_secs(1));
        assert_eq!(exit, expected);
        assert_eq!(core.ending().is_some_and(|output| output.contains("modprobe nf_tables")), forward_rules);
    }
}

/// A thread of its own reads the host. A notification that arrives before the answer may not be part of the
/// answer.
#[test]
fn a_notification_during_the_read_of_the_host_causes_another_read() {
    use backends::kernel::{Kernel as _, KernelEvent};
    let mut solo = running(settings(), host(&[]), NETWORK, &[2]);
    let now = Duration::from_secs(1);
    let effects = solo.core.handle(now, Input::Kernel(KernelEvent::Host));
    let [Effect::Listen(listen), Effect::ReadHost] = &effects[..] else { panic!("{effects:?}") };
    assert!(listen.known.is_empty(), "any link's notification counts until the host is read");
    let before = solo.kernel.host();
    for line in ["ip address add 172.16.0.77/24 dev eth0", "ip address delete 172.16.0.1/24 dev eth0"] {
        type_line(&mut solo.kernel.net, line).unwrap();
    }
    solo.core.handle(now, Input::Kernel(KernelEvent::Host));
    solo.hear(Input::Host(before));
    solo.wait(Duration::from_secs(1));
    let status = format!("{:?}", solo.status());
    assert!(status.contains("172.16.0.77"), "{status}");
}

#[test]
fn a_named_interface_is_waited_for_and_no_other_is_chosen() {
    for (wait, until, expected) in [
        (Some(0), 0, Some(Exit::Interface)),
        (Some(60), 59, None),
        (Some(60), 61, Some(Exit::Interface)),
        (None, 3600, None),
    ] {
        let settings =
            Settings { iface: asking_for("lan0"), iface_wait: wait.map(Duration::from_secs), ..settings() };
        let (core, exit) = ending(settings, host(&[]), NETWORK, Duration::from_secs(until));
        assert_eq!(exit, expected, "{wait:?} {until}");
        let output = core.readiness().reasons.join("\n");
        assert!(
            output.contains("--iface=lan0: there is no such interface; this host has eth0 (172.16.0.1)"),
            "{output}"
        );
    }
    // Without a named interface the daemon waits for the default route without limit.
    let settings = Settings { iface_wait: Some(Duration::ZERO), ..settings() };
    let (_, exit) = ending(settings, FakeKernel::new(0), NETWORK, Duration::from_secs(3600));
    assert_eq!(exit, None);
}

#[test]
fn a_named_interface_that_is_renamed_stays_chosen() {
    let settings = Settings { iface: asking_for("eth0"), ..settings() };
    let mut solo = running(settings, host(&[]), DIRECT, &[2]);
    type_all(&mut solo, &["ip link set eth0 name lan0"]);
    let status = solo.status();
    assert_eq!(status.external.as_ref().unwrap().link, "lan0");
    assert!(
        status.reasons.join("\n").contains("--iface=eth0: there is no such interface"),
        "{:?}",
        status.reasons
    );
    assert_eq!(solo.claims, 1);
    // The objects on it are still repaired.
    type_all(&mut solo, &["ip route delete 10.244.2.0/24 via 172.16.0.2 dev lan0 proto 67"]);
    assert!(solo.kernel.to_string().contains("10.244.2.0/24 via 172.16.0.2 dev lan0"), "{}", solo.kernel);
}

#[test]
fn the_default_route_with_the_better_metric_is_followed_and_the_subnet_stays() {
    let mut solo = running(settings(), host(&[]), NETWORK, &[2]);
    type_all(
        &mut solo,
        &["ip link add eth1", "ip link set eth1 up", "ip address add 172.17.0.1/24 dev eth1"],
    );
    assert_eq!(solo.claims, 1, "an interface without a default route is not asked for");
    type_all(
        &mut solo,
        &[
            "ip route delete 0.0.0.0/0 via 172.16.0.254 dev eth0",
            "ip route add 0.0.0.0/0 via 172.17.0.254 dev eth1",
        ],
    );
    let status = solo.status();
    assert_eq!((status.external.unwrap().link.as_str(), solo.claims), ("eth1", 2));
    assert_eq!(status.subnets, ["10.244.1.0/24"]);
    assert!(solo.kernel.to_string().contains("type vxlan id 1 local 172.17.0.1 dev if4"), "{}", solo.kernel);
}

#[test]
fn a_new_address_is_published_at_once_and_a_lease_that_others_rewrite_with_back_off() {
    let own = record("10.244.1.0-24", "172.16.0.1", 1, None);
    let mut solo = running(settings(), host(&[]), NETWORK, &[2]);
    for (n, address) in ["172.16.0.101", "172.16.0.102", "172.16.0.1", "172.16.0.103"].iter().enumerate() {
        let old = solo.core.shown_lease().unwrap().public.v4.unwrap();
        type_line(&mut solo.kernel.net, &format!("ip address add {address}/24 dev eth0")).unwrap();
        type_line(&mut solo.kernel.net, &format!("ip address delete {old}/24 dev eth0")).unwrap();
        solo.notice();
        assert_eq!(solo.claims, 2 + n, "{address}");
    }
    // Another program writes the first address back after each of our repairs.
    let mut within = 0;
    for _ in 0..50 {
        let claims = solo.claims;
        solo.hear(Input::Store(StoreEvent::Upsert(own.clone())));
        solo.wait(Duration::from_millis(100));
        within += solo.claims - claims;
    }
    assert!((4..=6).contains(&within), "{within} claims in 5 s: 0, 0.2, 0.6, 1.4, 3.0 s and so on");
}

#[test]
fn peers_are_direct_while_their_prefix_is_connected() {
    let through =
        |solo: &Solo| solo.kernel.to_string().contains("10.244.2.0/24 via 10.244.2.0 dev flannel.1");
    let mut solo = running(settings(), host(&[]), DIRECT, &[2]);
    assert!(!through(&solo), "{}", solo.kernel);
    assert_eq!(
        fact(&solo.status(), "IPv4 peers on the wire"),
        ("1 of 1", "connected to eth0: 172.16.0.0/24")
    );
    type_all(
        &mut solo,
        &["ip address add 172.16.0.1/32 dev eth0", "ip address delete 172.16.0.1/24 dev eth0"],
    );
    assert!(through(&solo), "{}", solo.kernel);
    assert_eq!(fact(&solo.status(), "IPv4 peers on the wire").0, "0 of 1");
    type_all(&mut solo, &["ip address add 172.16.0.1/24 dev eth0"]);
    assert!(!through(&solo), "{}", solo.kernel);
}

#[test]
fn one_address_on_two_hosts_is_named_with_the_other_usable_interfaces() {
    let other = ["ip link add eth1", "ip link set eth1 up", "ip address add 192.168.56.11/24 dev eth1"];
    let own = record("10.244.1.0-24", "172.16.0.1", 1, Some("us"));
    let twin = record("10.244.5.0-24", "172.16.0.1", 5, Some("them"));
    let mut solo =
        Solo::new(Settings { node: Some("us".to_owned()), ..settings() }, host(&other), own.clone());
    solo.start(NETWORK, vec![own, twin]);
    solo.wait(Duration::from_secs(1));
    let output = solo.status().conflicts.join("\n");
    assert!(
        output.contains("node \"them\" (10.244.5.0-24) publishes 172.16.0.1 as well, which is ours on eth0"),
        "{output}"
    );
    assert!(output.contains("; here are also eth1 (192.168.56.11): --iface chooses one"), "{output}");
}

#[test]
fn the_address_that_every_virtual_machine_has_is_named_before_two_hosts_have_it() {
    let mut kernel = FakeKernel::new(0);
    for line in [
        "ip link add eth0",
        "ip link set eth0 up",
        "ip address add 10.0.2.15/24 dev eth0",
        "ip route add 0.0.0.0/0 via 10.0.2.2 dev eth0",
        "ip link add eth1",
        "ip link set eth1 up",
        "ip address add 192.168.56.11/24 dev eth1",
    ] {
        type_line(&mut kernel.net, line).unwrap();
    }
    let solo = running(settings(), kernel, NETWORK, &[]);
    let output = solo.status().conflicts.join("\n");
    assert!(
        output.contains("eth0 publishes 10.0.2.15") && output.contains("eth1 (192.168.56.11)"),
        "{output}"
    );
}

#[test]
fn an_underlay_mtu_too_small_for_pods_is_named_and_a_configured_mtu_too_large_is_ignored() {
    let six = br#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
        "Backend": {"Type": "vxlan", "MTU": 9000}}"#;
    let kernel =
        host(&["ip address add fd00:172::1/64 dev eth0", "ip route add ::/0 via fd00:172::ff dev eth0"]);
    let own = {
        let lease = record("10.244.1.0-24", "172.16.0.1", 1, None);
        subnet_lease::Lease { subnets: "10.244.1.0-24&fd00:244:0:1::-64".parse().unwrap(), ..lease }
    };
    let mut solo = Solo::new(settings(), kernel, own);
    solo.start(six, Vec::new());
    solo.wait(Duration::from_secs(1));
    let output = solo.status().conflicts.join("\n");
    assert!(output.contains("the network's configuration says MTU 9000, and eth0 has 1500"), "{output}");
    assert_eq!(fact(&solo.status(), "MTU of flannel-v6.1").0, "1430");
    assert_eq!(solo.env.unwrap().mtu, 1430);
    solo.kernel.net.set_mtu("eth0".parse().unwrap(), 1300).unwrap();
    solo.notice();
    solo.wait(Duration::from_secs(1));
    let output = solo.status().conflicts.join("\n");
    assert!(output.contains("eth0 has an MTU of 1300: IPv6 pods need 1350"), "{output}");
}

#[test]
fn checksum_offload_is_switched_off_on_kernels_before_5_7_and_on_request() {
    for (release, output, expected) in [
        ("6.1.0", None, None),
        ("4.18.0", None, Some("off")),
        ("5.6.19", Some(true), Some("on")),
        ("6.1.0", Some(false), Some("off")),
    ] {
        let mut kernel = host(&[]);
        kernel.net.set_system(system(release, Vec::new()));
        let solo = running(Settings { tx_checksum: output, ..settings() }, kernel, NETWORK, &[2]);
        let plans: String = solo.plans.iter().map(|(plan, _)| plan.to_string()).collect();
        let line = plans.lines().find(|line| line.starts_with("ethtool"));
        let wanted = expected.map(|word| format!("ethtool -K flannel.1 tx-checksum-ip-generic {word}"));
        assert_eq!(line, wanted.as_deref(), "{release} {output:?}");
        assert_ne!(fact(&solo.status(), "tunnel checksums").0, "");
    }
}

#[test]
fn the_neighbour_limit_is_raised_for_many_peers_and_never_lowered() {
    use backends::Sysctl;
    let room = Sysctl::NeighbourRoom(Family::V4);
    let peers: Vec<_> = (0..1100u16)
        .map(|n| {
            let [hi, lo] = n.to_be_bytes();
            record(&format!("10.{}.{lo}.0-24", 100 + hi), &format!("172.16.{}.{lo}", 1 + hi), 9, None)
        })
        .collect();
    let conf = br#"{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "host-gw"}}"#;
    let plain = |mut lease: subnet_lease::Lease| {
        lease.attrs = subnet_lease::BackendAttrs::plain("host-gw");
        lease
    };
    for (before, expected) in [(1024, Some(2048)), (8192, None)] {
        let mut kernel = host(&["ip address add 172.16.0.1/16 dev eth0"]);
        let here = System { settings: vec![room], ..system("6.1.0", Vec::new()) };
        kernel.net.set_system(here);
        kernel.net.put_sysctl("eth0".parse().unwrap(), room, before).unwrap();
        let own = plain(record("10.99.1.0-24", "172.16.0.1", 1, None));
        let mut solo = Solo::new(settings(), kernel, own.clone());
        solo.start(conf, peers.iter().cloned().map(plain).chain([own]).collect());
        solo.wait(Duration::from_secs(1));
        let plans: String = solo.plans.iter().map(|(plan, _)| plan.to_string()).collect();
        let line = plans.lines().find(|line| line.ends_with("/gc_thresh3"));
        let wanted =
            expected.map(|value| format!("echo {value} > /proc/sys/net/ipv4/neigh/default/gc_thresh3"));
        assert_eq!(line, wanted.as_deref());
    }
}

#[test]
fn former_settings_are_remembered_until_the_host_restarts() {
    let mut solo = running(settings(), host(&[]), NETWORK, &[2]);
    assert!(solo.memory.as_ref().is_none_or(|m| m.settings.is_empty()), "nothing was changed yet");
    type_all(&mut solo, &["echo 0 > /proc/sys/net/ipv4/ip_forward"]);
    let memory = solo.memory.clone().unwrap();
    let former: Vec<_> = memory.settings.iter().map(|c| (c.link.to_string(), c.before, c.ours)).collect();
    assert!(former.contains(&("eth0".to_owned(), 0, 1)), "{former:?}");
    let value = fact(&solo.status(), "net/ipv4/ip_forward").1.to_owned();
    assert_eq!(value, "set by us, was 0");
    for (warm, expected) in [(true, "set by us, was 0"), (false, "wanted, and found so")] {
        solo.restart(settings());
        solo.hear(Input::Recalled(Box::new(memory.clone()), warm));
        let own = memory.own.clone();
        solo.start(NETWORK, vec![own]);
        solo.wait(Duration::from_secs(1));
        assert_eq!(fact(&solo.status(), "net/ipv4/ip_forward").1, expected, "{warm}");
    }
}

const BROKEN: &[u8] = br#"{"Network": "10.244.0.0/16", "SubnetLen": 99, "Backend": {"Type": "vxlan"}}"#;

fn config(text: &[u8]) -> Input {
    Input::Store(StoreEvent::Config(text.to_vec()))
}

#[test]
fn what_is_wrong_with_the_configuration_is_shown_until_the_configuration_changes() {
    let own = record("10.244.1.0-24", "172.16.0.1", 1, None);
    let mut solo = Solo::new(settings(), host(&[]), own.clone());
    solo.hear(config(BROKEN));
    let leases = vec![own, record("10.244.2.0-24", "172.16.0.2", 2, None)];
    solo.hear(Input::Store(StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign: false }));
    solo.hear(Input::Store(StoreEvent::Upsert(record("10.244.3.0-24", "172.16.0.3", 3, None))));
    let status = solo.status();
    assert!(status.reasons.iter().any(|r| r.contains("SubnetLen")), "{:?}", status.reasons);
    assert!(!status.ready && status.stale.is_none(), "the store can be followed: {status:?}");
    solo.hear(config(NETWORK));
    solo.wait(Duration::from_secs(2));
    assert_eq!((solo.status().ready, solo.status().reasons), (true, Vec::new()));
}

#[test]
fn a_configuration_that_goes_wrong_at_run_time_is_no_stale_store_and_stops_nothing() {
    let own = record("10.244.1.0-24", "172.16.0.1", 1, None);
    let mut solo = Solo::new(settings(), host(&[]), own.clone());
    solo.start(NETWORK, vec![own]);
    solo.wait(Duration::from_secs(2));
    solo.hear(config(BROKEN));
    solo.hear(Input::Store(StoreEvent::Upsert(record("10.244.3.0-24", "172.16.0.3", 3, None))));
    solo.wait(Duration::from_secs(2));
    let status = solo.status();
    assert!(status.ready && status.stale.is_none(), "{status:?}");
    assert!(status.reasons.iter().any(|r| r.contains("SubnetLen")), "{:?}", status.reasons);
    // A store that can't be followed is another fact: neither hides the other.
    solo.hear(Input::Store(StoreEvent::Stale("no store answers".to_owned())));
    let reasons = solo.status().reasons.join("\n");
    assert!(reasons.contains("SubnetLen") && reasons.contains("no store answers"), "{reasons}");
    solo.hear(config(NETWORK));
    assert_eq!(solo.status().reasons, [""; 0]);
}
