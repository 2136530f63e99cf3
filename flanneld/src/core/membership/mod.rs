//! The cluster as the store shows it: its configuration, our own lease, and the peers.
//!
//! Nothing is written before the configuration and a first snapshot are known. A snapshot that comes before the
//! configuration or the underlay waits.

mod vanish;

use std::collections::HashSet;
use std::sync::Arc;

use backends::Backends;
use backends::rules::Renderer;
use serde::{Deserialize, Serialize};
use subnet_lease::{Family, Guarded, Lease, NetworkConfig, NetworkId, PeerTable, PublicAddrs, Subnets};
use tracing::{info, warn};

use super::saved::{Held, Saved};
use super::share::collision;
use super::{Share, Tick};
pub(super) use vanish::Vanished;

/// The cluster's configuration in force.
pub(super) struct Network {
    pub(super) config: Arc<NetworkConfig>,
    pub(super) backends: Backends,
    /// The net-conf as the store has it.
    pub(super) written: Vec<u8>,
}

impl Network {
    /// The address families of the network.
    pub(super) fn families(&self) -> Vec<Family> {
        self.config.pools().map(|pool| pool.family()).collect()
    }
}

/// This node, as leases are compared with it.
#[derive(Clone, Copy)]
pub(super) struct Us<'a> {
    /// The subnets that we hold.
    pub(super) own: Option<Subnets>,
    /// The addresses that we publish.
    pub(super) public: PublicAddrs,
    /// Our name.
    pub(super) node: Option<&'a str>,
}

/// A snapshot: leases, keys that could not be read with the reason, and whether it is of another history.
pub(super) type Shown = (Vec<Lease>, Vec<(String, String)>, bool);

/// What the store shows.
#[derive(Default)]
pub(super) struct Membership {
    network: Option<Network>,
    /// What is wrong with the newest configuration. It stays until the configuration changes.
    fault: Option<String>,
    /// Why the newest configuration is not in force although nothing is wrong with it.
    unapplied: Option<String>,
    /// The newest configuration, where it collides with another network of this host.
    collides: Option<Vec<u8>>,
    /// What the other networks of this host have.
    others: Vec<Share>,
    leases: Leases,
    peers: Option<PeerTable>,
    vanished: Vanished,
    /// Why what the store shows is not up to date.
    problem: Option<String>,
    stale_since: Tick,
    /// Refused leases that were logged.
    seen_refusals: Vec<(String, String)>,
}

/// The last snapshot until it is turned into peers, and our own lease.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Leases {
    waiting: Option<Shown>,
    shown: Option<Lease>,
}

/// The outcome of a new configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Configured {
    /// It is in force already, or it can't be.
    Unchanged,
    /// It is in force from now on.
    InForce,
}

/// This many refusals are logged one by one in a pass. Ours: somebody may fill the store with thousands.
const SAID_AT_ONCE: usize = 20;

/// Changes that need a restart: another backend, other lengths or families, or a network that does not contain the one before.
const UNAPPLIED: &str =
    "the network's configuration changed; it takes effect with a restart of the daemon, which is gapless";

impl Membership {
    /// The store sent an event; `stale` is why it can't be followed, if it can't.
    pub(super) fn answered(&mut self, now: Tick, stale: Option<String>) {
        if self.problem.is_none() || stale.is_none() {
            self.stale_since = now;
        }
        if let Some(reason) = stale.as_ref().filter(|reason| self.problem.as_ref() != Some(reason)) {
            warn!("{reason}");
        }
        self.problem = stale;
    }

    /// What the store shows is not up to date for this reason, unless there is one already.
    pub(super) fn doubt(&mut self, reason: &str) {
        self.problem.get_or_insert_with(|| reason.to_owned());
    }

    /// The configuration came or changed.
    pub(super) fn configure(&mut self, written: Vec<u8>) -> Configured {
        if self.network.as_ref().is_some_and(|n| n.written == written) {
            (self.unapplied, self.fault) = (None, None);
            return Configured::Unchanged;
        }
        self.unapplied = None;
        self.collides = None;
        let (config, warnings) = match NetworkConfig::parse(&written) {
            Ok(parsed) => parsed,
            Err(errors) => {
                let all: Vec<_> = errors.iter().map(ToString::to_string).collect();
                self.fault_is(format!("the network's configuration is not usable: {}", all.join("; ")));
                return Configured::Unchanged;
            }
        };
        let backends = Backends::of(&config.backend);
        if let Some(collision) = collision(&config, &backends.links(), &self.others) {
            self.collides = Some(written);
            self.fault_is(collision);
            return Configured::Unchanged;
        }
        self.fault = None;
        for warning in warnings {
            warn!("network configuration: {warning}");
        }
        let grown = self.network.as_ref().map(|current| current.config.grows_into(&config));
        if grown == Some(false) {
            warn!("{UNAPPLIED}");
            self.unapplied = Some(UNAPPLIED.to_owned());
            return Configured::Unchanged;
        }
        if grown == Some(true) {
            let networks: Vec<_> = config.pools().map(|pool| pool.network.to_string()).collect();
            info!("the network grew to {}", networks.join(" and "));
        }
        if let Some(peers) = &mut self.peers {
            peers.set_network(&config);
        }
        self.network = Some(Network { config: Arc::new(config), backends, written });
        Configured::InForce
    }

    /// The other networks of this host have this. Returns a configuration that is to be tried again.
    pub(super) fn shared_by_others(&mut self, others: Vec<Share>) -> Option<Vec<u8>> {
        self.others = others;
        self.collides.take()
    }

    /// How the other networks of this host make their rules.
    pub(super) fn renderer_of_others(&self) -> Option<(Renderer, &NetworkId)> {
        self.others.iter().find_map(|other| Some((other.renderer?, &other.network)))
    }

    fn fault_is(&mut self, sentence: String) {
        if self.fault.as_ref() != Some(&sentence) {
            warn!("{sentence}");
        }
        self.fault = Some(sentence);
    }

    /// A snapshot came.
    pub(super) fn wait(&mut self, shown: Shown) {
        self.leases.waiting = Some(shown);
    }

    /// Whether a snapshot waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.leases.waiting.is_some()
    }

    /// Turns a waiting snapshot into peers. Where `remembered` is set it comes from the state file, and the store shows
    /// nothing yet. `known` are the leases by which the daemon before us made what this host's kernel still does.
    pub(super) fn take_snapshot(
        &mut self,
        now: Tick,
        us: Us<'_>,
        remembered: bool,
        guarded: Vec<Guarded>,
        known: impl FnOnce() -> Option<Vec<Lease>>,
    ) {
        let Some(network) = &self.network else { return };
        let Some((leases, unreadable, foreign)) = self.leases.waiting.take() else { return };
        self.leases.shown = leases.iter().find(|lease| us.holds(lease)).filter(|_| !remembered).cloned();
        let own = us.own.or_else(|| self.leases.shown.as_ref().map(|l| l.subnets));
        leases.iter().for_each(|lease| Us { own, ..us }.name_former(lease));
        if self.peers.is_none() {
            let table = |leases, unreadable| {
                let own = own.as_ref();
                let mut peers = PeerTable::from_snapshot(&network.config, own, us.public, leases, unreadable);
                peers.set_guarded(guarded.clone());
                peers
            };
            let Some(known) = known() else {
                let peers = table(leases, unreadable);
                info!(peers = peers.len(), "first snapshot of the store");
                self.peers = Some(peers);
                return;
            };
            self.peers = Some(table(known, Vec::new()));
        }
        self.believe(now, us.own, leases, unreadable, foreign);
    }

    /// A lease came or changed; `us` is none before the underlay is known.
    pub(super) fn upsert(&mut self, lease: Lease, us: Option<Us<'_>>) {
        let (Some(peers), Some(us)) = (&mut self.peers, us) else {
            if let Some((leases, ..)) = &mut self.leases.waiting {
                leases.retain(|l| l.subnets != lease.subnets);
                leases.push(lease);
            }
            return;
        };
        if us.holds(&lease) {
            self.leases.shown = Some(lease);
        } else {
            us.name_former(&lease);
            peers.upsert(lease);
        }
    }

    /// A lease can't be read.
    pub(super) fn unreadable(&mut self, key: String, reason: String) {
        match (&mut self.peers, &mut self.leases.waiting) {
            (Some(peers), _) => peers.unreadable(key, reason),
            (None, Some((_, unreadable, _))) => unreadable.push((key, reason)),
            (None, None) => {}
        }
    }

    /// A key that was no lease ended.
    pub(super) fn gone(&mut self, key: &str) {
        match (&mut self.peers, &mut self.leases.waiting) {
            (Some(peers), _) => peers.forget(key),
            (None, Some((_, unreadable, _))) => unreadable.retain(|(name, _)| name != key),
            (None, None) => {}
        }
    }

    /// Our claim was granted.
    pub(super) fn granted(&mut self, lease: Lease) {
        if let Some(peers) = &mut self.peers {
            peers.set_own(Some(lease.subnets), lease.public);
            peers.upsert(lease.clone());
        }
        self.leases.shown = Some(lease);
    }

    /// The underlay was chosen. No peer's subnet may have an address in it that is `guarded`.
    pub(super) fn publish_at(&mut self, own: Option<Subnets>, public: PublicAddrs, guarded: Vec<Guarded>) {
        if let Some(peers) = &mut self.peers {
            peers.set_own(own, public);
            peers.set_guarded(guarded);
        }
    }

    /// Logs every refused lease once, and again when its reason changes. Once a pass, since the verdict looks at all leases:
    /// at every event, a thousand nodes that join at once would cost each of them a million looks.
    pub(super) fn report_refused(&mut self) {
        let Some(peers) = &self.peers else { return };
        let refused: Vec<_> = peers.refused().collect();
        if refused == self.seen_refusals {
            return;
        }
        // A set: a store full of wrong leases must not cost time with the square of their number.
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

    /// The configuration in force.
    pub(super) fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// What is wrong with the newest configuration.
    pub(super) fn fault(&self) -> Option<&String> {
        self.fault.as_ref()
    }

    /// Why the newest configuration is not in force although nothing is wrong with it.
    pub(super) fn unapplied(&self) -> Option<&String> {
        self.unapplied.as_ref()
    }

    /// Peers, admitted and refused; none before the first snapshot.
    pub(super) fn peers(&self) -> Option<&PeerTable> {
        self.peers.as_ref()
    }

    /// Our lease as the store shows it.
    pub(super) fn shown(&self) -> Option<&Lease> {
        self.leases.shown.as_ref()
    }

    /// Why what the store shows is not up to date, and since when.
    pub(super) fn stale(&self) -> Option<(&String, Tick)> {
        self.problem.as_ref().map(|reason| (reason, self.stale_since))
    }

    pub(super) fn save<'a>(&'a self, to: &mut Saved<'a>) {
        (to.network, to.peers) = (Held::of(&self.network), Held::of(&self.peers));
        (to.leases, to.vanished) = (Held::Borrowed(&self.leases), Held::Borrowed(&self.vanished));
        (to.unapplied, to.fault) = (self.unapplied.clone(), self.fault.clone());
        (to.collides, to.others) = (self.collides.clone(), Held::Borrowed(&self.others));
        (to.store_problem, to.stale_since) = (self.problem.clone(), self.stale_since);
        to.seen_refusals = Held::Borrowed(&self.seen_refusals);
    }

    /// Peers are recorded without their network, since the network may contain secrets; they get it back here.
    pub(super) fn restore(from: &mut Saved<'_>) -> Self {
        let (network, mut peers) = (from.network.take(), from.peers.take());
        if let (Some(network), Some(peers)) = (&network, &mut peers) {
            peers.set_network(&network.config);
        }
        Self {
            network,
            fault: from.fault.take(),
            unapplied: from.unapplied.take(),
            collides: from.collides.take(),
            others: from.others.take().unwrap_or_default(),
            leases: from.leases.take().unwrap_or_default(),
            peers,
            vanished: from.vanished.take().unwrap_or_default(),
            problem: from.store_problem.take(),
            stale_since: from.stale_since,
            seen_refusals: from.seen_refusals.take().unwrap_or_default(),
        }
    }
}

impl Us<'_> {
    /// Before we hold a lease ours is the one with our public address, as in flannel, unless it names another holder
    /// (hosts behind one NAT share an address); afterwards, the one with our subnets.
    fn holds(&self, lease: &Lease) -> bool {
        let (ours, theirs) = (self.public, lease.public);
        match self.own {
            Some(own) => lease.subnets == own,
            None if lease.node.as_deref().is_some_and(|node| self.node.is_some_and(|us| us != node)) => false,
            None => match (theirs.v4, ours.v4) {
                (Some(theirs), Some(ours)) => theirs == ours,
                (None, None) => theirs.v6.is_some() && theirs.v6 == ours.v6,
                _ => false,
            },
        }
    }

    /// Logs a host that came back after its lease had ended, while its subnets are ours: its pods may still have their
    /// addresses.
    fn name_former(&self, lease: &Lease) {
        let Some(own) = self.own.filter(|own| lease.former() == Some(*own)) else { return };
        let [theirs, ours] = [lease.node.as_deref(), self.node].map(|name| name.unwrap_or("without a name"));
        warn!(
            "the lease of {own} is ours, node {ours}, since that of node {theirs} at {} ended: it holds {} now, and pods of \
             it that still have old addresses are cut off",
            lease.public, lease.subnets
        );
    }
}
