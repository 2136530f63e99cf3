//! Large clusters, with targets.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use netns_harness::Family::{self, V4, V6};
use netns_harness::flannel::Backend::{self, HostGw, Vxlan};
use netns_harness::flannel::Products;

use crate::Common;
use crate::figures::Figures;
use crate::large::{Large, Size};
use crate::repair;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How often each case is repeated; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100), value_name = "N")]
    rounds: u16,
    /// How long the idle daemon is measured
    #[arg(long, default_value_t = 62, value_parser = clap::value_parser!(u16).range(1..=3_600), value_name = "SECONDS")]
    idle: u16,
    /// Only cases whose name contains this, such as `5000 host-gw`
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// The measures of one size.
#[derive(Debug, Clone, Copy, Default)]
struct Case {
    /// Target: seconds from the daemon's start until all peers are in the kernel.
    cold: Option<f64>,
    /// Target: peak resident memory in MiB.
    peak: Option<f64>,
    /// Target: milliseconds until a hundred more peers are in the kernel.
    joins: Option<f64>,
    /// Target: milliseconds until half of the peers are gone.
    leaves: Option<f64>,
    /// Targets: milliseconds for the kernel to set the tunnel device down, and until it is as before.
    flap: [Option<f64>; 2],
    /// Whether the idle daemon is measured.
    idle: bool,
}

const NONE: Case = Case { cold: None, peak: None, joins: None, leaves: None, flap: [None; 2], idle: false };

/// The cases, with the targets for two cores. host-gw has no IPv4 case beyond ten thousand peers: the
/// kernel's time grows with the square (law 14).
const CASES: [(Backend, Family, usize, Case); 13] = [
    (Vxlan, V4, 1_000, Case { cold: Some(0.15), flap: [Some(20.0), Some(100.0)], idle: true, ..NONE }),
    (Vxlan, V4, 5_000, Case { joins: Some(60.0), leaves: Some(150.0), ..NONE }),
    (
        Vxlan,
        V4,
        10_000,
        Case { cold: Some(0.6), peak: Some(25.0), flap: [Some(60.0), Some(1_000.0)], ..NONE },
    ),
    (Vxlan, V4, 50_000, NONE),
    (Vxlan, V6, 1_000, NONE),
    (Vxlan, V6, 10_000, Case { cold: Some(0.6), peak: Some(25.0), ..NONE }),
    (Vxlan, V6, 50_000, NONE),
    (HostGw, V4, 1_000, NONE),
    (HostGw, V4, 5_000, Case { cold: Some(0.5), joins: Some(60.0), leaves: Some(150.0), ..NONE }),
    (HostGw, V4, 10_000, Case { cold: Some(1.8), peak: Some(25.0), ..NONE }),
    (HostGw, V6, 1_000, NONE),
    (HostGw, V6, 10_000, Case { cold: Some(0.6), ..NONE }),
    (HostGw, V6, 50_000, NONE),
];
/// Above this number of peers one round is enough.
const LARGE: usize = 10_000;

/// The numbers of peers for the repair of every disturbance.
const REPAIRS: [u16; 2] = [100, 1_000];

/// Hosts that join at once.
const JOINS: usize = 100;

pub(crate) fn measure(products: &Products, ours: bool, flags: &Flags) -> Result<Figures> {
    let mut figures = Figures::default();
    let skipped = |name: &str| flags.only.as_ref().is_some_and(|only| !name.contains(only.as_str()));
    for (backend, family, peers, case) in CASES {
        let name = format!("{peers} {backend} IP{family}");
        if skipped(&name) {
            continue;
        }
        let rounds = if peers > LARGE { 1 } else { flags.rounds };
        for round in 0..rounds {
            let large = Large::build(products, Size { backend, family, peers }, true)?;
            let mut run = Run { large, name: &name, figures: &mut figures };
            run.cold(&case)?;
            // The rounds repeat the start. A second measurement of an idle daemon adds nothing.
            if case.idle && round == 0 {
                run.idle(Duration::from_secs(flags.idle.into()))?;
            }
            run.events(&case, peers)?;
        }
    }
    // Another flannel repairs nothing.
    for peers in REPAIRS.into_iter().filter(|peers| ours && !skipped(&format!("{peers} repair"))) {
        repair::measure(products, peers, &mut figures)?;
    }
    Ok(figures)
}

/// One round of one case.
struct Run<'a> {
    large: Large,
    name: &'a str,
    figures: &'a mut Figures,
}

impl Run<'_> {
    fn cold(&mut self, case: &Case) -> Result<()> {
        let took = self.large.start()?.as_secs_f64();
        self.add("start until all peers are in the kernel", "s", case.cold, took);
        let cost = self.large.cost()?.cpu.as_secs_f64();
        self.add("CPU time of that", "s", None, cost);
        // The daemon may still verify its own work.
        thread::sleep(Duration::from_millis(500));
        let peak = self.large.memory("VmHWM")? / 1024.0;
        self.add("peak resident memory", "MiB", case.peak, peak);
        Ok(())
    }

    fn idle(&mut self, time: Duration) -> Result<()> {
        let idle = self.large.idle(time)?;
        let forked = self.large.has_forked()?;
        self.add(&format!("idle CPU over {} s", time.as_secs()), "%", 0.1, idle);
        self.add("started a process (1 = yes)", "", 0.0, f64::from(u8::from(forked)));
        Ok(())
    }

    fn events(&mut self, case: &Case, peers: usize) -> Result<()> {
        // Another flannel does not report readiness, and never puts back what a flap removed.
        let ours = self.large.reports_ready();
        if ours {
            let took = self.large.restart()?;
            self.add("restart with nothing to do, until ready", "ms", None, ms(took));
        }
        // A flap of the underlay also removes other routes than those to peers.
        if ours && self.large.has_tunnel() {
            let (fell, repaired) = self.large.flap()?;
            let [down, repair] = case.flap;
            self.add("device down, time in the kernel", "ms", down, ms(fell));
            self.add("device down, until all is repaired", "ms", repair, ms(repaired));
        }
        let joined = self.large.join(JOINS)?;
        self.add(&format!("{JOINS} join"), "ms", case.joins, ms(joined));
        let left = self.large.leave(peers / 2)?;
        self.add(&format!("{} leave", peers / 2), "ms", case.leaves, ms(left));
        Ok(())
    }

    fn add(&mut self, what: &str, unit: &'static str, goal: impl Into<Option<f64>>, value: f64) {
        self.figures.add(&format!("{}: {what}", self.name), unit, goal, value);
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
