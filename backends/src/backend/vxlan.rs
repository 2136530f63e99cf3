//! A vxlan device per family; for each peer a neighbour, a forwarding entry and a route.

use ipnetwork::IpNetwork;
use subnet_lease::{
    BackendAttrs, Family, Lease, NetworkConfig, Peer, PeerData, VtepMac, VxlanConfig, VxlanData,
};

use super::{Backend, Devices, External, Identity, LocalNode, Pair, Sources, Wish, path_mtu, peer_route};
use crate::plan::tag;
use crate::state::{self, Address, Facts, Fdb, Feature, IfName, Link, LinkKind, Mac, Neigh, Object, Sysctl};

/// What the network's configuration says.
pub(super) struct Vxlan(pub(super) VxlanConfig);

/// The kernel's own default port, older than the one IANA gave out; flannel's Port 0 means this one.
const DEFAULT_PORT: u16 = 8472;
/// Smallest MTU that IPv6 allows.
const LEAST_MTU: u32 = 1280;

impl Vxlan {
    /// `flannel.1` and `flannel-v6.1`: flannel's names, known to udev rules and monitoring. Where one of them has more
    /// than 15 bytes the kernel refuses it, and cut it would be that of another VNI: those devices are `fl-v4.VNI` and
    /// `fl-v6.VNI`.
    fn device(&self, family: Family) -> IfName {
        let vni = self.0.vni;
        let (usual, short) = match family {
            Family::V4 => (format!("flannel.{vni}"), format!("fl-v4.{vni}")),
            Family::V6 => (format!("flannel-v6.{vni}"), format!("fl-v6.{vni}")),
        };
        usual.parse().unwrap_or_else(|_| IfName::from_kernel(short.as_bytes()))
    }

    /// The device and what makes it usable.
    fn tunnel_end(&self, node: &LocalNode, facts: &Facts, family: Family, wish: &mut Wish) -> Option<()> {
        let subnet = node.subnets.family(family)?;
        let local = node.external.local.family(family)?;
        let link = self.device(family);
        let kind = LinkKind::Vxlan(state::Vxlan {
            vni: self.0.vni,
            port: if self.0.port == 0 { DEFAULT_PORT } else { self.0.port },
            local: Some(local),
            parent: node.external.index,
            learning: self.0.learning,
            gbp: self.0.gbp,
        });
        let mtu = self.device_mtu(&node.external, family);
        let mac = node.identities.iter().find_map(|identity| identity.mac(family))?;
        let device = Link { name: link, kind, mtu, mac, tag: tag(&node.id), master: 0 };
        wish.objects.push(Object::Link(Box::new(device)));
        wish.objects.extend(Self::settings(node, facts, link, family));
        // The subnet's network address, as flannel has it: pods never hold it, and it is the source of host traffic.
        let net = IpNetwork::new(subnet.network(), if subnet.is_ipv4() { 32 } else { 128 }).ok()?;
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

    fn peer(&self, node: &LocalNode, facts: &Facts, pair: &Pair<'_>, wish: &mut Wish) {
        let Pair { family, subnet, public, .. } = *pair;
        if self.0.direct_routing && facts.on_wire(node.external.index, public) {
            return wish.objects.push(peer_route::direct(subnet, public, node.external.link));
        }
        let Some(mac) = peer_mac(&pair.peer, family) else { return };
        let link = self.device(family);
        wish.objects.push(Object::Fdb(Fdb { link, mac, dst: public, diverted: false }));
        wish.objects.push(Object::Neigh(Neigh { link, address: subnet.network(), mac }));
        wish.objects.push(peer_route::onlink(subnet, link));
    }

    fn device_mtu(&self, external: &External, family: Family) -> u32 {
        path_mtu(external, self.0.mtu).saturating_sub(VxlanConfig::header(family)).max(least_mtu(family))
    }

    /// What the underlay cannot carry.
    fn too_small(&self, node: &LocalNode, family: Family) -> Option<String> {
        node.subnets.family(family)?;
        let External { link, mtu, .. } = &node.external;
        let need = least_mtu(family) + VxlanConfig::header(family);
        (path_mtu(&node.external, self.0.mtu) < need).then(|| {
            format!(
                "{link} has an MTU of {mtu}: {family} pods need {need} ({} and the tunnel's header)",
                least_mtu(family)
            )
        })
    }

    fn set_too_large(&self, node: &LocalNode) -> Option<String> {
        let (set, External { link, mtu, .. }) = (self.0.mtu?, &node.external);
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

fn peer_mac(peer: &Peer<'_>, family: Family) -> Option<Mac> {
    match peer.data(family)? {
        PeerData::Vxlan(VtepMac(mac)) => Some(Mac(*mac)),
        _ => None,
    }
}

/// A locally administered unicast address.
fn local_mac(random: u64) -> Mac {
    let [a, b, c, d, e, f, ..] = random.to_be_bytes();
    Mac([(a & 0xfc) | 2, b, c, d, e, f])
}

impl Backend for Vxlan {
    /// The devices' addresses: what our lease publishes, else what the devices have, else what our lease of an earlier run
    /// published, else new ones.
    fn prepare(&self, sources: &Sources<'_>) -> Identity {
        Identity::Macs(Family::ALL.map(|family| {
            let random = sources.random[usize::from(family == Family::V6)];
            let published = |lease: Option<&Lease>| {
                VxlanData::from_json(lease?.attrs.family(family)?).ok().map(|data| Mac(data.mac))
            };
            published(sources.shown)
                .or_else(|| sources.devices.mac(self.device(family)))
                .or_else(|| published(sources.remembered))
                .unwrap_or_else(|| local_mac(random))
        }))
    }

    fn attributes(&self, network: &NetworkConfig, external: &External, identity: &Identity) -> BackendAttrs {
        let data = |family: Family| {
            network.network(family)?;
            external.local.family(family)?;
            Some(VxlanData { vni: self.0.vni, mac: identity.mac(family)?.0 })
        };
        BackendAttrs::vxlan(data(Family::V4), data(Family::V6))
    }

    fn is_ours(&self, devices: &Devices, peer: &Peer<'_>) -> bool {
        let same = |family| {
            let ours = devices.mac(self.device(family));
            ours.is_some() && ours == peer_mac(peer, family)
        };
        Family::ALL.into_iter().any(same)
    }

    fn carries(&self, _: &LocalNode, _: &Facts, pair: &Pair<'_>) -> Result<(), String> {
        let Pair { subnet, public, .. } = pair;
        peer_mac(&pair.peer, pair.family)
            .map(drop)
            .ok_or_else(|| format!("peer {subnet} at {public} publishes no VXLAN tunnel"))
    }

    fn desired(&self, node: &LocalNode, pairs: &[Pair<'_>], facts: &Facts) -> Wish {
        let mut wish = Wish::default();
        for family in Family::ALL {
            if self.tunnel_end(node, facts, family, &mut wish).is_none() {
                continue;
            }
            for pair in pairs.iter().filter(|pair| pair.family == family) {
                self.peer(node, facts, pair, &mut wish);
            }
            wish.conflicts.extend(self.too_small(node, family));
        }
        wish.conflicts.extend(self.set_too_large(node));
        wish
    }

    fn routes_directly(&self) -> bool {
        self.0.direct_routing
    }

    fn needs(&self) -> Vec<Feature> {
        vec![Feature::Vxlan]
    }

    fn mtus(&self, network: &NetworkConfig, external: &External) -> Vec<(IfName, u32, String)> {
        let base = match self.0.mtu.filter(|mtu| *mtu <= external.mtu) {
            Some(mtu) => format!("{mtu} of the network's configuration"),
            None => format!("{} of {}", external.mtu, external.link),
        };
        let one = |family| {
            let mtu = self.device_mtu(external, family);
            (
                self.device(family),
                mtu,
                format!("{base} less {} of the tunnel's header over {family}", VxlanConfig::header(family)),
            )
        };
        network.pools().map(|pool| one(pool.family())).collect()
    }

    fn links(&self) -> Vec<IfName> {
        Family::ALL.map(|f| self.device(f)).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vni_has_device_names_of_its_own() {
        let names = |vni| {
            let vxlan = Vxlan(VxlanConfig { vni, ..VxlanConfig::default() });
            Family::ALL.map(|family| vxlan.device(family).to_string())
        };
        assert_eq!(names(1), ["flannel.1", "flannel-v6.1"]);
        assert_eq!(names(1234), ["flannel.1234", "flannel-v6.1234"]);
        assert_eq!(names(12_345), ["flannel.12345", "fl-v6.12345"]);
        assert_eq!(names(16_777_215), ["fl-v4.16777215", "fl-v6.16777215"]);
    }
}
