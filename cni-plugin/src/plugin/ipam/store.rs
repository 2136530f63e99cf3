//! Who holds which address: host-local's folder, file for file, so that either may follow the other.
//!
//! ```text
//!   <dataDir>/<network>/lock                 held exclusively by flock(2)
//!                      /10.244.1.5           "<container ID>\r\n<interface>", made with O_EXCL
//!                      /last_reserved_ip.0   the address handed out last of the first range set
//! ```
//!
//! A reservation is made by one exclusive create and one short write, so what a crash leaves is an empty file at most
//! (or, after a power failure, zeros). Under the lock no other process is writing, so such a file holds nothing.
//!
//! What an attachment holds is asked of the [`Index`] while that is of this folder as it is now; otherwise the folder
//! is read once, whole, and the index made anew.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, Metadata, TryLockError};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, io, thread};

use backends::local::pool_stamp::{Stamp, Usage};
use nix::fcntl::OFlag;

use super::index::Index;
use super::stale;
use crate::contract::{Code, During, Failure};
use crate::sys::small_file;

/// Longer than any holder works; a runtime waits two minutes for the whole call.
const LOCK_WITHIN: Duration = Duration::from_secs(10);

/// Where a network's reservations are, and the index over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// host-local's folder of the network.
    pub(crate) folder: PathBuf,
    /// The folder that holds the indexes of all networks; on tmpfs, so that it is of this boot.
    pub(crate) indexes: PathBuf,
}

/// The reservations of a network, locked.
pub(crate) struct Store {
    folder: PathBuf,
    index: Index,
    /// The stamp of the index, where the index is valid.
    stamp: Option<Stamp>,
    /// Something was changed since.
    touched: bool,
    /// Odd entries that were named.
    named: BTreeSet<IpAddr>,
    _lock: File,
}

/// What the folder has under the name of an address.
enum Entry {
    /// Nothing, or a file that holds nothing.
    Empty,
    Held(Holder),
    /// Something else, or a file that cannot be read, for this reason. Nobody knows whether its address is free.
    Odd(String),
}

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) container: String,
    pub(crate) ifname: String,
}

impl Store {
    /// Takes the lock, and makes the folder where it is missing.
    pub(crate) fn create(place: &Place) -> Result<Self, Failure> {
        if let Some(store) = Self::open(place)? {
            return Ok(store);
        }
        let folder = &place.folder;
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o755).create(folder);
        made.during(Code::Io, || format!("cannot make {}", folder.display()))?;
        Self::open(place)?.ok_or_else(|| Failure::new(Code::Io, format!("{} was removed", folder.display())))
    }

    /// Takes the lock of a folder that exists; none when it does not.
    pub(crate) fn open(place: &Place) -> Result<Option<Self>, Failure> {
        let path = place.folder.join("lock");
        let what = || format!("cannot lock {}", path.display());
        let file = match small_file::open(&path, OFlag::O_RDWR | OFlag::O_CREAT, 0o750) {
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
        let index = Index::of(place);
        let stamp = index.stamp(&metadata(&place.folder)?);
        Ok(Some(Self {
            folder: place.folder.clone(),
            index,
            stamp,
            touched: false,
            named: BTreeSet::new(),
            _lock: lock,
        }))
    }

    /// The addresses of an attachment.
    pub(crate) fn held_by(&mut self, holder: &Holder) -> Result<Vec<IpAddr>, Failure> {
        if self.stamp.is_none() {
            let all = self.rescan()?;
            return Ok(all.into_iter().filter(|(_, found)| holder.owns(found)).map(|(ip, _)| ip).collect());
        }
        let mut held = Vec::new();
        for ip in self.index.addresses(holder) {
            // The file decides; the index only names the one to read.
            match self.read(ip) {
                Entry::Held(found) if holder.owns(&found) => held.push(ip),
                _ => {}
            }
        }
        Ok(held)
    }

    /// Reads the folder whole and makes the index anew. Of what an earlier boot left goes what no namespace has.
    pub(crate) fn rescan(&mut self) -> Result<Vec<(IpAddr, Holder)>, Failure> {
        let mut reservations = self.reservations()?;
        for ip in stale::find(&self.folder, &reservations) {
            match remove(&self.path(ip)) {
                Ok(()) => reservations.retain(|(held, _)| *held != ip),
                Err(error) => self.name_odd(ip, &error.to_string()),
            }
        }
        let usage = self.index.usage().recount(reservations.iter().map(|(ip, _)| *ip));
        self.stamp = self.index.rebuild(&reservations, usage);
        self.touched = true;
        Ok(reservations)
    }

    /// Every reserved address with its file's content. Files that hold nothing are removed, odd entries are named.
    pub(crate) fn reservations(&mut self) -> Result<Vec<(IpAddr, Holder)>, Failure> {
        let mut found = Vec::new();
        for ip in self.names()? {
            match self.read(ip) {
                Entry::Held(holder) => found.push((ip, holder)),
                Entry::Empty => {
                    let _ = remove(&self.path(ip)).inspect_err(|error| self.name_odd(ip, &error.to_string()));
                }
                Entry::Odd(why) => self.name_odd(ip, &why),
            }
        }
        Ok(found)
    }

    /// The addresses of odd entries, which count as taken; complete after [`Store::reservations`].
    pub(crate) fn odd(&self) -> &BTreeSet<IpAddr> {
        &self.named
    }

    /// Names an entry that is no reservation, once in a call.
    fn name_odd(&mut self, ip: IpAddr, why: &str) {
        if self.named.insert(ip) {
            let path = self.path(ip);
            eprintln!(
                "host-local: {} is no reservation ({why}); its address counts as taken",
                path.display()
            );
        }
    }

    /// The addresses that have a file.
    pub(crate) fn names(&self) -> Result<BTreeSet<IpAddr>, Failure> {
        let what = || format!("cannot read {}", self.folder.display());
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.folder).during(Code::Io, what)? {
            found.extend(
                entry
                    .during(Code::Io, what)?
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<IpAddr>().ok()),
            );
        }
        Ok(found)
    }

    fn read(&self, ip: IpAddr) -> Entry {
        let path = self.path(ip);
        match small_file::read(&path) {
            Ok(content) => match Holder::parse(&content) {
                Some(holder) => Entry::Held(holder),
                // A FIFO has no content either.
                None if fs::metadata(&path).is_ok_and(|there| !there.is_file()) => {
                    Entry::Odd("not a regular file".to_owned())
                }
                None => Entry::Empty,
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Entry::Empty,
            Err(error) => Entry::Odd(error.to_string()),
        }
    }

    /// Reserves an address, unless it is held; whether it did. A file that holds nothing is replaced.
    pub(crate) fn reserve(&mut self, ip: IpAddr, holder: &Holder) -> Result<bool, Failure> {
        let path = self.path(ip);
        let what = || format!("cannot reserve {}", path.display());
        let create = || small_file::open(&path, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, 0o600);
        let file = match create() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let odd = match self.read(ip) {
                    Entry::Held(_) => return Ok(false),
                    Entry::Odd(why) => Some(why),
                    Entry::Empty => remove(&path).err().map(|error| error.to_string()),
                };
                if let Some(why) = odd {
                    self.name_odd(ip, &why);
                    return Ok(false);
                }
                create()
            }
            other => other,
        };
        self.touched = true;
        let mut file = file.during(Code::Io, what)?;
        file.write_all(holder.content().as_bytes()).during(Code::Io, what)?;
        Ok(true)
    }

    /// Frees an address; one that is free already is no error.
    pub(crate) fn free(&mut self, ip: IpAddr) -> Result<(), Failure> {
        self.touched = true;
        remove(&self.path(ip)).during(Code::Io, || format!("cannot free {ip}"))
    }

    /// Records in the index what an attachment holds now, and how much of the network is used.
    pub(crate) fn settle(mut self, holder: &Holder, held: &[IpAddr], change: impl FnOnce(Usage) -> Usage) {
        if !self.touched {
            return;
        }
        // Without the index everything works, only slower, so its failures are ignored.
        let Some(mut stamp) = self.stamp.take() else { return };
        stamp.usage = change(stamp.usage);
        self.index.set(holder, held);
        self.index.seal(&self.folder, stamp);
    }

    /// Makes the index anew after a change of many.
    pub(crate) fn settle_all(mut self) -> Result<(), Failure> {
        self.rescan()?;
        if let Some(stamp) = self.stamp.take() {
            self.index.seal(&self.folder, stamp);
        }
        Ok(())
    }

    /// The use of the network as last noted.
    pub(crate) fn usage(&self) -> Usage {
        self.stamp.as_ref().map(|stamp| stamp.usage.clone()).unwrap_or_default()
    }

    /// The address of a range set that was handed out last, so that a freed one rests as long as possible.
    pub(crate) fn last(&self, set: usize) -> Option<IpAddr> {
        small_file::read(&self.last_path(set)).ok()?.parse().ok()
    }

    /// Remembers it. Without it the search begins at the first address: every address is found all the same.
    pub(crate) fn set_last(&self, set: usize, ip: IpAddr) {
        let path = self.last_path(set);
        if let Err(error) = small_file::overwrite(&path, &ip.to_string()) {
            eprintln!("host-local: cannot write {}: {error}", path.display());
        }
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

fn metadata(folder: &Path) -> Result<Metadata, Failure> {
    fs::metadata(folder).during(Code::Io, || format!("cannot look at {}", folder.display()))
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
    use crate::sys::scratch::Folder;

    fn holder(container: &str, ifname: &str) -> Holder {
        Holder { container: container.into(), ifname: ifname.into() }
    }

    fn place(folder: &Folder) -> Place {
        Place { folder: folder.path().join("cbr0"), indexes: folder.path().join("index") }
    }

    fn store(folder: &Folder) -> Store {
        Store::create(&place(folder)).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// What an ADD does, and whether it had to read the folder whole.
    fn add(folder: &Folder, who: &Holder, address: &str) -> bool {
        let mut store = store(folder);
        let believed = store.stamp.is_some();
        assert_eq!(store.held_by(who).unwrap(), [] as [IpAddr; 0]);
        assert!(store.reserve(ip(address), who).unwrap());
        store.settle(who, &[ip(address)], |usage| usage.taken([ip(address)]));
        believed
    }

    #[test]
    fn a_reservation_is_what_host_local_writes() {
        let folder = Folder::new();
        let mut store = store(&folder);
        assert!(store.reserve(ip("fc00::3"), &holder("c1", "eth0")).unwrap());
        assert!(!store.reserve(ip("fc00::3"), &holder("c2", "eth0")).unwrap(), "taken");
        store.set_last(1, "fc00::3".parse().unwrap());
        let read = |name: &str| fs::read_to_string(folder.path().join("cbr0").join(name)).unwrap();
        assert_eq!(read("fc00::3"), "c1\r\neth0");
        assert_eq!(read("last_reserved_ip.1"), "fc00::3");
        assert_eq!(read("lock"), "");
        assert_eq!(store.last(1), Some("fc00::3".parse().unwrap()));
    }

    #[test]
    fn files_that_hold_nothing_are_free_and_others_are_not_ours_to_judge() {
        let folder = Folder::new();
        let mut store = store(&folder);
        let ip = ip("10.1.2.3");
        for (content, held) in
            [("", false), ("\0\0\0\0", false), ("\r\n", false), ("c1", true), ("c1\r\neth0", true)]
        {
            fs::write(store.path(ip), content).unwrap();
            assert_eq!(!store.reservations().unwrap().is_empty(), held, "{content:?}");
            assert_eq!(store.path(ip).exists(), held, "repaired");
        }
        fs::write(store.path(ip), "").unwrap();
        fs::write(store.folder.join("notes.txt"), "c1").unwrap();
        assert!(store.reserve(ip, &holder("c2", "eth0")).unwrap());
        assert_eq!(store.reservations().unwrap(), [(ip, holder("c2", "eth0"))]);
    }

    #[test]
    fn the_index_is_believed_until_somebody_else_changes_the_folder() {
        let folder = Folder::new();
        let (one, two, three) = (holder("c1", "eth0"), holder("c2", "eth0"), holder("c3", "eth0"));
        assert!(!add(&folder, &one, "10.1.2.2"), "the first has to read");
        assert!(add(&folder, &two, "10.1.2.3"));
        assert_eq!(store(&folder).held_by(&one).unwrap(), [ip("10.1.2.2")]);
        // Within the tick of the last change, as a host-local that waited for the lock would.
        fs::write(folder.path().join("cbr0/10.1.2.9"), "c9\r\neth0").unwrap();
        assert!(!add(&folder, &three, "10.1.2.4"), "a stranger wrote");
        assert_eq!(store(&folder).held_by(&holder("c9", "eth0")).unwrap(), [ip("10.1.2.9")]);
        fs::remove_file(folder.path().join("cbr0/10.1.2.9")).unwrap();
        assert_eq!(store(&folder).held_by(&holder("c9", "eth0")).unwrap(), [] as [IpAddr; 0]);
    }

    #[test]
    fn an_index_that_lies_frees_nothing_of_others() {
        let folder = Folder::new();
        let (one, two) = (holder("c1", "eth0"), holder("c2", "eth0"));
        add(&folder, &one, "10.1.2.2");
        add(&folder, &two, "10.1.2.3");
        let mut store = store(&folder);
        store.index.set(&one, &[ip("10.1.2.3")]);
        assert_eq!(store.held_by(&one).unwrap(), [] as [IpAddr; 0]);
    }

    #[test]
    fn without_a_place_for_the_index_everything_is_read() {
        let folder = Folder::new();
        fs::write(folder.path().join("index"), "a file").unwrap();
        for n in 2..5 {
            let (who, address) = (holder(&format!("c{n}"), "eth0"), format!("10.1.2.{n}"));
            assert!(!add(&folder, &who, &address));
            assert_eq!(store(&folder).held_by(&who).unwrap(), [ip(&address)]);
        }
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
    fn what_an_earlier_boot_left_goes_at_the_first_look_unless_a_namespace_has_it() {
        let folder = Folder::new();
        let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        {
            let mut store = store(&folder);
            // The loopback's own address stands for one that a namespace has.
            for (address, age) in [("10.254.253.2", true), ("127.0.0.1", true), ("10.254.253.3", false)] {
                store.reserve(ip(address), &holder("c1", address)).unwrap();
                if age {
                    let file = File::options().write(true).open(store.path(ip(address))).unwrap();
                    file.set_modified(long_ago).unwrap();
                }
            }
        }
        let held = |address: &str| !store(&folder).held_by(&holder("c1", address)).unwrap().is_empty();
        assert!(!held("10.254.253.2"), "stale");
        assert!(held("127.0.0.1"), "in use");
        assert!(held("10.254.253.3"), "of this boot");
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
