//! The socket of the host's daemon: its name, and the words that daemon, `flannelctl` and the CNI plugin exchange over it.
//!
//! ```text
//!   @selvage/<network>     abstract unix socket of the network namespace
//!      ├── "status\n"       ──▶ one line of JSON: ready, reasons, …
//!      ├── "unlink <index>\n" ──▶ "+": the daemon deletes the container's link of that index, or "-"
//!      └── "wait\n"         ──▶ nothing, until the daemon has ended
//! ```

use std::fmt;

use nix::unistd::geteuid;

use super::hash::Fnv64;

/// Begins every name; the network's id follows. Part of the interface between versions.
pub const PREFIX: &str = "selvage/";
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
/// Longest name in bytes: `sun_path` has 108, and the first is the NUL that makes a name abstract.
const LONGEST_NAME: usize = 107;

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

/// The socket's name for a network; of a long id the beginning and a hash of it all.
pub fn name(network: &str) -> Vec<u8> {
    let whole = format!("{PREFIX}{network}");
    if whole.len() <= LONGEST_NAME {
        return whole.into_bytes();
    }
    let end = (0..=LONGEST_NAME - 17).rev().find(|n| whole.is_char_boundary(*n)).unwrap_or_default();
    format!("{}#{}", &whole[..end], Fnv64::of(whole.as_bytes())).into_bytes()
}

/// Whether the process at the other end may be the daemon, or may ask it: root and our own user. Any user of the namespace
/// can bind or reach an abstract name.
pub fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_network_with_a_long_id_has_a_name_of_its_own() {
        assert_eq!(name(USUAL_NETWORK), b"selvage//coreos.com/network");
        let long = [name(&"é".repeat(100)), name(&"é".repeat(101))];
        assert!(long.iter().all(|name| name.len() <= LONGEST_NAME));
        assert_ne!(long[0], long[1]);
    }
}
