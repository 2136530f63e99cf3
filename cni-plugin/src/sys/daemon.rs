//! The network daemon of this host, where one of ours runs: asked why there is no subnet, and given links to delete.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

use backends::local::daemon::{self, LONGEST_ANSWER, PREFIX, Request, TAKEN, USUAL_NETWORK};
use nix::sys::socket::{getsockopt, sockopt};

use crate::contract::json::Object;
use crate::sys::small_file;

/// It answers between two inputs of its core.
const PATIENCE: Duration = Duration::from_secs(2);

/// A sentence about why the daemon has no subnet yet, for the details of a failure.
pub(crate) fn why() -> String {
    let Some(stream) = connect(&usual()).or_else(|| connect(&other()?)) else {
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
        connect(&usual()).map(Self)
    }

    /// Hands a link of this namespace over for deletion. One that does not know the word says so: then it is not taken.
    pub(crate) fn unlink(mut self, index: u32) -> bool {
        let mut answer = [0];
        let asked = self.0.write_all(Request::Unlink(index).to_string().as_bytes());
        asked.is_ok() && self.0.read(&mut answer).is_ok_and(|n| n == 1 && TAKEN.starts_with(&answer))
    }
}

fn reasons(mut stream: UnixStream) -> Option<Vec<String>> {
    stream.write_all(Request::Status.to_string().as_bytes()).ok()?;
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_ANSWER)).read_until(b'\n', &mut line).ok()?;
    Object::parse("the daemon's status", &line).ok()?.texts("reasons").ok()
}

fn usual() -> Vec<u8> {
    daemon::name(USUAL_NETWORK)
}

/// Connects to a daemon of root or of our own user: any user can hold an abstract name.
fn connect(name: &[u8]) -> Option<UnixStream> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).ok()?).ok()?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    if !daemon::is_trusted(peer.uid()) {
        return None;
    }
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

/// A daemon of another network, as the kernel lists its socket.
fn other() -> Option<Vec<u8>> {
    let list = small_file::read(Path::new("/proc/net/unix")).ok()?;
    let names = list.lines().filter_map(|line| line.split(' ').next_back()?.strip_prefix('@'));
    names.into_iter().find(|name| name.starts_with(PREFIX)).map(|name| name.as_bytes().to_vec())
}
