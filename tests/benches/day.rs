//! A day of a node with a thousand peers in some seconds: the daemon's core on a real kernel, with a clock
//! that jumps.
//!
//!     cargo bench -p tests --bench day [-- PEERS]
//!
//! 2,880 audits, and between them six thousand joins and leaves. Resident memory must not grow, and an audit
//! with nothing to do must be cheap.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]

mod peers;

use std::fs;
use std::io::{Write, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use backends::kernel::Kernel;
use backends::kernel::real::RealKernel;
use flanneld::core::{Effect, Input, NodeCore, Tick};
use netns_harness::flannel::Backend as Kind;
use netns_harness::{Net, Topology, enter};
use peers::{lease, network, subnets};
use subnet_lease::{Family, Lease, OwnLease, StoreEvent};

const PEERS: u16 = 1_000;
/// One audit every half minute for a day; earlier ones are the warm-up.
const AUDITS: usize = 2_880;
const WARM_UP: usize = 300;
/// Longer than the longest pause between audits.
const PAUSE: Duration = Duration::from_secs(34);
/// What may be added to resident memory, in KiB.
const GROWTH: i64 = 1_024;
/// An audit with nothing to do, in ms: up to a thousand peers, and up to ten thousand.
const AUDIT: [f64; 2] = [4.0, 28.0];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this too, only to see that it starts.
    if !words.iter().any(|word| word == "--bench") {
        return Ok(());
    }
    enter()?;
    let peers = words.iter().find_map(|word| word.parse().ok()).unwrap_or(PEERS);
    let net = Net::build(Topology::flat(1))?;
    net.host(0).run(|| Node::start(peers).and_then(day))?
}

/// A daemon without a shell.
struct Node {
    core: NodeCore,
    kernel: RealKernel,
    now: Tick,
    steps: usize,
    peers: u16,
}

impl Node {
    fn start(peers: u16) -> Result<Self> {
        let mut settings = tests::solo::settings();
        settings
            .iface
            .names
            .push(netns_harness::UPLINK.parse().map_err(|_| anyhow::anyhow!("a link's name"))?);
        let core = NodeCore::new(settings);
        let mut node = Self { core, kernel: RealKernel::open()?, now: Tick::ZERO, steps: 0, peers };
        let network = network(Kind::Vxlan, Family::V4).into_bytes();
        node.hear(Input::Store(StoreEvent::Config(network)))?;
        let leases = (1..=peers).map(|n| lease(Kind::Vxlan, Family::V4, n)).collect::<Result<_>>()?;
        node.hear(Input::Store(StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign: false }))?;
        ensure!(node.steps > usize::from(peers), "{} steps: {:?}", node.steps, node.core.readiness());
        Ok(node)
    }

    /// Does everything that follows from an input.
    fn hear(&mut self, input: Input) -> Result<()> {
        let effects = self.core.handle(self.now, input);
        self.perform(effects)
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Result<()> {
        for effect in effects {
            let answer = match effect {
                Effect::ReadHost => Input::Host(self.kernel.host()),
                Effect::ReadOwn(owner) => Input::Own(self.kernel.own(&owner)),
                Effect::Apply(plan) => {
                    self.steps += plan.ops.len();
                    Input::Applied(self.kernel.apply(&plan.ops))
                }
                Effect::Claim(claim) => {
                    let lease = Lease::new(subnets(Family::V4, 0)?, claim.public, claim.attrs.clone());
                    let expires_in = Some(Duration::from_secs(365 * 24 * 3600));
                    Input::Claimed(Ok(OwnLease { lease, expires_in }))
                }
                _ => continue,
            };
            self.hear(answer)?;
        }
        Ok(())
    }

    /// Makes an audit and returns its time in ms.
    fn audit(&mut self) -> Result<f64> {
        self.now += PAUSE;
        let (passes, start) = (self.core.passes(), Instant::now());
        let effects = self.core.tick(self.now);
        self.perform(effects)?;
        ensure!(self.core.passes() == passes + 1, "an audit is one pass");
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// The `n`-th peer leaves and comes back.
    fn change(&mut self, n: usize) -> Result<()> {
        let number = u16::try_from(n % usize::from(self.peers))? + 1;
        let lease = lease(Kind::Vxlan, Family::V4, number)?;
        self.now += Duration::from_secs(1);
        self.hear(Input::Store(StoreEvent::Removed(vec![lease.subnets])))?;
        self.hear(Input::Store(StoreEvent::Upsert(lease)))
    }
}

fn day(mut node: Node) -> Result<()> {
    let (mut times, mut before) = (Vec::new(), 0);
    for n in 0..WARM_UP + AUDITS {
        if n == WARM_UP {
            before = resident()?;
        }
        let steps = node.steps;
        let took = node.audit()?;
        ensure!(node.steps == steps, "an audit found something to do");
        times.push(took);
        node.change(n)?;
    }
    times.sort_by(f64::total_cmp);
    let (audit, growth) = (times[times.len() / 2], resident()? - before);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let goal = AUDIT[usize::from(node.peers > PEERS)];
    say(&format!("Linux {}, {} peers, {AUDITS} audits, {} steps", kernel.trim(), node.peers, node.steps));
    say(&format!("an audit with nothing to do  {audit:8.2} ms    target {goal}"));
    say(&format!("growth of resident memory    {growth:8} KiB   target {GROWTH}"));
    ensure!(audit <= goal && growth <= GROWTH, "missed");
    Ok(())
}

/// Resident memory of this process, in KiB.
fn resident() -> Result<i64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn say(line: &str) {
    // An error means that the reader closed our output.
    let _ = writeln!(stdout(), "{line}");
}
