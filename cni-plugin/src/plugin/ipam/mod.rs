//! Address management as host-local does it: the same configuration, the same files, the same order.
//!
//! ```text
//!   ipam section ──▶ Source ─┬─ Own: HostLocal { range sets } ──reserve──▶ one Lease for every set, in the Store
//!                            └─ Program: another plugin of CNI_PATH, run by the rules of the specification
//!
//!   Store ── holders of addresses, host-local's folder ◀── Index ── on tmpfs, so that no call reads thousands of files
//! ```

mod conf;
mod index;
mod range;
mod source;
mod stale;
mod store;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub(crate) use conf::place;
use range::RangeSet;
pub(crate) use source::gc as collect_of;
pub(crate) use source::{Grant, Source, free};
use store::Store;
pub(crate) use store::{Holder, Place};

use crate::contract::{Address, Attachment, Call, Code, Dns, Failure, Key, Route};
use crate::plugin::Plugin;
use crate::sys::alive;

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin { name: "host-local", add, del, check, status, gc };

/// The address management of a network as its configuration has it.
#[derive(Debug)]
pub(crate) struct HostLocal {
    place: Place,
    network: String,
    sets: Vec<RangeSet>,
    /// Asked for by name; every set takes at most one of them.
    requested: Vec<IpAddr>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
}

/// An address that a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    /// With the prefix length of its subnet.
    pub(crate) net: IpNetwork,
    pub(crate) gateway: Option<IpAddr>,
}

impl HostLocal {
    /// Reserves one address of every range set, or none.
    pub(crate) fn reserve(&self, holder: &Holder) -> Result<Vec<Lease>, Failure> {
        let mut store = Store::create(&self.place)?;
        let held = store.held_by(holder)?;
        if let Some(ip) = held.iter().find(|ip| self.sets.iter().any(|set| set.find(**ip).is_some())) {
            let Holder { container, ifname } = holder;
            let msg =
                format!("interface {ifname} of container {container} holds {ip} of {} already", self.network);
            return Err(Failure::new(Code::Exists, msg).details("a DEL frees it"));
        }
        let mut leases = Vec::with_capacity(self.sets.len());
        if let Err(failure) = self.take(&mut store, holder, &mut leases) {
            for lease in leases {
                let _ = store.free(lease.net.ip());
            }
            store.settle(holder, &held, |usage| usage);
            return Err(failure);
        }
        self.settle(store, holder, held, &leases)?;
        Ok(leases)
    }

    /// One free address of every set, noted in `leases` as it is taken.
    fn take(&self, store: &mut Store, holder: &Holder, leases: &mut Vec<Lease>) -> Result<(), Failure> {
        let mut wanted = self.requested.clone();
        let mut asked = Vec::with_capacity(self.sets.len());
        for set in &self.sets {
            asked.push(wanted.iter().position(|ip| set.find(*ip).is_some()).map(|at| wanted.remove(at)));
        }
        if let Some(ip) = wanted.first() {
            let msg = format!("the requested address {ip} is in no range of {}", self.network);
            return Err(Failure::new(Code::Config, msg));
        }
        for (n, (set, asked)) in self.sets.iter().zip(asked).enumerate() {
            let lease = match asked {
                Some(ip) => self.requested(set, ip, store, holder)?,
                None => self.next(n, set, store, holder)?,
            };
            leases.push(lease);
            store.set_last(n, lease.net.ip());
        }
        Ok(())
    }

    fn requested(
        &self,
        set: &RangeSet,
        ip: IpAddr,
        store: &mut Store,
        holder: &Holder,
    ) -> Result<Lease, Failure> {
        let Some(range) = set.find(ip).filter(|range| range.gateway != ip) else {
            let msg = format!("the requested address {ip} is the gateway of {}", set.name());
            return Err(Failure::new(Code::Config, msg));
        };
        if store.reserve(ip, holder)? {
            return lease(ip, range);
        }
        let msg = format!("the requested address {ip} is held by another container");
        Err(Failure::new(Code::TryAgain, msg).details(format!("see {}", self.place.folder.display())))
    }

    /// The first free address after the one handed out last. Where many are taken in a row, the folder's names say
    /// which, at once. Before the range counts as full, reservations of an earlier boot are looked for.
    fn next(&self, n: usize, set: &RangeSet, store: &mut Store, holder: &Holder) -> Result<Lease, Failure> {
        for (ip, range) in set.after(store.last(n)).take(NEIGHBOURS) {
            if store.reserve(ip, holder)? {
                return lease(ip, range);
            }
        }
        for attempt in 0..2 {
            if attempt > 0 {
                store.rescan()?;
            }
            let taken = store.names()?;
            for (ip, range) in set.after(store.last(n)).filter(|(ip, _)| !taken.contains(ip)) {
                if store.reserve(ip, holder)? {
                    return lease(ip, range);
                }
            }
        }
        Err(self.exhausted(set))
    }

    fn exhausted(&self, set: &RangeSet) -> Failure {
        let msg = format!("no address is free in {} of network {}", set.name(), self.network);
        Failure::new(Code::TryAgain, msg)
            .details(format!("reservations are in {}", self.place.folder.display()))
    }

    fn settle(
        &self,
        store: Store,
        holder: &Holder,
        held: Vec<IpAddr>,
        leases: &[Lease],
    ) -> Result<(), Failure> {
        let new: Vec<_> = leases.iter().map(|lease| lease.net.ip()).collect();
        let subnets = || self.sets.iter().flat_map(RangeSet::sizes);
        let counted = store.usage().covers(subnets().map(|(subnet, _)| subnet));
        // The first time, and after a change of ranges.
        let all = if counted { BTreeSet::new() } else { store.names()? };
        let all_held: Vec<_> = held.into_iter().chain(new.iter().copied()).collect();
        store.settle(holder, &all_held, |usage| match counted {
            true => usage.taken(new),
            false => usage.over(subnets()).recount(all),
        });
        Ok(())
    }

    /// Whether an ADD would get its addresses.
    pub(crate) fn check_free(&self) -> Result<(), Failure> {
        let Some(mut store) = Store::open(&self.place)? else { return Ok(()) };
        let mut taken = store.names()?;
        let is_full =
            |set: &&RangeSet, taken: &BTreeSet<_>| set.after(None).all(|(ip, _)| taken.contains(&ip));
        if !self.sets.iter().any(|set| is_full(&set, &taken)) {
            return Ok(());
        }
        // Full of names; those that hold nothing, or are of an earlier boot, an ADD would take.
        let reservations = store.reservations()?;
        taken = reservations.iter().map(|(ip, _)| *ip).chain(store.odd().iter().copied()).collect();
        for ip in stale::find(&self.place.folder, &reservations) {
            taken.remove(&ip);
        }
        self.sets.iter().find(|set| is_full(set, &taken)).map_or(Ok(()), |set| Err(self.exhausted(set)))
    }

    /// Whether the holder has an address of every range set.
    pub(crate) fn check_held(&self, holder: &Holder) -> Result<(), Failure> {
        let held = Store::open(&self.place)?.map_or_else(|| Ok(vec![]), |mut store| store.held_by(holder))?;
        let missing = self.sets.iter().find(|set| !held.iter().any(|ip| set.find(*ip).is_some()));
        missing.map_or(Ok(()), |set| {
            let Holder { container, ifname } = holder;
            let msg =
                format!("no address of {} is reserved for interface {ifname} of {container}", set.name());
            Err(Failure::new(Code::Check, msg))
        })
    }
}

/// So many addresses after the last one are simply tried.
const NEIGHBOURS: usize = 8;

/// Frees everything that the holder has in a network's folder; what is free already is no error.
pub(crate) fn release(place: &Place, holder: &Holder) -> Result<(), Failure> {
    let Some(mut store) = Store::open(place)? else { return Ok(()) };
    let held = store.held_by(holder)?;
    held.iter().map(|ip| store.free(*ip)).fold(Ok(()), Result::and)?;
    store.settle(holder, &[], |usage| usage.freed(held));
    Ok(())
}

/// The addresses in a network's folder that no valid attachment holds.
pub(crate) fn leftovers(place: &Place, valid: &BTreeSet<Key>) -> Result<Vec<(IpAddr, Holder)>, Failure> {
    let Some(mut store) = Store::open(place)? else { return Ok(vec![]) };
    let mut all = store.reservations()?;
    all.retain(|(_, held)| !is_valid(held, valid));
    Ok(all)
}

/// Frees everything in a network's folder that no valid attachment holds and no namespace of this host has. What one
/// still has is named in the failure.
pub(crate) fn collect(place: &Place, valid: &BTreeSet<Key>) -> Result<(), Failure> {
    if leftovers(place, valid)?.is_empty() {
        return Ok(());
    }
    let live: BTreeSet<_> = alive::addresses()?.into_iter().map(|address| address.ip).collect();
    let Some(mut store) = Store::open(place)? else { return Ok(()) };
    let mut failures = Vec::new();
    for (ip, held) in store.reservations()?.into_iter().filter(|(_, held)| !is_valid(held, valid)) {
        if live.contains(&ip) {
            let msg = format!(
                "{ip} of container {} is not freed: a network namespace still has it",
                held.container
            );
            failures.push(Failure::new(Code::Exists, msg));
        } else {
            failures.extend(store.free(ip).err());
        }
    }
    failures.extend(store.settle_all().err());
    Failure::all(failures)
}

fn is_valid(held: &Holder, valid: &BTreeSet<Key>) -> bool {
    let owns = |(container, ifname): &Key| {
        held.container == *container && (held.ifname == *ifname || held.ifname.is_empty())
    };
    valid.iter().any(owns)
}

fn lease(ip: IpAddr, range: &range::Range) -> Result<Lease, Failure> {
    let net = IpNetwork::new(ip, range.subnet.prefix());
    net.map(|net| Lease { net, gateway: Some(range.gateway) })
        .map_err(|error| Failure::new(Code::Config, format!("{}: {error}", range.subnet)))
}

impl Call {
    /// Who asks for addresses.
    pub(crate) fn holder(&self) -> Holder {
        Holder { container: self.container.clone(), ifname: self.ifname.as_str().to_owned() }
    }
}

fn own(call: &Call) -> Result<HostLocal, Failure> {
    HostLocal::read(call, call.conf.object("ipam")?.ok_or_else(conf::missing)?)
}

/// ADD as `host-local`.
pub(crate) fn add(call: &Call) -> Result<Attachment, Failure> {
    let ipam = own(call)?;
    let address = |lease: Lease| Address { net: lease.net, gateway: lease.gateway, interface: None };
    let ips = ipam.reserve(&call.holder())?.into_iter().map(address).collect();
    Ok(Attachment { interfaces: vec![], ips, routes: ipam.routes, dns: ipam.dns })
}

/// DEL as `host-local`.
pub(crate) fn del(call: &Call) -> Result<(), Failure> {
    release(&place(call), &call.holder())
}

/// CHECK as `host-local`.
pub(crate) fn check(call: &Call) -> Result<(), Failure> {
    own(call)?.check_held(&call.holder())
}

/// STATUS as `host-local`.
pub(crate) fn status(call: &Call) -> Result<(), Failure> {
    own(call)?.check_free()
}

/// GC as `host-local`.
pub(crate) fn gc(call: &Call) -> Result<(), Failure> {
    collect(&place(call), &call.valid()?)
}
