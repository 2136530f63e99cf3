//! Leases on virtual time: who granted what for how long, and which keys go when it ends. No clock of its own.
//!
//! Time stands still while the server is down: a restart gives every lease its full time again, as a new etcd leader
//! does. A lease can therefore live longer than promised, never shorter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::error::ApiError;

/// Time since the server started.
pub(crate) type Tick = Duration;

/// Shortest lease, in seconds; shorter wishes get this. etcd's figure with its default election timeout.
pub(crate) const MIN_TTL: i64 = 2;

/// Longest lease, in seconds; longer wishes are refused. etcd's figure.
pub(crate) const MAX_TTL: i64 = 9_000_000_000;

#[derive(Debug)]
struct Granted {
    ttl: i64,
    deadline: Tick,
    keys: BTreeSet<Arc<[u8]>>,
}

/// What one lease is like now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LeaseStatus {
    /// Seconds granted.
    pub(crate) granted: i64,
    /// Whole seconds left.
    pub(crate) left: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<i64, Granted>,
    deadlines: BTreeSet<(Tick, i64)>,
}

impl Leases {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// Starts a lease of `ttl` seconds; returns the seconds granted.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64, now: Tick) -> Result<i64, ApiError> {
        if ttl > MAX_TTL {
            return Err(ApiError::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(ApiError::LeaseExists);
        }
        let ttl = ttl.max(MIN_TTL);
        let deadline = after(now, ttl);
        self.leases.insert(id, Granted { ttl, deadline, keys: BTreeSet::new() });
        self.deadlines.insert((deadline, id));
        Ok(ttl)
    }

    /// Ends a lease; returns the keys that hung on it, in order.
    pub(crate) fn revoke(&mut self, id: i64) -> Result<Vec<Arc<[u8]>>, ApiError> {
        let lease = self.leases.remove(&id).ok_or(ApiError::LeaseNotFound)?;
        self.deadlines.remove(&(lease.deadline, id));
        Ok(lease.keys.into_iter().collect())
    }

    /// Gives a lease its full time again; returns that time in seconds.
    pub(crate) fn keep_alive(&mut self, id: i64, now: Tick) -> Result<i64, ApiError> {
        let lease = self.leases.get_mut(&id).ok_or(ApiError::LeaseNotFound)?;
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = after(now, lease.ttl);
        self.deadlines.insert((lease.deadline, id));
        Ok(lease.ttl)
    }

    /// Moves a key from one lease to another; 0 stands for none.
    pub(crate) fn attach(&mut self, key: &Arc<[u8]>, from: i64, to: i64) {
        if let Some(lease) = self.leases.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&to) {
            lease.keys.insert(key.clone());
        }
    }

    pub(crate) fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    pub(crate) fn status(&self, id: i64, now: Tick) -> Option<LeaseStatus> {
        let lease = self.leases.get(&id)?;
        Some(LeaseStatus {
            granted: lease.ttl,
            left: i64::try_from(lease.deadline.saturating_sub(now).as_secs()).unwrap_or(MAX_TTL),
        })
    }

    /// The keys of a lease, in order.
    pub(crate) fn keys(&self, id: i64) -> impl Iterator<Item = &[u8]> {
        self.leases.get(&id).into_iter().flat_map(|lease| lease.keys.iter().map(|key| &**key))
    }

    /// All leases, the one that ends first at the front.
    pub(crate) fn ids(&self) -> impl Iterator<Item = i64> {
        self.deadlines.iter().map(|(_, id)| *id)
    }

    /// The leases whose time is over.
    pub(crate) fn expired(&self, now: Tick) -> impl Iterator<Item = i64> {
        self.deadlines.iter().take_while(move |(deadline, _)| *deadline <= now).map(|(_, id)| *id)
    }

    /// When the next lease ends.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

fn after(now: Tick, ttl: i64) -> Tick {
    now.saturating_add(Duration::from_secs(ttl.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(name: &str) -> Arc<[u8]> {
        Arc::from(name.as_bytes())
    }

    #[test]
    fn a_lease_ends_after_its_time_unless_kept_alive() {
        let mut leases = Leases::default();
        assert_eq!(leases.grant(7, 10, SECOND), Ok(10));
        assert_eq!(leases.next_deadline(), Some(11 * SECOND));
        assert_eq!(leases.expired(10 * SECOND).count(), 0);
        assert_eq!(leases.keep_alive(7, 10 * SECOND), Ok(10));
        assert_eq!(leases.expired(11 * SECOND).count(), 0);
        assert_eq!(leases.expired(20 * SECOND).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn a_revoked_lease_gives_up_its_keys_in_order_and_is_gone() {
        let mut leases = Leases::default();
        leases.grant(7, 10, SECOND).unwrap();
        leases.grant(8, 10, SECOND).unwrap();
        for name in ["b", "a", "c"] {
            leases.attach(&key(name), 0, 7);
        }
        leases.attach(&key("c"), 7, 8);
        assert_eq!(leases.revoke(7), Ok(vec![key("a"), key("b")]));
        assert_eq!(leases.revoke(7), Err(ApiError::LeaseNotFound));
        assert_eq!(leases.keep_alive(7, SECOND), Err(ApiError::LeaseNotFound));
        assert_eq!(leases.status(8, 5 * SECOND).map(|lease| lease.left), Some(6));
        assert_eq!(leases.keys(8).collect::<Vec<_>>(), [b"c"]);
        assert_eq!(leases.next_deadline(), Some(11 * SECOND));
    }

    #[test]
    fn wishes_for_impossible_times_are_raised_or_refused() {
        let mut leases = Leases::default();
        assert_eq!(leases.grant(1, 0, SECOND), Ok(MIN_TTL));
        assert_eq!(leases.grant(2, -5, SECOND), Ok(MIN_TTL));
        assert_eq!(leases.grant(3, MAX_TTL + 1, SECOND), Err(ApiError::LeaseTtlTooLarge));
        assert_eq!(leases.grant(1, 5, SECOND), Err(ApiError::LeaseExists));
    }
}
