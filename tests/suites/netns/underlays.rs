//! Underlays that are no plain Ethernet port: bond, VLAN, macvlan, VRF. Each is there from the start, and pods reach each
//! other over it; a port that becomes part of one under traffic is followed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::caps::Need;
use netns_harness::disturb::outage;
use netns_harness::flannel::{SUBNET_ENV, wait_for_subnet};
use netns_harness::{Cluster, Family, Host, Program, Spec, UPLINK, eventually};

use crate::case::{Case, case, products, spec};

const SOON: Duration = Duration::from_secs(20);

/// One kind of underlay: its name, its device, and the lines that make the device out of the port `eth0`.
struct Kind {
    name: &'static str,
    device: &'static str,
    need: Need,
    make: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "bond",
        device: "bond0",
        need: Need::Bond,
        make: "ip link add bond0 type bond mode active-backup miimon 100
               ip link set eth0 down; ip link set eth0 master bond0; ip link set bond0 up",
    },
    Kind {
        name: "vlan",
        device: "eth0.5",
        need: Need::Vlan,
        make: "ip link add link eth0 name eth0.5 type vlan id 5; ip link set eth0.5 up",
    },
    Kind {
        name: "macvlan",
        device: "mac0",
        need: Need::Macvlan,
        make: "ip link add mac0 link eth0 type macvlan mode bridge; ip link set mac0 up",
    },
    Kind {
        name: "bridge",
        device: "br9",
        need: Need::Bridge,
        make: "ip link add br9 type bridge; ip link set eth0 master br9; ip link set br9 up",
    },
];

pub(crate) fn cases() -> Vec<Case> {
    let over = |kind: &'static Kind| {
        let name = format!("pods_reach_each_other_over_an_underlay_of_kind_{}", kind.name);
        case(name, move || starts_over(kind)).also_needing(&[kind.need]).in_the_vm()
    };
    let mut cases: Vec<_> = KINDS.iter().map(over).collect();
    cases.push(
        case("a_port_that_joins_a_bond_under_traffic_is_followed", into_a_bond)
            .also_needing(&[Need::Bond])
            .in_the_vm(),
    );
    cases.push(
        case("pods_reach_each_other_over_an_underlay_in_a_vrf", in_a_vrf)
            .also_needing(&[Need::Vrf])
            .in_the_vm(),
    );
    cases
}

fn sh(host: &Host, lines: &str) -> Result<String> {
    host.exec(&Program::new("sh").args(["-ec", &lines.replace("eth0", UPLINK)]))
}

/// Moves the addresses and the default routes of `eth0` to another device. The number of a host is in its addresses.
fn move_addresses(number: usize, to: &str) -> String {
    let last = number + 1;
    format!(
        "ip address flush dev eth0
         ip address add 172.30.0.{last}/16 dev {to}; ip address add fd30::{last}/64 dev {to} nodad
         ip route replace default dev {to}; ip -6 route replace default dev {to}"
    )
}

/// A cluster whose hosts are prepared before any daemon starts. No daemon is given an interface.
fn prepared(
    hosts: usize,
    prepare: impl Fn(usize, &Host) -> Result<()>,
    tagged: bool,
    flags: &[&str],
) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(&Spec { hosts, ..spec(Family::Dual) }, &products()?)?;
    for (number, host) in cluster.net.hosts().iter().enumerate() {
        prepare(number, host)?;
    }
    if tagged {
        tag_the_store(cluster.net.store())?;
    }
    cluster.set_network()?;
    let endpoint = format!("--etcd-endpoints={}", cluster.store.endpoint());
    let daemon = Program::new(products()?.flanneld)
        .args([endpoint, format!("--subnet-file={SUBNET_ENV}"), "--ip-masq".to_owned()])
        .args(flags.iter().map(|flag| flag.replace("eth0", UPLINK)));
    for host in cluster.net.hosts() {
        cluster.daemons.push(host.spawn(&daemon)?);
    }
    for (host, daemon) in cluster.net.hosts().iter().zip(&cluster.daemons) {
        wait_for_subnet(host, daemon, SOON)?;
    }
    cluster.add_pods()?;
    cluster.wait_for_pings(SOON)?;
    Ok(cluster)
}

fn tunnel_is_over(cluster: &Cluster, number: usize, device: &str) -> Result<()> {
    let device = device.replace("eth0", UPLINK);
    for tunnel in ["flannel.1", "flannel-v6.1"] {
        let shown = sh(cluster.net.host(number), &format!("ip -d link show {tunnel}"))?;
        ensure!(
            shown.contains(&format!("dev {device} ")),
            "{device} in {shown}\n{}",
            cluster.daemons[number].log()
        );
    }
    Ok(())
}

fn starts_over(kind: &Kind) -> Result<()> {
    let make = |number: usize, host: &Host| {
        sh(host, &format!("{}\n{}", kind.make, move_addresses(number, kind.device))).map(drop)
    };
    let cluster = prepared(2, make, kind.name == "vlan", &[])?;
    (0..2).try_for_each(|number| tunnel_is_over(&cluster, number, kind.device))
}

/// The store is on the hosts' segment, so its port has their tag.
fn tag_the_store(store: &Host) -> Result<()> {
    let lines = "ip link add link eth0 name eth0.5 type vlan id 5; ip link set eth0.5 up
                 ip address flush dev eth0
                 ip address add 172.30.255.253/16 dev eth0.5; ip address add fd30::fffd/64 dev eth0.5 nodad
                 ip route replace default dev eth0.5; ip -6 route replace default dev eth0.5";
    sh(store, lines).map(drop)
}

fn into_a_bond() -> Result<()> {
    let cluster = prepared(2, |_, _| Ok(()), false, &[])?;
    let host = cluster.net.host(1).clone();
    let [bond, ..] = KINDS;
    for family in [Family::V4, Family::V6] {
        outage(&cluster.pods[0], &cluster.pods[1], family, SOON, || {
            if family == Family::V6 {
                sh(
                    &host,
                    &format!(
                        "ip link set eth0 nomaster; ip link delete bond0; ip link set eth0 up\n{}",
                        move_addresses(1, "eth0")
                    ),
                )?;
                return eventually(SOON, || tunnel_is_over(&cluster, 1, "eth0")).map(drop);
            }
            sh(&host, &format!("{}\n{}", bond.make, move_addresses(1, bond.device)))?;
            eventually(SOON, || tunnel_is_over(&cluster, 1, bond.device)).map(drop)
        })
        .with_context(|| cluster.daemons[1].log())?;
    }
    cluster.wait_for_pings(SOON).map(drop)
}

/// The underlay is in a routing domain of its own. The operator lets UDP of that domain reach sockets of the host.
fn in_a_vrf() -> Result<()> {
    let make = |number: usize, host: &Host| {
        let last = number + 1;
        sh(
            host,
            &format!(
                "sysctl -qw net.ipv4.udp_l3mdev_accept=1 net.ipv4.tcp_l3mdev_accept=1
                 ip link add red type vrf table 100; ip link set red up; ip link set eth0 master red
                 ip address replace fd30::{last}/64 dev eth0 nodad
                 ip route add 172.30.0.0/16 dev eth0; ip -6 route add fd30::/64 dev eth0"
            ),
        )
        .map(drop)
    };
    let cluster = prepared(2, make, false, &["--iface=eth0"])?;
    (0..2).try_for_each(|number| tunnel_is_over(&cluster, number, "eth0"))
}
