//! A vxlan device per family; for each peer a neighbour, a forwarding entry and a route.

use subnet_lease::{BackendAttrs, Family, NetworkConfig, Peer, PeerTable, VxlanData};

use super::{Backend, External, LocalNode, Wish, path_mtu, peer_route, settings};
use crate::plan::tag;
use crate::state::Facts;
use crate::state::Feature;
use crate::state::{self, Address, Fdb, Link, LinkKind, Neigh, Object, Sysctl};
use crate::state::{IfName, Mac};

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
        wish.objects.extend(Self::settings(node, facts, link, family));
        // The subnet's network address, as flannel has it: pods never hold it, and it is the source of host traffic.
        let net =
            ipnetwork::IpNetwork::new(subnet.network(), if subnet.is_ipv4() { 32 } else { 128 }).ok()?;
        wish.objects.push(Object::Address(Address { link, net, narrow: false }));
        wish.objects.push(Object::Up(link));
        Some(())
    }

    fn settings(node: &LocalNode, facts: &Facts, link: IfName, family: Family) -> Vec<Object> {
        let mut settings = match family {
            Family::V4 => vec![(Sysctl::Forward, 1), (Sysctl::ReturnPath, 2)],
            // Where new devices get no IPv6, ours would refuse its address.
            Family::V6 => vec![(Sysctl::NoIpv6, 0)],
        };
        settings.extend(facts.ipv6.then_some((Sysctl::AcceptRa, 0)));
        let checksum = node.tx_checksum.or_else(|| facts.system.breaks_checksums().then_some(false));
        settings.extend(checksum.map(|on| (Sysctl::TxChecksum, i32::from(on))));
        settings.into_iter().map(|(name, value)| Object::Sysctl(link, name, value)).collect()
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
        if self.direct_routing && facts.on_wire(node.external.index, public) {
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
        path_mtu(external, self.mtu).saturating_sub(overhead(family)).max(least_mtu(family))
    }

    /// What the underlay cannot carry.
    fn too_small(&self, node: &LocalNode, family: Family) -> Option<String> {
        node.subnets.family(family)?;
        let External { link, mtu, .. } = &node.external;
        let need = least_mtu(family) + overhead(family);
        (path_mtu(&node.external, self.mtu) < need).then(|| {
            format!(
                "{link} has an MTU of {mtu}: {family} pods need {need} ({} and the tunnel's head)",
                least_mtu(family)
            )
        })
    }

    fn set_too_large(&self, node: &LocalNode) -> Option<String> {
        let (set, External { link, mtu, .. }) = (self.mtu?, &node.external);
        (set > *mtu).then(|| {
            format!(
                "the network's configuration says MTU {set}, and {link} has {mtu}, which is what counts here"
            )
        })
    }
}

/// The smallest MTU that the family allows.
fn least_mtu(family: Family) -> u32 {
    if family == Family::V6 { LEAST_MTU } else { 68 }
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
            wish.conflicts.extend(self.too_small(node, family));
        }
        wish.conflicts.extend(self.set_too_large(node));
        settings::wish(node, facts, &mut wish);
        wish
    }

    fn needs(&self, network: &NetworkConfig) -> Vec<Feature> {
        let families = network.pools().filter_map(|pool| Feature::of_family(pool.family()));
        families.chain([Feature::Vxlan]).collect()
    }

    fn mtus(&self, network: &NetworkConfig, external: &External) -> Vec<(IfName, u32, String)> {
        let base = match self.mtu.filter(|mtu| *mtu <= external.mtu) {
            Some(mtu) => format!("{mtu} of the network's configuration"),
            None => format!("{} of {}", external.mtu, external.link),
        };
        let one = |family| {
            let mtu = self.device_mtu(external, family);
            (
                self.device(family),
                mtu,
                format!("{base} less {} of the tunnel's head over {family}", overhead(family)),
            )
        };
        network.pools().map(|pool| one(pool.family())).collect()
    }

    fn links(&self) -> Vec<IfName> {
        Family::ALL.map(|f| self.device(f)).to_vec()
    }

    fn mtu(&self, network: &NetworkConfig, external: &External) -> u32 {
        let families = Family::ALL.into_iter().filter(|f| network.network(*f).is_some());
        families.map(|f| self.device_mtu(external, f)).min().unwrap_or(external.mtu)
    }
}
