//! What must be known before anything is written: the network's configuration and the first snapshot of the store.

use backends::Backend;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;

use subnet_lease::{Lease, NetworkConfig, PeerTable, PublicAddrs, StoreEvent, Subnets};
use tracing::{info, warn};

use super::{NodeCore, Tick};

/// The cluster's configuration, understood.
pub(super) struct Network {
    pub(super) config: Arc<NetworkConfig>,
    pub(super) backend: Box<dyn Backend>,
    pub(super) written: Vec<u8>,
}

/// A snapshot: leases, and keys that could not be read with the reason.
type Shown = (Vec<Lease>, Vec<(String, String)>);

/// What the store shows that is not a peer: the last snapshot until it is turned into peers, and our own lease.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Leases {
    /// A snapshot that came before the configuration or the interface were known.
    waiting: Option<Shown>,
    /// What the store shows for us.
    pub(super) shown: Option<Lease>,
}

impl NodeCore {
    pub(super) fn store(&mut self, now: Tick, event: StoreEvent) {
        self.pace.mark_fresh();
        if !matches!(event, StoreEvent::Stale(_)) {
            self.store_problem = None;
            self.stale_since = now;
        }
        match event {
            StoreEvent::Config(written) => self.config(written),
            StoreEvent::Snapshot { leases, unreadable } => {
                self.leases.waiting = Some((leases, unreadable));
                self.snapshot();
            }
            StoreEvent::Upsert(lease) => self.upsert(lease),
            StoreEvent::Remove(subnets) => self.remove(&subnets),
            StoreEvent::Unreadable { key, reason } => match (&mut self.peers, &mut self.leases.waiting) {
                (Some(peers), _) => peers.unreadable(key, reason),
                (None, Some((_, unreadable))) => unreadable.push((key, reason)),
                (None, None) => {}
            },
            StoreEvent::Stale(reason) => self.stale(reason),
        }
    }

    fn config(&mut self, written: Vec<u8>) {
        if self.network.as_ref().is_some_and(|n| n.written == written) {
            return;
        }
        let (config, warnings) = match NetworkConfig::parse(&written) {
            Ok(parsed) => parsed,
            Err(errors) => {
                let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
                return self.stale(format!("the network's configuration is not usable: {}", all.join("; ")));
            }
        };
        for warning in warnings {
            warn!("network configuration: {warning}");
        }
        if self.network.is_some() {
            warn!(
                "the network's configuration changed; it takes effect with a restart of the daemon, which is gapless"
            );
            return;
        }
        let backend = backends::choose(&config.backend);
        self.network = Some(Network { config: Arc::new(config), backend, written });
        self.choose_external();
        self.snapshot();
    }

    /// Turns a waiting snapshot into peers, once configuration and interface are known. A later one replaces all.
    pub(super) fn snapshot(&mut self) {
        let (Some(network), Some(external)) = (&self.network, &self.external) else { return };
        let Some((leases, unreadable)) = self.leases.waiting.take() else { return };
        let own =
            |lease: &&Lease| is_own(lease, self.own.as_ref(), external.public, self.settings.node.as_deref());
        self.leases.shown = leases.iter().find(own).cloned();
        let own = self.own.or_else(|| self.leases.shown.as_ref().map(|l| l.subnets));
        if let Some(peers) = &mut self.peers {
            // What can't be read any more stays as it was.
            return peers.replace(leases, unreadable);
        }
        let table =
            PeerTable::from_snapshot(&network.config, own.as_ref(), external.public, leases, unreadable);
        info!(peers = table.len(), "first snapshot of the store");
        self.peers = Some(table);
    }

    fn upsert(&mut self, lease: Lease) {
        let (Some(peers), Some(external)) = (&mut self.peers, &self.external) else {
            if let Some((leases, _)) = &mut self.leases.waiting {
                leases.retain(|l| l.subnets != lease.subnets);
                leases.push(lease);
            }
            return;
        };
        if is_own(&lease, self.own.as_ref(), external.public, self.settings.node.as_deref()) {
            self.leases.shown = Some(lease);
        } else {
            peers.upsert(lease);
        }
    }

    fn remove(&mut self, subnets: &Subnets) {
        if let Some((leases, _)) = &mut self.leases.waiting {
            leases.retain(|l| l.subnets != *subnets);
        }
        if self.leases.shown.as_ref().is_some_and(|l| l.subnets == *subnets) {
            warn!(%subnets, "the store no longer shows our lease; claiming it again");
            self.leases.shown = None;
        } else if let Some(peers) = &mut self.peers {
            peers.remove(subnets);
        }
    }

    fn stale(&mut self, reason: String) {
        if self.store_problem.as_ref() != Some(&reason) {
            warn!("{reason}");
        }
        self.store_problem = Some(reason);
    }

    /// Every refused lease is said once, and again when its reason changes. Once a pass, since the verdict looks at
    /// all leases: said at every event, a thousand nodes that join at once would cost each of them a million looks.
    pub(super) fn report_refused(&mut self) {
        let Some(peers) = &self.peers else { return };
        let refused: Vec<_> = peers.refused().collect();
        if refused == self.seen_refusals {
            return;
        }
        // A set: whoever fills the store with rubbish must not cost us its square.
        let seen: HashSet<_> = self.seen_refusals.iter().collect();
        for (key, why) in refused.iter().filter(|r| !seen.contains(r)) {
            warn!(lease = key, "lease refused: {why}");
        }
        self.seen_refusals = refused;
    }
}

/// Before we hold a lease ours is the one with our public address, as flannel has it, unless it names another holder
/// (hosts behind one NAT share an address); afterwards, the one with our subnets.
fn is_own(lease: &Lease, own: Option<&Subnets>, public: PublicAddrs, node: Option<&str>) -> bool {
    match own {
        Some(own) => lease.subnets == *own,
        None if lease.node.as_deref().is_some_and(|theirs| node.is_some_and(|ours| ours != theirs)) => false,
        None => match (lease.public.v4, public.v4) {
            (Some(theirs), Some(ours)) => theirs == ours,
            (None, None) => lease.public.v6.is_some() && lease.public.v6 == public.v6,
            _ => false,
        },
    }
}
