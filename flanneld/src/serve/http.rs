//! `/healthz` and `/readyz`, for probes, and `/metrics`.
//!
//! `/healthz` says that the process answers. `/readyz` says what the core judged last, and turns red and green with it.
//! `/metrics` asks the core where the node stands.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::core::{Readiness, StatusRequest};
use crate::exit::{Exit, Failure};
use crate::host::pool;
use crate::serve::metrics;

/// Whom the answers are about.
#[derive(Clone)]
struct Node {
    readiness: watch::Receiver<Readiness>,
    asks: mpsc::Sender<StatusRequest>,
}

/// How much a client may ask of us.
#[derive(Clone, Copy)]
struct Limits {
    /// Connections served at once; the next ones wait in the kernel's queue.
    connections: usize,
    /// Time for a request's head to arrive.
    head: Duration,
    /// Longest life of a connection.
    lifetime: Duration,
}

/// Ours: probes are a few a second, kubelet gives up after seconds, and nobody keeps a connection open for more.
const LIMITS: Limits =
    Limits { connections: 32, head: Duration::from_secs(3), lifetime: Duration::from_secs(10) };

/// Largest head of a request in bytes (hyper's least is 8 KiB). Ours.
const HEAD_SIZE: usize = 8 << 10;

/// Connections that the kernel queues. Ours.
const BACKLOG: u32 = 64;

/// Pause after a failed accept: mostly it means that no file descriptor is free. Ours.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the address. `[::]` takes IPv4 as well, whatever `net.ipv6.bindv6only` says, and falls back to `0.0.0.0` on a
/// kernel without IPv6.
pub fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    let fallback = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let bound = match listen(address) {
        Err(error) if address.ip().is_unspecified() && is_missing_family(&error) => listen(fallback),
        bound => bound,
    };
    bound.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "another program listens there (--healthz-port)".to_owned(),
            io::ErrorKind::AddrNotAvailable => "not an address of this host (--healthz-ip)".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(Exit::Failed, format!("health server on {address}: {why}"))
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &!address.ip().is_unspecified())?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Without the ipv6 module there is no such socket; with IPv6 switched off by sysctl there is, and no address for it.
fn is_missing_family(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Answers until the future is dropped.
pub async fn serve(
    listener: TcpListener,
    readiness: watch::Receiver<Readiness>,
    asks: mpsc::Sender<StatusRequest>,
) {
    serve_within(LIMITS, listener, Node { readiness, asks }).await;
}

async fn serve_within(limits: Limits, listener: TcpListener, node: Node) {
    let router = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    let router = router.route("/metrics", get(numbers)).with_state(node);
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answered = answer(stream, router.clone(), limits);
                tokio::spawn(async move {
                    answered.await;
                    drop(permit);
                });
            }
            Err(error) => {
                debug!("health server: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router, limits: Limits) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD_SIZE).keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // What goes wrong on a connection is the client's affair.
    let _ = timeout(limits.lifetime, connection).await;
}

async fn healthz() -> &'static str {
    "flanneld is running"
}

/// The answer, then a reason a line: what is awaited, or what is wrong and doesn't stop the node.
async fn readyz(State(node): State<Node>) -> (StatusCode, String) {
    let Readiness { ready, reasons } = node.readiness.borrow().clone();
    let (status, answer) = match ready {
        true => (StatusCode::OK, "flanneld is ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
    };
    let lines: Vec<_> = std::iter::once(answer).chain(reasons.iter().map(String::as_str)).collect();
    (status, lines.join("\n"))
}

/// The core answers between two of its inputs; while it can't, so much is said.
async fn numbers(State(node): State<Node>) -> (StatusCode, [(HeaderName, &'static str); 1], String) {
    let (answer, told) = oneshot::channel();
    let status = match node.asks.send(answer).await {
        Ok(()) => told.await.ok(),
        Err(_) => None,
    };
    let pools = || pool::read(Path::new(pool::INDEXES));
    match status.and_then(|status| metrics::text(status, pools()).ok()) {
        Some(text) => (StatusCode::OK, [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text),
        None => {
            let plain = [(header::CONTENT_TYPE, "text/plain")];
            (StatusCode::SERVICE_UNAVAILABLE, plain, "flanneld is about to end".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::core::Status;

    const LOOPBACK: &str = "127.0.0.1:0";

    /// The status line and the body.
    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn readyz_turns_red_and_green_with_the_facts_and_healthz_does_not() {
        runtime().block_on(async {
            let listener = bind(LOOPBACK.parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let (tell, readiness) = watch::channel(Readiness::default());
            tokio::spawn(serve(listener, readiness, nobody()));
            let red = ("HTTP/1.1 503 Service Unavailable", "flanneld is not ready yet");
            let green = ("HTTP/1.1 200 OK", "flanneld is ready");
            for (ready, reasons, expected) in [
                (false, vec![], red),
                (true, vec![], green),
                (
                    false,
                    vec!["waiting for a lease", "stale"],
                    (red.0, "flanneld is not ready yet\nwaiting for a lease\nstale"),
                ),
                (true, vec!["stale"], (green.0, "flanneld is ready\nstale")),
            ] {
                let reasons = reasons.into_iter().map(str::to_owned).collect();
                tell.send_replace(Readiness { ready, reasons });
                assert_eq!(get(address, "/readyz").await, (expected.0.to_owned(), expected.1.to_owned()));
                let running = ("HTTP/1.1 200 OK".to_owned(), "flanneld is running".to_owned());
                assert_eq!(get(address, "/healthz").await, running);
            }
            assert_eq!(get(address, "/other").await.0, "HTTP/1.1 404 Not Found");
        });
    }

    /// A core that has ended.
    fn nobody() -> mpsc::Sender<StatusRequest> {
        mpsc::channel(1).0
    }

    #[test]
    fn metrics_are_what_the_core_says_when_it_is_asked() {
        runtime().block_on(async {
            let listener = bind(LOOPBACK.parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let (_tell, readiness) = watch::channel(Readiness::default());
            let (asks, mut asked) = mpsc::channel::<StatusRequest>(1);
            tokio::spawn(serve(listener, readiness, asks));
            let core = async {
                let status = Status { peers: 7, ..Status::default() };
                asked.recv().await.unwrap().send(status).unwrap();
            };
            let ((head, body), ()) = tokio::join!(get(address, "/metrics"), core);
            assert_eq!(head, "HTTP/1.1 200 OK");
            assert!(body.contains("flanneld_peers 7\n"), "{body}");
            drop(asked);
            assert_eq!(get(address, "/metrics").await.0, "HTTP/1.1 503 Service Unavailable");
        });
    }

    #[test]
    fn a_port_in_use_is_one_sentence() {
        runtime().block_on(async {
            let first = bind(LOOPBACK.parse().unwrap()).unwrap();
            let address = first.local_addr().unwrap();
            let refused = bind(address).unwrap_err();
            let expected =
                format!("health server on {address}: another program listens there (--healthz-port)");
            assert_eq!((refused.message, refused.exit), (expected, Exit::Failed));
            let foreign = bind("192.0.2.1:1".parse().unwrap()).unwrap_err();
            assert!(foreign.message.ends_with("not an address of this host (--healthz-ip)"), "{foreign}");
        });
    }

    #[test]
    fn the_unspecified_address_answers_over_both_families() {
        runtime().block_on(async {
            let listener = bind("[::]:0".parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            let (_tell, readiness) = watch::channel(Readiness::default());
            let families: &[&str] = if listener.local_addr().unwrap().is_ipv6() {
                &["127.0.0.1", "[::1]"]
            } else {
                &["127.0.0.1"]
            };
            tokio::spawn(serve(listener, readiness, nobody()));
            for family in families {
                let address = format!("{family}:{port}").parse().unwrap();
                assert_eq!(get(address, "/healthz").await.1, "flanneld is running", "{family}");
            }
        });
    }

    #[test]
    fn silent_connections_hold_up_nobody_for_long() {
        let limits = Limits { connections: 2, head: Duration::from_millis(50), ..LIMITS };
        runtime().block_on(async {
            let listener = bind(LOOPBACK.parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let (_tell, readiness) = watch::channel(Readiness::default());
            tokio::spawn(serve_within(limits, listener, Node { readiness, asks: nobody() }));
            let mut silent = Vec::new();
            for _ in 0..limits.connections {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let answer = timeout(LIMITS.lifetime / 2, get(address, "/healthz")).await.unwrap();
            assert_eq!(answer.1, "flanneld is running");
        });
    }
}
