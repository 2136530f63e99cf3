//! Files and links, each replaced in one step: a reader sees the old one or the new one, whole.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use backends::local::files::Draft;

/// Ends the name of what was there before. No runtime uses such a file as a program or a configuration.
const BEFORE: &str = ".before-selvage";

/// Changes files and links; in a dry run it only returns what it would change. Each call returns what was done, or none
/// where nothing was to be done.
pub(super) struct Writer {
    pub(super) dry_run: bool,
}

impl Writer {
    /// Makes the file hold these bytes, also after a power failure. `strange`: what is there may be another program's, and is
    /// kept.
    pub(super) fn put_file(
        &self,
        path: &Path,
        bytes: &[u8],
        mode: u32,
        strange: bool,
    ) -> io::Result<Option<&'static str>> {
        let there = fs::symlink_metadata(path).ok();
        if there.as_ref().is_some_and(fs::Metadata::is_file) && fs::read(path)? == bytes {
            if !self.dry_run {
                fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
            return Ok(None);
        }
        if self.dry_run {
            return Ok(Some(what(there.is_some(), there.is_some() && strange && is_to_be_kept(path))));
        }
        let temporary = with_ending(path, &format!(".new-{}", std::process::id()));
        let kept = there.is_some() && strange && keep(path)?;
        let mut draft = Draft::named(path, temporary, mode)?;
        draft.write_all(bytes)?;
        draft.put_synced()?;
        sync_folder(path)?;
        Ok(Some(what(there.is_some(), kept)))
    }

    /// Makes a link to a file of the same folder. A foreign file is replaced only if it must be.
    pub(super) fn put_link(&self, path: &Path, target: &str, must: bool) -> io::Result<Option<&'static str>> {
        let there = fs::symlink_metadata(path).is_ok();
        if fs::read_link(path).is_ok_and(|to| to == Path::new(target)) {
            return Ok(None);
        }
        if there && !must {
            return Ok(Some("another program's, left alone"));
        }
        if self.dry_run {
            return Ok(Some(what(there, there && is_to_be_kept(path))));
        }
        let temporary = with_ending(path, &format!(".new-{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let kept = there && keep(path)?;
        symlink(target, &temporary)?;
        settle(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        Ok(Some(what(there, kept)))
    }

    /// Removes a file, or a link to the target, and restores what was there before.
    pub(super) fn take_away(&self, path: &Path, target: Option<&str>) -> io::Result<Option<&'static str>> {
        let ours = match target {
            Some(target) => fs::read_link(path).is_ok_and(|to| to == Path::new(target)),
            None => fs::symlink_metadata(path).is_ok(),
        };
        if !ours {
            return Ok(None);
        }
        let before = with_ending(path, BEFORE);
        if fs::symlink_metadata(&before).is_ok() {
            if !self.dry_run {
                settle(&before, path)?;
            }
            return Ok(Some("removed; what was there before is restored"));
        }
        if !self.dry_run {
            fs::remove_file(path)?;
            sync_folder(path)?;
        }
        Ok(Some("removed"))
    }
}

/// Whether there is no copy yet of what somebody else put there.
fn is_to_be_kept(path: &Path) -> bool {
    fs::symlink_metadata(with_ending(path, BEFORE)).is_err()
}

/// Keeps what another program put there; an earlier copy stays as it is.
fn keep(path: &Path) -> io::Result<bool> {
    let before = with_ending(path, BEFORE);
    if fs::symlink_metadata(&before).is_ok() {
        return Ok(false);
    }
    match fs::hard_link(path, &before) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn settle(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn what(there: bool, kept: bool) -> &'static str {
    match (there, kept) {
        (false, _) => "installed",
        (true, true) => "replaced; what was there is kept beside it",
        (true, false) => "updated",
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(ending);
    path.with_file_name(name)
}
