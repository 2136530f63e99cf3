//! Storms of notifications: the daemon's work is bounded by time, not by their number, and foreign objects
//! stay.

#![allow(clippy::disallowed_methods, reason = "it measures how long a storm lasted")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_harness::chaos::with_room;
use netns_harness::flannel::vxlan_lease;
use netns_harness::{Cluster, Family, Host, Program, Spec, UPLINK, eventually};

use crate::case::{Case, case, cluster, spec};

/// The daemon has repaired everything within a second after a storm; a loaded machine gets longer.
const SOON: Duration = Duration::from_secs(8);
/// The most that a storm may add to the peak resident memory. A dump of fifty thousand routes keeps none of
/// them.
const MORE_KIB: u64 = 8 << 10;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("ten_thousand_notifications_in_a_second_are_a_few_passes", foreign_noise),
        case("a_tunnel_that_flaps_twenty_times_a_second_is_repaired_when_it_stops", flapping),
        case("a_thousand_foreign_links_come_and_go_while_a_hundred_peers_join", links_and_peers),
        case("fifty_thousand_foreign_routes_cost_neither_memory_nor_repair", full_table),
    ]
}

/// A daemon through a storm.
struct Watch<'a> {
    cluster: &'a Cluster,
    before: String,
    passes: usize,
    peak_kib: u64,
    cpu: Duration,
    began: Instant,
}

impl<'a> Watch<'a> {
    fn begin(cluster: &'a Cluster) -> Result<Self> {
        let cost = cluster.daemons[1].cost().context("the daemon has ended")?;
        Ok(Self {
            cluster,
            before: ours(cluster.net.host(1))?,
            passes: passes(cluster),
            peak_kib: cost.peak_kib,
            cpu: cost.cpu,
            began: Instant::now(),
        })
    }

    /// Waits until `whole` succeeds, and checks the daemon's cost.
    fn end(self, storm: &str, whole: impl FnMut() -> Result<()>) -> Result<()> {
        let lasted = self.began.elapsed();
        let whole = eventually(SOON, whole);
        let log = || self.cluster.daemons[1].log();
        let whole = whole.with_context(|| format!("after {storm}\n{}", log()))?;
        let cost = self.cluster.daemons[1].cost().context("the daemon has ended")?;
        let passes = passes(self.cluster) - self.passes;
        let more = cost.peak_kib.saturating_sub(self.peak_kib);
        let cpu = cost.cpu.saturating_sub(self.cpu);
        println!(
            "{storm}: {lasted:.1?}, whole {whole:.0?} later; {passes} passes that changed something, {cpu:?} CPU, peak +{more} KiB to {} KiB",
            cost.peak_kib
        );
        // Ten passes at once, then one every tenth of a second, and the passes that repair everything at the
        // end.
        let most = 20 + usize::try_from((lasted + whole).as_millis() / 10)?;
        ensure!(passes <= most, "{passes} passes, {most} at most\n{}", log());
        ensure!(more < MORE_KIB, "{more} KiB more\n{}", log());
        Ok(())
    }

    fn as_before(&self) -> impl FnMut() -> Result<()> + use<'a> {
        let (host, before) = (self.cluster.net.host(1).clone(), self.before.clone());
        move || {
            let now = ours(&host)?;
            ensure!(now == before, "before:\n{before}\nnow:\n{now}");
            Ok(())
        }
    }
}

fn passes(cluster: &Cluster) -> usize {
    cluster.daemons[1].log().lines().filter(|line| line.contains(" pass ") && line.contains("added=")).count()
}

/// The objects on our devices, as the operator's tools print them.
fn ours(host: &Host) -> Result<String> {
    let mut all = String::new();
    for line in [
        "ip route show dev flannel.1",
        "ip neigh show dev flannel.1 nud permanent",
        "ip -o -4 address show dev flannel.1",
        "bridge fdb show dev flannel.1",
        "ip -6 route show dev flannel-v6.1",
        "ip -6 neigh show dev flannel-v6.1 nud permanent",
        "bridge fdb show dev flannel-v6.1",
    ] {
        let mut words = line.split(' ');
        let program = Program::new(words.next().context("a program")?).args(words);
        let shown = host.exec(&program)?;
        let mut lines: Vec<_> = shown.lines().filter(|line| !line.contains("fe80::")).collect();
        lines.sort_unstable();
        // A device that is made again has another interface index.
        lines
            .iter()
            .for_each(|line| all.extend([line.trim_start_matches(|c: char| c.is_ascii_digit()), "\n"]));
    }
    Ok(all)
}

/// Lines for one `ip -batch`. A failing line about neighbours would end the batch.
fn batch(host: &Host, lines: String) -> Result<()> {
    host.output(&Program::new("ip").args(["-force", "-batch", "-"]).stdin(lines)).map(drop)
}

fn foreign_noise() -> Result<()> {
    let cluster = cluster(two())?;
    let host = cluster.net.host(1);
    let peer = peer_address(&cluster)?;
    let watch = Watch::begin(&cluster)?;
    let mut lines = String::new();
    for n in 0..2500 {
        let (a, b) = (n / 250, n % 250);
        writeln!(
            lines,
            "route add 198.18.{a}.{b}/32 dev {UPLINK}\nneigh replace 198.17.{a}.{b} lladdr 02:00:00:00:00:98 dev {UPLINK}"
        )?;
        writeln!(
            lines,
            "route del 198.18.{a}.{b}/32 dev {UPLINK}\naddress add 198.19.{a}.{b}/32 dev {UPLINK}"
        )?;
        writeln!(lines, "neigh del 198.17.{a}.{b} dev {UPLINK}\naddress del 198.19.{a}.{b}/32 dev {UPLINK}")?;
        if n % 250 == 249 {
            writeln!(
                lines,
                "neigh replace {peer} lladdr 02:00:00:00:be:ef dev flannel.1 nud permanent\nroute flush dev flannel.1 proto 67"
            )?;
            writeln!(lines, "route add 198.18.255.{a}/32 dev {UPLINK}")?;
        }
    }
    batch(host, lines)?;
    let whole = watch.as_before();
    watch.end("15000 foreign changes", whole)?;
    let left = host.exec(&Program::new("ip").args(["route", "show", "root", "198.18.0.0/15"]))?;
    ensure!(left.lines().count() == 10, "of ten foreign routes these are left:\n{left}");
    Ok(())
}

fn flapping() -> Result<()> {
    let cluster = cluster(two())?;
    let watch = Watch::begin(&cluster)?;
    let flap = "for i in $(seq 60); do ip link set flannel.1 down; sleep 0.025; ip link set flannel.1 up; sleep 0.025; done";
    cluster.net.host(1).exec(&Program::new("sh").args(["-c", flap]))?;
    let whole = watch.as_before();
    watch.end("60 flaps", whole)?;
    cluster.wait_for_pings(SOON).map(drop)
}

fn links_and_peers() -> Result<()> {
    let cluster = cluster(with_room(two(), 100))?;
    let host = cluster.net.host(1);
    let before = host.netlink()?.routes("flannel.1")?.len();
    let watch = Watch::begin(&cluster)?;
    let mut lines = String::new();
    for n in 0..1000 {
        writeln!(lines, "link add name va{n} group 77 type veth peer name vb{n}")?;
    }
    writeln!(lines, "link del group 77")?;
    let leases: Vec<_> = (0..100)
        .map(|n| {
            vxlan_lease(
                &format!("10.65.{n}.0/24"),
                [172, 30, 200, n].into(),
                &format!("02:00:00:00:07:{n:02x}"),
            )
        })
        .collect();
    std::thread::scope(|scope| {
        let links = scope.spawn(|| batch(host, lines));
        for some in leases.chunks(5) {
            cluster.store.put(some)?;
        }
        links.join().map_err(|_| anyhow::anyhow!("the links' thread"))?
    })?;
    watch.end("1000 links, 100 peers", || {
        let now = host.netlink()?.routes("flannel.1")?.len();
        ensure!(now == before + 100, "{now} routes, {before} before");
        Ok(())
    })
}

fn full_table() -> Result<()> {
    let cluster = cluster(two())?;
    let host = cluster.net.host(1);
    let foreign = |verb: &str| -> Result<String> {
        let mut lines = String::new();
        for n in 0..50_000 {
            writeln!(
                lines,
                "route {verb} 198.{}.{}.{}/32 dev {UPLINK}",
                18 + n / 62_500,
                n / 250 % 250,
                n % 250
            )?;
        }
        Ok(lines)
    };
    let watch = Watch::begin(&cluster)?;
    batch(host, foreign("add")?)?;
    host.exec(&Program::new("ip").args(["route", "flush", "dev", "flannel.1"]))?;
    let whole = watch.as_before();
    watch.end("50000 foreign routes", whole)?;
    let count = host.exec(&Program::new("sh").args(["-c", "ip route show root 198.18.0.0/15 | wc -l"]))?;
    ensure!(count.trim() == "50000", "{count} foreign routes are left");
    Ok(())
}

fn two() -> Spec {
    Spec { hosts: 2, ..spec(Family::Dual) }
}

/// The neighbour of host 1's tunnel.
fn peer_address(cluster: &Cluster) -> Result<String> {
    let shown = cluster.net.host(1).exec(&Program::new("ip").args(["neigh", "show", "dev", "flannel.1"]))?;
    Ok(shown.split(' ').next().context("a neighbour")?.to_owned())
}
