//! Where the daemon of a network is found on its host, and the words that daemon, `flannelctl` and the CNI plugin exchange.
//!
//! ```text
//!   /run/flannel/daemons/                          0700
//!      4026531840-6c62272e07bb0142.lock            0600, locked as long as the daemon runs
//!      4026531840-6c62272e07bb0142.sock
//!         │           └ network
//!         └ network namespace
//!      ├── "status\n"         ──▶ one line of JSON: ready, reasons, …
//!      ├── "unlink <index>\n" ──▶ "+": the daemon deletes the container's link of that index, or "-"
//!      └── "wait\n"           ──▶ nothing, until the daemon has ended
//! ```
//!
//! Both ends go by the file system: whoever can enter the folder is root, or may do whatever root may.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::hash::Fnv64;

/// The folder of a host's daemons.
pub const DAEMONS: &str = "/run/flannel/daemons";
/// The network of a daemon whose configuration names no other.
pub const USUAL_NETWORK: &str = "/coreos.com/network";
/// The longest request (bytes).
pub const LONGEST_REQUEST: u64 = 24;
/// The longest answer (bytes); the lists in it are cut, so it is far below.
pub const LONGEST_ANSWER: u64 = 4 << 20;
/// The answer to [`Request::Unlink`] when the daemon deletes the link.
pub const TAKEN: &[u8] = b"+\n";
/// The answer to [`Request::Unlink`] when it does not.
pub const NOT_TAKEN: &[u8] = b"-\n";
/// The network namespace of the thread that reads it.
const OUR_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// A request to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// How it is.
    Status,
    /// The same, with all its peers.
    Peers,
    /// Delete the container's link of this index.
    Unlink(u32),
    /// Keep the connection until the daemon ends.
    Wait,
}

impl Request {
    /// Reads a line; none for any other line.
    pub fn parse(line: &str) -> Option<Self> {
        match line.strip_suffix('\n')? {
            "status" => Some(Self::Status),
            "peers" => Some(Self::Peers),
            "wait" => Some(Self::Wait),
            other => other.strip_prefix("unlink ")?.parse().ok().map(Self::Unlink),
        }
    }
}

/// The line, with its end.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status\n"),
            Self::Peers => f.write_str("peers\n"),
            Self::Wait => f.write_str("wait\n"),
            Self::Unlink(index) => writeln!(f, "unlink {index}"),
        }
    }
}

/// The files of one network's daemon in this network namespace, without their extension.
pub fn file_of(folder: &Path, network: &str) -> io::Result<PathBuf> {
    Ok(folder.join(format!("{}{}", prefix()?, Fnv64::of(network.as_bytes()))))
}

/// The sockets of all daemons in this network namespace.
pub fn sockets(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let prefix = prefix()?;
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&prefix) && name.ends_with(".sock")
    };
    let mut sockets: Vec<_> =
        fs::read_dir(folder)?.flatten().map(|entry| entry.path()).filter(ours).collect();
    sockets.sort();
    Ok(sockets)
}

/// Whether nobody but root and this user can put anything into the folder; why not.
pub fn is_private(folder: &Path, user: u32) -> io::Result<()> {
    let there = fs::symlink_metadata(folder)?;
    if there.is_dir() && (there.uid() == 0 || there.uid() == user) && there.mode() & 0o077 == 0 {
        return Ok(());
    }
    let why = format!(
        "{} is not a folder of root's with mode 0700: others could pose as the daemon",
        folder.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// The namespace's number is the same in every process, and no other namespace has it as long as this one lives.
fn prefix() -> io::Result<String> {
    Ok(format!("{}-", fs::metadata(OUR_NAMESPACE)?.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder for one test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("selvage-daemon-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_request_reads_back_and_nothing_else_is_one() {
        for request in [Request::Status, Request::Wait, Request::Unlink(0), Request::Unlink(u32::MAX)] {
            let line = request.to_string();
            assert!(line.len() as u64 <= LONGEST_REQUEST);
            assert_eq!(Request::parse(&line), Some(request));
        }
        for other in
            ["", "status", "Status\n", "unlink\n", "unlink -1\n", "unlink 4294967296\n", "status\nwait\n"]
        {
            assert_eq!(Request::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn each_network_has_files_of_its_own_and_all_are_found() {
        let folder = &Folder::new("files").0;
        let files = ["/a/b", "/a-b"].map(|id| file_of(folder, id).unwrap());
        assert_ne!(files[0], files[1]);
        let mut expected = files.clone().map(|file| file.with_extension("sock"));
        expected.sort();
        for name in [&expected[0], &expected[1], &files[0].with_extension("lock"), &folder.join("7-0.sock")] {
            fs::write(name, "").unwrap();
        }
        assert_eq!(sockets(folder).unwrap(), expected);
    }

    #[test]
    fn a_folder_that_others_can_enter_is_not_believed() {
        let folder = &Folder::new("modes").0;
        let user = fs::metadata(folder).unwrap().uid();
        for (mode, private) in [(0o700, true), (0o755, false), (0o770, false), (0o1777, false)] {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_private(folder, user).is_ok(), private, "{mode:o}");
        }
        assert!(is_private(&folder.join("nothing"), user).is_err());
    }
}
