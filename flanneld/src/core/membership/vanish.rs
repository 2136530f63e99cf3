//! A store that lost its data is not a cluster that left.
//!
//! ```text
//!   most peers gone in one step ─┐
//!   another history ─────────────┼─▶ kept, not ready ──▶ each claims its own again ──▶ as before
//!   our own lease gone with them ┘          └── the hold is over, our own is back ──▶ those still missing are gone
//! ```
//!
//! Every other lease that ends is removed at once.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use subnet_lease::{Lease, Subnets};
use tracing::{info, warn};

use super::Membership;
use crate::core::{Hold, Tick};

/// Peers that are kept although the store does not show them.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::core) struct Vanished {
    /// How long peers are kept; zero keeps none. From the settings.
    #[serde(skip)]
    hold: Duration,
    /// The end of the hold that is on.
    until: Option<Tick>,
    /// The hold that was on when the daemon before this one ended, until the first snapshot.
    recalled: Option<Hold>,
    /// A hold began or ended since the memory was written.
    changed: bool,
    /// Our own lease, as an earlier run knew it.
    own: Option<Subnets>,
}

impl Membership {
    /// How long peers are kept.
    pub(in crate::core) fn hold_for(&mut self, hold: Duration) {
        self.vanished.hold = hold;
    }

    /// When to decide about the peers that are kept.
    pub(in crate::core) fn hold_ends(&self) -> Tick {
        self.vanished.until.unwrap_or(Tick::MAX)
    }

    /// Whether any are kept.
    pub(in crate::core) fn is_held(&self) -> bool {
        self.vanished.until.is_some()
    }

    /// The hold that is on, for the next start.
    pub(in crate::core) fn hold(&self) -> Option<Hold> {
        let vanished = self.peers.iter().flat_map(|peers| peers.kept()).collect();
        self.vanished.until.map(|until| Hold { until, vanished })
    }

    /// Whether a hold began since this was last asked.
    pub(in crate::core) fn hold_began(&mut self) -> bool {
        std::mem::take(&mut self.vanished.changed)
    }

    /// What an earlier run knew of our lease and of a hold. Ticks of before a restart of the host mean nothing: then the
    /// hold begins anew.
    pub(in crate::core) fn recall(&mut self, now: Tick, own: Subnets, hold: Option<Hold>, warm: bool) {
        let longest = now + self.vanished.hold;
        let until = |hold: &Hold| if warm { hold.until.min(longest) } else { longest };
        self.vanished.recalled = hold.map(|hold| Hold { until: until(&hold), ..hold });
        self.vanished.own = Some(own);
    }

    /// Leases ended in one step of the store. A single one ended by its time or by an operator.
    pub(in crate::core) fn removed(&mut self, now: Tick, gone: &[Subnets]) {
        if let Some((leases, ..)) = &mut self.leases.waiting {
            leases.retain(|lease| !gone.contains(&lease.subnets));
        }
        let ours = self.leases.shown.take_if(|lease| gone.contains(&lease.subnets));
        if let Some(lease) = &ours {
            warn!(subnets = %lease.subnets, "the store no longer shows our lease; claiming it again");
        }
        let Some(peers) = &mut self.peers else { return };
        let doubtful = gone.len() > 1 && (ours.is_some() || peers.is_most(gone));
        if doubtful && self.vanished.hold > Duration::ZERO {
            peers.keep(gone);
            return self.hold_vanished(now, "in one step");
        }
        for subnets in gone {
            peers.remove(subnets);
        }
    }

    /// A later snapshot: peers that it lacks are gone, unless the store seems to have lost data.
    pub(super) fn believe(
        &mut self,
        now: Tick,
        own: Option<Subnets>,
        leases: Vec<Lease>,
        unreadable: Vec<(String, String)>,
        foreign: bool,
    ) {
        self.resume_hold(&leases, &unreadable);
        let Some(peers) = &mut self.peers else { return };
        let missing = peers.missing(&leases, &unreadable);
        let has = |own: Subnets| {
            leases.iter().any(|lease| lease.subnets == own)
                || unreadable.iter().any(|(key, _)| *key == own.to_string())
        };
        let why = if foreign {
            Some("from a store with another history")
        } else if own.or(self.vanished.own).is_some_and(|own| !has(own)) {
            Some("together with our own lease")
        } else {
            peers.is_most(&missing).then_some("between two looks")
        };
        let why = why.filter(|_| !missing.is_empty() && self.vanished.hold > Duration::ZERO);
        if why.is_some() {
            peers.keep(&missing);
        }
        peers.replace(leases, unreadable);
        if let Some(why) = why {
            self.hold_vanished(now, why);
        }
    }

    /// A peer that was kept when the daemon before this one ended, and is still missing, is kept until the same moment.
    fn resume_hold(&mut self, leases: &[Lease], unreadable: &[(String, String)]) {
        let (Some(hold), Some(peers)) = (self.vanished.recalled.take(), &mut self.peers) else { return };
        let vanished: BTreeSet<_> = hold.vanished.into_iter().collect();
        let mut missing = peers.missing(leases, unreadable);
        missing.retain(|subnets| vanished.contains(subnets));
        if missing.is_empty() || self.vanished.hold == Duration::ZERO {
            return;
        }
        warn!(
            vanished = missing.len(),
            "the daemon before this one kept peers that vanished: they are kept on"
        );
        peers.keep(&missing);
        self.vanished.until = Some(hold.until);
    }

    fn hold_vanished(&mut self, now: Tick, how: &str) {
        let Some(vanished) = self.peers.as_ref().map(|peers| peers.vanished()).filter(|n| *n > 0) else {
            return;
        };
        let hold = self.vanished.hold;
        warn!(
            vanished,
            "peers vanished from the store {how}: kept for {hold:?}, in which they can claim their leases again"
        );
        self.vanished.until = Some(now + hold);
        self.vanished.changed = true;
    }

    /// Ends a hold that is over; whether it did. It ends when all are back, or with its time. While the store can't be
    /// followed or lacks our own lease, the others can't have come back either.
    pub(in crate::core) fn end_hold(&mut self, now: Tick) -> bool {
        let (Some(until), Some(peers)) = (self.vanished.until, &mut self.peers) else { return false };
        let vanished = peers.vanished();
        if vanished == 0 {
            info!("every peer that had vanished is back in the store");
        } else if until > now {
            return false;
        } else if self.problem.is_some() || self.leases.shown.is_none() {
            self.vanished.until = Some(now + self.vanished.hold);
            return false;
        } else {
            warn!(vanished, "peers did not come back into the store: they are gone");
            peers.let_go();
        }
        self.vanished.until = None;
        true
    }
}
