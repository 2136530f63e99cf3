//! Which kernel objects are ours, decided from the dump alone: with no memory, after any restart.
//!
//! | object | ours when |
//! |---|---|
//! | link | its alias is our tag, or it has a wanted name and a fitting kind and no tag of another network |
//! | address, neighbour | on a link of ours and inside the network |
//! | FDB entry, that a link is up | on a link of ours |
//! | setting | never: it is put right, and taken back by `flannelctl cleanup` alone |
//! | route | inside the network and either on a link of ours or with our protocol number |
//! | adoptable route | exactly a wanted peer's prefix, whoever made it: at any time; one that only a flannel can have made: in the first pass after one |
//! | … blackhole | exactly the prefix of a wanted blackhole |
//! | rules | our tables, by name; in iptables our chains, by name, and every rule that calls them. Names: [`Owner::rule_names`] |
//!
//! Other routes that the kernel makes itself (`proto kernel`) are never ours, nor those of other tables or for one type of
//! service only: the dump reads none of these.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::{NetworkId, NetworkPool, contains_net};

use crate::netlink::route::{RTPROT_BOOT, RTPROT_KERNEL};
use crate::rules::RuleNames;
use crate::state::{IfName, KernelState, Link, Object, ROUTE_PROTOCOL, Route, RouteKind, default_metric};

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
    /// The subnets that the network gives out: routes to others were not made by a flannel.
    pub pools: Vec<NetworkPool>,
    /// Links of others whose forwarding we rely on: those with an address of our own subnets, the pods' bridges.
    #[serde(default)]
    pub pods: Vec<IfName>,
    /// Gateways of routes that lead out of the network: routers, behind which an operator may have subnets, and no peers.
    #[serde(default)]
    pub routers: Vec<IpAddr>,
    /// What the network's rules are called.
    #[serde(default)]
    pub rules: RuleNames,
    /// A flannel ran here before, and nothing was compared yet in this run: what it left behind is swept once.
    pub first_pass: bool,
}

/// What to do with an object of the dump that is not in the wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
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

    /// The names of rules that are ours: the network's own, and those of its number, which it has in a daemon in which it
    /// is not the first.
    pub fn rule_names(&self) -> Vec<RuleNames> {
        let mut names = vec![self.rules, RuleNames::of(&self.network)];
        names.dedup();
        names
    }

    /// Whose one object of the dump is.
    pub fn ownership(&self, object: &Object, wanted: &Wanted) -> Ownership {
        match object {
            Object::Link(link) => self.link(link),
            Object::Route(route) => self.route(route, wanted),
            Object::Address(a) if self.inside_address(a.net.ip()) => Ownership::Ours,
            Object::Neigh(n) if self.inside_address(n.address) => Ownership::Ours,
            Object::Address(_) | Object::Neigh(_) | Object::Sysctl(..) => Ownership::Foreign,
            Object::Fdb(_) | Object::Up(_) | Object::Trusted(_) => Ownership::Ours,
            Object::Table(table) => self.named(table.names),
            Object::Iptables(rules) => self.named(rules.names),
        }
    }

    fn named(&self, names: RuleNames) -> Ownership {
        if self.rule_names().contains(&names) { Ownership::Ours } else { Ownership::Foreign }
    }

    fn link(&self, link: &Link) -> Ownership {
        if self.owns_link(link.name, Some(&link.tag)) { Ownership::Ours } else { Ownership::Foreign }
    }

    fn route(&self, route: &Route, wanted: &Wanted) -> Ownership {
        if !self.inside(&route.dst) {
            return Ownership::Foreign;
        }
        let in_a_peers_place = wanted.prefixes.contains(&route.dst);
        if route.protocol == RTPROT_KERNEL && !in_a_peers_place {
            return Ownership::Foreign;
        }
        if route.protocol == ROUTE_PROTOCOL || route.link.is_some_and(|l| wanted.links.contains(&l)) {
            return Ownership::Ours;
        }
        let in_a_holes_place = route.kind == RouteKind::Blackhole && wanted.holes.contains(&route.dst);
        let left_by_flannel =
            self.first_pass && self.is_as_of_a_flannel(route) && wanted.is_of_one_lease(route);
        if in_a_peers_place || in_a_holes_place || left_by_flannel {
            Ownership::Adopt
        } else {
            Ownership::Foreign
        }
    }

    /// A flannel routes the whole of a subnet that the network gives out by the peer that leased it, with no metric of its own.
    fn is_as_of_a_flannel(&self, route: &Route) -> bool {
        route.protocol == RTPROT_BOOT
            && route.kind == RouteKind::Unicast
            && route.scope == 0
            && route.metric == default_metric(&route.dst)
            && route.via.is_some_and(|via| !self.routers.contains(&via))
            && route.link == self.external
            && self.pools.iter().any(|pool| pool.index(route.dst).is_some())
    }

    fn inside(&self, dst: &IpNetwork) -> bool {
        self.networks.iter().any(|net| contains_net(*net, *dst))
    }

    /// Whether an address is one of the network's.
    pub(crate) fn inside_address(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(address))
    }
}

/// What deciding about ownership needs to know of the wish and of the dump's links.
pub struct Wanted {
    /// Peers' subnets.
    prefixes: HashSet<IpNetwork>,
    /// What blackholes are wished for.
    holes: Vec<IpNetwork>,
    links: Vec<IfName>,
    /// How many subnets are routed by a gateway without our wish, where that matters.
    leases_by: HashMap<IpAddr, usize>,
}

impl Wanted {
    /// Gathers it.
    pub fn new(owner: &Owner, want: &KernelState, have: &KernelState) -> Self {
        let routes = || want.iter().filter_map(|o| if let Object::Route(r) = o { Some(r) } else { None });
        let is_hole = |r: &&Route| r.kind == RouteKind::Blackhole;
        let ours = have.links().filter(|l| owner.link(l) == Ownership::Ours).map(|l| l.name);
        Self {
            prefixes: routes().filter(|r| !is_hole(r)).map(|r| r.dst).collect(),
            holes: routes().filter(is_hole).map(|r| r.dst).collect(),
            links: want.links().map(|l| l.name).chain(ours).collect(),
            leases_by: HashMap::new(),
        }
        .with_leftovers(owner, have)
    }

    /// Once in a run: at any other time there is nothing to sweep.
    fn with_leftovers(mut self, owner: &Owner, have: &KernelState) -> Self {
        if !owner.first_pass {
            return self;
        }
        for route in have.iter().filter_map(|o| if let Object::Route(r) = o { Some(r) } else { None }) {
            if owner.is_as_of_a_flannel(route) && !self.prefixes.contains(&route.dst) {
                *self.leases_by.entry(route.via.unwrap_or_else(|| route.dst.ip())).or_default() += 1;
            }
        }
        self
    }

    /// A host has one lease, so a gateway with more subnets than one is an operator's.
    fn is_of_one_lease(&self, route: &Route) -> bool {
        route.via.is_some_and(|via| self.leases_by.get(&via) == Some(&1))
    }
}
