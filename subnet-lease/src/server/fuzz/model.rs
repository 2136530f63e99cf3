//! What the store should hold: for each key, every state it had. Slow and plain.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest, PbPutResponse, PbRangeRequest,
    PbRangeResponse, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnResponse,
};

use super::Request;
use crate::server::error::ApiError;
use crate::server::key_range::KeyRange;
use crate::server::limits::{LEASES, QUOTA};

/// What an answer says, without its header.
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Done,
    Put(Option<PbKeyValue>),
    Range { rows: Vec<PbKeyValue>, more: bool, count: i64 },
    Delete { deleted: i64, before: Vec<PbKeyValue> },
    Txn { succeeded: bool, ops: Vec<Option<Self>> },
    Lease(i64, i64),
    TimeToLive(i64, Vec<Vec<u8>>),
    Leases(Vec<i64>),
}

impl Seen {
    pub(super) fn put(answer: &PbPutResponse) -> Self {
        Self::Put(answer.prev_kv.clone())
    }

    pub(super) fn range(answer: &PbRangeResponse) -> Self {
        Self::Range { rows: answer.kvs.clone(), more: answer.more, count: answer.count }
    }

    pub(super) fn delete(answer: &PbDeleteResponse) -> Self {
        Self::Delete { deleted: answer.deleted, before: answer.prev_kvs.clone() }
    }

    pub(super) fn txn(answer: &PbTxnResponse) -> Self {
        let op = |op: &PbTxnOpResponse| match op {
            PbTxnOpResponse::ResponsePut(put) => Self::put(put),
            PbTxnOpResponse::ResponseRange(range) => Self::range(range),
            PbTxnOpResponse::ResponseDeleteRange(delete) => Self::delete(delete),
            PbTxnOpResponse::ResponseTxn(txn) => Self::txn(txn),
        };
        let ops = answer.responses.iter().map(|one| one.response.as_ref().map(op)).collect();
        Self::Txn { succeeded: answer.succeeded, ops }
    }
}

pub(super) struct Model {
    /// Every state of each key with its revision; none where it was deleted.
    keys: BTreeMap<Vec<u8>, Vec<(i64, Option<PbKeyValue>)>>,
    /// Seconds granted, and when the lease ends.
    leases: BTreeMap<i64, (i64, Duration)>,
    pub(super) revision: i64,
    pub(super) compacted: i64,
    wrote: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), leases: BTreeMap::new(), revision: 1, compacted: -1, wrote: false }
    }
}

/// A transaction whose comparisons are done.
enum Step<'a> {
    Op(Option<&'a PbTxnOpRequest>),
    Nested(bool, Vec<Self>),
}

impl Model {
    /// Does what the server has accepted, and returns what it must answer. Only the number of a lease is taken from
    /// the answer, where the server chooses it.
    pub(super) fn apply(&mut self, request: &Request, now: Duration, seen: &Seen) -> Seen {
        let expected = match request {
            Request::Put(put) => self.put(put),
            Request::Range(range) => self.range(range),
            Request::Delete(delete) => self.delete(delete),
            Request::Txn(txn) => {
                let (succeeded, steps) = self.choose(txn);
                self.run(succeeded, steps)
            }
            Request::Compact(compact) => {
                self.compacted = compact.revision;
                Seen::Done
            }
            Request::Grant(grant) => {
                let Seen::Lease(id, _) = seen else { panic!("{seen:?}") };
                assert!(grant.id == *id || grant.id == 0 && *id != 0, "{grant:?}: {id}");
                let ttl = grant.ttl.max(2);
                let ends = now + Duration::from_secs(ttl.unsigned_abs());
                assert!(self.leases.insert(*id, (ttl, ends)).is_none(), "lease {id} was there");
                Seen::Lease(*id, ttl)
            }
            Request::Revoke(id) => {
                assert!(self.leases.contains_key(id), "lease {id} was not there");
                self.end(*id);
                Seen::Done
            }
            Request::KeepAlive(id) => {
                let lease = self.leases.get_mut(id);
                Seen::Lease(
                    *id,
                    lease.map_or(0, |(ttl, ends)| {
                        *ends = now + Duration::from_secs(ttl.unsigned_abs());
                        *ttl
                    }),
                )
            }
            Request::TimeToLive(wish) => {
                let left = self.leases.get(&wish.id).map(|(_, ends)| ends.saturating_sub(now).as_secs());
                let keys = if wish.keys { self.of_lease(wish.id) } else { Vec::new() };
                Seen::TimeToLive(left.map_or(-1, |left| i64::try_from(left).unwrap()), keys)
            }
            Request::Leases => Seen::Leases(self.leases.keys().copied().collect()),
            Request::Wait(_) => {
                self.expire(now);
                Seen::Done
            }
        };
        self.seal();
        expected
    }

    /// What is refused must have a reason.
    pub(super) fn refuses(&self, request: &Request, error: &ApiError, bytes: usize) {
        match error {
            ApiError::NoSpace => {
                assert!(bytes > QUOTA || self.leases.len() >= LEASES, "{bytes} bytes are no reason")
            }
            ApiError::TooLarge
            | ApiError::AnswerTooLarge(..)
            | ApiError::TooManyOps
            | ApiError::DuplicateKey => {}
            _ => assert!(!self.may(request), "{request:?}: {error}"),
        }
    }

    fn may(&self, request: &Request) -> bool {
        match request {
            Request::Put(put) => {
                !put.key.is_empty()
                    && (!put.ignore_value || put.value.is_empty())
                    && (!put.ignore_lease || put.lease == 0)
                    && (put.lease == 0 || self.leases.contains_key(&put.lease))
                    && (!(put.ignore_value || put.ignore_lease) || self.live(&put.key).is_some())
            }
            Request::Range(range) => {
                !range.key.is_empty()
                    && (range.revision <= 0
                        || range.revision <= self.revision && range.revision >= self.compacted)
            }
            Request::Delete(delete) => !delete.key.is_empty(),
            Request::Revoke(id) => self.leases.contains_key(id),
            Request::Grant(grant) => !self.leases.contains_key(&grant.id) && grant.ttl <= 9_000_000_000,
            Request::Compact(compact) => {
                compact.revision > self.compacted && compact.revision <= self.revision
            }
            // Its operations have reasons of their own.
            Request::Txn(_) => false,
            _ => true,
        }
    }

    pub(super) fn expire(&mut self, now: Duration) {
        let mut ended: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, (_, ends))| *ends <= now)
            .map(|(id, (_, ends))| (*ends, *id))
            .collect();
        ended.sort_unstable();
        for (_, id) in ended {
            self.end(id);
            self.seal();
        }
    }

    pub(super) fn renew_all(&mut self, now: Duration) {
        for (ttl, ends) in self.leases.values_mut() {
            *ends = now + Duration::from_secs(ttl.unsigned_abs());
        }
    }

    /// Keys of a range that lived at a revision, with the revision of their last change.
    pub(super) fn live_in(&self, range: &KeyRange, at: i64) -> BTreeMap<Vec<u8>, i64> {
        let rows = self.keys.iter().filter(|(key, _)| range.contains(key));
        rows.filter_map(|(key, states)| Some((key.clone(), state_at(states, at)?.mod_revision))).collect()
    }

    fn live(&self, key: &[u8]) -> Option<&PbKeyValue> {
        state_at(self.keys.get(key)?, i64::MAX)
    }

    fn of_lease(&self, id: i64) -> Vec<Vec<u8>> {
        let live = self.keys.values().filter_map(|states| state_at(states, i64::MAX));
        live.filter(|row| id != 0 && row.lease == id).map(|row| row.key.clone()).collect()
    }

    fn end(&mut self, id: i64) {
        for key in self.of_lease(id) {
            self.set(&key, None);
        }
        self.leases.remove(&id);
    }

    fn seal(&mut self) {
        self.revision += i64::from(std::mem::take(&mut self.wrote));
    }

    fn set(&mut self, key: &[u8], row: Option<PbKeyValue>) {
        self.wrote = true;
        let states = self.keys.entry(key.to_vec()).or_default();
        states.push((self.revision + 1, row));
        if states.len() > 200 {
            let old = states.partition_point(|(revision, _)| *revision <= self.compacted);
            states.drain(..old.saturating_sub(1));
        }
    }

    fn put(&mut self, put: &PbPutRequest) -> Seen {
        let before = self.live(&put.key).cloned();
        let kept = before.clone().unwrap_or_default();
        let row = PbKeyValue {
            key: put.key.clone(),
            value: if put.ignore_value { kept.value } else { put.value.clone() },
            create_revision: if before.is_some() { kept.create_revision } else { self.revision + 1 },
            mod_revision: self.revision + 1,
            version: kept.version + 1,
            lease: if put.ignore_lease { kept.lease } else { put.lease },
        };
        assert!(
            row.lease == 0 || self.leases.contains_key(&row.lease),
            "{put:?} on a lease that is not there"
        );
        self.set(&put.key, Some(row));
        Seen::Put(before.filter(|_| put.prev_kv))
    }

    fn delete(&mut self, delete: &PbDeleteRequest) -> Seen {
        let range = KeyRange::new(&delete.key, &delete.range_end);
        let before: Vec<_> = self.rows(&range, i64::MAX).cloned().collect();
        before.iter().for_each(|row| self.set(&row.key, None));
        let deleted = i64::try_from(before.len()).unwrap();
        Seen::Delete { deleted, before: if delete.prev_kv { before } else { Vec::new() } }
    }

    fn rows(&self, range: &KeyRange, at: i64) -> impl Iterator<Item = &PbKeyValue> {
        let keys = self.keys.iter().filter(move |(key, _)| range.contains(key));
        keys.filter_map(move |(_, states)| state_at(states, at))
    }

    fn range(&self, range: &PbRangeRequest) -> Seen {
        let at = if range.revision <= 0 { i64::MAX } else { range.revision };
        let keys = KeyRange::new(&range.key, &range.range_end);
        let mut rows: Vec<_> = self.rows(&keys, at).cloned().collect();
        let count = i64::try_from(rows.len()).unwrap();
        if range.count_only {
            return Seen::Range { rows: Vec::new(), more: false, count };
        }
        let bounds = [
            (range.min_mod_revision, range.max_mod_revision),
            (range.min_create_revision, range.max_create_revision),
        ];
        let limit = usize::try_from(range.limit).unwrap_or(0);
        // etcd's rule: without order and bounds the rows after the limit are never looked at.
        if limit > 0 && range.sort_order == 0 && bounds == [(0, 0); 2] {
            rows.truncate(limit + 1);
        }
        rows.retain(|row| {
            let values = [row.mod_revision, row.create_revision];
            values.iter().zip(bounds).all(|(value, (least, most))| {
                (least == 0 || *value >= least) && (most == 0 || *value <= most)
            })
        });
        let order = |a: &PbKeyValue, b: &PbKeyValue| match range.sort_target {
            1 => a.version.cmp(&b.version),
            2 => a.create_revision.cmp(&b.create_revision),
            3 => a.mod_revision.cmp(&b.mod_revision),
            4 => a.value.cmp(&b.value),
            _ => a.key.cmp(&b.key),
        };
        match (range.sort_order, range.sort_target) {
            (2, _) => rows.sort_by(|a, b| order(b, a)),
            (_, 0) => {}
            _ => rows.sort_by(order),
        }
        let more = limit > 0 && rows.len() > limit;
        if more {
            rows.truncate(limit);
        }
        if range.keys_only {
            rows.iter_mut().for_each(|row| row.value = Vec::new());
        }
        Seen::Range { rows, more, count }
    }

    fn choose<'a>(&self, txn: &'a PbTxnRequest) -> (bool, Vec<Step<'a>>) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let step = |op: &'a Option<PbTxnOpRequest>| match op {
            Some(PbTxnOpRequest::RequestTxn(nested)) => {
                let (succeeded, steps) = self.choose(nested);
                Step::Nested(succeeded, steps)
            }
            other => Step::Op(other.as_ref()),
        };
        (succeeded, ops.iter().map(|op| step(&op.request)).collect())
    }

    fn holds(&self, compare: &PbCompare) -> bool {
        let range = KeyRange::new(&compare.key, &compare.range_end);
        let rows: Vec<_> = self.rows(&range, i64::MAX).collect();
        if rows.is_empty() {
            return compare.target != 3 && matches(compare, &PbKeyValue::default());
        }
        rows.into_iter().all(|row| matches(compare, row))
    }

    fn run(&mut self, succeeded: bool, steps: Vec<Step<'_>>) -> Seen {
        let ops = steps.into_iter().map(|step| {
            Some(match step {
                Step::Nested(succeeded, steps) => self.run(succeeded, steps),
                Step::Op(op) => match op? {
                    PbTxnOpRequest::RequestPut(put) => self.put(put),
                    PbTxnOpRequest::RequestRange(range) => self.range(range),
                    PbTxnOpRequest::RequestDeleteRange(delete) => self.delete(delete),
                    PbTxnOpRequest::RequestTxn(_) => unreachable!("they are steps of their own"),
                },
            })
        });
        Seen::Txn { succeeded, ops: ops.collect() }
    }
}

fn state_at(states: &[(i64, Option<PbKeyValue>)], at: i64) -> Option<&PbKeyValue> {
    let later = states.partition_point(|(revision, _)| *revision <= at);
    states[..later].last()?.1.as_ref()
}

fn matches(compare: &PbCompare, row: &PbKeyValue) -> bool {
    let wanted = compare.target_union.as_ref();
    let number = |value: i64, wanted: Option<i64>| value.cmp(&wanted.unwrap_or(0));
    let order = match compare.target {
        0 => number(
            row.version,
            wanted.and_then(|u| if let PbTargetUnion::Version(n) = u { Some(*n) } else { None }),
        ),
        1 => number(
            row.create_revision,
            wanted.and_then(|u| if let PbTargetUnion::CreateRevision(n) = u { Some(*n) } else { None }),
        ),
        2 => number(
            row.mod_revision,
            wanted.and_then(|u| if let PbTargetUnion::ModRevision(n) = u { Some(*n) } else { None }),
        ),
        3 => match wanted {
            Some(PbTargetUnion::Value(value)) => row.value.cmp(value),
            _ => row.value.as_slice().cmp(&[]),
        },
        4 => number(
            row.lease,
            wanted.and_then(|u| if let PbTargetUnion::Lease(n) = u { Some(*n) } else { None }),
        ),
        _ => Ordering::Equal,
    };
    match compare.result {
        0 => order == Ordering::Equal,
        1 => order == Ordering::Greater,
        2 => order == Ordering::Less,
        3 => order != Ordering::Equal,
        _ => true,
    }
}
