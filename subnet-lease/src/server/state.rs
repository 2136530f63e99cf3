//! Everything the server knows, and what each request does to it. Pure: requests in, answers out.
//!
//! Split by request: reads and single writes here, transactions in `txn.rs`, leases in `lease_state.rs`.

use std::cell::Cell;
use std::sync::Arc;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbResponseHeader,
};

use super::error::ApiError;
use super::key_range::KeyRange;
use super::lease::{Leases, Tick};
use super::limits::{ANSWER, KEEP_BYTES, KEEP_CHANGES, QUOTA, SMALL};
use super::mvcc::{Event, Mvcc, Version};

/// What a row of an answer costs beside its key and value, in bytes.
pub(super) const ROW: usize = 64;

/// Names of this store, drawn once and kept with its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
}

/// What must reach the disk before the requests that caused it are answered.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) events: Vec<Event>,
    /// (revision, sub) of versions that compaction removed.
    pub(crate) dropped: Vec<(i64, u32)>,
    /// Leases granted (with their seconds) and ended, in order.
    pub(crate) leases: Vec<(i64, Option<i64>)>,
    pub(crate) revision: i64,
    /// The oldest readable revision, when it moved.
    pub(crate) compacted: Option<i64>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.leases.is_empty() && self.compacted.is_none()
    }
}

/// What the disk gave back at start.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) identity: Identity,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    /// In the order of (revision, sub).
    pub(crate) versions: Vec<Version>,
    /// Lease and seconds granted.
    pub(crate) leases: Vec<(i64, i64)>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) mvcc: Mvcc,
    pub(super) leases: Leases,
    pub(super) lease_changes: Vec<(i64, Option<i64>)>,
    identity: Identity,
    compacted_on_disk: i64,
    /// Bytes of keys and values in the answer that is being made.
    answered: Cell<usize>,
    /// What is free for that answer.
    room: Cell<usize>,
    /// The answer was counted before it is made.
    pub(super) counted: Cell<bool>,
    /// What the comparisons of the transaction at hand may still look at.
    pub(super) comparable: Cell<usize>,
}

impl State {
    /// Takes up where the disk left off. Every lease gets its full time, counted from `now`.
    pub(crate) fn restore(stored: Stored, now: Tick) -> Self {
        let mut leases = Leases::default();
        for (id, ttl) in stored.leases {
            // The disk holds one row for each lease, with a time that was once granted.
            let _ = leases.grant(id, ttl, now);
        }
        let mvcc = Mvcc::restore(stored.revision, stored.compacted, stored.versions);
        for version in mvcc.all_live() {
            leases.attach(&version.key, 0, version.lease);
        }
        Self {
            leases,
            lease_changes: Vec::new(),
            identity: stored.identity,
            compacted_on_disk: mvcc.compacted(),
            answered: Cell::new(0),
            room: Cell::new(usize::MAX),
            counted: Cell::new(false),
            comparable: Cell::new(0),
            mvcc,
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// The header of an answer that speaks for the present.
    pub(crate) fn header(&self) -> PbResponseHeader {
        header(self.identity, self.mvcc.revision())
    }

    /// The next answer may take `room` bytes.
    pub(crate) fn begin_answer(&self, room: usize) {
        self.answered.set(0);
        self.room.set(room);
    }

    /// Bytes that the last answer takes.
    pub(crate) fn answered(&self) -> usize {
        self.answered.get()
    }

    /// Bytes of changes that are not on the disk.
    pub(crate) fn unwritten(&self) -> usize {
        self.mvcc.unwritten()
    }

    pub(crate) fn range(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, ApiError> {
        let answer = self.read(request)?;
        Ok(PbRangeResponse { header: Some(self.header()), ..answer })
    }

    pub(crate) fn put(&mut self, request: PbPutRequest) -> Result<PbPutResponse, ApiError> {
        self.check_put(&request)?;
        self.check_space()?;
        let answer = self.write(request);
        self.mvcc.seal();
        Ok(PbPutResponse { header: Some(self.header()), ..answer })
    }

    pub(crate) fn delete_range(&mut self, request: &PbDeleteRequest) -> Result<PbDeleteResponse, ApiError> {
        self.check_delete(request)?;
        let answer = self.delete(request);
        self.mvcc.seal();
        Ok(PbDeleteResponse { header: Some(self.header()), ..answer })
    }

    pub(crate) fn compact(
        &mut self,
        request: &PbCompactionRequest,
    ) -> Result<PbCompactionResponse, ApiError> {
        self.mvcc.compact(request.revision)?;
        Ok(PbCompactionResponse { header: Some(self.header()) })
    }

    /// Forgets old history when there is an eighth more of it than is kept.
    pub(crate) fn retain(&mut self) {
        let (changes, bytes) = self.mvcc.log_size();
        let keep = if bytes > KEEP_BYTES + KEEP_BYTES / 8 { changes / 2 } else { KEEP_CHANGES };
        if changes <= keep + keep / 8 {
            return;
        }
        if let Some(at) = self.mvcc.revision_before(keep) {
            // Refused only when everything before `at` is gone already: one revision fills the history.
            let _ = self.mvcc.compact(at);
        }
    }

    /// Takes what the requests since the last call changed.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let (events, dropped) = self.mvcc.take_changes();
        let leases = std::mem::take(&mut self.lease_changes);
        let compacted = self.mvcc.compacted();
        let moved = std::mem::replace(&mut self.compacted_on_disk, compacted) != compacted;
        Changes {
            events,
            dropped,
            leases,
            revision: self.mvcc.revision(),
            compacted: moved.then_some(compacted),
        }
    }

    /// Refuses growth beyond the quota; deletes and compaction make room again.
    pub(super) fn check_space(&self) -> Result<(), ApiError> {
        if self.mvcc.bytes() > QUOTA { Err(ApiError::NoSpace) } else { Ok(()) }
    }

    pub(super) fn check_put(&self, request: &PbPutRequest) -> Result<(), ApiError> {
        if (request.ignore_value || request.ignore_lease) && self.mvcc.live(&request.key).is_none() {
            return Err(ApiError::KeyNotFound);
        }
        if request.lease != 0 && !self.leases.exists(request.lease) {
            return Err(ApiError::LeaseNotFound);
        }
        let before = self.mvcc.live(&request.key).filter(|_| request.prev_kv);
        self.charge(before.map(|before| before.weight()).into_iter())
    }

    /// Answers a range at the revision being read. Its header names that revision only.
    pub(super) fn read(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, ApiError> {
        let range = KeyRange::new(&request.key, &request.range_end);
        let found = self.mvcc.range(&range, request.revision)?;
        let header = Some(bare_header(self.mvcc.reading()));
        if request.count_only {
            let count = as_count(found.count());
            return Ok(PbRangeResponse { header, count, ..Default::default() });
        }
        let mut found: Vec<_> = found.collect();
        let count = as_count(found.len());
        let more = select(request, &mut found);
        self.charge(found.iter().map(|version| cost(request, version)))?;
        let kvs = found.into_iter().map(|version| key_value(version, !request.keys_only)).collect();
        Ok(PbRangeResponse { header, kvs, more, count })
    }

    /// Counts bytes of an answer, where they are counted; refuses it where it would be too large, before it is made.
    pub(super) fn charge(&self, rows: impl Iterator<Item = usize>) -> Result<(), ApiError> {
        if self.counted.get() {
            return Ok(());
        }
        let answered = rows.fold(self.answered.get(), usize::saturating_add);
        self.answered.set(answered);
        match answered {
            _ if answered > ANSWER => Err(ApiError::AnswerTooLarge(answered, ANSWER)),
            _ if answered > SMALL && answered > self.room.get() => Err(ApiError::TooManyRequests),
            _ => Ok(()),
        }
    }

    /// Whether a read within a transaction may be made: what it looks at, and what it answers.
    pub(super) fn check_read(&self, request: &PbRangeRequest) -> Result<(), ApiError> {
        self.mvcc.readable(request.revision)?;
        let range = KeyRange::new(&request.key, &request.range_end);
        let mut found: Vec<_> = self.mvcc.range(&range, request.revision)?.collect();
        let left = self.comparable.get().checked_sub(found.len()).ok_or(ApiError::TooManyOps)?;
        self.comparable.set(left);
        if request.count_only {
            return Ok(());
        }
        select(request, &mut found);
        self.charge(found.iter().map(|version| cost(request, version)))
    }

    /// Whether a delete that answers with what it deleted may do so.
    pub(super) fn check_delete(&self, request: &PbDeleteRequest) -> Result<(), ApiError> {
        if !request.prev_kv {
            return Ok(());
        }
        let range = KeyRange::new(&request.key, &request.range_end);
        let found: Vec<_> = self.mvcc.range(&range, 0)?.map(|version| version.weight()).collect();
        self.charge(found.into_iter())
    }

    /// Writes at the open revision; the request has passed `check_put`.
    pub(super) fn write(&mut self, request: PbPutRequest) -> PbPutResponse {
        let before = self.mvcc.live(&request.key).cloned();
        let kept = before.as_ref();
        let value = match kept {
            Some(kept) if request.ignore_value => kept.value.to_vec(),
            _ => request.value,
        };
        let lease = match kept {
            Some(kept) if request.ignore_lease => kept.lease,
            _ => request.lease,
        };
        self.mvcc.put(&request.key, value, lease);
        if let Some(written) = self.mvcc.live(&request.key) {
            self.leases.attach(&written.key, kept.map_or(0, |kept| kept.lease), lease);
        }
        let prev_kv = before.filter(|_| request.prev_kv).map(|kept| key_value(&kept, true));
        PbPutResponse { header: Some(bare_header(self.mvcc.reading())), prev_kv }
    }

    /// Deletes at the open revision.
    pub(super) fn delete(&mut self, request: &PbDeleteRequest) -> PbDeleteResponse {
        let gone = self.mvcc.delete(&KeyRange::new(&request.key, &request.range_end));
        for version in &gone {
            self.leases.attach(&version.key, version.lease, 0);
        }
        let prev_kvs =
            gone.iter().filter(|_| request.prev_kv).map(|version| key_value(version, true)).collect();
        PbDeleteResponse {
            header: Some(bare_header(self.mvcc.reading())),
            deleted: as_count(gone.len()),
            prev_kvs,
        }
    }
}

/// Bytes of a row in an answer, roughly.
fn cost(request: &PbRangeRequest, version: &Version) -> usize {
    version.key.len() + if request.keys_only { 0 } else { version.value.len() } + ROW
}

/// Filters, sorts and cuts what a range found; returns whether the limit cut something off.
/// A limit without sorting or filters cuts first, and a target without an order sorts upwards: etcd's rules.
fn select(request: &PbRangeRequest, found: &mut Vec<&Arc<Version>>) -> bool {
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    let limit = usize::try_from(request.limit).unwrap_or(0);
    if limit > 0 && request.sort_order == 0 && bounds == [0; 4] {
        found.truncate(limit + 1);
    }
    let [min_mod, max_mod, min_create, max_create] = bounds;
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    found.retain(|version| {
        within(version.mod_revision, min_mod, max_mod)
            && within(version.create_revision, min_create, max_create)
    });
    sort(request.sort_order, request.sort_target, found);
    let more = limit > 0 && found.len() > limit;
    if more {
        found.truncate(limit);
    }
    more
}

/// Sorts by the target's number in the protocol: key, version, create revision, mod revision, value. What is equal
/// stays in the order of keys, in both directions.
fn sort(order: i32, target: i32, found: &mut [&Arc<Version>]) {
    const DESCEND: i32 = 2;
    let compare = |a: &Version, b: &Version| match target {
        1 => a.version.cmp(&b.version),
        2 => a.create_revision.cmp(&b.create_revision),
        3 => a.mod_revision.cmp(&b.mod_revision),
        4 => a.value.cmp(&b.value),
        _ => a.key.cmp(&b.key),
    };
    if order == DESCEND {
        found.sort_by(|a, b| compare(b, a));
    } else if target != 0 {
        found.sort_by(|a, b| compare(a, b));
    }
}

pub(crate) fn header(identity: Identity, revision: i64) -> PbResponseHeader {
    PbResponseHeader { cluster_id: identity.cluster, member_id: identity.member, revision, raft_term: 1 }
}

/// The header of an answer inside a transaction: the revision alone.
pub(super) fn bare_header(revision: i64) -> PbResponseHeader {
    PbResponseHeader { revision, ..Default::default() }
}

pub(crate) fn key_value(version: &Version, with_value: bool) -> PbKeyValue {
    PbKeyValue {
        key: version.key.to_vec(),
        value: if with_value { version.value.to_vec() } else { Vec::new() },
        create_revision: version.create_revision,
        mod_revision: version.mod_revision,
        version: version.version,
        lease: version.lease,
    }
}

fn as_count(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}
