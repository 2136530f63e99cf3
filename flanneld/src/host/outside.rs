//! What stays outside of the cluster's network: a host whose own way out has an address inside of it is cut off, and what it
//! reaches by another interface is lost to its pods. One list for the daemon, for claims and for `flannelctl network`.

use std::net::IpAddr;

use backends::{External, Facts, HostLink, HostRoute};
use serde::Serialize;
use subnet_lease::{Family, Guarded, IpNetwork, NetworkConfig, NetworkPool, Subnets, overlap};

/// So many overlaps are named.
const NAMED: usize = 12;

/// Something of this host that lies inside a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Overlap {
    /// The cluster's network.
    pub(crate) network: IpNetwork,
    /// What lies inside, or covers it.
    pub(crate) with: IpNetwork,
    /// What that is, in words.
    pub(crate) what: String,
    /// How bad it is.
    pub(crate) kind: Kind,
}

/// What a network does to what it overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The host needs this address: it is cut off.
    Vital,
    /// The host is on it: no subnet that overlaps it is leased to this host.
    Connected,
    /// The host has a route to it: which one a packet takes is a question of lengths.
    Routed,
}

/// Addresses without which this host is cut off from the others, from the world or from the store.
pub(crate) fn guarded(facts: &Facts, external: Option<&External>, stores: &[IpAddr]) -> Vec<Guarded> {
    let own = Family::ALL.into_iter().filter_map(|family| external?.local.family(family));
    let own = own.map(|address| (address, "this host's own address"));
    let defaults = Family::ALL.into_iter().flat_map(|family| facts.defaults(family));
    let gateways = defaults.filter_map(|route| route.gateway).map(|address| (address, "this host's gateway"));
    let stores = stores.iter().filter(|address| !address.is_loopback());
    let stores = stores.map(|address| (*address, "the store's address"));
    let all = own.chain(gateways).chain(stores);
    all.map(|(address, what)| Guarded { address, what: what.to_owned() }).collect()
}

/// What this host reaches by its own interfaces: no subnet that overlaps it is leased anew. Pods' bridges of the subnets that
/// the host had are none of it.
pub(crate) fn connected(facts: &Facts, had: Option<Subnets>) -> Vec<IpNetwork> {
    let routes = facts.routes.iter().filter(|route| route.gateway.is_none() && route.dst.prefix() > 0);
    routes.filter(|route| !is_of_pods(facts, route.link, route.dst, had)).map(|route| route.dst).collect()
}

/// Everything of this host that the networks of a net-conf overlap: what cuts it off first, each once.
pub(crate) fn overlaps(
    network: &NetworkConfig,
    facts: &Facts,
    guarded: &[Guarded],
    had: Option<Subnets>,
) -> Vec<Overlap> {
    let mut found: Vec<Overlap> =
        network.pools().flat_map(|pool| of_pool(&pool, facts, guarded, had)).collect();
    found.sort_by_key(|overlap| overlap.kind);
    found.truncate(NAMED);
    found
}

fn of_pool(pool: &NetworkPool, facts: &Facts, guarded: &[Guarded], had: Option<Subnets>) -> Vec<Overlap> {
    let network = pool.network;
    let mut found: Vec<Overlap> = Vec::new();
    let mut add = |with: IpNetwork, what: String, kind: Kind| {
        if overlap(network, with) && !found.iter().any(|known| known.with == with) {
            found.push(Overlap { network, with, what, kind });
        }
    };
    for Guarded { address, what } in guarded {
        add(IpNetwork::from(*address), what.clone(), Kind::Vital);
    }
    for route in facts.routes.iter().filter(|route| route.dst.prefix() > 0) {
        let is_left = is_of_pods(facts, route.link, route.dst, had) || is_of_a_peer(pool, route);
        if let Some(link) = facts.link(route.link).filter(|_| !is_left) {
            match route.gateway {
                None => add(route.dst, format!("the network on {}", link.name), Kind::Connected),
                Some(gateway) => {
                    add(route.dst, format!("a route via {gateway} dev {}", link.name), Kind::Routed);
                }
            }
        }
    }
    for address in &facts.addresses {
        let net = IpNetwork::from(address.net.ip());
        let has_it = |r: &HostRoute| r.link == address.link && r.dst.prefix() > 0 && r.dst.contains(net.ip());
        let is_known = facts.routes.iter().any(has_it);
        if let Some(link) = facts.link(address.link)
            && !is_known
            && !is_of_pods(facts, address.link, net, had)
        {
            add(net, format!("an address of {}", link.name), Kind::Routed);
        }
    }
    found
}

impl Overlap {
    /// The finding, without a way out.
    pub(crate) fn sentence(&self) -> String {
        let Self { network, with, what, .. } = self;
        let is_one = with.prefix() == Family::of(&with.ip()).bits();
        let with = if is_one { with.ip().to_string() } else { with.to_string() };
        format!("the network {network} overlaps {with}, {what}")
    }
}

/// The overlay's own devices, and what lies in the subnets of this host.
fn is_of_pods(facts: &Facts, link: u32, net: IpNetwork, had: Option<Subnets>) -> bool {
    let is_tunnel = |link: &HostLink| link.tunnel.is_some() || link.name.as_str().starts_with("flannel");
    let within = |subnet: IpNetwork| subnet.contains(net.ip()) && subnet.prefix() <= net.prefix();
    facts.link(link).is_some_and(is_tunnel) || had.is_some_and(|had| had.iter().any(within))
}

/// Whether a flannel may have made it, for a peer on the same wire.
fn is_of_a_peer(pool: &NetworkPool, route: &HostRoute) -> bool {
    route.gateway.is_some() && pool.index(route.dst).is_some()
}

#[cfg(test)]
pub(super) mod tests {
    use backends::HostAddress;

    use super::*;

    pub(crate) fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn link(index: u32, name: &str, kind: &str) -> HostLink {
        HostLink { loopback: name == "lo", ..HostLink::plain(index, name.parse().unwrap(), kind) }
    }

    fn address(link: u32, text: &str) -> HostAddress {
        HostAddress::plain(link, net(text))
    }

    fn route(dst: &str, gateway: Option<&str>, link: u32) -> HostRoute {
        let gateway = gateway.map(|text| text.parse().unwrap());
        HostRoute { gateway, link, ..HostRoute::to(net(dst)) }
    }

    /// eth0 to the other hosts, a bridge of Docker, a static route, Services' addresses, a tunnel and a pods' bridge.
    pub(crate) fn host() -> Facts {
        let links = [
            (1, "lo", ""),
            (2, "eth0", ""),
            (3, "docker0", "bridge"),
            (4, "flannel.1", "vxlan"),
            (5, "cni0", "bridge"),
            (6, "kube-ipvs0", "dummy"),
        ];
        Facts {
            links: links.iter().map(|(index, name, kind)| link(*index, name, kind)).collect(),
            addresses: vec![
                address(2, "192.168.7.5/24"),
                address(3, "172.17.0.1/16"),
                address(4, "10.42.7.0/32"),
                address(5, "10.42.7.1/24"),
                address(6, "10.96.0.1/32"),
            ],
            routes: vec![
                route("0.0.0.0/0", Some("192.168.7.1"), 2),
                route("192.168.7.0/24", None, 2),
                route("172.17.0.0/16", None, 3),
                route("10.42.7.0/24", None, 5),
                route("10.42.8.0/24", Some("10.42.8.0"), 4),
                route("10.42.9.0/24", Some("192.168.7.9"), 2),
                route("10.50.0.0/16", Some("192.168.7.2"), 2),
            ],
            ..Facts::default()
        }
    }

    pub(crate) fn external() -> External {
        let local = ["192.168.7.5".parse().unwrap()].into_iter().collect();
        External { link: "eth0".parse().unwrap(), index: 2, mtu: 1500, local, public: local }
    }

    fn found(network: &str) -> Vec<String> {
        let json = format!(r#"{{"Network": "{network}", "SubnetLen": 24, "Backend": {{"Type": "vxlan"}}}}"#);
        let (network, _) = NetworkConfig::parse(json.as_bytes()).unwrap();
        let stores = ["127.0.0.1".parse().unwrap(), "10.60.0.4".parse().unwrap()];
        let facts = host();
        let guarded = guarded(&facts, Some(&external()), &stores);
        let had = Subnets::of([net("10.42.7.0/24")]);
        let overlaps = overlaps(&network, &facts, &guarded, had);
        let line = |o: &Overlap| format!("{}{}", if o.kind == Kind::Vital { "! " } else { "" }, o.sentence());
        overlaps.iter().map(line).collect()
    }

    #[test]
    fn each_overlap_with_this_host_is_named_and_what_cuts_it_off_comes_first() {
        let none: [&str; 0] = [];
        assert_eq!(found("10.42.0.0/16"), none, "the overlay of this very network is no overlap");
        assert_eq!(found("10.43.0.0/16"), none);
        assert_eq!(
            found("192.168.0.0/16"),
            [
                "! the network 192.168.0.0/16 overlaps 192.168.7.5, this host's own address",
                "! the network 192.168.0.0/16 overlaps 192.168.7.1, this host's gateway",
                "the network 192.168.0.0/16 overlaps 192.168.7.0/24, the network on eth0",
            ]
        );
        assert_eq!(
            found("10.60.0.0/16"),
            ["! the network 10.60.0.0/16 overlaps 10.60.0.4, the store's address"]
        );
        assert_eq!(
            found("172.16.0.0/12"),
            ["the network 172.16.0.0/12 overlaps 172.17.0.0/16, the network on docker0"]
        );
        assert_eq!(
            found("10.50.0.0/20"),
            ["the network 10.50.0.0/20 overlaps 10.50.0.0/16, a route via 192.168.7.2 dev eth0"]
        );
        assert_eq!(
            found("10.96.0.0/12"),
            ["the network 10.96.0.0/12 overlaps 10.96.0.1, an address of kube-ipvs0"]
        );
    }

    #[test]
    fn no_subnet_is_leased_from_what_an_interface_of_the_host_has() {
        let connected = |had| connected(&host(), had);
        let others = [net("192.168.7.0/24"), net("172.17.0.0/16")];
        assert_eq!(connected(Subnets::of([net("10.42.7.0/24")])), others);
        assert_eq!(connected(None), [&others[..], &[net("10.42.7.0/24")]].concat());
    }
}
