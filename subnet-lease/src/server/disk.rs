//! The store's file: one redb database, one durable transaction for each batch of changes.
//!
//! ```text
//!   meta      name            → number                      format, cluster, member, revision, compacted
//!   versions  (revision, sub) → mvccpb.KeyValue, encoded    a version number of 0 is a deletion
//!   leases    id              → seconds granted
//! ```
//! Format 1. A later format that this code cannot read gets a higher number, and is refused by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcd_client::proto::PbKeyValue;
use prost::Message;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::error::ServerError;
use super::mvcc::Version;
use super::state::{Changes, Identity, Stored, key_value};

const FORMAT: i64 = 1;

/// The file's name in the data directory.
const FILE: &str = "store.redb";

/// redb's page cache, in bytes. Small, since everything that is read often is in memory anyway.
const CACHE: usize = 1 << 20;

const META: TableDefinition<&str, i64> = TableDefinition::new("meta");
const VERSIONS: TableDefinition<(i64, u32), &[u8]> = TableDefinition::new("versions");
const LEASES: TableDefinition<i64, i64> = TableDefinition::new("leases");

type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

pub(crate) struct Disk {
    path: PathBuf,
    open: Opener,
    /// `None` after an error that the database does not survive, until it is opened again.
    database: Option<Database>,
}

impl Disk {
    /// The store in `dir`. Nothing is opened yet.
    pub(crate) fn in_directory(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let file = path.clone();
        Self::new(path, Box::new(move || Database::builder().set_cache_size(CACHE).create(&file)))
    }

    fn new(path: PathBuf, open: Opener) -> Self {
        Self { path, open, database: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file, anew if it was open, and reads everything. A new file takes `fresh` as its identity.
    pub(crate) fn load(&mut self, fresh: Identity) -> Result<Stored, ServerError> {
        self.database = None;
        let database = (self.open)().map_err(|error| self.explain(error))?;
        let stored = match self.read_format(&database)? {
            None => initialise(&database, fresh),
            Some(_) => read(&database),
        };
        let stored = stored.map_err(|error| self.damaged(error))?;
        self.database = Some(database);
        Ok(stored)
    }

    /// Writes a batch; when this returns it is on the disk. After an error the file must be loaded again.
    pub(crate) fn commit(&mut self, changes: &Changes) -> Result<(), redb::Error> {
        let Some(database) = self.database.take() else { return Err(redb::Error::DatabaseClosed) };
        write(&database, changes)?;
        self.database = Some(database);
        Ok(())
    }

    fn read_format(&self, database: &Database) -> Result<Option<i64>, ServerError> {
        let format = read_meta(database, "format").map_err(|error| self.damaged(error))?;
        match format {
            None | Some(FORMAT) => Ok(format),
            Some(found) => Err(ServerError::Format { path: self.path.clone(), found, known: FORMAT }),
        }
    }

    fn explain(&self, error: DatabaseError) -> ServerError {
        match error {
            DatabaseError::DatabaseAlreadyOpen => ServerError::InUse(self.path.clone()),
            other => self.damaged(other.into()),
        }
    }

    fn damaged(&self, error: redb::Error) -> ServerError {
        ServerError::Damaged { path: self.path.clone(), reason: error.to_string() }
    }
}

fn initialise(database: &Database, identity: Identity) -> Result<Stored, redb::Error> {
    let txn = database.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("cluster", identity.cluster.cast_signed())?;
        meta.insert("member", identity.member.cast_signed())?;
        txn.open_table(VERSIONS)?;
        txn.open_table(LEASES)?;
    }
    txn.commit()?;
    Ok(Stored { identity, revision: 1, compacted: -1, versions: Vec::new(), leases: Vec::new() })
}

fn read_meta(database: &Database, name: &str) -> Result<Option<i64>, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(name)?.map(|row| row.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read(database: &Database) -> Result<Stored, redb::Error> {
    let number = |name, otherwise| read_meta(database, name).map(|found| found.unwrap_or(otherwise));
    let identity = Identity {
        cluster: number("cluster", 1)?.cast_unsigned(),
        member: number("member", 1)?.cast_unsigned(),
    };
    let txn = database.begin_read()?;
    let (mut versions, mut leases) = (Vec::new(), Vec::new());
    for row in txn.open_table(VERSIONS)?.iter()? {
        let (place, kv) = row?;
        versions.push(decode(place.value(), kv.value())?);
    }
    for row in txn.open_table(LEASES)?.iter()? {
        let (id, ttl) = row?;
        leases.push((id.value(), ttl.value()));
    }
    Ok(Stored {
        identity,
        revision: number("revision", 1)?,
        compacted: number("compacted", -1)?,
        versions,
        leases,
    })
}

fn write(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert("revision", changes.revision)?;
        if let Some(compacted) = changes.compacted {
            meta.insert("compacted", compacted)?;
        }
        let mut versions = txn.open_table(VERSIONS)?;
        for event in &changes.events {
            let kv = key_value(&event.kv, true).encode_to_vec();
            versions.insert((event.kv.mod_revision, event.kv.sub), kv.as_slice())?;
        }
        // After the inserts: a batch may compact away what it wrote.
        for place in &changes.dropped {
            versions.remove(place)?;
        }
        let mut leases = txn.open_table(LEASES)?;
        for (id, granted) in &changes.leases {
            match granted {
                Some(ttl) => leases.insert(id, ttl)?,
                None => leases.remove(id)?,
            };
        }
    }
    Ok(txn.commit()?)
}

fn decode((revision, sub): (i64, u32), row: &[u8]) -> Result<Version, redb::Error> {
    let kv = PbKeyValue::decode(row)
        .map_err(|error| redb::Error::Corrupted(format!("version ({revision}, {sub}): {error}")))?;
    Ok(Version {
        key: Arc::from(kv.key),
        value: kv.value.into(),
        create_revision: kv.create_revision,
        mod_revision: revision,
        sub,
        version: kv.version,
        lease: kv.lease,
    })
}

#[cfg(test)]
pub(crate) mod tests;
