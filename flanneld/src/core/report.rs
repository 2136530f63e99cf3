//! Parts of the status that are made for each request: our lease, the peers, how long passes took.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use super::status::millis;
use super::{NodeCore, Tick};

/// Our lease in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReport {
    /// Time until it ends; none for a reservation, which never ends.
    pub left_ms: Option<u64>,
    /// Time until it is renewed.
    pub renewal_ms: Option<u64>,
}

/// An admitted peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its name, where its lease has one.
    pub node: Option<String>,
    /// Its subnets, IPv4 first.
    pub subnets: Vec<String>,
    /// The addresses that packets for it are sent to, IPv4 first.
    pub public: Vec<String>,
    /// Why it can't be reached with this backend; none where nothing is known to be wrong.
    pub problem: Option<String>,
}

/// The upper bounds of [`PassTimes`], in microseconds. Ours: a pass without a change takes about one millisecond, a cold start
/// with a thousand peers a hundred.
pub const PASS_BOUNDS_US: [u64; 8] = [500, 1_000, 5_000, 10_000, 50_000, 100_000, 1_000_000, 10_000_000];

/// How long passes took, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassTimes {
    /// Passes that took no longer than each of [`PASS_BOUNDS_US`] and longer than the one before.
    pub counts: [u64; PASS_BOUNDS_US.len()],
    /// Passes that took longer than all of them.
    pub longer: u64,
    /// The sum of all, in microseconds.
    pub sum_us: u64,
}

impl PassTimes {
    pub(super) fn add(&mut self, took_us: u64) {
        let bound = PASS_BOUNDS_US.iter().position(|bound| took_us <= *bound);
        match bound.and_then(|n| self.counts.get_mut(n)) {
            Some(count) => *count += 1,
            None => self.longer += 1,
        }
        self.sum_us = self.sum_us.saturating_add(took_us);
    }
}

impl NodeCore {
    /// The admitted peers, ordered by their subnets, and no more than so many.
    pub fn peer_reports(&self, most: usize) -> Vec<PeerReport> {
        let leases = self.peers().into_iter().flat_map(|peers| peers.leases()).take(most);
        let report = |lease: subnet_lease::Lease| {
            let subnets: Vec<_> = lease.subnets.iter().map(|subnet| subnet.to_string()).collect();
            let public = Family::ALL.into_iter().filter_map(|family| lease.public.family(family));
            // A conflict names the subnet first.
            let begins = |conflict: &&String| {
                subnets.iter().any(|subnet| conflict.starts_with(&format!("{subnet}: ")))
            };
            PeerReport {
                problem: self.pass.last().conflicts.iter().find(begins).cloned(),
                public: public.map(|address| address.to_string()).collect(),
                node: lease.node,
                subnets,
            }
        };
        leases.map(report).collect()
    }

    /// None before a lease is held.
    pub(super) fn lease_report(&self, now: Tick) -> Option<LeaseReport> {
        self.own_subnets()?;
        let left = |at: Tick| millis(at.saturating_sub(now));
        let ends = self.publication.ends();
        let renewal = ends.map(|at| at.saturating_sub(self.settings.renew_margin));
        Some(LeaseReport { left_ms: ends.map(left), renewal_ms: renewal.map(left) })
    }
}

/// The time that a pass took, for [`PassTimes`].
pub(super) fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_counted_below_the_first_bound_that_it_does_not_exceed() {
        let mut times = PassTimes::default();
        [0, 500, 501, 10_000_001].into_iter().for_each(|took| times.add(took));
        assert_eq!((times.counts[0], times.counts[1], times.longer), (2, 1, 1));
        assert_eq!(times.sum_us, 10_001_002);
    }
}
