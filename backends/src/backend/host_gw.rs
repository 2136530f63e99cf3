//! A plain route per peer through its public address; every peer must be on the underlay's wire.

use subnet_lease::{BackendAttrs, Family, NetworkConfig, PeerTable};

use super::{Backend, External, LocalNode, Wish, path_mtu, peer_route, settings};
use crate::state::Facts;
use crate::state::{IfName, Mac};

pub(super) struct HostGw;

impl Backend for HostGw {
    fn attributes(&self, _: &NetworkConfig, _: &External, _: [Mac; 2]) -> BackendAttrs {
        BackendAttrs::plain("host-gw")
    }

    fn desired(&self, node: &LocalNode, peers: &PeerTable, facts: &Facts) -> Wish {
        let mut wish = Wish::default();
        for (family, peer) in peers.peers().flat_map(|p| Family::ALL.map(|f| (f, p))) {
            let (Some(subnet), Some(public)) = (peer.subnet(family), peer.public(family)) else {
                continue;
            };
            if facts.on_link(node.external.index, public) {
                wish.objects.push(peer_route::direct(subnet, public, node.external.link));
            } else {
                let link = node.external.link;
                wish.conflicts.push(format!(
                    "peer {subnet} at {public} is not on the wire of {link}: host-gw needs one, vxlan with DirectRouting does not"
                ));
            }
        }
        settings::wish(node, facts, &mut wish);
        wish
    }

    fn links(&self) -> Vec<IfName> {
        Vec::new()
    }

    fn mtu(&self, network: &NetworkConfig, external: &External) -> u32 {
        path_mtu(external, network.mtu)
    }
}
