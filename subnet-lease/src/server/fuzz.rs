//! A million random requests beside a model that keeps every key in a map: what the server refuses changes nothing, and
//! what it accepts is what the model does. Watches, the disk, restarts and expiry are part of it.
//!
//! `FUZZ_SEED` and `FUZZ_REQUESTS` choose another run.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod model;
mod requests;

use std::collections::BTreeMap;
use std::time::Duration;

use self::model::{Model, Seen};
use self::requests::{Requests, WatchWish};
use super::check;
use super::disk::tests::IDENTITY;
use super::error::ApiError;
use super::key_range::KeyRange;
use super::limits;
use super::mvcc::Version;
use super::state::{Changes, State, Stored};
use super::watcher::{Part, Watcher, Wish};

/// What a request may be.
#[derive(Debug)]
pub(crate) enum Request {
    Put(etcd_client::proto::PbPutRequest),
    Range(etcd_client::proto::PbRangeRequest),
    Delete(etcd_client::proto::PbDeleteRequest),
    Txn(etcd_client::proto::PbTxnRequest),
    Compact(etcd_client::proto::PbCompactionRequest),
    Grant(etcd_client::proto::PbLeaseGrantRequest),
    Revoke(i64),
    KeepAlive(i64),
    TimeToLive(etcd_client::proto::PbLeaseTimeToLiveRequest),
    Leases,
    /// No request: so many milliseconds pass.
    Wait(u64),
}

/// What reached the disk.
#[derive(Default)]
struct Disk {
    versions: BTreeMap<(i64, u32), Version>,
    leases: BTreeMap<i64, i64>,
    revision: i64,
    compacted: i64,
}

impl Disk {
    fn write(&mut self, changes: &Changes) {
        self.revision = changes.revision;
        self.compacted = changes.compacted.unwrap_or(self.compacted);
        for event in &changes.events {
            self.versions.insert((event.kv.mod_revision, event.kv.sub), (*event.kv).clone());
        }
        for place in &changes.dropped {
            self.versions.remove(place);
        }
        for (id, granted) in &changes.leases {
            match granted {
                Some(ttl) => self.leases.insert(*id, *ttl),
                None => self.leases.remove(id),
            };
        }
    }

    fn stored(&self) -> Stored {
        Stored {
            identity: IDENTITY,
            revision: self.revision,
            compacted: self.compacted,
            versions: self.versions.values().cloned().collect(),
            leases: self.leases.iter().map(|(id, ttl)| (*id, *ttl)).collect(),
        }
    }
}

/// A watch, and what its client knows by it: key and revision.
struct Follower {
    watcher: Watcher,
    knows: BTreeMap<Vec<u8>, i64>,
}

impl Follower {
    fn take(&mut self, parts: Vec<Part>) {
        for response in parts.into_iter().flat_map(|part| part.responses(1, IDENTITY)) {
            for event in response.events {
                let kv = event.kv.unwrap();
                if event.r#type == 1 {
                    assert!(self.knows.remove(&kv.key).is_some(), "{kv:?} is deleted twice");
                } else {
                    let before = self.knows.insert(kv.key.clone(), kv.mod_revision);
                    assert!(before.is_none_or(|before| before <= kv.mod_revision), "{kv:?} goes back");
                }
            }
        }
    }
}

struct Run {
    state: State,
    model: Model,
    disk: Disk,
    followers: Vec<Follower>,
    now: Duration,
    accepted: usize,
    refused: usize,
}

impl Run {
    fn new() -> Self {
        let disk = Disk { revision: 1, compacted: -1, ..Disk::default() };
        Self {
            state: State::restore(disk.stored(), Duration::ZERO),
            model: Model::default(),
            disk,
            followers: Vec::new(),
            now: Duration::ZERO,
            accepted: 0,
            refused: 0,
        }
    }

    fn request(&mut self, request: Request) {
        let before = self.state.mvcc.revision();
        let outcome = self.answer(&request);
        match outcome {
            Ok(seen) => {
                self.accepted += 1;
                let expected = self.model.apply(&request, self.now, &seen);
                assert_eq!(seen, expected, "{request:?}");
            }
            Err(error) => {
                self.refused += 1;
                assert_eq!(self.state.mvcc.revision(), before, "{request:?}: {error}");
                self.model.refuses(&request, &error, self.state.mvcc.bytes());
            }
        }
        assert_eq!(self.state.mvcc.revision(), self.model.revision, "{request:?}");
    }

    fn answer(&mut self, request: &Request) -> Result<Seen, ApiError> {
        let (state, now) = (&mut self.state, self.now);
        state.begin_answer(limits::ANSWERS);
        Ok(match request {
            Request::Put(put) => {
                check::put(put)?;
                Seen::put(&state.put(put.clone())?)
            }
            Request::Range(range) => {
                check::key(&range.key)?;
                Seen::range(&state.range(range)?)
            }
            Request::Delete(delete) => {
                check::delete(delete)?;
                Seen::delete(&state.delete_range(delete)?)
            }
            Request::Txn(txn) => {
                check::txn(txn)?;
                Seen::txn(&state.txn(txn.clone())?)
            }
            Request::Compact(compact) => {
                state.compact(compact)?;
                Seen::Done
            }
            Request::Grant(grant) => {
                let granted = state.grant(grant, 1 << 40, now)?;
                Seen::Lease(granted.id, granted.ttl)
            }
            Request::Revoke(id) => {
                state.revoke(*id)?;
                Seen::Done
            }
            Request::KeepAlive(id) => Seen::Lease(*id, state.keep_alive(*id, now).ttl),
            Request::TimeToLive(wish) => {
                let answer = state.time_to_live(wish, now)?;
                Seen::TimeToLive(answer.ttl, answer.keys)
            }
            Request::Leases => {
                let mut ids: Vec<_> = state.leases()?.leases.iter().map(|lease| lease.id).collect();
                ids.sort_unstable();
                Seen::Leases(ids)
            }
            Request::Wait(ms) => {
                self.now += Duration::from_millis(*ms);
                state.expire(self.now);
                Seen::Done
            }
        })
    }

    /// What the engine does after a batch.
    fn commit(&mut self) {
        self.state.expire(self.now);
        self.model.expire(self.now);
        self.state.retain();
        self.model.compacted = self.state.mvcc.compacted();
        let changes = self.state.take_changes();
        let last = changes.events.last().map_or(0, |event| event.kv.mod_revision);
        for follower in &mut self.followers {
            let parts = follower.watcher.accept(&changes.events, last);
            follower.take(parts);
        }
        self.disk.write(&changes);
        let (changes, bytes) = self.state.mvcc.log_size();
        assert!(changes <= 2 * limits::KEEP_CHANGES && bytes <= 2 * limits::KEEP_BYTES + limits::MESSAGE);
        assert!(self.state.mvcc.bytes() <= limits::QUOTA + 2 * limits::KEEP_BYTES);
    }

    /// Each watch has been sent what its client needs to know all live keys.
    fn compare_watches(&self) {
        for follower in &self.followers {
            assert_eq!(follower.knows, self.model.live_in(&follower.watcher.range, i64::MAX));
        }
    }

    /// A watch from some revision on, whose client had read everything before that.
    fn watch(&mut self, wish: WatchWish) {
        let Some(Wish::Create { watcher, .. }) = Wish::read(wish.request) else { return };
        let revision = self.state.mvcc.revision();
        let from = (revision - wish.back).max(self.state.mvcc.compacted() + 1).max(1);
        let knows = self.model.live_in(&watcher.range, from);
        let mut follower = Follower { watcher, knows };
        follower.watcher.next = from + 1;
        loop {
            let past = self.state.mvcc.since(follower.watcher.next, &follower.watcher.range).unwrap();
            let parts = follower.watcher.accept(&past.events, past.through);
            follower.take(parts);
            if past.through >= revision {
                break;
            }
        }
        assert_eq!(follower.knows, self.model.live_in(&follower.watcher.range, i64::MAX));
        if self.followers.len() >= 16 {
            self.followers.swap_remove(wish.instead % 16);
        }
        self.followers.push(follower);
    }

    /// The server ends and starts again: all is there, and every lease has its whole time.
    fn restart(&mut self) {
        self.state = State::restore(self.disk.stored(), self.now);
        self.model.renew_all(self.now);
        let all = KeyRange::From(vec![0]);
        let found = self.state.mvcc.range(&all, 0).unwrap();
        let found: BTreeMap<_, _> =
            found.map(|version| (version.key.to_vec(), version.mod_revision)).collect();
        assert_eq!(found, self.model.live_in(&all, i64::MAX));
        assert_eq!(self.state.mvcc.revision(), self.model.revision);
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn a_million_random_requests_are_answered_as_a_map_would_or_refused_without_effect() {
    let (seed, count) = (number("FUZZ_SEED", 1), number("FUZZ_REQUESTS", 1_000_000));
    eprintln!("FUZZ_SEED={seed}");
    let (mut requests, mut run) = (Requests::new(seed), Run::new());
    let mut done = 0;
    while done < count {
        let batch = requests.batch();
        done += batch.len() as u64;
        batch.into_iter().for_each(|request| run.request(request));
        run.commit();
        match requests.between() {
            0 => run.restart(),
            1..10 => run.watch(requests.watch()),
            10..20 => run.compare_watches(),
            _ => {}
        }
    }
    eprintln!("{} accepted, {} refused, revision {}", run.accepted, run.refused, run.model.revision);
    assert!(run.accepted > run.refused && run.refused > 0, "little was tried");
}
