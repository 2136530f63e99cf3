use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::attrs::vxlan::VxlanData;
use crate::model::lease::{BackendAttrs, Lease, PublicAddrs};
use crate::model::net::{Family, Subnets, contains_net, overlap, span};
use crate::model::netconf::{NetworkConfig, quoted};
use crate::model::pool::NetworkPool;
use crate::{BackendConfig, IpNetwork};

/// Another host whose lease was admitted, reduced to the families in which it can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    key: Subnets,
    public: PublicAddrs,
    vxlan: [Option<VxlanData>; 2],
    epoch: u64,
    usable: [bool; 2],
}

impl Peer {
    /// Its lease's identity, families that we do not use included.
    pub fn key(&self) -> Subnets {
        self.key
    }

    /// Its subnet in one family, where we can reach it in that family.
    pub fn subnet(&self, family: Family) -> Option<IpNetwork> {
        self.key.family(family).filter(|_| self.usable[family.index()])
    }

    /// Its subnets that we can reach, IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let peer = *self;
        Family::ALL.into_iter().filter_map(move |family| peer.subnet(family))
    }

    /// Where packets for its subnet of this family go.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        self.public.family(family).filter(|_| self.usable[family.index()])
    }

    /// Its tunnel device for this family.
    pub fn vxlan(&self, family: Family) -> Option<VxlanData> {
        self.vxlan[family.index()].filter(|_| self.usable[family.index()])
    }
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
    network: NetworkConfig,
    own: Option<Subnets>,
    own_public: PublicAddrs,
    /// Leases that are or may become our own, whole: those of our address and of our subnets.
    ours: BTreeMap<Subnets, Lease>,
    known: BTreeMap<Subnets, Known>,
    unreadable: BTreeMap<String, String>,
    #[serde(skip)]
    verdicts: OnceLock<BTreeMap<Subnets, Verdict>>,
}

/// A lease as far as it matters, with what was wrong with its data already (before any rule was applied).
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    peer: Peer,
    /// The holder's name.
    node: Option<Box<str>>,
    /// What is wrong with it, by family; rare.
    flaws: Option<Box<[Option<Box<str>>; 2]>>,
    /// The store shows it no more, and it is kept for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    vanished: bool,
}

/// Only for leases that are not taken whole.
#[derive(Debug, Default)]
struct Verdict {
    ours: bool,
    usable: [bool; 2],
    reasons: Vec<String>,
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
            ours: BTreeMap::new(),
            known: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            verdicts: OnceLock::new(),
        };
        table.replace(leases, unreadable);
        table
    }

    /// A later snapshot. A peer whose lease cannot be read any more stays as it was: unknown is not gone. So do those that
    /// are [kept](Self::keep).
    pub fn replace(&mut self, leases: Vec<Lease>, unreadable: Vec<(String, String)>) {
        self.verdicts.take();
        let before = std::mem::take(&mut self.known);
        self.ours.clear();
        self.unreadable = unreadable.into_iter().collect();
        let unknown: BTreeSet<Subnets> = self.unreadable.keys().filter_map(|key| key.parse().ok()).collect();
        let stays = |key: &Subnets, known: &Known| known.vanished || unknown.contains(key);
        self.known.extend(before.into_iter().filter(|(key, known)| stays(key, known)));
        for lease in leases {
            self.upsert(lease);
        }
    }

    /// A lease came or changed. Returns whether that matters to anybody.
    pub fn upsert(&mut self, lease: Lease) -> bool {
        let mut changed = self.readable_again(&lease.subnets);
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
            self.verdicts.take();
        }
        changed
    }

    /// A lease ended. Returns whether it was there.
    pub fn remove(&mut self, subnets: &Subnets) -> bool {
        let unreadable = self.readable_again(subnets);
        self.ours.remove(subnets);
        self.verdicts.take();
        self.known.remove(subnets).is_some() || unreadable
    }

    /// The peers that such a snapshot would take away.
    pub fn missing(&self, leases: &[Lease], unreadable: &[(String, String)]) -> Vec<Subnets> {
        let unknown = unreadable.iter().filter_map(|(key, _)| key.parse().ok());
        let shown: BTreeSet<Subnets> = leases.iter().map(|lease| lease.subnets).chain(unknown).collect();
        let gone = self.known.iter().filter(|(key, known)| !known.vanished && !shown.contains(key));
        gone.map(|(key, _)| *key).filter(|key| self.own != Some(*key)).collect()
    }

    /// Whether without these, and without those that are kept already, more than half of at least four admitted peers
    /// would be gone.
    pub fn is_most(&self, gone: &[Subnets]) -> bool {
        let gone: BTreeSet<&Subnets> = gone.iter().collect();
        let is_gone = |peer: &Peer| {
            gone.contains(&peer.key) || self.known.get(&peer.key).is_some_and(|known| known.vanished)
        };
        let (all, lost) = (self.len(), self.peers().filter(is_gone).count());
        all >= 4 && 2 * lost > all
    }

    /// Peers that the store shows no more are kept, until they come back, somebody else takes their place, or they are
    /// [let go](Self::let_go).
    pub fn keep(&mut self, gone: &[Subnets]) {
        self.verdicts.take();
        for subnets in gone {
            if let Some(known) = self.known.get_mut(subnets) {
                known.vanished = true;
            }
        }
    }

    /// How many are kept that the store does not show.
    pub fn vanished(&self) -> usize {
        self.known.values().filter(|known| known.vanished).count()
    }

    /// Whoever the store does not show is gone.
    pub fn let_go(&mut self) {
        self.verdicts.take();
        self.known.retain(|_, known| !known.vanished);
    }

    /// The leases of the admitted peers, as far as they matter to us; what else their records say is left out.
    pub fn leases(&self) -> impl Iterator<Item = Lease> + '_ {
        let verdicts = self.verdicts();
        self.known
            .values()
            .filter(|known| known.admitted(verdicts).is_some())
            .map(|known| known.lease(&self.network))
    }

    /// A lease is there but cannot be read. A peer known by this key stays as it was.
    pub fn unreadable(&mut self, key: String, reason: String) {
        self.unreadable.insert(key, reason);
    }

    /// Our own subnets or addresses became known or changed.
    pub fn set_own(&mut self, own: Option<Subnets>, own_public: PublicAddrs) {
        // Said again at every reading of the host; the verdict over all leases is not made anew for nothing.
        if (self.own, self.own_public) != (own, own_public) {
            (self.own, self.own_public) = (own, own_public);
            self.verdicts.take();
        }
    }

    /// The network grew. Its backend must be the same as before: what other backends said was not kept.
    pub fn set_network(&mut self, network: &NetworkConfig) {
        self.network = network.clone();
        self.verdicts.take();
    }

    /// Our own lease as the store shows it; `None` until it was seen.
    pub fn own_lease(&self) -> Option<&Lease> {
        self.ours.get(&self.own?)
    }

    /// The admitted peers, ordered by their subnets.
    pub fn peers(&self) -> impl Iterator<Item = Peer> + '_ {
        let verdicts = self.verdicts();
        self.known.values().filter_map(|known| known.admitted(verdicts))
    }

    /// One admitted peer.
    pub fn peer(&self, subnets: &Subnets) -> Option<Peer> {
        self.known.get(subnets)?.admitted(self.verdicts())
    }

    /// What was refused, wholly or in one family, and what could not be read: key and reason.
    pub fn refused(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let verdicts = self.verdicts().iter().filter(|(_, verdict)| !verdict.reasons.is_empty());
        let judged = verdicts.map(|(key, verdict)| (key.to_string(), verdict.reasons.join("; ")));
        let unreadable = self.unreadable.iter().map(|(key, reason)| (key.clone(), reason.clone()));
        judged.chain(unreadable)
    }

    /// Others that publish an address of ours: their subnets, and their names where they have one.
    pub fn twins(&self) -> impl Iterator<Item = (Subnets, Option<&str>)> + '_ {
        let others = self.known.values().filter(|known| self.own != Some(known.peer.key) && !known.vanished);
        let twins = others.filter(|known| self.own_public.meets(&known.peer.public));
        twins.map(|known| (known.peer.key, known.node.as_deref()))
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
    fn readable_again(&mut self, subnets: &Subnets) -> bool {
        !self.unreadable.is_empty() && self.unreadable.remove(&subnets.to_string()).is_some()
    }

    fn verdicts(&self) -> &BTreeMap<Subnets, Verdict> {
        self.verdicts.get_or_init(|| self.judge())
    }

    fn judge(&self) -> BTreeMap<Subnets, Verdict> {
        let mut verdicts: BTreeMap<Subnets, Verdict> = BTreeMap::new();
        let mut in_order: Vec<&Known> = self.known.values().collect();
        if let Some(own) = self.own {
            // Ours is no peer's, and nothing is wrong with it.
            in_order.retain(|known| known.peer.key != own);
            verdicts.insert(own, Verdict { ours: true, ..Verdict::default() });
        }
        // One that vanished gives way to whoever the store shows.
        in_order.sort_by_key(|known| (known.vanished, known.peer.epoch, known.peer.key));
        for family in Family::ALL {
            let mut taken = Taken::by_us(family, self);
            for known in &in_order {
                let Some(subnet) = known.peer.key.family(family) else { continue };
                let admitted = self.alone(family, subnet, known).and_then(|()| taken.admit(subnet, known));
                if let Err(refusal) = admitted {
                    let verdict =
                        verdicts.entry(known.peer.key).or_insert_with(|| Verdict::whole(&known.peer.key));
                    verdict.usable[family.index()] = false;
                    // A refusal names who is in the store.
                    let said = |reason: &String| known.vanished || verdict.reasons.contains(reason);
                    let reason = refusal.0.filter(|reason| !said(reason));
                    verdict.reasons.extend(reason);
                }
            }
        }
        for (key, verdict) in &mut verdicts {
            let silent = verdict.ours || self.known.get(key).is_some_and(|known| known.vanished);
            if !silent && !verdict.usable.contains(&true) && verdict.reasons.is_empty() {
                verdict.reasons.push("it has no family in common with this network and this host".into());
            }
        }
        verdicts
    }

    /// Our name, as our lease tells it to the others.
    fn own_node(&self) -> Option<&str> {
        self.own_lease()?.node.as_deref()
    }

    /// The rules that need no other peer.
    fn alone(&self, family: Family, subnet: IpNetwork, known: &Known) -> Result<(), Refusal> {
        let pool = self.network.network(family).ok_or(Refusal::ABSENT)?;
        let public = known.peer.public.family(family).ok_or(Refusal::ABSENT)?;
        if let Some(flaw) = known.flaws.as_ref().and_then(|flaws| flaws[family.index()].as_ref()) {
            return Err(Refusal::because(flaw.to_string()));
        }
        place(&pool, subnet)?;
        reachable(public, subnet)?;
        if self.own_public.family(family) == Some(public) {
            let (theirs, ours) = (of(known.node.as_deref()), of(self.own_node()));
            return Err(Refusal::because(format!(
                "its public address {public}{theirs} is this host's own{ours}"
            )));
        }
        let BackendConfig::Vxlan { vni, .. } = self.network.backend else { return Ok(()) };
        match known.peer.vxlan[family.index()] {
            None => Err(Refusal::ABSENT),
            Some(data) if data.vni == vni => Ok(()),
            Some(data) => Err(Refusal::because(format!("its VNI is {}, this network's {vni}", data.vni))),
        }
    }
}

/// Why a lease is not used in one family; nothing to say where it merely lacks it.
struct Refusal(Option<String>);

impl Refusal {
    const ABSENT: Self = Self(None);

    fn because(reason: String) -> Self {
        Self(Some(reason))
    }
}

impl Verdict {
    fn whole(key: &Subnets) -> Self {
        Self { usable: Family::ALL.map(|family| key.family(family).is_some()), ..Self::default() }
    }
}

impl Known {
    fn admitted(&self, verdicts: &BTreeMap<Subnets, Verdict>) -> Option<Peer> {
        let whole = || Family::ALL.map(|family| self.peer.key.family(family).is_some());
        let usable = verdicts.get(&self.peer.key).map_or_else(whole, |verdict| verdict.usable);
        usable.contains(&true).then_some(Peer { usable, ..self.peer })
    }

    fn read(lease: &Lease, backend: &BackendConfig) -> Self {
        let mut flaw = [None, None];
        let mut vxlan = [None, None];
        // What udp, alloc and tencent-vpc leave out, some write.
        let kind = if lease.attrs.kind == "alloc" { "" } else { &lease.attrs.kind };
        for family in Family::ALL {
            let index = family.index();
            if kind != backend.kind() {
                flaw[index] = Some(other_backend(kind, backend.kind()));
            } else if let (BackendConfig::Vxlan { .. }, Some(json)) = (backend, lease.attrs.family(family)) {
                match VxlanData::from_json(json) {
                    Ok(data) => vxlan[index] = Some(data),
                    Err(reason) => flaw[index] = Some(reason.into()),
                }
            }
        }
        let peer =
            Peer { key: lease.subnets, public: lease.public, vxlan, epoch: lease.epoch, usable: [true; 2] };
        let flaws = flaw.iter().any(Option::is_some).then(|| Box::new(flaw));
        Self { peer, node: lease.node.as_deref().map(Into::into), flaws, vanished: false }
    }

    /// The lease again, in the backend of its network.
    fn lease(&self, network: &NetworkConfig) -> Lease {
        let attrs = match self.peer.vxlan {
            [None, None] => BackendAttrs::plain(network.backend.kind()),
            [v4, v6] => BackendAttrs::vxlan(v4, v6),
        };
        let lease = Lease::new(self.peer.key, self.peer.public, attrs);
        Lease { node: self.node.as_deref().map(Into::into), epoch: self.peer.epoch, ..lease }
    }
}

/// Whose something is, where a name is known.
fn of(node: Option<&str>) -> String {
    node.map_or_else(String::new, |node| format!(" (node {})", quoted(node)))
}

fn other_backend(theirs: &str, ours: &str) -> Box<str> {
    let name = |kind: &str| if kind.is_empty() { "none (alloc or udp)".to_string() } else { quoted(kind) };
    format!("its backend is {}, this network's {}", name(theirs), name(ours)).into()
}

fn place(pool: &NetworkPool, subnet: IpNetwork) -> Result<(), Refusal> {
    let network = pool.network;
    if !contains_net(network, subnet) {
        return Err(Refusal::because(format!("{subnet} is outside the network {network}")));
    }
    if !pool.could_lease(subnet) {
        let lengths = pool.lengths();
        return Err(Refusal::because(format!("{subnet} is not one of the network's subnets: /{lengths:?}")));
    }
    Ok(())
}

fn reachable(public: IpAddr, subnet: IpNetwork) -> Result<(), Refusal> {
    let nowhere = match public {
        IpAddr::V4(addr) => addr.is_broadcast() || addr.octets()[0] == 0,
        IpAddr::V6(addr) => addr.to_ipv4_mapped().is_some(),
    };
    if nowhere || public.is_unspecified() || public.is_loopback() || public.is_multicast() {
        return Err(Refusal::because(format!("its public address {public} is not that of a host")));
    }
    if subnet.contains(public) {
        return Err(Refusal::because(format!(
            "its public address {public} is inside its own subnet {subnet}"
        )));
    }
    Ok(())
}

/// What the leases admitted so far hold in one family: disjoint subnets, and hardware addresses.
struct Taken {
    family: Family,
    own: Option<IpNetwork>,
    own_mac: Option<[u8; 6]>,
    own_node: Option<String>,
    /// Subnets by their first address. They are disjoint, so only the neighbour before and after can overlap a new one.
    subnets: BTreeMap<u128, IpNetwork>,
    macs: HashMap<[u8; 6], (IpAddr, Subnets)>,
}

impl Taken {
    fn by_us(family: Family, table: &PeerTable) -> Self {
        let own_data = table.own_lease().and_then(|lease| lease.attrs.family(family));
        Self {
            family,
            own: table.own.and_then(|own| own.family(family)),
            own_mac: own_data.and_then(|json| VxlanData::from_json(json).ok()).map(|data| data.mac),
            own_node: table.own_node().map(str::to_owned),
            subnets: BTreeMap::new(),
            macs: HashMap::new(),
        }
    }

    fn admit(&mut self, subnet: IpNetwork, known: &Known) -> Result<(), Refusal> {
        let peer = &known.peer;
        if let Some(own) = self.own.filter(|own| overlap(*own, subnet)) {
            let (theirs, ours) = (of(known.node.as_deref()), of(self.own_node.as_deref()));
            return Err(Refusal::because(format!(
                "{subnet}{theirs} overlaps this host's own subnet {own}{ours}"
            )));
        }
        let (first, last) = span(subnet);
        let before = self.subnets.range(..=first).next_back().filter(|(_, net)| overlap(**net, subnet));
        if let Some((_, other)) = before.or_else(|| self.subnets.range(first..=last).next()) {
            return Err(Refusal::because(format!(
                "{subnet} overlaps {other}, which another host leased earlier"
            )));
        }
        if let (Some(data), Some(public)) = (peer.vxlan[self.family.index()], peer.public.family(self.family))
        {
            self.admit_mac(data.mac, public, peer.key)?;
        }
        self.subnets.insert(first, subnet);
        Ok(())
    }

    /// The forwarding table knows one place per hardware address. Two leases of one place may share it.
    fn admit_mac(&mut self, mac: [u8; 6], public: IpAddr, key: Subnets) -> Result<(), Refusal> {
        if self.own_mac == Some(mac) {
            return Err(Refusal::because("its hardware address is this host's own".into()));
        }
        let (owner, other) = self.macs.entry(mac).or_insert((public, key));
        if *owner == public {
            return Ok(());
        }
        Err(Refusal::because(format!(
            "its hardware address is that of {other} at {owner}, which was earlier"
        )))
    }
}

#[cfg(test)]
mod tests;
