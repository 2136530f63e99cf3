//! What stands in our way and is not ours to touch: named, with the way out.

use ipnetwork::IpNetwork;
use subnet_lease::{Family, contains_net};

use crate::plan::{Op, Owner, Ownership, Wanted};
use crate::state::{
    Facts, IfName, KernelState, Key, Link, LinkKind, Object, ROUTE_PROTOCOL, Route, RouteKind, Sysctl,
};

/// So many sentences are enough.
const MOST: usize = 16;

/// One sentence for each stranger's link with a wanted name, and for each stranger's route that takes a part of a peer's
/// traffic. They depend on the dump; what a backend finds wrong with peers is said in its wish.
pub fn conflicts(want: &KernelState, have: &KernelState, owner: &Owner, facts: &Facts) -> Vec<String> {
    let links = want.links().filter_map(|link| taken_name(link, have, facts));
    // Hardly ever is there a route of others: what its ownership needs is gathered only then.
    let others = || have.iter().filter_map(other).filter(|r| r.protocol != ROUTE_PROTOCOL);
    let mut wanted = None;
    let narrower = others().filter_map(|route| {
        let peer = covering(want, route)?;
        let wanted = wanted.get_or_insert_with(|| Wanted::new(owner, want, have));
        let foreign = owner.ownership(&Object::Route(*route), wanted) == Ownership::Foreign;
        foreign.then(|| narrower(route, peer))
    });
    let holders = want.links().filter_map(|link| holder(link, have, facts));
    let pods = owner.pods.iter().flat_map(|link| lost_routes(*link, have, owner, facts));
    let bridges = Family::ALL.into_iter().filter_map(|family| bridge_call(family, want, have, owner, facts));
    links.chain(holders).chain(pods).chain(bridges).chain(narrower).take(MOST).collect()
}

/// The link that has what one of ours needs, while ours does not work.
fn holder(want: &Link, have: &KernelState, facts: &Facts) -> Option<String> {
    if have.get(&Key::Up(want.name)).is_some() {
        return None;
    }
    facts.links.iter().filter(|other| other.name != want.name).find_map(|other| {
        let taken = other.tunnel.as_ref()?.taken_from(&want.kind)?;
        let (ours, other) = (want.name, other.name);
        Some(format!(
            "{other} holds {taken}, which {ours} needs: `ip link delete {other}`, or give the network another VNI or \
             port in its configuration (flannelctl network set)"
        ))
    })
}

/// Connected routes to this host's own pods that somebody flushed: the kernel makes them once, with the address.
fn lost_routes(
    link: IfName,
    have: &KernelState,
    owner: &Owner,
    facts: &Facts,
) -> impl Iterator<Item = String> {
    let works = facts.link_named(link).filter(|link| link.up && link.carrier);
    let addresses = works.into_iter().flat_map(|link| facts.addresses_of(link.index));
    let lost = addresses.filter_map(move |address| {
        let net = IpNetwork::new(address.net.network(), address.net.prefix()).ok()?;
        let is_whole = net.prefix() == if net.is_ipv4() { 32 } else { 128 };
        let is_there = |o: &Object| matches!(o, Object::Route(r) if r.dst == net && r.link == Some(link));
        let is_lost = !is_whole && owner.inside_address(address.net.ip()) && !have.iter().any(is_there);
        is_lost.then(|| {
            let way = if net.is_ipv4() {
                format!("ip route add {net} dev {link} proto kernel scope link src {}", address.net.ip())
            } else {
                format!("ip -6 route add {net} dev {link} proto kernel metric 256")
            };
            format!("the route to this host's own pods is missing: `{way}` puts it back")
        })
    });
    lost.collect::<Vec<_>>().into_iter()
}

/// Pods of one bridge do not reach Services on their own host, and the switch would hit bridges of others, too.
fn bridge_call(
    family: Family,
    want: &KernelState,
    have: &KernelState,
    owner: &Owner,
    facts: &Facts,
) -> Option<String> {
    let is = |o: &&Object| matches!(o, Object::Sysctl(_, Sysctl::BridgeCall(f), _) if *f == family);
    let off = have.iter().find(is).filter(|o| matches!(o, Object::Sysctl(.., 0)))?;
    let others = facts.other_bridges(&owner.pods);
    if want.iter().any(|o| is(&o)) || others.is_empty() || !facts.on_bridge(&owner.pods) {
        return None;
    }
    let Object::Sysctl(link, name, _) = off else { return None };
    let others: Vec<_> = others.iter().map(ToString::to_string).collect();
    let path = name.path(*link);
    Some(format!(
        "{path} is 0, so a pod does not reach a Service whose pod is on the same host; it is left so because other \
         bridges have ports ({}): `echo 1 > {path}` switches it on for all bridges",
        others.join(", ")
    ))
}

fn taken_name(want: &Link, have: &KernelState, facts: &Facts) -> Option<String> {
    if have.links().any(|l| l.name == want.name) {
        return None;
    }
    let name: IfName = want.name;
    let what = match facts.link_named(name)?.kind.as_str() {
        "" => "a device".to_owned(),
        kind if LinkKind::is_word(kind) => format!("another network's {kind} device"),
        kind => format!("a {kind} that is not ours"),
    };
    Some(sentence(name, &what))
}

fn sentence(name: IfName, what: &str) -> String {
    format!(
        "{name} is {what}, and our tunnel device needs the name: `ip link set {name} name OTHER` or `ip link delete {name}`"
    )
}

fn other(object: &Object) -> Option<&Route> {
    if let Object::Route(route) = object { Some(route) } else { None }
}

/// The peer's subnet that this route is a part of.
fn covering(want: &KernelState, route: &Route) -> Option<IpNetwork> {
    let before = want.as_slice().partition_point(|o| match o {
        Object::Route(r) => r.dst <= route.dst,
        o => o.key() < Object::Route(*route).key(),
    });
    // The networks that begin at or before it, nearest first; peers' subnets do not overlap.
    let nearest = want.as_slice()[..before].iter().rev().map_while(other).next()?;
    let part = contains_net(nearest.dst, route.dst) && nearest.dst != route.dst;
    (part && nearest.kind == RouteKind::Unicast).then_some(nearest.dst)
}

fn narrower(route: &Route, peer: IpNetwork) -> String {
    let way_out = Op::Delete(Object::Route(*route)).to_string();
    format!("a route that is not ours takes a part of the traffic to peer {peer}: `{way_out}` ends that")
}

#[cfg(test)]
mod tests {
    use subnet_lease::NetworkId;

    use super::*;
    use crate::rules::RuleNames;
    use crate::state::{HostAddress, HostLink, Vxlan};

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn owner() -> Owner {
        Owner {
            network: NetworkId::default(),
            networks: vec![net("10.244.0.0/16")],
            names: vec![name("flannel.1")],
            external: Some(name("eth0")),
            pools: Vec::new(),
            pods: vec![name("cni0")],
            routers: Vec::new(),
            rules: RuleNames::Flannel,
            first_pass: false,
        }
    }

    fn link(index: u32, text: &str, kind: &str, master: u32) -> HostLink {
        HostLink { master, ..HostLink::plain(index, name(text), kind) }
    }

    fn address(link: u32, text: &str) -> HostAddress {
        HostAddress::plain(link, net(text))
    }

    fn named(want: Vec<Object>, have: Vec<Object>, facts: &Facts) -> Vec<String> {
        conflicts(&want.into_iter().collect(), &have.into_iter().collect(), &owner(), facts)
    }

    fn vxlan(vni: u32, port: u16) -> LinkKind {
        LinkKind::Vxlan(Vxlan {
            vni,
            port,
            local: "172.16.0.1".parse().ok(),
            parent: 2,
            learning: false,
            gbp: false,
        })
    }

    #[test]
    fn a_link_that_holds_our_port_or_vni_is_named_while_ours_is_not_up() {
        let ours = Object::Link(Box::new(Link {
            name: name("flannel.1"),
            kind: vxlan(1, 8472),
            mtu: 1450,
            mac: crate::state::Mac::default(),
            tag: String::new(),
            master: 0,
        }));
        let holder = |kind| Facts {
            links: vec![HostLink { tunnel: Some(kind), ..link(7, "cilium_vxlan", "vxlan", 0) }],
            ..Facts::default()
        };
        for (kind, expected) in [
            (vxlan(1, 8472), Some("VNI 1 of UDP port 8472")),
            (vxlan(0, 8472), Some("every VNI of UDP port 8472")),
            (vxlan(2, 8472), None),
            (vxlan(1, 4789), None),
        ] {
            let said = named(vec![ours.clone()], Vec::new(), &holder(kind));
            assert_eq!(said.len(), usize::from(expected.is_some()), "{said:?}");
            assert!(said.iter().all(|s| s.contains(expected.unwrap_or("?")) && s.contains("cilium_vxlan")));
            let works = vec![ours.clone(), Object::Up(name("flannel.1"))];
            assert!(named(vec![ours.clone()], works, &holder(kind)).is_empty(), "ours works");
        }
    }

    #[test]
    fn a_flushed_route_to_the_hosts_own_pods_is_named_with_the_line_that_puts_it_back() {
        let facts = Facts {
            links: vec![link(3, "cni0", "bridge", 0)],
            addresses: vec![address(3, "10.244.1.1/24")],
            ..Facts::default()
        };
        let said = named(Vec::new(), Vec::new(), &facts);
        let line = "`ip route add 10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1`";
        assert!(said.len() == 1 && said[0].contains(line), "{said:?}");
        let route = Route {
            link: Some(name("cni0")),
            kind: RouteKind::Unicast,
            metric: 0,
            protocol: 2,
            ..Route::blackhole(net("10.244.1.0/24"))
        };
        assert!(named(Vec::new(), vec![Object::Route(route)], &facts).is_empty());
        let mut down = facts;
        down.links[0].carrier = false;
        assert!(named(Vec::new(), Vec::new(), &down).is_empty(), "no pod is there");
    }

    #[test]
    fn bridges_of_others_are_named_where_the_hosts_bridge_switch_is_left_off() {
        let links = vec![
            link(3, "cni0", "bridge", 0),
            link(4, "virbr0", "bridge", 0),
            link(5, "vnet0", "tun", 4),
            link(6, "docker0", "bridge", 0),
        ];
        let facts = Facts { links, ..Facts::default() };
        let switch = |value| Object::Sysctl(name("eth0"), Sysctl::BridgeCall(Family::V4), value);
        let said = named(Vec::new(), vec![switch(0)], &facts);
        assert!(
            said.len() == 1 && said[0].contains("(virbr0)") && said[0].contains("`echo 1 > "),
            "{said:?}"
        );
        assert!(named(Vec::new(), vec![switch(1)], &facts).is_empty(), "it is on");
        assert!(named(vec![switch(1)], vec![switch(0)], &facts).is_empty(), "it is switched on");
        assert!(
            named(Vec::new(), vec![switch(0)], &Facts { links: facts.links[..1].to_vec(), ..facts })
                .is_empty()
        );
    }
}
