//! What this process must end together with itself: child processes, processes in its namespaces, run
//! directories.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

#[derive(Debug, Default)]
pub(crate) struct Live {
    dirs: BTreeSet<PathBuf>,
    children: BTreeSet<Pid>,
    /// Inode numbers of the network namespaces that this process made.
    spaces: BTreeSet<u64>,
}

static LIVE: Mutex<Live> =
    Mutex::new(Live { dirs: BTreeSet::new(), children: BTreeSet::new(), spaces: BTreeSet::new() });

fn lock() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn add_dir(dir: &Path) {
    lock().dirs.insert(dir.to_owned());
}

pub(crate) fn remove_dir(dir: &Path) {
    lock().dirs.remove(dir);
}

pub(crate) fn add_child(pid: Pid) {
    lock().children.insert(pid);
}

/// Forgets a child in the same step that reaps it, so that a reused process id is never killed.
pub(crate) fn reap<T>(pid: Pid, wait: impl FnOnce() -> Option<T>) -> Option<T> {
    let mut live = lock();
    let status = wait();
    if status.is_some() {
        live.children.remove(&pid);
    }
    status
}

pub(crate) fn add_space(space: &File) {
    lock().spaces.extend(inode(space));
}

pub(crate) fn remove_space(space: &File) {
    if let Some(inode) = inode(space) {
        lock().spaces.remove(&inode);
    }
}

/// Kills what still runs inside `spaces`: grandchildren, and programs that a person started there.
pub(crate) fn end_strangers<'a>(spaces: impl IntoIterator<Item = &'a File>) {
    end_inside(&spaces.into_iter().filter_map(inode).collect());
}

fn end_inside(spaces: &BTreeSet<u64>) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let inside = fs::metadata(entry.path().join("ns/net")).is_ok_and(|net| spaces.contains(&net.ino()));
        if inside && Pid::from_raw(pid) != Pid::this() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn inode(file: &File) -> Option<u64> {
    file.metadata().ok().map(|meta| meta.ino())
}

/// Blocks SIGINT, SIGTERM and SIGHUP for this thread and all threads that it starts. When one of these
/// signals arrives, a thread of its own ends the process cleanly. Children start with no signal blocked.
pub(crate) fn end_cleanly_on_signals() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            end(signal);
        }
    });
    Ok(())
}

/// Ends children and directories, then the process, with the exit code that a shell gives for that signal.
/// The lock stays held, so that no other thread starts a child meanwhile.
#[expect(clippy::exit, reason = "a signal ends the process, wherever its other threads are")]
fn end(signal: Signal) -> ! {
    let live = lock();
    for child in &live.children {
        let _ = kill(*child, Signal::SIGKILL);
    }
    for child in &live.children {
        let _ = waitpid(*child, None);
    }
    end_inside(&live.spaces);
    for dir in &live.dirs {
        crate::rundir::remove(dir);
    }
    std::process::exit(128 + signal as i32)
}
