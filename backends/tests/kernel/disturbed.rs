//! Whatever is done to what is ours is put right in one pass, and nothing else changes.

use backends::{KernelState, Object, Op};

use crate::lab::{DIRECT, HOST_GW, Lab, VXLAN, type_lines};

/// What is typed, and how many passes the kernel needs; most need one.
struct Case {
    how: &'static str,
    passes: usize,
}

const fn once(how: &'static str) -> Case {
    Case { how, passes: 1 }
}

/// Peer 3 is reached through the tunnel in both vxlan shapes; `{M}` is its hardware address, `{D}` its public one.
const TUNNEL: &[Case] = &[
    once("ip link set flannel.7 name elsewhere"),
    once("ip link set flannel.7 down; ip link set flannel.7 name elsewhere"),
    once("ip link set flannel.7 name elsewhere; ip link set elsewhere mtu 1300 address 02:de:ad:00:00:01"),
    once(
        "ip link set flannel.7 name other; ip link set flannel-v6.7 name flannel.7; ip link set other name flannel-v6.7",
    ),
    once("ip link set flannel.7 name other; ip link add flannel.7 type vxlan id 99 dstport 8472 dev eth0"),
    once("ip link delete flannel.7; ip link add flannel.7 type vxlan id 99 dstport 8472 dev eth0"),
    once(
        "ip link delete flannel.7; ip link add flannel.7 type vxlan id 7 dstport 4789 local 172.16.0.1 dev eth0",
    ),
    once(
        "ip link delete flannel.7; ip link add flannel.7 type vxlan id 7 dstport 8472 local 172.16.0.1 dev eth0 gbp",
    ),
    once("ip link delete flannel.7; ip link add flannel.7 type vxlan external dstport 8472"),
    once(
        "ip link delete flannel.7; ip link add flannel.7 type vxlan id 7 dstport 8472 remote 172.16.9.9 dev eth0",
    ),
    once("ip link set flannel.7 mtu 1200 address 02:de:ad:00:00:01 alias mine"),
    once("ip link set flannel.7 type vxlan learning local 172.16.3.3"),
    once("ip link set flannel.7 type vxlan dev cni0"),
    once("ip link set flannel.7 type vxlan dev lo"),
    once("ip link set flannel.7 master cni0"),
    once("ip link set flannel.7 protodown on"),
    once("ip link set flannel.7 arp off"),
    once("ip link set flannel.7 arp off; ip link set flannel.7 arp on"),
    once("ip link set flannel.7 allmulticast on promisc on multicast off txqueuelen 7"),
    once("ip link set flannel.7 down; ip link set flannel-v6.7 down"),
    once("ip address delete 10.244.1.0/32 dev flannel.7"),
    once("ip -6 address delete fd00:244:0:1::/128 dev flannel-v6.7"),
    once(
        "ip address add 10.244.1.77/32 dev flannel.7; ip -6 address add fd00:244:0:1::77/128 dev flannel-v6.7",
    ),
    once("ip address add 10.244.3.9/24 dev flannel.7"),
    Case {
        how: "ip address delete 10.244.1.0/32 dev flannel.7; ip address add 10.244.1.0/32 dev flannel.7 scope link",
        passes: 2,
    },
    once("ip address replace 10.244.1.0/32 dev flannel.7 valid_lft 100 preferred_lft 50"),
    once("ip -6 address replace fd00:244:0:1::/128 dev flannel-v6.7 valid_lft 100 preferred_lft 50"),
    once("bridge fdb delete {M} dev flannel.7 dst {D}"),
    once("bridge fdb replace {M} dev flannel.7 dst 172.16.9.9 self permanent"),
    once("bridge fdb replace {M} dev flannel.7 dst {D} port 999 self permanent"),
    once("bridge fdb replace {M} dev flannel.7 dst {D} vni 8 self permanent"),
    once("bridge fdb replace {M} dev flannel.7 dst {D} via cni0 self permanent"),
    once("bridge fdb replace {M} dev flannel.7 dst {D} self dynamic"),
    once("bridge fdb replace {M} dev flannel.7 dst {D} self permanent extern_learn"),
    once("bridge fdb append {M} dev flannel.7 dst 172.16.9.9 self permanent"),
    once(
        "ip nexthop add id 11 via 172.16.0.5 fdb; ip nexthop add id 12 group 11 fdb; bridge fdb delete {M} dev flannel.7; bridge fdb add {M} dev flannel.7 nhid 12 self permanent",
    ),
    once(
        "bridge fdb append 00:00:00:00:00:00 dev flannel.7 dst 172.16.9.9 self permanent; bridge fdb append 00:00:00:00:00:00 dev flannel.7 dst 172.16.9.8 port 9 self permanent",
    ),
    once("bridge fdb append 01:00:5e:00:00:01 dev flannel.7 dst 172.16.9.9 vni 5 self permanent"),
    once("bridge fdb add 02:00:00:00:fa:ce dev flannel.7 dst 172.16.9.9 port 77 self permanent"),
    once("bridge fdb flush dev flannel.7"),
    once("ip neigh delete 10.244.3.0 dev flannel.7"),
    once("ip neigh replace 10.244.3.0 lladdr 02:be:ef:00:00:00 dev flannel.7 nud permanent"),
    once("ip neigh replace 10.244.3.0 lladdr 02:be:ef:00:00:00 dev flannel.7 nud stale"),
    once("ip neigh replace 10.244.3.0 lladdr 02:be:ef:00:00:00 dev flannel.7 nud noarp"),
    once("ip neigh replace 10.244.3.0 lladdr {M} dev flannel.7 nud permanent extern_learn router"),
    once("ip -6 neigh replace fd00:244:0:3:: lladdr 02:be:ef:00:00:00 dev flannel-v6.7 nud reachable"),
    once("ip neigh add 10.244.99.0 lladdr 02:be:ef:00:00:00 dev flannel.7 nud permanent"),
    once("ip neigh flush dev flannel.7 nud permanent; ip -6 neigh flush dev flannel-v6.7 nud permanent"),
    once("ip route flush dev flannel.7; ip -6 route flush dev flannel-v6.7"),
    once("ip route add 10.244.99.0/24 dev flannel.7; ip route add 10.244.3.64/26 dev flannel.7 proto static"),
    once(
        "ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.7 onlink proto 67 scope 35 src 10.244.1.0",
    ),
    once("ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.7 onlink proto 67 scope 35 mtu 600"),
    once("ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.7 onlink proto 67 scope 36"),
    once(
        "ip route replace 10.244.3.0/24 proto 67 scope 35 nexthop via 10.244.3.0 dev flannel.7 onlink nexthop via 172.16.9.9 dev eth0",
    ),
    once("ip -6 route append fd00:244:0:3::/64 via fd00:172::9 dev eth0"),
    once(
        "ip link delete eth0; ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up; ip address add 172.16.0.1/16 dev eth0; ip -6 address add fd00:172::1/64 dev eth0 nodad",
    ),
    once("echo 0 > /proc/sys/net/ipv4/conf/flannel.7/forwarding"),
    once("echo 1 > /proc/sys/net/ipv6/conf/flannel.7/accept_ra"),
];

/// For every backend.
const ANY: &[Case] = &[
    once("ip route delete 10.244.3.0/24; ip -6 route delete fd00:244:0:3::/64"),
    once("ip route flush table main proto 67; ip -6 route flush table main proto 67"),
    once(
        "ip route prepend 10.244.3.0/24 via 172.16.9.9 dev eth0; ip route add 10.244.3.0/24 via 172.16.9.9 dev eth0 metric 7",
    ),
    once("ip route add 10.244.3.0/24 via 172.16.9.9 dev eth0 metric 7 proto 67"),
    once(
        "ip -6 route add fd00:244:0:3::/64 via fd00:172::9 dev eth0 metric 7; ip -6 route add fd00:244:0:3::/64 via fd00:172::9 dev eth0 metric 2000",
    ),
    once(
        "ip route replace unreachable 10.244.3.0/24; ip route add prohibit 10.244.3.0/24 metric 9; ip route add throw 10.244.3.0/24 metric 10",
    ),
    once(
        "ip -6 route add prohibit fd00:244:0:3::/64 metric 7; ip -6 route add blackhole fd00:244:0:3::/64 metric 8",
    ),
    once("ip -6 route delete fd00:244:0:3::/64; ip -6 route add unreachable fd00:244:0:3::/64"),
    once("ip route prepend 10.244.3.0/24 nexthop via 172.16.9.9 dev eth0 nexthop via 172.16.9.8 dev eth0"),
    once(
        "ip route add 10.244.3.0/24 metric 9 nexthop via 172.16.9.9 dev eth0 nexthop via 172.16.9.8 dev eth0",
    ),
    once(
        "ip nexthop add id 21 via 172.16.9.9 dev eth0; ip route prepend 10.244.3.0/24 nhid 21 proto static; ip route add 10.244.3.0/24 nhid 21 proto static metric 50",
    ),
    once(
        "ip nexthop add id 31 via fd00:172::5 dev eth0; ip -6 route add fd00:244:0:3::/64 nhid 31 metric 50",
    ),
    once(
        "ip -6 route add fd00:244:0:3::/64 metric 9 nexthop via fd00:172::9 dev eth0 nexthop via fd00:172::8 dev eth0",
    ),
    once("ip address add 10.244.3.1/24 dev cni0; ip -6 address add fd00:244:0:3::1/64 dev cni0 nodad"),
    once("sysctl -qw net.ipv4.ip_forward=0; sysctl -qw net.ipv6.conf.all.forwarding=0"),
    once("echo 0 > /proc/sys/net/ipv4/conf/cni0/forwarding"),
];

/// The same objects, in whatever order twins come.
fn settled(lab: &mut Lab) -> Vec<Object> {
    let mut all: Vec<_> = lab.have().iter().cloned().collect();
    all.sort_by_key(|o| format!("{o:?}"));
    all
}

fn run(backend: &'static str, cases: &[&Case]) {
    let mut wrong = String::new();
    for case in cases {
        // A host each: what one leaves beside ours does not meet the next.
        let outcome = std::thread::scope(|s| s.spawn(|| one(backend, case)).join());
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(why)) => wrong += &format!("{backend} `{}`: {why}\n", case.how),
            Err(_) => wrong += &format!("{backend} `{}`: panicked\n", case.how),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn one(backend: &'static str, case: &Case) -> Result<(), String> {
    let mut lab = Lab::with(backend);
    let want = lab.want(4);
    lab.converge(&want);
    let before = settled(&mut lab);
    type_lines(
        &case
            .how
            .replace("{M}", "02:01:04:00:00:03")
            .replace("{D}", &format!("172.{}.0.3", if backend == VXLAN { 30 } else { 16 })),
    );
    let seen = !lab.plan(&want).is_empty();
    let want: KernelState = lab.want(4);
    for pass in 1..=case.passes {
        let failed = lab.pass(&want);
        if pass == case.passes && !failed.is_empty() {
            return Err(format!("failed: {failed:#?}"));
        }
    }
    let again = lab.plan(&want);
    if !again.is_empty() {
        return Err(format!("not right after {} passes:\n{again}", case.passes));
    }
    let after = settled(&mut lab);
    // What the kernel itself made was lost to the disturbance, not to us.
    let kernels = |o: &&Object| matches!(o, Object::Route(r) if r.protocol == 2);
    let lost: Vec<_> = before.iter().filter(|o| !after.contains(o) && !kernels(o)).map(line).collect();
    if seen && !lost.is_empty() && !case.how.contains("delete eth0") {
        return Err(format!("lost {lost:#?}"));
    }
    Ok(())
}

fn line(object: &Object) -> String {
    Op::Put { want: object.clone(), have: None }.to_string()
}

#[test]
fn a_disturbed_tunnel_is_put_right_in_one_pass() {
    run(VXLAN, &TUNNEL.iter().chain(ANY).collect::<Vec<_>>());
}

#[test]
fn a_disturbed_node_with_direct_routes_is_put_right_in_one_pass() {
    run(DIRECT, &ANY.iter().collect::<Vec<_>>());
}

#[test]
fn a_disturbed_node_without_tunnels_is_put_right_in_one_pass() {
    run(HOST_GW, &ANY.iter().collect::<Vec<_>>());
}
