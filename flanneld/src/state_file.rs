//! The state file: what a node knew, where it survives a restart of the host.
//!
//! ```text
//!   selvage state 1 6c62272e07bb0142        version, FNV-1a of all that follows
//!   {"boot":"…","network":"…","config":"…","own":[key, epoch, record],"peers":[[key, epoch, record], …]}
//! ```
//!
//! Records are the store's, byte for byte, and go the same way as those of the store: what a file says is judged again.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use subnet_lease::{Lease, NetworkId};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::node::{Changed, Memory};

/// In the state directory.
const NAME: &str = "state";
/// The version is in the first word but one: who reads another one reads nothing.
const HEAD: &str = "selvage state 1 ";
/// No file is larger, in bytes: fifty thousand peers.
const LARGEST: u64 = 16 << 20;
/// Changes with each start of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Serialize, Deserialize)]
struct Written {
    boot: String,
    network: NetworkId,
    config: String,
    own: Record,
    peers: Vec<Record>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    settings: Vec<Changed>,
}

/// A lease as the store has it: key, epoch, value.
type Record = (String, u64, Box<RawValue>);

/// Why there is no memory.
#[derive(Debug, PartialEq, Eq)]
enum Unread {
    Missing,
    Wrong(String),
}

/// The file, and the task that writes it.
pub(crate) struct StateFile {
    path: PathBuf,
    network: NetworkId,
    boot: String,
    newest: watch::Sender<Option<Arc<Memory>>>,
    problem: watch::Receiver<Option<String>>,
}

impl StateFile {
    /// The file of a network in a directory. Must be called within a runtime.
    pub(crate) fn open(directory: &Path, network: &NetworkId) -> Self {
        let (newest, changed) = watch::channel(None);
        let (tell, problem) = watch::channel(None);
        let boot = boot_id();
        let path = directory.join(NAME);
        let file = Self { path: path.clone(), network: network.clone(), boot: boot.clone(), newest, problem };
        tokio::spawn(keep(path, network.clone(), boot, changed, tell));
        file
    }

    /// What an earlier run left, and whether the host has been up since.
    pub(crate) fn read(&self) -> Option<(Memory, bool)> {
        match read(&self.path, &self.network, &self.boot) {
            Ok(memory) => Some(memory),
            Err(Unread::Missing) => None,
            Err(Unread::Wrong(why)) => {
                warn!("{}: {why}; going on without it", self.path.display());
                None
            }
        }
    }

    /// The settings that a daemon of this network changed since the host started.
    pub(crate) fn changed_settings(directory: &Path, network: &NetworkId) -> Vec<Changed> {
        let memory = read(&directory.join(NAME), network, &boot_id()).ok();
        memory.filter(|(_, warm)| *warm).map(|(memory, _)| memory.settings).unwrap_or_default()
    }

    /// Writes it soon; of several only the newest.
    pub(crate) fn keep(&self, memory: Memory) {
        let memory = Some(Arc::new(memory));
        self.newest.send_if_modified(|newest| {
            let differs = *newest != memory;
            newest.clone_from(&memory);
            differs
        });
    }

    /// Writes it before the end.
    pub(crate) fn keep_now(&self, memory: &Memory) {
        if let Err(error) = write(&self.path, &self.network, &self.boot, memory) {
            debug!("{}: {error}", self.path.display());
        }
    }

    /// Why the newest is not on file.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }
}

fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

async fn keep(
    path: PathBuf,
    network: NetworkId,
    boot: String,
    mut changed: watch::Receiver<Option<Arc<Memory>>>,
    tell: watch::Sender<Option<String>>,
) {
    while changed.changed().await.is_ok() {
        let Some(memory) = changed.borrow_and_update().clone() else { continue };
        let (file, network, boot) = (path.clone(), network.clone(), boot.clone());
        // A disk may take its time; the network does not wait for it.
        let written = tokio::task::spawn_blocking(move || write(&file, &network, &boot, &memory)).await;
        let problem = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{}: can't be written: {error}", path.display())),
            Err(_) => break,
        };
        if let Some(problem) = problem.as_ref().filter(|_| tell.borrow().is_none()) {
            warn!("{problem}; a start without the store would know nothing");
        }
        tell.send_replace(problem);
    }
}

fn read(path: &Path, network: &NetworkId, boot: &str) -> Result<(Memory, bool), Unread> {
    let wrong = |why: &dyn fmt::Display| Unread::Wrong(why.to_string());
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unread::Missing),
        file => file.map_err(|error| wrong(&error))?,
    };
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(|error| wrong(&error))?;
    if text.len() as u64 > LARGEST {
        return Err(wrong(&"larger than 16 MiB"));
    }
    let body = text.strip_prefix(HEAD).ok_or_else(|| wrong(&"not a state file of this version"))?;
    let (sum, body) = body.split_once('\n').ok_or_else(|| wrong(&"it has no body"))?;
    if sum != checksum(body) {
        return Err(wrong(&"damaged: the checksum differs"));
    }
    let written: Written = serde_json::from_str(body).map_err(|error| wrong(&error))?;
    if written.network != *network {
        return Err(wrong(&format_args!("of another network, {}", written.network)));
    }
    let own = lease(&written.own).map_err(|error| wrong(&error))?;
    let peers = written.peers.iter().filter_map(|record| lease(record).ok()).collect();
    let warm = !boot.is_empty() && written.boot == boot;
    Ok((Memory { config: written.config.into_bytes(), own, peers, settings: written.settings }, warm))
}

fn lease((key, epoch, value): &Record) -> Result<Lease, subnet_lease::RecordError> {
    Ok(Lease { epoch: *epoch, ..Lease::from_record(key, value.get().as_bytes())? })
}

/// Whole or not at all: a file beside it, synced and renamed.
fn write(path: &Path, network: &NetworkId, boot: &str, memory: &Memory) -> io::Result<()> {
    let record = |lease: &Lease| -> io::Result<Record> {
        let value = String::from_utf8(lease.to_record()).map_err(io::Error::other)?;
        Ok((lease.subnets.to_string(), lease.epoch, RawValue::from_string(value)?))
    };
    let written = Written {
        boot: boot.to_owned(),
        network: network.clone(),
        config: String::from_utf8_lossy(&memory.config).into_owned(),
        own: record(&memory.own)?,
        peers: memory.peers.iter().map(record).collect::<io::Result<_>>()?,
        settings: memory.settings.clone(),
    };
    let body = serde_json::to_string(&written)?;
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    let new = path.with_extension("new");
    // The net-conf may hold what is nobody's business.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    write!(file, "{HEAD}{}\n{body}", checksum(&body))?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// FNV-1a, 64 bits: tells a torn file from a whole one, and nothing more.
fn checksum(text: &str) -> String {
    let step = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
#[path = "state_file_tests.rs"]
mod tests;
