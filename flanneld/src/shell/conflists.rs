//! Watches the folders of CNI configurations, and logs when a configuration comes before ours. `flannelctl status` reads them
//! itself: nothing is kept here.

use std::time::Duration;

use nix::sys::inotify::AddWatchFlags;
use tokio::time::timeout;
use tracing::{info, warn};

use super::publish::{Watcher, watcher};
use crate::host::conflists;

/// Time between two looks where no folder can be watched, and for folders that are made later. Ours: an installation of a
/// container runtime is rare.
const AGAIN: Duration = Duration::from_secs(60);

const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE);

pub(super) fn watch() {
    tokio::spawn(async {
        let watcher = watcher().ok();
        let mut known = Vec::new();
        loop {
            // Before the look: later changes wake us.
            watcher.iter().for_each(add);
            let now = conflists::all();
            now.iter().filter(|why| !known.contains(*why)).for_each(|why| warn!("{why}"));
            if now.is_empty() && !known.is_empty() {
                info!("no CNI configuration comes before ours any more");
            }
            known = now;
            match &watcher {
                Some(watcher) => drop(timeout(AGAIN, watcher.changed()).await),
                None => tokio::time::sleep(AGAIN).await,
            }
        }
    });
}

/// A folder that is watched already stays so; one that is missing is tried again later.
fn add(watcher: &Watcher) {
    for folder in conflists::FOLDERS {
        watcher.add(folder, CHANGES);
    }
}
