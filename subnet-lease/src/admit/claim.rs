//! Which subnets a host gets, decided from the list of leases alone. The memory store and the etcd store share it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::IpNetwork;
use crate::model::lease::{BackendAttrs, Lease, PublicAddrs};
#[cfg(any(feature = "etcd", test))]
use crate::model::net::overlap;
use crate::model::net::{Family, Subnets, span};
use crate::model::netconf::NetworkConfig;
use crate::model::pool::NetworkPool;
use crate::store::StoreError;

/// What a host wants the store to say about it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Where it is reached.
    pub public: PublicAddrs,
    /// How its backend is reached.
    pub attrs: BackendAttrs,
    /// The subnets it had, as far as it remembers: a wish, and evidence that a lease is its own.
    pub previous: Option<Subnets>,
    /// The network to lease from.
    pub network: Arc<NetworkConfig>,
    /// Networks that this host reaches without the tunnel: no subnet that overlaps one is chosen.
    pub avoid: Vec<IpNetwork>,
    /// The host's name; hosts with the same public address (behind one NAT) are told apart by it.
    pub node: Option<String>,
}

/// What to do about a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The subnets to have.
    pub(crate) subnets: Subnets,
    /// The lease that is ours now: the same subnets, or others to give up in the same step.
    pub(crate) own: Option<Subnets>,
}

impl Claim {
    /// Whether a lease is ours. The public address says so, as in flannel, unless the name of the holder contradicts it; a
    /// host whose address changed needs the name and the memory of having had these subnets, because names are
    /// not unique in practice and two hosts on one subnet are worse than one host on a new one.
    pub fn owns(&self, lease: &Lease) -> bool {
        let address = self.public.meets(&lease.public);
        let remembered = self.previous == Some(lease.subnets);
        match (&self.node, &lease.node) {
            (Some(mine), Some(theirs)) if mine == theirs => address || remembered,
            (Some(_), Some(_)) => address && remembered,
            _ => address,
        }
    }

    /// The lease that this claim asks for, given its subnets. What others added to the one that it comes from stays; one that
    /// comes from none says which subnets were lost, so that who has them now hears of it.
    pub(crate) fn lease(&self, subnets: Subnets, from: Option<&Lease>) -> Lease {
        let lost = || self.previous.filter(|previous| *previous != subnets);
        let extra = from
            .map_or_else(|| lost().map(Lease::former_field).into_iter().collect(), |own| own.extra.clone());
        Lease { node: self.node.clone(), extra, ..Lease::new(subnets, self.public, self.attrs.clone()) }
    }

    /// Own subnets if they still fit the network, else the previous ones, else free ones; family by family, so that
    /// enabling IPv6 does not cost a host its IPv4 subnet. `unknown` are subnets of leases that cannot be read:
    /// taken, by whom is not known.
    pub(crate) fn choose<'a>(
        &self,
        leases: impl Iterator<Item = &'a Lease>,
        unknown: &[Subnets],
    ) -> Result<Choice, StoreError> {
        let (mine, others): (Vec<&Lease>, Vec<&Lease>) = leases.partition(|lease| self.owns(lease));
        let own = mine.into_iter().min_by_key(|lease| {
            let misfit = !self.network.leases(&lease.subnets);
            (misfit, self.previous != Some(lease.subnets), lease.epoch, lease.subnets)
        });
        let own = own.map(|lease| lease.subnets);
        let taken = others.iter().map(|lease| &lease.subnets).chain(unknown);
        if let Some(kept) = own.filter(|own| self.network.leases(own) && !self.is_cut_off_by(own)) {
            return Ok(Choice { subnets: kept, own });
        }
        let taken: Vec<Subnets> = taken.copied().collect();
        let picked: Result<Vec<_>, _> =
            self.network.pools().map(|pool| self.pick(&pool, own, &taken)).collect();
        match Subnets::of(picked?) {
            Some(subnets) => Ok(Choice { subnets, own }),
            None => Err(StoreError::Config("the network enables no family".into())),
        }
    }

    /// Whether a lease that holds `theirs` keeps us from `mine`. What could be no lease of this network does not.
    #[cfg(any(feature = "etcd", test))]
    pub(crate) fn contends(&self, theirs: &Subnets, mine: &Subnets) -> bool {
        let of = |pool: NetworkPool| {
            let theirs = theirs.family(pool.family()).filter(|theirs| pool.could_lease(*theirs));
            theirs.zip(mine.family(pool.family())).is_some_and(|(theirs, mine)| overlap(theirs, mine))
        };
        self.network.pools().any(of)
    }

    /// Whether these subnets have one of the host's own addresses, of its gateways or of its store in them. A connected
    /// network that they merely overlap is no reason to give up what may have worked for long.
    fn is_cut_off_by(&self, own: &Subnets) -> bool {
        let single = |net: &&IpNetwork| net.prefix() == Family::of(&net.ip()).bits();
        self.avoid.iter().filter(single).any(|host| own.iter().any(|subnet| subnet.contains(host.ip())))
    }

    fn pick(
        &self,
        pool: &NetworkPool,
        own: Option<Subnets>,
        taken: &[Subnets],
    ) -> Result<IpNetwork, StoreError> {
        let family = pool.family();
        let taken = taken.iter().filter_map(|subnets| subnets.family(family));
        let avoid = self.avoid.iter().copied().filter(|net| Family::of(&net.ip()) == family);
        let busy = Busy::new(taken.filter(|subnet| pool.could_lease(*subnet)).chain(avoid));
        let wishes = [own, self.previous].into_iter().flatten().filter_map(|subnets| subnets.family(family));
        for wish in wishes {
            if pool.index(wish).is_some() && busy.blocking(wish).is_none() {
                return Ok(wish);
            }
        }
        let start = u128::from(self.spread(family)) % pool.room();
        let free = |from, to| first_free(pool, &busy, from, to);
        free(start, pool.room())
            .or_else(|| free(0, start))
            .ok_or_else(|| StoreError::Full(pool.network, pool.room()))
    }

    /// Where to start looking: hosts that boot together start at different places, and a host that tries again at its own.
    fn spread(&self, family: Family) -> u64 {
        let mut hasher = DefaultHasher::new();
        (family, &self.node, self.public).hash(&mut hasher);
        hasher.finish()
    }
}

fn first_free(pool: &NetworkPool, busy: &Busy, from: u128, to: u128) -> Option<IpNetwork> {
    let mut index = from;
    while index < to {
        let subnet = pool.at(index)?;
        let Some(last) = busy.blocking(subnet) else { return Some(subnet) };
        // Over the whole blocking subnet in one step: the cost follows the leases, not the size of the network.
        let (first, size) = (span(subnet).0, span(subnet).1 - span(subnet).0 + 1);
        index += (last.saturating_sub(first) / size).saturating_add(1);
    }
    None
}

/// Taken address ranges, merged where they overlap: first address to last.
struct Busy(BTreeMap<u128, u128>);

impl Busy {
    fn new(taken: impl Iterator<Item = IpNetwork>) -> Self {
        let mut spans: Vec<_> = taken.map(span).collect();
        spans.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match merged.last_mut() {
                Some(before) if first <= before.1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged.into_iter().collect())
    }

    /// The last address of a range that overlaps the subnet.
    fn blocking(&self, subnet: IpNetwork) -> Option<u128> {
        let (first, last) = span(subnet);
        self.0.range(..=last).next_back().map(|(_, end)| *end).filter(|end| *end >= first)
    }
}

#[cfg(test)]
pub(crate) mod tests;
