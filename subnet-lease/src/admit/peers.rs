use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::judge::{Judgement, judge};
use super::known::{Known, Peer};
use crate::attrs::PeerData;
use crate::model::lease::{BackendAttrs, FiledBy, Lease, PublicAddrs};
use crate::model::net::Subnets;
use crate::model::netconf::NetworkConfig;

/// An address that must stay outside of the network's tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarded {
    /// The address.
    pub address: IpAddr,
    /// What it is, for a sentence: "this host's gateway".
    pub what: String,
}

/// Everyone else: each lease of the store either admitted or refused with a reason.
///
/// Built from a snapshot and nothing else, so a table that exists is a table that was once complete. The verdict depends
/// on what is in the table and never on the order in which it came: it is made anew, over everything, after a
/// change, so that a removal admits whom the removed one had kept out, and all hosts agree.
#[derive(Debug, Serialize, Deserialize)]
pub struct PeerTable {
    /// Not written down: read from the configuration again, see [`PeerTable::set_network`].
    #[serde(skip, default = "NetworkConfig::none")]
    pub(super) network: NetworkConfig,
    pub(super) own: Option<Subnets>,
    pub(super) own_public: PublicAddrs,
    /// Addresses that no peer's subnet may have in it.
    #[serde(default)]
    pub(super) guarded: Vec<Guarded>,
    /// Leases that are or may become our own, whole: those of our address and of our subnets.
    ours: BTreeMap<Subnets, Lease>,
    pub(super) known: BTreeMap<Subnets, Known>,
    unreadable: BTreeMap<String, String>,
    #[serde(skip)]
    judgements: OnceLock<BTreeMap<Subnets, Judgement>>,
}

impl PeerTable {
    /// `own` are our subnets as soon as we have some, `own_public` the addresses that we publish. `unreadable` pairs a
    /// key of the store with the reason why it could not be read.
    pub fn from_snapshot(
        network: &NetworkConfig,
        own: Option<&Subnets>,
        own_public: PublicAddrs,
        leases: Vec<Lease>,
        unreadable: Vec<(String, String)>,
    ) -> Self {
        let mut table = Self {
            network: network.clone(),
            own: own.copied(),
            own_public,
            guarded: Vec::new(),
            ours: BTreeMap::new(),
            known: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            judgements: OnceLock::new(),
        };
        table.replace(leases, unreadable);
        table
    }

    /// A later snapshot. A peer whose lease cannot be read any more stays as it was: unknown is not gone. So do those that
    /// are [kept](Self::keep).
    pub fn replace(&mut self, leases: Vec<Lease>, unreadable: Vec<(String, String)>) {
        self.judgements.take();
        let unknown = self.subnets_of(unreadable.iter().map(|(key, _)| key));
        let before = std::mem::take(&mut self.known);
        self.ours.clear();
        self.unreadable = unreadable.into_iter().collect();
        let stays = |key: &Subnets, known: &Known| known.vanished || unknown.contains(key);
        self.known.extend(before.into_iter().filter(|(key, known)| stays(key, known)));
        for lease in leases {
            self.upsert(lease);
        }
    }

    /// A lease came or changed. Returns whether that matters to anybody.
    pub fn upsert(&mut self, lease: Lease) -> bool {
        let mut changed = self.readable_again(|| lease.key());
        let known = Known::read(&lease, &self.network.backend);
        changed |= self.known.get(&lease.subnets) != Some(&known);
        self.known.insert(lease.subnets, known);
        if self.own == Some(lease.subnets) || self.own_public.meets(&lease.public) {
            changed |= self.ours.get(&lease.subnets) != Some(&lease);
            self.ours.insert(lease.subnets, lease);
        } else {
            self.ours.remove(&lease.subnets);
        }
        if changed {
            self.judgements.take();
        }
        changed
    }

    /// A lease ended. Returns whether it was there.
    pub fn remove(&mut self, subnets: &Subnets) -> bool {
        let key = |known: Option<&Known>| match known {
            Some(Known { filed_by: FiledBy::Node, node: Some(node), .. }) => node.to_string(),
            _ => subnets.to_string(),
        };
        let known = self.known.remove(subnets);
        let unreadable = self.readable_again(|| key(known.as_ref()));
        self.ours.remove(subnets);
        self.judgements.take();
        known.is_some() || unreadable
    }

    /// The peers that such a snapshot would take away.
    pub fn missing(&self, leases: &[Lease], unreadable: &[(String, String)]) -> Vec<Subnets> {
        let unknown = self.subnets_of(unreadable.iter().map(|(key, _)| key));
        let shown: BTreeSet<Subnets> = leases.iter().map(|lease| lease.subnets).chain(unknown).collect();
        let gone = self.known.iter().filter(|(key, known)| !known.vanished && !shown.contains(key));
        gone.map(|(key, _)| *key).filter(|key| self.own != Some(*key)).collect()
    }

    /// Whether without these, and without those that are kept already, more than half of at least four admitted peers
    /// would be gone.
    pub fn is_most(&self, gone: &[Subnets]) -> bool {
        let gone: BTreeSet<&Subnets> = gone.iter().collect();
        let is_gone = |peer: &Peer| {
            gone.contains(&peer.key()) || self.known.get(&peer.key()).is_some_and(|known| known.vanished)
        };
        let (all, lost) = (self.len(), self.peers().filter(is_gone).count());
        all >= 4 && 2 * lost > all
    }

    /// Peers that the store shows no more are kept, until they come back, somebody else takes their place, or they are
    /// [let go](Self::let_go).
    pub fn keep(&mut self, gone: &[Subnets]) {
        self.judgements.take();
        for subnets in gone {
            if let Some(known) = self.known.get_mut(subnets) {
                known.vanished = true;
            }
        }
    }

    /// Those that are kept although the store does not show them.
    pub fn kept(&self) -> impl Iterator<Item = Subnets> + '_ {
        self.known.iter().filter(|(_, known)| known.vanished).map(|(key, _)| *key)
    }

    /// How many are kept that the store does not show.
    pub fn vanished(&self) -> usize {
        self.known.values().filter(|known| known.vanished).count()
    }

    /// Whoever the store does not show is gone.
    pub fn let_go(&mut self) {
        self.judgements.take();
        self.known.retain(|_, known| !known.vanished);
    }

    /// The leases of the admitted peers, as far as they matter to us; what else their records say is left out.
    pub fn leases(&self) -> impl Iterator<Item = Lease> + '_ {
        let judgements = self.judgements();
        self.known
            .values()
            .filter(|known| self.admitted(known, judgements).is_some())
            .map(|known| known.lease(&self.network))
    }

    /// A lease is there but cannot be read. A peer known by this key stays as it was.
    pub fn unreadable(&mut self, key: String, reason: String) {
        self.unreadable.insert(key, reason);
    }

    /// A key that was no lease ended.
    pub fn forget(&mut self, key: &str) {
        self.unreadable.remove(key);
    }

    /// Our own subnets or addresses became known or changed.
    pub fn set_own(&mut self, own: Option<Subnets>, own_public: PublicAddrs) {
        // Said again at every reading of the host; the verdict over all leases is not made anew for nothing.
        if (self.own, self.own_public) != (own, own_public) {
            (self.own, self.own_public) = (own, own_public);
            self.judgements.take();
        }
    }

    /// Addresses without which this host is cut off: a peer's subnet with one of them in it is refused.
    pub fn set_guarded(&mut self, guarded: Vec<Guarded>) {
        if self.guarded != guarded {
            self.guarded = guarded;
            self.judgements.take();
        }
    }

    /// The network grew. Its backend must be the same as before: what other backends said was not kept.
    pub fn set_network(&mut self, network: &NetworkConfig) {
        self.network = network.clone();
        self.judgements.take();
    }

    /// Our own lease as the store shows it; `None` until it was seen.
    pub fn own_lease(&self) -> Option<&Lease> {
        self.ours.get(&self.own?)
    }

    /// The admitted peers, ordered by their subnets.
    pub fn peers(&self) -> impl Iterator<Item = Peer<'_>> {
        let judgements = self.judgements();
        self.known.values().filter_map(|known| self.admitted(known, judgements))
    }

    /// One admitted peer.
    pub fn peer(&self, subnets: &Subnets) -> Option<Peer<'_>> {
        self.admitted(self.known.get(subnets)?, self.judgements())
    }

    /// What was refused, wholly or in one family, and what could not be read: key and reason.
    pub fn refused(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let refused = self.judgements().iter().filter(|(_, judgement)| !judgement.reasons.is_empty());
        let judged = refused.map(|(key, judgement)| (key.to_string(), judgement.reasons.join("; ")));
        let unreadable = self.unreadable.iter().map(|(key, reason)| (key.clone(), reason.clone()));
        judged.chain(unreadable)
    }

    /// Others that publish an address of ours: their subnets, and their names where they have one.
    pub fn twins(&self) -> impl Iterator<Item = (Subnets, Option<&str>)> + '_ {
        let others = self.known.values().filter(|known| self.own != Some(known.key) && !known.vanished);
        let twins = others.filter(|known| self.own_public.meets(&known.public));
        twins.map(|known| (known.key, known.node.as_deref()))
    }

    /// The holder, with another name than `us`, of a lease from before `epoch` with an id in it that only one host may have
    /// and that is in these attributes: of a machine that was cloned, the earlier one.
    pub fn earlier_twin(
        &self,
        attrs: &BackendAttrs,
        us: Option<&str>,
        epoch: u64,
    ) -> Option<(Subnets, &str, PublicAddrs)> {
        let backend = &self.network.backend;
        let ours = attrs.of(|kind| backend.is_named(kind))?;
        let ours = ours.map(|json| backend.data(json).ok().flatten());
        let ours = ours.each_ref().map(|data| data.as_ref().and_then(PeerData::id));
        if ours == [None; 2] {
            return None;
        }
        let same = |known: &&Known| {
            let theirs = known.data.each_ref().map(|data| data.as_ref().and_then(PeerData::id));
            theirs.into_iter().zip(ours).any(|(theirs, ours)| ours.is_some() && theirs == ours)
        };
        let others = self.known.values().filter(|known| !known.vanished && known.epoch < epoch);
        others.filter(same).find_map(|known| {
            let name = known.node.as_deref().filter(|name| us.is_some_and(|us| us != *name))?;
            Some((known.key, name, known.public))
        })
    }

    /// Where the store shows the holder of these subnets.
    pub fn public_of(&self, subnets: &Subnets) -> Option<PublicAddrs> {
        self.known.get(subnets).filter(|known| !known.vanished).map(|known| known.public)
    }

    /// How many peers are admitted.
    pub fn len(&self) -> usize {
        self.peers().count()
    }

    /// Whether no peer is admitted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets that a key could not be read. Nearly always there is none, and no key needs to be spelled for that.
    fn readable_again(&mut self, key: impl FnOnce() -> String) -> bool {
        !self.unreadable.is_empty() && self.unreadable.remove(&key()).is_some()
    }

    fn judgements(&self) -> &BTreeMap<Subnets, Judgement> {
        self.judgements.get_or_init(|| judge(self))
    }

    fn admitted<'a>(
        &'a self,
        known: &'a Known,
        judgements: &BTreeMap<Subnets, Judgement>,
    ) -> Option<Peer<'a>> {
        let usable = judgements.get(&known.key).map_or_else(|| known.whole(), |judgement| judgement.usable);
        Peer::new(known, usable)
    }

    /// The subnets that the lease of a key has, or had when it could last be read.
    fn subnets_of<'a>(&self, keys: impl Iterator<Item = &'a String>) -> BTreeSet<Subnets> {
        let by_node = self.known.values().filter(|known| known.filed_by == FiledBy::Node);
        let by_node: HashMap<&str, Subnets> =
            by_node.filter_map(|known| Some((known.node.as_deref()?, known.key))).collect();
        keys.filter_map(|key| by_node.get(key.as_str()).copied().or_else(|| key.parse().ok())).collect()
    }
}

#[cfg(test)]
mod tests;
