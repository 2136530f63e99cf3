//! Laws about routes, neighbours and forwarding entries: 2, 6, 7, 9, 10, 14, 18, 19, 20.

use backends::RouteKind;
use nix::errno::Errno;

use super::*;

pub(super) const LAWS: &[Law] = &[
    (
        "2: an IPv6 onlink route whose gateway another link's route covers is refused, and made all the same",
        covered_gateway,
    ),
    ("2: an IPv6 route changes its link in one step of ours", six_changes_link),
    ("6: replace takes over the same prefix and metric whatever the protocol", takes_over),
    ("6: a peer's route changes from tunnel to underlay and back", tunnel_and_back),
    ("7: IPv6 metric 0 reads back as 1024", metric_zero),
    ("9: a forwarding entry without the self flag is refused", self_flag),
    ("10: what is missing can't be deleted, and its error says so", missing),
    ("14: routes that differ only in scope are one to replace", one_to_replace),
    ("14: routes that differ only in scope are two to delete", two_to_delete),
    ("18: replacing a route by its twin from behind is refused", twin),
    ("19: a gateway must be somebody else, and on the wire", gateways),
    ("20: an IPv4 delete without metric takes the first route that fits", any_metric),
    (
        "22: a forwarding entry over another port is replaced in place, and not deleted by its destination",
        other_port,
    ),
    (
        "22: a forwarding entry to a next hop object is neither replaced nor deleted by a destination",
        next_hop_entry,
    ),
    ("22: only the address of everybody takes a second destination", second_end),
    ("25: an IPv4 route with a next hop object can't be deleted by its gateway", next_hop_route),
    ("two IPv6 gateway routes of one metric are replaced together", six_multipath),
    ("a blackhole needs no link", blackhole),
    ("a neighbour and a forwarding entry are replaced in place", replaced),
];

fn covered_gateway(lab: &mut dyn Lab) {
    tunnel_end(lab, V6);
    let wider = Route { dst: net("fd00:244::/48"), ..foreign(V6, 2) };
    lab.hand(&Act::PutRoute(wider, RoutePlace::Alone)).unwrap();
    assert_eq!(lab.hand(&Act::PutRoute(route(V6, 2), RoutePlace::Replace)), Err(Errno::EINVAL));
    assert_eq!(put(lab, route(V6, 2)), Ok(()));
    let all: Vec<_> =
        state(lab).iter().filter(|o| matches!(o, Object::Route(r) if r.protocol != 2)).cloned().collect();
    assert_eq!(all, [wider.object(), route(V6, 2).object()], "the host route to the gateway is away again");
}

fn six_changes_link(lab: &mut dyn Lab) {
    tunnel_end(lab, V6);
    lab.hand(&Act::PutRoute(foreign(V6, 2), RoutePlace::Alone)).unwrap();
    assert_eq!(lab.hand(&Act::PutRoute(route(V6, 2), RoutePlace::Replace)), Err(Errno::EINVAL));
    assert_eq!(put(lab, route(V6, 2)), Ok(()));
    assert_eq!(routes_to(lab, subnet(V6, 2)), [route(V6, 2)]);
}

fn takes_over(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    for (six, protocol) in [(V4, 3), (V4, 4), (V6, 3), (V6, 186)] {
        let theirs = Route { protocol, ..foreign(six, 2) };
        lab.hand(&Act::PutRoute(theirs, RoutePlace::Alone)).unwrap();
        let ours = Route { protocol: ROUTE_PROTOCOL, ..theirs };
        assert_eq!(put(lab, ours), Ok(()));
        assert_eq!(routes_to(lab, subnet(six, 2)), [ours]);
        delete(lab, ours).unwrap();
    }
}

fn tunnel_and_back(lab: &mut dyn Lab) {
    let link = tunnel_end(lab, V4);
    let LinkKind::Vxlan(kind) = link.kind;
    put(lab, vxlan(V6, kind.parent)).unwrap();
    put(lab, address(V6)).unwrap();
    put(lab, Object::Up(tunnel(V6))).unwrap();
    for six in [V4, V6] {
        let direct = Route { protocol: ROUTE_PROTOCOL, ..foreign(six, 2) };
        for want in [route(six, 2), direct, route(six, 2)] {
            assert_eq!(put(lab, want), Ok(()));
            assert_eq!(routes_to(lab, subnet(six, 2)), [want]);
        }
    }
}

fn metric_zero(lab: &mut dyn Lab) {
    underlay(lab);
    lab.hand(&Act::PutRoute(foreign(V6, 2), RoutePlace::Alone)).unwrap();
    lab.hand(&Act::PutRoute(foreign(V4, 2), RoutePlace::Alone)).unwrap();
    let metrics = [V6, V4].map(|six| routes_to(lab, subnet(six, 2))[0].metric);
    assert_eq!(metrics, [1024, 0]);
}

fn self_flag(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    assert_eq!(lab.hand(&Act::PutFdb(fdb(V4, 2), false)), Err(Errno::EOPNOTSUPP));
    assert_eq!(lab.hand(&Act::PutFdb(fdb(V4, 2), true)), Ok(()));
}

fn missing(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    assert_eq!(lab.hand(&Act::DeleteRoute(route(V4, 2))), Err(Errno::ESRCH));
    assert_eq!(lab.hand(&Act::DeleteRoute(foreign(V6, 2))), Err(Errno::ESRCH));
    assert_eq!(lab.hand(&Act::DeleteNeigh(neigh(V4, 2))), Err(Errno::ENOENT));
    assert_eq!(lab.hand(&Act::DeleteFdb(fdb(V4, 2))), Err(Errno::ENOENT));
    put(lab, fdb(V4, 2)).unwrap();
    let elsewhere = Fdb { dst: ip("172.16.0.77"), ..fdb(V4, 2) };
    assert_eq!(
        lab.hand(&Act::DeleteFdb(elsewhere)),
        Ok(()),
        "the address is known, its other end is not looked at"
    );
    assert!(has(lab, fdb(V4, 2)));
    let gone: [Object; 3] = [route(V4, 2).object(), neigh(V4, 2).object(), fdb(V4, 3).object()];
    for object in gone {
        assert_eq!(delete(lab, object), Ok(()), "for the daemon that is success");
    }
}

fn one_to_replace(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    put(lab, route(V4, 2)).unwrap();
    let other = Route { scope: 8, ..route(V4, 2) };
    assert_eq!(put(lab, other), Ok(()));
    assert_eq!(routes_to(lab, subnet(V4, 2)), [other]);
}

fn two_to_delete(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let other = Route { scope: 8, ..route(V4, 2) };
    put(lab, route(V4, 2)).unwrap();
    assert_eq!(lab.hand(&Act::DeleteRoute(other)), Err(Errno::ESRCH));
    assert_eq!(lab.hand(&Act::PutRoute(other, RoutePlace::Alone)), Err(Errno::EEXIST));
    assert_eq!(lab.hand(&Act::PutRoute(other, RoutePlace::First)), Ok(()));
    assert_eq!(routes_to(lab, subnet(V4, 2)), [other, route(V4, 2)]);
    assert_eq!(lab.hand(&Act::DeleteRoute(other)), Ok(()));
    assert_eq!(routes_to(lab, subnet(V4, 2)), [route(V4, 2)]);
}

fn twin(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    lab.hand(&Act::PutRoute(foreign(V4, 2), RoutePlace::Alone)).unwrap();
    lab.hand(&Act::PutRoute(route(V4, 2), RoutePlace::Last)).unwrap();
    assert_eq!(routes_to(lab, subnet(V4, 2)), [foreign(V4, 2), route(V4, 2)]);
    assert_eq!(put(lab, route(V4, 2)), Err(Errno::EEXIST));
    assert_eq!(put(lab, foreign(V4, 2)), Ok(()), "the first one as it is");
}

fn gateways(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let ours = Route { via: Some(ip("172.16.0.1")), ..foreign(V4, 2) };
    assert_eq!(put(lab, ours), Ok(()), "odd, but so it is");
    assert_eq!(put(lab, Route { via: Some(address(V4).net.ip()), ..route(V4, 3) }), Err(Errno::EINVAL));
    assert_eq!(put(lab, Route { via: Some(ip("198.51.100.1")), ..ours }), Err(Errno::ENETUNREACH));
    let six = foreign(V6, 2);
    assert_eq!(put(lab, Route { via: Some(ip("fd00:172::1")), ..six }), Err(Errno::EINVAL));
    assert_eq!(put(lab, Route { via: Some(ip("2001:db8::1")), ..six }), Err(Errno::EHOSTUNREACH));
    assert_eq!(put(lab, Route { scope: 253, ..route(V4, 2) }), Err(Errno::EINVAL), "no scope for a gateway");
}

fn any_metric(lab: &mut dyn Lab) {
    underlay(lab);
    let worse = Route { metric: 50, ..foreign(V4, 2) };
    lab.hand(&Act::PutRoute(worse, RoutePlace::Alone)).unwrap();
    assert_eq!(lab.hand(&Act::DeleteRoute(Route { metric: 51, ..worse })), Err(Errno::ESRCH));
    assert_eq!(lab.hand(&Act::DeleteRoute(foreign(V4, 2))), Ok(()));
    assert!(routes_to(lab, subnet(V4, 2)).is_empty());
}

fn ends(lab: &mut dyn Lab) -> Vec<Fdb> {
    state(lab).iter().filter_map(|o| if let Object::Fdb(f) = o { Some(*f) } else { None }).collect()
}

fn other_port(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let odd = Fdb { diverted: true, ..fdb(V4, 2) };
    lab.hand(&Act::PutFdb(odd, true)).unwrap();
    assert_eq!(ends(lab), [odd]);
    assert_eq!(lab.hand(&Act::DeleteFdb(fdb(V4, 2))), Ok(()), "as if it had been done");
    assert_eq!(ends(lab), [odd]);
    lab.hand(&Act::PutFdb(fdb(V4, 2), true)).unwrap();
    assert_eq!(ends(lab), [fdb(V4, 2)]);
    lab.hand(&Act::PutFdb(odd, true)).unwrap();
    delete(lab, odd).unwrap();
    assert!(ends(lab).is_empty());
}

fn next_hop_entry(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let odd = Fdb { diverted: true, dst: ip("0.0.0.0"), ..fdb(V4, 2) };
    lab.hand(&Act::PutFdb(odd, true)).unwrap();
    assert_eq!(ends(lab), [odd]);
    assert_eq!(put(lab, fdb(V4, 2)), Ok(()), "as if it had been done");
    assert_eq!(ends(lab), [odd]);
    delete(lab, odd).unwrap();
    put(lab, fdb(V4, 2)).unwrap();
    assert_eq!(ends(lab), [fdb(V4, 2)]);
}

fn second_end(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let other = ip("172.16.0.77");
    lab.hand(&Act::PutFdb(fdb(V4, 2), true)).unwrap();
    lab.hand(&Act::AppendFdb(Fdb { dst: other, ..fdb(V4, 2) })).unwrap();
    assert_eq!(ends(lab), [fdb(V4, 2)]);
    delete(lab, fdb(V4, 2)).unwrap();
    let all = [fdb(V4, 2).dst, other].map(|dst| Fdb { dst, mac: Mac::default(), ..fdb(V4, 2) });
    all.iter().for_each(|f| lab.hand(&Act::AppendFdb(*f)).unwrap());
    assert_eq!(ends(lab).len(), 2);
    all.iter().for_each(|f| delete(lab, *f).unwrap());
    assert!(ends(lab).is_empty());
}

fn next_hop_route(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let odd = Route { kind: RouteKind::Special, protocol: 4, ..foreign(V4, 2) };
    lab.hand(&Act::PutRoute(odd, RoutePlace::Alone)).unwrap();
    assert_eq!(routes_to(lab, subnet(V4, 2)), [odd]);
    assert_eq!(lab.hand(&Act::DeleteRoute(odd)), Err(Errno::ESRCH));
    assert_eq!(put(lab, route(V4, 2)), Ok(()), "replaced it is all the same");
    assert_eq!(routes_to(lab, subnet(V4, 2)), [route(V4, 2)]);
    let beside = Route { metric: 9, ..odd };
    lab.hand(&Act::PutRoute(beside, RoutePlace::Alone)).unwrap();
    assert_eq!(delete(lab, beside), Ok(()));
    assert_eq!(routes_to(lab, subnet(V4, 2)), [route(V4, 2)]);
}

fn six_multipath(lab: &mut dyn Lab) {
    tunnel_end(lab, V6);
    let second = Route { via: Some(ip("fd00:172::8")), ..foreign(V6, 2) };
    lab.hand(&Act::PutRoute(foreign(V6, 2), RoutePlace::Alone)).unwrap();
    lab.hand(&Act::PutRoute(second, RoutePlace::Last)).unwrap();
    assert_eq!(routes_to(lab, subnet(V6, 2)).len(), 2);
    assert_eq!(put(lab, route(V6, 2)), Ok(()));
    assert_eq!(routes_to(lab, subnet(V6, 2)), [route(V6, 2)]);
}

fn blackhole(lab: &mut dyn Lab) {
    for six in [V4, V6] {
        let hole = Route {
            kind: RouteKind::Blackhole,
            via: None,
            link: None,
            onlink: false,
            scope: 0,
            ..route(six, 2)
        };
        assert_eq!(put(lab, hole), Ok(()));
        assert_eq!(put(lab, hole), Ok(()), "again");
        assert_eq!(routes_to(lab, subnet(six, 2)), [hole]);
        assert_eq!(delete(lab, hole), Ok(()));
        assert!(routes_to(lab, subnet(six, 2)).is_empty());
    }
}

fn replaced(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    put(lab, fdb(V4, 2)).unwrap();
    put(lab, neigh(V4, 2)).unwrap();
    let moved = Fdb { dst: ip("172.16.0.77"), ..fdb(V4, 2) };
    let other = Neigh { mac: mac(77), ..neigh(V4, 2) };
    assert_eq!(put(lab, moved), Ok(()));
    assert_eq!(put(lab, other), Ok(()));
    let held: Vec<_> =
        state(lab).iter().filter(|o| matches!(o, Object::Fdb(_) | Object::Neigh(_))).cloned().collect();
    assert_eq!(held, [moved.object(), other.object()]);
}
