use std::collections::{BTreeMap, VecDeque};
use std::future::ready;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use futures_core::stream::BoxStream;

use crate::admit::book::LeaseBook;
use crate::admit::claim::Claim;
use crate::model::lease::{Lease, OwnLease};
use crate::model::net::Subnets;
use crate::store::{Answer, Entry, Listed, Shown, Store, StoreError, StoreEvent, StoredConfig, Version};

/// A store in this process, for tests and simulated worlds: a [`LeaseBook`] with a clock that the owner moves.
/// Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    book: LeaseBook,
    config: Option<Vec<u8>>,
    /// How often the net-conf was written.
    config_version: u64,
    now: Duration,
    ttl: Option<Duration>,
    watchers: BTreeMap<u64, Watcher>,
    next_watcher: u64,
}

#[derive(Debug, Default)]
struct Watcher {
    queue: VecDeque<StoreEvent>,
    waker: Option<Waker>,
}

/// flannel's length of a lease.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl MemoryStore {
    /// An empty store that grants leases of 24 hours.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, granting leases of another length.
    pub fn with_ttl(ttl: Duration) -> Self {
        let store = Self::default();
        store.lock().ttl = Some(ttl);
        store
    }

    /// Sets the net-conf.
    pub fn set_config(&self, json: impl Into<Vec<u8>>) {
        let mut inner = self.lock();
        let (json, first) = (json.into(), inner.config.is_none());
        inner.config = Some(json.clone());
        inner.config_version += 1;
        let mut events = vec![StoreEvent::Config(json)];
        if first {
            events.push(inner.snapshot());
        }
        inner.notify(&events);
    }

    /// Moves the clock, ending leases on the way. Time since the start; going back does nothing.
    pub fn set_time(&self, now: Duration) {
        let mut inner = self.lock();
        inner.now = inner.now.max(now);
        let now = inner.now;
        let events = inner.book.expire(now);
        inner.notify(&events);
    }

    /// `Store::claim`, at once.
    pub fn claim_now(&self, claim: &Claim) -> Result<OwnLease, StoreError> {
        let mut inner = self.lock();
        let (now, ttl) = (inner.now, inner.ttl.unwrap_or(DAY));
        let (own, events) = inner.book.claim(now, claim, ttl)?;
        inner.notify(&events);
        Ok(own)
    }

    /// Puts a lease in, whoever holds its subnets; `None` as `ttl` reserves them. For tests of what others may write.
    pub fn insert(&self, lease: Lease, ttl: Option<Duration>) {
        let mut inner = self.lock();
        let (now, expected) = (inner.now, inner.book.revision_of(&lease.subnets));
        let events: Vec<_> = inner.book.put(now, lease, expected, ttl).into_iter().flatten().collect();
        inner.notify(&events);
    }

    /// Ends a lease.
    pub fn remove(&self, subnets: &Subnets) {
        let mut inner = self.lock();
        let events: Vec<_> = inner.book.remove(subnets).into_iter().collect();
        inner.notify(&events);
    }

    /// Sends an event to every watcher, for instance that a record is unreadable.
    pub fn announce(&self, event: StoreEvent) {
        self.lock().notify(&[event]);
    }

    /// A copy of the book as it stands.
    pub fn book(&self) -> LeaseBook {
        self.lock().book.clone()
    }

    /// `Store::watch`, to be polled without a runtime by [`Subscription::next_now`].
    pub fn subscribe(&self) -> Subscription {
        let mut inner = self.lock();
        let id = inner.next_watcher;
        inner.next_watcher += 1;
        let mut queue = VecDeque::new();
        if let Some(config) = inner.config.clone() {
            queue.extend([StoreEvent::Config(config), inner.snapshot()]);
        }
        inner.watchers.insert(id, Watcher { queue, waker: None });
        Subscription { store: self.clone(), id }
    }

    /// A panic elsewhere leaves a book that is still whole: every change is one call.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn snapshot(&self) -> StoreEvent {
        let leases = self.book.leases().cloned().collect();
        StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign: false }
    }

    fn notify(&mut self, events: &[StoreEvent]) {
        // Nothing but the configuration is sent before there is one; the snapshot after it has it all.
        if self.config.is_none() {
            return;
        }
        for watcher in self.watchers.values_mut() {
            watcher.queue.extend(events.iter().cloned());
            if let Some(waker) = watcher.waker.take() {
                waker.wake();
            }
        }
    }
}

impl MemoryStore {
    /// One change of the book, of which the watchers are notified.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut LeaseBook, Duration) -> Result<(T, Option<StoreEvent>), StoreError>,
    ) -> Result<T, StoreError> {
        let mut inner = self.lock();
        let now = inner.now;
        let (value, event) = change(&mut inner.book, now)?;
        inner.notify(event.as_slice());
        Ok(value)
    }

    fn shown(&self, subnets: &Subnets) -> Option<Shown> {
        let inner = self.lock();
        let lease = inner.book.leases().find(|lease| lease.subnets == *subnets)?.clone();
        let left = inner.book.expiry_of(subnets).map(|at| at.saturating_sub(inner.now));
        let version = Version(inner.book.revision_of(subnets)?.to_string());
        Some(Shown { record: lease.to_record(), time: lease.ttl.zip(left), version, lease })
    }

    /// Puts a lease in place of the one that was shown.
    fn put(&self, lease: Lease, shown: Option<&Shown>, ttl: Option<Duration>) -> Result<(), StoreError> {
        let expected = shown.and_then(|shown| shown.version.0.parse().ok());
        self.change(|book, now| Ok(((), book.put(now, lease, expected, ttl)?)))
    }

    fn everything(&self) -> Vec<Entry> {
        let inner = self.lock();
        let config = inner.config.clone();
        let config = config.map(|value| Entry { key: "config".to_owned(), value, ttl: None });
        let lease = |lease: &Lease| Entry {
            key: format!("subnets/{}", lease.subnets),
            value: lease.to_record(),
            ttl: inner.book.expiry_of(&lease.subnets).map(|at| at.saturating_sub(inner.now)),
        };
        config.into_iter().chain(inner.book.leases().map(lease)).collect()
    }

    fn take(&self, entry: &Entry, replace: bool) -> Result<(), StoreError> {
        if entry.key == "config" {
            if !replace && self.lock().config.is_some() {
                return Err(StoreError::Raced(entry.key.clone()));
            }
            self.set_config(entry.value.clone());
            return Ok(());
        }
        let key = entry.key.strip_prefix("subnets/").unwrap_or(&entry.key);
        let lease = Lease::from_record(key, &entry.value);
        let lease = lease.map_err(|error| StoreError::Config(format!("{}: {error}", entry.key)))?;
        if !replace && self.shown(&lease.subnets).is_some() {
            return Err(StoreError::Raced(entry.key.clone()));
        }
        self.insert(lease, entry.ttl);
        Ok(())
    }
}

impl Store for MemoryStore {
    fn claim<'a>(&'a self, claim: &'a Claim) -> Answer<'a, OwnLease> {
        Box::pin(ready(self.claim_now(claim)))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> Answer<'a, bool> {
        let shown = self.shown(&lease.subnets);
        let there = shown.is_some_and(|shown| shown.time.is_some() && shown.lease.is_of(lease));
        if there {
            self.remove(&lease.subnets);
        }
        Box::pin(ready(Ok(there)))
    }

    fn watch(&self) -> BoxStream<'static, StoreEvent> {
        Box::pin(self.subscribe())
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn get_config(&self) -> Answer<'_, Option<StoredConfig>> {
        let inner = self.lock();
        let version = Version(inner.config_version.to_string());
        let stored = inner.config.clone().map(|json| StoredConfig { json, version });
        Box::pin(ready(Ok(stored)))
    }

    fn put_config<'a>(&'a self, json: &'a [u8], seen: Option<&'a Version>) -> Answer<'a, Version> {
        let current = self.lock().config_version;
        let expected = (current > 0).then(|| Version(current.to_string()));
        if expected.as_ref() != seen {
            return Box::pin(ready(Err(StoreError::Raced("config".to_owned()))));
        }
        self.set_config(json);
        Box::pin(ready(Ok(Version((current + 1).to_string()))))
    }

    fn list(&self) -> Answer<'_, Listed> {
        let inner = self.lock();
        let left =
            |lease: &Lease| inner.book.expiry_of(&lease.subnets).map(|at| at.saturating_sub(inner.now));
        let leases = inner.book.leases().map(|lease| (lease.clone(), left(lease))).collect();
        Box::pin(ready(Ok(Listed { leases, unreadable: Vec::new() })))
    }

    fn show<'a>(&'a self, subnets: &'a Subnets) -> Answer<'a, Option<Shown>> {
        Box::pin(ready(Ok(self.shown(subnets))))
    }

    fn reserve<'a>(&'a self, lease: &'a Lease, shown: Option<&'a Shown>) -> Answer<'a, ()> {
        Box::pin(ready(self.put(lease.clone(), shown, None)))
    }

    fn unreserve<'a>(&'a self, shown: &'a Shown) -> Answer<'a, ()> {
        let ttl = self.lock().ttl.unwrap_or(DAY);
        Box::pin(ready(self.put(shown.lease.clone(), Some(shown), Some(ttl))))
    }

    fn end<'a>(&'a self, shown: &'a Shown) -> Answer<'a, ()> {
        let subnets = shown.lease.subnets;
        Box::pin(ready(self.change(|book, _| {
            let now = book.revision_of(&subnets).map(|revision| Version(revision.to_string()));
            if now.as_ref() != Some(&shown.version) {
                return Err(StoreError::Raced(subnets.to_string()));
            }
            Ok(((), book.remove(&subnets)))
        })))
    }

    fn export(&self) -> Answer<'_, Vec<Entry>> {
        Box::pin(ready(Ok(self.everything())))
    }

    fn import<'a>(&'a self, entries: &'a [Entry], replace: bool) -> Answer<'a, ()> {
        Box::pin(ready(entries.iter().try_for_each(|entry| self.take(entry, replace))))
    }
}

/// One watcher's events; as a `Stream` it never ends.
#[derive(Debug)]
pub struct Subscription {
    store: MemoryStore,
    id: u64,
}

impl Subscription {
    /// The next event if there is one already.
    pub fn next_now(&mut self) -> Option<StoreEvent> {
        self.store.lock().watchers.get_mut(&self.id)?.queue.pop_front()
    }
}

impl Stream for Subscription {
    type Item = StoreEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StoreEvent>> {
        let mut inner = self.store.lock();
        let Some(watcher) = inner.watchers.get_mut(&self.id) else { return Poll::Ready(None) };
        match watcher.queue.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None => {
                watcher.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.store.lock().watchers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::claim::tests::claim;

    const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

    #[test]
    fn a_watcher_hears_the_configuration_then_everything_then_changes() {
        let store = MemoryStore::with_ttl(Duration::from_secs(60));
        let first = store.claim_now(&claim("192.168.0.1", NETWORK)).unwrap().lease;
        let mut watcher = store.subscribe();
        assert_eq!(watcher.next_now(), None);
        store.set_config(NETWORK);
        assert_eq!(watcher.next_now(), Some(StoreEvent::Config(NETWORK.into())));
        let snapshot =
            StoreEvent::Snapshot { leases: vec![first.clone()], unreadable: vec![], foreign: false };
        assert_eq!(watcher.next_now(), Some(snapshot));
        let second = store.claim_now(&claim("192.168.0.2", NETWORK)).unwrap().lease;
        assert_eq!(watcher.next_now(), Some(StoreEvent::Upsert(second.clone())));
        store.set_time(Duration::from_secs(60));
        let gone: Vec<_> = std::iter::from_fn(|| watcher.next_now()).collect();
        let mut ended = [first.subnets, second.subnets];
        ended.sort_unstable();
        assert_eq!(gone, ended.map(|subnets| StoreEvent::Removed(vec![subnets])));
    }
}
