//! Four hosts, a thousand peers and a restart under traffic: the figures that compare two daemons.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use netns_harness::disturb::INTERVAL;
use netns_harness::flannel::{Backend, Products, Store, StoreKind, net_conf, wait_for_subnet};
use netns_harness::probe::ping_until;
use netns_harness::stream::Stream;
use netns_harness::{Family, Host, Net, Pod, Process, Topology, eventually};
use nix::sys::signal::Signal;

use crate::Common;
use crate::figures::Figures;
use crate::large::{Large, Size, health, health_flags};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
// Flattened into another struct of the same name; clap names a group after the struct.
#[group(id = "compare")]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How many peers the large cluster has
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=15_000), value_name = "N")]
    peers: u16,
    /// How long the idle daemon is measured
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=3_600), value_name = "SECONDS")]
    idle: u16,
    /// How often each start is repeated
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100), value_name = "N")]
    rounds: u16,
    /// Ask for nf_tables in net-conf; flannel's own default is iptables
    #[arg(long)]
    nftables: bool,
}

pub(crate) fn measure(products: &Products, flags: &Flags) -> Result<Figures> {
    let mut figures = Figures::default();
    small_clusters(products, flags, &mut figures)?;
    many_peers(products, flags, &mut figures)?;
    restarts(products, flags, &mut figures)?;
    Ok(figures)
}

/// Four hosts on an empty store, one after the other, then one more with a pod.
fn small_clusters(products: &Products, flags: &Flags, figures: &mut Figures) -> Result<()> {
    for _ in 0..flags.rounds {
        let net = Net::build(Topology::flat(5))?;
        let store = store(&net, products, 5, flags)?;
        let mut pods = Vec::new();
        for host in &net.hosts()[..4] {
            let start = Instant::now();
            let daemon = daemon(host, products, &store)?;
            wait_for_subnet(host, &daemon, PATIENCE)?;
            figures.add("start to subnet.env, 4 hosts", "ms", 80.0, ms(start.elapsed()));
            pods.push(Pod::add(host, "pod", &products.cni())?);
        }
        // A host joins a cluster at rest. Four starts in a row are a storm, which a daemon may answer with a
        // pause.
        thread::sleep(Duration::from_secs(2));
        let start = Instant::now();
        let newcomer = daemon(net.host(4), products, &store)?;
        wait_for_subnet(net.host(4), &newcomer, PATIENCE)?;
        let pod = Pod::add(net.host(4), "pod", &products.cni())?;
        ping_until(pod.space(), pods[0].address(Family::V4)?, PATIENCE)?;
        figures.add("join to first ping of an old pod", "ms", 80.0, ms(start.elapsed()));
    }
    Ok(())
}

/// One host whose store already holds the leases of all its peers.
fn many_peers(products: &Products, flags: &Flags, figures: &mut Figures) -> Result<()> {
    let peers = usize::from(flags.peers);
    for round in 0..flags.rounds {
        let size = Size { backend: Backend::Vxlan, family: Family::V4, peers };
        let mut large = Large::build(products, size, flags.nftables)?;
        let took = large.start()?.as_secs_f64();
        figures.add("cold start until all peers are in the kernel", "s", 0.15, took);
        figures.add("CPU time of that", "s", 0.1, large.cost()?.cpu.as_secs_f64());
        // The rounds repeat the start. A second measurement of an idle daemon adds nothing.
        if round == 0 {
            let idle = large.idle(Duration::from_secs(flags.idle.into()))?;
            figures.add("idle CPU with all peers", "%", 0.1, idle);
        }
        figures.add("peak resident memory with all peers", "MiB", 14.0, large.memory("VmHWM")? / 1024.0);
        let more = large.join(JOINS)?;
        figures.add("100 join, from the last write to the kernel", "ms", 60.0, ms(more));
        let fewer = large.leave(peers / 2)?;
        figures.add("half leave, from the last write to the kernel", "ms", 150.0, ms(fewer));
    }
    Ok(())
}

/// Hosts that join a large cluster at once.
const JOINS: usize = 100;

/// Two pods under traffic while the sender's daemon is ended, by either signal, and started again.
fn restarts(products: &Products, flags: &Flags, figures: &mut Figures) -> Result<()> {
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
    let mut lost: Vec<f64> = Vec::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let stream = Stream::start(pods[0].space(), pods[1].space(), at, INTERVAL)?;
        flow(&stream, 400)?;
        daemons[0].signal(signal);
        daemons[0].wait(PATIENCE)?;
        flow(&stream, 400)?;
        daemons[0] = daemon(net.host(0), products, &store)?;
        eventually(PATIENCE, || match health(net.host(0), "/healthz")? {
            200 => Ok(()),
            other => bail!("the health port answers {other}"),
        })?;
        // A second for the work of a start.
        flow(&stream, 4_000)?;
        lost.push(f64::from(u32::try_from(stream.stop()?.lost())?));
    }
    // The worse of the two is the figure.
    let worse = lost.into_iter().fold(0.0, f64::max);
    figures.add("packets lost over TERM or KILL and restart", "packets", 0.0, worse);
    Ok(())
}

fn store(net: &Net, products: &Products, hosts: usize, flags: &Flags) -> Result<Store> {
    let store = Store::start(net.store(), StoreKind::Etcd, products)?;
    let mut conf = net_conf(hosts, Backend::Vxlan, Family::V4);
    conf["EnableNFTables"] = flags.nftables.into();
    store.put(&[("config".to_owned(), conf.to_string())])?;
    Ok(store)
}

fn daemon(host: &Host, products: &Products, store: &Store) -> Result<Process> {
    host.spawn(&products.daemon(store).args(health_flags()))
}

fn flow(stream: &Stream, packets: u64) -> Result<()> {
    let goal = stream.sent() + packets;
    eventually(PATIENCE, || if stream.sent() < goal { bail!("the sender sends nothing") } else { Ok(()) })
        .map(drop)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
