//! The client of this host's daemon: asks why there is no subnet, and asks it to delete links.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use backends::local::daemon::{
    DAEMONS, LONGEST_ANSWER, Request, TAKEN, USUAL_NETWORK, file_of, is_private, sockets,
};
use nix::unistd::geteuid;

use crate::contract::json::Object;

/// The longest wait for an answer; the daemon answers between two inputs of its core.
const PATIENCE: Duration = Duration::from_secs(2);

/// A sentence about why the daemon has no subnet yet, for the details of a failure.
pub(crate) fn why() -> String {
    let others = || sockets(Path::new(DAEMONS)).into_iter().flatten();
    let Some(stream) = usual().or_else(|| others().find_map(|socket| connect(&socket))) else {
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
        usual().map(Self)
    }

    /// Asks the daemon to delete a link of this namespace; whether it does. A daemon that does not know the request does not.
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

fn usual() -> Option<UnixStream> {
    connect(&file_of(Path::new(DAEMONS), USUAL_NETWORK).ok()?.with_extension("sock"))
}

/// Only where nobody but root can have put the socket.
fn connect(socket: &Path) -> Option<UnixStream> {
    is_private(socket.parent()?, geteuid().as_raw()).ok()?;
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}
