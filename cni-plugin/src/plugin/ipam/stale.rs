//! Reservations of an earlier boot: their containers are gone, and no runtime sends a DEL for them.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use super::store::Holder;
use crate::sys::alive;

/// Those that are older than this boot and whose address no namespace of this host has. Both: a clock that was put
/// right after the start makes a young reservation look old, and one that is being made has no address yet.
pub(super) fn find(folder: &Path, reservations: &[(IpAddr, Holder)]) -> Vec<IpAddr> {
    let Some(boot) = boot_time() else { return vec![] };
    let is_old = |ip: &IpAddr| modified(&folder.join(ip.to_string())).is_some_and(|time| time < boot);
    let old: Vec<_> = reservations.iter().map(|(ip, _)| *ip).filter(is_old).collect();
    if old.is_empty() {
        return old;
    }
    // Without a look into every namespace there is no proof, and nothing is freed.
    let Ok(live) = alive::addresses() else { return vec![] };
    let live: BTreeSet<_> = live.into_iter().map(|address| address.ip).collect();
    old.into_iter().filter(|ip| !live.contains(ip)).collect()
}

/// Since the epoch, by the wall clock of now.
pub(super) fn boot_time() -> Option<Duration> {
    let read = |clock| clock_gettime(clock).ok().map(Duration::from);
    read(ClockId::CLOCK_REALTIME)?.checked_sub(read(ClockId::CLOCK_BOOTTIME)?)
}

fn modified(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()
}
