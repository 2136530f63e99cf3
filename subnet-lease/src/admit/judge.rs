//! The rules of admission. The verdict on a table depends on what is in it, never on the order in which it came.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::known::Known;
use super::peers::PeerTable;
use crate::IpNetwork;
use crate::attrs::PeerData;
use crate::model::net::{Family, Subnets, contains_net, overlap, span};
use crate::model::netconf::quoted;
use crate::model::pool::NetworkPool;

/// On one lease; only for leases that are not taken whole.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    pub(super) usable: [bool; 2],
    pub(super) reasons: Vec<String>,
    ours: bool,
}

/// Why a lease is not used in one family; nothing to say where it merely lacks it.
struct Refusal(Option<String>);

impl Refusal {
    const ABSENT: Self = Self(None);

    fn because(reason: String) -> Self {
        Self(Some(reason))
    }
}

/// Judges all leases of a table.
pub(super) fn judge(table: &PeerTable) -> BTreeMap<Subnets, Judgement> {
    let mut judgements: BTreeMap<Subnets, Judgement> = BTreeMap::new();
    let mut in_order: Vec<&Known> = table.known.values().collect();
    if let Some(own) = table.own {
        // Ours is no peer's, and nothing is wrong with it.
        in_order.retain(|known| known.key != own);
        judgements.insert(own, Judgement { ours: true, ..Judgement::default() });
    }
    // One that vanished gives way to whoever the store shows.
    in_order.sort_by_key(|known| (known.vanished, known.epoch, known.key));
    for family in Family::ALL {
        let mut taken = Taken::by_us(family, table);
        for known in &in_order {
            let Some(subnet) = known.key.family(family) else { continue };
            let admitted = alone(table, family, subnet, known).and_then(|()| taken.admit(subnet, known));
            if let Err(refusal) = admitted {
                let judgement = judgements
                    .entry(known.key)
                    .or_insert_with(|| Judgement { usable: known.whole(), ..Judgement::default() });
                judgement.usable[family.index()] = false;
                // A refusal names who is in the store.
                let said = |reason: &String| known.is_silent() || judgement.reasons.contains(reason);
                let reason = refusal.0.filter(|reason| !said(reason));
                judgement.reasons.extend(reason);
            }
        }
    }
    for (key, judgement) in &mut judgements {
        let silent = judgement.ours || table.known.get(key).is_some_and(Known::is_silent);
        if !silent && !judgement.usable.contains(&true) && judgement.reasons.is_empty() {
            judgement.reasons.push("it has no family in common with this network and this host".into());
        }
    }
    judgements
}

/// The rules that need no other peer.
fn alone(table: &PeerTable, family: Family, subnet: IpNetwork, known: &Known) -> Result<(), Refusal> {
    let pool = table.network.network(family).ok_or(Refusal::ABSENT)?;
    let public = known.public.family(family).ok_or(Refusal::ABSENT)?;
    if let Some(flaw) = known.flaws.as_ref().and_then(|flaws| flaws[family.index()].as_ref()) {
        return Err(Refusal::because(flaw.to_string()));
    }
    place(&pool, subnet)?;
    reachable(public, subnet)?;
    if let Some(guarded) = table.guarded.iter().find(|guarded| subnet.contains(guarded.address)) {
        return Err(Refusal::because(format!("{subnet} has {} in it, {}", guarded.address, guarded.what)));
    }
    if table.own_public.family(family) == Some(public) {
        let (theirs, ours) = (of(known.node.as_deref()), of(own_node(table)));
        return Err(Refusal::because(format!(
            "its public address {public}{theirs} is this host's own{ours}"
        )));
    }
    if known.data[family.index()].is_none() { Err(Refusal::ABSENT) } else { Ok(()) }
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

/// Our name, as our lease gives it to the others.
fn own_node(table: &PeerTable) -> Option<&str> {
    table.own_lease()?.node.as_deref()
}

/// Whose something is, where a name is known.
fn of(node: Option<&str>) -> String {
    node.map_or_else(String::new, |node| format!(" (node {})", quoted(node)))
}

/// What the leases admitted so far hold in one family: disjoint subnets, and ids that may exist only once.
struct Taken<'a> {
    family: Family,
    own: Option<IpNetwork>,
    own_data: Option<PeerData>,
    own_node: Option<&'a str>,
    /// What the id is called.
    id_name: &'static str,
    /// Subnets by their first address. They are disjoint, so only the neighbour before and after can overlap a new one.
    subnets: BTreeMap<u128, IpNetwork>,
    ids: HashMap<&'a [u8], (IpAddr, Subnets)>,
}

impl<'a> Taken<'a> {
    fn by_us(family: Family, table: &'a PeerTable) -> Self {
        let backend = &table.network.backend;
        let own = table.own_lease().and_then(|lease| lease.attrs.of(|kind| backend.is_named(kind)));
        Self {
            family,
            own: table.own.and_then(|own| own.family(family)),
            own_data: own.and_then(|data| backend.data(data[family.index()]).ok()?),
            own_node: own_node(table),
            id_name: backend.id_name(),
            subnets: BTreeMap::new(),
            ids: HashMap::new(),
        }
    }

    fn admit(&mut self, subnet: IpNetwork, known: &'a Known) -> Result<(), Refusal> {
        if let Some(own) = self.own.filter(|own| overlap(*own, subnet)) {
            let (theirs, ours) = (of(known.node.as_deref()), of(self.own_node));
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
        let id = known.data[self.family.index()].as_ref().and_then(PeerData::id);
        if let (Some(id), Some(public)) = (id, known.public.family(self.family)) {
            self.admit_id(id, public, known.key)?;
        }
        self.subnets.insert(first, subnet);
        Ok(())
    }

    /// There is one destination per id. Two leases of one place may share it.
    fn admit_id(&mut self, id: &'a [u8], public: IpAddr, key: Subnets) -> Result<(), Refusal> {
        let name = self.id_name;
        if self.own_data.as_ref().and_then(PeerData::id) == Some(id) {
            return Err(Refusal::because(format!("its {name} is this host's own")));
        }
        let (owner, other) = self.ids.entry(id).or_insert((public, key));
        if *owner == public {
            return Ok(());
        }
        Err(Refusal::because(format!("its {name} is that of {other} at {owner}, which was earlier")))
    }
}
