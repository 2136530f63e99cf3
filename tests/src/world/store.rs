//! The store of a world: a lease book, and news that comes late, twice, out of date or not at all.

use std::time::Duration;

use flanneld::core::Input;
use subnet_lease::{BackendAttrs, Claim, Lease, LeaseBook, StoreError, StoreEvent, Subnets, VxlanData};

use super::{What, World};

/// The book and its news since the beginning.
pub struct Book {
    /// The leases.
    pub leases: LeaseBook,
    network: Vec<u8>,
    news: Vec<StoreEvent>,
    /// Counts the histories.
    age: usize,
}

const TTL: Duration = Duration::from_secs(24 * 3600);
/// In percent of deliveries.
const LOST: usize = 5;
const DOUBLED: usize = 15;

impl Book {
    pub(super) fn new(network: &str) -> Self {
        Self { leases: LeaseBook::default(), network: network.into(), news: Vec::new(), age: 0 }
    }

    fn snapshot(&self, foreign: bool) -> StoreEvent {
        let leases: Vec<Lease> = self.leases.leases().cloned().collect();
        StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign }
    }
}

impl World {
    /// A daemon begins to watch: configuration and snapshot first.
    pub(super) fn subscribe(&mut self, n: usize) {
        self.nodes[n].read = usize::MAX;
        self.deliver_soon(n);
    }

    pub(super) fn claim_arrives(&mut self, n: usize, life: u32, claim: &Claim) {
        let result = if self.nodes[n].partitioned {
            Err(StoreError::Unreachable("no way to the store".into()))
        } else {
            self.book.leases.claim(self.now, claim, TTL).map(|(own, events)| {
                self.publish(events);
                own
            })
        };
        let node = &mut self.nodes[n];
        if let Ok(own) = &result {
            if node.subnets.is_some_and(|s| s != own.lease.subnets) {
                self.watch.touch(n);
            }
            node.subnets = Some(own.lease.subnets);
        }
        if node.life == life && node.core.is_some() {
            let after = self.up_to_ms(n, self.shape.lag);
            self.send(after, n, What::Input(Box::new(Input::Claimed(result))));
        }
    }

    /// Reserves a subnet for every node beforehand, so that it does not matter who comes first.
    pub fn assign(&mut self) {
        for n in 0..self.nodes.len() {
            let [.., high, low] = n.to_be_bytes();
            let subnets: Subnets = format!("10.{}.{low}.0-24", 1 + high).parse().unwrap();
            let data = VxlanData { vni: 1, mac: [2, 4, 0, 0, high, low] };
            let public = self.nodes[n].site.addresses.iter().map(|net| net.ip()).collect();
            let lease = Lease {
                node: Some(format!("node-{n}")),
                ..Lease::new(subnets, public, BackendAttrs::vxlan(Some(data), None))
            };
            let event = self.book.leases.put(self.now, lease, None, None).unwrap();
            self.publish(event.into_iter().collect());
        }
    }

    /// The store loses all leases.
    pub(super) fn wipe(&mut self, notified: bool) {
        let gone = self.book.leases.wipe();
        if notified {
            return self.publish(vec![gone]);
        }
        self.book.age += 1;
        (0..self.nodes.len()).for_each(|n| self.subscribe(n));
    }

    /// An operator ends a lease.
    pub fn revoke(&mut self, subnets: &Subnets) {
        let events = self.book.leases.remove(subnets).into_iter().collect();
        self.publish(events);
    }

    /// Something in the store changed.
    pub(super) fn publish(&mut self, events: Vec<StoreEvent>) {
        if events.is_empty() {
            return;
        }
        self.book.news.extend(events);
        for n in 0..self.nodes.len() {
            self.deliver_soon(n);
        }
    }

    /// The store sends old events again, oldest first: for a moment this node is in the past.
    pub(super) fn old_news(&mut self, n: usize, back: usize) {
        let node = &mut self.nodes[n];
        if node.read != usize::MAX {
            node.read = node.read.saturating_sub(back);
            self.deliver_soon(n);
        }
    }

    pub(super) fn deliver_soon(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.core.is_some() && !node.delivering && !node.partitioned {
            node.delivering = true;
            let after = self.up_to_ms(n, self.shape.lag);
            self.send(after, n, What::Deliver);
        }
    }

    /// Everything that is news to a node, in one go.
    pub(super) fn deliver(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let (doubled, lost, back) = (node.rng.chance(DOUBLED), node.rng.chance(LOST), node.rng.below(4));
        node.delivering = false;
        if node.partitioned {
            return;
        }
        let news = &self.book.news;
        let mut events = Vec::new();
        if node.read == usize::MAX {
            events.push(StoreEvent::Config(self.book.network.clone()));
        }
        // A gap is followed by a snapshot; so is the beginning.
        if node.read == usize::MAX || lost {
            // A daemon that just began to watch knows no other history.
            let foreign = node.age.replace(self.book.age).is_some_and(|age| age != self.book.age);
            events.push(self.book.snapshot(foreign));
        } else {
            let from = if doubled { node.read.saturating_sub(back) } else { node.read };
            events.extend(news[from..].iter().cloned());
        }
        node.read = news.len();
        for event in events {
            self.input(n, Input::Store(event));
        }
    }
}
