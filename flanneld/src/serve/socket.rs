//! One daemon per network and network namespace: a locked file, and beside it a socket that answers `flannelctl status`.
//!
//! ```text
//!   /run/flannel/daemons/NAMESPACE-NETWORK.lock    locked: this network has a daemon here; the kernel unlocks it with the
//!                                                  process, also after SIGKILL
//!   /run/flannel/daemons/NAMESPACE-NETWORK.sock
//!      ├── "status\n" ──▶ one line of JSON; "peers\n" the same with all peers
//!      ├── "unlink 7\n" ─▶ "+": the container's link of that index is being deleted (for the CNI plugin)
//!      └── "wait\n"   ──▶ nothing, until the daemon has ended
//! ```
//!
//! The modes decide who may ask: only root can enter the folder (0700). A user id over a socket would prove less: root in a
//! container has no capability and may share our network namespace.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backends::local::daemon::{
    LONGEST_ANSWER, LONGEST_REQUEST, NOT_TAKEN, Request, TAKEN, file_of, is_private, sockets,
};
use nix::errno::Errno;
use nix::libc::O_NOFOLLOW;
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};
use subnet_lease::NetworkId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::unlink;
use crate::core::{LISTED, Status, StatusRequest};

/// Clients served at once, and those that wait for our end; further ones wait in the kernel's queue, or are sent away.
/// Ours: people and a monitor or two ask.
const CLIENTS: usize = 8;
/// Time for one client. Ours: the core answers between two inputs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to take a socket whose holder does not listen: it is about to listen, or about to end. Ours.
const PAUSE: Duration = Duration::from_millis(10);
/// So many tries.
const TRIES: usize = 50;

/// Who has the socket of a network's daemon.
#[derive(Debug)]
pub enum SocketState {
    /// This process, until it ends.
    Ours(UnixListener),
    /// Another daemon of ours.
    Held(Holder),
    /// There is no socket, for this reason. The daemon runs nevertheless, without a status.
    Blocked(String),
}

/// A running daemon.
#[derive(Debug)]
pub struct Holder {
    /// Its process id; none when it runs in a process namespace that we don't see, or does not listen.
    pub pid: Option<u32>,
    stream: Option<UnixStream>,
}

/// Takes the socket of this network's daemon in a folder, or returns who has it.
pub async fn take(folder: &Path, network: &NetworkId) -> SocketState {
    match try_take(folder, network).await {
        Ok(taken) => taken,
        Err(error) => SocketState::Blocked(error.to_string()),
    }
}

async fn try_take(folder: &Path, network: &NetworkId) -> io::Result<SocketState> {
    if let Some(outer) = folder.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(outer)?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    is_private(folder, geteuid().as_raw())?;
    let file = file_of(folder, network.as_str())?;
    let socket = file.with_extension("sock");
    for _ in 0..TRIES {
        if lock(&file.with_extension("lock"))? {
            return bind(&socket).map(SocketState::Ours);
        }
        match connect(&socket).await {
            // The daemon was killed. A program that it had just started still holds its files.
            Ok((_, peer)) if pid(&peer).is_some_and(is_dead) => {}
            Ok((stream, peer)) => {
                return Ok(SocketState::Held(Holder { pid: pid(&peer), stream: Some(stream) }));
            }
            Err(error) => debug!("{}: {error}", socket.display()),
        }
        sleep(PAUSE).await;
    }
    Ok(SocketState::Held(Holder { pid: None, stream: None }))
}

/// Whether we hold the lock from now on, until this process has ended.
fn lock(path: &Path) -> io::Result<bool> {
    let mut how = OpenOptions::new();
    let file: File = how.write(true).create(true).mode(0o600).custom_flags(O_NOFOLLOW).open(path)?;
    match file.try_lock() {
        Ok(()) => {
            std::mem::forget(file);
            Ok(true)
        }
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Only with the lock: a socket that is there is a dead daemon's.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    // Only the kernel closes it, when the process has ended. The other end waits for that.
    std::mem::forget(listener.try_clone()?);
    UnixListener::from_std(listener)
}

async fn connect(socket: &Path) -> io::Result<(UnixStream, UCred)> {
    // Does not wait: a full queue is an error.
    let stream = UnixStream::connect(socket).await?;
    let peer = stream.peer_cred()?;
    Ok((stream, peer))
}

/// The process id of this network's daemon of ours, if one runs here; none within for one that we don't see.
pub async fn holder(folder: &Path, network: &NetworkId) -> Option<Option<u32>> {
    holder_of(&file_of(folder, network.as_str()).ok()?.with_extension("sock")).await
}

/// The process ids of all daemons of ours in this network namespace.
pub async fn holders(folder: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    for socket in sockets(folder).unwrap_or_default() {
        pids.extend(holder_of(&socket).await.flatten());
    }
    pids
}

async fn holder_of(socket: &Path) -> Option<Option<u32>> {
    let (_, peer) = connect(socket).await.ok()?;
    Some(pid(&peer)).filter(|pid| !pid.is_some_and(is_dead))
}

fn pid(peer: &UCred) -> Option<u32> {
    peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0)
}

fn is_dead(pid: u32) -> bool {
    let pid = i32::try_from(pid).map(Pid::from_raw);
    pid.is_ok_and(|pid| kill(pid, None) == Err(Errno::ESRCH))
}

impl Holder {
    /// Completes when the daemon has ended; at once where it does not listen.
    pub async fn gone(self) {
        let Some(mut stream) = self.stream else { return };
        // It sends nothing, and an error means the same as the end.
        if stream.write_all(Request::Wait.to_string().as_bytes()).await.is_ok() {
            let _ = stream.read(&mut [0]).await;
        }
    }
}

/// Answers until the future is dropped.
pub async fn serve(listener: UnixListener, asks: mpsc::Sender<StatusRequest>) {
    let (room, waiting) = (Arc::new(Semaphore::new(CLIENTS)), Arc::new(Semaphore::new(CLIENTS)));
    loop {
        // Never closed.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("status socket: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let (asks, waiting) = (asks.clone(), waiting.clone());
        tokio::spawn(async move {
            let waits = timeout(PATIENCE, answer(stream, &asks)).await.ok().flatten();
            drop(place);
            if let (Some(mut stream), Ok(_place)) = (waits, waiting.try_acquire_owned()) {
                // Until the client closes it, or we end.
                let _ = stream.read(&mut [0]).await;
            }
        });
    }
}

/// Answers one client; gives back the connection of one that waits for our end.
async fn answer(mut stream: UnixStream, asks: &mpsc::Sender<StatusRequest>) -> Option<UnixStream> {
    let asker = stream.peer_cred().ok().and_then(|peer| pid(&peer));
    let mut request = String::new();
    BufReader::new((&mut stream).take(LONGEST_REQUEST)).read_line(&mut request).await.ok()?;
    match Request::parse(&request) {
        Some(Request::Wait) => return Some(stream),
        Some(asked @ (Request::Status | Request::Peers)) => {
            let peers = if asked == Request::Peers { usize::MAX } else { LISTED };
            let (answer, status) = oneshot::channel();
            asks.send(StatusRequest { peers, answer }).await.ok()?;
            let mut line = serde_json::to_vec(&status.await.ok()?).ok()?;
            line.push(b'\n');
            stream.write_all(&line).await.ok()?;
        }
        Some(Request::Unlink(index)) => {
            stream.write_all(if unlink::begin(index, asker) { TAKEN } else { NOT_TAKEN }).await.ok()?;
        }
        None => {
            stream.write_all(b"\"status, peers, wait or unlink <index>, and a new line\"\n").await.ok()?;
        }
    }
    None
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoStatus {
    /// Nobody listens.
    #[error("no flanneld of network {0} runs here")]
    NotRunning(NetworkId),
    /// There is no answer, for this reason.
    #[error("flanneld of network {0} does not answer: {1}")]
    Silent(NetworkId, String),
}

/// Asks the daemon of this network how it is; with all its peers, or the first of them.
pub async fn ask(folder: &Path, network: &NetworkId, all_peers: bool) -> Result<Status, NoStatus> {
    let request = if all_peers { Request::Peers } else { Request::Status };
    let silent = |why: String| NoStatus::Silent(network.clone(), why);
    let private = is_private(folder, geteuid().as_raw()).and_then(|()| file_of(folder, network.as_str()));
    let connected = match private {
        Ok(file) => connect(&file.with_extension("sock")).await,
        Err(error) => Err(error),
    };
    let (mut stream, _) = connected.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => NoStatus::NotRunning(network.clone()),
        io::ErrorKind::PermissionDenied => silent(format!("{error} (it answers root only)")),
        _ => silent(error.to_string()),
    })?;
    let mut line = Vec::new();
    let exchange = async {
        stream.write_all(request.to_string().as_bytes()).await?;
        (&mut stream).take(LONGEST_ANSWER).read_to_end(&mut line).await
    };
    match timeout(PATIENCE, exchange).await {
        Err(_) => return Err(silent(format!("no answer within {PATIENCE:?}"))),
        Ok(Err(error)) => return Err(silent(error.to_string())),
        Ok(Ok(0)) => return Err(silent("it ended without an answer".to_owned())),
        Ok(Ok(_)) => {}
    }
    // An older daemon answers a request that it does not know with a text.
    if line.starts_with(b"\"") {
        return Err(silent("it is of an older version".to_owned()));
    }
    serde_json::from_slice(&line).map_err(|error| silent(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use tempfile::TempDir;

    use super::*;

    fn folder() -> (TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("daemons");
        (outer, folder)
    }

    fn network(word: &str) -> NetworkId {
        NetworkId::new(format!("/test/{word}"))
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn start(listener: UnixListener, ready: bool) {
        let (asks, mut asked) = mpsc::channel::<StatusRequest>(1);
        tokio::spawn(serve(listener, asks));
        tokio::spawn(async move {
            while let Some(asker) = asked.recv().await {
                drop(asker.answer.send(Status { ready, ..Status::default() }));
            }
        });
    }

    async fn ours(folder: &Path, network: &NetworkId) -> UnixListener {
        match take(folder, network).await {
            SocketState::Ours(listener) => listener,
            other => panic!("{network} is taken: {other:?}"),
        }
    }

    async fn connected(folder: &Path, network: &NetworkId) -> io::Result<UnixStream> {
        let file = file_of(folder, network.as_str())?;
        connect(&file.with_extension("sock")).await.map(|(stream, _)| stream)
    }

    #[test]
    fn a_network_has_one_place_and_the_second_learns_who_has_it() {
        run(async {
            let ((_outer, folder), network) = (folder(), network("one"));
            start(ours(&folder, &network).await, true);
            let SocketState::Held(holder) = take(&folder, &network).await else { panic!("taken twice") };
            assert_eq!(holder.pid, Some(std::process::id()));
            ours(&folder, &self::network("two")).await;
        });
    }

    /// The test again, in a process of its own that leaves lock and listener to `cat`: as the daemon does with what it
    /// starts, for the moment until that has a program of its own.
    #[test]
    fn the_place_of_a_dead_daemon_is_free_when_its_child_has_let_go_of_it() {
        const CHILD: &str = "SELVAGE_TEST_PLACE";
        let network = network("dead");
        if let Ok(folder) = std::env::var(CHILD) {
            return run(async {
                let listener = ours(Path::new(&folder), &network).await;
                fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
                drop(Command::new("cat").stdout(Stdio::null()).spawn().unwrap());
            });
        }
        let (_outer, folder) = folder();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "serve::socket::tests::the_place_of_a_dead_daemon_is_free_when_its_child_has_let_go_of_it",
        ]);
        let child = child.env(CHILD, &folder).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = child.spawn().unwrap();
        let held = child.stdin.take();
        assert!(child.wait().unwrap().success());
        run(async {
            assert!(connected(&folder, &network).await.is_ok(), "somebody has it");
            drop(held);
            ours(&folder, &network).await;
        });
    }

    #[test]
    fn only_who_may_enter_the_folder_is_answered_and_no_other_folder_is_believed() {
        run(async {
            let ((_outer, folder), network) = (folder(), network("modes"));
            start(ours(&folder, &network).await, true);
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&folder), 0o700);
            let lock = file_of(&folder, network.as_str()).unwrap().with_extension("lock");
            assert_eq!(mode(&lock), 0o600);
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
            let refused = ask(&folder, &network, false).await.unwrap_err().to_string();
            assert!(refused.contains("mode 0700"), "{refused}");
            let SocketState::Blocked(why) = take(&folder, &self::network("two")).await else {
                panic!("taken")
            };
            assert!(why.contains("mode 0700"), "{why}");
        });
    }

    #[test]
    fn the_daemons_of_a_namespace_are_found_without_their_networks_names() {
        run(async {
            let ((_outer, folder), network) = (folder(), network("found"));
            assert_eq!(holder(&folder, &network).await, None);
            start(ours(&folder, &network).await, true);
            assert_eq!(holder(&folder, &network).await, Some(Some(std::process::id())));
            assert_eq!(holders(&folder).await, [std::process::id()]);
        });
    }

    #[test]
    fn status_is_one_question_and_one_answer() {
        run(async {
            let ((_outer, folder), network) = (folder(), network("status"));
            assert!(matches!(ask(&folder, &network, false).await, Err(NoStatus::NotRunning(_))));
            start(ours(&folder, &network).await, true);
            for _ in 0..2 * CLIENTS {
                assert!(ask(&folder, &network, false).await.unwrap().ready);
            }
        });
    }

    #[test]
    fn clients_that_send_nothing_or_too_much_hold_up_nobody() {
        run(async {
            let ((_outer, folder), network) = (folder(), network("silent"));
            start(ours(&folder, &network).await, true);
            let mut silent = Vec::new();
            for _ in 0..CLIENTS - 1 {
                silent.push(connected(&folder, &network).await.unwrap());
            }
            let mut loud = connected(&folder, &network).await.unwrap();
            // It may be sent away before all is written.
            let _ = loud.write_all(&[b'x'; 4096]).await;
            assert!(ask(&folder, &network, false).await.unwrap().ready);
        });
    }
}
