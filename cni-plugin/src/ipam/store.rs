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
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, io, thread};

use crate::cni::{Code, During, Failure};

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
    /// Makes the folder where it is missing and takes the lock.
    pub(crate) fn create(folder: &Path) -> Result<Self, Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .during(Code::Io, || format!("cannot make {}", folder.display()))?;
        Self::lock(folder)
    }

    /// Takes the lock of a folder that exists; none when it does not.
    pub(crate) fn open(folder: &Path) -> Result<Option<Self>, Failure> {
        if folder.is_dir() { Self::lock(folder).map(Some) } else { Ok(None) }
    }

    fn lock(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("lock");
        let what = || format!("cannot lock {}", path.display());
        let file = OpenOptions::new().read(true).write(true).create(true).mode(0o750).open(&path);
        let file = file.during(Code::Io, what)?;
        let lock = match file.try_lock() {
            Ok(()) => file,
            Err(TryLockError::WouldBlock) => wait(file).ok_or_else(|| {
                let within = LOCK_WITHIN.as_secs();
                Failure::new(Code::TryAgain, format!("{} is held by another process for {within} s", path.display()))
            })?,
            Err(TryLockError::Error(error)) => return Err(error).during(Code::Io, what),
        };
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    /// Every reserved address with its file's content, less those that hold nothing.
    pub(crate) fn reservations(&self) -> Result<Vec<(IpAddr, Holder)>, Failure> {
        let what = || format!("cannot read {}", self.folder.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).during(Code::Io, what)? {
            let name = entry.during(Code::Io, what)?.file_name();
            let Some(ip) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match read(&self.path(ip)) {
                Ok(content) => found.extend(Holder::parse(&content).map(|holder| (ip, holder))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).during(Code::Io, || format!("cannot read {ip} of the store")),
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
        fs::read_to_string(self.last_path(set)).ok()?.parse().ok()
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
fn wait(file: File) -> Option<File> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let locked = file.lock().is_ok();
        let _ = sender.send(locked.then_some(file));
    });
    receiver.recv_timeout(LOCK_WITHIN).ok().flatten()
}

/// No reservation is longer than this many bytes; the rest of a larger file is not looked at.
const LONGEST: u64 = 1024;

fn read(path: &Path) -> io::Result<String> {
    let mut content = Vec::with_capacity(128);
    File::open(path)?.take(LONGEST).read_to_end(&mut content)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
