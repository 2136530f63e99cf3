//! The difference between a wish and a dump, as the lines that remove it.

use backends::kernel::Kernel;
use backends::kernel::fake::FakeKernel;
use backends::rules::RuleNames;
use backends::{IfName, KernelState, Object, Owner, diff};
use subnet_lease::{NetworkId, NetworkPool};
use tests::lines::type_line;

const DEVICE: &str = "ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 172.16.0.1 \
    dev if2 dstport 8472 nolearning alias selvage:default";

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn owner(first_pass: bool) -> Owner {
    Owner {
        network: NetworkId::default(),
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        names: vec![name("flannel.1")],
        external: Some(name("eth0")),
        pods: Vec::new(),
        pools: vec![NetworkPool {
            network: "10.244.0.0/16".parse().unwrap(),
            subnet_len: 24,
            min: "10.244.1.0".parse().unwrap(),
            max: "10.244.200.0".parse().unwrap(),
        }],
        routers: vec!["172.16.0.254".parse().unwrap()],
        rules: RuleNames::Flannel,
        first_pass,
    }
}

/// A host with the result of these lines.
fn host(lines: &[&str]) -> FakeKernel {
    let mut kernel = FakeKernel::new(0);
    let plugged = ["ip link add eth0", "ip link set eth0 up", "ip address add 172.16.0.1/24 dev eth0"];
    for line in plugged.iter().chain(lines) {
        type_line(&mut kernel.net, line).unwrap();
    }
    kernel
}

fn state(lines: &[&str]) -> KernelState {
    host(lines).own(&owner(false)).unwrap().state
}

/// The steps from the result of the second lines to the result of the first lines.
fn steps(want: &[&str], have: &[&str], first_pass: bool) -> Vec<String> {
    // The default settings of a device are not part of a wish.
    let unset = |o: &&Object| !matches!(o, Object::Sysctl(..));
    let want: KernelState = state(want).iter().filter(unset).cloned().collect();
    diff(&want, &state(have), &owner(first_pass)).to_string().lines().map(str::to_owned).collect()
}

const UP: [&str; 3] = [DEVICE, "ip address add 10.244.1.0/32 dev flannel.1", "ip link set flannel.1 up"];
const PEER: [&str; 3] = [
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 172.16.0.2 self permanent",
    "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
    "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 67 scope 34",
];

#[test]
fn a_host_that_is_as_wished_needs_no_step() {
    let all = [&UP[..], &PEER].concat();
    assert!(steps(&all, &all, false).is_empty());
}

#[test]
fn missing_objects_are_made_in_dependency_order() {
    let steps = steps(&[&UP[..], &PEER].concat(), &[], false);
    let verbs: Vec<_> = steps.iter().map(|s| s.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect();
    let order = ["ip link add", "ip link set", "ip address replace", "ip link set"];
    assert_eq!(verbs, [&order[..], &["bridge fdb replace", "ip neigh replace", "ip route replace"]].concat());
}

#[test]
fn unwished_objects_are_deleted_in_reverse_order() {
    let steps = steps(&UP, &[&UP[..], &PEER].concat(), false);
    assert_eq!(
        steps,
        [
            "ip route delete 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 67 scope 34",
            "ip neigh delete 10.244.2.0 dev flannel.1",
            "bridge fdb delete 02:00:00:00:00:02 dev flannel.1 dst 172.16.0.2 self",
        ]
    );
}

#[test]
fn only_the_link_is_deleted_because_its_objects_go_with_it() {
    assert_eq!(steps(&[], &[&UP[..], &PEER].concat(), false), ["ip link delete flannel.1"]);
}

#[test]
fn a_link_that_must_be_made_again_gets_all_its_objects_in_the_same_pass() {
    let other = DEVICE.replace("id 1", "id 2");
    let have = [&[other.as_str()], &UP[1..], &PEER].concat();
    let steps = steps(&[&UP[..], &PEER].concat(), &have, false);
    assert_eq!(steps[0], "ip link delete flannel.1");
    assert_eq!(steps[1..], self::steps(&[&UP[..], &PEER].concat(), &[], false));
}

#[test]
fn a_renamed_link_of_ours_gets_its_name_back_and_keeps_its_objects() {
    let all = [&UP[..], &PEER].concat();
    let have = [&all[..], &["ip link set flannel.1 name flannel.old"]].concat();
    assert_eq!(steps(&all, &have, false), ["ip link set flannel.old name flannel.1"]);
    let also =
        [&have[..], &["ip link set flannel.old mtu 1300"], &["ip neigh delete 10.244.2.0 dev flannel.old"]];
    let rest = ["ip link set flannel.old name flannel.1", "ip link set flannel.1 mtu 1450", PEER[1]];
    assert_eq!(steps(&all, &also.concat(), false), rest);
}

#[test]
fn a_renamed_link_gets_its_name_back_after_the_link_with_that_name_is_deleted() {
    let all = [&UP[..], &PEER].concat();
    let wrong = DEVICE.replace("id 1 ", "id 9 ").replace(" alias selvage:default", "");
    let have = [&all[..], &["ip link set flannel.1 name flannel.old", &wrong]].concat();
    let expected = ["ip link delete flannel.1", "ip link set flannel.old name flannel.1"];
    assert_eq!(steps(&all, &have, false), expected);
}

#[test]
fn an_address_that_becomes_a_peers_gateway_is_deleted_before_the_route_is_made() {
    let old = UP[1].replace("10.244.1.0", "10.244.2.0");
    let steps = steps(&[&UP[..], &PEER].concat(), &[UP[0], &old, UP[2]], false);
    assert_eq!(
        steps[..2],
        ["ip address replace 10.244.1.0/32 dev flannel.1", "ip address delete 10.244.2.0/32 dev flannel.1"]
    );
    assert_eq!(steps[2..], PEER);
}

#[test]
fn an_object_that_a_replacement_would_not_change_is_deleted_first() {
    let all = [&UP[..], &PEER].concat();
    let port = "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 172.16.0.2 port 9 self";
    let diverted = [&all[..], &[port]].concat();
    assert_eq!(
        steps(&all, &diverted, false),
        ["bridge fdb delete 02:00:00:00:00:02 dev flannel.1 self", PEER[0]]
    );
    let narrow = format!("{} scope link", UP[1]);
    let have = [&[UP[0], narrow.as_str(), UP[2]], &PEER[..]].concat();
    let expected =
        ["ip address delete 10.244.1.0/32 dev flannel.1", "ip address replace 10.244.1.0/32 dev flannel.1"];
    assert_eq!(steps(&all, &have, false), expected);
}

#[test]
fn a_route_of_ours_with_a_foreign_mtu_is_replaced() {
    let all = [&UP[..], &PEER].concat();
    let other = format!("{} mtu 600", PEER[2]);
    let have = [&all[..], &[other.as_str()]].concat();
    assert_eq!(steps(&all, &have, false), [PEER[2]]);
}

#[test]
fn a_connected_prefix_equal_to_a_peers_subnet_is_deleted_and_others_stay() {
    let all = [&UP[..], &PEER].concat();
    let bridge = ["ip link add cni0", "ip link set cni0 up", "ip address add 10.244.1.1/24 dev cni0"];
    let stale = "ip address add 10.244.2.1/24 dev cni0";
    assert!(steps(&all, &[&all[..], &bridge].concat(), true).is_empty());
    let have = [&all[..], &bridge, &[stale]].concat();
    assert_eq!(steps(&all, &have, false), ["ip route delete 10.244.2.0/24 dev cni0 proto 2 scope 253"]);
}

#[test]
fn a_blackhole_for_the_own_subnet_keeps_the_route_of_the_pods_bridge() {
    let hole = "ip route replace blackhole 10.244.1.0/24 proto 67 metric 4294967295";
    let bridge = ["ip link add cni0", "ip link set cni0 up", "ip address add 10.244.1.1/24 dev cni0"];
    assert_eq!(steps(&[hole], &bridge, true), [hole]);
    let flannels = "ip route append blackhole 10.244.1.0/24 proto 3";
    let both = [&bridge[..], &[flannels]].concat();
    assert_eq!(steps(&[hole], &both, true), [hole, "ip route delete blackhole 10.244.1.0/24 proto 3"]);
}

#[test]
fn foreign_addresses_and_neighbours_on_our_link_stay() {
    let theirs = [
        "ip address add 10.77.0.1/32 dev flannel.1",
        "ip neigh replace 10.77.0.9 lladdr 02:00:00:00:00:99 dev flannel.1",
    ];
    let ours = [
        "ip address add 10.244.1.9/32 dev flannel.1",
        "ip neigh replace 10.244.9.0 lladdr 02:00:00:00:00:99 dev flannel.1",
    ];
    assert!(steps(&UP, &[&UP[..], &theirs].concat(), true).is_empty());
    let gone = ["ip address delete 10.244.1.9/32 dev flannel.1", "ip neigh delete 10.244.9.0 dev flannel.1"];
    assert_eq!(steps(&UP, &[&UP[..], &theirs, &ours].concat(), true), gone);
}

#[test]
fn a_foreign_object_that_conflicts_with_ours_is_named_with_the_way_out() {
    let narrower = "ip route add 10.244.2.128/25 via 172.16.0.9 dev eth0 proto 4";
    let mut kernel = host(&["ip link add flannel.1", narrower]);
    let (facts, have) = (kernel.host().unwrap(), kernel.own(&owner(false)).unwrap().state);
    let want = state(&[&UP[..], &PEER].concat());
    let output = backends::conflicts(&want, &have, &owner(false), &facts);
    assert_eq!(
        output,
        [
            "flannel.1 is a device, and our tunnel device needs the name: `ip link set flannel.1 name OTHER` or `ip link delete flannel.1`",
            "a route that is not ours takes a part of the traffic to peer 10.244.2.0/24: `ip route delete 10.244.2.128/25 via 172.16.0.9 dev eth0 proto 4` ends that",
        ]
    );
    let beside = host(&["ip route add 10.244.9.128/25 via 172.16.0.9 dev eth0 proto 4"])
        .own(&owner(false))
        .unwrap()
        .state;
    let quiet = backends::conflicts(&state(&PEER_ONLY), &beside, &owner(false), &facts);
    assert!(quiet.is_empty(), "{quiet:?}");
}

/// A route to a peer over the underlay.
const PEER_ONLY: [&str; 1] = ["ip route add 10.244.2.0/24 via 172.16.0.2 dev eth0 proto 67"];

#[test]
fn a_link_with_our_name_and_another_networks_tag_is_not_ours() {
    let theirs = [DEVICE.replace("selvage:default", "selvage:other"), UP[2].to_owned()];
    let have: Vec<_> = theirs.iter().map(String::as_str).chain(PEER).collect();
    let left: Vec<_> = steps(&[], &have, true);
    // The route has our protocol number and is inside our network, so it is ours wherever it leads.
    assert_eq!(left, ["ip route delete 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 67 scope 34"]);
}

#[test]
fn a_changed_mac_makes_the_neighbours_again_that_it_costs() {
    let other = DEVICE.replace("00:01 ", "00:77 ");
    let have = [&[other.as_str()], &UP[1..], &PEER].concat();
    let steps = steps(&[&UP[..], &PEER].concat(), &have, false);
    assert_eq!(steps, ["ip link set flannel.1 address 02:00:00:00:00:01", PEER[1]]);
}

#[test]
fn a_route_of_ours_behind_a_foreign_one_is_deleted_before_it_is_replaced() {
    let prepended = "ip route prepend 10.244.2.0/24 via 172.16.0.9 dev eth0 proto 4";
    let have = [&UP[..], &PEER, &[prepended]].concat();
    let steps = steps(&[&UP[..], &PEER].concat(), &have, false);
    assert_eq!(steps, [PEER[2].replace("replace", "delete"), PEER[2].to_owned()]);
}

#[test]
fn a_route_over_a_device_that_is_deleted_last_does_not_hide_the_one_behind_it() {
    let old = DEVICE.replace("flannel.1", "flannel.7").replace("id 1", "id 2");
    let behind = "ip route add 10.244.2.0/24 via 172.16.0.2 dev eth0 proto 3";
    let first = "ip route prepend 10.244.2.0/24 via 10.244.2.0 dev flannel.7 onlink proto 3";
    let have = [&UP[..], &PEER[..2], &[&old, "ip link set flannel.7 up", behind, first]].concat();
    let expected = [&behind.replace("add", "delete"), PEER[2], "ip link delete flannel.7"];
    assert_eq!(steps(&[&UP[..], &PEER].concat(), &have, false), expected);
}

#[test]
fn a_route_of_ours_with_another_metric_is_deleted_because_it_could_win() {
    let beside = "ip route add 10.244.2.0/24 via 172.16.0.9 dev eth0 proto 4 metric 50";
    let have = [&UP[..], &PEER, &[beside]].concat();
    let steps = steps(&[&UP[..], &PEER].concat(), &have, false);
    assert_eq!(steps, ["ip route delete 10.244.2.0/24 via 172.16.0.9 dev eth0 proto 4 metric 50"]);
}

#[test]
fn foreign_routes_inside_the_network_stay() {
    let theirs = [
        "ip route add 192.0.2.0/24 via 172.16.0.9 dev eth0 proto 4",
        "ip route add 10.244.2.128/25 via 172.16.0.9 dev eth0 proto 4",
        "ip route add 10.244.0.0/16 via 172.16.0.9 dev eth0 proto 4",
        "ip route add 10.244.9.0/24 via 172.16.0.9 dev eth0 proto 4",
    ];
    let have = [&UP[..], &PEER, &theirs].concat();
    assert!(steps(&[&UP[..], &PEER].concat(), &have, true).is_empty());
}

#[test]
fn routes_of_an_earlier_flannel_over_the_underlay_are_deleted_in_the_first_pass_only() {
    let left = "ip route add 10.244.9.0/24 via 172.16.0.9 dev eth0 proto 3";
    assert_eq!(steps(&[], &[left], true), ["ip route delete 10.244.9.0/24 via 172.16.0.9 dev eth0 proto 3"]);
    assert!(steps(&[], &[left], false).is_empty());
}

#[test]
fn a_static_route_inside_the_network_that_no_flannel_made_is_never_deleted() {
    let left = "ip route add 10.244.9.0/24 via 172.16.0.9 dev eth0 proto 3";
    for (from, to) in [
        // Of another length, or to a subnet that the network does not give out.
        ("/24", "/25"),
        ("10.244.9.0", "10.244.201.0"),
        ("10.244.9.0", "10.244.0.0"),
        // By a router, or with a metric, or made by another program.
        ("172.16.0.9", "172.16.0.254"),
        ("proto 3", "proto 3 metric 50"),
        ("proto 3", "proto 4"),
    ] {
        let other = left.replace(from, to);
        assert_ne!(other, left);
        assert!(steps(&[], &[other.as_str()], true).is_empty(), "{other}");
    }
    // By a gateway with more subnets than a lease has.
    let beside = left.replace("10.244.9.0", "10.244.10.0");
    assert!(steps(&[], &[left, beside.as_str()], true).is_empty());
}

#[test]
fn a_foreign_route_through_our_device_to_another_network_stays() {
    let theirs = "ip route add 10.99.0.0/16 dev flannel.1 proto 4";
    let all = [&UP[..], &[theirs]].concat();
    assert!(steps(&UP, &all, true).is_empty());
}
