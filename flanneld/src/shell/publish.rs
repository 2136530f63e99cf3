//! Publishes to the rest of the host: subnet.env for the CNI plugin, `READY=1` for systemd. Notices when somebody else
//! touches subnet.env.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::local::files;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use sd_notify::NotifyState;
use subnet_lease::{SubnetEnv, SubnetEnvError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::core::Input;

/// What can happen to the file, seen from its directory.
const TOUCHED: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_ATTRIB);

/// What can happen to the directory: after it the watch shows nothing more.
const GONE: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF);

/// Time until a missing directory is looked for again. Ours. Usually it is there by then: after the loss the core publishes
/// subnet.env, and that makes the directory.
const AGAIN: Duration = Duration::from_millis(500);

/// Writes subnet.env, unless it has the same bytes already. Bytes are compared, not values, so that an edited file is repaired.
/// Makes its directory (0755) if it is missing.
pub fn write(path: &Path, env: &SubnetEnv) -> Result<(), SubnetEnvError> {
    let text = env.text();
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    make_directory(directory).map_err(|source| SubnetEnvError::Io { path: directory.into(), source })?;
    files::replace_synced(path, 0o644, text.as_bytes())
        .map_err(|source| SubnetEnvError::Io { path: path.into(), source })?;
    info!("{} written", path.display());
    Ok(())
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

/// Renames subnet.env to `subnet.env.lost`: no new pod gets an address from a subnet that is another host's. From the new name
/// the CNI plugin knows that the subnet was lost, and that the daemon is not just starting.
pub fn withdraw(path: &Path, why: &str) {
    let mut lost = path.as_os_str().to_owned();
    lost.push(".lost");
    match fs::rename(path, &lost) {
        Ok(()) => warn!("{} is now {}: {why}", path.display(), Path::new(&lost).display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!("can't rename {}: {error} ({why})", path.display()),
    }
}

/// Notifies systemd, where it asks for that.
pub fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        warn!("can't notify systemd that the node is ready: {error}");
    }
}

/// Sends [`Input::File`] whenever the file may have changed, our own writes included, until nobody listens.
/// Where it can't watch, it logs that once; the file is then checked in each pass that publishes.
pub fn watch(path: &Path, inbox: mpsc::Sender<Input>) {
    let path = path.to_owned();
    tokio::spawn(async move {
        if let Err(error) = follow(&path, &inbox).await {
            warn!("{} can't be watched: {error}", path.display());
        }
    });
}

async fn follow(path: &Path, inbox: &mpsc::Sender<Input>) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .map_or_else(|| PathBuf::from("."), Path::to_owned);
    let name = path.file_name().unwrap_or_default();
    let inotify = inotify()?;
    loop {
        let watch =
            match inotify.get_ref().0.add_watch(&directory, TOUCHED | GONE | AddWatchFlags::IN_ONLYDIR) {
                Ok(watch) => Some(watch),
                Err(Errno::ENOENT | Errno::ENOTDIR) => None,
                Err(errno) => return Err(errno.into()),
            };
        // What happened before the watch is unknown; and without a directory there is no file.
        if inbox.send(Input::File).await.is_err() {
            return Ok(());
        }
        if let Some(watch) = watch {
            until_gone(&inotify, watch, name, inbox).await?;
            // A directory that was moved away is still watched.
            let _ = inotify.get_ref().0.rm_watch(watch);
        }
        sleep(AGAIN).await;
    }
}

/// Waits for changes of folders, whichever they are.
pub(super) struct Watcher(AsyncFd<Pollable>);

pub(super) fn watcher() -> io::Result<Watcher> {
    inotify().map(Watcher)
}

impl Watcher {
    pub(super) fn add(&self, folder: &str, changes: AddWatchFlags) {
        // A missing folder is no error.
        let _ = self.0.get_ref().0.add_watch(folder, changes | AddWatchFlags::IN_ONLYDIR);
    }

    pub(super) async fn changed(&self) {
        while let Ok(mut guard) = self.0.readable().await {
            if guard.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?)).is_ok() {
                return;
            }
        }
    }
}

fn inotify() -> io::Result<AsyncFd<Pollable>> {
    let inotify = Pollable(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
    #[expect(deprecated, reason = "its successor wants the descriptor's validity promised in unsafe code")]
    AsyncFd::with_interest(inotify, Interest::READABLE)
}

/// What the runtime needs to wait for events.
struct Pollable(Inotify);

impl AsRawFd for Pollable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Passes on what happens to the file until its directory is gone or nobody listens.
async fn until_gone(
    inotify: &AsyncFd<Pollable>,
    watch: WatchDescriptor,
    name: &OsStr,
    inbox: &mpsc::Sender<Input>,
) -> io::Result<()> {
    loop {
        let mut guard = tokio::select! {
            guard = inotify.readable() => guard?,
            () = inbox.closed() => return Ok(()),
        };
        let events = match guard.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?)) {
            Ok(events) => events?,
            Err(_would_block) => continue,
        };
        let gone = events.iter().any(|event| event.wd == watch && event.mask.intersects(GONE));
        let about = |event: &InotifyEvent| {
            let named = event.wd == watch && event.name.as_deref().is_none_or(|touched| touched == name);
            named || event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
        };
        if events.iter().any(about) && inbox.send(Input::File).await.is_err() {
            return Ok(());
        }
        if gone {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
