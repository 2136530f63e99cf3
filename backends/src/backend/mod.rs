//! Ways of connecting subnets. A backend is a function: my lease, the peers, facts about the host in; what the kernel
//! should look like out. It has no I/O, no clock and no memory between calls.
//!
//! ```text
//!                          carries?   first backend: its wish ──┐
//!   peers ─▶ Pair ─▶ the first of them ─▶ …                     ├─ union ─▶ Wish { objects, planes, conflicts }
//!            (peer, family)           last backend:  its wish ──┘
//! ```

mod alloc;
mod host_gw;
mod identity;
mod peer_route;
mod settings;
mod vxlan;

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::{
    BackendAttrs, BackendConfig, Family, NetworkConfig, NetworkId, Peer, PeerTable, PublicAddrs, Subnets,
};

pub use identity::{Devices, Identity, Sources};

use crate::plane::PlaneWish;
use crate::state::Facts;
use crate::state::Feature;
use crate::state::IfName;
use crate::state::Object;

/// The backend of a configuration: one row a kind.
fn choose(config: &BackendConfig) -> Box<dyn Backend> {
    match config {
        BackendConfig::Vxlan(config) => Box::new(vxlan::Vxlan(config.clone())),
        BackendConfig::HostGw(_) => Box::new(host_gw::HostGw),
        BackendConfig::Alloc(_) => Box::new(alloc::Alloc),
    }
}

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
    /// Addresses published to the peers; differ from `local` behind NAT.
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
    /// What peers know each backend by, in the order of [`Backends`].
    pub identities: Vec<Identity>,
    /// Whether tunnel devices leave checksums to the hardware, where somebody decided that.
    pub tx_checksum: Option<bool>,
}

/// One peer in one family.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The peer.
    pub peer: Peer<'a>,
    /// The family.
    pub family: Family,
    /// The peer's subnet.
    pub subnet: IpNetwork,
    /// Where packets for it go.
    pub public: IpAddr,
}

impl<'a> Pair<'a> {
    fn all(peers: &'a PeerTable) -> impl Iterator<Item = Self> {
        peers.peers().flat_map(|peer| Family::ALL.map(|family| (peer, family))).filter_map(
            |(peer, family)| {
                Some(Self { peer, family, subnet: peer.subnet(family)?, public: peer.public(family)? })
            },
        )
    }
}

/// A way of connecting subnets.
pub trait Backend: Send + Sync {
    /// What peers shall know this host by.
    fn prepare(&self, sources: &Sources<'_>) -> Identity {
        let _ = sources;
        Identity::None
    }

    /// What our lease publishes.
    fn attributes(&self, network: &NetworkConfig, external: &External, identity: &Identity) -> BackendAttrs {
        let _ = (external, identity);
        BackendAttrs::plain(network.backend.record_name())
    }

    /// Whether a peer's lease has the identity that our devices have: it is our own, from before the host got another
    /// address.
    fn is_ours(&self, devices: &Devices, peer: &Peer<'_>) -> bool {
        let _ = (devices, peer);
        false
    }

    /// Whether this backend carries the traffic of a pair; if not, what is in its way.
    ///
    /// # Errors
    /// One sentence.
    fn carries(&self, node: &LocalNode, facts: &Facts, pair: &Pair<'_>) -> Result<(), String>;

    /// What the kernel should hold for this node and the pairs that the backend carries, in no particular order.
    fn desired(&self, node: &LocalNode, pairs: &[Pair<'_>], facts: &Facts) -> Wish;

    /// Whether pods' packets go through what it makes, so that the host must forward them.
    fn moves_packets(&self) -> bool {
        true
    }

    /// Whether some peers may be reached over the wire itself.
    fn routes_directly(&self) -> bool {
        false
    }

    /// The links this configuration produces.
    fn links(&self) -> Vec<IfName> {
        Vec::new()
    }

    /// What this needs of the kernel.
    fn needs(&self) -> Vec<Feature> {
        Vec::new()
    }

    /// The devices' MTUs in bytes, and where each comes from.
    fn mtus(&self, network: &NetworkConfig, external: &External) -> Vec<(IfName, u32, String)> {
        let _ = (network, external);
        Vec::new()
    }
}

/// A backend's wish.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Kernel objects.
    pub objects: Vec<Object>,
    /// What is not kernel state.
    pub planes: Vec<PlaneWish>,
    /// One sentence for each peer that can't be reached, and for what is wrong with our own end.
    pub conflicts: Vec<String>,
}

impl Wish {
    fn add(&mut self, other: Self) {
        self.objects.extend(other.objects);
        self.planes.extend(other.planes);
        self.conflicts.extend(other.conflicts);
    }
}

/// The backends of a network. The wish of a node is the union of theirs; each pair goes to the first that carries it.
pub struct Backends(Vec<Box<dyn Backend>>);

impl Backends {
    /// Those of a configuration: one at present.
    pub fn of(config: &BackendConfig) -> Self {
        Self(vec![choose(config)])
    }

    /// What peers shall know each backend by.
    pub fn prepare(&self, sources: &Sources<'_>) -> Vec<Identity> {
        self.0.iter().map(|backend| backend.prepare(sources)).collect()
    }

    /// What our lease publishes: of the first backend where flannel reads it, then of the others.
    pub fn attributes(
        &self,
        network: &NetworkConfig,
        external: &External,
        identities: &[Identity],
    ) -> BackendAttrs {
        let mut each = self.0.iter().zip(identities).map(|(b, own)| b.attributes(network, external, own));
        let mut attrs = each.next().unwrap_or_default();
        each.for_each(|other| attrs.add(other));
        attrs
    }

    /// See [`Backend::is_ours`].
    pub fn is_ours(&self, devices: &Devices, peer: &Peer<'_>) -> bool {
        self.0.iter().any(|backend| backend.is_ours(devices, peer))
    }

    /// What the kernel, and what is beside it, should hold for this node and these peers.
    pub fn desired(&self, node: &LocalNode, peers: &PeerTable, facts: &Facts) -> Wish {
        let mut wish = Wish::default();
        let mut shares: Vec<Vec<Pair<'_>>> = self.0.iter().map(|_| Vec::new()).collect();
        for pair in Pair::all(peers) {
            let mut in_the_way = None;
            let carrier = self.0.iter().position(|backend| {
                backend.carries(node, facts, &pair).map_err(|why| in_the_way = Some(why)).is_ok()
            });
            match carrier {
                Some(carrier) => shares[carrier].push(pair),
                None => wish.conflicts.extend(in_the_way),
            }
        }
        for (backend, share) in self.0.iter().zip(&shares) {
            wish.add(backend.desired(node, share, facts));
        }
        if self.0.iter().any(|backend| backend.moves_packets()) {
            settings::wish(node, facts, &mut wish);
        }
        wish
    }

    /// Whether some peers may be reached over the wire itself.
    pub fn routes_directly(&self) -> bool {
        self.0.iter().any(|backend| backend.routes_directly())
    }

    /// The links this configuration produces.
    pub fn links(&self) -> Vec<IfName> {
        self.0.iter().flat_map(|backend| backend.links()).collect()
    }

    /// What this needs of the kernel.
    pub fn needs(&self, network: &NetworkConfig) -> Vec<Feature> {
        let families = network.pools().filter_map(|pool| Feature::of_family(pool.family()));
        families.chain(self.0.iter().flat_map(|backend| backend.needs())).collect()
    }

    /// The devices' MTUs in bytes, and where each comes from.
    pub fn mtus(&self, network: &NetworkConfig, external: &External) -> Vec<(IfName, u32, String)> {
        self.0.iter().flat_map(|backend| backend.mtus(network, external)).collect()
    }

    /// The MTU for pods, in bytes: the smallest of the devices', and where there is none what the paths carry.
    pub fn mtu(&self, network: &NetworkConfig, external: &External) -> u32 {
        let smallest = self.mtus(network, external).into_iter().map(|(_, mtu, _)| mtu).min();
        smallest.unwrap_or_else(|| path_mtu(external, network.mtu))
    }
}

/// What a link carries from host to host: the smaller of its own MTU and the one that somebody set.
fn path_mtu(external: &External, set: Option<u32>) -> u32 {
    set.map_or(external.mtu, |mtu| mtu.min(external.mtu))
}
