//! Files that are replaced as a whole: a reader sees the old file or the new one, never a part of one.
//!
//! ```text
//!   Draft::new ── create `.NAME.new` (O_EXCL, O_NOFOLLOW, final mode) ── write ── put: rename over the file
//!                                                                           └─── drop: remove the draft
//! ```

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// A file that is being written. Dropped before [`Draft::put`], it leaves nothing behind.
///
/// One writer at a time: a draft that is there already was left by a process that was killed, and is removed. Callers
/// that may run at the same time hold a lock of their own, or give each draft a name of its own ([`Draft::named`]).
#[derive(Debug)]
pub struct Draft {
    file: File,
    draft: PathBuf,
    path: PathBuf,
    put: bool,
}

impl Draft {
    /// Begins a file of this mode. The draft is `.NAME.new` in the same directory.
    ///
    /// # Errors
    /// The directory is missing or not writable.
    pub fn new(path: &Path, mode: u32) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::named(path, path.with_file_name(format!(".{name}.new")), mode)
    }

    /// The same with a name for the draft, which must be in the same directory.
    ///
    /// # Errors
    /// As [`Draft::new`].
    pub fn named(path: &Path, draft: PathBuf, mode: u32) -> io::Result<Self> {
        let file = match create(&draft, mode) {
            // What is there may be a link to anywhere: it is removed, never opened.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&draft)?;
                create(&draft, mode)?
            }
            created => created?,
        };
        Ok(Self { file, draft, path: path.to_owned(), put: false })
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// The rename failed.
    pub fn put(mut self) -> io::Result<()> {
        fs::rename(&self.draft, &self.path)?;
        self.put = true;
        Ok(())
    }

    /// The same for a file that must survive a power failure: its content is on disk before it gets its name.
    ///
    /// # Errors
    /// The content could not be written to disk, or the rename failed.
    pub fn put_synced(self) -> io::Result<()> {
        self.file.sync_all()?;
        self.put()
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.put {
            // The error that led here is reported by the caller.
            let _ = fs::remove_file(&self.draft);
        }
    }
}

/// Replaces a file that need not survive a power failure, such as one under `/run`.
///
/// # Errors
/// The file could not be written; the old one is unchanged.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut draft = Draft::new(path, mode)?;
    draft.write_all(bytes)?;
    draft.put()
}

/// Replaces a file that must survive a power failure.
///
/// # Errors
/// The file could not be written; the old one is unchanged.
pub fn replace_synced(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut draft = Draft::new(path, mode)?;
    draft.write_all(bytes)?;
    draft.put_synced()
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // By `openat`, since the standard library under musl needs a second system call for O_CLOEXEC.
    let file = File::from(openat(AT_FDCWD, path, flags, Mode::from_bits_truncate(mode))?);
    if mode & 0o077 != 0 {
        // The umask may have taken some of it.
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("selvage-files-{:016x}", u64::from_ne_bytes(super::super::random::bytes()));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_with_its_mode_and_leaves_no_draft() {
        let folder = Folder::new();
        let path = folder.0.join("x");
        for (mode, text) in [(0o644, "one"), (0o600, "two")] {
            replace(&path, mode, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
        }
        let mut draft = Draft::new(&path, 0o600).unwrap();
        draft.write_all(b"three").unwrap();
        assert_eq!(folder.names(), [".x.new", "x"]);
        drop(draft);
        assert_eq!(folder.names(), ["x"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    }

    #[test]
    fn a_link_in_the_drafts_place_is_removed_and_not_followed() {
        let folder = Folder::new();
        let (path, victim) = (folder.0.join("x"), folder.0.join("victim"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, folder.0.join(".x.new")).unwrap();
        replace_synced(&path, 0o644, b"new").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
    }

    #[test]
    fn a_folder_that_is_missing_is_an_error_and_nothing_is_made() {
        let folder = Folder::new();
        let error = replace(&folder.0.join("missing/x"), 0o644, b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(folder.names().is_empty());
    }
}
