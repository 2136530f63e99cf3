//! What must be known before anything is written: the network's configuration and the first snapshot of the store.

use backends::Backends;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;

use subnet_lease::{Lease, NetworkConfig, PeerTable, PublicAddrs, StoreEvent, Subnets};
use tracing::{info, warn};

use super::{NodeCore, Tick};

/// The cluster's configuration, understood.
pub(super) struct Network {
    pub(super) config: Arc<NetworkConfig>,
    pub(super) backends: Backends,
    pub(super) written: Vec<u8>,
}

/// A snapshot: leases, keys that could not be read with the reason, and whether it is of another history.
type Shown = (Vec<Lease>, Vec<(String, String)>, bool);

/// What the store shows that is not a peer: the last snapshot until it is turned into peers, and our own lease.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Leases {
    /// A snapshot that came before the configuration or the interface were known.
    waiting: Option<Shown>,
    /// What the store shows for us.
    pub(super) shown: Option<Lease>,
}

impl Leases {
    /// Whether a snapshot waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// A snapshot as it was remembered.
    pub(super) fn wait(&mut self, leases: Vec<Lease>) {
        self.waiting = Some((leases, Vec::new(), false));
    }

    /// These ended before anybody looked.
    pub(super) fn forget(&mut self, gone: &[Subnets]) {
        if let Some((leases, ..)) = &mut self.waiting {
            leases.retain(|lease| !gone.contains(&lease.subnets));
        }
    }
}

impl NodeCore {
    pub(super) fn store(&mut self, now: Tick, event: StoreEvent) {
        self.pace.mark_fresh();
        self.remember_soon(now);
        if !matches!(event, StoreEvent::Stale(_)) {
            self.store_problem = None;
        }
        if self.store_problem.is_none() {
            self.stale_since = now;
        }
        match event {
            StoreEvent::Config(written) => self.config(now, written),
            StoreEvent::Snapshot { leases, unreadable, foreign } => {
                self.memories.in_use = false;
                self.leases.waiting = Some((leases, unreadable, foreign));
                self.snapshot(now);
            }
            StoreEvent::Upsert(lease) => self.upsert(lease),
            StoreEvent::Removed(gone) => self.removed(now, &gone),
            StoreEvent::Unreadable { key, reason } => match (&mut self.peers, &mut self.leases.waiting) {
                (Some(peers), _) => peers.unreadable(key, reason),
                (None, Some((_, unreadable, _))) => unreadable.push((key, reason)),
                (None, None) => {}
            },
            StoreEvent::Gone { key } => match (&mut self.peers, &mut self.leases.waiting) {
                (Some(peers), _) => peers.forget(&key),
                (None, Some((_, unreadable, _))) => unreadable.retain(|(name, _)| *name != key),
                (None, None) => {}
            },
            StoreEvent::Stale(reason) => {
                self.stale(reason);
                self.go_by_memory(now);
            }
        }
    }

    pub(super) fn config(&mut self, now: Tick, written: Vec<u8>) {
        if self.network.as_ref().is_some_and(|n| n.written == written) {
            self.unapplied = None;
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
        let grown = self.network.as_ref().map(|current| current.config.grows_into(&config));
        if grown == Some(false) {
            warn!("{UNAPPLIED}");
            self.unapplied = Some(UNAPPLIED.to_owned());
            return;
        }
        if grown == Some(true) {
            let networks: Vec<_> = config.pools().map(|pool| pool.network.to_string()).collect();
            info!("the network grew to {}", networks.join(" and "));
        }
        if let Some(peers) = &mut self.peers {
            peers.set_network(&config);
        }
        let backends = Backends::of(&config.backend);
        self.unapplied = None;
        self.network = Some(Network { config: Arc::new(config), backends, written });
        self.choose_external(now);
        self.snapshot(now);
    }

    /// Turns a waiting snapshot into peers, once configuration and interface are known. A later one replaces all.
    pub(super) fn snapshot(&mut self, now: Tick) {
        let (Some(network), Some(external)) = (&self.network, &self.external) else { return };
        let Some((leases, unreadable, foreign)) = self.leases.waiting.take() else { return };
        let own =
            |lease: &&Lease| is_own(lease, self.own.as_ref(), external.public, self.settings.node.as_deref());
        // What was remembered is not what the store shows.
        let shown = leases.iter().find(own).filter(|_| !self.memories.in_use).cloned();
        self.claim.note_reservation(self.leases.shown.as_ref(), shown.as_ref());
        self.leases.shown = shown;
        let guarded = self.guarded();
        let own = self.own.or_else(|| self.leases.shown.as_ref().map(|l| l.subnets));
        leases.iter().for_each(|lease| name_former(lease, own, self.settings.node.as_deref()));
        let table = |leases, unreadable| {
            PeerTable::from_snapshot(&network.config, own.as_ref(), external.public, leases, unreadable)
        };
        if self.peers.is_none() {
            let Some(known) = self.memories.take_warm() else {
                let mut peers = table(leases, unreadable);
                peers.set_guarded(guarded);
                info!(peers = peers.len(), "first snapshot of the store");
                self.peers = Some(peers);
                return;
            };
            // The kernel of this host still does what the daemon before us knew.
            let mut peers = table(known, Vec::new());
            peers.set_guarded(guarded);
            self.peers = Some(peers);
        }
        self.believe(now, leases, unreadable, foreign);
    }

    fn upsert(&mut self, lease: Lease) {
        let (Some(peers), Some(external)) = (&mut self.peers, &self.external) else {
            if let Some((leases, ..)) = &mut self.leases.waiting {
                leases.retain(|l| l.subnets != lease.subnets);
                leases.push(lease);
            }
            return;
        };
        if is_own(&lease, self.own.as_ref(), external.public, self.settings.node.as_deref()) {
            self.claim.note_reservation(self.leases.shown.as_ref(), Some(&lease));
            self.leases.shown = Some(lease);
        } else {
            name_former(&lease, self.own, self.settings.node.as_deref());
            peers.upsert(lease);
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
        let mut new = refused.iter().filter(|r| !seen.contains(r));
        for (key, why) in new.by_ref().take(SAID_AT_ONCE) {
            warn!(lease = key, "lease refused: {why}");
        }
        let more = new.count();
        if more > 0 {
            warn!("{more} more leases refused; flannelctl status counts them and lists some");
        }
        self.seen_refusals = refused;
    }
}

/// Refusals that one pass logs one by one. Ours: somebody may fill the store with thousands.
const SAID_AT_ONCE: usize = 20;

/// A host that came back after its lease had ended, while its subnets are ours: its pods may still have their addresses.
fn name_former(lease: &Lease, own: Option<Subnets>, us: Option<&str>) {
    let Some(own) = own.filter(|own| lease.former() == Some(*own)) else { return };
    let [theirs, ours] = [lease.node.as_deref(), us].map(|name| name.unwrap_or("without a name"));
    warn!(
        "the lease of {own} is ours, node {ours}, since that of node {theirs} at {} ended: it holds {} now, and pods of it \
         that still have old addresses are cut off",
        lease.public, lease.subnets
    );
}

/// What a restart is for: another backend, other lengths or families, or a network that does not hold the one before.
const UNAPPLIED: &str =
    "the network's configuration changed; it takes effect with a restart of the daemon, which is gapless";

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
