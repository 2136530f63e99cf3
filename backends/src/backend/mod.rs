//! Ways of connecting subnets. A backend is a function: my lease, the peers, facts about the host in; what the kernel
//! should look like out. It has no I/O, no clock and no memory between calls.

mod alloc;
mod host_gw;
mod peer_route;
mod settings;
mod vxlan;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use subnet_lease::{
    BackendAttrs, BackendConfig, Family, NetworkConfig, NetworkId, PeerTable, PublicAddrs, Subnets,
};

use crate::state::Facts;
use crate::state::Feature;
use crate::state::Object;
use crate::state::{IfName, Mac};

/// The underlay link and the addresses on it that count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Name of the link.
    pub link: IfName,
    /// Its index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Addresses on the link, the source of tunnel packets.
    pub local: PublicAddrs,
    /// Addresses told to the peers; differ from `local` behind NAT.
    pub public: PublicAddrs,
}

/// This node, as far as its wish for the kernel goes.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// Which network of this host.
    pub id: NetworkId,
    /// The cluster's configuration.
    pub network: Arc<NetworkConfig>,
    /// The underlay.
    pub external: External,
    /// Our lease.
    pub subnets: Subnets,
    /// The tunnel devices' Ethernet addresses, IPv4 and IPv6.
    pub macs: [Mac; 2],
    /// Whether tunnel devices leave checksums to the hardware, where somebody decided that.
    pub tx_checksum: Option<bool>,
}

impl LocalNode {
    /// The tunnel device's Ethernet address of a family.
    pub fn mac(&self, family: Family) -> Mac {
        self.macs[usize::from(family == Family::V6)]
    }
}

/// A way of connecting subnets.
pub trait Backend: Send + Sync {
    /// What our lease should tell the peers.
    fn attributes(&self, network: &NetworkConfig, external: &External, macs: [Mac; 2]) -> BackendAttrs;

    /// What the kernel should hold for this node and these peers, in no particular order; and what is wrong with
    /// peers that can't be reached this way.
    fn desired(&self, node: &LocalNode, peers: &PeerTable, facts: &Facts) -> Wish;

    /// The links this configuration produces.
    fn links(&self) -> Vec<IfName>;

    /// What this needs of the kernel.
    fn needs(&self, network: &NetworkConfig) -> Vec<Feature> {
        network.pools().filter_map(|pool| Feature::of_family(pool.family())).collect()
    }

    /// The devices' MTUs in bytes, and where each comes from.
    fn mtus(&self, network: &NetworkConfig, external: &External) -> Vec<(IfName, u32, String)> {
        let _ = (network, external);
        Vec::new()
    }

    /// The MTU for pods, in bytes.
    fn mtu(&self, network: &NetworkConfig, external: &External) -> u32;
}

/// A backend's wish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Kernel objects.
    pub objects: Vec<Object>,
    /// One sentence for each peer that can't be reached.
    pub conflicts: Vec<String>,
}

/// The backend of a configuration.
pub fn choose(config: &BackendConfig) -> Box<dyn Backend> {
    match config {
        BackendConfig::Vxlan { vni, port, mtu, gbp, learning, direct_routing } => Box::new(vxlan::Vxlan {
            vni: *vni,
            port: *port,
            mtu: *mtu,
            gbp: *gbp,
            learning: *learning,
            direct_routing: *direct_routing,
        }),
        BackendConfig::HostGw => Box::new(host_gw::HostGw),
        BackendConfig::Alloc => Box::new(alloc::Alloc),
    }
}

/// What a link carries from host to host: the smaller of its own MTU and the one that somebody set.
fn path_mtu(external: &External, set: Option<u32>) -> u32 {
    set.map_or(external.mtu, |mtu| mtu.min(external.mtu))
}
