//! Every key's past since the last compaction, and the revisions that order it. No I/O and no clock.
//!
//! ```text
//!   keys   "a" ─▶ [v@3, v@7]         what a read at a revision searches
//!          "b" ─▶ [v@5, gone@8]
//!   log    3 5 7 8                   what a watch replays, in order; shares the versions with `keys`
//! ```
//! Writes go to revision `revision + 1` until [`Mvcc::seal`] ends it; so the writes of one transaction share one
//! revision, and a transaction that wrote nothing takes none.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;

use super::error::ApiError;
use super::key_range::KeyRange;

/// What a stored version costs beside its key and value: two list entries, counters, allocation heads.
const VERSION_OVERHEAD: usize = 160;

/// How many events one answer from the past holds at least, before it ends at the next revision's border. As etcd.
const PAST_EVENTS: usize = 1000;

/// Bytes of keys and values after which an answer from the past ends at the next revision's border.
const PAST_BYTES: usize = 1 << 20;

/// One state of one key, never changed afterwards. A version number of 0 says that the key was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) key: Arc<[u8]>,
    pub(crate) value: Box<[u8]>,
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    /// Place among the writes of the same revision.
    pub(crate) sub: u32,
    pub(crate) version: i64,
    /// Lease that the key hangs on, 0 for none.
    pub(crate) lease: i64,
}

impl Version {
    pub(crate) fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Bytes that this version takes in memory, roughly.
    pub(crate) fn weight(&self) -> usize {
        self.key.len() + self.value.len() + VERSION_OVERHEAD
    }
}

/// A change as a watch sees it, with the version that was live before its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kv: Arc<Version>,
    pub(crate) prev: Option<Arc<Version>>,
}

/// Part of the past: the matching events up to and including revision `through`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) events: Vec<Event>,
    pub(crate) through: i64,
}

#[derive(Debug)]
pub(crate) struct Mvcc {
    keys: BTreeMap<Arc<[u8]>, Vec<Arc<Version>>>,
    log: VecDeque<Event>,
    revision: i64,
    compacted: i64,
    /// Writes of the revision that is not sealed yet.
    open: u32,
    bytes: usize,
    log_bytes: usize,
    fresh: Vec<Event>,
    fresh_bytes: usize,
    dropped: Vec<(i64, u32)>,
}

impl Default for Mvcc {
    /// Nothing written: revision 1, compacted at -1, as a new etcd.
    fn default() -> Self {
        Self::restore(1, -1, [])
    }
}

impl Mvcc {
    /// Rebuilds the state from what was kept on disk; `versions` in the order of (revision, sub).
    pub(crate) fn restore(
        revision: i64,
        compacted: i64,
        versions: impl IntoIterator<Item = Version>,
    ) -> Self {
        let mut mvcc = Self {
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            revision,
            compacted,
            open: 0,
            bytes: 0,
            log_bytes: 0,
            fresh: Vec::new(),
            fresh_bytes: 0,
            dropped: Vec::new(),
        };
        for version in versions {
            mvcc.revision = mvcc.revision.max(version.mod_revision);
            mvcc.record(version);
        }
        mvcc.take_changes();
        mvcc
    }

    /// Writes one key at the open revision and returns the live version that it replaces.
    pub(crate) fn put(&mut self, key: &[u8], value: Vec<u8>, lease: i64) -> Option<Arc<Version>> {
        let at = self.revision + 1;
        let prev = self.live(key).cloned();
        let version = Version {
            key: prev.as_ref().map_or_else(|| Arc::from(key), |prev| prev.key.clone()),
            value: value.into(),
            create_revision: prev.as_ref().map_or(at, |prev| prev.create_revision),
            mod_revision: at,
            sub: self.open,
            version: prev.as_ref().map_or(1, |prev| prev.version + 1),
            lease,
        };
        self.open += 1;
        self.record(version);
        prev
    }

    /// Deletes what lives in `range` at the open revision and returns it, in the order of keys.
    pub(crate) fn delete(&mut self, range: &KeyRange) -> Vec<Arc<Version>> {
        let victims: Vec<_> = self.walk(range, i64::MAX).cloned().collect();
        for victim in &victims {
            let tombstone = Version {
                key: victim.key.clone(),
                value: Box::default(),
                create_revision: 0,
                mod_revision: self.revision + 1,
                sub: self.open,
                version: 0,
                lease: 0,
            };
            self.open += 1;
            self.record(tombstone);
        }
        victims
    }

    /// Ends the open revision; returns the store's revision, which grew only if something was written.
    pub(crate) fn seal(&mut self) -> i64 {
        self.revision = self.reading();
        self.open = 0;
        self.revision
    }

    /// Forgets what was overwritten or deleted up to revision `at`. Reads at `at` and later still answer.
    pub(crate) fn compact(&mut self, at: i64) -> Result<(), ApiError> {
        if at <= self.compacted {
            return Err(ApiError::Compacted);
        }
        if at > self.revision {
            return Err(ApiError::FutureRevision);
        }
        let touched = self.log.partition_point(|event| event.kv.mod_revision <= at);
        let keys: Vec<_> = self.log.range(..touched).map(|event| event.kv.key.clone()).collect();
        for key in keys {
            self.prune(&key, at);
        }
        let gone = self.log.partition_point(|event| event.kv.mod_revision < at);
        for event in self.log.drain(..gone).collect::<Vec<_>>() {
            self.log_bytes -= event.kv.weight();
            if event.kv.is_tombstone() {
                self.forget(&event.kv);
            }
        }
        self.compacted = at;
        Ok(())
    }

    /// Takes what changed since the last call: new events in order, and the (revision, sub) of versions forgotten.
    pub(crate) fn take_changes(&mut self) -> (Vec<Event>, Vec<(i64, u32)>) {
        self.fresh_bytes = 0;
        (mem::take(&mut self.fresh), mem::take(&mut self.dropped))
    }

    /// Bytes of new events that were not taken yet.
    pub(crate) fn unwritten(&self) -> usize {
        self.fresh_bytes
    }

    /// Revision of the last sealed write.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// Revision that a read sees now: inside a transaction that has written, the open one.
    pub(crate) fn reading(&self) -> i64 {
        self.revision + i64::from(self.open > 0)
    }

    /// Oldest revision that can still be read.
    pub(crate) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Memory taken by all versions, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a compaction could free at most: number of changes in the log, and their bytes.
    pub(crate) fn log_size(&self) -> (usize, usize) {
        (self.log.len(), self.log_bytes)
    }

    /// Revision of the change that has `newer` changes behind it.
    pub(crate) fn revision_before(&self, newer: usize) -> Option<i64> {
        let index = self.log.len().checked_sub(newer + 1)?;
        self.log.get(index).map(|event| event.kv.mod_revision)
    }

    /// The live version of one key.
    pub(crate) fn live(&self, key: &[u8]) -> Option<&Arc<Version>> {
        self.keys.get(key).and_then(|past| past.last()).filter(|version| !version.is_tombstone())
    }

    /// Every key that lives now.
    pub(crate) fn all_live(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.keys.values().filter_map(|past| past.last()).filter(|version| !version.is_tombstone())
    }

    /// The versions in `range` that were live at revision `at` (0 or less: now), in the order of keys.
    ///
    /// Refused for a revision that is compacted or not written yet.
    pub(crate) fn range<'a>(
        &'a self,
        range: &'a KeyRange,
        at: i64,
    ) -> Result<impl Iterator<Item = &'a Arc<Version>>, ApiError> {
        let at = at.max(0);
        self.readable(at)?;
        Ok(self.walk(range, if at == 0 { i64::MAX } else { at }))
    }

    /// Whether a read at revision `at` (0: now) can be answered. Unlike a read alone, one in a transaction may not
    /// name a negative revision; etcd's rule.
    pub(crate) fn readable(&self, at: i64) -> Result<(), ApiError> {
        match at {
            0 => Ok(()),
            at if at > self.reading() => Err(ApiError::FutureRevision),
            at if at < self.compacted => Err(ApiError::Compacted),
            _ => Ok(()),
        }
    }

    /// Events in `range` from revision `from` on: a bounded part of them that ends at a revision's border.
    pub(crate) fn since(&self, from: i64, range: &KeyRange) -> Result<Past, ApiError> {
        if from < self.compacted {
            return Err(ApiError::Compacted);
        }
        let start = self.log.partition_point(|event| event.kv.mod_revision < from);
        let (mut events, mut bytes, mut last) = (Vec::new(), 0, 0);
        for event in self.log.range(start..) {
            let at = event.kv.mod_revision;
            if at != last && (events.len() >= PAST_EVENTS || bytes >= PAST_BYTES) {
                return Ok(Past { events, through: last });
            }
            last = at;
            if range.contains(&event.kv.key) {
                bytes += event.kv.key.len() + event.kv.value.len();
                events.push(event.clone());
            }
        }
        Ok(Past { events, through: self.revision })
    }

    fn walk<'a>(&'a self, range: &'a KeyRange, at: i64) -> impl Iterator<Item = &'a Arc<Version>> {
        range
            .bounds()
            .into_iter()
            .flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
            .filter_map(move |(_, past)| newest(past, at))
            .filter(|version| !version.is_tombstone())
    }

    /// Files a version in the index and, unless it is older than the last compaction, in the log.
    fn record(&mut self, version: Version) {
        let before = self.keys.get(&version.key).and_then(|past| newest(past, version.mod_revision - 1));
        // A key that comes back shows nothing, even in the transaction that deleted it first.
        let prev = before.filter(|before| !before.is_tombstone() && version.version != 1).cloned();
        let version = Arc::new(version);
        self.bytes += version.weight();
        if version.mod_revision > self.compacted || !version.is_tombstone() {
            self.keys.entry(version.key.clone()).or_default().push(version.clone());
        }
        if version.mod_revision >= self.compacted {
            self.log_bytes += version.weight();
            self.fresh_bytes += version.weight();
            let event = Event { kv: version, prev };
            self.fresh.push(event.clone());
            self.log.push_back(event);
        }
    }

    /// Removes the versions of `key` that no read at `at` or later can see.
    /// A tombstone leaves the index here and the disk together with its log entry.
    fn prune(&mut self, key: &Arc<[u8]>, at: i64) {
        let Some(past) = self.keys.get_mut(key) else { return };
        let old = past.partition_point(|version| version.mod_revision <= at);
        let keep = usize::from(old > 0 && !past[old - 1].is_tombstone());
        let gone: Vec<_> = past.drain(..old - keep).collect();
        if past.is_empty() {
            self.keys.remove(key);
        }
        for version in gone.iter().filter(|version| !version.is_tombstone()) {
            self.forget(version);
        }
    }

    fn forget(&mut self, version: &Version) {
        self.bytes -= version.weight();
        self.dropped.push((version.mod_revision, version.sub));
    }
}

fn newest(past: &[Arc<Version>], at: i64) -> Option<&Arc<Version>> {
    let later = past.partition_point(|version| version.mod_revision <= at);
    past[..later].last()
}

#[cfg(test)]
mod tests;
