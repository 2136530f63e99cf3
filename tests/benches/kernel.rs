//! The cost of a pass without a daemon: the same functions on a real kernel, each case in a namespace of its
//! own.
//!
//!     cargo bench -p tests --bench kernel [-- --json] [-- PEERS...]
//!
//! One row per case; a figure is the median of the rounds, in milliseconds.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

mod peers;

use std::fs;
use std::io::{Write, stdout};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use backends::rules::RuleNames;
use backends::{Backends, External, Facts, Identity, KernelState, LocalNode, Mac, Owner, diff};
use netns_harness::flannel::Backend as Kind;
use netns_harness::{Family as Underlay, Net, Topology, UPLINK, enter};
use peers::{lease, network, subnets};
use serde_json::json;
use subnet_lease::{Family, Lease, NetworkConfig, NetworkId, PeerTable, PublicAddrs};

/// The default numbers of peers.
const PEERS: [u16; 3] = [1_000, 10_000, 50_000];
/// Rounds of a case up to ten thousand peers, and beyond.
const ROUNDS: [usize; 2] = [5, 3];
const CASES: [(Kind, Family); 4] = [
    (Kind::Vxlan, Family::V4),
    (Kind::Vxlan, Family::V6),
    (Kind::HostGw, Family::V4),
    (Kind::HostGw, Family::V6),
];
/// Ten thousand routes over one real device share one chain in the kernel (law 14): a minute at fifty
/// thousand.
const MOST_OVER_ONE_DEVICE: u16 = 10_000;

/// The measures, in the order of the table.
const COLUMNS: [&str; 8] = ["admit", "wish", "diff", "apply", "dump", "pass", "half go", "down"];
/// Targets in ms: kind, family, peers, column, maximum.
const GOALS: [(Kind, Family, u16, &str, f64); 6] = [
    (Kind::Vxlan, Family::V4, 10_000, "apply", 120.0),
    (Kind::Vxlan, Family::V4, 50_000, "apply", 1_500.0),
    (Kind::Vxlan, Family::V6, 50_000, "apply", 400.0),
    (Kind::Vxlan, Family::V4, 10_000, "down", 60.0),
    (Kind::Vxlan, Family::V4, 1_000, "pass", 4.0),
    (Kind::Vxlan, Family::V4, 10_000, "pass", 28.0),
];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this too, only to see that it starts.
    if !words.iter().any(|word| word == "--bench") {
        return Ok(());
    }
    enter()?;
    let sizes: Vec<u16> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let sizes = if sizes.is_empty() { PEERS.to_vec() } else { sizes };
    let json = words.iter().any(|word| word == "--json");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&format!("milliseconds on Linux {}; pass = dump + wish + diff with nothing to do", kernel.trim()));
    let head: String = COLUMNS.iter().map(|name| format!("{name:>9}")).collect();
    say(&format!("{:24}{head}", "peers"));
    let mut missed = Vec::new();
    for (kind, family) in CASES {
        for peers in sizes.iter().copied().filter(|n| kind == Kind::Vxlan || *n <= MOST_OVER_ONE_DEVICE) {
            let medians = case(kind, family, peers)?;
            let cells: String = medians.iter().map(|ms| format!("{ms:9.2}")).collect();
            say(&format!("{:24}{cells}", format!("{peers} {kind} {family}")));
            for (column, value) in COLUMNS.iter().zip(medians) {
                let key = (kind, family, peers, *column);
                let goal = GOALS.iter().find(|(k, f, n, c, _)| (*k, *f, *n, *c) == key).map(|goal| goal.4);
                if goal.is_some_and(|goal| value > goal) {
                    missed.push(format!("{peers} {kind} {family}: {column} {value:.1} ms, target {goal:?}"));
                }
                if json {
                    let case = format!("{peers} {kind} {family}");
                    let line = json!({"case": case, "measure": column, "unit": "ms", "value": value,
                        "target": goal, "kernel": kernel.trim()});
                    say(&line.to_string());
                }
            }
        }
    }
    for line in &missed {
        say(&format!("missed: {line}"));
    }
    ensure!(missed.is_empty(), "{} of {} goals missed", missed.len(), GOALS.len());
    Ok(())
}

/// The medians of one case, one per column.
fn case(kind: Kind, family: Family, peers: u16) -> Result<[f64; COLUMNS.len()]> {
    let rounds = ROUNDS[usize::from(peers > 10_000)];
    let mut all: [Vec<f64>; COLUMNS.len()] = Default::default();
    for _ in 0..rounds {
        let net = Net::build(Topology::flat(1).family(Underlay::Dual))?;
        let row = net.host(0).run(|| round(kind, family, peers))?.context("one round")?;
        for (column, value) in all.iter_mut().zip(row) {
            column.push(value);
        }
    }
    Ok(all.map(|mut column| {
        column.sort_by(f64::total_cmp);
        column[column.len() / 2]
    }))
}

fn round(kind: Kind, family: Family, peers: u16) -> Result<[f64; COLUMNS.len()]> {
    let mut kernel = RealKernel::open()?;
    let facts = kernel.host()?;
    let (network, _) = NetworkConfig::parse(network(kind, family).as_bytes())
        .map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let network = Arc::new(network);
    let node = node(&facts, network.clone(), family)?;
    let backend = Backends::of(&network.backend);
    let owner = owner(&node, &backend);
    let table = |leases: Vec<Lease>| {
        let table =
            PeerTable::from_snapshot(&network, Some(&node.subnets), node.external.public, leases, vec![]);
        ensure!(!table.is_empty(), "no peer was admitted: {:?}", table.refused().next());
        Ok(table)
    };
    let all = (1..=peers).map(|n| lease(kind, family, n)).collect::<Result<Vec<_>>>()?;
    let half = all[..all.len() / 2].to_vec();
    let (table_of_all, admit) = timed(|| table(all));
    let (table_of_all, table_of_half) = (table_of_all?, table(half)?);
    let wish = |table: &PeerTable| -> KernelState {
        backend.desired(&node, table, &facts).objects.into_iter().collect()
    };
    let (want, wishing) = timed(|| wish(&table_of_all));
    let empty = kernel.own(&owner)?;
    let (plan, comparing) = timed(|| diff(&want, &empty.state, &owner));
    let (results, applying) = timed(|| kernel.apply(&plan.ops));
    ensure!(results.iter().all(Result::is_ok), "{:?}", results.iter().find(|result| result.is_err()));

    let (_, dumping) = timed(|| kernel.own(&owner));
    let (again, passing) =
        timed(|| Ok::<_, anyhow::Error>(diff(&wish(&table_of_all), &kernel.own(&owner)?.state, &owner)));
    ensure!(again?.is_empty(), "the second pass is not empty");

    let leaving = diff(&wish(&table_of_half), &kernel.own(&owner)?.state, &owner);
    let (_, leaving) = timed(|| kernel.apply(&leaving.ops));
    let refill = diff(&want, &kernel.own(&owner)?.state, &owner);
    kernel.apply(&refill.ops);
    let netlink = netns_harness::Netlink::open()?;
    let link = kind.link(if family == Family::V4 { Underlay::V4 } else { Underlay::V6 });
    let (down, falling) = timed(|| netlink.set_down(link));
    down?;
    Ok([admit, wishing, comparing, applying, dumping, passing, leaving, falling])
}

fn timed<T>(job: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = job();
    (result, start.elapsed().as_secs_f64() * 1e3)
}

fn node(facts: &Facts, network: Arc<NetworkConfig>, family: Family) -> Result<LocalNode> {
    let link = facts.links.iter().find(|link| link.name.as_str() == UPLINK).context(UPLINK)?;
    let here = facts.addresses.iter().filter(|at| at.link == link.index && at.global);
    let local: PublicAddrs = here.map(|at| at.net.ip()).collect();
    let external = External { link: link.name, index: link.index, mtu: link.mtu, local, public: local };
    let identities = vec![Identity::Macs([Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])])];
    Ok(LocalNode {
        id: NetworkId::default(),
        network,
        external,
        subnets: subnets(family, 0)?,
        identities,
        tx_checksum: None,
    })
}

fn owner(node: &LocalNode, backend: &Backends) -> Owner {
    Owner {
        network: node.id.clone(),
        networks: node.network.pools().map(|pool| pool.network).collect(),
        names: backend.links(),
        external: Some(node.external.link),
        pools: node.network.pools().collect(),
        pods: Vec::new(),
        routers: Vec::new(),
        rules: RuleNames::Flannel,
        first_pass: true,
    }
}

fn say(line: &str) {
    // An error means that the reader closed our output.
    let _ = writeln!(stdout(), "{line}");
}
