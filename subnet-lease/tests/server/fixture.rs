//! Servers to test with: ours in a thread, a real etcd as a process. Both on free loopback ports, gone on drop.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use etcd_client::Client;
use subnet_lease::server::{Server, ServerConfig, ServerError};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// How long something may take before it counts as lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Our server, in a thread of its own so that tests may block.
pub(crate) struct Store {
    pub(crate) endpoint: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _own_dir: Option<TempDir>,
}

impl Store {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mut store = Self::on(dir.path()).unwrap();
        store._own_dir = Some(dir);
        store
    }

    /// A server on a data directory that outlives it.
    pub(crate) fn on(dir: &Path) -> Result<Self, ServerError> {
        let config = config(dir);
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, start) = mpsc::channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let server = match Server::bind(config).await {
                    Ok(server) => server,
                    Err(error) => return started.send(Err(error)).unwrap(),
                };
                started.send(Ok(server.addrs()[0])).unwrap();
                server.run(async { drop(stopped.await) }).await.unwrap();
            });
        });
        let addr = start.recv().unwrap()?;
        Ok(Self {
            endpoint: format!("http://{addr}"),
            stop: Some(stop),
            thread: Some(thread),
            _own_dir: None,
        })
    }

    /// The same after another one ended. A child that a test is just making holds its file for a moment more, until it
    /// becomes another program.
    pub(crate) fn again(dir: &Path) -> Self {
        let end = Instant::now() + PATIENCE;
        loop {
            match Self::on(dir) {
                Err(ServerError::InUse(_)) if Instant::now() < end => thread::yield_now(),
                started => return started.unwrap(),
            }
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect([&self.endpoint], None).await.unwrap()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server's thread panicked");
        }
    }
}

pub(crate) fn config(dir: &Path) -> ServerConfig {
    ServerConfig {
        data_dir: dir.to_owned(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        insecure: false,
        tls: None,
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A real etcd, ready to answer.
pub(crate) struct Etcd {
    pub(crate) endpoint: String,
    process: Child,
    _dir: TempDir,
}

impl Etcd {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let [client, peer] = free_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let mut process = Command::new("etcd")
            .args(["--name=real", "--unsafe-no-fsync"])
            .arg(format!("--data-dir={}", dir.path().display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=real={peer}"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd is installed (package etcd-server)");
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("serving insecure client requests") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "etcd ended before it was ready");
        }
        // It must never wait for somebody to read its log.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { endpoint: client, process, _dir: dir }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
