use proptest::prelude::*;

use super::*;

fn put(mvcc: &mut Mvcc, key: &str, value: &str) -> i64 {
    mvcc.put(key.as_bytes(), value.as_bytes().to_vec(), 0);
    mvcc.seal()
}

fn read(mvcc: &Mvcc, key: &str, at: i64) -> Result<Option<String>, ApiError> {
    let range = KeyRange::new(key.as_bytes(), b"");
    let found = mvcc.range(&range, at)?.next().map(|version| version.value.to_vec());
    Ok(found.map(|value| String::from_utf8(value).unwrap()))
}

#[test]
fn each_write_takes_a_revision_and_the_past_stays_readable() {
    let mut mvcc = Mvcc::default();
    assert_eq!([put(&mut mvcc, "a", "1"), put(&mut mvcc, "a", "2")], [2, 3]);
    assert_eq!(read(&mvcc, "a", 1), Ok(None));
    assert_eq!(read(&mvcc, "a", 2), Ok(Some("1".into())));
    assert_eq!(read(&mvcc, "a", 0), Ok(Some("2".into())));
    assert_eq!(read(&mvcc, "a", 4), Err(ApiError::FutureRevision));
}

#[test]
fn what_is_written_together_shares_a_revision_and_nothing_written_takes_none() {
    let mut mvcc = Mvcc::default();
    assert_eq!(mvcc.seal(), 1);
    mvcc.put(b"a", b"1".to_vec(), 0);
    mvcc.put(b"b", b"1".to_vec(), 0);
    assert_eq!(mvcc.reading(), 2);
    assert_eq!(mvcc.seal(), 2);
    assert!(mvcc.delete(&KeyRange::new(b"x", b"")).is_empty());
    assert_eq!(mvcc.seal(), 2);
}

#[test]
fn a_key_that_comes_back_starts_at_version_one() {
    let mut mvcc = Mvcc::default();
    put(&mut mvcc, "a", "1");
    put(&mut mvcc, "a", "2");
    mvcc.delete(&KeyRange::new(b"a", b""));
    mvcc.seal();
    put(&mut mvcc, "a", "3");
    let live = mvcc.live(b"a").unwrap();
    assert_eq!((live.version, live.create_revision, live.mod_revision), (1, 5, 5));
}

#[test]
fn compaction_forgets_what_was_overwritten_and_keeps_what_lives() {
    let mut mvcc = Mvcc::default();
    for value in ["1", "2", "3"] {
        put(&mut mvcc, "a", value);
    }
    let before = mvcc.bytes();
    assert_eq!(mvcc.compact(3), Ok(()));
    assert!(mvcc.bytes() < before);
    assert_eq!(read(&mvcc, "a", 2), Err(ApiError::Compacted));
    assert_eq!(read(&mvcc, "a", 3), Ok(Some("2".into())));
    assert_eq!(mvcc.compact(3), Err(ApiError::Compacted));
    assert_eq!(mvcc.compact(5), Err(ApiError::FutureRevision));
    assert_eq!(mvcc.since(2, &KeyRange::new(b"a", b"")), Err(ApiError::Compacted));
}

#[test]
fn an_event_shows_what_was_there_before_its_revision_not_within_it() {
    let mut mvcc = Mvcc::default();
    put(&mut mvcc, "a", "old");
    mvcc.put(b"a", b"new".to_vec(), 0);
    mvcc.delete(&KeyRange::new(b"a", b""));
    mvcc.seal();
    let past = mvcc.since(3, &KeyRange::new(b"a", b"")).unwrap();
    let before: Vec<_> =
        past.events.iter().map(|event| event.prev.as_ref().unwrap().value.to_vec()).collect();
    assert_eq!(before, [b"old", b"old"]);
}

#[test]
fn the_past_comes_in_parts_that_end_between_revisions() {
    let mut mvcc = Mvcc::default();
    for n in 0..PAST_EVENTS + 10 {
        put(&mut mvcc, "a", &n.to_string());
    }
    let all = KeyRange::new(b"a", b"");
    let part = mvcc.since(2, &all).unwrap();
    assert_eq!(part.events.len(), PAST_EVENTS);
    let rest = mvcc.since(part.through + 1, &all).unwrap();
    assert_eq!((rest.events.len(), rest.through), (10, mvcc.revision()));
}

/// Every key with its value, create revision, mod revision and version.
type Copy = BTreeMap<Vec<u8>, (Vec<u8>, i64, i64, i64)>;

/// The simplest store that could be right: a whole copy for every revision, and every event ever.
struct Model {
    copies: Vec<Copy>,
    events: Vec<(i64, Vec<u8>, bool)>,
    compacted: i64,
}

impl Model {
    fn revision(&self) -> i64 {
        i64::try_from(self.copies.len()).unwrap()
    }

    fn copy(&self, at: i64) -> &Copy {
        &self.copies[usize::try_from(at - 1).unwrap()]
    }

    fn write(&mut self, writes: &[Write]) {
        let at = self.revision() + 1;
        let mut copy = self.copies.last().unwrap().clone();
        let mut wrote = false;
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let (created, version) =
                        copy.get(key).map_or((at, 0), |(_, created, _, version)| (*created, *version));
                    copy.insert(key.clone(), (value.clone(), created, at, version + 1));
                    self.events.push((at, key.clone(), true));
                    wrote = true;
                }
                Write::Delete(range) => {
                    let gone: Vec<_> = copy.keys().filter(|key| range.contains(key)).cloned().collect();
                    for key in gone {
                        copy.remove(&key);
                        self.events.push((at, key, false));
                        wrote = true;
                    }
                }
            }
        }
        if wrote {
            self.copies.push(copy);
        }
    }
}

#[derive(Clone, Debug)]
enum Write {
    Put(Vec<u8>, Vec<u8>),
    Delete(KeyRange),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Write>),
    /// Compacts that far between the last compaction and now, in percent.
    Compact(u8),
    Restart,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(&b"ab\0\xff"[..]), 1..3)
}

fn range() -> impl Strategy<Value = KeyRange> {
    (key(), prop_oneof![Just(vec![]), Just(vec![0]), key()]).prop_map(|(key, end)| KeyRange::new(&key, &end))
}

fn step() -> impl Strategy<Value = Step> {
    let write = prop_oneof![
        3 => (key(), any::<u8>()).prop_map(|(key, value)| Write::Put(key, vec![value])),
        1 => range().prop_map(Write::Delete),
    ];
    prop_oneof![
        8 => prop::collection::vec(write, 0..4).prop_map(Step::Write),
        1 => (0..=100u8).prop_map(Step::Compact),
        1 => Just(Step::Restart),
    ]
}

/// The store beside its model and a table that gets the changes as the disk would.
struct Pair {
    mvcc: Mvcc,
    model: Model,
    disk: BTreeMap<(i64, u32), Version>,
}

impl Pair {
    fn new() -> Self {
        let model = Model { copies: vec![BTreeMap::new()], events: Vec::new(), compacted: -1 };
        Self { mvcc: Mvcc::default(), model, disk: BTreeMap::new() }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write(writes) => {
                for write in writes {
                    match write {
                        Write::Put(key, value) => drop(self.mvcc.put(key, value.clone(), 0)),
                        Write::Delete(range) => drop(self.mvcc.delete(range)),
                    }
                }
                self.mvcc.seal();
                self.model.write(writes);
            }
            Step::Compact(percent) => {
                let span = self.model.revision() - self.model.compacted;
                let at = self.model.compacted + span * i64::from(*percent) / 100;
                let possible = at > self.model.compacted;
                assert_eq!(self.mvcc.compact(at).is_ok(), possible);
                self.model.compacted = at;
            }
            Step::Restart => {
                let (revision, compacted) = (self.mvcc.revision(), self.mvcc.compacted());
                self.mvcc = Mvcc::restore(revision, compacted, self.disk.values().cloned());
            }
        }
        let (events, dropped) = self.mvcc.take_changes();
        let rows =
            events.into_iter().map(|event| ((event.kv.mod_revision, event.kv.sub), (*event.kv).clone()));
        self.disk.extend(rows);
        for place in dropped {
            assert!(self.disk.remove(&place).is_some(), "forgotten twice: {place:?}");
        }
    }

    fn compare(&self, range: &KeyRange) {
        assert_eq!(self.mvcc.revision(), self.model.revision());
        assert_eq!(self.mvcc.bytes(), self.disk.values().map(Version::weight).sum::<usize>());
        for at in 1..=self.model.revision() {
            let found = self.mvcc.range(range, at).map(|found| {
                let row = |v: &Arc<Version>| {
                    let body = (v.value.to_vec(), v.create_revision, v.mod_revision, v.version);
                    (v.key.to_vec(), body)
                };
                found.map(row).collect::<Vec<_>>()
            });
            if at < self.model.compacted {
                assert_eq!(found, Err(ApiError::Compacted));
                continue;
            }
            let rows = self.model.copy(at).iter().filter(|(key, _)| range.contains(key));
            assert_eq!(found, Ok(rows.map(|(key, body)| (key.clone(), body.clone())).collect()));
        }
        let from = self.model.compacted.max(0) + 1;
        let past = self.mvcc.since(from, range).unwrap().events;
        let past = past.iter().map(|e| (e.kv.mod_revision, e.kv.key.to_vec(), !e.kv.is_tombstone()));
        let wanted = self.model.events.iter().filter(|(at, key, _)| *at >= from && range.contains(key));
        assert_eq!(past.collect::<Vec<_>>(), wanted.cloned().collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_like_a_copy_kept_for_every_revision(
        steps in prop::collection::vec(step(), 1..40),
        ranges in prop::collection::vec(range(), 1..4),
    ) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.take(step);
            for range in &ranges {
                pair.compare(range);
            }
        }
    }
}
