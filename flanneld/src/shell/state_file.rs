//! The state file: the memory of a node, which survives a restart of the host.
//!
//! ```text
//!   selvage state 1 6c62272e07bb0142        version, FNV-1a of all that follows
//!   {"boot":"…","network":"…","config":"…","own":[key, epoch, record],"peers":[[key, epoch, record], …]}
//! ```
//!
//! Records are the store's, byte for byte, and are judged again like those of the store.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backends::local::files::Draft;
use backends::local::hash::Fnv64;
use serde::ser::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use subnet_lease::{Lease, NetworkId, RecordError};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::core::{Changed, Hold, Memory};

/// In the state directory.
const NAME: &str = "state";
/// The third word is the version; files of other versions are ignored.
const HEAD: &str = "selvage state 1 ";
/// No file is larger, in bytes: fifty thousand peers.
const LARGEST: u64 = 16 << 20;
/// Changes with each start of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The body, of leases read (`P` is a list of them) or to be written (a slice).
#[derive(Serialize, Deserialize)]
struct Body<L, P> {
    boot: String,
    network: NetworkId,
    config: String,
    own: L,
    peers: P,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    settings: Vec<Changed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold: Option<Hold>,
}

/// A lease as the store has it: key, epoch, value. One at a time, since ten thousand as text are megabytes.
struct ToWrite<'a>(&'a Lease);

impl Serialize for ToWrite<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = String::from_utf8(self.0.to_record()).map_err(S::Error::custom)?;
        let value = RawValue::from_string(value).map_err(S::Error::custom)?;
        (self.0.subnets, self.0.epoch, value).serialize(serializer)
    }
}

struct AllToWrite<'a>(&'a [Lease]);

impl Serialize for AllToWrite<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToWrite))
    }
}

/// The same, read; a record that is no lease comes with the reason.
struct WasRead(Result<Lease, RecordError>);

impl<'de> Deserialize<'de> for WasRead {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (key, epoch, value) = <(&str, u64, &RawValue)>::deserialize(deserializer)?;
        let lease = Lease::from_record(key, value.get().as_bytes());
        Ok(Self(lease.map(|lease| Lease { epoch, ..lease })))
    }
}

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
    newest: Arc<watch::Sender<Option<Memory>>>,
    problem: watch::Receiver<Option<String>>,
}

impl StateFile {
    /// The file of a network in a directory. Must be called within a runtime.
    pub(crate) fn open(directory: &Path, network: &NetworkId) -> Self {
        let newest = Arc::new(watch::Sender::new(None));
        let (reporter, problem) = watch::channel(None);
        let boot = boot_id();
        let path = directory.join(NAME);
        let (file, changed) = (path.clone(), newest.subscribe());
        tokio::spawn(keep(file, network.clone(), boot.clone(), newest.clone(), changed, reporter));
        Self { path, network: network.clone(), boot, newest, problem }
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
        self.newest.send_replace(Some(memory));
    }

    /// Writes it before the end.
    pub(crate) fn keep_now(&self, memory: &Memory) {
        if let Err(error) = write(&self.path, &self.network, &self.boot, memory, None) {
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
    newest: Arc<watch::Sender<Option<Memory>>>,
    mut changed: watch::Receiver<Option<Memory>>,
    reporter: watch::Sender<Option<String>>,
) {
    let mut last = None;
    while changed.changed().await.is_ok() {
        // Taken out: what is in the file need not be in memory.
        let mut taken = None;
        newest.send_if_modified(|newest| {
            taken = newest.take();
            false
        });
        let Some(memory) = taken else { continue };
        let (file, network, boot) = (path.clone(), network.clone(), boot.clone());
        // On a thread of its own: a disk may be slow, and the network must not wait for it.
        let written = tokio::task::spawn_blocking(move || write(&file, &network, &boot, &memory, last)).await;
        let problem = match written {
            Ok(Ok(sum)) => {
                last = Some(sum);
                None
            }
            Ok(Err(error)) => Some(format!("{}: can't be written: {error}", path.display())),
            Err(_) => break,
        };
        if let (Some(problem), None) = (&problem, &*reporter.borrow()) {
            warn!("{problem}; a start without the store would know nothing");
        }
        reporter.send_replace(problem);
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
    if sum != Fnv64::of(body.as_bytes()).to_string() {
        return Err(wrong(&"damaged: the checksum differs"));
    }
    let body: Body<WasRead, Vec<WasRead>> = serde_json::from_str(body).map_err(|error| wrong(&error))?;
    if body.network != *network {
        return Err(wrong(&format_args!("of another network, {}", body.network)));
    }
    let own = body.own.0.map_err(|error| wrong(&error))?;
    let peers = body.peers.into_iter().filter_map(|peer| peer.0.ok()).collect();
    let warm = !boot.is_empty() && body.boot == boot;
    let Body { config, settings, hold, .. } = body;
    Ok((Memory { config: config.into_bytes(), own, peers, settings, hold }, warm))
}

/// Replaces the file as a whole, synced, unless its content is that of `last` already. The memory is serialized twice, because
/// the sum is first in the file, and the whole text in memory would be as large as everything else that the daemon knows.
fn write(
    path: &Path,
    network: &NetworkId,
    boot: &str,
    memory: &Memory,
    last: Option<Fnv64>,
) -> io::Result<Fnv64> {
    let body = Body {
        boot: boot.to_owned(),
        network: network.clone(),
        config: String::from_utf8_lossy(&memory.config).into_owned(),
        own: ToWrite(&memory.own),
        peers: AllToWrite(&memory.peers),
        settings: memory.settings.clone(),
        hold: memory.hold.clone(),
    };
    let mut sum = Fnv64::default();
    serde_json::to_writer(&mut sum, &body)?;
    if Some(sum) == last {
        return Ok(sum);
    }
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    // The net-conf may contain secrets.
    let mut file = BufWriter::new(Draft::new(path, 0o600)?);
    writeln!(file, "{HEAD}{sum}")?;
    serde_json::to_writer(&mut file, &body)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.put_synced()?;
    Ok(sum)
}

#[cfg(test)]
mod tests;
