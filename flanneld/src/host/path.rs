//! The way between the hosts: what this host alone can see of faults on it.

use backends::{External, Facts, HostRoute};
use subnet_lease::{Family, PublicAddrs};

use super::iface::is_private;

/// The route to the other hosts that takes the smallest packets, where that is fewer bytes than the interface takes.
pub(crate) fn narrowest<'a>(facts: &'a Facts, external: &External) -> Option<&'a HostRoute> {
    let is_way = |route: &&HostRoute| {
        let family = Family::of(&route.dst.ip());
        let leads_to_hosts = route.dst.prefix() == 0 || route.gateway.is_none();
        route.link == external.index && leads_to_hosts && external.local.family(family).is_some()
    };
    let narrow = |route: &&HostRoute| route.mtu > 0 && route.mtu < external.mtu;
    facts.routes.iter().filter(is_way).filter(narrow).min_by_key(|route| route.mtu)
}

/// An address that was given and is not on this host, where no NAT seems to stand in between: one that translates makes a
/// private address a public one, outside of the network that the host is on.
pub(crate) fn strange_address(facts: &Facts, external: &External, asked: PublicAddrs) -> Option<String> {
    let External { public, local, index, link, .. } = external;
    Family::ALL.into_iter().find_map(|family| {
        let (public, local) = (public.family(family)?, local.family(family)?);
        if facts.has_address(public) || asked.family(family) != Some(public) {
            return None;
        }
        let why = if facts.on_wire(*index, public) {
            format!("it is in the network on {link}, where only its holder receives packets for it")
        } else if is_private(public) || !is_private(local) {
            format!("it is no public address that a NAT could translate to {local}")
        } else {
            return None;
        };
        let flag = if family == Family::V4 { "--public-ip" } else { "--public-ipv6" };
        Some(format!(
            "{flag}={public} is not an address of this host, and {why}: other hosts send to it in vain unless something \
             forwards it here; set {flag}={local}, or leave {flag} out"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::super::outside::tests::{external, host, net};
    use super::*;

    #[test]
    fn the_narrowest_route_to_other_hosts_is_found_and_no_other_one() {
        let mut facts = host();
        let eth0 = external();
        assert_eq!(narrowest(&facts, &eth0), None);
        let route = |dst: &str, link, mtu| HostRoute { link, mtu, ..HostRoute::to(net(dst)) };
        let elsewhere = HostRoute { gateway: "192.168.7.2".parse().ok(), ..route("10.50.0.0/16", 2, 1280) };
        facts.routes = vec![
            route("192.168.7.0/24", 2, 1400),
            route("0.0.0.0/0", 2, 1420),
            route("172.17.0.0/16", 3, 1280),
            route("fd00::/64", 2, 1280),
            elsewhere,
        ];
        assert_eq!(narrowest(&facts, &eth0), Some(&facts.routes[0]));
        assert_eq!(narrowest(&facts, &External { mtu: 1400, ..eth0 }), None);
    }

    #[test]
    fn a_public_address_that_no_nat_makes_is_named() {
        let said = |public: &str, local: &str, on_host: &str| {
            let asked: PublicAddrs = [public.parse().unwrap()].into_iter().collect();
            let external = External {
                public: asked,
                local: [local.parse().unwrap()].into_iter().collect(),
                ..external()
            };
            let mut facts = host();
            facts.addresses[0].net = net(on_host);
            strange_address(&facts, &external, asked).unwrap_or_default()
        };
        let private = "192.168.7.5";
        assert_eq!(said(private, private, "192.168.7.5/24"), "");
        assert_eq!(said("203.0.113.5", private, "192.168.7.5/24"), "", "behind a NAT");
        let same_wire = said("192.168.7.6", private, "192.168.7.5/24");
        assert!(
            same_wire.contains("in the network on eth0") && same_wire.contains("set --public-ip=192.168.7.5"),
            "{same_wire}"
        );
        assert!(said("10.1.2.3", private, "192.168.7.5/24").contains("no public address"));
        assert!(said("203.0.113.5", "198.51.100.7", "198.51.100.7/24").contains("no public address"));
    }
}
