//! Traffic rules: which program makes them, and that they exist at every moment.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::flannel::{Products, wait_for_subnet};
use netns_harness::{Cluster, Family, Host, Namespace, Process, Program, Spec, eventually};
use serde_json::json;

use crate::case::{Case, case, cluster, peer, products, spec};

const SOON: Duration = Duration::from_secs(10);

/// The kinds of rules.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Maker {
    pub(crate) flag: &'static str,
}

/// All of them.
pub(crate) const MAKERS: [Maker; 3] = [
    Maker { flag: "--traffic-rules=nftables" },
    Maker { flag: "--traffic-rules=iptables-nft" },
    Maker { flag: "--traffic-rules=iptables-legacy" },
];

impl Maker {
    /// The flag's value.
    pub(crate) fn word(self) -> &'static str {
        self.flag.split_once('=').map_or(self.flag, |(_, word)| word)
    }
}

/// Both flavours of iptables.
pub(crate) const IPTABLES: [&str; 2] = ["iptables-nft-restore", "iptables-legacy-restore"];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("exempt_networks_see_pods_addresses_and_others_see_the_hosts", exempt)
            .with_programs_anywhere(&IPTABLES),
        case("a_blackhole_route_drops_packets_without_a_pod_and_goes_when_switched_off", blackhole),
        case("a_switch_between_kinds_of_rules_masquerades_every_packet", switching)
            .with_programs_anywhere(&IPTABLES),
        case("iptables_rules_of_a_go_flannel_are_adopted_unchanged", adopted)
            .with_peers()
            .with_programs_anywhere(&IPTABLES),
        case("rules_of_a_go_flannel_of_either_kind_are_replaced_without_a_gap", from_flannel)
            .with_peers()
            .with_programs_anywhere(&IPTABLES),
    ]
}

/// The rules on a host, as the flags that make them.
pub(crate) fn held_by(host: &Host) -> Result<Vec<&'static str>> {
    let ours = |script: &str| -> Result<bool> {
        let text = host.exec(&Program::new("sh").args(["-c", script]))?;
        Ok(text.to_lowercase().contains("flannel-"))
    };
    let mut held = Vec::new();
    // Rules of iptables in nf_tables are in tables of other names.
    if ours("nft list tables")? {
        held.push(MAKERS[0].flag);
    }
    if ours("iptables-nft-save; ip6tables-nft-save")? {
        held.push(MAKERS[1].flag);
    }
    if ours("iptables-legacy-save; ip6tables-legacy-save")? {
        held.push(MAKERS[2].flag);
    }
    Ok(held)
}

/// Starts a host's daemon again with its current flags, and waits until it is ready.
pub(crate) fn anew(cluster: &mut Cluster, number: usize) -> Result<()> {
    // The log continues after the run before.
    let before = cluster.daemons[number].log().len();
    cluster.restart_daemon(number)?;
    let daemon = &cluster.daemons[number];
    eventually(SOON, || {
        let log = daemon.log();
        let new = log.get(before..).unwrap_or_default();
        ensure!(new.contains(" ready\n"), "{new}");
        Ok(())
    })
    .map(drop)
}

/// A daemon is ready, and exactly one set of rules exists.
fn settled(host: &Host, daemon: &Process, maker: Maker) -> Result<()> {
    wait_for_subnet(host, daemon, SOON)?;
    eventually(SOON, || {
        ensure!(daemon.log().contains(" ready\n"), "{}", daemon.log());
        Ok(())
    })?;
    let held = held_by(host)?;
    ensure!(held == [maker.flag], "rules of {held:?}\n{}", daemon.log());
    Ok(())
}

/// While `disturb` runs, a pod sends to the outside, each packet as a new flow, for which a rule decides
/// again. Returns how many came with the host's address; any other address is an error.
fn masqueraded(cluster: &Cluster, disturb: impl FnOnce() -> Result<()>) -> Result<usize> {
    let (pod, outside) = (&cluster.pods[0], cluster.net.store());
    let at = SocketAddr::new(outside.address(Family::V4)?, 9);
    let sink = outside.space().run(|| UdpSocket::bind(at))??;
    sink.set_read_timeout(Some(Duration::from_millis(50)))?;
    let done = AtomicBool::new(false);
    let send = || -> Result<()> {
        while !done.load(Ordering::Relaxed) {
            let sockets: std::io::Result<Vec<_>> = (0..8).map(|_| UdpSocket::bind("0.0.0.0:0")).collect();
            let sockets = sockets?;
            for socket in &sockets {
                socket.send_to(b"x", at)?;
            }
            // No answer comes; waiting for it is the pause.
            sockets[0].set_read_timeout(Some(Duration::from_millis(1)))?;
            let _ = sockets[0].recv(&mut [0; 8]);
        }
        Ok(())
    };
    let (disturbed, sent, sources) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| pod.space().run(send));
        let receiver = scope.spawn(|| {
            let mut sources = Vec::new();
            let mut last = false;
            while !last {
                last = done.load(Ordering::Relaxed);
                while let Ok((_, from)) = sink.recv_from(&mut [0; 8]) {
                    sources.push(from.ip());
                }
            }
            sources
        });
        let disturbed = disturb();
        done.store(true, Ordering::Relaxed);
        (disturbed, sender.join(), receiver.join())
    });
    disturbed?;
    sent.map_err(|_| anyhow::anyhow!("the sender failed"))???;
    let sources = sources.map_err(|_| anyhow::anyhow!("the receiver failed"))?;
    let host = cluster.net.host(0).address(Family::V4)?;
    let strangers: Vec<_> = sources.iter().filter(|from| **from != host).collect();
    ensure!(
        strangers.is_empty(),
        "{} of {} came from {:?}",
        strangers.len(),
        sources.len(),
        strangers.first()
    );
    Ok(sources.len())
}

fn restarted(
    cluster: &Cluster,
    running: &mut Process,
    program: &Products,
    flags: &[&str],
    name: &str,
) -> Result<()> {
    running.stop()?;
    let daemon = program.daemon(&cluster.store).args(flags.iter().copied()).named(name);
    *running = cluster.net.host(0).spawn(&daemon)?;
    Ok(())
}

fn switching() -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::Dual) })?;
    let host = cluster.net.host(0);
    let mut running = cluster.daemons[0].clone();
    let arrived = masqueraded(&cluster, || {
        for (round, maker) in [1, 2, 0, 2, 1, 0].into_iter().enumerate() {
            restarted(
                &cluster,
                &mut running,
                &products()?,
                &[MAKERS[maker].flag],
                &format!("round-{round}"),
            )?;
            settled(host, &running, MAKERS[maker])?;
        }
        Ok(())
    })?;
    ensure!(arrived > 100, "only {arrived} packets arrived");
    Ok(())
}

/// The source address that a receiver sees for connections to this address.
fn seen(at: IpAddr, by: &Namespace, from: &Namespace) -> Result<IpAddr> {
    let listener = by.run(|| TcpListener::bind((at, 0)))??;
    let address = listener.local_addr()?;
    let stream = from.run(|| TcpStream::connect_timeout(&address, SOON))?;
    let _stream = stream.with_context(|| format!("{} → {address}", from.name()))?;
    Ok(listener.accept()?.1.ip())
}

fn exempt() -> Result<()> {
    let mut cluster = cluster(Spec { hosts: 2, ..spec(Family::Dual) })?;
    let (host, outside) = (cluster.net.host(0).clone(), cluster.net.store().clone());
    // Two more networks of the outside; the first one is exempt.
    let pairs = [
        (Family::V4, ["192.0.2.9", "198.51.100.9"], 32),
        (Family::V6, ["2001:db8:1::9", "2001:db8:2::9"], 128),
    ];
    for (family, [one, other], length) in pairs {
        let (via, back) = (outside.address(family)?, host.address(family)?);
        let pod = cluster.pods[0].address(family)?;
        let nodad = if family == Family::V6 { "nodad" } else { "" };
        for address in [one, other] {
            let add = format!("ip address add {address}/{length} dev eth0 {nodad}");
            outside.exec(&Program::new("sh").args(["-ec", &add]))?;
            let way = format!("ip route replace {address}/{length} via {via}");
            host.exec(&Program::new("sh").args(["-ec", &way]))?;
        }
        // A receiver that sees pods' addresses needs a route to them.
        let way = format!("ip route replace {pod}/{length} via {back}");
        outside.exec(&Program::new("sh").args(["-ec", &way]))?;
    }
    for maker in MAKERS {
        cluster.set_flags(&[maker.flag, "--no-masq-cidrs=192.0.2.0/24,2001:db8:1::/64"]);
        anew(&mut cluster, 0)?;
        for (family, [one, other], _) in pairs {
            let pod = &cluster.pods[0];
            for (at, expected) in [(one, pod.address(family)?), (other, host.address(family)?)] {
                let source = seen(at.parse()?, outside.space(), pod.space())?;
                ensure!(source == expected, "{maker:?}: {at} sees {source}, and not {expected}");
            }
        }
    }
    Ok(())
}

fn blackhole() -> Result<()> {
    let mut cluster = cluster(Spec { hosts: 2, ..spec(Family::Dual) })?;
    let host = cluster.net.host(0).clone();
    let holes = || -> Result<usize> {
        let routes = "ip -4 route show type blackhole; ip -6 route show type blackhole";
        Ok(host.exec(&Program::new("sh").args(["-ec", routes]))?.lines().count())
    };
    // The bridge has a route of its own. Before there is one, or for addresses outside it, the default route
    // would be used.
    let pods = [Family::V4, Family::V6].map(|f| cluster.pods[0].address(f).map(|a| (f, a.to_string())));
    let goes_out = |family: Family| {
        let nobody = pods.iter().flatten().find(|(f, _)| *f == family).context("a pod")?.1.clone();
        let get = Program::new("ip").args(["route", "get", &nobody]);
        host.exec(&Program::new("ip").args(["link", "set", "cni0", "down"]))?;
        let way = host.output(&get)?;
        host.exec(&Program::new("ip").args(["link", "set", "cni0", "up"]))?;
        anyhow::Ok(way.status.success())
    };
    ensure!(holes()? == 0 && goes_out(Family::V4)? && goes_out(Family::V6)?, "without it they go out");
    cluster.set_flags(&["--ip-blackhole-route"]);
    cluster.restart_daemon(0)?;
    eventually(SOON, || {
        ensure!(holes()? == 2, "a blackhole for each family\n{}", cluster.daemons[0].log());
        Ok(())
    })?;
    ensure!(!goes_out(Family::V4)? && !goes_out(Family::V6)?, "they go nowhere");
    cluster.set_flags(&[]);
    cluster.restart_daemon(0)?;
    eventually(SOON, || {
        ensure!(holes()? == 0, "they are left\n{}", cluster.daemons[0].log());
        Ok(())
    })
    .map(drop)
}

/// A cluster with a Go flannel on the first host.
fn with_go(nftables: bool) -> Result<(Cluster, Process, Products)> {
    let network = json!({"EnableNFTables": nftables}).as_object().cloned().unwrap_or_default();
    let cluster = cluster(Spec { hosts: 2, network, ..spec(Family::Dual) })?;
    let go = Products { flanneld: peer("flanneld")?, ..products()? };
    let mut running = cluster.daemons[0].clone();
    let cleanup = products()?.control_on_host(&cluster.store).arg("cleanup");
    running.stop()?;
    cluster.net.host(0).exec(&cleanup)?;
    // The setting before the first pod; flannel leaves it to the plugin's next ADD.
    let forwarding = ["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
    cluster.net.host(0).exec(&Program::new("sysctl").args(forwarding))?;
    running = cluster.net.host(0).spawn(&go.daemon(&cluster.store).named("go"))?;
    wait_for_subnet(cluster.net.host(0), &running, SOON)?;
    eventually(SOON, || {
        let held = held_by(cluster.net.host(0))?;
        ensure!(held.len() == 1, "{held:?}: {}", running.log());
        Ok(())
    })?;
    cluster.wait_for_pings(SOON)?;
    Ok((cluster, running, go))
}

fn adopted() -> Result<()> {
    let (cluster, mut running, _) = with_go(false)?;
    let host = cluster.net.host(0);
    let save = |host: &Host| -> Result<String> {
        let script = "for six in '' 6; do ip${six}tables-nft-save; done | grep -v '^[:#]'";
        host.exec(&Program::new("sh").args(["-c", script]))
    };
    // Its sets of rules come one after the other.
    eventually(SOON, || {
        let rules = save(host)?;
        let count = rules.lines().filter(|line| line.contains("flanneld ")).count();
        ensure!(count == 20, "{count} rules:\n{rules}");
        Ok(())
    })?;
    let before = save(host)?;
    running.kill();
    let plan = host.exec(&products()?.control_on_host(&cluster.store).args(["plan"]))?;
    ensure!(!plan.contains("tables"), "{plan}");
    restarted(&cluster, &mut running, &products()?, &[], "ours")?;
    settled(host, &running, MAKERS[1])?;
    ensure!(save(host)? == before, "before:\n{before}\nnow:\n{}", save(host)?);
    Ok(())
}

fn from_flannel() -> Result<()> {
    for nftables in [false, true] {
        let (cluster, mut running, go) = with_go(nftables)?;
        let host = cluster.net.host(0);
        let arrived = masqueraded(&cluster, || {
            for (round, maker) in MAKERS.into_iter().enumerate() {
                running.kill();
                restarted(&cluster, &mut running, &products()?, &[maker.flag], &format!("ours-{round}"))?;
                settled(host, &running, maker)?;
            }
            Ok(())
        });
        let arrived = arrived.with_context(|| format!("after flannel with nftables {nftables}"))?;
        ensure!(arrived > 100, "only {arrived} packets arrived");
        drop(go);
    }
    Ok(())
}
