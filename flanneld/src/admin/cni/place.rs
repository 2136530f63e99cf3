//! Files and links put in place in one step each: whoever looks sees the old one or the new one.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use backends::local::files::Draft;

/// Ends the name of what was there before. No runtime takes such a file for a program or a configuration.
const BEFORE: &str = ".before-selvage";

/// Makes the file hold these bytes, also after a power failure; what was done, if it was not so already.
/// `strange`: what is there may be somebody else's, and is kept.
pub(super) fn put_file(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    strange: bool,
) -> io::Result<Option<&'static str>> {
    let there = fs::symlink_metadata(path).ok();
    if there.as_ref().is_some_and(fs::Metadata::is_file) && fs::read(path)? == bytes {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        return Ok(None);
    }
    let temporary = with_ending(path, &format!(".new-{}", std::process::id()));
    let kept = there.is_some() && strange && keep(path)?;
    let mut draft = Draft::named(path, temporary, mode)?;
    draft.write_all(bytes)?;
    draft.put_synced()?;
    sync_folder(path)?;
    Ok(Some(what(there.is_some(), kept)))
}

/// Makes a link to a file of the same folder. What is there and no link of ours gives way only if it must.
pub(super) fn put_link(path: &Path, target: &str, must: bool) -> io::Result<Option<&'static str>> {
    let there = fs::symlink_metadata(path).is_ok();
    if fs::read_link(path).is_ok_and(|to| to == Path::new(target)) {
        return Ok(None);
    }
    if there && !must {
        return Ok(Some("another program's, left alone"));
    }
    let temporary = with_ending(path, &format!(".new-{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let kept = there && keep(path)?;
    symlink(target, &temporary)?;
    settle(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    Ok(Some(what(there, kept)))
}

/// Takes away a file, or a link that goes there, and brings back what was there before.
pub(super) fn take_away(path: &Path, target: Option<&str>) -> io::Result<Option<&'static str>> {
    let ours = match target {
        Some(target) => fs::read_link(path).is_ok_and(|to| to == Path::new(target)),
        None => fs::symlink_metadata(path).is_ok(),
    };
    if !ours {
        return Ok(None);
    }
    let before = with_ending(path, BEFORE);
    if fs::symlink_metadata(&before).is_ok() {
        settle(&before, path)?;
        return Ok(Some("what was there before is back"));
    }
    fs::remove_file(path)?;
    sync_folder(path)?;
    Ok(Some("removed"))
}

/// Keeps what somebody else put there; what is kept already stays.
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
