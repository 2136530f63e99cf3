//! `chaos`: random disturbances of a cluster under constant traffic, and what each one costs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use netns_harness::chaos::{add_peers, run, with_room};
use netns_harness::flannel::{Backend, Products, StoreKind};
use netns_harness::{Cluster, Family, Screen, Spec, enter};

/// Disturbs a cluster of virtual hosts and prints what each disturbance cost
#[derive(Debug, Parser)]
struct Flags {
    /// How long, in seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Seed of the order; random by default
    #[arg(long)]
    seed: Option<u64>,
    /// How many virtual hosts
    #[arg(long, default_value_t = 5)]
    hosts: usize,
    /// How packets travel between hosts: vxlan or host-gw
    #[arg(long, default_value_t)]
    backend: Backend,
    /// Where leases are kept: embedded or etcd
    #[arg(long, default_value_t)]
    store: StoreKind,
    /// Address families: v4, v6 or dual
    #[arg(long, default_value_t = Family::Dual)]
    family: Family,
    /// Leases of peers that do not exist, beside the hosts' leases (IPv4, vxlan)
    #[arg(long, default_value_t = 0)]
    peers: u16,
    /// Only these disturbances
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let screen = Screen::new();
    match enter().and_then(|()| disturb(&flags, screen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.say(&format!("chaos: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn disturb(flags: &Flags, screen: Screen) -> Result<()> {
    let seed = flags.seed.unwrap_or_else(|| std::process::id().into());
    let Flags { hosts, backend, store, family, .. } = *flags;
    let spec = with_room(Spec { hosts, backend, store, family, ..Spec::default() }, flags.peers);
    let mut cluster = screen.step("build a cluster", || Cluster::up(&spec, &Products::find()?))?;
    screen.step(&format!("add {} peers", flags.peers), || add_peers(&cluster, flags.peers))?;
    let time = Duration::from_secs(flags.seconds);
    let outcome =
        screen.step(&format!("disturbances, seed {seed}"), || run(&mut cluster, time, seed, &flags.only))?;
    screen.say(&outcome.to_string());
    Ok(())
}
