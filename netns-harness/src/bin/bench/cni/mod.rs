//! What a CNI plugin costs, compared with another one: `flannel` with what it needs in one folder, the same
//! configuration, each on a host of its own, in turns.
//!
//! ```text
//!   round 1..n   ours: ADD, DEL of ten attachments     the other: ADD, DEL of ten attachments
//!                beside our daemon, as in a cluster     beside the file that a daemon writes
//! ```
//!
//! Times are those of a runtime: from the start of the program until the end of its output. CPU time counts
//! all processes of a call, also those it leaves behind, which this process inherits and waits for, and our
//! daemon meanwhile.

mod aftermath;
mod drive;
mod empty;
mod rows;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use netns_harness::flannel::Products;
use netns_harness::{Net, Screen, Topology};
use serde_json::{Value, json};

use aftermath::Node;
use drive::{Side, Timings};
use rows::{Goal, Rows};

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Folder of the other plugins: flannel, bridge, host-local, portmap
    #[arg(long, value_name = "FOLDER")]
    against: Option<PathBuf>,
    /// Folder of our plugins; by default $SELVAGE_BIN, or the folder of this program
    #[arg(long, value_name = "FOLDER")]
    plugins: Option<PathBuf>,
    /// Attachments of each kind that are measured one by one
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(10..=10_000), value_name = "N")]
    rounds: u16,
    /// JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

/// How many containers come and go at once, in all and at a time.
const CROWD: usize = 200;
const AT_A_TIME: usize = 8;
/// Addresses that are already held while an ADD looks for a free one.
const HELD: u32 = 5_000;
/// Rounds of one side before the other side's turn.
const TURN: usize = 10;

/// Returns whether every target was met.
pub(crate) fn measure(flags: &Flags, screen: Screen) -> Result<bool> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let ours = match &flags.plugins {
        Some(folder) => folder.clone(),
        None => own_folder()?,
    };
    let folders: Vec<PathBuf> = std::iter::once(ours).chain(flags.against.clone()).collect();
    let folders =
        folders.iter().map(|folder| folder.canonicalize().with_context(|| folder.display().to_string()));
    let folders = folders.collect::<Result<Vec<_>>>()?;
    let mut rows = Rows::new(folders.len() > 1);
    let rounds = usize::from(flags.rounds);
    one_by_one(&folders, rounds, &mut rows)?;
    crowds(&folders, &mut rows)?;
    filled(&folders, rounds / 4, &mut rows)?;
    mapped(&folders, rounds / 4, &mut rows)?;
    programs(&folders, rounds, &mut rows)?;
    let lines = if flags.json { rows.lines() } else { rows.table() };
    lines.iter().for_each(|line| screen.say(line));
    Ok(rows.reached())
}

fn own_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("SELVAGE_BIN") {
        return Ok(folder.into());
    }
    Ok(std::env::current_exe()?.parent().context("this program has no directory")?.to_owned())
}

/// flannel's usual network, in the version of its manifest.
pub(super) fn flannel() -> Value {
    json!({
        "cniVersion": "0.3.1", "name": "cbr0", "type": "flannel", "ipam": {},
        "delegate": { "hairpinMode": true, "isDefaultGateway": true },
    })
}

fn portmap(port: usize) -> Value {
    let mapping = json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp" });
    json!({
        "cniVersion": "0.3.1", "name": "cbr0", "type": "portmap", "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": [mapping] },
    })
}

/// A host for each folder, with that many containers. Our daemon runs on the first host, which is our side.
fn sides(folders: &[PathBuf], containers: usize) -> Result<(Net, Vec<Side>)> {
    let net = Net::build(Topology::flat(folders.len()))?;
    let mut node = Some(Node::start(net.host(0), net.store(), &Products::find()?)?);
    let made = folders
        .iter()
        .zip(net.hosts())
        .map(|(folder, host)| Side::new(folder, host, containers, node.take()));
    let mut sides = made.collect::<Result<Vec<_>>>()?;
    let kept: Vec<u32> = sides.iter().flat_map(Side::pids).collect();
    sides.iter_mut().for_each(|side| side.keep(&kept));
    Ok((net, sides))
}

/// The plugins for a container, in order.
type Chain<'a> = &'a dyn Fn(usize) -> Vec<Value>;

/// ADD and DEL of one attachment after the other, in turns of the sides and of the chains. For each side and
/// each chain, the times of both.
fn turns(sides: &[Side], rounds: usize, chains: &[Chain<'_>]) -> Result<Vec<Vec<[Timings; 2]>>> {
    let none = || chains.iter().map(|_| <[Timings; 2]>::default()).collect::<Vec<_>>();
    let mut all: Vec<_> = sides.iter().map(|_| none()).collect();
    for round in 0..=rounds.div_ceil(TURN) {
        if round == 1 {
            // The first turn warms up: it makes the bridge and reads the programs from disk.
            all = sides.iter().map(|_| none()).collect();
        }
        for (side, timings) in sides.iter().zip(&mut all) {
            for (chain, [adds, dels]) in chains.iter().zip(timings) {
                for container in 0..TURN {
                    let plugins = chain(container);
                    let result = side.timed(adds, || side.add(container, &plugins))?;
                    side.timed(dels, || side.del(container, &plugins, &result))?;
                }
            }
        }
    }
    Ok(all)
}

fn one_by_one(folders: &[PathBuf], rounds: usize, rows: &mut Rows) -> Result<()> {
    // Our side once more, on a host without a daemon.
    let (_net, sides) = sides(&[folders, &folders[..1]].concat(), TURN)?;
    let mut all = turns(&sides, rounds, &[&|_| vec![flannel()]])?;
    let alone = all.pop().context("a side without a daemon")?;
    let goals =
        [("ADD", [(2.0, 0.25), (5.0, 0.4), (0.8, 0.1)]), ("DEL", [(0.8, 0.06), (2.0, 0.08), (0.5, 0.1)])];
    // Work that a DEL hands to the daemon counts for the DEL. For an ADD the daemon only receives a
    // notification.
    let whole = [Timings::cpu, Timings::cpu_with_daemon];
    for (at, (verb, [median, p99, cpu])) in goals.into_iter().enumerate() {
        let figures = |of: fn(&Timings) -> f64| all.iter().map(|side| of(&side[0][at])).collect::<Vec<_>>();
        rows.add(&format!("{verb}, median"), "ms", Goal::ratio(median), figures(Timings::median));
        rows.add(&format!("{verb}, 99th percentile"), "ms", Goal::ratio(p99), figures(Timings::p99));
        rows.add(
            &format!("{verb}, CPU time of all its processes"),
            "ms",
            Goal::ratio(cpu),
            figures(whole[at]),
        );
        rows.add(&format!("{verb}, CPU time of the daemon"), "ms", Goal::none(), figures(Timings::daemon));
    }
    let others = all.iter().skip(1).map(|side| side[0][1].median());
    let figures = std::iter::once(alone[0][1].median()).chain(others).collect();
    rows.add("DEL, median, no daemon on the host", "ms", Goal::none(), figures);
    sides.iter().try_for_each(Side::is_empty)
}

fn crowds(folders: &[PathBuf], rows: &mut Rows) -> Result<()> {
    let (_net, sides) = sides(folders, CROWD)?;
    let mut adds: Vec<Vec<f64>> = vec![vec![]; sides.len()];
    let mut dels = adds.clone();
    for _ in 0..3 {
        for (at, side) in sides.iter().enumerate() {
            let plugins = [flannel()];
            adds[at].push(side.crowd(CROWD, AT_A_TIME, |one| side.add(one, &plugins).map(drop))?);
            dels[at].push(side.crowd(CROWD, AT_A_TIME, |one| side.del(one, &plugins, &Value::Null))?);
            side.is_empty()?;
        }
    }
    let medians = |all: &[Vec<f64>]| all.iter().map(|one| drive::median(one)).collect::<Vec<_>>();
    let name = |verb| format!("{CROWD} {verb}, {AT_A_TIME} at a time, until all is done");
    rows.add(&name("ADDs"), "ms", Goal::ratio((250.0, 0.3)), medians(&adds));
    rows.add(&name("DELs"), "ms", Goal::ratio((200.0, 0.2)), medians(&dels));
    Ok(())
}

fn filled(folders: &[PathBuf], rounds: usize, rows: &mut Rows) -> Result<()> {
    let (_net, sides) = sides(folders, TURN)?;
    sides.iter().try_for_each(|side| side.hold(HELD))?;
    let all = turns(&sides, rounds, &[&|_| vec![flannel()]])?;
    for (at, verb) in ["ADD", "DEL"].into_iter().enumerate() {
        let figures = all.iter().map(|side| side[0][at].median()).collect();
        // The absolute target is the one without any held address.
        let absolute = if at == 0 { 2.0 } else { 0.8 };
        rows.add(&format!("{verb} with {HELD} addresses held"), "ms", Goal::ratio((absolute, 0.05)), figures);
    }
    Ok(())
}

/// The cost of one port map, in the same turns.
fn mapped(folders: &[PathBuf], rounds: usize, rows: &mut Rows) -> Result<()> {
    let (_net, sides) = sides(folders, TURN)?;
    if sides.iter().any(|side| !side.has("portmap")) {
        return Ok(());
    }
    let mapped: Chain<'_> = &|one| vec![flannel(), portmap(10_000 + one)];
    let all = turns(&sides, rounds, &[&|_| vec![flannel()], mapped])?;
    for (at, (verb, goal)) in [("ADD", 0.7), ("DEL", 1.0)].into_iter().enumerate() {
        let figures = all.iter().map(|side| side[1][at].median() - side[0][at].median());
        rows.add(&format!("{verb}: one port map"), "ms", Goal::ratio((goal, 0.05)), figures.collect());
    }
    Ok(())
}

/// Sizes and costs of the programs themselves.
fn programs(folders: &[PathBuf], rounds: usize, rows: &mut Rows) -> Result<()> {
    let (_net, sides) = sides(folders, TURN)?;
    let sizes = folders.iter().map(|folder| size(folder)).collect::<Result<Vec<_>>>()?;
    rows.add("flannel, bridge and host-local on disk", "MiB", Goal::absolute(2.0), sizes);
    let empty = empty::program(sides[0].host())?;
    let mut over = Vec::new();
    for side in &sides {
        let [version, nothing] = side.version_beside(&empty, rounds)?;
        over.push(version - nothing);
    }
    rows.add("VERSION, more than an empty program", "ms", Goal::absolute(0.2), over);
    let calls = sides.iter().map(|side| side.system_calls(&flannel())).collect::<Result<Vec<_>>>();
    match calls {
        Ok(calls) => rows.add("system calls of an ADD", "", Goal::absolute(100.0), calls),
        Err(error) => rows.note(&format!("system calls of an ADD are not counted: {error:#}")),
    }
    Ok(())
}

/// The size of the distinct files in MiB: several names may be links to one file.
fn size(folder: &Path) -> Result<f64> {
    let names = ["flannel", "bridge", "host-local"];
    let mut files = Vec::new();
    for name in names {
        let file =
            folder.join(name).canonicalize().with_context(|| format!("{name} in {}", folder.display()))?;
        if !files.contains(&file) {
            files.push(file);
        }
    }
    let mut bytes = 0;
    for file in &files {
        bytes += std::fs::metadata(file)?.len();
    }
    ensure!(bytes > 0, "the plugin files are empty");
    let Ok(bytes) = u32::try_from(bytes) else { bail!("plugins of {bytes} bytes") };
    Ok(f64::from(bytes) / f64::from(1 << 20))
}
