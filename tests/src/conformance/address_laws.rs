//! Laws about addresses: 2, 3, and what a host looks like.

use nix::errno::Errno;

use super::*;

pub(super) const LAWS: &[Law] = &[
    ("2: an onlink route in a namespace that never had an IPv4 address is refused", never_an_address),
    ("a namespace that never had an address can be read", never_read),
    ("3: the last IPv4 address of a link takes its IPv4 routes and neighbours along", last_address),
    ("3: an address that is not there can't be deleted", missing_address),
    ("24: an address keeps its scope when it is replaced", narrow),
    ("an address that is there already is no error", address_twice),
    ("an IPv6 address brings its connected prefix, an IPv4 host address none", connected_prefix),
];

fn never_an_address(lab: &mut dyn Lab) {
    lab.hand(&Act::AddLink(eth0(), mac(0xee))).unwrap();
    lab.hand(&Act::SetUp(eth0(), true)).unwrap();
    let index = lab.kernel().host().unwrap().link_named(eth0()).unwrap().index;
    put(lab, vxlan(V4, index)).unwrap();
    put(lab, Object::Up(tunnel(V4))).unwrap();
    assert_eq!(put(lab, route(V4, 2)), Err(Errno::EINVAL));
    put(lab, address(V4)).unwrap();
    assert_eq!(put(lab, route(V4, 2)), Ok(()));
}

fn never_read(lab: &mut dyn Lab) {
    assert!(state(lab).is_empty());
    assert!(lab.kernel().host().unwrap().routes.is_empty());
}

fn last_address(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let second = Address { net: net("10.244.1.77/32"), ..address(V4) };
    put(lab, second).unwrap();
    put(lab, route(V4, 2)).unwrap();
    put(lab, neigh(V4, 2)).unwrap();
    put(lab, fdb(V4, 2)).unwrap();
    delete(lab, address(V4)).unwrap();
    assert!(has(lab, route(V4, 2)) && has(lab, neigh(V4, 2)), "there is another address");
    delete(lab, second).unwrap();
    assert!(!has(lab, route(V4, 2)) && !has(lab, neigh(V4, 2)));
    assert!(has(lab, fdb(V4, 2)), "a forwarding entry does not need one");
}

fn missing_address(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let other = net("10.244.9.9/32");
    assert_eq!(lab.hand(&Act::DeleteAddress(tunnel(V4), other)), Err(Errno::EADDRNOTAVAIL));
    assert_eq!(delete(lab, Address { net: other, ..address(V4) }), Ok(()), "what was to go is gone");
}

fn narrow(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let second = Address { net: net("10.244.1.77/32"), narrow: true, ..address(V4) };
    lab.hand(&Act::AddNarrow(second.link, second.net)).unwrap();
    assert!(has(lab, second));
    let wide = Address { narrow: false, ..second };
    assert_eq!(put(lab, wide), Ok(()));
    assert!(has(lab, second), "without an error, and without effect");
    delete(lab, second).unwrap();
    put(lab, wide).unwrap();
    assert!(has(lab, wide));
}

fn address_twice(lab: &mut dyn Lab) {
    for six in [V4, V6] {
        if six {
            let index = lab.kernel().host().unwrap().link_named(eth0()).unwrap().index;
            put(lab, vxlan(six, index)).unwrap();
            put(lab, address(six)).unwrap();
        } else {
            tunnel_end(lab, six);
        }
        assert_eq!(put(lab, address(six)), Ok(()));
        assert!(has(lab, address(six)));
    }
}

fn connected_prefix(lab: &mut dyn Lab) {
    let index = underlay(lab);
    for six in [V4, V6] {
        put(lab, vxlan(six, index)).unwrap();
        put(lab, address(six)).unwrap();
        put(lab, Object::Up(tunnel(six))).unwrap();
        let routes = routes_to(lab, address(six).net);
        assert_eq!(routes.len(), usize::from(six), "{routes:?}");
        assert!(routes.iter().all(|r| r.protocol == 2 && r.metric == 256 && r.via.is_none()), "{routes:?}");
    }
}
