//! Nothing but a lease: something else moves the packets.

use subnet_lease::NetworkConfig;

use super::{Backend, External, LocalNode, Pair, Wish};
use crate::state::Facts;
use crate::state::IfName;

pub(super) struct Alloc;

impl Backend for Alloc {
    fn carries(&self, _: &LocalNode, _: &Facts, _: &Pair<'_>) -> Result<(), String> {
        Ok(())
    }

    fn desired(&self, _: &LocalNode, _: &[Pair<'_>], _: &Facts) -> Wish {
        Wish::default()
    }

    fn moves_packets(&self) -> bool {
        false
    }

    fn mtus(&self, _: &NetworkConfig, _: &External) -> Vec<(IfName, u32, String)> {
        Vec::new()
    }
}
