//! The daemon as a value: inputs in, effects out. No I/O, no clock, no `async`.
//!
//! ```text
//!   Store(..) File Kernel(..) ──▶ "look again" ──▶ Pace ──▶ a pass:
//!
//!      ReadHost ─▶ Host(facts)      only when an event asked for it
//!      ReadOwn  ─▶ Own(dump)        every pass
//!          wish (pure) ─▶ diff (pure) ─▶ plan
//!      Apply    ─▶ Applied(results) unless the plan is empty
//!
//!   beside it, never waiting for it:  Claim ─▶ Claimed      what we publish is a wish too
//! ```
//!
//! Gate: nothing is written before the network's configuration, our own lease and the first snapshot of the store are
//! known. Every event sets *dirty* and carries no other meaning; a lost, doubled or late one can do no harm.

mod claim;
mod digest;
mod drift;
mod fights;
mod gate;
mod host;
mod memory;
mod pace;
mod pass;
mod planes;
mod provenance;
mod ready;
mod report;
mod rules;
pub(crate) mod saved;
mod status;
mod vanish;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use backends::kernel::{KernelError, KernelEvent, OpError, Own, Touch};
use backends::plane::{PlaneOutcome, PlaneWish};
use backends::rules::Asked;
use backends::{Devices, External, Facts, Identity, Owner, Plan};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::{
    Claim, Lease, NetworkId, OwnLease, PeerTable, StoreError, StoreEvent, SubnetEnv, Subnets,
};

use crate::exit::Exit;
use crate::host::iface::IfaceWish;
use claim::ClaimState;
use gate::Network;
pub use host::Changed;
pub use memory::Memory;
use pace::Pace;
pub use provenance::Fact;
pub use ready::Readiness;
pub use report::{LeaseReport, PASS_BOUNDS_US, PassTimes, PeerReport};
pub use status::{
    ContendedReport, FailureReport, LISTED, PassReport, Refused, Stale, Status, StatusRequest, Underlay,
};

/// Time since boot, suspend included.
pub type Tick = Duration;

/// What the core needs to know of the node's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Which network of this host; its tag is on every link we make.
    pub network: NetworkId,
    /// Which underlay to use.
    pub iface: IfaceWish,
    /// Install masquerade rules.
    pub ip_masq: bool,
    /// Let masquerade choose ports at random.
    pub fully_random: bool,
    /// Install forward rules.
    pub forward_rules: bool,
    /// Destinations outside the cluster that see pods' own addresses.
    #[serde(default)]
    pub no_masquerade: Vec<IpNetwork>,
    /// By which program of the kernel the rules are made.
    #[serde(default)]
    pub traffic_rules: Asked,
    /// Look at rules in iptables so often.
    #[serde(default)]
    pub iptables_resync: Duration,
    /// Keep a blackhole route for our own subnets.
    pub blackhole_route: bool,
    /// Renew the lease when it has this long to live.
    pub renew_margin: Duration,
    /// End when no interface that was named fits for so long after the start; zero for at once.
    #[serde(default)]
    pub iface_wait: Option<Duration>,
    /// Whether tunnel devices leave checksums to the hardware; none for what the kernel is good for.
    #[serde(default)]
    pub tx_checksum: Option<bool>,
    /// Where the store is, as far as addresses say it; no peer's subnet may have one of them in it.
    #[serde(default)]
    pub store_addresses: Vec<IpAddr>,
    /// Keep peers that vanished from the store in doubtful ways for so long; zero for not at all.
    pub vanish_hold: Duration,
    /// Who we are to the operators of other nodes.
    pub node: Option<String>,
    /// A random number of this run, for what must differ between nodes.
    pub seed: u64,
}

/// Everything that can happen.
#[derive(Debug, Clone)]
pub enum Input {
    /// What an earlier run left in subnet.env. A hint; comes first, if at all.
    Remembered(SubnetEnv),
    /// What an earlier run knew, and whether the host has been up since. Comes before the store is heard, if at all.
    Recalled(Box<Memory>, bool),
    /// The store says something.
    Store(StoreEvent),
    /// The kernel says that something changed.
    Kernel(KernelEvent),
    /// Who touched what; a hint, before the event that says that something changed.
    Touched(Vec<Touch>),
    /// subnet.env was touched by someone.
    File,
    /// The answer to [`Effect::ReadHost`].
    Host(Result<Facts, KernelError>),
    /// The answer to [`Effect::ReadOwn`].
    Own(Result<Own, KernelError>),
    /// The answer to [`Effect::Apply`]: one result per op.
    Applied(Vec<Result<(), OpError>>),
    /// The answer to [`Effect::Claim`].
    Claimed(Result<OwnLease, StoreError>),
    /// What became of one wish of the last [`Effect::Plane`].
    Plane(PlaneOutcome),
}

/// Everything the core asks the shell to do.
#[derive(Debug)]
pub enum Effect {
    /// Read what the host is.
    ReadHost,
    /// Read what may be ours.
    ReadOwn(Owner),
    /// Perform these steps.
    Apply(Arc<Plan>),
    /// Make the store say this about us.
    Claim(Box<Claim>),
    /// Make what is not kernel state like this, each plane at its own pace; all that is not among these goes.
    Plane(Arc<Vec<PlaneWish>>),
    /// Write subnet.env, if it says anything else.
    Publish(SubnetEnv),
    /// Keep this for the next start.
    Remember(Box<Memory>),
    /// Our subnet is someone else's now: new pods must not get addresses from it.
    Withdraw(String),
    /// Tell who asks whether the node is ready.
    Announce(Readiness),
    /// End with this code; the kernel's state stays.
    Exit(Exit),
}

/// Where a pass stands.
#[derive(Debug, Serialize, Deserialize)]
enum Phase {
    Idle,
    ReadingHost,
    ReadingOwn(Owner),
    Applying(#[serde(with = "saved::shared")] Arc<Plan>),
}

/// The daemon.
#[derive(Serialize, Deserialize)]
pub struct NodeCore {
    settings: Settings,
    remembered: Option<SubnetEnv>,
    network: Option<Network>,
    facts: Option<Facts>,
    host_stale: bool,
    external: Option<External>,
    external_why: String,
    external_problem: Option<String>,
    #[serde(default)]
    host_settings: host::HostSettings,
    /// When none that was named would fit for the first time.
    #[serde(default)]
    unfit_since: Option<Tick>,
    /// What peers know our backends by, once that is settled: what we claimed is what we keep.
    identities: Option<Vec<Identity>>,
    /// The devices of ours that there are now.
    devices: Option<Devices>,
    leases: gate::Leases,
    peers: Option<PeerTable>,
    vanished: vanish::Vanished,
    #[serde(default)]
    planes: planes::Planes,
    #[serde(default)]
    rules: rules::Rules,
    memories: memory::Memories,
    /// Why the newest configuration is not in force.
    unapplied: Option<String>,
    claim: ClaimState,
    own: Option<Subnets>,
    phase: Phase,
    pace: Pace,
    passes: u64,
    last: pass::Outcome,
    fights: fights::Fights,
    ready: Readiness,
    store_problem: Option<String>,
    stale_since: Tick,
    seen_refusals: Vec<(String, String)>,
    #[serde(default)]
    ending: Option<String>,
}

impl NodeCore {
    /// A node that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let mut pace = Pace::new(settings.seed);
        pace.mark();
        Self {
            pace,
            settings,
            remembered: None,
            network: None,
            facts: None,
            host_stale: true,
            external: None,
            external_why: String::new(),
            external_problem: None,
            host_settings: host::HostSettings::default(),
            unfit_since: None,
            identities: None,
            devices: None,
            leases: gate::Leases::default(),
            peers: None,
            vanished: vanish::Vanished::default(),
            planes: planes::Planes::default(),
            rules: rules::Rules::default(),
            memories: memory::Memories::default(),
            unapplied: None,
            claim: ClaimState::default(),
            own: None,
            phase: Phase::Idle,
            passes: 0,
            last: pass::Outcome::default(),
            fights: fights::Fights::default(),
            ready: Readiness::default(),
            store_problem: None,
            stale_since: Tick::ZERO,
            seen_refusals: Vec::new(),
            ending: None,
        }
    }

    /// Takes one input and says what to do about it.
    pub fn handle(&mut self, now: Tick, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Remembered(env) => self.remembered = Some(env),
            Input::Recalled(memory, warm) => self.recall(now, *memory, warm),
            Input::Store(event) => self.store(now, event),
            Input::Kernel(event) => self.kernel(event),
            Input::Touched(touches) => self.fights.touched(now, touches),
            Input::File => self.publish(&mut effects),
            Input::Host(facts) => self.host(now, facts, &mut effects),
            Input::Own(own) => self.dumped(now, own, &mut effects),
            Input::Applied(results) => self.applied(now, &results, &mut effects),
            Input::Claimed(result) => self.claimed(now, result, &mut effects),
            Input::Plane(outcome) => self.converged(outcome),
        }
        self.proceed(now, &mut effects);
        effects
    }

    /// Something of [`next_deadline`](Self::next_deadline) is due.
    pub fn tick(&mut self, now: Tick) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.proceed(now, &mut effects);
        effects
    }

    /// When to call [`tick`](Self::tick) if nothing else happens.
    pub fn next_deadline(&self) -> Tick {
        let next = self.pace.next().min(self.fights.next());
        let pass = if matches!(self.phase, Phase::Idle) { next } else { Tick::MAX };
        let beside = self.vanished.next().min(self.memories.next()).min(self.unfit_at());
        pass.min(self.claim.next(self.settings.renew_margin)).min(beside)
    }

    /// Peers, admitted and refused; none before the first snapshot.
    pub fn peers(&self) -> Option<&PeerTable> {
        self.peers.as_ref()
    }

    /// Our own subnets, once claimed.
    pub fn own_subnets(&self) -> Option<Subnets> {
        self.own
    }

    /// Our lease as the store shows it.
    pub fn shown_lease(&self) -> Option<&Lease> {
        self.leases.shown.as_ref()
    }

    /// Whether the node is ready, and why not.
    pub fn readiness(&self) -> &Readiness {
        &self.ready
    }

    /// Passes begun since the start.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// Whether no pass is running and none is due.
    pub fn is_quiet(&self, now: Tick) -> bool {
        matches!(self.phase, Phase::Idle) && self.next_deadline() > now
    }

    /// Whether steps are held back for a while: somebody keeps undoing them, or peers vanished in a doubtful way.
    pub fn is_holding(&self) -> bool {
        self.fights.next() != Tick::MAX || self.vanished.is_held()
    }

    /// The plan that is being applied.
    pub fn applying(&self) -> Option<&Plan> {
        if let Phase::Applying(plan) = &self.phase { Some(plan) } else { None }
    }

    fn kernel(&mut self, event: KernelEvent) {
        self.host_stale |= event != KernelEvent::Own;
        self.pace.mark();
    }

    fn proceed(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        self.vanished_due(now);
        self.memory_due(now, effects);
        self.unfit_due(now, effects);
        self.claim_if_due(now, effects);
        if self.fights.due(now) {
            self.pace.mark();
        }
        self.begin_if_due(now, effects);
        self.announce(effects);
    }
}
