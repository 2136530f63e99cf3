//! Counts objects that others changed: found different, without a change of ours or of the wish.

use std::time::Duration;

use backends::Key;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::Tick;

/// The shortest time between two log lines.
const OFTEN: Duration = Duration::from_secs(60);

/// The names of the kinds of objects, in the order of [`Key`].
const KINDS: [&str; 8] =
    ["link", "setting", "address", "link-state", "forwarding-entry", "neighbour", "route", "rules"];

/// Counts by kind.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Drift {
    all: [u64; KINDS.len()],
    /// The counts that were logged last.
    logged: [u64; KINDS.len()],
    logged_at: Option<Tick>,
}

impl Drift {
    pub(super) fn count(&mut self, key: &Key) {
        self.all[kind(key)] += 1;
    }

    /// Kinds that were found changed, and how often.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().zip(self.all).filter(|(_, count)| *count > 0)
    }

    /// Logs what is new, unless something was logged a moment ago.
    pub(super) fn report(&mut self, now: Tick) {
        if self.all == self.logged || self.logged_at.is_some_and(|at| at + OFTEN > now) {
            return;
        }
        let new =
            KINDS.into_iter().zip(self.all.into_iter().zip(self.logged).map(|(all, logged)| all - logged));
        let new: Vec<_> = new.filter(|(_, n)| *n > 0).map(|(kind, n)| format!("{kind}={n}")).collect();
        info!("found changed by others and put right: {}", new.join(" "));
        (self.logged, self.logged_at) = (self.all, Some(now));
    }
}

fn kind(key: &Key) -> usize {
    match key {
        Key::Link(_) => 0,
        Key::Sysctl(..) => 1,
        Key::Address(..) => 2,
        Key::Up(_) => 3,
        Key::Fdb(..) => 4,
        Key::Neigh(..) => 5,
        Key::Route(..) => 6,
        Key::Table(_) | Key::Iptables(_) | Key::Trusted(_) => 7,
    }
}
