//! Chooses the interface between the hosts, and the addresses that count on it. Pure over [`Facts`], so that it can be
//! asked again whenever the host changes.
//!
//! First match wins: each `--iface`, each `--iface-regex` (addresses, then names), `--iface-can-reach`; with none of
//! them a public address that is on this host; with none of that the default route. An interface fits only if it has an
//! address of every family that the cluster uses. One that is a part of a bridge, bond, team or VRF and has no such
//! addresses itself stands for that.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr;

use backends::{External, Facts, HostAddress, HostLink, HostRoute, IfName};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use subnet_lease::{Family, PublicAddrs};

/// Devices that flannel makes for the overlay: never found by a pattern or a default route.
const OVERLAY: [&str; 2] = ["flannel", "cni0"];

/// How many interfaces an error message lists.
const LISTED: usize = 12;

/// What was asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IfaceWish {
    /// `--iface`, in order.
    pub names: Vec<Named>,
    /// `--iface-regex`, in order.
    #[serde(with = "regexes")]
    pub regexes: Vec<Regex>,
    /// `--iface-can-reach`.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`, `--public-ipv6`.
    pub public: PublicAddrs,
}

impl IfaceWish {
    /// Whether anything was asked for; otherwise it is the default route's.
    pub fn names_something(&self) -> bool {
        let public = Family::ALL.into_iter().any(|f| self.public.family(f).is_some());
        !self.names.is_empty() || !self.regexes.is_empty() || self.can_reach.is_some() || public
    }
}

/// An interface, named by its name or by an address on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Named {
    /// By address.
    Address(IpAddr),
    /// By name.
    Link(IfName),
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let link = || {
            text.parse().map(Self::Link).map_err(|_| "neither an IP address nor an interface name".to_owned())
        };
        match text.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() || address.is_unspecified() || address.is_multicast() => {
                Err("not an address that other hosts reach".to_owned())
            }
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => link(),
        }
    }
}

/// The interface, and why this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The link and its addresses.
    pub external: External,
    /// What led to it, for the log.
    pub why: String,
}

/// No interface fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no interface fits: {tried}; this host has {host}")]
pub struct IfaceError {
    tried: String,
    host: String,
}

/// Chooses the interface for these families.
pub fn choose(facts: &Facts, wish: &IfaceWish, families: &[Family]) -> Result<Choice, IfaceError> {
    let search = Search { facts, wish, families };
    search.first().map_err(|misses| IfaceError { tried: misses.join("; "), host: listing(facts) })
}

struct Search<'a> {
    facts: &'a Facts,
    wish: &'a IfaceWish,
    families: &'a [Family],
}

/// A choice, or why not.
type Attempt = Result<Choice, String>;

impl Search<'_> {
    fn first(&self) -> Result<Choice, Vec<String>> {
        let names = self.wish.names.iter().map(|name| self.named(*name));
        let regexes = self.wish.regexes.iter().map(|regex| self.matching(regex));
        let asked = names.chain(regexes).chain(self.wish.can_reach.map(|target| self.reaching(target)));
        let mut misses = Vec::new();
        for attempt in asked {
            match attempt {
                Ok(choice) => return Ok(choice),
                Err(miss) => misses.push(miss),
            }
        }
        if !misses.is_empty() {
            return Err(misses);
        }
        let public = self.families.iter().find_map(|family| self.wish.public.family(*family));
        public.map_or_else(|| self.default_route(), |address| self.public(address)).map_err(|miss| vec![miss])
    }

    fn named(&self, name: Named) -> Attempt {
        match name {
            Named::Address(address) => {
                let why = format!("--iface={address}");
                let link =
                    self.bearer(address).ok_or_else(|| format!("{why}: no interface has this address"))?;
                self.asked(link, &[address], why)
            }
            Named::Link(name) => {
                let why = format!("--iface={name}");
                let link = self
                    .facts
                    .link_named(name)
                    .ok_or_else(|| format!("{why}: there is no such interface"))?;
                self.asked(link, &[], why.clone()).or_else(|miss| self.whole(link, &why).unwrap_or(Err(miss)))
            }
        }
    }

    /// The bridge, bond, team or VRF that a link is a port of, in its place: its addresses went there when it was enslaved.
    fn whole(&self, part: &HostLink, why: &str) -> Option<Attempt> {
        let whole = self.facts.link(part.master).filter(|_| part.master != 0)?;
        Some(self.take(whole, &[], format!("{why}, a part of {}", whole.name)))
    }

    /// By an address of every family, on one interface; else by name.
    fn matching(&self, regex: &Regex) -> Attempt {
        let why = format!("--iface-regex={regex}");
        let address = |link: &HostLink, family| {
            let found =
                self.usable(link, family).into_iter().find(|a| regex.is_match(&a.net.ip().to_string()));
            found.map(|a| a.net.ip())
        };
        let by_address = |link| {
            let addresses: Option<Vec<_>> =
                self.families.iter().map(|family| address(link, *family)).collect();
            self.take(link, &addresses?, why.clone()).ok()
        };
        let by_name = |link: &HostLink| {
            regex.is_match(link.name.as_str()).then(|| self.take(link, &[], why.clone()).ok()).flatten()
        };
        let mut links = self.underlay();
        let found = links.clone().find_map(by_address).or_else(|| links.find_map(by_name));
        found.ok_or_else(|| format!("{why}: matches no interface with {} addresses", self.wanted()))
    }

    fn reaching(&self, target: IpAddr) -> Attempt {
        let why = format!("--iface-can-reach={target}");
        if let Some(link) = self.bearer(target) {
            return self.asked(link, &[target], why);
        }
        let leads = |route: &&HostRoute| route.dst.contains(target);
        let by_table =
            || self.facts.routes.iter().filter(leads).min_by_key(|r| (Reverse(r.dst.prefix()), r.metric));
        // The kernel's own answer considers rules and other tables as well.
        let route = self.facts.reach.as_ref().filter(leads).or_else(by_table);
        let route = route.ok_or_else(|| format!("{why}: no route leads there"))?;
        let link = self.facts.link(route.link).ok_or_else(|| format!("{why}: its interface is gone"))?;
        let source = route.source.filter(|source| self.facts.has_address(*source));
        self.take(link, source.as_slice(), why)
    }

    fn public(&self, address: IpAddr) -> Attempt {
        let flag = if address.is_ipv4() { "--public-ip" } else { "--public-ipv6" };
        let why = format!("{flag}={address}");
        let link = self.bearer(address).ok_or_else(|| {
            format!("{why}: not an address of this host (for one behind NAT set --iface as well)")
        })?;
        self.asked(link, &[address], why)
    }

    /// The best default route, with the source addresses that it names.
    fn default_route(&self) -> Attempt {
        let mut miss = None;
        for (route, link) in self.ways_out() {
            match self.take(link, &self.sources(link), self.best_default(&route)) {
                Ok(choice) => return Ok(choice),
                Err(why) => _ = miss.get_or_insert(why),
            }
        }
        Err(miss.unwrap_or_else(|| {
            format!("there is no default route ({}); --iface names an interface", self.wanted())
        }))
    }

    /// Default routes, those of the first family first, but before them those over a link by which the other family leaves
    /// as well.
    fn ways_out(&self) -> Vec<(HostRoute, &HostLink)> {
        let defaults = |family: &Family| self.facts.defaults(*family);
        let lacking = |route: &HostRoute| {
            self.families.iter().filter(|f| !defaults(f).iter().any(|other| other.link == route.link)).count()
        };
        let mut routes: Vec<_> = self.families.iter().flat_map(defaults).collect();
        routes.sort_by_key(lacking);
        let over = |route: HostRoute| {
            let link = self.underlay().find(|link| link.index == route.link)?;
            Some((route, link))
        };
        routes.into_iter().filter_map(over).collect()
    }

    /// The source addresses of a link's default routes. On a routed host they are on loopback.
    fn sources(&self, link: &HostLink) -> Vec<IpAddr> {
        let of_family = |family: &Family| {
            let routes = self.facts.defaults(*family).into_iter().filter(|route| route.link == link.index);
            routes.filter_map(|route| route.source).find(|source| self.facts.has_address(*source))
        };
        self.families.iter().filter_map(of_family).collect()
    }

    /// A link that was asked for. No packet leaves by loopback: there its addresses count, and the link of the best default
    /// route carries the packets and gives the MTU.
    fn asked(&self, link: &HostLink, given: &[IpAddr], why: String) -> Attempt {
        let ways_out = if link.loopback { self.ways_out() } else { Vec::new() };
        let Some((_, out)) = ways_out.first() else { return self.take(link, given, why) };
        let choice = self.take(link, given, format!("{why}, by the default route over {}", out.name))?;
        let External { local, public, .. } = choice.external;
        let external = External { link: out.name, index: out.index, mtu: out.mtu, local, public };
        Ok(Choice { external, ..choice })
    }

    /// The route, and that there are others where that is so.
    fn best_default(&self, route: &HostRoute) -> String {
        let family = Family::of(&route.dst.ip());
        let others: Vec<_> =
            self.facts.defaults(family).into_iter().filter(|r| r.link != route.link).collect();
        let mut links: Vec<_> =
            others.iter().filter_map(|r| self.facts.link(r.link)).map(|l| l.name.to_string()).collect();
        links.dedup();
        match links.as_slice() {
            [] => "default route".to_owned(),
            links => format!("default route with metric {}, before {}", route.metric, links.join(", ")),
        }
    }

    /// This link with these addresses, and its best ones where none is given.
    fn take(&self, link: &HostLink, given: &[IpAddr], why: String) -> Attempt {
        if link.mtu == 0 {
            return Err(format!("{why}: {} has no MTU", link.name));
        }
        let mut choice = Choice {
            external: External {
                link: link.name,
                index: link.index,
                mtu: link.mtu,
                local: PublicAddrs::default(),
                public: PublicAddrs::default(),
            },
            why,
        };
        let (mut local, mut public) = (Vec::new(), Vec::new());
        for family in self.families {
            let asked = self.wish.public.family(*family);
            let address = self.local(link, *family, asked, given);
            let address = address
                .ok_or_else(|| format!("{}: {} has no usable {family} address", choice.why, link.name))?;
            local.push(address);
            public.push(asked.unwrap_or(address));
            if let Some(asked) = asked.filter(|asked| *asked != address) {
                let _ = write!(choice.why, ", {asked} (not on this host) stands for {address}");
            }
        }
        choice.external.local = local.into_iter().collect();
        choice.external.public = public.into_iter().collect();
        Ok(choice)
    }

    /// Packets leave from the public address if it is ours: the kernel drops what has any other host's source.
    fn local(
        &self,
        link: &HostLink,
        family: Family,
        asked: Option<IpAddr>,
        given: &[IpAddr],
    ) -> Option<IpAddr> {
        let asked = asked.filter(|asked| self.facts.has_address(*asked));
        let given = || given.iter().copied().find(|address| Family::of(address) == family);
        asked.or_else(given).or_else(|| self.usable(link, family).first().map(|a| a.net.ip()))
    }

    /// The addresses of a link that may be used, best first.
    fn usable(&self, link: &HostLink, family: Family) -> Vec<&HostAddress> {
        let may = |a: &&HostAddress| {
            Family::of(&a.net.ip()) == family && !a.deprecated && !a.tentative && !a.net.ip().is_loopback()
        };
        let mut addresses: Vec<_> = self.facts.addresses_of(link.index).filter(may).collect();
        addresses.sort_by_key(|a| (!a.global || is_link_local(a.net.ip()), !a.permanent, a.temporary));
        addresses
    }

    fn underlay(&self) -> impl Iterator<Item = &HostLink> + Clone {
        let overlay = |link: &HostLink| OVERLAY.iter().any(|name| link.name.as_str().starts_with(name));
        self.facts.links.iter().filter(move |link| !link.loopback && !overlay(link))
    }

    fn bearer(&self, address: IpAddr) -> Option<&HostLink> {
        let found = self.facts.addresses.iter().find(|a| a.net.ip() == address)?;
        self.facts.link(found.link)
    }

    fn wanted(&self) -> String {
        self.families.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
    }
}

/// Whether a host that had an address for more than its own link would be left with one for that alone.
pub(crate) fn falls_back(old: PublicAddrs, new: PublicAddrs) -> bool {
    let narrow = |address: Option<IpAddr>| address.is_some_and(is_link_local);
    Family::ALL
        .into_iter()
        .any(|f| old.family(f).is_some() && !narrow(old.family(f)) && narrow(new.family(f)))
}

/// Interfaces besides this one that have a global address of every family, each with its addresses.
pub(crate) fn candidates(facts: &Facts, families: &[Family], besides: u32) -> Vec<String> {
    let wish = IfaceWish::default();
    let search = Search { facts, wish: &wish, families };
    let global = |link: &HostLink, family: &Family| {
        let found = search.usable(link, *family).into_iter().find(|a| a.global && !is_link_local(a.net.ip()));
        found.map(|a| a.net.ip().to_string())
    };
    let one = |link: &HostLink| {
        let addresses: Option<Vec<_>> = families.iter().map(|family| global(link, family)).collect();
        Some(format!("{} ({})", link.name, addresses?.join(", ")))
    };
    search.underlay().filter(|link| link.index != besides).filter_map(one).take(LISTED).collect()
}

pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// An address that the Internet has no route to: what a NAT translates from.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        // The shared range is that of providers' NAT (RFC 6598).
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            address.is_private() || address.is_link_local() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// The interfaces with their addresses.
fn listing(facts: &Facts) -> String {
    let one = |link: &HostLink| {
        let addresses: Vec<_> = facts.addresses_of(link.index).map(|a| a.net.ip().to_string()).collect();
        let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
        format!("{} ({addresses})", link.name)
    };
    let links: Vec<_> = facts.links.iter().filter(|link| !link.loopback).map(one).collect();
    match links.len() {
        0 => "no interface but loopback".to_owned(),
        n if n > LISTED => format!("{} and {} more", links[..LISTED].join(", "), n - LISTED),
        _ => links.join(", "),
    }
}

/// Expressions as their texts.
mod regexes {
    use regex_lite::Regex;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(regexes: &[Regex], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(regexes.iter().map(Regex::as_str))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Regex>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| Regex::new(text).map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests;
