//! A directory for one run: it has the product's name, its owner holds a lock on it, and a later run removes
//! it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{live, namespace::within};

/// The first part of every name that we leave on the machine. Other names are never touched.
pub const PREFIX: &str = "selvage-";

/// Files that the owner may put beside the mount point. A sweep removes these and nothing else.
pub const LAB_FILE: &str = "lab.json";
/// The log of the process that holds a lab.
pub const LAB_LOG: &str = "lab.log";

/// One run's directory.
///
/// ```text
/// $XDG_RUNTIME_DIR/selvage-ID/        on the machine: nearly empty, flock held by the owner
///   lab.json lab.log                  only for a lab that stays
///   run/                              mount point of a tmpfs that only our own mount namespace sees
///      net/NAME                       one file per namespace, for nsenter
///      HOST/{run,lib}/ HOST/*.log     the host's /run and /var/lib, and the logs of its programs
/// ```
///
/// The tmpfs and all namespaces are held by descriptors of this process, so the kernel frees them even after
/// SIGKILL. Then only the directory itself is left, and its lock is free.
#[derive(Debug)]
pub struct RunDir {
    outer: PathBuf,
    inner: PathBuf,
    /// The mount namespace in which the tmpfs is visible.
    mounts: File,
    root: File,
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes the directory of the run `name`, or of a run without a name. Sweeps leftovers first. Fails when
    /// a running run has that name.
    pub fn create(name: Option<&str>) -> Result<Arc<Self>> {
        let base = base();
        sweep(&base);
        // A host takes four descriptors. The usual limit of 1,024 exists only for select(2).
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let (outer, lock) = claim(&base, name)?;
        live::add_dir(&outer);
        let inner = outer.join("run");
        let (mounts, root) = within(&[], || private_tmpfs(&inner))
            .and_then(|made| made)
            .with_context(|| format!("cannot mount a tmpfs on {}", inner.display()))?;
        let dir = Self { outer, inner, mounts, root, _lock: lock };
        fs::create_dir(dir.path("net"))?;
        Ok(Arc::new(dir))
    }

    /// Where a file of the run can be opened by any thread of this process, whatever its mount namespace.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd())).join(inside)
    }

    /// The same file, as another process of this machine can open it while this one lives.
    pub fn path_for_others(&self, inside: impl AsRef<Path>) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.root.as_raw_fd())).join(inside)
    }

    /// The directory that the machine sees.
    pub fn outer(&self) -> &Path {
        &self.outer
    }

    /// The tmpfs, as seen in [`RunDir::mounts`].
    pub(crate) fn inner(&self) -> &Path {
        &self.inner
    }

    pub(crate) fn mounts(&self) -> &File {
        &self.mounts
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        remove(&self.outer);
        live::remove_dir(&self.outer);
    }
}

/// The place of run directories: `$XDG_RUNTIME_DIR`, else the temporary directory.
pub fn base() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_dir())
        .unwrap_or_else(std::env::temp_dir)
}

/// The directory of the run called `name`, whether or not there is one.
pub fn named(name: &str) -> PathBuf {
    base().join(format!("{PREFIX}{name}"))
}

/// True while the owner of `dir` runs: it holds the lock, and the kernel frees the lock at its end.
pub fn alive(dir: &Path) -> bool {
    let Ok(file) = File::open(dir) else { return false };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
}

/// Removes what killed runs left in `base`. Running runs hold their lock and are skipped. Directories of
/// other users, and everything that we do not make, are skipped too.
pub fn sweep(base: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own)
            && entry.path().join("run").is_dir();
        if !ours {
            continue;
        }
        let Ok(dir) = File::open(entry.path()) else { continue };
        if let Ok(_lock) = Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            remove(&entry.path());
        }
    }
}

/// Removes a run's directory by the names of its files, not by recursion: nothing else can be ours.
pub(crate) fn remove(outer: &Path) {
    for file in [LAB_FILE, LAB_LOG] {
        let _ = fs::remove_file(outer.join(file));
    }
    let _ = fs::remove_dir(outer.join("run"));
    let _ = fs::remove_dir(outer);
}

/// Makes and locks a directory. A sweep may remove it between the two steps; then the next attempt follows.
fn claim(base: &Path, name: Option<&str>) -> Result<(PathBuf, Flock<File>)> {
    for attempt in 0..100_u32 {
        let id = name.map_or_else(|| unique(attempt), str::to_owned);
        let outer = base.join(format!("{PREFIX}{id}"));
        match fs::DirBuilder::new().mode(0o700).create(&outer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && name.is_none() => continue,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!("{id:?} is already running"),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make a directory in {}", base.display()));
            }
        }
        let lock = Flock::lock(File::open(&outer)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        if fs::create_dir(outer.join("run")).is_ok() {
            return Ok((outer, lock));
        }
    }
    bail!("no free name for a run in {}", base.display())
}

fn unique(attempt: u32) -> String {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    format!("{}-{:06x}", std::process::id(), (nanos / 64).wrapping_add(attempt) & 0xff_ffff)
}

/// Mounts a tmpfs where only the calling thread's new mount namespace sees it.
fn private_tmpfs(at: &Path) -> io::Result<(File, File)> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))?;
    Ok((File::open("/proc/thread-self/ns/mnt")?, File::open(at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn a_sweep_takes_what_a_dead_run_left_and_spares_the_living_and_the_foreign() {
        let base = scratch("rundir-sweep");
        let (dead, lock) = claim(&base, Some("dead")).unwrap();
        drop(lock);
        let (living, _lock) = claim(&base, Some("living")).unwrap();
        fs::create_dir(base.join("selvage-notes")).unwrap();
        fs::create_dir_all(base.join("other/run")).unwrap();

        sweep(&base);

        assert!(!dead.exists());
        assert!(living.exists() && alive(&living));
        assert!(base.join("selvage-notes").exists() && base.join("other/run").exists());
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_living_runs_name_is_refused_and_free_again_afterwards() {
        let base = scratch("rundir-name");
        let (outer, lock) = claim(&base, Some("lab")).unwrap();
        let refusal = claim(&base, Some("lab")).unwrap_err().to_string();
        assert!(refusal.contains("\"lab\" is already running"), "{refusal}");
        drop(lock);
        remove(&outer);
        assert!(claim(&base, Some("lab")).is_ok());
        fs::remove_dir_all(&base).unwrap();
    }
}
