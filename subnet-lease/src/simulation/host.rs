//! A host: claims as the daemon does, and watches.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::net::Net;
use super::{Diary, MARGIN, NETWORK, TTL};
use crate::admit::claim::Claim;
use crate::model::lease::{BackendAttrs, Lease};
use crate::model::net::Subnets;
use crate::model::netconf::NetworkConfig;
use crate::store::etcd::{EtcdConfig, EtcdStore};
use crate::store::{Store, StoreEvent};

/// Between two claims that fail: doubled from the first to the last, the daemon's figures.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct Host {
    knows: Arc<Mutex<Knows>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug, Default)]
struct Knows {
    own: Option<Subnets>,
    leases: BTreeMap<Subnets, Lease>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.know().fmt(f)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Host {
    pub(super) fn start(n: usize, net: &Net, diary: Diary) -> Self {
        let config = EtcdConfig {
            endpoints: vec!["http://store".into()],
            ttl: TTL,
            renew_margin: MARGIN,
            ..EtcdConfig::default()
        };
        let store = EtcdStore::simulated(config, net.wire(n), n as u64);
        let knows = Arc::default();
        let lacking = Arc::new(Notify::new());
        let host = format!("host {n}");
        let watching =
            watch(store.clone(), Arc::clone(&knows), Arc::clone(&lacking), host.clone(), diary.clone());
        let claiming = keep(store, claim(n), Arc::clone(&knows), lacking, host, diary);
        Self { tasks: [tokio::spawn(watching), tokio::spawn(claiming)], knows }
    }

    fn know(&self) -> MutexGuard<'_, Knows> {
        lock(&self.knows)
    }

    pub(super) fn holds(&self) -> Option<Subnets> {
        self.know().own
    }

    /// The leases that it knows of, in order.
    pub(super) fn sees(&self) -> Vec<Subnets> {
        self.know().leases.keys().copied().collect()
    }
}

fn lock(knows: &Mutex<Knows>) -> MutexGuard<'_, Knows> {
    knows.lock().unwrap_or_else(PoisonError::into_inner)
}

fn claim(n: usize) -> Claim {
    let (network, _) = NetworkConfig::parse(NETWORK.as_bytes()).unwrap();
    let addresses = [format!("192.168.0.{}", n + 1), format!("fd00::{:x}", n + 1)];
    Claim {
        avoid: Vec::new(),
        public: addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect(),
        attrs: BackendAttrs::plain("host-gw"),
        previous: None,
        network: Arc::new(network),
        node: Some(format!("node{n}")),
    }
}

/// Holds a lease: claims, renews, and claims again what the store no longer shows.
async fn keep(
    store: EtcdStore,
    mut claim: Claim,
    knows: Arc<Mutex<Knows>>,
    lacking: Arc<Notify>,
    host: String,
    diary: Diary,
) {
    let mut failures = 0;
    loop {
        match store.claim(&claim).await {
            Ok(own) => {
                let subnets = own.lease.subnets;
                diary.note(format_args!("{host}: holds {subnets}"));
                (failures, claim.previous) = (0, Some(subnets));
                lock(&knows).own = Some(subnets);
                let renewal = own.expires_in.unwrap_or(TTL).saturating_sub(MARGIN);
                // Either is a reason to claim.
                let _ = timeout_at(Instant::now() + renewal, lacking.notified()).await;
            }
            Err(error) => {
                diary.note(format_args!("{host}: {error}"));
                let pause = FIRST_PAUSE.saturating_mul(1 << failures).min(LAST_PAUSE);
                failures = (failures + 1).min(10);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn watch(store: EtcdStore, knows: Arc<Mutex<Knows>>, lacking: Arc<Notify>, host: String, diary: Diary) {
    let mut events = store.watch();
    while let Some(event) = events.next().await {
        let mut knows = lock(&knows);
        match event {
            StoreEvent::Snapshot { leases, unreadable, foreign } => {
                diary.note(format_args!("{host}: {} leases", leases.len()));
                assert!(unreadable.is_empty() && !foreign, "{unreadable:?} {foreign}");
                knows.leases = leases.into_iter().map(|lease| (lease.subnets, lease)).collect();
            }
            StoreEvent::Upsert(lease) => drop(knows.leases.insert(lease.subnets, lease)),
            StoreEvent::Removed(gone) => {
                diary.note(format_args!("{host}: {gone:?} are gone"));
                knows.leases.retain(|subnets, _| !gone.contains(subnets));
            }
            StoreEvent::Stale(why) => diary.note(format_args!("{host}: stale: {why}")),
            StoreEvent::Unreadable { key, reason } => panic!("{key}: {reason}"),
            StoreEvent::Config(_) | StoreEvent::Gone { .. } => {}
        }
        if knows.own.is_some_and(|own| !knows.leases.contains_key(&own)) {
            lacking.notify_one();
        }
    }
}
