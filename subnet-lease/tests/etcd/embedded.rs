//! The same store on our own server, which has to be an etcd as far as leases go.

use std::collections::BTreeSet;
use std::time::Duration;

use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::server::{Server, ServerConfig, TlsFiles};
use subnet_lease::{Entry, Store, StoreError, StoreEvent};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::authority::Authority;
use crate::host::{claim, next, snapshot};
use crate::server::{DUAL, Etcd};

struct Embedded {
    endpoint: String,
    task: JoinHandle<()>,
    _dir: TempDir,
}

impl Embedded {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    async fn start_with(tls: Option<TlsFiles>) -> Self {
        let dir = tempfile::Builder::new().prefix("subnet-lease-embedded-").tempdir().unwrap();
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let scheme = if tls.is_some() { "https" } else { "http" };
        let config = ServerConfig { data_dir: dir.path().to_owned(), listen, insecure: false, tls };
        let server = Server::bind(config).await.unwrap();
        let endpoint = format!("{scheme}://{}", server.addrs()[0]);
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
    assert_eq!(next(&mut watch).await, StoreEvent::Removed(vec![own.lease.subnets]));
}

fn files(authority: &Authority, clients: bool) -> TlsFiles {
    TlsFiles {
        cert: authority.file("server.pem"),
        key: authority.file("server-key.pem"),
        client_authority: clients.then(|| authority.file("ca.pem")),
    }
}

#[tokio::test]
async fn the_embedded_server_speaks_tls_and_turns_away_who_has_no_certificate() {
    let authority = Authority::new();
    let server = Embedded::start_with(Some(files(&authority, true))).await;
    let known = EtcdStore::connect(authority.known(server.endpoint.clone())).unwrap();
    known.put_config(DUAL.as_bytes(), None).await.unwrap();
    known.claim(&claim(DUAL, &["192.168.0.1", "fd00::1"])).await.unwrap();
    let plain = server.endpoint.replace("https", "http");
    let plain = EtcdConfig { endpoints: vec![plain], ..EtcdConfig::default() };
    for stranger in [authority.trusted(server.endpoint.clone()), plain] {
        let error = EtcdStore::connect(stranger).unwrap().get_config().await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable(_) | StoreError::Untrusted(_)), "{error}");
    }
    let other = Authority::new();
    let mistaken =
        EtcdConfig { ca_file: Some(authority.file("ca.pem")), ..other.known(server.endpoint.clone()) };
    EtcdStore::connect(mistaken).unwrap().get_config().await.unwrap_err();
}

#[tokio::test]
async fn the_embedded_server_uses_replaced_certificates_at_once_and_keeps_the_old_for_broken_ones() {
    let authority = Authority::new();
    let server = Embedded::start_with(Some(files(&authority, true))).await;
    let store = EtcdStore::connect(authority.known(server.endpoint.clone())).unwrap();
    store.put_config(DUAL.as_bytes(), None).await.unwrap();
    authority.issue("127.0.0.1", (2020, 2090));
    store.get_config().await.unwrap();
    std::fs::write(authority.file("server.pem"), "-----BEGIN ").unwrap();
    store.get_config().await.unwrap();
}

#[tokio::test]
async fn with_a_certificate_the_embedded_server_may_be_reached_and_without_a_good_one_it_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, listen) = (Authority::new(), vec!["0.0.0.0:0".parse().unwrap()]);
    let tls = Some(files(&authority, false));
    let config = ServerConfig { data_dir: dir.path().to_owned(), listen, insecure: false, tls };
    assert!(Server::bind(ServerConfig { tls: None, ..config.clone() }).await.is_err());
    let error = Server::bind(config.clone()).await.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("--trusted-ca-file"),
        "a certificate of the server alone shows nobody who writes: {error}"
    );
    let config = ServerConfig { tls: Some(files(&authority, true)), ..config };
    drop(Server::bind(config.clone()).await.map_err(|error| error.to_string()).unwrap());
    std::fs::write(authority.file("server-key.pem"), "no key").unwrap();
    let error = Server::bind(config).await.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("server-key.pem"), "{error}");
}

#[tokio::test]
async fn a_cluster_moves_to_an_etcd_and_back_with_its_leases_and_their_time() {
    let (server, etcd) = (Embedded::start().await, Etcd::start());
    let small = server.store(600);
    small.put_config(DUAL.as_bytes(), None).await.unwrap();
    for host in 1..=150 {
        let public = [format!("192.168.0.{host}"), format!("fd00::{host}")];
        small.claim(&claim(DUAL, &[&public[0], &public[1]])).await.unwrap();
    }
    let exported = small.export().await.unwrap();
    assert_eq!(exported.len(), 151);
    assert!(exported.iter().all(|entry| (entry.key == "config") == entry.ttl.is_none()));

    let large = etcd.store();
    large.import(&exported, false).await.unwrap();
    let without_time = |entries: &[Entry]| {
        entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(without_time(&large.export().await.unwrap()), without_time(&exported));
    let own = large.claim(&claim(DUAL, &["192.168.0.7", "fd00::7"])).await.unwrap();
    assert!(
        exported.iter().any(|entry| entry.key.ends_with(&own.lease.subnets.to_string())),
        "kept its subnets"
    );
    let left = large.list().await.unwrap().leases.into_iter().map(|(_, left)| left.unwrap());
    assert!(left.into_iter().all(|left| left > Duration::from_secs(500)));

    assert!(matches!(small.import(&exported, false).await, Err(StoreError::Raced(_))));
    small.import(&large.export().await.unwrap(), true).await.unwrap();
    assert_eq!(small.export().await.unwrap().len(), 151);
}
