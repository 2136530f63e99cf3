//! One daemon on one kernel, step by step: each test states one case that a world only finds by chance.

use std::time::Duration;

use backends::kernel::fake::FakeKernel;
use flanneld::core::{Effect, Input, Memory, NodeCore, Settings, Tick};
use subnet_lease::{Claim, Lease, StoreEvent, SubnetEnv, Subnets};
use tests::lines::type_line;
use tests::solo::{Solo, settings};

pub(crate) const NETWORK: &[u8] = br#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

pub(crate) fn record(key: &str, public: &str, mac: u8, node: Option<&str>) -> Lease {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:04:00:00:00:{mac:02x}"}}"#);
    let record =
        format!(r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#);
    Lease { node: node.map(str::to_owned), ..Lease::from_record(key, record.as_bytes()).unwrap() }
}

pub(crate) fn host(lines: &[&str]) -> FakeKernel {
    let mut kernel = FakeKernel::new(0);
    let plugged = [
        "ip link add eth0",
        "ip link set eth0 up",
        "ip address add 172.16.0.1/24 dev eth0",
        "ip route add 0.0.0.0/0 via 172.16.0.254 dev eth0",
    ];
    for line in plugged.iter().chain(lines) {
        type_line(&mut kernel.net, line).unwrap();
    }
    kernel
}

fn named(node: &str) -> Settings {
    Settings { node: Some(node.to_owned()), ..settings() }
}

/// The first claim of a daemon that starts on this host.
fn first_claim(settings: Settings, mut kernel: FakeKernel, leases: Vec<Lease>) -> Claim {
    use backends::kernel::Kernel as _;
    let mut core = NodeCore::new(settings);
    let mut inputs = vec![
        Input::Store(StoreEvent::Config(NETWORK.to_vec())),
        Input::Store(StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign: false }),
    ];
    while !inputs.is_empty() {
        let effects: Vec<_> = inputs.drain(..).flat_map(|input| core.handle(Tick::ZERO, input)).collect();
        for effect in effects {
            match effect {
                Effect::Claim(claim) => return *claim,
                Effect::ReadHost => inputs.push(Input::Host(kernel.host())),
                Effect::ReadOwn(owner) => inputs.push(Input::Own(kernel.own(&owner))),
                _ => {}
            }
        }
    }
    panic!("no claim");
}

fn key(text: &str) -> Option<Subnets> {
    Some(text.parse().unwrap())
}

#[test]
fn a_host_with_a_new_address_and_its_old_device_claims_its_old_subnet() {
    let device = "ip link add flannel.1 address 02:04:00:00:00:05 type vxlan id 1 local 172.16.0.99 dev if2";
    let old = record("10.244.5.0-24", "172.16.0.99", 5, Some("us"));
    let claim = first_claim(named("us"), host(&[device]), vec![old]);
    assert_eq!(claim.previous, key("10.244.5.0-24"));
}

#[test]
fn a_lease_of_another_host_behind_the_same_address_is_not_ours() {
    let theirs = record("10.244.5.0-24", "172.16.0.1", 5, Some("them"));
    let claim = first_claim(named("us"), host(&[]), vec![theirs.clone()]);
    assert_eq!(claim.previous, None);
    assert_ne!(claim.attrs, theirs.attrs, "nor is its hardware address");
    let unnamed = Lease { node: None, ..theirs };
    let claim = first_claim(named("us"), host(&[]), vec![unnamed]);
    assert_eq!(claim.previous, key("10.244.5.0-24"), "a flannel does not say who it is");
}

#[test]
fn objects_kept_because_of_an_interrupted_dump_are_deleted_soon_without_a_notification() {
    let own = record("10.244.1.0-24", "172.16.0.1", 1, None);
    let peers = [2, 3].map(|n| record(&format!("10.244.{n}.0-24"), &format!("172.16.0.{n}"), n, None));
    let mut solo = Solo::new(settings(), host(&[]), own.clone());
    solo.start(NETWORK, vec![own.clone(), peers[0].clone(), peers[1].clone()]);
    solo.notice();
    solo.wait(Duration::from_secs(2));
    solo.take_plans();

    solo.kernel.faults.interrupt_dumps(1);
    // One peer leaves and one joins, so the pass has something to apply.
    solo.hear(Input::Store(StoreEvent::Snapshot {
        leases: vec![own, peers[0].clone(), record("10.244.4.0-24", "172.16.0.4", 4, None)],
        unreadable: Vec::new(),
        foreign: false,
    }));
    solo.wait(Duration::from_secs(1));
    let last = solo.take_plans().pop().unwrap().0.to_string();
    assert!(last.contains("ip route delete 10.244.3.0/24"), "{last}");
}

#[test]
fn routes_of_an_earlier_flannel_are_deleted_after_an_interrupted_first_dump() {
    let left = "ip route add 10.244.9.0/24 via 172.16.0.9 dev eth0 proto 3";
    let own = record("10.244.1.0-24", "172.16.0.1", 1, None);
    let mut solo = Solo::new(settings(), host(&[left]), own.clone());
    solo.hear(Input::Remembered(SubnetEnv::parse(ENV).unwrap()));
    solo.hear(Input::Store(StoreEvent::Config(NETWORK.to_vec())));
    solo.kernel.faults.interrupt_dumps(1);
    solo.hear(Input::Store(StoreEvent::Snapshot {
        leases: vec![own],
        unreadable: Vec::new(),
        foreign: false,
    }));
    solo.wait(Duration::from_secs(5));
    assert!(!solo.kernel.to_string().contains("10.244.9.0"), "{}", solo.kernel);
}

/// What a daemon on this host published.
const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

#[test]
fn a_static_route_inside_the_network_stays_where_no_flannel_ran_or_ours_ran_after_it() {
    let operator = "ip route add 10.244.9.0/24 via 172.16.0.9 dev eth0 proto 3";
    let peer = "ip route add 10.244.2.0/24 via 172.16.0.2 dev eth0 proto 67";
    let own = record("10.244.1.0-24", "172.16.0.1", 1, None);
    let env = || Input::Remembered(SubnetEnv::parse(ENV).unwrap());
    let recalled = |warm| Input::Recalled(memory(own.clone()), warm);
    for (before, kernel, stays) in [
        (vec![], vec![operator], true),
        (vec![env()], vec![operator, peer], true),
        (vec![env(), recalled(true)], vec![operator], true),
        // The host started anew after our last run, and a flannel ran.
        (vec![env(), recalled(false)], vec![operator], false),
        (vec![env()], vec![operator], false),
    ] {
        let mut solo = Solo::new(settings(), host(&kernel), own.clone());
        let case = format!("{before:?} {kernel:?}");
        before.into_iter().for_each(|input| solo.hear(input));
        solo.start(NETWORK, vec![own.clone()]);
        solo.wait(Duration::from_secs(5));
        assert_eq!(solo.kernel.to_string().contains("10.244.9.0"), stays, "{case}\n{}", solo.kernel);
    }
}

#[test]
fn no_subnet_is_claimed_from_another_network_of_the_host_and_the_overlap_is_named() {
    let bridge =
        ["ip link add docker0", "ip link set docker0 up", "ip address add 10.244.64.1/18 dev docker0"];
    let inside: subnet_lease::IpNetwork = "10.244.64.0/18".parse().unwrap();
    let claim = first_claim(settings(), host(&bridge), Vec::new());
    assert!(claim.avoid.contains(&inside), "{:?}", claim.avoid);
    let own = record("10.244.1.0-24", "172.16.0.1", 1, None);
    let mut solo = Solo::new(settings(), host(&bridge), own.clone());
    solo.start(NETWORK, vec![own]);
    let conflicts = solo.status().conflicts;
    let named = conflicts.iter().any(|why| why.contains("overlaps 10.244.64.0/18, the network on docker0"));
    assert!(named, "{conflicts:?}");
}

fn shown(leases: Vec<Lease>) -> Input {
    Input::Store(StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign: false })
}

fn memory(own: Lease) -> Box<Memory> {
    let config = NETWORK.to_vec();
    Box::new(Memory { config, own, peers: Vec::new(), settings: Vec::new(), hold: None })
}

/// A daemon of node "us" at 172.16.0.1 that another one may be a clone of, or that is a clone itself.
fn contested(first: &Lease) -> Solo {
    let own = record("10.244.1.0-24", "172.16.0.1", 1, Some("us"));
    let mut solo = Solo::new(named("us"), host(&[]), own.clone());
    solo.hear(Input::Recalled(memory(Lease { public: first.public, ..own }), false));
    solo.hear(Input::Store(StoreEvent::Config(NETWORK.to_vec())));
    solo.hear(shown(vec![first.clone()]));
    solo.wait(Duration::from_secs(11));
    assert!(solo.status().ready, "{:?}", solo.status());
    solo
}

/// The other host claims, and we hear of it; so many times, as fast as we claim.
fn flip(solo: &mut Solo, theirs: &Lease, times: usize) {
    for _ in 0..times {
        solo.hear(Input::Store(StoreEvent::Upsert(theirs.clone())));
        solo.wait(Duration::from_secs(1));
        let ours = solo.own.clone();
        solo.hear(Input::Store(StoreEvent::Upsert(ours)));
    }
}

#[test]
fn a_clone_under_the_same_name_leaves_the_lease_to_the_one_that_was_there_first() {
    let theirs = record("10.244.1.0-24", "172.16.0.99", 1, Some("us"));
    let mut solo = contested(&theirs);
    flip(&mut solo, &theirs, 2);
    assert!(solo.withdrawn.is_none());
    let mac = solo.claim.as_ref().unwrap().attrs.clone();
    solo.own = record("10.244.7.0-24", "172.16.0.1", 7, Some("us"));
    solo.hear(Input::Store(StoreEvent::Upsert(theirs)));
    solo.wait(Duration::from_secs(1));
    let claim = solo.claim.unwrap();
    assert_eq!(claim.previous, None, "it asks for another subnet");
    assert_ne!(claim.attrs, mac, "with another MAC address");
    let why = solo.withdrawn.expect("subnet.env is withdrawn");
    for part in ["172.16.0.99", "172.16.0.1", "--node-id", "state file", "now holds 10.244.7.0-24"] {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
}

#[test]
fn the_one_that_was_there_first_keeps_its_lease_names_both_and_does_not_storm() {
    let ours = record("10.244.1.0-24", "172.16.0.1", 1, Some("us"));
    let theirs = record("10.244.1.0-24", "172.16.0.99", 1, Some("us"));
    let mut solo = contested(&ours);
    let claims = solo.claims;
    flip(&mut solo, &theirs, 4);
    assert!(solo.withdrawn.is_none() && solo.claims - claims <= 4, "{}", solo.claims);
    let reasons = solo.status().reasons.join("\n");
    for part in ["172.16.0.99", "172.16.0.1", "10.244.1.0-24", "--node-id", "being there first"] {
        assert!(reasons.contains(part), "{part} is not in: {reasons}");
    }
    assert!(solo.status().ready);
    solo.wait(Duration::from_secs(120));
    assert_eq!(solo.status().reasons, [""; 0], "it is over");
}

#[test]
fn late_news_of_an_address_that_we_had_is_no_other_host() {
    let mut solo = contested(&record("10.244.1.0-24", "172.16.0.1", 1, Some("us")));
    type_line(&mut solo.kernel.net, "ip address add 172.16.0.50/24 dev eth0").unwrap();
    type_line(&mut solo.kernel.net, "ip address delete 172.16.0.1/24 dev eth0").unwrap();
    solo.notice();
    solo.wait(Duration::from_secs(12));
    assert_eq!(solo.own.public.to_string(), "172.16.0.50");
    flip(&mut solo, &record("10.244.1.0-24", "172.16.0.1", 1, Some("us")), 5);
    assert_eq!((solo.status().reasons, solo.withdrawn), (Vec::new(), None));
}

#[test]
fn a_clone_with_another_name_and_address_makes_a_mac_address_of_its_own() {
    let original = record("10.244.5.0-24", "172.16.0.99", 5, Some("them"));
    let own = record("10.244.1.0-24", "172.16.0.1", 1, Some("us"));
    let mut solo = Solo::new(named("us"), host(&[]), own);
    solo.hear(Input::Recalled(memory(original.clone()), false));
    solo.start(NETWORK, vec![original.clone()]);
    solo.wait(Duration::from_secs(2));
    let claim = solo.claim.clone().unwrap();
    assert_ne!(claim.attrs, original.attrs);
    assert!(solo.status().ready, "{:?}", solo.status());
    assert_eq!(solo.status().peers, 1, "the original is a peer");
}

#[test]
fn of_two_hosts_with_one_mac_address_the_later_takes_another_at_once() {
    let ours = Lease { epoch: 9, ..record("10.244.1.0-24", "172.16.0.1", 5, Some("us")) };
    let earlier = Lease { epoch: 3, ..record("10.244.5.0-24", "172.16.0.99", 5, Some("them")) };
    for (other, changes) in [(Lease { epoch: 12, ..earlier.clone() }, false), (earlier, true)] {
        let mut solo = Solo::new(named("us"), host(&[]), ours.clone());
        solo.start(NETWORK, vec![ours.clone()]);
        solo.wait(Duration::from_secs(2));
        assert_eq!(solo.claim.as_ref().unwrap().attrs, ours.attrs, "as the lease shows it");
        solo.hear(Input::Store(StoreEvent::Upsert(other)));
        solo.wait(Duration::from_secs(2));
        assert_eq!(solo.claim.as_ref().unwrap().attrs != ours.attrs, changes);
        assert_eq!(solo.status().peers, usize::from(changes));
    }
}
