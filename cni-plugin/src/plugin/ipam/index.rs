//! Which addresses an attachment has, without reading a folder of thousands: an index of symbolic links on tmpfs.
//!
//! ```text
//!   <indexes>/<folder, with %2F for />/stamp                    what the folder looked like, and the network's use
//!                                     /<container>@<interface>  its addresses
//! ```
//!
//! The index is valid only while the folder's modification time is the one that we gave it: another program that makes or
//! removes a file in it, a Go host-local, changes that. The time that we give has nanoseconds, the kernel's own is
//! of its last tick, so that not even a change within the same tick goes unnoticed. A file system that cuts our
//! nanoseconds off makes every look a mismatch: slower, never wrong.

use std::fs::{self, DirBuilder, Metadata};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use backends::local::pool_stamp::{self, Stamp, Usage};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::time::{ClockId, clock_gettime};

use super::stale::boot_time;
use super::store::{Holder, Place};
use crate::contract::is_name;

/// The index of one network's folder.
#[derive(Debug)]
pub(super) struct Index(PathBuf);

/// A clock that is put right moves the beginning of the boot as well; another boot is further away (s).
const SAME_BOOT: u64 = 30;

impl Index {
    pub(super) fn of(place: &Place) -> Self {
        Self(place.indexes.join(pool_stamp::index_of(&place.folder)))
    }

    /// The stamp, if it is of this boot and of the folder as it is now.
    pub(super) fn stamp(&self, folder: &Metadata) -> Option<Stamp> {
        let stamp = self.read_stamp()?;
        let same = stamp.inode == folder.ino() && stamp.modified == modified(folder)?;
        let same = same && stamp.boot.abs_diff(boot()?) <= SAME_BOOT;
        same.then_some(stamp)
    }

    /// The use that was noted last, whatever has happened to the folder since.
    pub(super) fn usage(&self) -> Usage {
        self.read_stamp().map(|stamp| stamp.usage).unwrap_or_default()
    }

    /// The addresses of an attachment, and those of its container that name no interface.
    pub(super) fn addresses(&self, holder: &Holder) -> Vec<IpAddr> {
        let of = |name: String| {
            let target = fs::read_link(self.0.join(name)).unwrap_or_default();
            let text = target.to_string_lossy().into_owned();
            text.split(',').filter_map(|ip| ip.parse().ok()).collect::<Vec<IpAddr>>()
        };
        let mut all = of(holder.name());
        all.extend(of(Holder { ifname: String::new(), ..holder.clone() }.name()));
        all
    }

    /// Makes the whole of it anew; none where that is not possible.
    pub(super) fn rebuild(&self, reservations: &[(IpAddr, Holder)], usage: Usage) -> Option<Stamp> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => return None,
            _ => DirBuilder::new().recursive(true).mode(0o755).create(&self.0).ok()?,
        }
        // What is no name of a container cannot be asked for either.
        let asked = |holder: &Holder| is_name(&holder.container) && !holder.ifname.contains('/');
        let mut sorted: Vec<_> = reservations
            .iter()
            .filter(|(_, holder)| asked(holder))
            .map(|(ip, holder)| (holder, *ip))
            .collect();
        sorted.sort();
        for group in sorted.chunk_by(|(a, _), (b, _)| a == b) {
            let addresses: Vec<_> = group.iter().map(|(_, ip)| *ip).collect();
            self.link(&group[0].0.name(), &list(&addresses)).ok()?;
        }
        Some(Stamp { modified: Duration::ZERO, inode: 0, boot: boot()?, usage })
    }

    /// Notes what an attachment has; nothing takes it out.
    pub(super) fn set(&self, holder: &Holder, addresses: &[IpAddr]) {
        // An entry that is left is contradicted by the reservation's file.
        if addresses.is_empty() {
            let _ = fs::remove_file(self.0.join(holder.name()));
        } else {
            let _ = self.link(&holder.name(), &list(addresses));
        }
    }

    /// Gives the folder a time of our own and notes it: from now on the index is believed.
    pub(super) fn seal(&self, folder: &Path, stamp: Stamp) {
        let _ = self.try_seal(folder, stamp);
    }

    fn try_seal(&self, folder: &Path, stamp: Stamp) -> Option<()> {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).ok()?;
        utimensat(AT_FDCWD, folder, &now, &now, UtimensatFlags::FollowSymlink).ok()?;
        let metadata = fs::metadata(folder).ok()?;
        let stamp = Stamp { modified: modified(&metadata)?, inode: metadata.ino(), ..stamp };
        // It is there nearly always, so that the new one is made beside it at once.
        self.replace(&self.0.join(pool_stamp::NAME), &stamp.to_string()).ok()
    }

    /// A link in one step: a reader sees the old text or the new one.
    fn link(&self, name: &str, text: &str) -> std::io::Result<()> {
        let path = self.0.join(name);
        match symlink(text, &path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.replace(&path, text),
            other => other,
        }
    }

    fn replace(&self, path: &Path, text: &str) -> std::io::Result<()> {
        let temporary = self.0.join(".new");
        if symlink(text, &temporary).is_err() {
            // Left by a call that was killed; under the lock no process uses it.
            let _ = fs::remove_file(&temporary);
            symlink(text, &temporary)?;
        }
        fs::rename(temporary, path)
    }

    fn read_stamp(&self) -> Option<Stamp> {
        Stamp::parse(fs::read_link(self.0.join(pool_stamp::NAME)).ok()?.to_str()?)
    }
}

impl Holder {
    /// No container ID has an `@`.
    fn name(&self) -> String {
        format!("{}@{}", self.container, self.ifname)
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn modified(metadata: &Metadata) -> Option<Duration> {
    metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()
}

/// No system call: the kernel shows its clocks to every process.
fn boot() -> Option<u64> {
    boot_time().map(|time| time.as_secs())
}
