//! A strategy for each kind of input.

use std::net::IpAddr;
use std::time::Duration;

use backends::kernel::{KernelError, KernelEvent, OpError, Own, Touch, Who};
use backends::netlink::NetlinkError;
use backends::rules::{self, RuleInput, RuleSettings};
use backends::{
    Address, Facts, Fdb, Feature, HostAddress, HostLink, HostRoute, IfName, Link, LinkKind, Mac, Neigh,
    Object, Route, RouteKind, Sysctl, System, Vxlan,
};
use flanneld::core::{Changed, Hold, Input, Memory};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use subnet_lease::{
    BackendAttrs, Family, Lease, OwnLease, StoreError, StoreEvent, SubnetEnv, Subnets, VxlanData,
};

/// Any input of a core.
pub(super) fn input() -> impl Strategy<Value = Input> {
    let env =
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let touch = (object(), of("[a-z]{1,9}"), any::<u32>(), of(any::<u8>())).prop_map(
        |(o, program, port, protocol)| Touch {
            what: o.key(),
            by: (port % 2 == 0).then_some(Who { program, port, protocol }),
        },
    );
    let own =
        (vec(object(), 0..9), any::<bool>(), any::<u64>()).prop_map(|(objects, interrupted, unreadable)| {
            Own { state: objects.into_iter().collect(), interrupted, unreadable, ..Own::default() }
        });
    let changed = (name(), any::<[i32; 2]>()).prop_map(|(link, [before, ours])| Changed {
        link,
        name: Sysctl::Forward,
        before,
        ours,
    });
    let hold = (0u64..99, vec(subnets(), 0..3))
        .prop_map(|(until, vanished)| Hold { until: Duration::from_millis(until), vanished });
    let held = (lease(), of(0u64..99))
        .prop_map(|(lease, left)| Ok(OwnLease { lease, expires_in: left.map(Duration::from_millis) }));
    prop_oneof![
        Just(Input::Remembered(SubnetEnv::parse(env).unwrap())),
        (lease(), vec(lease(), 0..6), vec(changed, 0..3), of(hold), any::<bool>()).prop_map(
            |(own, peers, settings, hold, warm)| {
                let config = br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#.to_vec();
                Input::Recalled(Box::new(Memory { config, own, peers, settings, hold }), warm)
            }
        ),
        store_event().prop_map(Input::Store),
        select(vec![KernelEvent::Own, KernelEvent::Host, KernelEvent::Overrun]).prop_map(Input::Kernel),
        vec(touch, 0..4).prop_map(Input::Touched),
        Just(Input::File),
        facts().prop_map(|facts| Input::Host(Ok(facts))),
        kernel_error().prop_map(|error| Input::Host(Err(error))),
        own.prop_map(|own| Input::Own(Ok(own))),
        kernel_error().prop_map(|error| Input::Own(Err(error))),
        vec(op_result(), 0..9).prop_map(Input::Applied),
        held.prop_map(Input::Claimed),
        store_error().prop_map(|error| Input::Claimed(Err(error))),
    ]
}

fn name() -> impl Strategy<Value = IfName> {
    select(vec!["eth0", "flannel.1", "flannel-v6.1", "cni0"]).prop_map(|name| name.parse().unwrap())
}

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

fn net() -> impl Strategy<Value = IpNetwork> {
    (any::<IpAddr>(), 0u8..=128)
        .prop_map(|(ip, len)| IpNetwork::new(ip, len.min(if ip.is_ipv4() { 32 } else { 128 })).unwrap())
}

fn subnets() -> impl Strategy<Value = Subnets> {
    (any::<u32>(), 1u8..=31, any::<u128>(), 1u8..=127, 0usize..3).prop_map(|(a, la, b, lb, which)| {
        let v4 = IpNetwork::new(IpAddr::V4(a.into()), la).unwrap();
        let v6 = IpNetwork::new(IpAddr::V6(b.into()), lb).unwrap();
        let nets = [v4, v6].into_iter().enumerate().filter(|(n, _)| which != *n).map(|(_, net)| net);
        Subnets::of(nets).unwrap()
    })
}

fn lease() -> impl Strategy<Value = Lease> {
    let attrs = (0u32..9, any::<[u8; 6]>(), any::<bool>()).prop_map(|(vni, mac, plain)| {
        let data = VxlanData { vni, mac };
        if plain { BackendAttrs::plain("host-gw") } else { BackendAttrs::vxlan(Some(data), Some(data)) }
    });
    (subnets(), vec(any::<IpAddr>(), 0..3), attrs, of("[a-z\"\\\\é]{0,9}"), of(0u64..99), any::<u64>())
        .prop_map(|(subnets, public, attrs, node, ttl, epoch)| Lease {
            node,
            ttl: ttl.map(Duration::from_secs),
            epoch,
            ..Lease::new(subnets, public.into_iter().collect(), attrs)
        })
}

fn object() -> impl Strategy<Value = Object> {
    let vxlan = (any::<u32>(), any::<u16>(), of(any::<IpAddr>()), any::<u32>(), any::<bool>(), any::<bool>());
    let vxlan = vxlan.prop_map(|(vni, port, local, parent, learning, gbp)| {
        LinkKind::Vxlan(Vxlan { vni, port, local, parent, learning, gbp })
    });
    let link = (name(), vxlan, any::<u32>(), mac(), "\\PC{0,12}", any::<u32>());
    let route =
        (net(), any::<u32>(), any::<u8>(), of(any::<IpAddr>()), of(name()), any::<bool>(), any::<u8>());
    prop_oneof![
        link.prop_map(|(name, kind, mtu, mac, tag, master)| {
            Object::Link(Box::new(Link { name, kind, mtu, mac, tag, master }))
        }),
        (name(), any::<i32>()).prop_map(|(link, value)| Object::Sysctl(link, Sysctl::AcceptRa, value)),
        (name(), net(), any::<bool>()).prop_map(|(link, net, narrow)| Object::Address(Address {
            link,
            net,
            narrow
        })),
        name().prop_map(Object::Up),
        (name(), mac(), any::<IpAddr>(), any::<bool>())
            .prop_map(|(link, mac, dst, diverted)| Object::Fdb(Fdb { link, mac, dst, diverted })),
        (name(), any::<IpAddr>(), mac()).prop_map(|(link, address, mac)| Object::Neigh(Neigh {
            link,
            address,
            mac
        })),
        route.prop_map(|(dst, metric, kind, via, link, onlink, scope)| {
            let kind =
                [RouteKind::Unicast, RouteKind::Blackhole, RouteKind::Other(kind)][usize::from(kind % 3)];
            Object::Route(Route { dst, metric, kind, via, link, onlink, scope, protocol: scope })
        }),
        (net(), net()).prop_map(|(cluster, own)| {
            let networks =
                if cluster.is_ipv4() == own.is_ipv4() { (cluster, own) } else { (cluster, cluster) };
            let input = RuleInput {
                networks: vec![networks],
                settings: RuleSettings {
                    masquerade: true,
                    fully_random: true,
                    forward_rules: true,
                    ..RuleSettings::default()
                },
                ..RuleInput::default()
            };
            Object::Table(Box::new(rules::rules(&input).remove(0)))
        }),
    ]
}

fn facts() -> impl Strategy<Value = Facts> {
    let link = (1u32..9, name(), "[a-z]{0,6}", any::<u32>(), any::<[bool; 4]>(), 0u32..3);
    let link = link.prop_map(|(index, name, kind, mtu, [up, carrier, loopback, point_to_point], master)| {
        HostLink { index, name, kind, mtu, up, carrier, loopback, point_to_point, master, tunnel: None }
    });
    let address = (1u32..9, net(), of(any::<IpAddr>()), any::<[bool; 5]>());
    let address =
        address.prop_map(|(link, net, peer, [global, permanent, temporary, deprecated, tentative])| {
            HostAddress { link, net, peer, global, permanent, temporary, deprecated, tentative }
        });
    let route =
        (net(), of(any::<IpAddr>()), 1u32..9, any::<u32>(), of(any::<IpAddr>()), any::<u32>()).prop_map(
            |(dst, gateway, link, metric, source, mtu)| HostRoute { dst, gateway, link, metric, source, mtu },
        );
    let system = ("[0-9.]{0,5}", "[a-z]{0,5}", any::<[bool; 2]>()).prop_map(
        |(release, distribution, [lacks, has])| System {
            release,
            distribution,
            lacks: if lacks { vec![Feature::Vxlan] } else { Vec::new() },
            settings: if has { vec![Sysctl::BridgeCall(Family::V4)] } else { Vec::new() },
        },
    );
    let lists = (vec(link, 0..5), vec(address, 0..5), vec(route, 0..5));
    (lists, system, any::<[bool; 2]>()).prop_map(
        |((links, addresses, routes), system, [ipv6, interrupted])| Facts {
            reach: routes.first().copied(),
            links,
            addresses,
            routes,
            ipv6,
            system,
            interrupted,
        },
    )
}

fn kernel_error() -> impl Strategy<Value = KernelError> {
    let errno = || select(vec![Errno::EPERM, Errno::EEXIST, Errno::ENOBUFS, Errno::UnknownErrno]);
    prop_oneof![
        (errno(), of("\\PC{0,9}"))
            .prop_map(|(errno, text)| KernelError::Netlink(NetlinkError::Refused { errno, text })),
        errno().prop_map(|errno| KernelError::Netlink(NetlinkError::Unknown(errno))),
        errno().prop_map(|errno| KernelError::Netlink(NetlinkError::Socket(errno))),
        (errno(), "\\PC{0,9}").prop_map(|(errno, path)| KernelError::Sysctl { path, errno }),
    ]
}

fn op_result() -> impl Strategy<Value = Result<(), OpError>> {
    prop_oneof![
        Just(Ok(())),
        name().prop_map(|link| Err(OpError::Skipped(link))),
        kernel_error().prop_map(|error| Err(OpError::Failed(error))),
    ]
}

fn store_event() -> impl Strategy<Value = StoreEvent> {
    let net_conf = select(vec![r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#, "{}"]);
    prop_oneof![
        net_conf.prop_map(|text| StoreEvent::Config(text.into())),
        (vec(lease(), 0..6), vec(("\\PC{0,9}", "\\PC{0,9}"), 0..3), any::<bool>())
            .prop_map(|(leases, unreadable, foreign)| StoreEvent::Snapshot { leases, unreadable, foreign }),
        lease().prop_map(StoreEvent::Upsert),
        vec(subnets(), 0..3).prop_map(StoreEvent::Removed),
        ("\\PC{0,9}", "\\PC{0,9}").prop_map(|(key, reason)| StoreEvent::Unreadable { key, reason }),
        "\\PC{0,9}".prop_map(StoreEvent::Stale),
    ]
}

fn store_error() -> impl Strategy<Value = StoreError> {
    prop_oneof![
        "\\PC{0,9}".prop_map(StoreError::Unreachable),
        "\\PC{0,9}".prop_map(StoreError::Denied),
        (net(), any::<u128>()).prop_map(|(net, room)| StoreError::Full(net, room)),
        "\\PC{0,9}".prop_map(StoreError::Config),
    ]
}
