//! Wrong bytes from the kernel: every reader of dumps and notifications gets the same bytes.

use std::sync::OnceLock;

use backends::kernel::KernelEvent;
use backends::kernel::real::nft::TableReader;
use backends::kernel::real::{EventFilter, HostReader, OwnReader, Unreadable};
use backends::netlink::address::add_address;
use backends::netlink::link::{self, PortMode};
use backends::netlink::netconf::read_forwarding;
use backends::netlink::netns::read_namespace_number;
use backends::netlink::route::{NewRoute, RT_TABLE_MAIN, RTN_UNICAST, RouteView, add_route, put_route};
use backends::netlink::{AF_BRIDGE, AF_INET, AF_INET6, Batch, Messages, neigh};
use backends::rules::RuleNames;
use backends::{KernelState, Mac, Owner, TableKey, diff};
use subnet_lease::{Family, NetworkId};

use super::Target;
use super::answers::encoded;

/// Dumps and notifications. A seed is a single message, and a case is a datagram of some messages.
pub fn target() -> Target {
    let recorded = Target { name: "netlink", cases: 300_000, seeds: Vec::new(), words: &[], read };
    let files = super::files(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/fuzz/netlink"));
    let bytes = files.iter().flat_map(|path| std::fs::read(path).unwrap_or_default()).collect::<Vec<_>>();
    let mut seeds = split(&bytes);
    seeds.extend(split(&written()));
    Target { seeds, ..recorded }
}

/// Every kind of request that we write: the kernel's messages have the same form.
fn written() -> Vec<u8> {
    let mut batch = Batch::new();
    let (mac, via) = (Mac([2, 0, 0, 0, 0, 9]), "172.16.0.9".parse().ok());
    for net in ["10.244.9.0/24", "fd00:244:0:9::/64"].into_iter().flat_map(str::parse) {
        let net: ipnetwork::IpNetwork = net;
        neigh::put_neighbour(&mut batch, 4, net.ip(), mac);
        neigh::put_fdb(&mut batch, 4, mac, net.ip());
        neigh::delete_neighbour(&mut batch, 4, net.ip());
        put_route(
            &mut batch,
            &RouteView {
                dst: net,
                table: u32::from(RT_TABLE_MAIN),
                tos: 0,
                protocol: 67,
                scope: 0,
                kind: RTN_UNICAST,
                metric: 9,
                gateway: Some(net.ip()),
                link: 4,
                onlink: true,
                source: via,
                cloned: false,
                special: false,
                mtu: 0,
            },
        );
        let gateway = Some(net.ip());
        let route =
            NewRoute { dst: net, gateway, link: 4, table: 0, scope: 0, metric: 7, mtu: 1400, advmss: 1360 };
        add_route(&mut batch, &route);
        add_address(&mut batch, 4, net);
    }
    if let Ok(name) = "flannel.1".parse() {
        link::mtu(link::mac(link::name(link::create(&mut batch, 1), name), mac), 1450);
        link::kind(&mut batch, "bridge");
        link::alias(link::change_named(&mut batch, name), "cni a b eth0");
        link::no_link_local(&mut batch);
        link::port_mode(&mut batch, PortMode { hairpin: true, isolated: true });
    }
    encoded(batch)
}

/// Single messages with their headers.
fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let Some(len) = bytes.first_chunk().map(|b| u32::from_ne_bytes(*b) as usize) {
        let Some(message) = bytes.get(..len).filter(|_| len >= 16) else { break };
        messages.push(message.to_vec());
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn read(bytes: &[u8]) {
    let owner = owner();
    // No message is shorter than 16 bytes, no next hop of a route shorter than 8, no expression of a rule
    // shorter than 4.
    let most = bytes.len() / 4;
    let mut own = OwnReader::new(owner, |index| format!("if{index}").parse().ok());
    let mut host = HostReader::default();
    for message in Messages::new(bytes) {
        own.link(&message);
        host.link(&message);
        host.address(&message);
    }
    let links = own.links();
    for message in Messages::new(bytes) {
        for (index, link) in links.iter().take(3) {
            own.address(&message, *index, *link);
            for family in [AF_INET, AF_INET6, AF_BRIDGE] {
                own.neighbour(&message, family, *index, *link);
            }
        }
        for family in [AF_INET, AF_INET6] {
            own.route(&message, family);
            host.route(&message, family);
        }
        let _ = (read_namespace_number(&message), read_forwarding(&message));
    }
    assert!(host.facts.links.len() + host.facts.addresses.len() + host.facts.routes.len() <= most);
    let (have, unreadable) = own.finish();
    assert!(have.len() <= 8 * most && unreadable.0 <= 8 * most as u64);
    // What was read can be compared with a wish, and the difference can be printed.
    let plan = diff(wish(), &have, owner);
    assert!(plan.ops.len() <= wish().len() + 2 * have.len());
    drop(plan.to_string());
    for family in Family::ALL {
        tables(bytes, family, most);
    }
    notifications(bytes);
}

fn tables(bytes: &[u8], family: Family, most: usize) {
    let mut reader = TableReader::new(TableKey { family, names: RuleNames::Flannel });
    for message in Messages::new(bytes) {
        reader.take(&message);
    }
    if let Some(table) = reader.finish() {
        assert!(table.chains.iter().map(|chain| 1 + chain.rules.len()).sum::<usize>() <= most);
        drop(table.to_string());
    }
}

fn notifications(bytes: &[u8]) {
    let filter = EventFilter { networks: owner().networks.clone(), ..EventFilter::default() };
    for netfilter in [false, true] {
        let mut unreadable = Unreadable::default();
        let event = filter.gravest(Messages::new(bytes), netfilter, None, &mut unreadable);
        // An unreadable message may be about anything, unless it was not read at all.
        let looked_at = !matches!(event, Some(KernelEvent::Host));
        assert!(unreadable.0 == 0 || !looked_at || event == Some(KernelEvent::Overrun), "{event:?}");
    }
}

fn owner() -> &'static Owner {
    static OWNER: OnceLock<Owner> = OnceLock::new();
    OWNER.get_or_init(|| Owner {
        network: NetworkId::default(),
        networks: ["10.244.0.0/16", "fd00:244::/48"].into_iter().flat_map(str::parse).collect(),
        names: ["flannel.1", "flannel-v6.1"].into_iter().flat_map(str::parse).collect(),
        external: "eth0".parse().ok(),
        pools: Vec::new(),
        pods: Vec::new(),
        routers: Vec::new(),
        rules: RuleNames::Flannel,
        first_pass: true,
    })
}

/// The state of the recorded host at the time of the recording.
fn wish() -> &'static KernelState {
    static WISH: OnceLock<KernelState> = OnceLock::new();
    WISH.get_or_init(|| {
        let mut reader = OwnReader::new(owner(), |_| "eth0".parse().ok());
        let read = |name: &str| {
            let path = format!("{}/golden/fuzz/netlink/{name}.bin", env!("CARGO_MANIFEST_DIR"));
            std::fs::read(path).unwrap_or_default()
        };
        Messages::new(&read("links")).for_each(|message| reader.link(&message));
        for (family, name) in [(AF_INET, "neighbours-v4"), (AF_INET6, "neighbours-v6"), (AF_BRIDGE, "fdb")] {
            for (index, link) in reader.links() {
                Messages::new(&read(name)).for_each(|m| reader.neighbour(&m, family, index, link));
            }
        }
        for (family, name) in [(AF_INET, "routes-v4"), (AF_INET6, "routes-v6")] {
            Messages::new(&read(name)).for_each(|message| reader.route(&message, family));
        }
        let (state, unreadable) = reader.finish();
        assert!(unreadable.0 == 0 && state.len() >= 10, "{state:?}");
        state
    })
}
