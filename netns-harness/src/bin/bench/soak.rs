//! A day's events in a minute, on the real daemon with a real etcd: memory must end where it began.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use netns_harness::flannel::{Backend, Products};
use netns_harness::{Family, Screen};

use crate::figures::Figures;
use crate::large::{Large, Size};

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// How long memory is watched, after the warm-up, which is a quarter of that
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(4..=86_400), value_name = "SECONDS")]
    seconds: u16,
    /// How many peers there are before the first event
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(200..=10_000), value_name = "N")]
    peers: u16,
    /// JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

/// Hosts that join, and others that leave, in one round.
const CHANGES: usize = 100;
/// Peers have numbers, and these end.
const MOST_ROUNDS: usize = 140;
/// Every so many rounds the store is lost.
const STORE: usize = 10;

pub(crate) fn measure(products: &Products, flags: &Flags, screen: Screen) -> Result<bool> {
    let size = Size { backend: Backend::Vxlan, family: Family::V4, peers: flags.peers.into() };
    let mut large = Large::build(products, size, true)?;
    large.start()?;
    let time = Duration::from_secs(flags.seconds.into());
    let mut rounds = rounds(&mut large, time / 4)?;
    let (before, begin) = (large.memory("VmRSS")?, Instant::now());
    let warm = rounds;
    rounds += self::rounds(&mut large, time)?;
    let (after, took) = (large.memory("VmRSS")?, begin.elapsed().as_secs_f64());
    let mut figures = Figures::default();
    let events = u32::try_from((rounds - warm) * (2 * CHANGES + 1))?;
    figures.add("joins, leaves and flaps", "", None, events.into());
    figures.add("resident memory after the warm-up", "MiB", None, before / 1024.0);
    figures.add("growth of resident memory", "KiB", 1024.0, after - before);
    figures.add("growth a minute", "KiB", None, (after - before) / took * 60.0);
    figures.add("peak resident memory", "MiB", None, large.memory("VmHWM")? / 1024.0);
    let lines = if flags.json { figures.lines(&products.flanneld) } else { figures.table(None) };
    lines.iter().for_each(|line| screen.say(line));
    Ok(figures.reached())
}

/// Rounds of events until the time is over; each ends when the kernel shows all of it.
fn rounds(large: &mut Large, time: Duration) -> Result<usize> {
    let end = Instant::now() + time;
    let mut count = 0;
    while Instant::now() < end && count < MOST_ROUNDS {
        count += 1;
        large.join(CHANGES)?;
        large.leave(CHANGES)?;
        large.flap()?;
        if count.is_multiple_of(STORE) {
            large.lose_the_store()?;
        }
    }
    Ok(count)
}
