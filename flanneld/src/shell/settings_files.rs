//! Watches the files with settings, and logs when they change: the daemon goes on with what was in them at its start.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::AddWatchFlags;
use tokio::time::timeout;
use tracing::{info, warn};

use super::publish::watcher;
use crate::config::SettingsFiles;

/// Time between two looks where the folders can't be watched.
const AGAIN: Duration = Duration::from_secs(60);

const CHANGES: AddWatchFlags =
    AddWatchFlags::IN_CLOSE_WRITE.union(AddWatchFlags::IN_MOVE).union(AddWatchFlags::IN_DELETE);

pub(super) fn watch(files: Arc<SettingsFiles>) {
    let folders = files.folders();
    if folders.is_empty() {
        return;
    }
    tokio::spawn(async move {
        let watcher = watcher().ok();
        let mut known = None;
        loop {
            // Before the look: what changes after it wakes us.
            if let Some(watcher) = &watcher {
                folders.iter().for_each(|folder| watcher.add(folder, CHANGES));
            }
            let now = files.changed();
            match &now {
                Some(sentence) if now != known => warn!("{sentence}"),
                None if known.is_some() => info!("the settings are again those of the start"),
                _ => {}
            }
            known = now;
            match &watcher {
                Some(watcher) => drop(timeout(AGAIN, watcher.changed()).await),
                None => tokio::time::sleep(AGAIN).await,
            }
        }
    });
}
