use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of what is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Whole,
    /// Connections break, and new ones are closed.
    Cut,
    /// Connections stay open, and nothing arrives: as after a cable is pulled.
    Dead,
}

/// A wire to a server that can fail in two ways, and counts what it carries.
pub(crate) struct Relay {
    port: u16,
    wire: Arc<watch::Sender<Wire>>,
    received: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Arc::new(watch::Sender::new(Wire::Whole));
        let received = Arc::new(AtomicU64::new(0));
        let (wires, count) = (Arc::clone(&wire), Arc::clone(&received));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, wires.subscribe(), Arc::clone(&count)));
            }
        });
        Self { port, wire, received, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn cut(&self) {
        self.wire.send_replace(Wire::Cut);
    }

    pub(crate) fn kill(&self) {
        self.wire.send_replace(Wire::Dead);
    }

    pub(crate) fn mend(&self) {
        self.wire.send_replace(Wire::Whole);
    }

    /// Bytes that came from the server.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, server: u16, mut wire: watch::Receiver<Wire>, received: Arc<AtomicU64>) {
    if *wire.borrow() == Wire::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let ((client, to_client), (server, to_server)) = (client.into_split(), server.into_split());
    let sent = Arc::new(AtomicU64::new(0));
    tokio::select! {
        () = one_way(client, to_server, wire.clone(), sent) => {}
        () = one_way(server, to_client, wire.clone(), received) => {}
        _ = wire.wait_for(|wire| *wire == Wire::Cut) => {}
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut wire: watch::Receiver<Wire>,
    count: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if wire.wait_for(|wire| *wire != Wire::Dead).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}
