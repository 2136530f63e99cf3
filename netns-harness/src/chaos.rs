//! Random disturbances of a cluster under constant traffic: what each one costs, and whether everything is
//! repaired. The seed alone decides the order, so a failed run can be repeated. The moments are not repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Spec};
use crate::disturb::{Disturbance, Rest, Times};
use crate::flannel::{Backend, last_lines, vxlan_lease};
use crate::pod::Pod;
use crate::stream::{Record, Stream};
use crate::topology::{Family, eventually};

/// Each pod sends one packet to each other pod in this interval, in each family.
const INTERVAL: Duration = Duration::from_millis(5);
/// The time from one disturbance to the next, unless the repair takes longer.
const PACE: Duration = Duration::from_millis(400);

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The seed of the order.
    pub seed: u64,
    /// Packets sent between pods.
    pub sent: u64,
    rows: BTreeMap<&'static str, (Times, u64)>,
}

impl Outcome {
    /// Disturbances done.
    pub fn count(&self) -> usize {
        self.rows.values().map(|(times, _)| times.all.len()).sum()
    }

    /// Packets that never arrived.
    pub fn lost(&self) -> u64 {
        self.rows.values().map(|(_, lost)| lost).sum()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        writeln!(
            f,
            "{:32} {:>6} {:>11} {:>11} {:>8}",
            "disturbance", "count", "median ms", "worst ms", "lost"
        )?;
        for (name, (times, lost)) in &self.rows {
            let (median, worst) = (ms(times.median()), ms(times.worst()));
            writeln!(f, "{name:32} {:>6} {median:>11.1} {worst:>11.1} {lost:>8}", times.all.len())?;
        }
        write!(
            f,
            "{} disturbances, {} of {} packets lost, seed {}",
            self.count(),
            self.lost(),
            self.sent,
            self.seed
        )
    }
}

/// A cluster's spec with room for more peers, and for the leases that disturbances add. Checksum offload is
/// set explicitly, so that a disturbance can change it.
pub fn with_room(mut spec: Spec, peers: u16) -> Spec {
    if spec.family != Family::V6 {
        let first = if peers == 0 { "10.42" } else { "10.64" };
        let length = if peers == 0 { 16 } else { 10 };
        spec.network.insert("Network".to_owned(), format!("{first}.0.0/{length}").into());
        spec.network.insert("SubnetMax".to_owned(), format!("{first}.199.0").into());
    }
    spec.flags.push("--tunnel-checksum=off".to_owned());
    spec
}

/// Writes leases of peers that do not exist into the store, and waits until every host has routes to them.
pub fn add_peers(cluster: &Cluster, peers: u16) -> Result<()> {
    let lease = |number: u16| -> Result<(String, String)> {
        let [high, low] = number.to_be_bytes();
        let public =
            Ipv4Addr::new(172, 30, u8::try_from(10 + number / 250)?, u8::try_from(number % 250 + 1)?);
        let subnet = format!("10.{}.{low}.0/24", 65 + high);
        Ok(vxlan_lease(&subnet, public.into(), &format!("02:42:ac:1e:{high:02x}:{low:02x}")))
    };
    cluster.store.put(&(0..peers).map(lease).collect::<Result<Vec<_>>>()?)?;
    for host in cluster.net.hosts().iter().filter(|_| peers > 0) {
        let netlink = host.netlink()?;
        eventually(Duration::from_secs(20), || {
            let routes = netlink.routes(Backend::Vxlan.link(Family::V4))?.len();
            ensure!(routes >= usize::from(peers), "{} has {routes} routes", host.name());
            Ok(())
        })?;
    }
    Ok(())
}

/// Disturbs `cluster` for `time` with the disturbances of `only` (all when empty). At the end all pods must
/// reach each other, every host must look as before, and every daemon must still run.
///
/// # Errors
/// Names the disturbance that was not repaired, or the difference at the end; always with the seed.
pub fn run(cluster: &mut Cluster, time: Duration, seed: u64, only: &[String]) -> Result<Outcome> {
    let mut marks = Vec::new();
    let result = disturb(cluster, time, seed, only, &mut marks);
    result.with_context(|| {
        let done: String = marks.iter().map(|it| format!("  {it}\n")).collect();
        let daemon = marks.last().and_then(|last| cluster.daemons.get(last.host));
        let log = daemon.map(|daemon| last_lines(&daemon.log(), 15)).unwrap_or_default();
        format!("CHAOS_SEED={seed}, after\n{done}the daemon's log ends with\n{log}\n")
    })
}

fn disturb(
    cluster: &mut Cluster,
    time: Duration,
    seed: u64,
    only: &[String],
    marks: &mut Vec<Mark>,
) -> Result<Outcome> {
    let (backend, family) = (cluster.spec().backend, cluster.spec().family);
    let streams = traffic(&cluster.pods, family)?;
    let mut rest = Rest::new(&mut cluster.net, backend, family)?;
    let (mut dice, end) = (fastrand::Rng::with_seed(seed), Instant::now() + time);
    let mut choices = rest.choices()?;
    choices.retain(|(it, _)| only.is_empty() || only.iter().any(|name| name == it.name));
    while Instant::now() < end {
        let start = Instant::now();
        let (what, family) = choices[dice.usize(..choices.len())];
        let host = dice.usize(..rest.net().hosts().len());
        let site = rest.site(host, family, dice.usize(..1_000))?;
        let sent = streams.iter().map(Stream::sent).collect::<Vec<_>>();
        marks.push(Mark { what, family, host, took: Duration::ZERO, sent });
        let took = rest.harm(what, &site)?;
        if let Some(last) = marks.last_mut() {
            last.took = took;
        }
        thread::sleep(PACE.saturating_sub(start.elapsed()));
    }
    rest.check().context("after the last disturbance")?;
    drop(rest);
    cluster.wait_for_pings(Duration::from_secs(5))?;
    check_daemons(cluster)?;
    let records: Vec<Record> = streams.into_iter().map(Stream::finish).collect::<Result<_>>()?;
    Ok(outcome(seed, marks, &records))
}

/// One disturbance that was done.
struct Mark {
    what: &'static Disturbance,
    family: Family,
    host: usize,
    took: Duration,
    /// Packets that each stream had sent before the disturbance.
    sent: Vec<u64>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) on h{}, {:?}", self.what.name, self.family, self.host, self.took)
    }
}

/// A loss is counted for the disturbance that was the last one when the packet was sent.
fn outcome(seed: u64, marks: &[Mark], records: &[Record]) -> Outcome {
    let all: Vec<u64> = records.iter().map(|it| it.report.sent).collect();
    let mut rows = BTreeMap::new();
    for (n, mark) in marks.iter().enumerate() {
        let until = marks.get(n + 1).map_or(&all, |next| &next.sent);
        let new = || (Times { name: mark.what.name, family: mark.family, all: Vec::new() }, 0);
        let (times, lost) = rows.entry(mark.what.name).or_insert_with(new);
        times.all.push(mark.took);
        let spans = mark.sent.iter().zip(until);
        *lost += records.iter().zip(spans).map(|(it, (from, to))| it.lost(*from, *to)).sum::<u64>();
    }
    Outcome { seed, sent: all.iter().sum(), rows }
}

fn traffic(pods: &[Pod], family: Family) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for (n, from) in pods.iter().enumerate() {
        for to in pods.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, to)| to) {
            for family in family.each() {
                streams.push(Stream::start(from.space(), to.space(), to.address(*family)?, INTERVAL)?);
            }
        }
    }
    Ok(streams)
}

fn check_daemons(cluster: &Cluster) -> Result<()> {
    for (daemon, host) in cluster.daemons.iter().zip(cluster.net.hosts()) {
        let log = daemon.log();
        let well = daemon.status().is_none() && !log.contains("panicked");
        ensure!(well, "the daemon of {} ended or panicked:\n{}", host.name(), last_lines(&log, 20));
    }
    Ok(())
}
