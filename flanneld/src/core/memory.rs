//! What a node knew, for its next start: how the network goes up while the store can't be asked, and how a store that lost
//! its data is told from a cluster that left.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use subnet_lease::Lease;
use tracing::warn;

use super::{Changed, Effect, NodeCore, Tick};

/// Changes are remembered together, so long after the first. Ours: what is lost with a power failure is little, and what
/// is written in a cluster where somebody always joins is, too.
const AFTER: Duration = Duration::from_secs(5);
/// A store that says nothing at all is waited for so long: etcd elects a leader in a second or two.
const PATIENCE: Duration = Duration::from_secs(3);

/// Said until the store is heard.
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
}

/// Where the memory stands: that of an earlier run, and that for a later one.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Memories {
    /// Of an earlier run, until the store was heard or it came to be used.
    earlier: Option<Earlier>,
    /// Our lease of an earlier run.
    pub(super) own: Option<Lease>,
    /// We go by memory: the store has not shown anything yet.
    pub(super) in_use: bool,
    /// When to remember what changed.
    due: Option<Tick>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Earlier {
    memory: Memory,
    /// The host has not restarted since: its kernel still does what is remembered.
    warm: bool,
    /// When it is used if the store says nothing.
    at: Tick,
}

impl Memories {
    pub(super) fn next(&self) -> Tick {
        let use_at = self.earlier.as_ref().map(|earlier| earlier.at);
        [use_at, self.due].into_iter().flatten().min().unwrap_or(Tick::MAX)
    }

    /// The leases that the kernel still knows, before the first look at the store.
    pub(super) fn take_warm(&mut self) -> Option<Vec<Lease>> {
        let earlier = self.earlier.take().filter(|earlier| earlier.warm)?;
        Some(with_own(earlier.memory))
    }
}

fn with_own(memory: Memory) -> Vec<Lease> {
    memory.peers.into_iter().chain([memory.own]).collect()
}

impl NodeCore {
    /// What an earlier run knew; comes before the store is heard, if at all.
    pub(super) fn recall(&mut self, now: Tick, memory: Memory, warm: bool) {
        if warm {
            self.host_settings.changed.clone_from(&memory.settings);
        }
        self.memories.own = Some(memory.own.clone());
        self.memories.earlier = Some(Earlier { memory, warm, at: now + PATIENCE });
    }

    /// Without a word from the store the network goes up as it was.
    pub(super) fn go_by_memory(&mut self, now: Tick) {
        if self.peers.is_some() || self.leases.is_waiting() {
            return;
        }
        let Some(Earlier { memory, .. }) = self.memories.earlier.take() else { return };
        warn!(subnets = %memory.own.subnets, peers = memory.peers.len(), "{UNHEARD}");
        if self.network.is_none() {
            self.config(now, memory.config.clone());
        }
        self.store_problem.get_or_insert_with(|| UNHEARD.to_owned());
        self.memories.in_use = true;
        self.own = Some(memory.own.subnets);
        self.leases.wait(with_own(memory));
        self.snapshot(now);
        self.pace.mark_fresh();
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

    /// Something that is to be remembered changed.
    pub(super) fn remember_soon(&mut self, now: Tick) {
        self.memories.due.get_or_insert(now + AFTER);
    }

    /// Something changed that can't be had again.
    pub(super) fn remember_now(&mut self, now: Tick) {
        self.memories.due = Some(now);
    }

    /// What changed and is not on its way to the file yet; for the end of a run.
    pub fn unremembered(&self) -> Option<Memory> {
        self.memories.due.and_then(|_| self.memory())
    }

    /// None while it is doubtful.
    fn memory(&self) -> Option<Memory> {
        if self.memories.in_use || self.vanished.is_held() {
            return None;
        }
        let peers = self.peers.as_ref()?;
        let own = self.leases.shown.clone().filter(|shown| Some(shown.subnets) == self.own)?;
        // A moment after somebody else took it, the store shows theirs.
        let own = self.external.as_ref().is_some_and(|e| e.public == own.public).then_some(own)?;
        Some(Memory {
            config: self.network.as_ref()?.written.clone(),
            own,
            peers: peers.leases().collect(),
            settings: self.host_settings.changed.clone(),
        })
    }
}
