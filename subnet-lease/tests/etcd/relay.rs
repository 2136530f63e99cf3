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
    /// Connections of an earlier age are dead.
    age: Arc<watch::Sender<u32>>,
    received: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Arc::new(watch::Sender::new(Wire::Whole));
        let received = Arc::new(AtomicU64::new(0));
        let age = Arc::new(watch::Sender::new(0));
        let (wires, ages, count) = (Arc::clone(&wire), Arc::clone(&age), Arc::clone(&received));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = (wires.subscribe(), ages.subscribe());
                tokio::spawn(carry(client, server, state, Arc::clone(&count)));
            }
        });
        Self { port, wire, age, received, task }
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

    /// Connections that are open now carry nothing any more; new ones do.
    pub(crate) fn kill_the_open(&self) {
        self.age.send_modify(|age| *age += 1);
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

type State = (watch::Receiver<Wire>, watch::Receiver<u32>);

async fn carry(client: TcpStream, server: u16, state: State, received: Arc<AtomicU64>) {
    let (mut wire, age) = state.clone();
    if *wire.borrow() == Wire::Cut {
        return;
    }
    let born = *age.borrow();
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let ((client, to_client), (server, to_server)) = (client.into_split(), server.into_split());
    let sent = Arc::new(AtomicU64::new(0));
    tokio::select! {
        () = one_way(client, to_server, state.clone(), born, sent) => {}
        () = one_way(server, to_client, state, born, received) => {}
        _ = wire.wait_for(|wire| *wire == Wire::Cut) => {}
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (mut wire, mut age): State,
    born: u32,
    count: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        // A connection of an earlier age waits here for good.
        let lives = wire.wait_for(|wire| *wire != Wire::Dead).await.is_ok()
            && age.wait_for(|age| *age == born).await.is_ok();
        if !lives || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}
