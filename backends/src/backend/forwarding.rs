//! That packets to and from pods go on.
//!
//! We ask for what the bridge plugin turns on for a node's first pod, the host's switch of each family: nothing that a
//! node with pods does not have, and all of a host comes back when somebody turns it off. A narrower wish would not do:
//! IPv6 asks only the host's switch, and IPv4 packets from elsewhere to a pod come in on links that we know nothing of.
//! The links that only our traffic depends on are looked at one by one as well. Nothing of it is ever turned off again.

use subnet_lease::Family;

use super::{LocalNode, Wish};
use crate::facts::Facts;
use crate::state::{Object, Sysctl};

/// Adds the settings for the families of our lease, but for tunnel devices; the routes are wished for before.
pub(super) fn wish(node: &LocalNode, facts: &Facts, wish: &mut Wish) {
    let underlay = node.external.link;
    let direct = |o: &Object| matches!(o, Object::Route(r) if r.link == Some(underlay) && r.dst.is_ipv4());
    let mut links = if wish.objects.iter().any(direct) { vec![underlay] } else { Vec::new() };
    for subnet in node.subnets.iter() {
        let family = if subnet.is_ipv4() { Family::V4 } else { Family::V6 };
        if family == Family::V6 && !facts.ipv6 {
            continue;
        }
        wish.objects.push(Object::Sysctl(underlay, Sysctl::HostForward(family), 1));
        if family == Family::V6 {
            wish.objects.push(Object::Sysctl(underlay, Sysctl::RouterRa, 2));
        } else {
            let pods = facts.links_within(&[subnet]);
            links.extend(pods.into_iter().filter(|l| *l != underlay));
        }
    }
    wish.objects.extend(links.into_iter().map(|link| Object::Sysctl(link, Sysctl::Forward, 1)));
}
