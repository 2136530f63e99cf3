//! The same generated history on every store and on [`LeaseBook`], the model: each claim has the same outcome, and who
//! watches has the same leases in the end, whatever happened to the store and to the way there.
//!
//! `HISTORY_SEED` says which, `HISTORY_STEPS` how long.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use subnet_lease::{
    Claim, Class, Family, Lease, LeaseBook, OwnLease, PublicAddrs, Store, StoreError, StoreEvent, Subnets,
};
use tokio::task::JoinHandle;

use crate::host::{PATIENCE, claim};
use crate::site::{MOMENT, Site};

/// So few subnets that hosts and reservations now and then fill it.
const CRAMPED: &str =
    r#"{"Network":"10.5.0.0/20","EnableIPv6":true,"IPv6Network":"fc00::/60","Backend":{"Type":"vxlan"}}"#;
const HOSTS: u64 = 10;
const DAY: Duration = Duration::from_secs(86400);

/// What a host got: enough to tell two outcomes apart, and the same in every store.
type Outcome = Result<(Subnets, PublicAddrs, bool), String>;

fn outcome(result: Result<OwnLease, StoreError>) -> Outcome {
    match result {
        Ok(own) => Ok((own.lease.subnets, own.lease.public, own.expires_in.is_some())),
        Err(error) => Err(error.to_string()),
    }
}

/// A lease without what stores count each in their own way.
fn plain(lease: &Lease) -> Lease {
    Lease { epoch: 0, ttl: None, ..lease.clone() }
}

/// What somebody who watches knows.
#[derive(Default)]
struct Seen {
    leases: BTreeMap<Subnets, Lease>,
    /// Told last, for who looks into a failure.
    told: Vec<String>,
}

struct History {
    site: Site,
    book: LeaseBook,
    hosts: Vec<(Arc<dyn Store>, Claim)>,
    dice: fastrand::Rng,
    seen: Arc<Mutex<Seen>>,
    watching: JoinHandle<()>,
}

impl Drop for History {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl History {
    fn new(site: Site, seed: u64) -> Self {
        let hosts = (1..=HOSTS).map(|n| {
            let public = [format!("192.168.0.{n}"), format!("fd00::{n}")];
            let named = (n % 4 > 0).then(|| format!("node{n}"));
            let host = Claim { node: named, ..claim(CRAMPED, &[&public[0], &public[1]]) };
            (Arc::from(site.store()), host)
        });
        let (hosts, seen) = (hosts.collect(), Arc::default());
        let watching = tokio::spawn(follow(site.store(), Arc::clone(&seen)));
        Self { book: LeaseBook::default(), hosts, dice: fastrand::Rng::with_seed(seed), seen, watching, site }
    }

    async fn run(mut self, steps: u64, troubles: u64) {
        for step in 0..steps {
            // Each kind once, spread over the history.
            let every = steps / troubles.max(1);
            let trouble = (troubles > 0 && step % every == every / 2).then_some(step / every);
            self.step(trouble).await;
        }
        self.check().await;
    }

    async fn step(&mut self, trouble: Option<u64>) {
        let host = usize::try_from(self.dice.u64(..HOSTS)).unwrap();
        match (trouble, self.dice.u64(..20)) {
            (Some(trouble), _) => return self.claim_under(trouble, host).await,
            (None, 0..10) => {}
            // It forgets what it had, or gets other addresses.
            (None, 10..12) => self.hosts[host].1.previous = None,
            (None, 12..14) => self.hosts[host].1.public = self.some_address(),
            (None, 14..16) => return self.release(host).await,
            (None, 16..18) => return self.reserve().await,
            (None, _) => return self.delete().await,
        }
        let result = persist(&self.hosts[host].0, &self.hosts[host].1).await;
        self.compare(host, result);
    }

    /// A claim while something is wrong, which is mended a moment later.
    async fn claim_under(&mut self, trouble: u64, host: usize) {
        eprintln!("trouble {trouble}");
        self.site.trouble(trouble).await;
        let (store, claim) = self.hosts[host].clone();
        let claiming = tokio::spawn(async move { persist(&store, &claim).await });
        tokio::time::sleep(MOMENT).await;
        self.site.mend();
        self.compare(host, claiming.await.unwrap());
        self.check().await;
    }

    fn compare(&mut self, host: usize, result: Result<OwnLease, StoreError>) {
        let claim = &mut self.hosts[host].1;
        let expected = self.book.claim(Duration::ZERO, claim, DAY).map(|(own, _)| own);
        assert_eq!(outcome(result), outcome(expected.clone()), "{claim:?}\n{:#?}", self.book);
        claim.previous = expected.ok().map(|own| own.lease.subnets).or(claim.previous);
    }

    fn some_address(&mut self) -> PublicAddrs {
        let n = 1 + self.dice.u64(..HOSTS * 3);
        [format!("192.168.0.{n}"), format!("fd00::{n}")].iter().map(|addr| addr.parse().unwrap()).collect()
    }

    async fn release(&mut self, host: usize) {
        let (store, claim) = &self.hosts[host];
        let held = self.book.leases().find(|lease| claim.owns(lease)).cloned();
        let Some(lease) = held else { return };
        let (mut failed, ends) = (false, lease.ttl.is_some());
        let gone = loop {
            match store.release(&lease).await {
                // A failed one may have done it.
                Ok(gone) => break gone || (failed && ends),
                Err(error) => failed = error.class() == Class::Transient || panic!("{error}"),
            }
        };
        assert_eq!(gone, ends, "reservations stay: {lease:?}");
        if gone {
            self.book.remove(&lease.subnets);
        }
    }

    /// In one family or both, and perhaps over a lease that is there.
    async fn reserve(&mut self) {
        let network = Arc::clone(&self.hosts[0].1.network);
        let place = u128::from(self.dice.u64(..15));
        let both = self.dice.u64(..3) != 0;
        let nets = network.pools().filter(|pool| both || pool.family() == Family::V4);
        let subnets = Subnets::of(nets.filter_map(|pool| pool.at(place))).unwrap();
        let lease = Lease::new(subnets, self.some_address(), subnet_lease::BackendAttrs::default());
        self.site.reserve(&lease).await;
        let there = self.book.revision_of(&subnets);
        self.book.put(Duration::ZERO, lease, there, None).unwrap();
    }

    async fn delete(&mut self) {
        let leases: Vec<Lease> = self.book.leases().cloned().collect();
        let Some(lease) = leases.get(usize::try_from(self.dice.u64(..15)).unwrap()) else { return };
        self.site.delete(lease).await;
        self.book.remove(&lease.subnets);
    }

    /// Who watches comes to know what the model says.
    async fn check(&self) {
        let expected: BTreeMap<Subnets, Lease> =
            self.book.leases().map(|lease| (lease.subnets, plain(lease))).collect();
        let agrees = async {
            while self.seen.lock().unwrap().leases != expected {
                tokio::time::sleep(MOMENT).await;
            }
        };
        if tokio::time::timeout(PATIENCE, agrees).await.is_err() {
            let seen = self.seen.lock().unwrap();
            panic!("told: {:#?}\nseen: {:#?}\nexpected: {expected:#?}", seen.told, seen.leases);
        }
    }
}

/// As the daemon does: again until it works, or nothing but an operator can help.
async fn persist(store: &Arc<dyn Store>, claim: &Claim) -> Result<OwnLease, StoreError> {
    let tries = async {
        loop {
            match store.claim(claim).await {
                Err(error) if error.class() == Class::Transient => tokio::time::sleep(MOMENT).await,
                settled => return settled,
            }
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.expect("a claim in time")
}

async fn follow(store: Box<dyn Store>, seen: Arc<Mutex<Seen>>) {
    let mut watch = store.watch();
    while let Some(event) = watch.next().await {
        let mut seen = seen.lock().unwrap();
        seen.told.push(format!("{event:?}"));
        match event {
            StoreEvent::Snapshot { leases, .. } => {
                seen.leases = leases.iter().map(|lease| (lease.subnets, plain(lease))).collect();
            }
            StoreEvent::Upsert(lease) => drop(seen.leases.insert(lease.subnets, plain(&lease))),
            StoreEvent::Removed(gone) => gone.iter().for_each(|subnets| drop(seen.leases.remove(subnets))),
            StoreEvent::Unreadable { key, reason } => panic!("{key} can't be read: {reason}"),
            StoreEvent::Config(_) | StoreEvent::Stale(_) | StoreEvent::Gone { .. } => {}
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

async fn lived(site: Site, seed: u64, troubles: u64) {
    let seed = number("HISTORY_SEED").unwrap_or(seed);
    eprintln!("HISTORY_SEED={seed}");
    History::new(site, seed).run(number("HISTORY_STEPS").unwrap_or(150), troubles).await;
}

#[tokio::test]
async fn the_memory_store_does_what_the_book_says() {
    for seed in 0..20 {
        lived(Site::memory(CRAMPED), seed, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_server_does_what_the_book_says_through_restarts_and_cuts() {
    lived(Site::embedded(CRAMPED).await, 101, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_does_what_the_book_says_through_restarts_pauses_and_cuts() {
    lived(Site::single(CRAMPED).await, 102, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_do_what_the_book_says_though_one_is_killed_paused_or_cut_off() {
    lived(Site::members(CRAMPED).await, 103, 5).await;
}
