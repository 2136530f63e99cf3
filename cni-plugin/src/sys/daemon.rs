//! The network daemon of this host, where one of ours runs: asked why there is no subnet, and given links to delete.
//!
//! ```text
//!   @selvage/<network>      abstract unix socket of our network namespace
//!      ├── "status\n"          ──▶ one line of JSON: ready, reasons, …
//!      └── "unlink <index>\n"  ──▶ "+", and the link goes
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::contract::json::Object;
use crate::sys::small_file;

/// The name of a daemon that was told no other network.
const USUAL: &str = "selvage//coreos.com/network";
/// Begins the names of all.
const PREFIX: &str = "selvage/";
/// It answers between two inputs of its core.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer in bytes.
const LONGEST: u64 = 4 << 20;

/// A sentence about why the daemon has no subnet yet, for the details of a failure.
pub(crate) fn why() -> String {
    let Some(stream) = connect(USUAL).or_else(|| connect(&other()?)) else {
        return "no flanneld of ours answers on this host: is it running?".to_owned();
    };
    match reasons(stream) {
        Some(reasons) if !reasons.is_empty() => format!("flanneld says: {}", reasons.join("; ")),
        _ => "flanneld runs, and does not say what it waits for".to_owned(),
    }
}

/// A daemon that answers.
pub(crate) struct Daemon(UnixStream);

impl Daemon {
    /// The usual one of this network namespace.
    pub(crate) fn find() -> Option<Self> {
        connect(USUAL).map(Self)
    }

    /// Hands a link of this namespace over for deletion. One that does not know the word says so: then it is not taken.
    pub(crate) fn unlink(mut self, index: u32) -> bool {
        let mut answer = [0];
        let asked = self.0.write_all(format!("unlink {index}\n").as_bytes());
        asked.is_ok() && self.0.read(&mut answer).is_ok_and(|n| answer[..n] == *b"+")
    }
}

fn reasons(mut stream: UnixStream) -> Option<Vec<String>> {
    stream.write_all(b"status\n").ok()?;
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST)).read_until(b'\n', &mut line).ok()?;
    Object::parse("the daemon's status", &line).ok()?.texts("reasons").ok()
}

/// Root's own daemon, that is: any user can hold an abstract name.
fn connect(name: &str) -> Option<UnixStream> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).ok()?).ok()?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return None;
    }
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

/// A daemon of another network, as the kernel lists its socket.
fn other() -> Option<String> {
    let list = small_file::read(Path::new("/proc/net/unix")).ok()?;
    let names = list.lines().filter_map(|line| line.split(' ').next_back()?.strip_prefix('@'));
    names.into_iter().find(|name| name.starts_with(PREFIX)).map(str::to_owned)
}
