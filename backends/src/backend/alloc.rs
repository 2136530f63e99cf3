//! Nothing but a lease: something else moves the packets.

use subnet_lease::{BackendAttrs, NetworkConfig, PeerTable};

use super::{Backend, External, LocalNode, Wish, path_mtu};
use crate::state::Facts;
use crate::state::{IfName, Mac};

pub(super) struct Alloc;

impl Backend for Alloc {
    fn attributes(&self, _: &NetworkConfig, _: &External, _: [Mac; 2]) -> BackendAttrs {
        BackendAttrs::default()
    }

    fn desired(&self, _: &LocalNode, _: &PeerTable, _: &Facts) -> Wish {
        Wish::default()
    }

    fn links(&self) -> Vec<IfName> {
        Vec::new()
    }

    fn mtu(&self, network: &NetworkConfig, external: &External) -> u32 {
        path_mtu(external, network.mtu)
    }
}
