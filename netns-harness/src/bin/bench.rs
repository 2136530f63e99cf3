//! The figures: what a daemon takes to start, to meet its peers, to stay, and what its restart costs pods.
//!
//! One JSON line a measure on standard output; with `--against`, the same of another flannel-compatible daemon and
//! a table of both. Leases are kept in etcd, so that both daemons meet the same store.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use netns_harness::disturb::INTERVAL;
use netns_harness::flannel::{self, Backend, Products, Store, StoreKind, net_conf, wait_for_subnet};
use netns_harness::probe::ping_until;
use netns_harness::stream::Stream;
use netns_harness::{Family, Host, Net, Pod, Process, Program, Screen, Topology, enter, eventually};
use nix::sys::signal::Signal;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);
const HEALTH: u16 = 10_254;

/// Measures the daemon in network namespaces and prints one JSON line a measure.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Flags {
    /// Another flannel-compatible daemon to measure as well, for the ratios
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// How many peers the large cluster has
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=15_000), value_name = "N")]
    peers: u16,
    /// How long the daemon is watched while nothing happens
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=3_600), value_name = "SECONDS")]
    idle: u16,
    /// How often each start is repeated
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100), value_name = "N")]
    rounds: u16,
    /// Ask for nf_tables in net-conf; flannel's own default is iptables
    #[arg(long)]
    nftables: bool,
}

/// One figure: the median, and all that it is the median of.
#[derive(Debug)]
struct Measure {
    name: &'static str,
    unit: &'static str,
    /// What to reach; smaller is better in all of them.
    goal: f64,
    all: Vec<f64>,
}

impl Measure {
    fn median(&self) -> f64 {
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let screen = Screen::new();
    match enter().and_then(|()| run(&flags, screen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags, screen: Screen) -> Result<()> {
    let ours = Products::find()?;
    let own = measure(&ours, flags, screen)?;
    let Some(other) = &flags.against else { return Ok(()) };
    let theirs = Products { flanneld: other.clone(), ..ours };
    let other = measure(&theirs, flags, screen)?;
    screen.say("");
    screen
        .say(&format!("{:44} {:>10} {:>10} {:>10} {:>8}", "measure", "this", "against", "to reach", "ratio"));
    for (own, other) in own.iter().zip(&other) {
        let (one, two) = (own.median(), other.median());
        let ratio = if one > 0.0 { format!("{:.1}", two / one) } else { "-".to_owned() };
        let name = format!("{} [{}]", own.name, own.unit);
        screen.say(&format!("{name:44} {one:>10.2} {two:>10.2} {:>10.2} {ratio:>8}", own.goal));
    }
    Ok(())
}

fn measure(products: &Products, flags: &Flags, screen: Screen) -> Result<Vec<Measure>> {
    let mut all = small_clusters(products, flags)?;
    all.extend(many_peers(products, flags)?);
    all.push(restarts(products, flags)?);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    for one in &all {
        let line = json!({
            "measure": one.name, "unit": one.unit, "value": one.median(), "all": one.all, "to_reach": one.goal,
            "daemon": products.flanneld, "kernel": kernel.trim(), "cpus": cpus,
        });
        screen.say(&line.to_string());
    }
    Ok(all)
}

/// Four hosts on an empty store, one after the other, then one more with a pod.
fn small_clusters(products: &Products, flags: &Flags) -> Result<Vec<Measure>> {
    let (mut starts, mut joins) = (Vec::new(), Vec::new());
    for _ in 0..flags.rounds {
        let net = Net::build(Topology::flat(5))?;
        let store = store(&net, products, 5, flags)?;
        let mut pods = Vec::new();
        for host in &net.hosts()[..4] {
            let start = Instant::now();
            let daemon = daemon(host, products, &store)?;
            wait_for_subnet(host, &daemon, PATIENCE)?;
            starts.push(ms(start.elapsed()));
            pods.push(Pod::add(host, "pod", &products.cni())?);
        }
        // Joining a cluster at rest: four starts in a row are a storm, which a daemon may well answer with a pause.
        thread::sleep(Duration::from_secs(2));
        let start = Instant::now();
        let newcomer = daemon(net.host(4), products, &store)?;
        wait_for_subnet(net.host(4), &newcomer, PATIENCE)?;
        let pod = Pod::add(net.host(4), "pod", &products.cni())?;
        ping_until(pod.space(), pods[0].address(Family::V4)?, PATIENCE)?;
        joins.push(ms(start.elapsed()));
    }
    Ok(vec![
        Measure { name: "start to subnet.env, 4 hosts", unit: "ms", goal: 80.0, all: starts },
        Measure { name: "join to first ping of an old pod", unit: "ms", goal: 80.0, all: joins },
    ])
}

/// One host whose store already holds the leases of all its peers.
fn many_peers(products: &Products, flags: &Flags) -> Result<Vec<Measure>> {
    let peers = usize::from(flags.peers);
    let (mut walls, mut cpus, mut peaks, mut idles) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut joins, mut halves) = (Vec::new(), Vec::new());
    for round in 0..flags.rounds {
        let net = Net::build(Topology::flat(1))?;
        let store = store(&net, products, 1_000, flags)?;
        store.put(&leases(flags.peers)?)?;
        let start = Instant::now();
        let daemon = daemon(net.host(0), products, &store)?;
        programmed(net.host(0), peers, &daemon)?;
        walls.push(start.elapsed().as_secs_f64());
        cpus.push(cost(&daemon)?.cpu.as_secs_f64());
        // The rounds tell starts apart; a second look at an idle daemon tells nothing new.
        if round == 0 {
            idles.push(idle(&daemon, Duration::from_secs(flags.idle.into()))?);
        }
        peaks.push(f64::from(u32::try_from(cost(&daemon)?.peak_kib)?) / 1024.0);
        let leaves = peers / 2;
        joins.push(ms(more(&net, &store, &daemon, flags.peers)?));
        halves.push(ms(fewer(&net, &store, peers + JOINS, leaves)?));
    }
    Ok(vec![
        Measure { name: "all peers programmed from a cold start", unit: "s", goal: 0.15, all: walls },
        Measure { name: "CPU time until then", unit: "s", goal: 0.1, all: cpus },
        Measure { name: "peak resident memory with all peers", unit: "MiB", goal: 14.0, all: peaks },
        Measure { name: "idle CPU with all peers", unit: "%", goal: 0.1, all: idles },
        Measure { name: "100 more join, the last write to the kernel", unit: "ms", goal: 60.0, all: joins },
        Measure {
            name: "half of them leave, the last write to the kernel",
            unit: "ms",
            goal: 150.0,
            all: halves,
        },
    ])
}

/// Hosts that join a large cluster at once.
const JOINS: usize = 100;

/// From the store's answer to the last of the new leases until the kernel has them all; what writing takes is the
/// store's.
fn more(net: &Net, store: &Store, daemon: &Process, peers: u16) -> Result<Duration> {
    let all = leases(peers + u16::try_from(JOINS)?)?;
    store.put(&all[peers.into()..])?;
    let start = Instant::now();
    programmed(net.host(0), all.len(), daemon)?;
    Ok(start.elapsed())
}

/// The same for leases that go.
fn fewer(net: &Net, store: &Store, peers: usize, leave: usize) -> Result<Duration> {
    let all = leases(u16::try_from(leave)?)?;
    store.delete(&all.into_iter().map(|(key, _)| key).collect::<Vec<_>>())?;
    let start = Instant::now();
    let netlink = net.host(0).netlink()?;
    let left = peers - leave;
    eventually(PATIENCE, || {
        let routes = netlink.routes(Backend::Vxlan.link(Family::V4))?;
        let routes = routes.iter().filter(|net| net.prefix() == 24).count();
        if routes <= left { Ok(()) } else { bail!("{routes} routes of {left}") }
    })?;
    Ok(start.elapsed())
}

/// Two pods under traffic while the sender's daemon is ended, by either signal, and started again.
fn restarts(products: &Products, flags: &Flags) -> Result<Measure> {
    let net = Net::build(Topology::flat(2))?;
    let store = store(&net, products, 2, flags)?;
    let mut daemons = Vec::new();
    for host in net.hosts() {
        let daemon = daemon(host, products, &store)?;
        wait_for_subnet(host, &daemon, PATIENCE)?;
        daemons.push(daemon);
    }
    let pods =
        net.hosts().iter().map(|host| Pod::add(host, "pod", &products.cni())).collect::<Result<Vec<_>>>()?;
    let at = pods[1].address(Family::V4)?;
    ping_until(pods[0].space(), at, PATIENCE)?;
    let mut lost = Vec::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let stream = Stream::start(pods[0].space(), pods[1].space(), at, INTERVAL)?;
        flow(&stream, 400)?;
        daemons[0].signal(signal);
        daemons[0].wait(PATIENCE)?;
        flow(&stream, 400)?;
        daemons[0] = daemon(net.host(0), products, &store)?;
        answers(net.host(0))?;
        // A second in which it may do what it does at a start.
        flow(&stream, 4_000)?;
        lost.push(f64::from(u32::try_from(stream.stop()?.lost())?));
    }
    // The worse of the two is the figure.
    lost.sort_by(f64::total_cmp);
    Ok(Measure { name: "lost over TERM or KILL and restart", unit: "packets", goal: 0.0, all: lost })
}

fn store(net: &Net, products: &Products, hosts: usize, flags: &Flags) -> Result<Store> {
    let store = Store::start(net.store(), StoreKind::Etcd, products)?;
    let mut conf = net_conf(hosts, Backend::Vxlan, Family::V4);
    conf["EnableNFTables"] = flags.nftables.into();
    store.put(&[("config".to_owned(), conf.to_string())])?;
    Ok(store)
}

fn daemon(host: &Host, products: &Products, store: &Store) -> Result<Process> {
    let health = [format!("--healthz-port={HEALTH}"), "--healthz-ip=127.0.0.1".to_owned()];
    let program: Program = products.daemon(store).args(health);
    host.spawn(&program)
}

/// Leases of peers that need not exist, as they would stand in the store.
fn leases(count: u16) -> Result<Vec<(String, String)>> {
    let lease = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let (third, fourth) = (u8::try_from(10 + number / 250)?, u8::try_from(number % 250 + 1)?);
        let public = IpAddr::V4(Ipv4Addr::new(172, 30, third, fourth));
        let mac = format!("02:42:ac:1e:{high:02x}:{low:02x}");
        Ok(flannel::vxlan_lease(&format!("10.{}.{low}.0/24", 65 + high), public, &mac))
    };
    (0..count).map(lease).collect()
}

/// Waits until the kernel has a route, a neighbour and a forwarding entry for every peer.
fn programmed(host: &Host, peers: usize, daemon: &Process) -> Result<()> {
    let netlink = host.netlink()?;
    let link = Backend::Vxlan.link(Family::V4);
    let count = || {
        // Looking costs a CPU that the daemon may need.
        thread::sleep(Duration::from_millis(2));
        let routes = netlink.routes(link)?.len();
        let (resolved, forwarding) = if routes >= peers { netlink.neighbours(link)? } else { (0, 0) };
        if routes >= peers && resolved >= peers && forwarding >= peers {
            return Ok(());
        }
        bail!("{routes} routes, {resolved} neighbours, {forwarding} forwarding entries of {peers}")
    };
    eventually(PATIENCE, count).map(drop).with_context(|| flannel::last_lines(&daemon.log(), 8))
}

/// CPU use in percent of one CPU, a while after the last change.
fn idle(daemon: &Process, time: Duration) -> Result<f64> {
    thread::sleep(Duration::from_secs(2));
    let before = cost(daemon)?.cpu;
    thread::sleep(time);
    Ok((cost(daemon)?.cpu.saturating_sub(before)).as_secs_f64() / time.as_secs_f64() * 100.0)
}

fn cost(daemon: &Process) -> Result<netns_harness::Cost> {
    daemon
        .cost()
        .with_context(|| format!("{} ended\n{}", daemon.name(), flannel::last_lines(&daemon.log(), 8)))
}

/// Waits until the daemon's health port answers; not every flannel has `/readyz`.
fn answers(host: &Host) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], HEALTH));
    let ask = || -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.split(' ').nth(1) == Some("200") { Ok(()) } else { bail!("it answers {answer}") }
    };
    eventually(PATIENCE, || host.run(ask)?).map(drop)
}

fn flow(stream: &Stream, packets: u64) -> Result<()> {
    let goal = stream.sent() + packets;
    eventually(PATIENCE, || if stream.sent() < goal { bail!("the sender is stuck") } else { Ok(()) })
        .map(drop)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
