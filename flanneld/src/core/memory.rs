//! What a node knew, for its next start: with it the network goes up while the store can't be asked, and a store that lost its
//! data is distinguished from a cluster that left.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use subnet_lease::{Lease, Subnets};
use tracing::warn;

use super::membership::Configured;
use super::saved::{Held, Saved};
use super::{Changed, Effect, NodeCore, Tick};

/// Changes are remembered together, so long after the first. Ours: a power failure loses little, and a cluster where
/// somebody always joins writes little.
const AFTER: Duration = Duration::from_secs(5);
/// How long a store that sends nothing is waited for: etcd elects a leader in a second or two.
const PATIENCE: Duration = Duration::from_secs(3);

/// Shown until the store has answered.
const UNHEARD: &str = "the store has not answered yet: going by what was known before the start";

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The net-conf as it stood in the store.
    pub config: Vec<u8>,
    /// Our own lease.
    pub own: Lease,
    /// Those of the peers that were admitted.
    pub peers: Vec<Lease>,
    /// Settings of the host that we changed since it started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Changed>,
    /// The hold that is on, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
}

/// Peers that vanished from the store and are kept for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The end of the hold, since the host started.
    pub until: Tick,
    /// The peers; their leases are among those remembered.
    pub vanished: Vec<Subnets>,
}

/// Where the memory stands: that of an earlier run, and that for a later one.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memories {
    /// Of an earlier run, until the store has answered or it is used.
    earlier: Option<Earlier>,
    /// Our lease as it was last granted, in this run or an earlier one.
    own: Option<Lease>,
    /// There is one of a run of ours since the host started.
    warm: bool,
    /// The memory is in use: the store has not answered yet.
    in_use: bool,
    /// When to remember what changed.
    due: Option<Tick>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Earlier {
    memory: Memory,
    /// The host has not restarted since: its kernel still has the remembered state.
    warm: bool,
    /// When it is used if the store sends nothing.
    at: Tick,
}

impl Memories {
    pub(super) fn next(&self) -> Tick {
        let use_at = self.earlier.as_ref().map(|earlier| earlier.at);
        [use_at, self.due].into_iter().flatten().min().unwrap_or(Tick::MAX)
    }

    /// Whether the memory is in use.
    pub(super) fn in_use(&self) -> bool {
        self.in_use
    }

    /// Whether a daemon of ours ran before since the host started, so that the kernel is as it left it.
    pub(super) fn is_warm(&self) -> bool {
        self.warm
    }

    /// Our lease as it was last granted, in this run or an earlier one.
    pub(super) fn own(&self) -> Option<&Lease> {
        self.own.as_ref()
    }

    /// The store has answered: the memory is no longer used.
    pub(super) fn answered(&mut self) {
        self.in_use = false;
    }

    /// Our claim was granted.
    pub(super) fn granted(&mut self, now: Tick, lease: Lease) {
        self.own = Some(lease);
        self.remember_soon(now);
    }

    /// The leases by which the kernel's state was made, before the first snapshot of the store.
    pub(super) fn take_warm(&mut self) -> Option<Vec<Lease>> {
        let earlier = self.earlier.take().filter(|earlier| earlier.warm)?;
        Some(with_own(earlier.memory))
    }

    /// Something that is to be remembered changed.
    pub(super) fn remember_soon(&mut self, now: Tick) {
        self.due.get_or_insert(now + AFTER);
    }

    /// Something changed that can't be read again later.
    pub(super) fn remember_now(&mut self, now: Tick) {
        self.due = Some(now);
    }

    pub(super) fn save<'a>(&'a self, to: &mut Saved<'a>) {
        to.memories = Held::Borrowed(self);
    }

    pub(super) fn restore(from: &mut Saved<'_>) -> Self {
        from.memories.take().unwrap_or_default()
    }
}

fn with_own(memory: Memory) -> Vec<Lease> {
    memory.peers.into_iter().chain([memory.own]).collect()
}

impl NodeCore {
    /// What an earlier run knew; comes before the store's first answer, if at all.
    pub(super) fn recall(&mut self, now: Tick, memory: Memory, warm: bool) {
        if warm {
            self.host_settings.changed.clone_from(&memory.settings);
        }
        self.membership.recall(now, memory.own.subnets, memory.hold.clone(), warm);
        self.memories.own = Some(memory.own.clone());
        self.memories.warm = warm;
        self.memories.earlier = Some(Earlier { memory, warm, at: now + PATIENCE });
    }

    /// While the store sends nothing, the network comes up as it was.
    pub(super) fn go_by_memory(&mut self, now: Tick) {
        if self.membership.peers().is_some() || self.membership.is_waiting() {
            return;
        }
        let Some(Earlier { memory, .. }) = self.memories.earlier.take() else { return };
        warn!(subnets = %memory.own.subnets, peers = memory.peers.len(), "{UNHEARD}");
        if self.membership.network().is_none()
            && self.membership.configure(memory.config.clone()) == Configured::InForce
        {
            self.choose_external(now);
        }
        self.membership.doubt(UNHEARD);
        self.memories.in_use = true;
        self.publication.own_by_memory(memory.own.subnets);
        self.membership.wait((with_own(memory), Vec::new(), false));
        self.snapshot(now);
        self.pass.mark_fresh();
    }

    pub(super) fn memory_due(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if let Some(earlier) = self.memories.earlier.as_mut().filter(|earlier| earlier.at <= now) {
            // Once: where a snapshot came and waits for an interface, nothing older is needed.
            earlier.at = Tick::MAX;
            self.go_by_memory(now);
        }
        if self.memories.due.is_some_and(|due| due <= now) {
            effects.extend(self.memory().map(|memory| Effect::Remember(Box::new(memory))));
            self.memories.due = None;
        }
    }

    /// What changed and is not on its way to the file yet; for the end of a run.
    pub fn unremembered(&self) -> Option<Memory> {
        self.memories.due.and_then(|_| self.memory())
    }

    /// None before there is anything to remember.
    fn memory(&self) -> Option<Memory> {
        if self.memories.in_use {
            return None;
        }
        let peers = self.membership.peers()?;
        let hold = self.membership.hold();
        let shown = self.membership.shown().filter(|shown| Some(shown.subnets) == self.publication.own());
        // A moment after somebody else took it, the store shows theirs.
        let shown = shown.filter(|own| self.underlay.external().is_some_and(|e| e.public == own.public));
        // A store that lost our lease with the others shows none until it is claimed again.
        let own = shown.or_else(|| self.memories.own().filter(|_| hold.is_some()))?;
        Some(Memory {
            config: self.membership.network()?.written.clone(),
            own: own.clone(),
            peers: peers.leases().collect(),
            settings: self.host_settings.changed.clone(),
            hold,
        })
    }
}
