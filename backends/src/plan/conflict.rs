//! What stands in our way and is not ours to touch: named, with the way out.

use ipnetwork::IpNetwork;
use subnet_lease::contains_net;

use crate::plan::{Op, Owner, Ownership, ROUTE_PROTOCOL, Wanted};
use crate::state::{Facts, IfName, KernelState, Link, LinkKind, Object, Route, RouteKind};

/// So many sentences are enough.
const MOST: usize = 16;

/// One sentence for each stranger's link with a wanted name, and for each stranger's route that takes a part of a peer's
/// traffic. They depend on the dump; what a backend finds wrong with peers is said in its wish.
pub fn conflicts(want: &KernelState, have: &KernelState, owner: &Owner, facts: &Facts) -> Vec<String> {
    let links = want.links().filter_map(|link| taken_name(link, have, facts));
    // Hardly ever is there a route of others: what its ownership needs is gathered only then.
    let others = || have.iter().filter_map(other).filter(|r| r.protocol != ROUTE_PROTOCOL);
    let mut wanted = None;
    let narrower = others().filter_map(|route| {
        let peer = covering(want, route)?;
        let wanted = wanted.get_or_insert_with(|| Wanted::new(owner, want, have));
        let foreign = owner.ownership(&Object::Route(*route), wanted) == Ownership::Foreign;
        foreign.then(|| narrower(route, peer))
    });
    links.chain(narrower).take(MOST).collect()
}

fn taken_name(want: &Link, have: &KernelState, facts: &Facts) -> Option<String> {
    if have.links().any(|l| l.name == want.name) {
        return None;
    }
    let name: IfName = want.name;
    let what = match facts.link_named(name)?.kind.as_str() {
        "" => "a device".to_owned(),
        kind if LinkKind::is_word(kind) => format!("another network's {kind} device"),
        kind => format!("a {kind} that is not ours"),
    };
    Some(sentence(name, &what))
}

fn sentence(name: IfName, what: &str) -> String {
    format!(
        "{name} is {what}, and our tunnel device needs the name: `ip link set {name} name OTHER` or `ip link delete {name}`"
    )
}

fn other(object: &Object) -> Option<&Route> {
    if let Object::Route(route) = object { Some(route) } else { None }
}

/// The peer's subnet that this route is a part of.
fn covering(want: &KernelState, route: &Route) -> Option<IpNetwork> {
    let before = want.as_slice().partition_point(|o| match o {
        Object::Route(r) => r.dst <= route.dst,
        o => o.key() < Object::Route(*route).key(),
    });
    // The networks that begin at or before it, nearest first; peers' subnets do not overlap.
    let nearest = want.as_slice()[..before].iter().rev().map_while(other).next()?;
    let part = contains_net(nearest.dst, route.dst) && nearest.dst != route.dst;
    (part && nearest.kind == RouteKind::Unicast).then_some(nearest.dst)
}

fn narrower(route: &Route, peer: IpNetwork) -> String {
    let way_out = Op::Delete(Object::Route(*route)).to_string();
    format!("a route that is not ours takes a part of the traffic to peer {peer}: `{way_out}` ends that")
}
