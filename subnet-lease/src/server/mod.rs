//! The embedded store: the etcd v3 API on one file, in one process, without a quorum.
//!
//! ```text
//!   etcdctl, flannel, our client
//!        │ gRPC
//!   kv · lease_service · watch · maintenance · cluster · auth      check the shape of requests (check.rs)
//!        │ jobs                     ▲ batches that are durable
//!        ▼                          │
//!   engine ── owns ──▶ state (mvcc, lease): pure; requests in, answers and changes out
//!        │ one commit for all jobs that waited
//!        ▼
//!      disk: one redb file
//! ```
//! What holds:
//! - A write that was answered is on the disk; a watch never shows one that is not.
//! - Revisions, versions, errors and limits are etcd's; a cluster can move to etcd without its clients noticing.
//! - All of the store is in memory (96 MiB at most, then writes are refused); of history, the last 10,000 changes or
//!   32 MiB are kept. A watch that needs more is told that it was compacted.
//! - Lease time stands still while the server is down: every lease starts again with its full time.
//! - Nothing runs while nobody asks: no polling; the only timer is the next lease's end.

mod auth;
mod call;
mod check;
mod cluster;
mod connection;
mod connections;
pub(crate) mod disk;
pub(crate) mod engine;
mod error;
#[cfg(test)]
mod fuzz;
mod key_range;
mod kv;
mod lease;
mod lease_service;
mod lease_state;
mod limits;
mod maintenance;
mod mvcc;
mod state;
mod tls;
mod turns;
mod txn;
mod watch;
mod watcher;

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::proto::{PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer};
use futures::StreamExt;
use futures::stream::select_all;
use tokio::net::TcpStream;
use tokio::sync::watch as signal;
use tokio::time::Instant;
use tonic::transport::server::{Router, TcpIncoming};
use tracing::{info, warn};

use self::call::Counted;
use self::connection::{Connection, Wire};
use self::connections::Connections;
use self::disk::Disk;
use self::engine::{Engine, Running};
use self::state::Identity;
use self::tls::Tls;

pub use self::error::ServerError;
pub use self::tls::TlsFiles;

/// How long open requests may take once the server is to stop: many times what the disk takes. A client that does not
/// react at all is waited for that long.
const FAREWELL: Duration = Duration::from_millis(500);

/// Silence on a connection before the server asks whether the client is still there, and how long it waits.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// Pause after a connection could not be accepted: with no file descriptors left, trying again at once only spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How to run the server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Directory of the store; made when missing, for its owner only.
    pub data_dir: PathBuf,
    /// Addresses to listen on. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Allows addresses that other machines can reach, though every client is believed.
    pub insecure: bool,
    /// Speaks TLS, and nothing else.
    pub tls: Option<TlsFiles>,
}

/// A server that holds its data and its addresses, and does not answer yet.
pub struct Server {
    addrs: Vec<SocketAddr>,
    incoming: Vec<TcpIncoming>,
    tls: Option<Arc<Tls>>,
    router: Router,
    running: Running,
    stop: signal::Sender<bool>,
}

/// Reads the file in a data directory as a start does, where there is one. For a process of its own: on some
/// damage the database library ends the process that reads.
pub fn check_file(data_dir: &Path) -> Result<(), ServerError> {
    let mut disk = Disk::in_directory(data_dir);
    if !disk.path().exists() {
        return Ok(());
    }
    disk.load(Identity { cluster: 1, member: 1 }).map(drop)
}

/// Runs a server until `shutdown` is ready. What was answered is durable, so stopping loses nothing.
pub async fn serve(
    config: ServerConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServerError> {
    Server::bind(config).await?.run(shutdown).await
}

impl Server {
    /// Opens the data directory and takes the addresses.
    pub async fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
        let incoming = listen(&config)?;
        let addrs = incoming.iter().map(TcpIncoming::local_addr).collect::<Result<_, _>>();
        let addrs: Vec<SocketAddr> = addrs.map_err(|error| ServerError::Stopped(error.to_string()))?;
        make_directory(&config.data_dir)
            .map_err(|source| ServerError::DataDir { path: config.data_dir.clone(), source })?;
        let disk = Disk::in_directory(&config.data_dir);
        let file = disk.path().to_owned();
        let fresh = Identity { cluster: random(), member: random() };
        let (stop, stopping) = signal::channel(false);
        let (engine, running) = Engine::start(disk, fresh, stopping).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self { addrs, incoming, router: router(&engine, file, scheme), tls, running, stop })
    }

    /// The addresses taken, with the ports that were chosen for 0.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Answers requests until `shutdown` is ready.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        let Self { addrs, incoming, tls, router, mut running, stop } = self;
        info!(?addrs, tls = tls.is_some(), "embedded store listens");
        let accepted = select_all(incoming).then(async |connection| {
            if let Err(error) = &connection {
                if NOT_ACCEPTED.is_due() {
                    warn!(%error, "connection not accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            connection
        });
        let all = Connections::default();
        let opened = accepted.map(move |connection| open(connection, tls.clone(), all.clone()));
        // More handshakes than there are places do not wait for each other: the oldest ends.
        let connections = opened.buffer_unordered(2 * limits::CONNECTIONS).filter_map(std::future::ready);
        let mut stopped = stop.subscribe();
        let stopping = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let serving = router.serve_with_incoming_shutdown(Box::pin(connections), stopping);
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => Some(ended),
            () = running.ended() => None,
            () = shutdown => None,
        };
        stop.send_replace(true);
        let ended = match ended {
            Some(ended) => ended,
            // Whoever is still connected after that has had the time to finish.
            None => tokio::time::timeout(FAREWELL, serving).await.unwrap_or(Ok(())),
        };
        running.quit().await?;
        ended.map_err(|error| ServerError::Stopped(error.to_string()))
    }
}

/// A connection that can be talked on; none where the handshake failed, which is the client's affair.
async fn open(
    connection: io::Result<TcpStream>,
    tls: Option<Arc<Tls>>,
    all: Connections,
) -> Option<io::Result<Connection<Wire>>> {
    let stream = match connection {
        Ok(stream) => stream,
        Err(error) => return Some(Err(error)),
    };
    let (place, mut cut) = all.admit(stream.peer_addr().ok().map(|from| from.ip()));
    let Some(tls) = tls else { return Some(Ok(Connection::new(Wire::Plain(stream), place, cut))) };
    let from = stream.peer_addr();
    let handshake = tokio::time::timeout(limits::HANDSHAKE, tls.accept(stream));
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        _ = &mut cut => return None,
    };
    let failure = match shaken {
        Ok(Ok(stream)) => return Some(Ok(Connection::new(Wire::Tls(Box::new(stream)), place, cut))),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no handshake within {:?}", limits::HANDSHAKE),
    };
    if REFUSED.is_due() {
        info!(?from, "connection refused: {failure}");
    }
    None
}

/// What a stranger can repeat is logged now and then.
struct Seldom(Mutex<Option<Instant>>);

static NOT_ACCEPTED: Seldom = Seldom(Mutex::new(None));
static REFUSED: Seldom = Seldom(Mutex::new(None));

impl Seldom {
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= limits::LOG_PAUSE);
        if due {
            *last = Some(now);
        }
        due
    }
}

fn listen(config: &ServerConfig) -> Result<Vec<TcpIncoming>, ServerError> {
    if config.listen.is_empty() {
        return Err(ServerError::NoAddress);
    }
    // A certificate of ours hides what is said; only one of the client's shows who says it.
    let believed = config.insecure || config.tls.as_ref().is_some_and(|tls| tls.client_authority.is_some());
    if let Some(exposed) = config.listen.iter().find(|addr| !addr.ip().is_loopback() && !believed) {
        return Err(ServerError::Exposed(*exposed));
    }
    let bind = |addr: &SocketAddr| {
        let incoming =
            TcpIncoming::bind(*addr).map_err(|source| ServerError::Listen { addr: *addr, source })?;
        Ok(incoming.with_nodelay(Some(true)))
    };
    config.listen.iter().map(bind).collect()
}

pub(crate) fn router(engine: &Engine, file: PathBuf, scheme: &'static str) -> Router {
    let maintenance = maintenance::MaintenanceService { engine: engine.clone(), file };
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .max_concurrent_streams(limits::STREAMS)
        .initial_connection_window_size(limits::WINDOW)
        .initial_stream_window_size(limits::WINDOW)
        .http2_max_header_list_size(limits::HEADERS)
        .timeout(limits::ANSWER_WITHIN)
        .add_service(Counted(
            PbKvServer::new(kv::KvService(engine.clone())).max_decoding_message_size(limits::MESSAGE),
        ))
        .add_service(Counted(
            PbLeaseServer::new(lease_service::LeaseService(engine.clone()))
                .max_decoding_message_size(limits::SMALL_MESSAGE),
        ))
        .add_service(Counted(
            PbWatchServer::new(watch::WatchService(engine.clone()))
                .max_decoding_message_size(limits::SMALL_MESSAGE),
        ))
        .add_service(Counted(
            PbMaintenanceServer::new(maintenance).max_decoding_message_size(limits::SMALL_MESSAGE),
        ))
        .add_service(Counted(
            PbClusterServer::new(cluster::ClusterService { engine: engine.clone(), scheme })
                .max_decoding_message_size(limits::SMALL_MESSAGE),
        ))
        .add_service(Counted(auth::AuthService(engine.clone())))
}

fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A number that nobody could know beforehand; the standard library seeds its hash tables with such.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
