//! Address management as host-local does it: the same configuration, the same files, the same order.
//!
//! ```text
//!   ipam section ──▶ Ipam { range sets, routes, dns } ──reserve──▶ one Lease for every set, in the Store
//! ```

mod conf;
mod range;
mod store;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

pub(crate) use conf::folder;
use range::RangeSet;
pub(crate) use store::Holder;
use store::Store;

use crate::cni::{Address, Attachment, Call, Code, Dns, Failure, Key, Route};
use crate::plugin::Plugin;

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin { name: "host-local", level: "v1.9.1", add, del, check, status, gc };

/// The address management of a network as its configuration has it.
#[derive(Debug)]
pub(crate) struct Ipam {
    folder: PathBuf,
    network: String,
    sets: Vec<RangeSet>,
    /// Asked for by name; every set takes at most one of them.
    requested: Vec<IpAddr>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
}

/// A reserved address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    /// With the prefix length of its subnet.
    pub(crate) net: IpNetwork,
    pub(crate) gateway: IpAddr,
}

impl Ipam {
    /// Reserves one address of every range set, or none.
    pub(crate) fn reserve(&self, holder: &Holder) -> Result<Vec<Lease>, Failure> {
        let store = Store::create(&self.folder)?;
        let reservations = store.reservations()?;
        let in_range = |ip: IpAddr| self.sets.iter().any(|set| set.find(ip).is_some());
        if let Some((ip, _)) = reservations.iter().find(|(ip, held)| holder.owns(held) && in_range(*ip)) {
            let Holder { container, ifname } = holder;
            let msg =
                format!("interface {ifname} of container {container} holds {ip} of {} already", self.network);
            return Err(Failure::new(Code::Exists, msg).details("a DEL frees it"));
        }
        let taken = reservations.into_iter().map(|(ip, _)| ip).collect();
        let chosen = self.choose(&store, &taken)?;
        let mut leases = Vec::with_capacity(chosen.len());
        for (n, lease) in chosen.into_iter().enumerate() {
            let ip = lease.net.ip();
            leases.push(lease);
            if let Err(failure) = store.reserve(ip, holder).and_then(|()| store.set_last(n, ip)) {
                let _ = leases.iter().try_for_each(|lease: &Lease| store.free(lease.net.ip()));
                return Err(failure);
            }
        }
        Ok(leases)
    }

    /// One free address of every set.
    fn choose(&self, store: &Store, taken: &BTreeSet<IpAddr>) -> Result<Vec<Lease>, Failure> {
        let mut wanted = self.requested.clone();
        let mut chosen = Vec::with_capacity(self.sets.len());
        for (n, set) in self.sets.iter().enumerate() {
            let asked = wanted.iter().position(|ip| set.find(*ip).is_some()).map(|at| wanted.remove(at));
            let lease = match asked {
                Some(ip) => self.requested(set, ip, taken)?,
                None => self.next(set, store.last(n), taken)?,
            };
            chosen.push(lease);
        }
        match wanted.first() {
            None => Ok(chosen),
            Some(ip) => Err(Failure::new(
                Code::Config,
                format!("the requested address {ip} is in no range of {}", self.network),
            )),
        }
    }

    fn requested(&self, set: &RangeSet, ip: IpAddr, taken: &BTreeSet<IpAddr>) -> Result<Lease, Failure> {
        let range = set.find(ip).filter(|range| range.gateway != ip);
        let Some(range) = range else {
            return Err(Failure::new(
                Code::Config,
                format!("the requested address {ip} is the gateway of {}", set.name()),
            ));
        };
        if taken.contains(&ip) {
            return Err(Failure::new(
                Code::TryAgain,
                format!("the requested address {ip} is held by another container"),
            )
            .details(format!("see {}", self.folder.display())));
        }
        lease(ip, range)
    }

    fn next(&self, set: &RangeSet, last: Option<IpAddr>, taken: &BTreeSet<IpAddr>) -> Result<Lease, Failure> {
        match set.after(last).find(|(ip, _)| !taken.contains(ip)) {
            Some((ip, range)) => lease(ip, range),
            None => Err(self.exhausted(set)),
        }
    }

    fn exhausted(&self, set: &RangeSet) -> Failure {
        let msg = format!("no address is free in {} of network {}", set.name(), self.network);
        Failure::new(Code::TryAgain, msg).details(format!("reservations are in {}", self.folder.display()))
    }

    /// Whether an ADD would get its addresses.
    pub(crate) fn check_free(&self) -> Result<(), Failure> {
        let Some(store) = Store::open(&self.folder)? else { return Ok(()) };
        let taken: BTreeSet<_> = store.reservations()?.into_iter().map(|(ip, _)| ip).collect();
        self.sets.iter().try_for_each(|set| self.next(set, None, &taken).map(drop))
    }

    /// Whether the holder has an address of every range set.
    pub(crate) fn check_held(&self, holder: &Holder) -> Result<(), Failure> {
        let held = Store::open(&self.folder)?.map_or_else(|| Ok(vec![]), |store| store.reservations())?;
        let missing = self
            .sets
            .iter()
            .find(|set| !held.iter().any(|(ip, h)| holder.owns(h) && set.find(*ip).is_some()));
        missing.map_or(Ok(()), |set| {
            let Holder { container, ifname } = holder;
            let msg =
                format!("no address of {} is reserved for interface {ifname} of {container}", set.name());
            Err(Failure::new(Code::Check, msg))
        })
    }
}

/// Frees everything that the holder has in a network's folder; what is free already is no error.
pub(crate) fn release(folder: &std::path::Path, holder: &Holder) -> Result<(), Failure> {
    let Some(store) = Store::open(folder)? else { return Ok(()) };
    let own = store.reservations()?.into_iter().filter(|(_, held)| holder.owns(held));
    own.map(|(ip, _)| store.free(ip)).fold(Ok(()), Result::and)
}

/// Frees everything in a network's folder that no valid attachment holds.
pub(crate) fn collect(folder: &std::path::Path, valid: &BTreeSet<Key>) -> Result<(), Failure> {
    let Some(store) = Store::open(folder)? else { return Ok(()) };
    let is_valid = |held: &Holder| {
        valid.iter().any(|(container, ifname)| {
            Holder { container: container.clone(), ifname: ifname.clone() }.owns(held)
        })
    };
    let left = store.reservations()?.into_iter().filter(|(_, held)| !is_valid(held));
    Failure::all(left.filter_map(|(ip, _)| store.free(ip).err()))
}

fn lease(ip: IpAddr, range: &range::Range) -> Result<Lease, Failure> {
    let net = IpNetwork::new(ip, range.subnet.prefix());
    net.map(|net| Lease { net, gateway: range.gateway })
        .map_err(|error| Failure::new(Code::Config, format!("{}: {error}", range.subnet)))
}

impl Call {
    /// Who asks for addresses.
    pub(crate) fn holder(&self) -> Holder {
        Holder { container: self.container.clone(), ifname: self.ifname.as_str().to_owned() }
    }
}

/// ADD as `host-local`.
pub(crate) fn add(call: &Call) -> Result<Attachment, Failure> {
    let ipam = Ipam::read(call, &call.conf)?.ok_or_else(conf::missing)?;
    let address = |lease: Lease| Address { net: lease.net, gateway: Some(lease.gateway), interface: None };
    let ips = ipam.reserve(&call.holder())?.into_iter().map(address).collect();
    Ok(Attachment { interfaces: vec![], ips, routes: ipam.routes, dns: ipam.dns })
}

/// DEL as `host-local`.
pub(crate) fn del(call: &Call) -> Result<(), Failure> {
    release(&folder(call, &call.conf), &call.holder())
}

/// CHECK as `host-local`.
pub(crate) fn check(call: &Call) -> Result<(), Failure> {
    Ipam::read(call, &call.conf)?.ok_or_else(conf::missing)?.check_held(&call.holder())
}

/// STATUS as `host-local`.
pub(crate) fn status(call: &Call) -> Result<(), Failure> {
    Ipam::read(call, &call.conf)?.ok_or_else(conf::missing)?.check_free()
}

/// GC as `host-local`.
pub(crate) fn gc(call: &Call) -> Result<(), Failure> {
    collect(&folder(call, &call.conf), &call.valid()?)
}
