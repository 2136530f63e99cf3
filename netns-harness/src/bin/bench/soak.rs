//! A day's events in a minute, on the real daemon with a real etcd: memory must not grow.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use netns_harness::flannel::{Backend, Products};
use netns_harness::{Family, Screen};

use crate::figures::Figures;
use crate::large::{Large, Size};

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// How long memory is measured, after the warm-up, which is a quarter of that
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(4..=86_400), value_name = "SECONDS")]
    seconds: u32,
    /// The number of peers before the first event
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(200..=10_000), value_name = "N")]
    peers: u16,
    /// JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

/// Hosts that join, and others that leave, in one round.
const CHANGES: usize = 100;
/// The time between two flaps. Five flaps in ten seconds would make the device contended, and its repair
/// would wait.
const FLAP: Duration = Duration::from_secs(3);
/// The time between two losses of the store.
const LOSS: Duration = Duration::from_secs(5);

/// The events so far.
#[derive(Debug, Default, Clone, Copy)]
struct Done {
    changes: usize,
    flaps: u32,
    losses: u32,
}

pub(crate) fn measure(products: &Products, flags: &Flags, screen: Screen) -> Result<bool> {
    let size = Size { backend: Backend::Vxlan, family: Family::V4, peers: flags.peers.into() };
    let mut large = Large::build(products, size, true)?;
    large.start()?;
    let time = Duration::from_secs(flags.seconds.into());
    disturb(&mut large, time / 4)?;
    let (before, begin) = (large.memory("VmRSS")?, Instant::now());
    let done = disturb(&mut large, time)?;
    let (after, took) = (large.memory("VmRSS")?, begin.elapsed().as_secs_f64());
    let mut figures = Figures::default();
    figures.add("joins and leaves", "", None, f64::from(u32::try_from(done.changes)?));
    figures.add("flaps of the tunnel device", "", None, done.flaps.into());
    figures.add("losses of the store", "", None, done.losses.into());
    figures.add("resident memory after the warm-up", "MiB", None, before / 1024.0);
    figures.add("growth of resident memory", "KiB", 1024.0, after - before);
    figures.add("growth per minute", "KiB", None, (after - before) / took * 60.0);
    figures.add("peak resident memory", "MiB", None, large.memory("VmHWM")? / 1024.0);
    let lines = if flags.json { figures.lines(&products.flanneld) } else { figures.table(None) };
    lines.iter().for_each(|line| screen.say(line));
    Ok(figures.reached())
}

/// Rounds of events until the time is over; each round ends when the kernel shows all of it.
fn disturb(large: &mut Large, time: Duration) -> Result<Done> {
    let begin = Instant::now();
    let mut done = Done::default();
    while begin.elapsed() < time {
        large.join(CHANGES)?;
        large.leave(CHANGES)?;
        done.changes += 2 * CHANGES;
        if begin.elapsed() > FLAP * done.flaps {
            large.flap()?;
            done.flaps += 1;
        }
        if begin.elapsed() > LOSS * done.losses {
            large.lose_the_store()?;
            done.losses += 1;
        }
    }
    Ok(done)
}
