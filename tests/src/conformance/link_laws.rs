//! Laws about links: 1, 4, 5, 8, 13, 15, 17.

use backends::kernel::{KernelEvent, OpError};
use backends::rules::{RuleInput, RuleSettings, rules};
use backends::{LinkKind, Object, Op, diff};
use nix::errno::Errno;

use super::*;

pub(super) const LAWS: &[Law] = &[
    ("1: an object on a missing link is refused with ENODEV", missing_link),
    ("1: on a link that is down a route is refused, a neighbour and a forwarding entry are not", down_link),
    (
        "4: link down flushes routes, neighbours and IPv6 addresses, and link up restores nothing of ours",
        link_down,
    ),
    ("4: an underlay that goes down and up has only its connected IPv4 prefix left", underlay_flap),
    ("5: a link takes along all that hangs on it", link_deleted),
    ("5: an underlay takes along the tunnels over it", underlay_deleted),
    ("8: a second tunnel with the same VNI, port and family is refused", same_vni),
    ("8: what can change in place does, and the port does not", in_place),
    ("8: a tunnel may not be wider than its underlay allows", too_wide),
    ("13: every direct change is notified, settings are not", notified),
    ("15: an error inside a batch does not stop it", batch),
    ("17: a new MAC flushes the link's neighbours and nothing else", new_mac),
    ("23: a link that is up gets another name and loses nothing", renamed),
    ("23: a link under a stranger's name gets ours back in one pass", named_back),
    ("a whole wish of both families reads back as it was written", reads_back),
];

fn missing_link(lab: &mut dyn Lab) {
    underlay(lab);
    for six in [V4, V6] {
        let objects: [Object; 5] = [
            address(six).object(),
            Object::Up(tunnel(six)),
            fdb(six, 2).object(),
            neigh(six, 2).object(),
            route(six, 2).object(),
        ];
        for object in objects {
            assert_eq!(put(lab, object.clone()), Err(Errno::ENODEV), "{object:?}");
            assert_eq!(delete(lab, object.clone()), Ok(()), "{object:?}");
        }
        assert_eq!(put(lab, Object::Sysctl(tunnel(six), Sysctl::AcceptRa, 0)), Err(Errno::ENOENT));
        assert_eq!(put(lab, vxlan(six, 4711)), Err(Errno::ENODEV), "no such underlay");
    }
}

fn down_link(lab: &mut dyn Lab) {
    let parent = underlay(lab);
    for six in [V4, V6] {
        put(lab, vxlan(six, parent)).unwrap();
        put(lab, address(six)).unwrap();
        assert_eq!(put(lab, neigh(six, 2)), Ok(()));
        assert_eq!(put(lab, fdb(six, 2)), Ok(()));
        assert_eq!(put(lab, route(six, 2)), Err(Errno::ENETDOWN));
    }
}

fn link_down(lab: &mut dyn Lab) {
    for six in [V4, V6] {
        let link = if six { vxlan(six, again(lab)) } else { tunnel_end(lab, six) };
        if six {
            put(lab, link.clone()).unwrap();
            put(lab, address(six)).unwrap();
            put(lab, Object::Up(link.name)).unwrap();
        }
        peer(lab, six, 2);
        lab.hand(&Act::SetUp(link.name, false)).unwrap();
        for up in [false, true] {
            lab.hand(&Act::SetUp(link.name, up)).unwrap();
            assert_eq!(has(lab, Object::Up(link.name)), up);
            assert!(has(lab, link.clone()) && has(lab, fdb(six, 2)));
            assert!(!has(lab, route(six, 2)) && !has(lab, neigh(six, 2)));
            assert_eq!(has(lab, address(six)), !six);
        }
    }
}

/// The index of the underlay that is there.
fn again(lab: &mut dyn Lab) -> u32 {
    lab.kernel().host().unwrap().link_named(eth0()).unwrap().index
}

fn peer(lab: &mut dyn Lab, six: bool, n: u8) {
    put(lab, fdb(six, n)).unwrap();
    put(lab, neigh(six, n)).unwrap();
    put(lab, route(six, n)).unwrap();
}

fn underlay_flap(lab: &mut dyn Lab) {
    let index = underlay(lab);
    let default = Route { dst: net("0.0.0.0/0"), scope: 0, ..foreign(V4, 2) };
    lab.hand(&Act::PutRoute(default, RoutePlace::Alone)).unwrap();
    for six in [V4, V6] {
        lab.hand(&Act::PutRoute(foreign(six, 2), RoutePlace::Alone)).unwrap();
        assert!(has(lab, foreign(six, 2)));
    }
    lab.hand(&Act::SetUp(eth0(), false)).unwrap();
    let facts = lab.kernel().host().unwrap();
    assert!(!facts.on_link(index, ip("172.16.0.9")) && !facts.on_link(index, ip("fd00:172::9")));
    lab.hand(&Act::SetUp(eth0(), true)).unwrap();
    let facts = lab.kernel().host().unwrap();
    assert!(facts.on_link(index, ip("172.16.0.9")) && !facts.on_link(index, ip("fd00:172::9")));
    assert!(facts.has_address(ip("172.16.0.1")) && !facts.has_address(ip("fd00:172::1")));
    assert!(facts.defaults(subnet_lease::Family::V4).is_empty());
    assert!(!has(lab, foreign(V4, 2)) && !has(lab, foreign(V6, 2)));
}

fn link_deleted(lab: &mut dyn Lab) {
    let link = tunnel_end(lab, V4);
    peer(lab, V4, 2);
    assert_eq!(delete(lab, link.clone()), Ok(()));
    assert!(state(lab).is_empty(), "{:?}", state(lab));
    assert_eq!(delete(lab, link), Ok(()), "it is gone already");
}

fn underlay_deleted(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    peer(lab, V4, 2);
    lab.hand(&Act::DeleteLink(eth0())).unwrap();
    assert!(state(lab).is_empty(), "{:?}", state(lab));
}

fn same_vni(lab: &mut dyn Lab) {
    let link = tunnel_end(lab, V4);
    let other = Link { name: name("other"), mac: mac(2), ..link.clone() };
    assert!(other.clashes_with(&link));
    assert_eq!(put(lab, other.clone()), Err(Errno::EEXIST));
    assert_eq!(put(lab, Link { name: link.name, ..other.clone() }), Err(Errno::EEXIST), "one name twice");
    let LinkKind::Vxlan(kind) = link.kind;
    let apart = |kind| Link { kind: LinkKind::Vxlan(kind), ..other.clone() };
    assert_eq!(put(lab, apart(Vxlan { vni: 2, ..kind })), Ok(()));
    delete(lab, other.clone()).unwrap();
    assert_eq!(put(lab, apart(Vxlan { port: 8473, ..kind })), Ok(()));
    let six = vxlan(V6, again(lab));
    assert_eq!(put(lab, six), Ok(()), "the other family");
}

fn in_place(lab: &mut dyn Lab) {
    let have = tunnel_end(lab, V4);
    let LinkKind::Vxlan(kind) = have.kind;
    let kind = Vxlan { learning: true, local: Some(ip("172.16.0.99")), ..kind };
    let want = Link { mtu: 1400, mac: mac(9), tag: "else".to_owned(), kind: LinkKind::Vxlan(kind), ..have };
    assert!(have.can_become(&want));
    let op = Op::Put { want: want.clone().object(), have: Some(have.object()) };
    assert_eq!(step(lab, op), Ok(()));
    // With another network's tag it is not ours any more, so it is read by its new owner.
    let mine = Link { tag: tag(&NetworkId::default()), ..want };
    assert_eq!(step(lab, Op::Put { want: mine.clone().object(), have: Some(want.object()) }), Ok(()));
    assert!(has(lab, mine.clone()), "{:?}", state(lab));
    let other_port = Link { kind: LinkKind::Vxlan(Vxlan { port: 8473, ..kind }), ..mine.clone() };
    assert!(!mine.can_become(&other_port));
}

fn too_wide(lab: &mut dyn Lab) {
    let have = tunnel_end(lab, V4);
    let wide = Link { mtu: 1451, ..have.clone() };
    let change = Op::Put { want: wide.clone().object(), have: Some(have.clone().object()) };
    assert_eq!(step(lab, change), Err(Errno::EINVAL));
    assert!(has(lab, have.clone()));
    delete(lab, have.clone()).unwrap();
    assert_eq!(put(lab, wide), Ok(()), "at its birth it is cut to what fits");
    assert!(has(lab, have));
}

fn notified(lab: &mut dyn Lab) {
    let mut have = tunnel_end(lab, V4);
    let owner = owner();
    lab.kernel().own(&owner).unwrap();
    lab.notified();
    assert_eq!(lab.notified(), None);
    put(lab, fdb(V4, 2)).unwrap();
    assert_eq!(lab.notified(), Some(KernelEvent::Own), "forwarding entry");
    put(lab, neigh(V4, 2)).unwrap();
    assert_eq!(lab.notified(), Some(KernelEvent::Own), "neighbour");
    put(lab, route(V4, 2)).unwrap();
    assert_eq!(lab.notified(), Some(KernelEvent::Own), "route");
    put(lab, Object::Sysctl(have.name, Sysctl::AcceptRa, 0)).unwrap();
    assert_eq!(lab.notified(), None, "a setting");
    lab.hand(&Act::PutRoute(foreign(V4, 3), RoutePlace::Alone)).unwrap();
    assert_eq!(lab.notified(), Some(KernelEvent::Own), "a stranger's route inside the network");
    let outside = Route { dst: net("192.0.2.0/24"), ..foreign(V4, 3) };
    lab.hand(&Act::PutRoute(outside, RoutePlace::Alone)).unwrap();
    assert_eq!(lab.notified(), None, "a stranger's route elsewhere");
    delete(lab, route(V4, 2)).unwrap();
    assert_eq!(lab.notified(), Some(KernelEvent::Own), "a route goes");
    let narrow = Link { mtu: 1400, ..have.clone() };
    step(lab, Op::Put { want: narrow.clone().object(), have: Some(have.object()) }).unwrap();
    have = narrow;
    assert_eq!(lab.notified(), Some(KernelEvent::Host), "MTU");
    lab.hand(&Act::SetUp(have.name, false)).unwrap();
    assert_eq!(lab.notified(), Some(KernelEvent::Host), "link down");
    lab.hand(&Act::DeleteAddress(have.name, address(V4).net)).unwrap();
    assert_eq!(lab.notified(), Some(KernelEvent::Host), "address");
    delete(lab, have).unwrap();
    assert_eq!(lab.notified(), Some(KernelEvent::Host), "link");
}

fn batch(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let lost = Route { via: Some(ip("198.51.100.1")), onlink: false, ..route(V4, 3) };
    let wanted: [Object; 5] = [
        neigh(V4, 2).object(),
        route(V4, 2).object(),
        lost.object(),
        neigh(V4, 4).object(),
        route(V4, 4).object(),
    ];
    let ops: Vec<_> = wanted.iter().map(|o| Op::Put { want: o.clone(), have: None }).collect();
    let results = lab.kernel().apply(&ops);
    let refused: Vec<_> = results.iter().map(|r| r.as_ref().err().map(errno)).collect();
    assert_eq!(refused, [None, None, Some(Errno::ENETUNREACH), None, None]);
    assert!(has(lab, route(V4, 4)));
    // A link that can't be made takes what hangs on it along, and nothing else.
    let link = Link { name: tunnel(V6), ..vxlan(V6, 4711) };
    let wanted: [Object; 3] = [link.object(), neigh(V6, 2).object(), neigh(V4, 5).object()];
    let ops: Vec<_> = wanted.iter().map(|o| Op::Put { want: o.clone(), have: None }).collect();
    let results = lab.kernel().apply(&ops);
    assert!(
        matches!(results[..], [Err(OpError::Failed(_)), Err(OpError::Skipped(_)), Ok(())]),
        "{results:?}"
    );
}

fn new_mac(lab: &mut dyn Lab) {
    let have = tunnel_end(lab, V4);
    peer(lab, V4, 2);
    let want = Link { mac: mac(9), ..have.clone() };
    step(lab, Op::Put { want: want.object(), have: Some(have.object()) }).unwrap();
    assert!(!has(lab, neigh(V4, 2)));
    assert!(has(lab, fdb(V4, 2)) && has(lab, route(V4, 2)) && has(lab, address(V4)));
}

fn renamed(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    peer(lab, V4, 2);
    let before = state(lab);
    lab.hand(&Act::Rename(tunnel(V4), name("elsewhere"))).unwrap();
    let after = state(lab);
    assert_eq!(after.len(), before.len(), "{after:?}");
    assert!(after.links().all(|l| l.name == name("elsewhere")));
    lab.hand(&Act::Rename(name("elsewhere"), tunnel(V4))).unwrap();
    assert_eq!(state(lab), before);
}

fn named_back(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    peer(lab, V4, 2);
    let want = state(lab);
    lab.hand(&Act::Rename(tunnel(V4), name("elsewhere"))).unwrap();
    let plan = diff(&want, &state(lab), &owner());
    assert_eq!(plan.to_string(), "ip link set elsewhere name flannel.1\n");
    assert_eq!(lab.kernel().apply(&plan.ops), [Ok(())]);
    assert_eq!(state(lab), want);
}

fn reads_back(lab: &mut dyn Lab) {
    let parent = underlay(lab);
    let mut want = Vec::new();
    for six in [V4, V6] {
        let link = vxlan(six, parent);
        want.push(Object::Sysctl(link.name, Sysctl::AcceptRa, 0));
        want.push(Object::Up(link.name));
        want.extend([link.object(), address(six).object()]);
        for n in 2..5 {
            want.extend([fdb(six, n).object(), neigh(six, n).object(), route(six, n).object()]);
        }
    }
    let networks = vec![(net("10.244.0.0/16"), subnet(V4, 1)), (net("fd00:244::/48"), subnet(V6, 1))];
    let input = RuleInput {
        networks,
        settings: RuleSettings { masquerade: true, forward_rules: true, ..RuleSettings::default() },
        ..RuleInput::default()
    };
    want.extend(rules(&input).into_iter().map(|t| Object::Table(Box::new(t))));
    let want: KernelState = want.into_iter().collect();

    let plan = diff(&want, &state(lab), &owner());
    assert_eq!(plan.ops.len(), want.len());
    let results = lab.kernel().apply(&plan.ops);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let have = state(lab);
    let again = diff(&want, &have, &owner());
    assert!(again.is_empty(), "{again}");
    let kernels = |o: &&Object| matches!(o, Object::Route(r) if r.protocol == 2);
    assert_eq!(have.iter().filter(|o| !kernels(o)).cloned().collect::<KernelState>(), want);

    let gone = diff(&KernelState::default(), &have, &owner());
    let results = lab.kernel().apply(&gone.ops);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(state(lab).is_empty(), "{:?}", state(lab));
}
