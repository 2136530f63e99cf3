//! One daemon per network and network namespace: an abstract unix socket. It is the daemon's place, and answers
//! `flannelctl status`.
//!
//! ```text
//!   @selvage//coreos.com/network      bound: this network has a daemon here; the kernel frees it with the process,
//!      ▲                              also after SIGKILL, and every network namespace has its own
//!      ├── "status\n" ──▶ one line of JSON; "peers\n" the same with all peers
//!      ├── "unlink 7\n" ─▶ "+": the container's link of that index is being deleted (for the CNI plugin)
//!      └── "wait\n"   ──▶ nothing, until the daemon has ended
//! ```
//!
//! Any user of the namespace can bind or reach an abstract name, so both ends look at the other's user first.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use backends::local::daemon::{self, LONGEST_ANSWER, LONGEST_REQUEST, NOT_TAKEN, Request, TAKEN};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use subnet_lease::NetworkId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::core::{LISTED, Status, StatusRequest};
use crate::serve::unlink;

/// Clients served at once, and those that wait for our end; further ones wait in the kernel's queue, or are sent away.
/// Ours: people and a monitor or two ask.
const CLIENTS: usize = 8;
/// Time for one client. Ours: the core answers between two inputs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to take a name whose holder does not listen: it is about to, or about to be gone. Ours.
const PAUSE: Duration = Duration::from_millis(10);
/// So many tries.
const TRIES: usize = 50;

/// Who has the place of a network's daemon.
#[derive(Debug)]
pub enum Place {
    /// We do, from now on until this process has ended.
    Ours(UnixListener),
    /// Another daemon of ours.
    Held(Holder),
    /// Somebody who is none, for this reason: nothing keeps us from running, but there is no status.
    Blocked(String),
}

/// A running daemon.
#[derive(Debug)]
pub struct Holder {
    /// Its process id; none when it runs in a process namespace that we don't see.
    pub pid: Option<u32>,
    stream: UnixStream,
}

/// Takes the place of this network's daemon, or says who has it.
pub async fn take(network: &NetworkId) -> io::Result<Place> {
    for _ in 0..TRIES {
        match bind(network) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map(Place::Ours),
        }
        match connect(network).await {
            // A program that it had just started, as it was killed, has not let go of its files yet.
            Ok((_, peer)) if pid(&peer).is_some_and(is_dead) => sleep(PAUSE).await,
            Ok((stream, peer)) if trusted(&peer) => {
                return Ok(Place::Held(Holder { pid: pid(&peer), stream }));
            }
            Ok((_, peer)) => return Ok(Place::Blocked(stranger(&peer))),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => sleep(PAUSE).await,
            Err(error) => return Ok(Place::Blocked(error.to_string())),
        }
    }
    Ok(Place::Blocked("somebody holds it and does not listen".to_owned()))
}

fn bind(network: &NetworkId) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(name(network))?)?;
    listener.set_nonblocking(true)?;
    // Closed by the kernel when the process has ended and by nobody before: who waits for it takes it as that.
    std::mem::forget(listener.try_clone()?);
    UnixListener::from_std(listener)
}

async fn connect(network: &NetworkId) -> io::Result<(UnixStream, UCred)> {
    connect_to(&name(network)).await
}

async fn connect_to(name: &[u8]) -> io::Result<(UnixStream, UCred)> {
    // tokio takes a leading NUL as the mark of an abstract name.
    let name = [b"\0", name].concat();
    let path = std::path::PathBuf::from(String::from_utf8_lossy(&name).into_owned());
    // Does not wait: a full queue is an error.
    let stream = UnixStream::connect(path).await?;
    let peer = stream.peer_cred()?;
    Ok((stream, peer))
}

/// The process id of this network's daemon of ours, if one runs here; none within for one that we don't see.
pub async fn holder(network: &NetworkId) -> Option<Option<u32>> {
    holder_of(&daemon::name(network.as_str())).await
}

/// The process ids of all daemons of ours in this network namespace.
pub async fn holders() -> Vec<u32> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut names: Vec<_> = table.lines().filter_map(listening).collect();
    names.sort_unstable();
    names.dedup();
    let mut pids = Vec::new();
    for name in names {
        pids.extend(holder_of(name.as_bytes()).await.flatten());
    }
    pids
}

async fn holder_of(name: &[u8]) -> Option<Option<u32>> {
    let (_, peer) = connect_to(name).await.ok()?;
    trusted(&peer).then(|| pid(&peer)).filter(|pid| !pid.is_some_and(is_dead))
}

/// Our name in a line of the kernel's table of unix sockets, if it listens: `Num: RefCount Protocol Flags Type St Inode Path`.
fn listening(line: &str) -> Option<&str> {
    const ACCEPTS: &str = "00010000";
    let mut rest = line;
    let mut columns = [""; 7];
    for column in &mut columns {
        rest = rest.trim_start();
        let (word, left) = rest.split_once(' ').unwrap_or((rest, ""));
        (*column, rest) = (word, left);
    }
    let name = rest.strip_prefix('@').filter(|name| name.starts_with(daemon::PREFIX))?;
    (columns[3] == ACCEPTS).then_some(name)
}

fn name(network: &NetworkId) -> Vec<u8> {
    daemon::name(&network.to_string())
}

/// Root and ourselves; the others may neither hold our place nor read about the cluster.
fn trusted(peer: &UCred) -> bool {
    daemon::is_trusted(peer.uid())
}

fn pid(peer: &UCred) -> Option<u32> {
    peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0)
}

fn is_dead(pid: u32) -> bool {
    let pid = i32::try_from(pid).map(Pid::from_raw);
    pid.is_ok_and(|pid| kill(pid, None) == Err(Errno::ESRCH))
}

fn stranger(peer: &UCred) -> String {
    format!("process {} of user {} holds it", pid(peer).unwrap_or_default(), peer.uid())
}

impl Holder {
    /// Completes when the daemon has ended.
    pub async fn gone(mut self) {
        // It answers nothing, and an error means the same as the end.
        if self.stream.write_all(Request::Wait.to_string().as_bytes()).await.is_ok() {
            let _ = self.stream.read(&mut [0]).await;
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
                // Until it goes, or we do.
                let _ = stream.read(&mut [0]).await;
            }
        });
    }
}

/// Answers one client; gives back the connection of one that waits for our end.
async fn answer(mut stream: UnixStream, asks: &mpsc::Sender<StatusRequest>) -> Option<UnixStream> {
    if !stream.peer_cred().is_ok_and(|peer| trusted(&peer)) {
        return None;
    }
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
            stream.write_all(if unlink::begin(index) { TAKEN } else { NOT_TAKEN }).await.ok()?;
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
    /// Nobody holds the name.
    #[error("no flanneld of network {0} runs here")]
    NotRunning(NetworkId),
    /// There is one, and it does not say.
    #[error("flanneld of network {0} does not say how it is: {1}")]
    Silent(NetworkId, String),
}

/// Asks the daemon of this network how it is; with all its peers, or the first of them.
pub async fn ask(network: &NetworkId, all_peers: bool) -> Result<Status, NoStatus> {
    let request = if all_peers { Request::Peers } else { Request::Status };
    let silent = |why: String| NoStatus::Silent(network.clone(), why);
    let (mut stream, peer) = connect(network).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => NoStatus::NotRunning(network.clone()),
        _ => silent(error.to_string()),
    })?;
    if !trusted(&peer) {
        return Err(silent(stranger(&peer)));
    }
    let mut line = Vec::new();
    let exchange = async {
        stream.write_all(request.to_string().as_bytes()).await?;
        (&mut stream).take(LONGEST_ANSWER).read_to_end(&mut line).await
    };
    match timeout(PATIENCE, exchange).await {
        Err(_) => return Err(silent(format!("no answer within {PATIENCE:?}"))),
        Ok(Err(error)) => return Err(silent(error.to_string())),
        Ok(Ok(0)) => return Err(silent("it answers root and its own user only".to_owned())),
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
    use std::process::{Command, Stdio};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    /// A network that no other test has: abstract names are the whole namespace's.
    fn network(word: &str) -> NetworkId {
        NetworkId::new(format!("/test-{}/{word}", std::process::id()))
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

    async fn ours(network: &NetworkId) -> UnixListener {
        let Place::Ours(listener) = take(network).await.unwrap() else { panic!("{network} is taken") };
        listener
    }

    #[test]
    fn a_network_has_one_place_and_the_second_is_told_who_has_it() {
        run(async {
            let network = network("one");
            start(ours(&network).await, true);
            let Place::Held(holder) = take(&network).await.unwrap() else { panic!("taken twice") };
            assert_eq!(holder.pid, Some(std::process::id()));
            ours(&self::network("two")).await;
        });
    }

    /// The test again, in a process of its own that leaves the listener to `cat`: as the daemon does with what it starts,
    /// for the moment until that has a program of its own.
    #[test]
    fn the_place_of_a_dead_daemon_is_free_when_its_child_has_let_go_of_it() {
        const CHILD: &str = "SELVAGE_TEST_PLACE";
        let network = NetworkId::new(std::env::var(CHILD).unwrap_or_else(|_| network("dead").to_string()));
        if std::env::var(CHILD).is_ok() {
            return run(async {
                let listener = ours(&network).await;
                fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
                drop(Command::new("cat").stdout(Stdio::null()).spawn().unwrap());
            });
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "serve::socket::tests::the_place_of_a_dead_daemon_is_free_when_its_child_has_let_go_of_it",
        ]);
        let child = child.env(CHILD, network.to_string()).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = child.spawn().unwrap();
        let held = child.stdin.take();
        assert!(child.wait().unwrap().success());
        run(async {
            assert!(connect(&network).await.is_ok(), "somebody has it");
            let mut taken = std::pin::pin!(take(&network));
            assert!(futures::poll!(&mut taken).is_pending());
            drop(held);
            assert!(matches!(taken.await.unwrap(), Place::Ours(_)));
        });
    }

    #[test]
    fn the_daemons_of_a_namespace_are_found_without_their_networks_names() {
        run(async {
            let network = network("found");
            assert_eq!(holder(&network).await, None);
            start(ours(&network).await, true);
            assert_eq!(holder(&network).await, Some(Some(std::process::id())));
            assert!(holders().await.contains(&std::process::id()));
        });
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 4711 @selvage//a b";
        assert_eq!(listening(line), Some("selvage//a b"));
        for other in
            ["", "Num RefCount", &line.replace("@selvage/", "@other/"), &line.replace("00010000", "00000000")]
        {
            assert_eq!(listening(other), None, "{other}");
        }
    }

    #[test]
    fn status_is_one_question_and_one_answer() {
        run(async {
            let network = network("status");
            assert!(matches!(ask(&network, false).await, Err(NoStatus::NotRunning(_))));
            start(ours(&network).await, true);
            for _ in 0..2 * CLIENTS {
                assert!(ask(&network, false).await.unwrap().ready);
            }
        });
    }

    #[test]
    fn clients_that_say_nothing_or_too_much_hold_up_nobody() {
        run(async {
            let network = network("silent");
            start(ours(&network).await, true);
            let mut silent = Vec::new();
            for _ in 0..CLIENTS - 1 {
                silent.push(connect(&network).await.unwrap());
            }
            let (mut loud, _) = connect(&network).await.unwrap();
            // It may be sent away before all is written.
            let _ = loud.write_all(&[b'x'; 4096]).await;
            assert!(ask(&network, false).await.unwrap().ready);
        });
    }
}
