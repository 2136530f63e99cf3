//! That packets to and from pods go on, and come in.
//!
//! We ask for what the bridge plugin turns on for a node's first pod, the host's switch of each family: nothing that a
//! node with pods does not have, and all of a host comes back when somebody turns it off. A narrower wish would not do:
//! IPv6 asks only the host's switch, and IPv4 packets from elsewhere to a pod come in on links that we know nothing of.
//! The links that only our traffic depends on are looked at one by one as well. What was set before is remembered, for
//! `flannelctl cleanup`.

use subnet_lease::Family;

use super::{LocalNode, Wish};
use crate::state::{Facts, IfName, Object, Sysctl};

/// Neighbours that a host has besides our peers: pods, gateways, other machines. Ours.
const OTHER_NEIGHBOURS: usize = 512;
/// No table is wished larger than this, whatever the store says. Ours: a peer for every address of a /15.
const MOST_NEIGHBOURS: usize = 1 << 17;

/// Adds the settings for the families of our lease, but for tunnel devices; everything else is wished for before.
pub(super) fn wish(node: &LocalNode, facts: &Facts, wish: &mut Wish) {
    let underlay = node.external.link;
    let mut settings = Vec::new();
    for subnet in node.subnets.iter() {
        let family = if subnet.is_ipv4() { Family::V4 } else { Family::V6 };
        if family == Family::V6 && !facts.ipv6 {
            continue;
        }
        let pods = facts.links_within(&[subnet]);
        let direct = direct_peers(wish, underlay, family) > 0;
        settings.push((underlay, Sysctl::HostForward(family), 1));
        match family {
            Family::V6 => settings.push((underlay, Sysctl::RouterRa, 2)),
            Family::V4 => {
                let over = pods.iter().copied().filter(|link| *link != underlay);
                settings
                    .extend(over.chain(direct.then_some(underlay)).map(|link| (link, Sysctl::Forward, 1)));
                // A peer may send over the wire what we would answer through the tunnel, while it sees more of the wire.
                settings.extend(direct.then_some((underlay, Sysctl::ReturnPath, 2)));
            }
        }
        // The switch is for all bridges of the host: with ports of others it is the operator's to turn (`conflicts` names it).
        let bridged = facts.on_bridge(&pods) && facts.other_bridges(&pods).is_empty();
        let optional = [
            (Sysctl::BridgeCall(family), bridged.then_some(1)),
            (Sysctl::NeighbourRoom(family), neighbour_room(facts, wish, underlay, family)),
        ];
        let here = optional.into_iter().filter(|(name, _)| facts.system.has(*name));
        settings.extend(here.filter_map(|(name, value)| Some((underlay, name, value?))));
    }
    wish.objects.extend(settings.into_iter().map(|(link, name, value)| Object::Sysctl(link, name, value)));
}

/// Peers of a family that are reached over the underlay's own wire.
fn direct_peers(wish: &Wish, underlay: IfName, family: Family) -> usize {
    let of = |o: &&Object| matches!(o, Object::Route(r) if r.link == Some(underlay) && r.dst.is_ipv4() == (family == Family::V4));
    wish.objects.iter().filter(of).count()
}

/// How many neighbours must have room; none where the usual thousand will do. Entries of a tunnel device are permanent and
/// need room in old kernels only.
fn neighbour_room(facts: &Facts, wish: &Wish, underlay: IfName, family: Family) -> Option<i32> {
    const USUAL: usize = 1024;
    let counted = facts.system.counts_permanent_neighbours();
    let permanent =
        |o: &&Object| matches!(o, Object::Neigh(n) if n.address.is_ipv4() == (family == Family::V4));
    let tunnelled = wish.objects.iter().filter(|o| counted && permanent(o)).count();
    let need = tunnelled + direct_peers(wish, underlay, family) + OTHER_NEIGHBOURS;
    // In powers of two: not another value with every peer.
    i32::try_from(need.next_power_of_two().min(MOST_NEIGHBOURS)).ok().filter(|_| need > USUAL)
}
