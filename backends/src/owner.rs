//! Which kernel objects are ours, decided from the dump alone: with no memory, after any restart.
//!
//! | object | ours when |
//! |---|---|
//! | link | its alias is our tag, or it has a wanted name and a fitting kind and no tag of another network |
//! | address, FDB entry, neighbour, setting | on a link of ours (the dump reads no others) |
//! | route | inside the network and either on a link of ours or with our protocol number |
//! | adoptable route | exactly a wanted peer's prefix: at any time; one that flannel would have made: in the first pass |
//! | rules | our tables, by name |
//!
//! Routes the kernel makes itself (`proto kernel`) are never ours.

use std::collections::HashSet;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::{NetworkId, contains_net};

use crate::name::IfName;
use crate::netlink::route::{RTPROT_BOOT, RTPROT_KERNEL};
use crate::state::{KernelState, Link, Object, Route};

/// The route protocol number of every route that we make. Chosen once; it is on users' disks and in their kernels.
/// Free in iproute2's list (`rt_protos`) and among the routing daemons we know of.
pub const ROUTE_PROTOCOL: u8 = 67;

/// Begins the alias of every link that we make; the network's id follows. Part of the on-kernel format.
const TAG: &str = "selvage:";

/// The alias of a link of this network.
pub fn tag(network: &NetworkId) -> String {
    format!("{TAG}{network}")
}

/// Whose objects are whose, for one network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Owner {
    /// Our network: what its tag says is ours.
    pub network: NetworkId,
    /// The cluster's networks, and the ones of the previous run while they differ.
    pub networks: Vec<IpNetwork>,
    /// The links this configuration produces.
    pub names: Vec<IfName>,
    /// The underlay link, over which flannel's host-gw routes go.
    pub external: Option<IfName>,
    /// Prefix lengths of leases (IPv4, IPv6), by which routes that flannel would have made are known.
    pub lease_lengths: Vec<u8>,
    /// Nothing was compared yet in this run: what an earlier daemon left behind is swept once.
    pub first_pass: bool,
}

/// What to do with an object of the dump that is not in the wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ours: keep as wished, else delete.
    Ours,
    /// Somebody else's, in the place of something we wish for, or left by a flannel: take it over or delete it.
    Adopt,
    /// Never touched.
    Foreign,
}

impl Owner {
    /// What a reader of the kernel needs to know to leave out most of what is foreign.
    pub fn may_be_ours(&self, route: &Route, on_our_link: bool) -> bool {
        on_our_link || route.protocol == ROUTE_PROTOCOL || self.inside(&route.dst)
    }

    /// Whether a link with this name and alias is ours.
    pub fn owns_link(&self, name: IfName, alias: Option<&str>) -> bool {
        match alias.and_then(|a| a.strip_prefix(TAG)) {
            Some(id) => id == self.network.as_str(),
            None => self.names.contains(&name),
        }
    }

    /// The verdict on one object of the dump.
    pub fn verdict(&self, object: &Object, wanted: &Wanted) -> Verdict {
        match object {
            Object::Link(link) => self.link(link),
            Object::Route(route) => self.route(route, wanted),
            Object::Sysctl(..) => Verdict::Foreign,
            _ => Verdict::Ours,
        }
    }

    fn link(&self, link: &Link) -> Verdict {
        if self.owns_link(link.name, Some(&link.tag)) { Verdict::Ours } else { Verdict::Foreign }
    }

    fn route(&self, route: &Route, wanted: &Wanted) -> Verdict {
        if route.protocol == RTPROT_KERNEL || !self.inside(&route.dst) {
            return Verdict::Foreign;
        }
        if route.protocol == ROUTE_PROTOCOL || route.link.is_some_and(|l| wanted.links.contains(&l)) {
            return Verdict::Ours;
        }
        let left_by_flannel = self.first_pass
            && route.protocol == RTPROT_BOOT
            && route.via.is_some()
            && route.link == self.external
            && self.lease_lengths.contains(&route.dst.prefix());
        if wanted.prefixes.contains(&route.dst) || left_by_flannel {
            Verdict::Adopt
        } else {
            Verdict::Foreign
        }
    }

    fn inside(&self, dst: &IpNetwork) -> bool {
        self.networks.iter().any(|net| contains_net(*net, *dst))
    }
}

/// What the verdicts need to know of the wish and of the dump's links.
pub struct Wanted {
    prefixes: HashSet<IpNetwork>,
    links: Vec<IfName>,
}

impl Wanted {
    /// Gathers it.
    pub fn new(owner: &Owner, want: &KernelState, have: &KernelState) -> Self {
        let route = |o: &Object| if let Object::Route(r) = o { Some(r.dst) } else { None };
        let ours = have.links().filter(|l| owner.link(l) == Verdict::Ours).map(|l| l.name);
        Self {
            prefixes: want.iter().filter_map(route).collect(),
            links: want.links().map(|l| l.name).chain(ours).collect(),
        }
    }
}
