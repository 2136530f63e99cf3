//! The host changes while a daemon runs, or is odd from the start: the daemon follows without a restart, pods
//! go on, and what cannot work is reported.

#![allow(clippy::disallowed_methods, reason = "it measures how long peers take to learn")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_harness::disturb::outage;
use netns_harness::flannel::{SUBNET_ENV, subnet_env, wait_for_subnet};
use netns_harness::probe::ping_sized;
use netns_harness::{Cluster, Family, Host, Program, Spec, UPLINK, eventually};
use serde_json::{Map, json};

use crate::case::{Case, case, cluster, products, spec};

const SOON: Duration = Duration::from_secs(20);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "an_underlay_that_is_renumbered_replaced_renamed_or_bridged_is_followed_under_traffic",
            followed,
        ),
        case("a_better_default_route_is_followed_and_the_first_one_again_after_it", second_default),
        case("a_changed_mtu_reaches_every_device_and_subnet_env_with_the_overhead_of_its_family", mtus),
        case("the_mtu_of_the_net_conf_applies_to_devices_and_pods", set_mtu),
        case("settings_that_stop_pods_are_repaired_and_cleanup_restores_them", settings),
        case("checksum_offload_is_switched_off_on_every_tunnel_on_request", checksums)
            .with_programs_anywhere(&["ethtool"]),
        case("each_flag_without_a_fitting_interface_is_one_sentence_and_the_exit_code_is_10", unfit),
        case("host_setup_writes_its_files_below_a_root_and_cleanup_removes_them", host_setup),
    ]
}

/// Runs each line, as an operator would.
fn sh(host: &Host, lines: &str) -> Result<String> {
    let script = lines.replace("eth0", UPLINK);
    host.exec(&Program::new("sh").args(["-ec", &script]))
}

/// Changes a host while a pod elsewhere sends to its pod, in every family. Nothing restarts, and the subnet
/// stays.
fn under_traffic(
    cluster: &Cluster,
    what: &str,
    families: &[Family],
    harm: impl Fn(Family) -> Result<()>,
) -> Result<()> {
    let host = cluster.net.host(1);
    let before = subnet_env(host).context("subnet.env")?;
    for family in families {
        let began = Instant::now();
        let report = outage(&cluster.pods[0], &cluster.pods[1], *family, SOON, || harm(*family))
            .with_context(|| format!("{what}\n{}", cluster.daemons[1].log()))?;
        let took = began.elapsed();
        println!(
            "{what}, {family}: {:?} cut, {} packets lost, {took:?} in all",
            report.outage(),
            report.lost()
        );
    }
    cluster.wait_for_pings(SOON).with_context(|| what.to_owned())?;
    let now = subnet_env(host).context("subnet.env")?;
    ensure!(now["FLANNEL_SUBNET"] == before["FLANNEL_SUBNET"], "{what}: the subnet stays");
    ensure!(cluster.daemons.iter().all(|d| d.status().is_none()), "{what}: a daemon ended");
    Ok(())
}

fn followed() -> Result<()> {
    let mut cluster = cluster(spec(Family::Dual))?;
    let host = cluster.net.host(1).clone();
    let published = |address: &str| {
        eventually(SOON, || {
            let leases = cluster.store.list("subnets/")?;
            ensure!(leases.values().any(|value| value.contains(address)), "{address} in {leases:?}");
            Ok(())
        })
    };
    under_traffic(&cluster, "another address", &[Family::V4], |_| {
        // Otherwise the kernel deletes the second address of a network together with the first.
        sh(&host, "sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1")?;
        sh(&host, "ip address add 172.30.77.77/16 dev eth0; ip address delete 172.30.0.2/16 dev eth0")?;
        let learned = published("172.30.77.77")?;
        println!("the store shows it after {learned:?}");
        Ok(())
    })?;
    under_traffic(&cluster, "the old one again", &[Family::V4], |_| {
        sh(&host, "ip address add 172.30.0.2/16 dev eth0; ip address delete 172.30.77.77/16 dev eth0")?;
        published("172.30.0.2\"").map(drop)
    })?;
    under_traffic(&cluster, "another IPv6 address", &[Family::V6], |_| {
        sh(&host, "ip address add fd30::77/64 dev eth0 nodad; ip address delete fd30::2/64 dev eth0")?;
        published("fd30::77")?;
        sh(&host, "ip address add fd30::2/64 dev eth0 nodad; ip address delete fd30::77/64 dev eth0")?;
        published("fd30::2\"").map(drop)
    })?;
    // Its old name was configured, and it is still the same interface.
    under_traffic(&cluster, "another name", &[Family::V4, Family::V6], |_| {
        sh(&host, "ip link set eth0 name lan0")?;
        eventually(SOON, || {
            ensure!(cluster.daemons[1].log().contains("underlay: the same interface"), "it is not logged");
            Ok(())
        })?;
        sh(&host, "ip link set lan0 name eth0").map(drop)
    })?;
    under_traffic(&cluster, "a port of a bridge", &[Family::V4, Family::V6], |family| {
        if family == Family::V6 {
            return out_of_the_bridge(&host);
        }
        sh(
            &host,
            "ip link add br9 type bridge; ip link set br9 up
             ip address flush dev eth0; ip link set eth0 master br9
             ip address add 172.30.0.2/16 dev br9; ip address add fd30::2/64 dev br9 nodad
             ip route replace default dev br9; ip -6 route replace default dev br9",
        )?;
        eventually(SOON, || {
            let tunnel = sh(&host, "ip -d link show flannel.1")?;
            ensure!(tunnel.contains("dev br9"), "{tunnel}\n{}", cluster.daemons[1].log());
            Ok(())
        })
        .map(drop)
    })?;
    let (one, other) = (cluster.pods[0].space(), cluster.pods[1].address(Family::V4)?);
    cluster.net.rewire(1)?;
    eventually(SOON, || netns_harness::probe::ping(one, other, Duration::from_millis(200)).map(drop))
        .context("another index")?;
    cluster.wait_for_pings(SOON).map(drop)
}

fn out_of_the_bridge(host: &Host) -> Result<()> {
    sh(
        host,
        "ip address flush dev br9; ip link set eth0 nomaster; ip link delete br9
         ip address add 172.30.0.2/16 dev eth0; ip address add fd30::2/64 dev eth0 nodad
         ip route replace default dev eth0; ip -6 route replace default dev eth0",
    )
    .map(drop)
}

/// A cluster whose daemons have no flag for the interface.
fn unguided(spec: &Spec) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(spec, &products()?)?;
    cluster.set_network()?;
    let endpoint = format!("--etcd-endpoints={}", cluster.store.endpoint());
    let subnet_file = format!("--subnet-file={SUBNET_ENV}");
    let daemon = Program::new(products()?.flanneld).args([endpoint, subnet_file, "--ip-masq".to_owned()]);
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

fn second_default() -> Result<()> {
    let cluster = unguided(&spec(Family::V4))?;
    let host = cluster.net.host(1);
    sh(host, "ip route add default dev eth0 metric 200; ip route delete default dev eth0 metric 0")?;
    sh(
        host,
        "ip link add eth1 link eth0 type macvlan mode bridge; ip link set eth1 up
         ip address add 172.30.9.9/16 dev eth1 noprefixroute",
    )?;
    let leads = |link: &str, address: &str| {
        eventually(SOON, || {
            let tunnel = sh(host, "ip -d link show flannel.1")?;
            let wanted = format!("local {address} dev {}", link.replace("eth0", UPLINK));
            ensure!(tunnel.contains(&wanted), "{wanted} in {tunnel}");
            let leases = cluster.store.list("subnets/")?;
            ensure!(leases.values().any(|value| value.contains(&format!("{address}\""))), "{leases:?}");
            Ok(())
        })
        .map(drop)
    };
    leads("eth0", "172.30.0.2")?;
    under_traffic(&cluster, "a second default route", &[Family::V4], |_| {
        sh(host, "ip route add 172.30.0.0/16 dev eth1 metric 300; ip route add default dev eth1 metric 100")?;
        leads("eth1", "172.30.9.9")
    })?;
    under_traffic(&cluster, "the first one again", &[Family::V4], |_| {
        sh(host, "ip route delete default dev eth1 metric 100")?;
        leads("eth0", "172.30.0.2")
    })
}

fn agree(cluster: &Cluster, host: &Host, pods: &str, devices: &[(&str, &str)]) -> Result<()> {
    eventually(SOON, || {
        let env = subnet_env(host).context("subnet.env")?;
        ensure!(env["FLANNEL_MTU"] == pods, "{env:?}\n{}", cluster.daemons[1].log());
        for (link, mtu) in devices {
            let shown = sh(host, &format!("cat /sys/class/net/{link}/mtu"))?;
            ensure!(shown.trim() == *mtu, "{link} has {shown}, not {mtu}");
        }
        Ok(())
    })
    .map(drop)
}

fn mtus() -> Result<()> {
    let cluster = cluster(spec(Family::Dual))?;
    let host = cluster.net.host(1);
    agree(&cluster, host, "1430", &[("flannel.1", "1450"), ("flannel-v6.1", "1430")])?;
    under_traffic(&cluster, "a smaller MTU", &[Family::V4], |_| {
        host.netlink()?.set_mtu(UPLINK, 1400)?;
        agree(&cluster, host, "1330", &[("flannel.1", "1350"), ("flannel-v6.1", "1330")])
    })?;
    under_traffic(&cluster, "a larger MTU", &[Family::V6], |_| {
        host.netlink()?.set_mtu(UPLINK, 1500)?;
        agree(&cluster, host, "1430", &[("flannel.1", "1450"), ("flannel-v6.1", "1430")])
    })?;
    // Packets of the size that subnet.env promises pass unfragmented in both families.
    for (family, headers) in [(Family::V4, 28), (Family::V6, 48)] {
        let to = cluster.pods[1].address(family)?;
        ping_sized(cluster.pods[0].space(), to, 1430 - headers, SOON)?;
    }
    Ok(())
}

fn set_mtu() -> Result<()> {
    let network = Map::from_iter([("MTU".to_owned(), json!(1400))]);
    let cluster = cluster(Spec { network, ..spec(Family::Dual) })?;
    agree(&cluster, cluster.net.host(1), "1330", &[("flannel.1", "1350"), ("flannel-v6.1", "1330")])?;
    let status = products()?.control_on_host(&cluster.store).arg("status");
    let text = cluster.net.host(1).exec(&status)?;
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "MTU of flannel.1 1350 1400 of the network's configuration less 50",
        "kernel features",
        "published to peers",
    ] {
        ensure!(words.contains(part), "{part} in:\n{text}");
    }
    Ok(())
}

/// The settings of a host; settings that this kernel lacks are left out.
const SETTINGS: [&str; 4] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
];

fn standing(host: &Host) -> Result<String> {
    let paths = SETTINGS.map(|path| format!("/proc/sys/{path}")).join(" ");
    sh(host, &format!("for f in {paths}; do [ ! -e $f ] || echo $f $(cat $f); done"))
}

fn settings() -> Result<()> {
    let direct = json!({"Type": "vxlan", "DirectRouting": true});
    let network = Map::from_iter([("Backend".to_owned(), direct)]);
    let mut cluster = Cluster::prepare(&Spec { network, ..spec(Family::Dual) }, &products()?)?;
    for host in cluster.net.hosts() {
        let zero = SETTINGS.map(|path| format!("/proc/sys/{path}")).join(" ");
        sh(host, &format!("for f in {zero}; do [ ! -e $f ] || echo 0 > $f; done"))?;
        sh(
            host,
            "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/default/rp_filter
             echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6",
        )?;
    }
    let host = cluster.net.host(0).clone();
    let before = standing(&host)?;
    cluster.set_network()?;
    cluster.start_daemons()?;
    // The pods' own links are not ours to set.
    sh(&host, "echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")?;
    for other in &cluster.net.hosts()[1..] {
        sh(other, "echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6")?;
    }
    cluster.add_pods()?;
    cluster.wait_for_pings(SOON)?;
    let all_one = || -> Result<()> {
        let now = standing(&host)?;
        ensure!(now.lines().all(|line| line.ends_with(" 1")), "{now}\n{}", cluster.daemons[0].log());
        Ok(())
    };
    eventually(SOON, all_one)?;
    let tunnel = sh(
        &host,
        "cat /proc/sys/net/ipv4/conf/flannel.1/rp_filter /proc/sys/net/ipv4/conf/eth0/rp_filter
         cat /proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6",
    )?;
    ensure!(tunnel == "2\n2\n0\n", "{tunnel}");
    let control = |verb: &str| host.exec(&products()?.control_on_host(&cluster.store).args(verb.split(' ')));
    let text = control("status")?;
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(words.contains("net/ipv4/ip_forward 1 set by us, was 0"), "{text}");
    cluster.daemons[0].stop()?;
    ensure!(
        control("cleanup --dry-run --keep-settings")?.lines().all(|line| !line.starts_with("echo ")),
        "kept"
    );
    let back = "echo 0 > /proc/sys/net/ipv4/ip_forward";
    let printed = control("cleanup --dry-run")?;
    ensure!(printed.contains(&format!("# {back}: not done, since the bridge cni0 has ports")), "{printed}");
    all_one()?;
    // Running pods need a host that forwards, whichever program cares for them next.
    control("cleanup")?;
    ensure!(
        sh(&host, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")? == "1\n1\n"
    );
    sh(&host, "ip link delete cni0")?;
    let printed = control("cleanup")?;
    ensure!(printed.lines().any(|line| line == back), "{printed}");
    ensure!(standing(&host)? == before, "{}\nbefore:\n{before}", standing(&host)?);
    // Settings that another program changed meanwhile stay.
    sh(&host, "echo 1 > /proc/sys/net/ipv4/ip_forward")?;
    let again = control("cleanup --dry-run")?;
    ensure!(!again.contains("net.ipv6") && !again.contains("all/forwarding"), "{again}");
    Ok(())
}

fn checksums() -> Result<()> {
    let flags = vec!["--tunnel-checksum=off".to_owned()];
    let mut cluster = cluster(Spec { hosts: 2, flags, ..spec(Family::Dual) })?;
    let host = cluster.net.host(0).clone();
    let stand = |wanted: &str, why: &str| {
        eventually(SOON, || {
            for link in ["flannel.1", "flannel-v6.1"] {
                let text = sh(&host, &format!("ethtool -k {link} | grep tx-checksum-ip-generic"))?;
                ensure!(text.trim().ends_with(wanted), "{link}: {text}");
            }
            Ok(())
        })
        .context(why.to_owned())
    };
    stand(": off", "after the start")?;
    sh(
        &host,
        "ethtool -K flannel.1 tx-checksum-ip-generic on; ethtool -K flannel-v6.1 tx-checksum-ip-generic on",
    )?;
    stand(": off", "after somebody turned it on")?;
    cluster.wait_for_pings(SOON)?;
    cluster.set_flags(&["--tunnel-checksum=on"]);
    cluster.restart_daemon(0)?;
    stand(": on", "where it was asked for").map(drop)
}

fn unfit() -> Result<()> {
    let cluster = Cluster::prepare(&spec(Family::V4), &products()?)?;
    cluster.set_network()?;
    let host = cluster.net.host(0);
    let endpoint = format!("--etcd-endpoints={}", cluster.store.endpoint());
    let daemon = Program::new(products()?.flanneld).arg(endpoint).arg(format!("--subnet-file={SUBNET_ENV}"));
    let asked =
        ["--iface=lan9", "--iface=192.0.2.1", "--iface=fd30::1", "--iface-regex=^wan", "--iface-wait=0"];
    let process = host.spawn(&daemon.clone().args(asked))?;
    let status = process.wait(SOON)?;
    let log = process.log();
    ensure!(status.code() == Some(10), "{status}: {log}");
    for part in [
        "--iface=lan9: there is no such interface",
        "--iface=192.0.2.1: no interface has this address",
        "--iface=fd30::1: no interface has this address",
        "--iface-regex=^wan: matches no interface with IPv4 addresses",
        "this host has ",
    ] {
        ensure!(log.contains(part), "{part} in {log}");
    }
    ensure!(cluster.store.list("subnets/")?.is_empty(), "no lease was taken");
    // A dry run ends with the same code as the daemon.
    let plan = products()?.control_on_host(&cluster.store).args(["plan", "--iface=lan9", "--iface-wait=0"]);
    let text = host.output(&plan)?;
    let sentence = String::from_utf8_lossy(&text.stderr);
    ensure!(text.status.code() == Some(10), "{}: {sentence}", text.status);
    ensure!(sentence.contains("--iface=lan9: there is no such interface"), "{sentence}");
    let wrong = ["--iface-regex=(", "--public-ip=fd00::1", "--iface-can-reach=0.0.0.0"];
    let process = host.spawn(&daemon.args(wrong).named("wrong"))?;
    let status = process.wait(SOON)?;
    ensure!(status.code() == Some(2), "{status}: {}", process.log());
    ensure!(
        wrong.iter().all(|flag| process.log().contains(flag.split('=').next().unwrap_or_default())),
        "{}",
        process.log()
    );
    Ok(())
}

fn host_setup() -> Result<()> {
    let cluster = Cluster::prepare(&Spec { hosts: 1, ..spec(Family::V4) }, &products()?)?;
    let host = cluster.net.host(0);
    let root = "/run/image";
    sh(
        host,
        &format!(
            "mkdir -p {root}/etc/systemd {root}/etc/NetworkManager {root}/etc/sysctl.d {root}/etc/modules-load.d"
        ),
    )?;
    let files = || sh(host, &format!("find {root} -type f | sort"));
    let control = |verb: &str| {
        let words = verb.split(' ').map(str::to_owned).chain([format!("--root={root}")]);
        host.exec(&products()?.control_on_host(&cluster.store).args(words))
    };
    let printed = control("host-setup --dry-run")?;
    ensure!(files()?.is_empty(), "a dry run wrote {}", files()?);
    ensure!(control("host-setup")? == printed, "{printed}");
    ensure!(files()?.lines().count() == 6, "{}", files()?);
    ensure!(control("cleanup --dry-run")?.matches("rm /run/image/").count() == 6, "six are to be removed");
    control("cleanup")?;
    ensure!(files()?.is_empty(), "left: {}", files()?);
    Ok(())
}
