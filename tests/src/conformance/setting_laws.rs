//! Laws about settings: 21, 26.

use backends::kernel::KernelEvent;
use subnet_lease::Family;

use super::*;

pub(super) const LAWS: &[Law] = &[
    ("21: forwarding is notified, and ip_forward sets that of every link", forwarding),
    ("21: advertisements are worth keeping only while the host does not forward", advertisements),
    (
        "26: a device's checksums are switched by ethtool, and the kernel notifies a change of the link",
        checksums,
    ),
    ("26: a link without IPv6 takes no IPv6 address", without_ipv6),
];

fn value(lab: &mut dyn Lab, link: IfName, name: Sysctl) -> Option<i32> {
    let own = lab.kernel().own(&owner()).unwrap();
    own.state.iter().find_map(|o| match o {
        Object::Sysctl(of, what, value) if (*of, *what) == (link, name) => Some(*value),
        _ => None,
    })
}

fn forwarding(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    let host = Object::Sysctl(eth0(), Sysctl::HostForward(Family::V4), 1);
    put(lab, Object::Sysctl(eth0(), Sysctl::HostForward(Family::V4), 0)).unwrap();
    lab.notified();
    for (set, link) in [(1, eth0()), (0, eth0()), (1, tunnel(V4)), (0, tunnel(V4))] {
        put(lab, Object::Sysctl(link, Sysctl::Forward, set)).unwrap();
        assert_eq!(value(lab, link, Sysctl::Forward), Some(set));
        assert!(is_notified(lab));
    }
    put(lab, host).unwrap();
    assert!(is_notified(lab));
    for link in [eth0(), tunnel(V4)] {
        assert_eq!(value(lab, link, Sysctl::Forward), Some(1));
    }
    put(lab, Object::Sysctl(eth0(), Sysctl::HostForward(Family::V6), 0)).unwrap();
    lab.notified();
    put(lab, Object::Sysctl(eth0(), Sysctl::HostForward(Family::V6), 1)).unwrap();
    assert!(is_notified(lab));
    assert_eq!(value(lab, eth0(), Sysctl::HostForward(Family::V6)), Some(1));
}

/// On the real kernel an address that a link makes for itself may be notified in the same moment, and is graver.
fn is_notified(lab: &mut dyn Lab) -> bool {
    matches!(lab.notified(), Some(KernelEvent::Own | KernelEvent::Host))
}

fn checksums(lab: &mut dyn Lab) {
    tunnel_end(lab, V4);
    assert_eq!(value(lab, tunnel(V4), Sysctl::TxChecksum), Some(1));
    for on in [0, 1] {
        lab.notified();
        put(lab, Object::Sysctl(tunnel(V4), Sysctl::TxChecksum, on)).unwrap();
        assert_eq!(value(lab, tunnel(V4), Sysctl::TxChecksum), Some(on));
        assert_eq!(lab.notified(), Some(KernelEvent::Host));
    }
}

fn without_ipv6(lab: &mut dyn Lab) {
    tunnel_end(lab, V6);
    let net = "fd00:244:9::/128".parse().unwrap();
    let address = Object::Address(Address { link: tunnel(V6), net, narrow: false });
    put(lab, Object::Sysctl(tunnel(V6), Sysctl::NoIpv6, 1)).unwrap();
    assert_eq!(put(lab, address.clone()), Err(Errno::EACCES));
    put(lab, Object::Sysctl(tunnel(V6), Sysctl::NoIpv6, 0)).unwrap();
    put(lab, address).unwrap();
}

fn advertisements(lab: &mut dyn Lab) {
    underlay(lab);
    for (forwards, accepts, shown) in [(0, 1, 1), (0, 0, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2)] {
        put(lab, Object::Sysctl(eth0(), Sysctl::HostForward(Family::V6), forwards)).unwrap();
        put(lab, Object::Sysctl(eth0(), Sysctl::AcceptRa, accepts)).unwrap();
        assert_eq!(value(lab, eth0(), Sysctl::RouterRa), Some(shown), "{forwards} {accepts}");
    }
}
