//! A plain route per peer through its public address; every peer must be on the underlay's wire.

use super::{Backend, LocalNode, Pair, Wish, peer_route};
use crate::state::Facts;

pub(super) struct HostGw;

impl Backend for HostGw {
    fn carries(&self, node: &LocalNode, facts: &Facts, pair: &Pair<'_>) -> Result<(), String> {
        let Pair { subnet, public, .. } = pair;
        if facts.on_link(node.external.index, *public) {
            return Ok(());
        }
        let link = node.external.link;
        Err(format!(
            "peer {subnet} at {public} is not on the wire of {link}: host-gw needs one, a tunnel does not"
        ))
    }

    fn desired(&self, node: &LocalNode, pairs: &[Pair<'_>], _: &Facts) -> Wish {
        let route = |pair: &Pair<'_>| peer_route::direct(pair.subnet, pair.public, node.external.link);
        Wish { objects: pairs.iter().map(route).collect(), ..Wish::default() }
    }

    fn routes_directly(&self) -> bool {
        true
    }
}
