use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use redb::StorageBackend;

use super::*;
use crate::server::mvcc::{Event, Mvcc};

pub(crate) const IDENTITY: Identity = Identity { cluster: 7, member: u64::MAX };

/// A file in memory that outlives the database on it, and that can be full.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeFile {
    bytes: Arc<Mutex<Vec<u8>>>,
    full: Arc<AtomicBool>,
}

impl FakeFile {
    pub(crate) fn disk(&self) -> Disk {
        let file = self.clone();
        Disk::new(
            PathBuf::from("fake"),
            Box::new(move || Database::builder().create_with_backend(file.clone())),
        )
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    fn with<T>(&self, read: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        read(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn writable(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

fn span(offset: u64, len: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).unwrap();
    start..start + len
}

impl StorageBackend for FakeFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|bytes| bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|bytes| {
            let part = bytes.get(span(offset, out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(part);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        self.with(|bytes| bytes.resize(usize::try_from(len).unwrap(), 0));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.writable()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writable()?;
        self.with(|bytes| bytes[span(offset, data.len())].copy_from_slice(data));
        Ok(())
    }
}

fn changes(mvcc: &mut Mvcc) -> Changes {
    let (events, dropped) = mvcc.take_changes();
    let compacted = Some(mvcc.compacted());
    Changes { events, dropped, leases: Vec::new(), revision: mvcc.revision(), compacted }
}

fn versions(events: &[Event]) -> Vec<Version> {
    events.iter().map(|event| (*event.kv).clone()).collect()
}

#[test]
fn what_was_committed_is_read_back_with_the_stores_first_identity() {
    let file = FakeFile::default();
    let mut disk = file.disk();
    let new = disk.load(IDENTITY).unwrap();
    assert_eq!((new.identity, new.revision, new.compacted), (IDENTITY, 1, -1));

    let mut mvcc = Mvcc::default();
    mvcc.put(b"a", b"1".to_vec(), 9);
    mvcc.put(b"b", vec![0xff; 100_000], 0);
    mvcc.seal();
    let mut first = changes(&mut mvcc);
    first.leases = vec![(9, Some(60)), (10, Some(5)), (10, None)];
    disk.commit(&first).unwrap();
    drop(disk);

    let again = file.disk().load(Identity { cluster: 1, member: 1 }).unwrap();
    assert_eq!((again.identity, again.revision, again.compacted), (IDENTITY, 2, -1));
    assert_eq!(again.versions, versions(&first.events));
    assert_eq!(again.leases, [(9, 60)]);
}

#[test]
fn compaction_empties_the_file_of_what_no_read_can_see() {
    let file = FakeFile::default();
    let mut disk = file.disk();
    disk.load(IDENTITY).unwrap();
    let mut mvcc = Mvcc::default();
    for value in ["1", "2", "3"] {
        mvcc.put(b"a", value.into(), 0);
        mvcc.seal();
    }
    mvcc.compact(4).unwrap();
    disk.commit(&changes(&mut mvcc)).unwrap();
    let stored = disk.load(IDENTITY).unwrap();
    assert_eq!((stored.revision, stored.compacted, stored.versions.len()), (4, 4, 1));
}

#[test]
fn a_full_disk_is_an_error_and_the_store_goes_on_from_the_last_commit() {
    let file = FakeFile::default();
    let mut disk = file.disk();
    disk.load(IDENTITY).unwrap();
    let mut mvcc = Mvcc::default();
    mvcc.put(b"a", b"kept".to_vec(), 0);
    mvcc.seal();
    disk.commit(&changes(&mut mvcc)).unwrap();

    file.set_full(true);
    mvcc.put(b"a", vec![b'x'; 1 << 20], 0);
    mvcc.seal();
    assert!(disk.commit(&changes(&mut mvcc)).is_err());
    assert!(disk.commit(&Changes::default()).is_err());

    file.set_full(false);
    let stored = disk.load(IDENTITY).unwrap();
    assert_eq!((stored.revision, stored.versions.len()), (2, 1));
    disk.commit(&Changes { revision: 2, ..Changes::default() }).unwrap();
}

#[test]
fn a_file_of_a_later_format_is_refused_by_name() {
    let file = FakeFile::default();
    let mut disk = file.disk();
    disk.load(IDENTITY).unwrap();
    let database = disk.database.take().unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
    txn.commit().unwrap();
    drop(database);
    let refusal = disk.load(IDENTITY).unwrap_err();
    assert_eq!(refusal.to_string(), "fake has format 2, and this version reads format 1");
}

#[test]
fn a_file_that_is_something_else_is_refused_and_left_alone() {
    let file = FakeFile::default();
    file.with(|bytes| bytes.extend(b"not a database".repeat(1000)));
    let refusal = file.disk().load(IDENTITY).unwrap_err();
    assert!(matches!(refusal, ServerError::Damaged { .. }), "{refusal}");
    assert!(file.with(|bytes| bytes.starts_with(b"not a database")));
}
