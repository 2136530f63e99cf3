//! What our rules and devices cost a packet: TCP between pods, compared with the same path set up by hand,
//! with one masquerade rule and without any rule. The three take turns.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use netns_harness::flannel::{Backend, Products, StoreKind};
use netns_harness::{Cluster, Family, Host, Program, Screen, Spec, probe};

use crate::figures::Figures;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Turns of each path
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100), value_name = "N")]
    rounds: u16,
    /// JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

/// The duration of one TCP connection.
const SPAN: Duration = Duration::from_secs(2);
/// The most that a byte's time may be, compared with the path set up by hand.
const GOAL: f64 = 1.05;

pub(crate) fn measure(products: &Products, flags: &Flags, screen: Screen) -> Result<bool> {
    let mut figures = Figures::default();
    for backend in [Backend::Vxlan, Backend::HostGw] {
        let spec = Spec { hosts: 2, backend, store: StoreKind::Etcd, ..Spec::default() };
        let mut cluster = Cluster::up(&spec, products)?;
        for _ in 0..flags.rounds {
            let ours = speed(&cluster)?;
            by_hand(&mut cluster, products, backend)?;
            let bare = speed(&cluster)?;
            masquerade(&cluster)?;
            let hand = speed(&cluster)?;
            undo(&cluster, backend)?;
            for number in 0..2 {
                cluster.restart_daemon(number)?;
            }
            cluster.wait_for_pings(Duration::from_secs(20))?;
            figures.add(&format!("{backend}: by hand, without any rule"), "Gbit/s", None, bare);
            figures.add(&format!("{backend}: by hand"), "Gbit/s", None, hand);
            figures.add(&format!("{backend}: ours"), "Gbit/s", None, ours);
            figures.add(&format!("{backend}: a byte's time, ours / by hand"), "", GOAL, hand / ours);
        }
    }
    let lines = if flags.json { figures.lines(&products.flanneld) } else { figures.table(None) };
    lines.iter().for_each(|line| screen.say(line));
    Ok(figures.reached())
}

fn speed(cluster: &Cluster) -> Result<f64> {
    let (from, to) = (&cluster.pods[0], &cluster.pods[1]);
    Ok(probe::throughput(from.space(), to.space(), to.address(Family::V4)?, SPAN)?.gbit_per_s())
}

/// Removes the daemons and all of their objects.
fn by_hand(cluster: &mut Cluster, products: &Products, backend: Backend) -> Result<()> {
    for (daemon, host) in cluster.daemons.iter().zip(cluster.net.hosts()) {
        daemon.stop()?;
        host.exec(&products.control_on_host(&cluster.store).arg("cleanup"))?;
    }
    for (here, there) in [(0, 1), (1, 0)] {
        let (host, peer) = (cluster.net.host(here), cluster.net.host(there));
        let (own, public) = (host.address(Family::V4)?, peer.address(Family::V4)?);
        let subnet = cluster.pods[there].address(Family::V4)?.to_string();
        let Some((subnet, _)) = subnet.rsplit_once('.') else { bail!("{subnet} is not an IPv4 address") };
        let script = match backend {
            Backend::HostGw => format!("ip route replace {subnet}.0/24 via {public}"),
            Backend::Vxlan => format!(
                "ip link add hand type vxlan id 7 local {own} dev eth0 dstport 8472 nolearning
                 ip link set hand address 02:00:00:00:07:0{here} mtu 1450 up
                 bridge fdb replace 02:00:00:00:07:0{there} dev hand dst {public}
                 ip neigh replace {subnet}.0 lladdr 02:00:00:00:07:0{there} dev hand nud permanent
                 ip route replace {subnet}.0/24 via {subnet}.0 dev hand onlink"
            ),
        };
        // What our daemon sets for itself, and `cleanup` puts back.
        sh(host, &format!("sysctl -qw net.ipv4.ip_forward=1\n{script}"))?;
    }
    Ok(())
}

/// What pods need for outside addresses and Services: with a masquerade rule the kernel tracks connections,
/// and with the bridge's setting packets on the bridge pass the rules too.
fn masquerade(cluster: &Cluster) -> Result<()> {
    let rules = "add table ip hand; add chain ip hand out { type nat hook postrouting priority 100; }
                 add rule ip hand out ip saddr 10.42.0.0/16 ip daddr != 10.42.0.0/16 masquerade";
    let bridged =
        "for f in /proc/sys/net/bridge/bridge-nf-call-iptables; do [ ! -e $f ] || echo 1 > $f; done";
    cluster.net.hosts().iter().try_for_each(|host| sh(host, &format!("nft '{rules}'; {bridged}")))
}

fn undo(cluster: &Cluster, backend: Backend) -> Result<()> {
    for (host, pod) in cluster.net.hosts().iter().zip(cluster.pods.iter().rev()) {
        let address = pod.address(Family::V4)?;
        sh(host, "nft delete table ip hand")?;
        match backend {
            Backend::Vxlan => sh(host, "ip link delete hand")?,
            Backend::HostGw => sh(
                host,
                &format!(
                    "ip route delete $(ip route get {address} | sed -n 's/ via.*//p' | sed 's/[.][0-9]*$/.0/')/24"
                ),
            )?,
        }
    }
    Ok(())
}

fn sh(host: &Host, script: &str) -> Result<()> {
    host.exec(&Program::new("sh").args(["-e", "-c", script])).map(drop)
}
