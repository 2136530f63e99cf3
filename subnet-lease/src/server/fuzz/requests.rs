//! The grammar of requests: most are sensible, some are odd, and some are bytes of a request that were changed.

use etcd_client::proto::{
    PbCompactionRequest, PbCompare, PbDeleteRequest, PbLeaseGrantRequest, PbLeaseTimeToLiveRequest,
    PbPutRequest, PbRangeRequest, PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp,
    PbWatchRequest, PbWatchRequestUnion,
};
use prost::Message;

use super::Request;
use crate::server::limits::REQUEST;

pub(super) struct Requests {
    rng: fastrand::Rng,
    /// About where the store is.
    revision: i64,
}

/// A watch, how far back it begins, and whose place it takes.
pub(super) struct WatchWish {
    pub(super) request: PbWatchRequest,
    pub(super) back: i64,
    pub(super) instead: usize,
}

impl Requests {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), revision: 1 }
    }

    /// Requests that come between two commits.
    pub(super) fn batch(&mut self) -> Vec<Request> {
        (0..self.rng.usize(1..60)).map(|_| self.request()).collect()
    }

    /// What happens after a commit.
    pub(super) fn between(&mut self) -> u32 {
        self.rng.u32(0..1500)
    }

    pub(super) fn watch(&mut self) -> WatchWish {
        let (key, range_end) = self.range();
        let mut union = PbWatchRequestUnion::CreateRequest(Default::default());
        if let PbWatchRequestUnion::CreateRequest(create) = &mut union {
            (create.key, create.range_end) = (key, range_end);
            (create.prev_kv, create.fragment) = (self.rng.bool(), self.rng.bool());
        }
        let back = self.rng.i64(0..12_000);
        WatchWish {
            request: PbWatchRequest { request_union: Some(union) },
            back,
            instead: self.rng.usize(..),
        }
    }

    fn request(&mut self) -> Request {
        let request = match self.rng.u32(0..1000) {
            0..380 => Request::Put(self.put()),
            380..600 => Request::Range(self.read()),
            600..680 => Request::Delete(self.delete()),
            680..840 => Request::Txn(self.txn(2)),
            840..842 => Request::Compact(PbCompactionRequest {
                revision: self.revision - self.rng.i64(-10..3000),
                ..Default::default()
            }),
            842..880 => Request::Grant(PbLeaseGrantRequest { id: self.lease(), ttl: self.ttl() }),
            880..900 => Request::Revoke(self.lease()),
            900..950 => Request::KeepAlive(self.lease()),
            950..970 => {
                Request::TimeToLive(PbLeaseTimeToLiveRequest { id: self.lease(), keys: self.rng.bool() })
            }
            970..975 => Request::Leases,
            _ => Request::Wait(self.rng.u64(0..1500)),
        };
        self.revision += 1;
        if self.rng.u32(0..10) == 0 { self.mutate(request) } else { request }
    }

    /// Changes bytes of a request; what cannot be read any more is refused by the library and left as it was.
    fn mutate(&mut self, request: Request) -> Request {
        fn change<M: Message + Default>(rng: &mut fastrand::Rng, message: M) -> M {
            let mut bytes = message.encode_to_vec();
            for _ in 0..rng.usize(1..4) {
                if !bytes.is_empty() {
                    let at = rng.usize(..bytes.len());
                    match rng.u32(0..3) {
                        0 => bytes[at] = rng.u8(..),
                        1 => bytes[at] ^= 1 << rng.u32(0..8),
                        _ => bytes.truncate(at),
                    }
                }
            }
            M::decode(&*bytes).unwrap_or(message)
        }
        match request {
            Request::Put(put) => Request::Put(change(&mut self.rng, put)),
            Request::Range(range) => Request::Range(change(&mut self.rng, range)),
            Request::Delete(delete) => Request::Delete(change(&mut self.rng, delete)),
            Request::Txn(txn) => Request::Txn(change(&mut self.rng, txn)),
            Request::Grant(grant) => Request::Grant(change(&mut self.rng, grant)),
            other => other,
        }
    }

    fn key(&mut self) -> Vec<u8> {
        match self.rng.u32(0..200) {
            0 => Vec::new(),
            1 => vec![self.rng.u8(..)],
            2 => vec![b'k'; 3000],
            _ => format!("k{:02}", self.rng.u32(0..100)).into_bytes(),
        }
    }

    /// A key and the end of a range: mostly one key, sometimes some or all, rarely nothing.
    fn range(&mut self) -> (Vec<u8>, Vec<u8>) {
        let key = self.key();
        match self.rng.u32(0..20) {
            0 => (key, vec![0]),
            1 => (vec![0], vec![0]),
            2 | 3 => {
                let mut end = key.clone();
                if let Some(last) = end.last_mut() {
                    *last = last.saturating_add(1);
                }
                (key, end)
            }
            4 => (key, self.key()),
            _ => (key, Vec::new()),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let length = match self.rng.u32(0..20_000) {
            0 => self.rng.usize(REQUEST - 100..REQUEST + 100),
            1..10 => self.rng.usize(0..200_000),
            _ => self.rng.usize(0..40),
        };
        vec![self.rng.u8(..); length]
    }

    fn lease(&mut self) -> i64 {
        match self.rng.u32(0..40) {
            0 => -self.rng.i64(0..10),
            1 => i64::MAX,
            2 => 0,
            _ => self.rng.i64(1..40),
        }
    }

    fn ttl(&mut self) -> i64 {
        match self.rng.u32(0..20) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 => 9_000_000_000,
            _ => self.rng.i64(-2..60),
        }
    }

    fn put(&mut self) -> PbPutRequest {
        let (key, value) = (self.key(), self.value());
        let lease = if self.rng.u32(0..4) == 0 { self.lease() } else { 0 };
        PbPutRequest {
            key,
            value,
            lease,
            prev_kv: self.rng.bool(),
            ignore_value: self.rng.u32(0..20) == 0,
            ignore_lease: self.rng.u32(0..20) == 0,
        }
    }

    fn read(&mut self) -> PbRangeRequest {
        let (key, range_end) = self.range();
        let revision = match self.rng.u32(0..10) {
            0 => self.revision - self.rng.i64(-100..15_000),
            1 => -self.rng.i64(0..5),
            _ => 0,
        };
        let rng = &mut self.rng;
        let mut bound = |odds: u32| if rng.u32(0..odds) == 0 { rng.i64(-5..100_000) } else { 0 };
        let [min_mod, max_mod, min_create, max_create] = [20, 20, 20, 20].map(&mut bound);
        let limit = if self.rng.u32(0..4) == 0 { self.rng.i64(-2..20) } else { 0 };
        PbRangeRequest {
            key,
            range_end,
            limit,
            revision,
            sort_order: if self.rng.u32(0..5) == 0 { self.rng.i32(-1..4) } else { 0 },
            sort_target: if self.rng.u32(0..5) == 0 { self.rng.i32(-1..6) } else { 0 },
            serializable: self.rng.bool(),
            keys_only: self.rng.u32(0..5) == 0,
            count_only: self.rng.u32(0..8) == 0,
            min_mod_revision: min_mod,
            max_mod_revision: max_mod,
            min_create_revision: min_create,
            max_create_revision: max_create,
        }
    }

    fn delete(&mut self) -> PbDeleteRequest {
        let (key, range_end) = self.range();
        // All keys at once, but seldom.
        let range_end = if range_end == [0] && self.rng.u32(0..20) > 0 { Vec::new() } else { range_end };
        PbDeleteRequest { key, range_end, prev_kv: self.rng.bool() }
    }

    fn txn(&mut self, depth: u32) -> PbTxnRequest {
        let many = if self.rng.u32(0..500) == 0 { 140 } else { 4 };
        let compare = (0..self.rng.usize(0..3)).map(|_| self.compare()).collect();
        let success = (0..self.rng.usize(0..many)).map(|_| self.op(depth)).collect();
        let failure = (0..self.rng.usize(0..3)).map(|_| self.op(depth)).collect();
        PbTxnRequest { compare, success, failure }
    }

    fn op(&mut self, depth: u32) -> PbTxnRequestOp {
        let request = match self.rng.u32(0..100) {
            0..40 => Some(PbTxnOpRequest::RequestPut(self.put())),
            40..75 => Some(PbTxnOpRequest::RequestRange(self.read())),
            75..90 => Some(PbTxnOpRequest::RequestDeleteRange(self.delete())),
            90..98 if depth > 0 => Some(PbTxnOpRequest::RequestTxn(self.txn(depth - 1))),
            _ => None,
        };
        PbTxnRequestOp { request }
    }

    fn compare(&mut self) -> PbCompare {
        let (key, range_end) = self.range();
        let near = self.revision - self.rng.i64(-5..200);
        let target_union = match self.rng.u32(0..6) {
            0 => Some(PbTargetUnion::Version(self.rng.i64(0..4))),
            1 => Some(PbTargetUnion::CreateRevision(near * self.rng.i64(0..2))),
            2 => Some(PbTargetUnion::ModRevision(near)),
            3 => Some(PbTargetUnion::Value(self.value())),
            4 => Some(PbTargetUnion::Lease(self.lease())),
            _ => None,
        };
        let target = match &target_union {
            Some(PbTargetUnion::Version(_)) => 0,
            Some(PbTargetUnion::CreateRevision(_)) => 1,
            Some(PbTargetUnion::ModRevision(_)) => 2,
            Some(PbTargetUnion::Value(_)) => 3,
            Some(PbTargetUnion::Lease(_)) => 4,
            None => self.rng.i32(-1..6),
        };
        PbCompare { result: self.rng.i32(-1..5), target, key, range_end, target_union }
    }
}
