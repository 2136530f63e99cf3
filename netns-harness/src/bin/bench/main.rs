//! The figures of a daemon: start, joining peers, memory, idle cost, and what a restart costs pods.
//!
//! ```text
//!   bench [--against PATH]          four hosts and a thousand peers; the ratios to another daemon
//!   bench scale [--against PATH]    1,000 to 10,000 peers, both backends, both families, with targets
//!   bench soak                      a day's events in a minute: memory must not grow
//!   bench path                      TCP between pods, compared with the same path set up by hand
//!   bench cni [--against FOLDER]    the CNI plugin, and the ratios to another one
//!   bench hostile                   the embedded store under hostile clients
//! ```
//!
//! With `--json` one JSON line per measure, else a table. Leases are in etcd, so that every daemon has the
//! same store. Only the daemon's flags are used, so any flannel works.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

mod cni;
mod compare;
mod figures;
mod hostile;
mod large;
mod leases;
mod path;
mod repair;
mod scale;
mod soak;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use netns_harness::flannel::Products;
use netns_harness::{Screen, enter};

use figures::Figures;

/// Measures the daemon in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Flags {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    compare: compare::Flags,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Large clusters: cold start, restart, joins, leaves, a flapped device, memory, idle CPU
    Scale(scale::Flags),
    /// Joins, leaves, flaps and lost stores, to find out whether memory grows
    Soak(soak::Flags),
    /// TCP between pods, compared with the same path set up by hand
    Path(path::Flags),
    /// The CNI plugin: ADD and DEL alone, many at once, with a full store, with a port map
    Cni(cni::Flags),
    /// The embedded store under hostile clients: growth of memory, and how long honest clients wait
    Hostile(hostile::Flags),
}

/// The flags of every kind of run.
#[derive(Debug, Args)]
struct Common {
    /// Another flannel-compatible daemon to measure too, for the ratios
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let screen = Screen::new();
    match enter().and_then(|()| run(&flags, screen)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            screen.say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether every target was met.
fn run(flags: &Flags, screen: Screen) -> Result<bool> {
    match &flags.what {
        None => both(&flags.compare.common, screen, |products, _| compare::measure(products, &flags.compare)),
        Some(What::Scale(scale)) => {
            both(&scale.common, screen, |products, ours| scale::measure(products, ours, scale))
        }
        Some(What::Cni(cni)) => cni::measure(cni, screen),
        Some(What::Path(flags)) => path::measure(&Products::find()?, flags, screen),
        Some(What::Hostile(hostile)) => hostile::measure(&Products::find()?, hostile, screen),
        Some(What::Soak(soak)) => soak::measure(&Products::find()?, soak, screen),
    }
}

/// Measures our daemon, and the other one if given; `measure` gets which of them it is.
fn both(
    common: &Common,
    screen: Screen,
    measure: impl Fn(&Products, bool) -> Result<Figures>,
) -> Result<bool> {
    let ours = Products::find()?;
    let own = measure(&ours, true)?;
    let other = match &common.against {
        Some(path) => {
            let theirs = Products { flanneld: path.clone(), ..ours.clone() };
            Some(measure(&theirs, false)?)
        }
        None => None,
    };
    if common.json {
        own.lines(&ours.flanneld).iter().for_each(|line| screen.say(line));
        let theirs = common.against.as_ref().zip(other.as_ref());
        theirs.iter().flat_map(|(path, other)| other.lines(path)).for_each(|line| screen.say(&line));
    } else {
        own.table(other.as_ref()).iter().for_each(|line| screen.say(line));
    }
    Ok(own.reached())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Flags;

    #[test]
    fn every_flag_has_a_type_that_holds_its_range() {
        Flags::command().debug_assert();
    }
}
