//! A vxlan device per family; for each peer a neighbour, a forwarding entry and a route.

use subnet_lease::{BackendAttrs, Family, NetworkConfig, Peer, PeerTable, VxlanData};

use super::{Backend, External, LocalNode, Wish, forwarding, is_direct, peer_route};
use crate::facts::Facts;
use crate::name::{IfName, Mac};
use crate::owner::tag;
use crate::state::{self, Address, Fdb, Link, LinkKind, Neigh, Object, Sysctl};

/// What the network's configuration says; see [`BackendConfig::Vxlan`](subnet_lease::BackendConfig).
pub(super) struct Vxlan {
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) mtu: Option<u32>,
    pub(super) gbp: bool,
    pub(super) learning: bool,
    pub(super) direct_routing: bool,
}

/// The kernel's own default port, older than the one IANA gave out; flannel's Port 0 means this one.
const DEFAULT_PORT: u16 = 8472;
/// Smallest MTU that IPv6 allows.
const LEAST_MTU: u32 = 1280;

impl Vxlan {
    /// `flannel.1` and `flannel-v6.1`: flannel's names, known to udev rules and monitoring.
    fn device(&self, family: Family) -> IfName {
        let name = match family {
            Family::V4 => format!("flannel.{}", self.vni),
            Family::V6 => format!("flannel-v6.{}", self.vni),
        };
        IfName::from_kernel(name.as_bytes())
    }

    /// The device and what makes it usable.
    fn tunnel_end(&self, node: &LocalNode, facts: &Facts, family: Family, wish: &mut Wish) -> Option<()> {
        let subnet = node.subnets.family(family)?;
        let local = node.external.local.family(family)?;
        let link = self.device(family);
        let kind = LinkKind::Vxlan(state::Vxlan {
            vni: self.vni,
            port: if self.port == 0 { DEFAULT_PORT } else { self.port },
            local: Some(local),
            parent: node.external.index,
            learning: self.learning,
            gbp: self.gbp,
        });
        let mtu = self.device_mtu(&node.external, family);
        let device = Link { name: link, kind, mtu, mac: node.mac(family), tag: tag(&node.id), master: 0 };
        wish.objects.push(Object::Link(Box::new(device)));
        if facts.ipv6 {
            wish.objects.push(Object::Sysctl(link, Sysctl::AcceptRa, 0));
        }
        if family == Family::V4 {
            wish.objects.push(Object::Sysctl(link, Sysctl::Forward, 1));
        }
        // The subnet's network address, as flannel has it: pods never hold it, and it is the source of host traffic.
        let net =
            ipnetwork::IpNetwork::new(subnet.network(), if subnet.is_ipv4() { 32 } else { 128 }).ok()?;
        wish.objects.push(Object::Address(Address { link, net, narrow: false }));
        wish.objects.push(Object::Up(link));
        Some(())
    }

    fn peer(
        &self,
        node: &LocalNode,
        facts: &Facts,
        family: Family,
        peer: &Peer,
        wish: &mut Wish,
    ) -> Option<()> {
        let subnet = peer.subnet(family)?;
        let public = peer.public(family)?;
        if self.direct_routing && is_direct(node, facts, public) {
            wish.objects.push(peer_route::direct(subnet, public, node.external.link));
            return Some(());
        }
        let mac = Mac(peer.vxlan(family)?.mac);
        let link = self.device(family);
        wish.objects.push(Object::Fdb(Fdb { link, mac, dst: public, diverted: false }));
        wish.objects.push(Object::Neigh(Neigh { link, address: subnet.network(), mac }));
        wish.objects.push(peer_route::onlink(subnet, link));
        Some(())
    }

    fn device_mtu(&self, external: &External, family: Family) -> u32 {
        let base = self.mtu.unwrap_or(external.mtu).min(external.mtu);
        base.saturating_sub(overhead(family)).max(if family == Family::V6 { LEAST_MTU } else { 68 })
    }
}

/// Bytes that VXLAN adds: outer IP header (20 or 40), UDP (8), VXLAN (8), inner Ethernet (14).
fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

impl Backend for Vxlan {
    fn attributes(&self, network: &NetworkConfig, external: &External, macs: [Mac; 2]) -> BackendAttrs {
        let data = |family: Family| {
            network.network(family)?;
            external.local.family(family)?;
            Some(VxlanData { vni: self.vni, mac: macs[usize::from(family == Family::V6)].0 })
        };
        BackendAttrs::vxlan(data(Family::V4), data(Family::V6))
    }

    fn desired(&self, node: &LocalNode, peers: &PeerTable, facts: &Facts) -> Wish {
        let mut wish = Wish::default();
        for family in Family::ALL {
            if self.tunnel_end(node, facts, family, &mut wish).is_none() {
                continue;
            }
            for peer in peers.peers() {
                self.peer(node, facts, family, &peer, &mut wish);
            }
        }
        forwarding::wish(node, facts, &mut wish);
        wish
    }

    fn links(&self) -> Vec<IfName> {
        Family::ALL.map(|f| self.device(f)).to_vec()
    }

    fn mtu(&self, network: &NetworkConfig, external: &External) -> u32 {
        let families = Family::ALL.into_iter().filter(|f| network.network(*f).is_some());
        families.map(|f| self.device_mtu(external, f)).min().unwrap_or(external.mtu)
    }
}
