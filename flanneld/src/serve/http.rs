//! `/healthz` and `/readyz`, for probes, and `/metrics`.
//!
//! `/healthz` answers as long as the process runs. `/readyz` answers with the core's last judgement of readiness.
//! `/metrics` asks the core where the node stands.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::core::{Readiness, StatusRequest};
use crate::exit::{Exit, Failure};
use crate::host::pool;
use crate::serve::metrics::{self, Format};
use crate::shell::clock;

/// The node that the answers are about.
#[derive(Clone)]
struct Node {
    readiness: watch::Receiver<Readiness>,
    asks: mpsc::Sender<StatusRequest>,
}

/// The limits for clients.
#[derive(Clone, Copy)]
struct Limits {
    /// Connections served at once; a further one takes the place of the oldest that has asked nothing yet.
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

/// Takes the address. `[::]` takes IPv4 as well, whatever `net.ipv6.bindv6only` is, and falls back to `0.0.0.0` on a
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

/// A connection that is served.
struct Served {
    /// The client has sent a whole request.
    asked: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

async fn serve_within(limits: Limits, listener: TcpListener, node: Node) {
    let router = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    let router = router.route("/metrics", get(numbers)).with_state(node);
    let mut served: VecDeque<Served> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("health server: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        served.retain(|connection| !connection.task.is_finished());
        if served.len() >= limits.connections {
            make_room(&mut served);
        }
        let asked = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(answer(stream, router.clone(), limits, asked.clone()));
        served.push_back(Served { asked, task });
    }
}

/// Ends the oldest connection that has asked nothing yet, else the oldest. A probe asks at once, so silent and slow clients,
/// however many, only end each other.
fn make_room(served: &mut VecDeque<Served>) {
    let silent = |connection: &Served| !connection.asked.load(Ordering::Relaxed);
    let place = served.iter().position(silent).unwrap_or_default();
    if let Some(connection) = served.remove(place) {
        connection.task.abort();
    }
}

async fn answer(stream: TcpStream, router: Router, limits: Limits, asked: Arc<AtomicBool>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD_SIZE).keep_alive(false);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        router.call(request)
    });
    // What goes wrong on a connection is the client's affair.
    let _ = timeout(limits.lifetime, http.serve_connection(TokioIo::new(stream), service)).await;
}

async fn healthz() -> &'static str {
    "flanneld is running\n"
}

/// The answer, then one reason a line: what the node waits for, or what is wrong and doesn't stop the node.
async fn readyz(State(node): State<Node>) -> (StatusCode, String) {
    let Readiness { ready, reasons } = node.readiness.borrow().clone();
    let (status, answer) = match ready {
        true => (StatusCode::OK, "flanneld is ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
    };
    let lines: Vec<_> = std::iter::once(answer).chain(reasons.iter().map(String::as_str)).collect();
    (status, lines.join("\n") + "\n")
}

/// The core answers between two of its inputs; once it has ended, that is the answer.
async fn numbers(
    State(node): State<Node>,
    headers: HeaderMap,
) -> (StatusCode, [(HeaderName, &'static str); 1], String) {
    let accept: Vec<_> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    let (answer, status) = oneshot::channel();
    let asked = node.asks.send(StatusRequest { peers: 0, answer }).await.is_ok();
    match if asked { status.await.ok() } else { None } {
        Some(status) => {
            let pools = pool::read(Path::new(pool::INDEXES));
            let text = metrics::text(&status, &pools, clock::wall(), format);
            (StatusCode::OK, [(header::CONTENT_TYPE, format.content_type())], text)
        }
        None => {
            let plain = [(header::CONTENT_TYPE, "text/plain")];
            (StatusCode::SERVICE_UNAVAILABLE, plain, "flanneld is about to end\n".to_owned())
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
            let (sender, readiness) = watch::channel(Readiness::default());
            tokio::spawn(serve(listener, readiness, nobody()));
            let red = ("HTTP/1.1 503 Service Unavailable", "flanneld is not ready yet\n");
            let green = ("HTTP/1.1 200 OK", "flanneld is ready\n");
            for (ready, reasons, expected) in [
                (false, vec![], red),
                (true, vec![], green),
                (
                    false,
                    vec!["waiting for a lease", "stale"],
                    (red.0, "flanneld is not ready yet\nwaiting for a lease\nstale\n"),
                ),
                (true, vec!["stale"], (green.0, "flanneld is ready\nstale\n")),
            ] {
                let reasons = reasons.into_iter().map(str::to_owned).collect();
                sender.send_replace(Readiness { ready, reasons });
                assert_eq!(get(address, "/readyz").await, (expected.0.to_owned(), expected.1.to_owned()));
                let running = ("HTTP/1.1 200 OK".to_owned(), "flanneld is running\n".to_owned());
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
            let (_sender, readiness) = watch::channel(Readiness::default());
            let (asks, mut asked) = mpsc::channel::<StatusRequest>(1);
            tokio::spawn(serve(listener, readiness, asks));
            let core = async {
                let status = Status { peers: 7, ..Status::default() };
                asked.recv().await.unwrap().answer.send(status).unwrap();
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
            let (_sender, readiness) = watch::channel(Readiness::default());
            let families: &[&str] = if listener.local_addr().unwrap().is_ipv6() {
                &["127.0.0.1", "[::1]"]
            } else {
                &["127.0.0.1"]
            };
            tokio::spawn(serve(listener, readiness, nobody()));
            for family in families {
                let address = format!("{family}:{port}").parse().unwrap();
                assert_eq!(get(address, "/healthz").await.1, "flanneld is running\n", "{family}");
            }
        });
    }

    #[test]
    fn silent_and_slow_connections_hold_up_no_probe() {
        runtime().block_on(async {
            let listener = bind(LOOPBACK.parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let (_sender, readiness) = watch::channel(Readiness::default());
            tokio::spawn(serve(listener, readiness, nobody()));
            let mut slow = Vec::new();
            for n in 0..128 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                if n % 2 == 0 {
                    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await.unwrap();
                }
                slow.push(stream);
            }
            for _ in 0..15 {
                let probe = timeout(Duration::from_secs(1), get(address, "/healthz"));
                assert_eq!(probe.await.unwrap().1, "flanneld is running\n");
            }
        });
    }

    #[test]
    fn a_client_that_has_asked_is_not_ended_for_one_that_has_not() {
        runtime().block_on(async {
            let connection = |asked| Served {
                asked: Arc::new(AtomicBool::new(asked)),
                task: tokio::spawn(std::future::pending()),
            };
            let mut served: VecDeque<_> = [connection(true), connection(false), connection(true)].into();
            make_room(&mut served);
            assert!(served.iter().all(|connection| connection.asked.load(Ordering::Relaxed)));
            make_room(&mut served);
            assert_eq!(served.len(), 1);
        });
    }
}
