//! Who holds which address: host-local's folder, file for file, so that either may follow the other.
//!
//! ```text
//!   <dataDir>/<network>/lock                 held exclusively by flock(2)
//!                      /10.244.1.5           "<container ID>\r\n<interface>", made with O_EXCL
//!                      /last_reserved_ip.0   the address handed out last of the first range set
//! ```
//!
//! A reservation is made by one exclusive create and one short write, so what a crash leaves is an empty file at most
//! (or, after a power failure, zeros); under the lock nobody is in between, hence such a file holds nothing.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, io, thread};

use crate::cni::{Code, During, Failure};
use crate::small_file;

/// Longer than any holder works; a runtime waits two minutes for the whole call.
const LOCK_WITHIN: Duration = Duration::from_secs(10);

/// The reservations of a network, locked.
pub(crate) struct Store {
    folder: PathBuf,
    _lock: File,
}

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) container: String,
    pub(crate) ifname: String,
}

impl Store {
    /// Takes the lock, and makes the folder where it is missing.
    pub(crate) fn create(folder: &Path) -> Result<Self, Failure> {
        if let Some(store) = Self::open(folder)? {
            return Ok(store);
        }
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o755).create(folder);
        made.during(Code::Io, || format!("cannot make {}", folder.display()))?;
        Self::open(folder)?.ok_or_else(|| Failure::new(Code::Io, format!("{} was removed", folder.display())))
    }

    /// Takes the lock of a folder that exists; none when it does not.
    pub(crate) fn open(folder: &Path) -> Result<Option<Self>, Failure> {
        let path = folder.join("lock");
        let what = || format!("cannot lock {}", path.display());
        let mut options = OpenOptions::new();
        let file = match options.read(true).write(true).create(true).truncate(false).mode(0o750).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.during(Code::Io, what)?,
        };
        let lock = match file.try_lock() {
            Ok(()) => file,
            Err(TryLockError::WouldBlock) => wait(file, LOCK_WITHIN).ok_or_else(|| {
                let within = LOCK_WITHIN.as_secs();
                let msg = format!("{} is held by another process for {within} s", path.display());
                Failure::new(Code::TryAgain, msg)
            })?,
            Err(TryLockError::Error(error)) => return Err(error).during(Code::Io, what),
        };
        Ok(Some(Self { folder: folder.to_owned(), _lock: lock }))
    }

    /// Every reserved address with its file's content, less those that hold nothing.
    pub(crate) fn reservations(&self) -> Result<Vec<(IpAddr, Holder)>, Failure> {
        let what = || format!("cannot read {}", self.folder.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).during(Code::Io, what)? {
            let name = entry.during(Code::Io, what)?.file_name();
            let Some(ip) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match small_file::read(&self.path(ip)) {
                Ok(content) => found.extend(Holder::parse(&content).map(|holder| (ip, holder))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).during(Code::Io, || format!("cannot read {ip} of the store"));
                }
            }
        }
        Ok(found)
    }

    /// Reserves an address that no reservation names. A file that holds nothing is replaced.
    pub(crate) fn reserve(&self, ip: IpAddr, holder: &Holder) -> Result<(), Failure> {
        let path = self.path(ip);
        let what = || format!("cannot reserve {}", path.display());
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match create() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                remove(&path).during(Code::Io, what)?;
                create()
            }
            other => other,
        }
        .during(Code::Io, what)?;
        file.write_all(holder.content().as_bytes()).during(Code::Io, what)
    }

    /// Frees an address; one that is free already is no error.
    pub(crate) fn free(&self, ip: IpAddr) -> Result<(), Failure> {
        remove(&self.path(ip)).during(Code::Io, || format!("cannot free {ip}"))
    }

    /// The address of a range set that was handed out last, so that a freed one rests as long as possible.
    pub(crate) fn last(&self, set: usize) -> Option<IpAddr> {
        small_file::read(&self.last_path(set)).ok()?.parse().ok()
    }

    /// Remembers it.
    pub(crate) fn set_last(&self, set: usize, ip: IpAddr) -> Result<(), Failure> {
        let path = self.last_path(set);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(ip.to_string().as_bytes()))
            .during(Code::Io, || format!("cannot write {}", path.display()))
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.folder.join(ip.to_string())
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.folder.join(format!("last_reserved_ip.{set}"))
    }
}

impl Holder {
    /// Whether a reservation of this content is its own; very old ones name no interface and match any.
    pub(crate) fn owns(&self, reservation: &Self) -> bool {
        self.container == reservation.container
            && (self.ifname == reservation.ifname || reservation.ifname.is_empty())
    }

    fn content(&self) -> String {
        format!("{}\r\n{}", self.container, self.ifname)
    }

    /// Reads a file's content; none when it holds nothing.
    fn parse(content: &str) -> Option<Self> {
        let content = content.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        let (container, ifname) = content.split_once("\r\n").unwrap_or((content, ""));
        (!container.is_empty()).then(|| Self { container: container.to_owned(), ifname: ifname.to_owned() })
    }
}

/// Waits for the lock in a thread, since flock(2) knows no time limit; a thread that waits on ends with the process.
fn wait(file: File, within: Duration) -> Option<File> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let locked = file.lock().is_ok();
        let _ = sender.send(locked.then_some(file));
    });
    receiver.recv_timeout(within).ok().flatten()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Folder;

    fn holder(container: &str, ifname: &str) -> Holder {
        Holder { container: container.into(), ifname: ifname.into() }
    }

    fn store(folder: &Folder) -> Store {
        Store::create(&folder.path().join("cbr0")).unwrap()
    }

    #[test]
    fn a_reservation_is_what_host_local_writes() {
        let folder = Folder::new();
        let store = store(&folder);
        store.reserve("fc00::3".parse().unwrap(), &holder("c1", "eth0")).unwrap();
        store.set_last(1, "fc00::3".parse().unwrap()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join("cbr0").join(name)).unwrap();
        assert_eq!(read("fc00::3"), "c1\r\neth0");
        assert_eq!(read("last_reserved_ip.1"), "fc00::3");
        assert_eq!(read("lock"), "");
        assert_eq!(store.last(1), Some("fc00::3".parse().unwrap()));
    }

    #[test]
    fn files_that_hold_nothing_are_free_and_others_are_not_ours_to_judge() {
        let folder = Folder::new();
        let store = store(&folder);
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        for (content, held) in
            [("", false), ("\0\0\0\0", false), ("\r\n", false), ("c1", true), ("c1\r\neth0", true)]
        {
            fs::write(store.path(ip), content).unwrap();
            assert_eq!(!store.reservations().unwrap().is_empty(), held, "{content:?}");
        }
        fs::write(store.path(ip), "").unwrap();
        fs::write(store.folder.join("notes.txt"), "c1").unwrap();
        assert!(store.reservations().unwrap().is_empty());
        store.reserve(ip, &holder("c2", "eth0")).unwrap();
        assert_eq!(store.reservations().unwrap(), [(ip, holder("c2", "eth0"))]);
    }

    #[test]
    fn an_old_reservation_that_names_no_interface_belongs_to_any_of_its_container() {
        let old = Holder::parse("c1\n").unwrap();
        assert!(holder("c1", "eth0").owns(&old) && holder("c1", "eth1").owns(&old));
        assert!(!holder("c2", "eth0").owns(&old));
        assert!(!holder("c1", "eth1").owns(&holder("c1", "eth0")));
    }

    #[test]
    fn the_last_address_is_ignored_when_it_is_garbage() {
        let folder = Folder::new();
        let store = store(&folder);
        for garbage in ["", "x", "10.1.2.3\n"] {
            fs::write(store.last_path(0), garbage).unwrap();
            assert_eq!(store.last(0), None, "{garbage:?}");
        }
    }

    #[test]
    fn a_lock_that_is_never_released_is_not_waited_for_without_end() {
        let folder = Folder::new();
        let held = store(&folder);
        let lock = || File::open(folder.path().join("cbr0/lock")).unwrap();
        assert!(wait(lock(), Duration::from_millis(1)).is_none());
        drop(held);
        assert!(wait(lock(), Duration::from_secs(60)).is_some());
    }
}
