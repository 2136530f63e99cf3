use std::collections::BTreeMap;
use std::time::Duration;

use crate::admit::claim::Claim;
use crate::model::lease::{Lease, OwnLease};
use crate::model::net::Subnets;
use crate::store::{StoreError, StoreEvent};

/// The rules of leasing as a value: no clock, no I/O. The model that every store must match, and the engine of the
/// memory store. Times are durations since some start that the caller chooses; they must not go back.
#[derive(Clone, Debug, Default)]
pub struct LeaseBook {
    entries: BTreeMap<Subnets, Entry>,
    revision: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    lease: Lease,
    revision: u64,
    expires: Option<Duration>,
}

impl LeaseBook {
    /// Acquires, republishes or renews: what `Store::claim` promises. Returns the lease and what watchers are sent.
    pub fn claim(
        &mut self,
        now: Duration,
        claim: &Claim,
        ttl: Duration,
    ) -> Result<(OwnLease, Vec<StoreEvent>), StoreError> {
        let mut events = self.expire(now);
        let choice = claim.choose(self.leases(), &[])?;
        let own = choice.own.and_then(|own| self.entries.get(&own));
        let reserved = own.is_some_and(|entry| entry.expires.is_none());
        let lease = claim.lease(choice.subnets, own.map(|entry| &entry.lease));
        if let Some(given_up) = choice.own.filter(|own| *own != choice.subnets) {
            self.entries.remove(&given_up);
            self.revision += 1;
            events.push(StoreEvent::Removed(vec![given_up]));
        }
        let expected = self.revision_of(&choice.subnets);
        let ttl = (!reserved).then_some(ttl);
        events.extend(self.put(now, lease, expected, ttl)?);
        let lease = self.entries[&choice.subnets].lease.clone();
        Ok((OwnLease { lease, expires_in: ttl }, events))
    }

    /// Writes a lease if the one with its subnets still has the revision that the writer saw (`None`: is not there).
    /// `ttl` of `None` makes a reservation. Watchers are notified only when the record changes.
    pub fn put(
        &mut self,
        now: Duration,
        mut lease: Lease,
        expected: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<Option<StoreEvent>, StoreError> {
        let before = self.entries.get(&lease.subnets);
        if before.map(|entry| entry.revision) != expected {
            return Err(StoreError::Raced(lease.subnets.to_string()));
        }
        // A lease that begins or ceases to be a reservation is news.
        let silent = before.is_some_and(|entry| {
            entry.lease.says_the_same(&lease) && entry.lease.ttl.is_some() == ttl.is_some()
        });
        self.revision += u64::from(!silent);
        let revision = before.filter(|_| silent).map_or(self.revision, |entry| entry.revision);
        lease.epoch = before.map_or(revision, |entry| entry.lease.epoch);
        lease.ttl = ttl;
        let expires = ttl.map(|ttl| now.saturating_add(ttl));
        let event = (!silent).then(|| StoreEvent::Upsert(lease.clone()));
        self.entries.insert(lease.subnets, Entry { lease, revision, expires });
        Ok(event)
    }

    /// Forgets leases whose time has come. Returns what watchers are sent.
    pub fn expire(&mut self, now: Duration) -> Vec<StoreEvent> {
        let due = |entry: &Entry| entry.expires.is_some_and(|at| at <= now);
        let gone: Vec<Subnets> = self.entries.iter().filter(|(_, e)| due(e)).map(|(key, _)| *key).collect();
        gone.iter().filter_map(|subnets| self.remove(subnets)).collect()
    }

    /// Ends a lease, as an operator would. Returns what watchers are sent.
    pub fn remove(&mut self, subnets: &Subnets) -> Option<StoreEvent> {
        self.entries.remove(subnets)?;
        self.revision += 1;
        Some(StoreEvent::Removed(vec![*subnets]))
    }

    /// Forgets every lease in one step, as a store that lost its data. Returns what watchers are sent that see it happen.
    pub fn wipe(&mut self) -> StoreEvent {
        self.revision += 1;
        StoreEvent::Removed(std::mem::take(&mut self.entries).into_keys().collect())
    }

    /// All leases, ordered by their subnets.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.entries.values().map(|entry| &entry.lease)
    }

    /// When the lease of these subnets was last changed; `None` where there is none.
    pub fn revision_of(&self, subnets: &Subnets) -> Option<u64> {
        self.entries.get(subnets).map(|entry| entry.revision)
    }

    /// When the lease of these subnets ends; `None` for a reservation.
    pub fn expiry_of(&self, subnets: &Subnets) -> Option<Duration> {
        self.entries.get(subnets)?.expires
    }

    /// How many changes there were.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

#[cfg(test)]
mod tests;
