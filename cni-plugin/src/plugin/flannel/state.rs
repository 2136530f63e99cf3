//! What ADD leaves for DEL: the bridge configuration, in the folder and the form of the Go plugin.
//!
//! The Go plugin names the file after the container alone, so the second interface of a container overwrites the
//! first one's. Ours is `<container>@<interface>` (no container ID has an `@`); the other is written as well, so that
//! a Go plugin finds what we added, and read where ours is missing, so that we find what it added.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use backends::IfName;
use backends::local::files::Draft;

use crate::contract::{Code, During, Failure, Key};
use crate::sys::small_file;

/// The two files of an interface.
#[derive(Debug)]
pub(super) struct State {
    folder: PathBuf,
    own: String,
    shared: String,
}

impl State {
    pub(super) fn new(folder: &Path, container: &str, ifname: IfName) -> Self {
        Self { folder: folder.to_owned(), own: format!("{container}@{ifname}"), shared: container.to_owned() }
    }

    /// Stores the text under our name; whether nothing was stored there before.
    pub(super) fn save(&self, text: &str) -> Result<bool, Failure> {
        let path = self.path(&self.own);
        let stored = || {
            let draft = self.draft(&path, text)?;
            match fs::hard_link(self.path(&self.temporary()), &path) {
                Ok(()) => Ok(true),
                Err(_) => draft.put().map(|()| false),
            }
        };
        stored().during(Code::Io, || format!("cannot write {}", path.display()))
    }

    /// Takes back what [`State::save`] stored. The shared file may be that of an earlier ADD by a Go plugin.
    pub(super) fn revert(&self) -> Result<(), Failure> {
        self.unlink(&self.own)
    }

    /// Stores it where a Go plugin looks for it.
    pub(super) fn save_for_others(&self, text: &str) -> Result<(), Failure> {
        let path = self.path(&self.shared);
        let stored = self.draft(&path, text).and_then(Draft::put);
        stored.during(Code::Io, || format!("cannot write {}", path.display()))
    }

    /// The text that was stored last.
    pub(super) fn load(&self) -> Result<Option<String>, Failure> {
        match self.read(&self.own)? {
            Some(text) => Ok(Some(text)),
            None => self.read(&self.shared),
        }
    }

    /// Removes the file, and the draft of an ADD that was killed. The shared file goes as well when its text is the same;
    /// that of another interface stays.
    pub(super) fn remove(&self, text: Option<&str>) -> Result<(), Failure> {
        if text.is_some() && self.read(&self.shared).ok().flatten().as_deref() == text {
            self.unlink(&self.shared)?;
        }
        self.unlink(&self.temporary())?;
        // Last: a call that is killed before this line leaves the file, by which the next DEL finds the rest.
        self.unlink(&self.own)
    }

    /// The attachments that are stored, as far as the file names say which interface is meant.
    pub(super) fn list(folder: &Path) -> Result<Vec<Key>, Failure> {
        let what = || format!("cannot read {}", folder.display());
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
            other => other.during(Code::Io, what)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.during(Code::Io, what)?.file_name();
            let key =
                name.to_str().filter(|name| !name.starts_with('.')).and_then(|name| name.split_once('@'));
            found.extend(key.map(|(container, ifname)| (container.to_owned(), ifname.to_owned())));
        }
        Ok(found)
    }

    fn unlink(&self, name: &str) -> Result<(), Failure> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).during(Code::Io, || format!("cannot remove {}", self.path(name).display()))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<Option<String>, Failure> {
        match small_file::read_whole(&self.path(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).during(Code::Io, || format!("cannot read {}", self.path(name).display()))
            }
        }
    }

    /// The text beside its place, which it gets in one step. Not synced: after a power failure there is no namespace any
    /// more, and DEL finds the rest without it. Makes the folder when it turns out to be missing.
    fn draft(&self, path: &Path, text: &str) -> io::Result<Draft> {
        let begin = || Draft::named(path, self.path(&self.temporary()), 0o600);
        let mut draft = match begin() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
                begin()
            }
            other => other,
        }?;
        draft.write_all(text.as_bytes())?;
        Ok(draft)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Begins with what no container ID begins with.
    fn temporary(&self) -> String {
        format!(".{}", self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::scratch::Folder;

    fn state(folder: &Folder, ifname: &str) -> State {
        State::new(folder.path(), "c1", ifname.parse().unwrap())
    }

    #[test]
    fn what_go_stored_is_found_and_removed() {
        let folder = Folder::new();
        fs::write(folder.path().join("c1"), "text").unwrap();
        let state = state(&folder, "eth0");
        assert_eq!(state.load().unwrap().as_deref(), Some("text"));
        state.remove(Some("text")).unwrap();
        assert_eq!(folder.names(), Vec::<String>::new());
        assert_eq!(state.load().unwrap(), None);
    }

    #[test]
    fn what_we_store_go_finds() {
        let folder = Folder::new();
        let state = state(&folder, "eth0");
        assert!(state.save("text").unwrap());
        state.save_for_others("text").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("c1")).unwrap(), "text");
        assert!(!state.save("text").unwrap(), "the second time it is not new");
        state.remove(Some("text")).unwrap();
        assert_eq!(folder.names(), Vec::<String>::new());
    }

    #[test]
    fn a_configuration_of_any_size_comes_back() {
        let folder = Folder::new();
        let text = "annotation ".repeat(100_000);
        state(&folder, "eth0").save(&text).unwrap();
        assert!(state(&folder, "eth0").load().unwrap() == Some(text));
    }

    #[test]
    fn two_interfaces_of_a_container_do_not_overwrite_each_other() {
        let folder = Folder::new();
        let (first, second) = (state(&folder, "eth0"), state(&folder, "eth1"));
        for (state, text) in [(&first, "one"), (&second, "two")] {
            state.save(text).unwrap();
            state.save_for_others(text).unwrap();
        }
        assert_eq!(first.load().unwrap().as_deref(), Some("one"));
        first.remove(Some("one")).unwrap();
        assert_eq!(second.load().unwrap().as_deref(), Some("two"));
        assert_eq!(folder.names(), ["c1", "c1@eth1"]);
    }
}
