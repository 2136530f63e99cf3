//! What is the host's and not one network's, where a daemon serves several: names, address ranges, the renderer of traffic
//! rules, readiness.
//!
//! ```text
//!   NodeCore a ── Share ──▶ Arbiter ── Shared(others) ──▶ NodeCore b, before its next input
//! ```
//!
//! The first network that shares something has it. The shell passes on the newest shares before any input, so no two networks
//! can take the same. Forwarding is not shared: all networks wish it on.

use std::collections::BTreeMap;

use backends::IfName;
use backends::rules::Renderer;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::{NetworkConfig, NetworkId, overlap};

use super::membership::Configured;
use super::{Effect, NodeCore, Readiness, Tick};

/// What a network has of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Which.
    pub network: NetworkId,
    /// Its address ranges.
    pub pools: Vec<IpNetwork>,
    /// Its devices.
    pub links: Vec<IfName>,
    /// How its rules are made, once that is chosen. All networks of a host make them alike.
    pub renderer: Option<Renderer>,
}

/// Knows what each network of the host has.
#[derive(Debug, Default)]
pub struct Arbiter {
    shares: BTreeMap<NetworkId, Share>,
    /// Changes with each change of a share.
    version: u64,
    readiness: BTreeMap<NetworkId, Readiness>,
}

impl Arbiter {
    /// A network has this.
    pub fn share(&mut self, share: Share) {
        self.version += 1;
        self.shares.insert(share.network.clone(), share);
    }

    /// What the others have, where that changed since the version `seen`.
    pub fn news(&self, network: &NetworkId, seen: &mut u64) -> Option<Vec<Share>> {
        let news = std::mem::replace(seen, self.version) != self.version;
        let others = self.shares.values().filter(|share| share.network != *network);
        news.then(|| others.cloned().collect())
    }

    /// A network's readiness; returns the host's, which is that of all its networks.
    pub fn judge(&mut self, network: &NetworkId, readiness: Readiness) -> Readiness {
        self.readiness.insert(network.clone(), readiness);
        let ready = self.readiness.values().all(|one| one.ready);
        let several = self.readiness.len() > 1;
        let named = |(network, one): (&NetworkId, &Readiness)| -> Vec<String> {
            let name =
                |reason: &String| if several { format!("{network}: {reason}") } else { reason.clone() };
            one.reasons.iter().map(name).collect()
        };
        Readiness { ready, reasons: self.readiness.iter().flat_map(named).collect() }
    }

    /// A network that has reported nothing yet is not ready.
    pub fn expect(&mut self, network: &NetworkId) {
        self.readiness.entry(network.clone()).or_default();
    }
}

/// Why this configuration can't be beside what others have.
pub(super) fn collision(config: &NetworkConfig, links: &[IfName], others: &[Share]) -> Option<String> {
    others.iter().find_map(|other| {
        let pools = || config.pools().map(|pool| pool.network);
        let range = pools().find(|net| other.pools.iter().any(|theirs| overlap(*theirs, *net)));
        let range = range.map(|net| format!("{net} overlaps the addresses"));
        let link = links.iter().find(|link| other.links.contains(link));
        let link = link.map(|link| format!("{link} is a device (another VNI makes another)"));
        Some(format!(
            "the network's configuration is not usable: {} of network {} of this host",
            range.or(link)?,
            other.network
        ))
    })
}

impl NodeCore {
    /// What the others have changed: a configuration that collided with it may be usable now.
    pub(super) fn shared_by_others(&mut self, now: Tick, others: Vec<Share>) {
        if let Some(written) = self.membership.shared_by_others(others)
            && self.membership.configure(written) == Configured::InForce
        {
            self.choose_external(now);
            self.snapshot(now);
            self.pass.mark_fresh();
        }
    }

    /// Shares what this network has, where that changed.
    pub(super) fn share(&mut self, effects: &mut Vec<Effect>) {
        let Some(network) = self.membership.network() else { return };
        let share = Share {
            network: self.settings.network.clone(),
            pools: network.config.pools().map(|pool| pool.network).collect(),
            links: network.backends.links(),
            renderer: self.rules.renderer(),
        };
        if self.shared.as_ref() != Some(&share) {
            self.shared = Some(share.clone());
            effects.push(Effect::Share(share));
        }
    }
}
