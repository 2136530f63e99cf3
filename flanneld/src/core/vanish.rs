//! A store that lost its data is not a cluster that left.
//!
//! ```text
//!   most peers gone in one step ─┐
//!   another history ─────────────┼─▶ kept, not ready ──▶ each claims its own again ──▶ as before
//!   our own lease gone with them ┘          └── the hold is over, our own is back ──▶ who did not come is gone
//! ```
//!
//! Everything else that ends is gone at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use subnet_lease::{Lease, Subnets};
use tracing::{info, warn};

use super::{NodeCore, Tick};

/// Peers that are kept although the store does not show them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Vanished {
    /// Until when.
    until: Option<Tick>,
}

impl Vanished {
    /// When to decide.
    pub(super) fn next(&self) -> Tick {
        self.until.unwrap_or(Tick::MAX)
    }

    /// Whether any are kept.
    pub(super) fn is_held(&self) -> bool {
        self.until.is_some()
    }
}

impl NodeCore {
    /// Leases ended in one step of the store. One alone is what an operator or the end of its time does.
    pub(super) fn removed(&mut self, now: Tick, gone: &[Subnets]) {
        self.leases.forget(gone);
        let shown = self.leases.shown.as_ref().filter(|lease| gone.contains(&lease.subnets));
        let ours_too = shown.is_some();
        if let Some(subnets) = shown.map(|lease| lease.subnets) {
            warn!(%subnets, "the store no longer shows our lease; claiming it again");
            self.leases.shown = None;
        }
        let Some(peers) = &mut self.peers else { return };
        let doubtful = gone.len() > 1 && (ours_too || peers.is_most(gone));
        if doubtful && self.settings.vanish_hold > Duration::ZERO {
            peers.keep(gone);
            return self.hold_vanished(now, "in one step");
        }
        for subnets in gone {
            peers.remove(subnets);
        }
    }

    /// A later snapshot: who is not in it is gone, unless it rather looks as if the store had lost something.
    pub(super) fn believe(
        &mut self,
        now: Tick,
        leases: Vec<Lease>,
        unreadable: Vec<(String, String)>,
        foreign: bool,
    ) {
        let Some(peers) = &mut self.peers else { return };
        let missing = peers.missing(&leases, &unreadable);
        let has = |own: Subnets| {
            leases.iter().any(|lease| lease.subnets == own)
                || unreadable.iter().any(|(key, _)| *key == own.to_string())
        };
        let own = self.own.or_else(|| self.memories.own.as_ref().map(|lease| lease.subnets));
        let why = if foreign {
            Some("from a store with another history")
        } else if own.is_some_and(|own| !has(own)) {
            Some("together with our own lease")
        } else {
            peers.is_most(&missing).then_some("between two looks")
        };
        let why = why.filter(|_| !missing.is_empty() && self.settings.vanish_hold > Duration::ZERO);
        if why.is_some() {
            peers.keep(&missing);
        }
        peers.replace(leases, unreadable);
        if let Some(why) = why {
            self.hold_vanished(now, why);
        }
    }

    fn hold_vanished(&mut self, now: Tick, how: &str) {
        let Some(vanished) = self.peers.as_ref().map(|peers| peers.vanished()).filter(|n| *n > 0) else {
            return;
        };
        let hold = self.settings.vanish_hold;
        warn!(
            vanished,
            "peers vanished from the store {how}: kept for {hold:?}, in which they can claim their leases again"
        );
        self.vanished.until = Some(now + hold);
    }

    /// The hold ends when all are back, or with its time. While we don't see the store, or it lacks our own lease, the
    /// others can't have come back either.
    pub(super) fn vanished_due(&mut self, now: Tick) {
        let (Some(until), Some(peers)) = (self.vanished.until, &mut self.peers) else { return };
        let vanished = peers.vanished();
        if vanished == 0 {
            info!("every peer that had vanished is back in the store");
            self.vanished.until = None;
            self.remember_soon(now);
        } else if until <= now && (self.store_problem.is_some() || self.leases.shown.is_none()) {
            self.vanished.until = Some(now + self.settings.vanish_hold);
        } else if until <= now {
            warn!(vanished, "peers did not come back into the store: they are gone");
            peers.let_go();
            self.vanished.until = None;
            self.remember_soon(now);
            self.pace.mark_fresh();
        }
    }
}
