//! The firewall plugin: what a host that forwards nothing lets pass for its containers.
//!
//! ```text
//!   prevResult: addresses ──▶ iptables: CNI-ADMIN, then accept from and back to each address
//!                         └─▶ firewalld: sources of a zone
//! ```
//!
//! Where FORWARD drops, only its own table can accept: rules of another one would be asked as well, not instead.

mod chains;
mod conf;
mod record;
mod zone;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use chains::Part;
use conf::{Backend, Firewall, Ingress};
use record::Gate;

use crate::contract::{Attachment, Call, Failure};
use crate::plugin::Plugin;
use crate::plugin::chained::{self, owner, owner_network};

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin { name: "firewall", add, del, check, status, gc };

fn add(call: &Call) -> Result<Attachment, Failure> {
    let result = chained::previous(call)?;
    let conf = Firewall::read(call)?;
    let (addresses, bridge) = (addresses(&result), bridge(&conf, &result)?);
    let own = own_name(call);
    let gate = gate(&conf);
    record::write(&conf.folder, &addresses, &own, &gate);
    let zone = if let Gate::Zone(zone) = &gate { zone::add(zone, &addresses) } else { Ok(()) };
    // A policy is in iptables, whatever lets the container's packets pass.
    let part = Part { conf: &conf, accepts: gate == Gate::Iptables, bridge };
    zone.and_then(|()| part.add(&addresses)).inspect_err(|_| {
        let _ = remove(&conf, &addresses, &own);
    })?;
    Ok(result)
}

fn backend(conf: &Firewall) -> Backend {
    conf.backend.unwrap_or_else(|| if zone::runs() { Backend::Firewalld } else { Backend::Iptables })
}

/// What the configuration means to let addresses pass.
fn gate(conf: &Firewall) -> Gate {
    match backend(conf) {
        Backend::Iptables => Gate::Iptables,
        Backend::Firewalld => Gate::Zone(conf.zone.clone()),
    }
}

fn bridge<'a>(conf: &Firewall, result: &'a Attachment) -> Result<Option<&'a str>, Failure> {
    if conf.ingress == Ingress::Open { Ok(None) } else { conf::bridge(result).map(Some) }
}

fn addresses(result: &Attachment) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.net.ip().to_canonical()).collect()
}

fn del(call: &Call) -> Result<(), Failure> {
    let conf = Firewall::read(call)?;
    let own = own_name(call);
    let given = call.previous()?.map(|result| addresses(&result));
    let found = given.unwrap_or_else(|| record::find(&conf.folder, |owner| owner == own));
    remove(&conf, &found, &own)
}

/// Removes the rules of addresses that no other attachment has by now.
fn remove(conf: &Firewall, addresses: &[IpAddr], own: &str) -> Result<(), Failure> {
    let held = |ip: &IpAddr| record::owner(&conf.folder, *ip).is_some_and(|owner| owner != own);
    let free: Vec<_> = addresses.iter().copied().filter(|ip| !held(ip)).collect();
    // As it was when they were added: firewalld may have come or gone since, and the configuration changed.
    let mut by_zone: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let (mut in_chains, usual) = (Vec::new(), LazyCell::new(|| gate(conf)));
    for ip in &free {
        match record::gate(&conf.folder, *ip).unwrap_or_else(|| usual.clone()) {
            Gate::Iptables => in_chains.push(*ip),
            Gate::Zone(zone) => by_zone.entry(zone).or_default().push(*ip),
        }
    }
    // Sources end with firewalld.
    if !by_zone.is_empty() && zone::runs() {
        by_zone.iter().try_for_each(|(zone, addresses)| zone::remove(zone, addresses))?;
    }
    chains::remove(&in_chains)?;
    record::forget_draft(&conf.folder, own);
    free.into_iter().for_each(|ip| record::forget(&conf.folder, ip));
    Ok(())
}

fn check(call: &Call) -> Result<(), Failure> {
    let result = chained::previous(call)?;
    let conf = Firewall::read(call)?;
    let addresses = addresses(&result);
    let bridge = bridge(&conf, &result)?;
    let backend = backend(&conf);
    if backend == Backend::Firewalld {
        zone::check(&conf.zone, &addresses)?;
    }
    Part { conf: &conf, accepts: backend == Backend::Iptables, bridge }.check(&addresses)
}

fn status(call: &Call) -> Result<(), Failure> {
    let conf = Firewall::read(call)?;
    match backend(&conf) {
        Backend::Iptables => chains::usable(),
        Backend::Firewalld => zone::check(&conf.zone, &[]),
    }
}

fn gc(call: &Call) -> Result<(), Failure> {
    let valid: BTreeSet<_> =
        call.valid()?.iter().map(|(container, ifname)| owner(&call.network, container, ifname)).collect();
    let (conf, network) = (Firewall::read(call)?, owner_network(&call.network));
    let stale = |owner: &str| owner.starts_with(&network) && !valid.contains(owner);
    let found = record::find(&conf.folder, stale);
    Failure::all(found.into_iter().filter_map(|ip| {
        let own = record::owner(&conf.folder, ip).unwrap_or_default();
        remove(&conf, &[ip], &own).err()
    }))
}

fn own_name(call: &Call) -> String {
    owner(&call.network, &call.container, call.ifname.as_str())
}
