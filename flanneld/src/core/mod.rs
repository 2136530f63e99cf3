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
//!   beside it, never waiting for it:  Claim ─▶ Claimed      our lease in the store is a wish, too
//! ```
//!
//! Gate: nothing is written before the network's configuration, our own lease and the first snapshot of the store are
//! known. Every event sets *dirty* and carries no other meaning; a lost, doubled or late one can do no harm.

mod digest;
mod drift;
mod fights;
mod host;
mod listen;
mod membership;
mod memory;
mod netconf;
mod pace;
mod pass;
mod planes;
mod provenance;
mod publication;
mod ready;
mod report;
mod rules;
mod saved;
mod share;
mod status;
mod underlay;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use backends::kernel::{KernelError, KernelEvent, OpError, Own, Touch};
use backends::plane::{PlaneOutcome, PlaneWish};
use backends::rules::{RuleNames, RuleSettings};
use backends::{Facts, Owner, Plan};
use serde::{Deserialize, Serialize};
use subnet_lease::{
    Claim, Lease, NetworkId, OwnLease, PeerTable, StoreError, StoreEvent, SubnetEnv, Subnets,
};

use crate::exit::Exit;
use crate::host::iface::IfaceWish;
pub use host::Changed;
use host::HostSettings;
pub use listen::Listen;
use membership::{Configured, Membership, Us};
use memory::Memories;
pub use memory::{Hold, Memory};
pub use netconf::without_secrets;
use pass::Pass;
use planes::Planes;
pub use provenance::Fact;
use publication::Publication;
pub use ready::Readiness;
pub use report::{LeaseReport, PASS_BOUNDS_US, PassTimes, PeerReport};
use rules::Rules;
pub use share::{Arbiter, Share};
pub use status::{
    ContendedReport, FailureReport, LISTED, PassReport, Refused, Stale, Status, StatusRequest, UnderlayReport,
};
use underlay::Underlay;

/// Time since boot, suspend included.
pub type Tick = Duration;

/// The node's configuration, as far as the core needs it. Recordings hold it flat, with these names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Settings {
    /// Which network of this host; its tag is on every link we make.
    pub network: NetworkId,
    /// Which underlay to use.
    pub iface: IfaceWish,
    /// Which traffic rules to install, and how.
    #[serde(flatten)]
    pub rules: RuleSettings,
    /// What the network's rules are called in the kernel.
    #[serde(default, skip_serializing_if = "RuleNames::are_flannels")]
    pub rule_names: RuleNames,
    /// Time between two audits of rules in iptables, which sends no notifications.
    #[serde(default)]
    pub iptables_resync: Duration,
    /// Keep a blackhole route for our own subnets.
    pub blackhole_route: bool,
    /// Renew the lease this long before it ends.
    pub renew_margin: Duration,
    /// Time after the start until the daemon ends because no named interface fits; without one it waits for ever.
    #[serde(default)]
    pub iface_wait: Option<Duration>,
    /// Whether tunnel devices leave checksums to the hardware; none is what the kernel does well.
    #[serde(default)]
    pub tx_checksum: Option<bool>,
    /// The addresses of the store, where it is given by address; no peer's subnet may have one of them in it.
    #[serde(default)]
    pub store_addresses: Vec<IpAddr>,
    /// Time for which peers are kept that vanished from the store in a doubtful way; zero keeps none.
    pub vanish_hold: Duration,
    /// This node's name, for the operators of other nodes.
    pub node: Option<String>,
    /// A random number of this run, for what must differ between nodes.
    pub seed: u64,
}

/// Everything that can happen.
#[derive(Debug, Clone)]
pub enum Input {
    /// What an earlier run left in subnet.env. A hint; comes first, if at all.
    Remembered(SubnetEnv),
    /// What an earlier run knew, and whether the host has been up since. Comes before the store's first answer, if at all.
    Recalled(Box<Memory>, bool),
    /// An event of the store.
    Store(StoreEvent),
    /// The kernel notifies that something changed.
    Kernel(KernelEvent),
    /// Who touched what: a hint that comes before the event that something changed.
    Touched(Vec<Touch>),
    /// What the other networks of this host have. It comes before any other input.
    Shared(Vec<Share>),
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
    /// Our network has this of the host.
    Share(Share),
    /// From now on, pass on those of the kernel's notifications that concern this.
    Listen(Box<Listen>),
    /// Read what the host is.
    ReadHost,
    /// Read what may be ours.
    ReadOwn(Owner),
    /// Perform these steps.
    Apply(Arc<Plan>),
    /// Publish our lease in the store.
    Claim(Box<Claim>),
    /// The wishes for what is not kernel state, one for each plane. A plane without a wish is emptied.
    Plane(Arc<Vec<PlaneWish>>),
    /// Write subnet.env, if its content differs.
    Publish(SubnetEnv),
    /// Keep this for the next start.
    Remember(Box<Memory>),
    /// Our subnet is someone else's now: new pods must not get addresses from it.
    Withdraw(String),
    /// Publish whether the node is ready.
    Announce(Readiness),
    /// End with this code; the kernel's state stays.
    Exit(Exit),
}

/// The daemon.
pub struct NodeCore {
    settings: Settings,
    underlay: Underlay,
    membership: Membership,
    publication: Publication,
    pass: Pass,
    memories: Memories,
    host_settings: HostSettings,
    planes: Planes,
    rules: Rules,
    /// The readiness that was announced last.
    ready: Readiness,
    /// What was shared last.
    shared: Option<Share>,
    /// Why the daemon ends.
    ending: Option<String>,
}

impl NodeCore {
    /// A node that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        let mut membership = Membership::default();
        membership.hold_for(settings.vanish_hold);
        Self {
            underlay: Underlay::new(),
            membership,
            publication: Publication::default(),
            pass: Pass::new(settings.seed),
            memories: Memories::default(),
            host_settings: HostSettings::default(),
            planes: Planes::default(),
            rules: Rules::default(),
            ready: Readiness::default(),
            shared: None,
            ending: None,
            settings,
        }
    }

    /// Takes one input and returns what to do about it.
    pub fn handle(&mut self, now: Tick, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Remembered(env) => self.publication.remember(env),
            Input::Recalled(memory, warm) => self.recall(now, *memory, warm),
            Input::Store(event) => self.store(now, event),
            Input::Kernel(event) => self.kernel(event),
            Input::Touched(touches) => self.pass.touched(now, touches),
            Input::Shared(others) => self.shared_by_others(now, others),
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
        let underlay = self.underlay.unfit_at(self.settings.iface_wait);
        let claim = self.publication.next(self.settings.renew_margin);
        let parts = [self.pass.next(), self.membership.hold_ends(), self.memories.next(), underlay, claim];
        parts.into_iter().fold(Tick::MAX, Tick::min)
    }

    /// Peers, admitted and refused; none before the first snapshot.
    pub fn peers(&self) -> Option<&PeerTable> {
        self.membership.peers()
    }

    /// Our own subnets, once claimed.
    pub fn own_subnets(&self) -> Option<Subnets> {
        self.publication.own()
    }

    /// Our lease as the store shows it.
    pub fn shown_lease(&self) -> Option<&Lease> {
        self.membership.shown()
    }

    /// Whether the node is ready, and why not.
    pub fn readiness(&self) -> &Readiness {
        &self.ready
    }

    /// Passes begun since the start.
    pub fn passes(&self) -> u64 {
        self.pass.begun()
    }

    /// Whether no pass is running and none is due.
    pub fn is_quiet(&self, now: Tick) -> bool {
        self.pass.is_idle() && self.next_deadline() > now
    }

    /// Whether steps are held back for a while: somebody keeps undoing them, or peers vanished in a doubtful way.
    pub fn is_holding(&self) -> bool {
        self.pass.fights().next() != Tick::MAX || self.membership.is_held()
    }

    /// The plan that is being applied.
    pub fn applying(&self) -> Option<&Plan> {
        self.pass.applying()
    }

    fn kernel(&mut self, event: KernelEvent) {
        self.underlay.note(event);
        self.pass.mark();
    }

    fn store(&mut self, now: Tick, event: StoreEvent) {
        self.pass.mark_fresh();
        self.memories.remember_soon(now);
        let stale = if let StoreEvent::Stale(reason) = &event { Some(reason.clone()) } else { None };
        self.membership.answered(now, stale);
        match event {
            StoreEvent::Config(written) => {
                if self.membership.configure(written) == Configured::InForce {
                    self.choose_external(now);
                    self.snapshot(now);
                }
            }
            StoreEvent::Snapshot { leases, unreadable, foreign } => {
                self.memories.answered();
                self.membership.wait((leases, unreadable, foreign));
                self.snapshot(now);
                self.look_for_twin(now);
            }
            StoreEvent::Upsert(lease) => {
                let (own, node) = (self.publication.own(), self.settings.node.as_deref());
                let us = self.underlay.external().map(|external| Us { own, public: external.public, node });
                let concerns_us = self.publication.concerns(&lease);
                let before = self.membership.shown().cloned();
                self.membership.upsert(lease, us);
                self.publication.note_reservation(before.as_ref(), self.membership.shown());
                if concerns_us {
                    self.look_for_twin(now);
                }
            }
            StoreEvent::Removed(gone) => self.membership.removed(now, &gone),
            StoreEvent::Unreadable { key, reason } => self.membership.unreadable(key, reason),
            StoreEvent::Gone { key } => self.membership.gone(&key),
            StoreEvent::Stale(_) => self.go_by_memory(now),
        }
    }

    /// Turns a waiting snapshot into peers, once configuration and underlay are known. A later one replaces all.
    fn snapshot(&mut self, now: Tick) {
        let Some(external) = self.underlay.external() else { return };
        let (own, node) = (self.publication.own(), self.settings.node.as_deref());
        let (us, remembered) = (Us { own, public: external.public, node }, self.memories.in_use());
        let (before, guarded) = (self.membership.shown().cloned(), self.guarded());
        self.membership.take_snapshot(now, us, remembered, guarded, || self.memories.take_warm());
        self.publication.note_reservation(before.as_ref(), self.membership.shown());
    }

    fn proceed(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if self.membership.end_hold(now) {
            self.memories.remember_soon(now);
            self.pass.mark_fresh();
        }
        // A daemon that starts in the middle of the hold goes on with it.
        if self.membership.hold_began() {
            self.memories.remember_now(now);
        }
        self.memory_due(now, effects);
        self.unfit_due(now, effects);
        self.claim_if_due(now, effects);
        self.begin_if_due(now, effects);
        self.share(effects);
        self.announce(effects);
    }
}
