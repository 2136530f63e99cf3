//! Many daemons in one thread: `NodeCore`s on fake kernels, one lease book, one clock that jumps from event to event,
//! one seed.
//!
//! ```text
//!              ┌── Deliver ◀─ delay, loss, doubles, old news ─┐
//!   NodeCore ──┤                                              ├── LeaseBook
//!     │  ▲     └── Claim ──────────── delay, partition ───────┘
//!     ▼  │ Host, Own, Applied, Kernel
//!   FakeKernel ◀── trouble: a stranger's hand, flaps, refusals, kills
//! ```
//!
//! Nothing here sleeps, and the same scenario gives the same run. What befalls a world is a [`Scenario`]: drawn from a
//! seed or read from a file, and made smaller where it fails. What must hold is in `oracle.rs` and `table.rs`.
//! `WORLD_TRACE=7` prints what node 7 hears and does; `WORLD_RECORD=7:FILE` records it for `flannelctl events` and
//! `flannelctl replay`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a world fails by panicking"
)]

mod draw;
mod failure;
mod hand;
mod node;
mod oracle;
mod scenario;
mod shrink;
mod site;
mod store;
mod stranger;
mod trouble;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;
use std::time::Duration;

use backends::kernel::fake::Rng;
use backends::{Op, Owner};
use flanneld::core::{Input, NodeCore, Tick};
use flanneld::recorder::{Recorder, Ring};
use serde::{Deserialize, Serialize};
use subnet_lease::Claim;

pub use draw::any_trouble;
pub use failure::Failure;
pub use node::Node;
pub use oracle::Watch;
pub use scenario::{Scenario, Strike, in_file, seeds};
pub use shrink::shrink;
pub use site::Site;
pub use store::Book;
pub use trouble::{Kind, Trouble, Why};

/// How the world is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shape {
    /// How many nodes.
    pub nodes: usize,
    /// The net-conf.
    #[serde(with = "scenario::embedded")]
    pub network: String,
    /// Underlay networks that the nodes are spread over; routers join them.
    pub racks: usize,
    /// Underlay addresses of IPv6, too.
    pub six: bool,
    /// Longest way of a message from the store, in milliseconds.
    pub lag: usize,
    /// Look at pairs after every single step of a plan, and let dumps grow old on their way. Where not, the tables of
    /// all nodes are compared in place of all pairs: for worlds of thousands.
    pub every_step: bool,
}

/// All of it.
pub struct World {
    /// How it was made.
    pub shape: Shape,
    /// Printed when something is wrong.
    pub seed: u64,
    pub(crate) rng: Rng,
    pub(crate) now: Tick,
    pub(crate) nodes: Vec<Node>,
    pub(crate) book: Book,
    pub(crate) watch: Watch,
    /// A bug to be found: steps that are answered and not done.
    pub(crate) broken: Option<fn(&Op) -> bool>,
    /// Prints what this node hears and does.
    pub(crate) trace: Option<usize>,
    /// A change without a notification: only an audit finds it.
    pub(crate) silent: bool,
    queue: BinaryHeap<Reverse<Due>>,
    sent: u64,
    in_flight: usize,
}

/// What happens to a node, and when. Events of one moment happen in the order in which they were sent.
struct Due {
    at: Tick,
    number: u64,
    node: usize,
    life: u32,
    what: What,
}

enum What {
    Start,
    Tick,
    Input(Box<Input>),
    /// A dump is made when it arrives.
    Read(Box<Owner>),
    Notified,
    Deliver,
    /// The next blow of a fight.
    Blow,
    ClaimArrives(Box<Claim>),
    Trouble(Trouble),
}

/// Far more than any settling takes; the longest back-off is half a minute.
const STALL: Duration = Duration::from_secs(300);

impl World {
    /// A world whose nodes are not started yet.
    pub fn new(shape: Shape, seed: u64) -> Self {
        let nodes = (0..shape.nodes).map(|n| Node::new(Site::new(n, &shape), seed)).collect();
        let mut world = Self {
            book: Book::new(&shape.network),
            watch: Watch::new(&shape),
            broken: None,
            silent: false,
            nodes,
            shape,
            seed,
            rng: Rng::new(seed),
            now: Tick::ZERO,
            trace: std::env::var("WORLD_TRACE").ok().and_then(|n| n.parse().ok()),
            queue: BinaryHeap::new(),
            sent: 0,
            in_flight: 0,
        };
        let asked = std::env::var("WORLD_RECORD").ok();
        if let Some((node, file)) = asked.as_deref().and_then(|asked| asked.split_once(':')) {
            world.record(node.parse().expect("WORLD_RECORD=NODE:FILE"), Path::new(file));
        }
        world
    }

    /// Records what a node hears and decides from its next start on. Its clock shows the time of the world, in 1970.
    pub fn record(&mut self, node: usize, file: &Path) {
        let Some(node) = self.nodes.get_mut(node) else { return };
        node.recorder = Some(Recorder::new(Ring::open(file).unwrap(), || Duration::ZERO));
    }

    /// The daemon of a node, while it runs.
    pub fn core(&self, node: usize) -> Option<&NodeCore> {
        self.nodes.get(node)?.core.as_ref()
    }

    /// Starts a node that is not running, `after` from now.
    pub fn start(&mut self, node: usize, after: Duration) {
        self.send(after, node, What::Start);
    }

    /// Starts every node within a span.
    pub fn start_all(&mut self, within: Duration) {
        for node in 0..self.nodes.len() {
            let after = self.up_to(node, within);
            self.start(node, after);
        }
    }

    /// Lets a trouble strike.
    pub fn trouble(&mut self, node: usize, after: Duration, trouble: Trouble) {
        self.send(after, node, What::Trouble(trouble));
    }

    /// Lets time pass.
    pub fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.queue.peek().is_some_and(|Reverse(due)| due.at <= until) {
            self.step();
        }
        self.now = until;
    }

    /// Lets time pass until nothing is under way and no pass has anything left to do.
    pub fn settle(&mut self) {
        let limit = self.now + STALL;
        // Who was busy last is most likely so still: the others are asked when that one rests.
        let mut last = 0;
        loop {
            if self.in_flight == 0 && !self.nodes[last].is_busy(self.now) {
                match self.nodes.iter().position(|n| n.is_busy(self.now)) {
                    Some(busy) => last = busy,
                    None => return,
                }
            }
            if self.now >= limit || self.queue.is_empty() {
                self.fail("stall", None, self.restless());
            }
            self.step();
        }
    }

    fn restless(&self) -> String {
        let busy = self.nodes.iter().enumerate().filter(|(_, n)| n.is_busy(self.now));
        let names: Vec<_> = busy.take(5).map(|(i, n)| format!("node {i}: {:?}", n.readiness())).collect();
        format!("{} messages under way; {}", self.in_flight, names.join(", "))
    }

    fn step(&mut self) {
        let Some(Reverse(due)) = self.queue.pop() else { return };
        self.now = self.now.max(due.at);
        self.in_flight -= usize::from(!matches!(due.what, What::Tick));
        // What was meant for an earlier life of this node reaches nobody.
        let node = &self.nodes[due.node];
        let alive = node.core.is_some() && node.life == due.life;
        match due.what {
            What::Start => self.boot(due.node),
            What::Trouble(trouble) => self.strike(due.node, trouble),
            What::Blow => self.blow(due.node),
            What::ClaimArrives(claim) => self.claim_arrives(due.node, due.life, &claim),
            _ if !alive => {}
            What::Tick => self.tick(due.node),
            What::Input(input) => self.input(due.node, *input),
            What::Read(owner) => self.read(due.node, &owner),
            What::Notified => self.notified(due.node),
            What::Deliver => self.deliver(due.node),
        }
    }

    fn send(&mut self, after: Duration, node: usize, what: What) {
        self.in_flight += usize::from(!matches!(what, What::Tick));
        let (at, number, life) = (self.now + after, self.sent, self.nodes[node].life);
        self.sent += 1;
        self.queue.push(Reverse(Due { at, number, node, life, what }));
    }

    /// Some time up to a span, by the node's own dice: what befalls one node changes little for the others.
    pub(crate) fn up_to(&mut self, node: usize, span: Duration) -> Duration {
        let most = usize::try_from(span.as_micros()).unwrap_or(usize::MAX);
        Duration::from_micros(self.nodes[node].rng.below(most + 1) as u64)
    }

    pub(crate) fn up_to_ms(&mut self, node: usize, most: usize) -> Duration {
        self.up_to(node, Duration::from_millis(most as u64))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
