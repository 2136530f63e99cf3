//! The wires.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use fastrand::Rng;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, split};
use tokio::sync::{Notify, mpsc};
use tonic::codegen::{Service, http::Uri};
use tonic::transport::server::Connected;

/// What becomes of a host's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Whole,
    /// Nothing arrives; what was sent does when it is whole again.
    Dead,
    /// Connections end, and none is made.
    Cut,
}

/// As much as a connection has under way.
const WINDOW: usize = 64 << 10;

#[derive(Clone)]
pub(crate) struct Net(Arc<Shared>);

struct Shared {
    links: Vec<Signal<Link>>,
    /// Counts the server's lives; connections end with the one they were made in.
    life: Signal<u32>,
    dice: Mutex<Rng>,
    /// To the server.
    arrive: mpsc::UnboundedSender<Arrived>,
}

impl Net {
    /// Wires for so many hosts, and what arrives at the server.
    pub(crate) fn new(hosts: usize, seed: u64) -> (Self, mpsc::UnboundedReceiver<Arrived>) {
        let (arrive, arrived) = mpsc::unbounded_channel();
        let links = (0..hosts).map(|_| Signal::new(Link::Whole)).collect();
        let (life, dice) = (Signal::new(0), Mutex::new(Rng::with_seed(!seed)));
        (Self(Arc::new(Shared { links, life, dice, arrive })), arrived)
    }

    pub(crate) fn set(&self, host: usize, link: Link) {
        self.0.links[host].set(link);
    }

    pub(crate) fn mend(&self) {
        (0..self.0.links.len()).for_each(|host| self.set(host, Link::Whole));
    }

    /// Ends every connection, as the end of the server's process does.
    pub(crate) fn hang_up(&self) {
        self.0.life.set(self.0.life.now() + 1);
    }

    /// How a host gets to the server.
    pub(crate) fn wire(&self, host: usize) -> Wire {
        Wire { net: self.clone(), host }
    }

    fn delay(&self) -> Duration {
        let mut dice = self.0.dice.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_micros(200 + dice.u64(..20_000))
    }

    async fn connect(self, host: usize) -> io::Result<DuplexStream> {
        tokio::time::sleep(self.delay()).await;
        // A first packet that nobody answers is sent again.
        let link = &self.0.links[host];
        if link.until(|link| link != Link::Dead).await == Link::Cut {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let ((client, from_client), (server, from_server)) =
            (tokio::io::duplex(WINDOW), tokio::io::duplex(WINDOW));
        tokio::spawn(self.clone().carry(host, from_client, from_server, self.0.life.now()));
        // Where no server is, the connection ends as soon as the other end is dropped.
        let _ = self.0.arrive.send(Arrived(server));
        Ok(client)
    }

    async fn carry(self, host: usize, client: DuplexStream, server: DuplexStream, life: u32) {
        let ((client_out, client_in), (server_out, server_in)) = (split(client), split(server));
        tokio::select! {
            biased;
            _ = self.0.links[host].until(|link| link == Link::Cut) => {}
            _ = self.0.life.until(|now| now != life) => {}
            () = self.one_way(host, client_out, server_in) => {}
            () = self.one_way(host, server_out, client_in) => {}
        }
    }

    async fn one_way(&self, host: usize, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut buffer = vec![0; WINDOW];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            tokio::time::sleep(self.delay()).await;
            self.0.links[host].until(|link| link == Link::Whole).await;
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }
}

/// A value that is waited for. Unlike those of a `watch` channel, its waiters wake in the order in which they came.
struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Signal<T> {
    fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    fn now(&self) -> T {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        self.changed.notify_waiters();
    }

    async fn until(&self, is: impl Fn(T) -> bool) -> T {
        loop {
            let changed = self.changed.notified();
            let now = self.now();
            if is(now) {
                return now;
            }
            changed.await;
        }
    }
}

/// One host's way to the server, in place of TCP.
#[derive(Clone)]
pub(crate) struct Wire {
    net: Net,
    host: usize,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "wire of host {}", self.host)
    }
}

impl Service<Uri> for Wire {
    type Response = TokioIo<DuplexStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (net, host) = (self.net.clone(), self.host);
        Box::pin(async move { net.connect(host).await.map(TokioIo::new) })
    }
}

/// A connection as the server has it.
pub(crate) struct Arrived(DuplexStream);

impl Connected for Arrived {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Arrived {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Arrived {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
