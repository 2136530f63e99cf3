//! The stores that a history runs on, and what can be done to each.

use std::path::Path;
use std::time::Duration;

use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::server::{Server, ServerConfig};
use subnet_lease::{Lease, MemoryStore, Store};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::host::PATIENCE;
use crate::relay::Relay;
use crate::server::{self, Cluster, Etcd};

/// A store, what is between us and it, and the hand that writes past our client.
pub(crate) enum Site {
    Memory(MemoryStore),
    Embedded { server: Embedded, relay: Relay },
    Single { etcd: Etcd, relay: Relay },
    Members { cluster: Cluster, relays: Vec<Relay> },
}

impl Site {
    pub(crate) fn memory(network: &str) -> Self {
        let store = MemoryStore::new();
        store.set_config(network);
        Self::Memory(store)
    }

    pub(crate) async fn embedded(network: &str) -> Self {
        let server = Embedded::start().await;
        let relay = Relay::to(server.port).await;
        Self::Embedded { server, relay }.with(network).await
    }

    pub(crate) async fn single(network: &str) -> Self {
        let etcd = Etcd::start();
        let relay = Relay::to(etcd.port()).await;
        Self::Single { etcd, relay }.with(network).await
    }

    pub(crate) async fn members(network: &str) -> Self {
        let cluster = Cluster::start();
        let mut relays = Vec::new();
        for member in &cluster.members {
            relays.push(Relay::to(member.port()).await);
        }
        Self::Members { cluster, relays }.with(network).await
    }

    async fn with(self, network: &str) -> Self {
        self.etcd_store().put_config(network.as_bytes(), None).await.unwrap();
        self
    }

    fn relays(&self) -> &[Relay] {
        match self {
            Self::Memory(_) => &[],
            Self::Embedded { relay, .. } | Self::Single { relay, .. } => std::slice::from_ref(relay),
            Self::Members { relays, .. } => relays,
        }
    }

    fn etcd_store(&self) -> EtcdStore {
        let endpoints = self.relays().iter().map(Relay::endpoint).collect();
        EtcdStore::connect(EtcdConfig { endpoints, ..EtcdConfig::default() }).unwrap()
    }

    /// One host's store, through the relays.
    pub(crate) fn store(&self) -> Box<dyn Store> {
        match self {
            Self::Memory(store) => Box::new(store.clone()),
            _ => Box::new(self.etcd_store()),
        }
    }

    /// Writes a reservation, whoever holds the key: as an operator with `etcdctl`, who tries again.
    pub(crate) async fn reserve(&self, lease: &Lease) {
        match self {
            Self::Memory(store) => store.insert(lease.clone(), None),
            _ => while self.client().await.put(self.key(lease), lease.to_record(), None).await.is_err() {},
        }
    }

    /// Deletes a key.
    pub(crate) async fn delete(&self, lease: &Lease) {
        match self {
            Self::Memory(store) => store.remove(&lease.subnets),
            _ => while self.client().await.delete(self.key(lease), None).await.is_err() {},
        }
    }

    fn key(&self, lease: &Lease) -> String {
        server::key(&lease.subnets.to_string())
    }

    /// Past the relays, to a member that answers.
    async fn client(&self) -> etcd_client::Client {
        let endpoint = match self {
            Self::Memory(_) => unreachable!("it has no client"),
            Self::Embedded { server, .. } => format!("http://127.0.0.1:{}", server.port),
            Self::Single { etcd, .. } => etcd.endpoint(),
            Self::Members { cluster, .. } => cluster.members[0].endpoint(),
        };
        etcd_client::Client::connect([endpoint], None).await.unwrap()
    }

    /// Begins the trouble of this number; what a store can't suffer does nothing. `mend` ends it.
    pub(crate) async fn trouble(&mut self, kind: u64) {
        match (kind % 5, &mut *self) {
            (_, Self::Memory(_)) => {}
            (0, site) => site.relays().iter().for_each(Relay::cut),
            (1, site) => site.relays().iter().for_each(Relay::kill_the_open),
            (2, site) => site.compact().await,
            (_, Self::Embedded { server, .. }) => server.restart().await,
            (3, Self::Single { etcd, .. }) => etcd.restart(),
            (_, Self::Single { etcd, .. }) => etcd.pause(true),
            (3, Self::Members { cluster, .. }) => {
                let leader = cluster.leader().await;
                cluster.members[leader].stop();
            }
            (_, Self::Members { cluster, relays }) => {
                cluster.members[2].pause(true);
                relays[1].cut();
            }
        }
    }

    pub(crate) fn mend(&mut self) {
        self.relays().iter().for_each(Relay::mend);
        match self {
            Self::Single { etcd, .. } => etcd.pause(false),
            Self::Members { cluster, .. } => {
                cluster.members.iter_mut().for_each(Etcd::start_if_stopped);
                cluster.members[2].pause(false);
            }
            _ => {}
        }
    }

    /// Forgets all history but the last step.
    async fn compact(&self) {
        let mut client = self.client().await;
        let revision = client.get("config", None).await.unwrap().header().unwrap().revision();
        // The same revision again is refused.
        let _ = client.compact(revision, None).await;
    }
}

/// Our own server, in a task.
pub(crate) struct Embedded {
    port: u16,
    dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Embedded {
    async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("subnet-lease-embedded-").tempdir().unwrap();
        let (port, stop, task) = Self::run(dir.path(), 0).await;
        Self { port, dir, stop: Some(stop), task }
    }

    async fn run(dir: &Path, port: u16) -> (u16, oneshot::Sender<()>, JoinHandle<()>) {
        let server = Self::bind(dir, port).await;
        let (port, (stop, stopped)) = (server.addrs()[0].port(), oneshot::channel::<()>());
        let task = tokio::spawn(async move { server.run(async { drop(stopped.await) }).await.unwrap() });
        (port, stop, task)
    }

    /// A child that another test is just making holds our port and our file for a moment more, until it becomes etcd.
    async fn bind(dir: &Path, port: u16) -> Server {
        let listen = vec![([127, 0, 0, 1], port).into()];
        let config = ServerConfig { data_dir: dir.to_owned(), listen, insecure: false, tls: None };
        let tries = async {
            loop {
                match Server::bind(config.clone()).await {
                    Ok(server) => return server,
                    Err(error) => eprintln!("not yet: {error}"),
                }
                tokio::time::sleep(MOMENT).await;
            }
        };
        tokio::time::timeout(PATIENCE, tries).await.expect("a server that starts")
    }

    async fn restart(&mut self) {
        drop(self.stop.take());
        (&mut self.task).await.unwrap();
        let (_, stop, task) = Self::run(self.dir.path(), self.port).await;
        (self.stop, self.task) = (Some(stop), task);
    }
}

/// A pause in which something that is under way may go on; nothing depends on its length.
pub(crate) const MOMENT: Duration = Duration::from_millis(20);
