//! The same store on our own server, which has to be an etcd as far as leases go.

use std::collections::BTreeSet;
use std::time::Duration;

use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::server::{Server, ServerConfig};
use subnet_lease::{Store, StoreEvent};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::host::{claim, next, snapshot};
use crate::server::DUAL;

struct Embedded {
    endpoint: String,
    task: JoinHandle<()>,
    _dir: TempDir,
}

impl Embedded {
    async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("subnet-lease-embedded-").tempdir().unwrap();
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let config = ServerConfig { data_dir: dir.path().to_owned(), listen, insecure: false };
        let server = Server::bind(config).await.unwrap();
        let endpoint = format!("http://{}", server.addrs()[0]);
        let task = tokio::spawn(async move { server.run(std::future::pending()).await.unwrap() });
        Self { endpoint, task, _dir: dir }
    }

    fn store(&self, ttl: u64) -> EtcdStore {
        let (ttl, renew_margin) = (Duration::from_secs(ttl), Duration::ZERO);
        let endpoints = vec![self.endpoint.clone()];
        EtcdStore::connect(EtcdConfig { endpoints, ttl, renew_margin, ..EtcdConfig::default() }).unwrap()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_boot_together_on_the_embedded_server_get_subnets_of_their_own() {
    let server = Embedded::start().await;
    server.store(60).put_config(DUAL.as_bytes(), None).await.unwrap();
    let boots = (1..=20).map(|host| {
        let store = server.store(60);
        tokio::spawn(async move {
            let public = [format!("192.168.0.{host}"), format!("fd00::{host}")];
            store.claim(&claim(DUAL, &[&public[0], &public[1]])).await.unwrap().lease.subnets
        })
    });
    let got = futures::future::join_all(boots.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap);
    let networks: BTreeSet<_> = got.flat_map(|subnets| subnets.iter()).collect();
    assert_eq!(networks.len(), 40);
}

#[tokio::test]
async fn a_lease_on_the_embedded_server_is_told_renewed_and_ends() {
    let server = Embedded::start().await;
    let store = server.store(2);
    store.put_config(DUAL.as_bytes(), None).await.unwrap();
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await, (vec![], vec![]));
    let host = claim(DUAL, &["192.168.0.1", "fd00::1"]);
    let own = store.claim(&host).await.unwrap();
    assert_eq!(next(&mut watch).await, StoreEvent::Upsert(own.lease.clone()));
    assert_eq!(store.claim(&host).await.unwrap(), own);
    assert_eq!(next(&mut watch).await, StoreEvent::Remove(own.lease.subnets));
}
