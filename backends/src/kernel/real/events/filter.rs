//! Which notifications matter, and how much.

use ipnetwork::IpNetwork;
use nix::net::if_::if_indextoname;
use subnet_lease::contains_net;

use super::super::host::host_link;
use super::super::read::Unreadable;
use crate::kernel::KernelEvent;
use crate::netlink::address::{AddressView, RTM_DELADDR, RTM_NEWADDR};
use crate::netlink::link::{IFF_LOWER_UP, LinkView, RTM_DELLINK, RTM_NEWLINK};
use crate::netlink::neigh::{NeighView, RTM_DELNEIGH, RTM_NEWNEIGH};
use crate::netlink::netconf::{RTM_NEWNETCONF, is_forwarding_change};
use crate::netlink::nft::{ChainView, FORWARD, INPUT, RuleView, is_deleted_table, table_of};
use crate::netlink::route::{RT_TABLE_MAIN, RTPROT_KERNEL, RouteView};
use crate::netlink::{AF_BRIDGE, Messages, RawMessage, Unread};
use crate::rules::RuleNames;
use crate::state::{HostLink, IfName, ROUTE_PROTOCOL};

/// What tells our notifications from the noise of the host.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// The cluster's networks.
    pub networks: Vec<IpNetwork>,
    /// The links this configuration produces.
    pub links: Vec<IfName>,
    /// The underlay link.
    pub external: Option<IfName>,
    /// The netlink ports of our own requests.
    pub ours: Vec<u32>,
    /// The host's links, as they were read last.
    pub known: Vec<HostLink>,
    /// Chains of others that forwarded packets pass, as they were found last, whatever they are called.
    pub gates: Vec<String>,
    /// What our rules are called.
    pub rules: RuleNames,
}

impl EventFilter {
    /// The gravest of what was known and what a datagram says. One that cannot be read may have said anything.
    pub fn gravest(
        &self,
        mut messages: Messages<'_>,
        netfilter: bool,
        known: Option<KernelEvent>,
        unreadable: &mut Unreadable,
    ) -> Option<KernelEvent> {
        let mut gravest = known;
        for message in messages.by_ref() {
            // After a pass of ours thousands of its own messages wait here: what can add nothing is not read.
            let own = self.ours.contains(&message.port) && !is_of_host(&message, netfilter);
            if own {
                gravest = graver(gravest, Some(KernelEvent::Own));
            } else if gravest.is_none_or(|e| e == KernelEvent::Own) {
                let read = if netfilter { self.rules(&message) } else { self.judge(&message, gravest) };
                let lost = read == Err(Unread::Broken);
                let event = unreadable.note(read).flatten();
                gravest = graver(gravest, if lost { Some(KernelEvent::Overrun) } else { event });
            }
        }
        if messages.is_broken() {
            unreadable.0 += 1;
            gravest = Some(KernelEvent::Overrun);
        }
        gravest
    }

    /// What a message of rtnetlink asks for. Link down and the loss of the last address send no route messages, so
    /// link and address messages count, but for what comes with every pod: its end on the host, link-local addresses and
    /// routes, and what a bridge says of its ports (which the link's own message says as well).
    fn judge(
        &self,
        message: &RawMessage<'_>,
        known: Option<KernelEvent>,
    ) -> Result<Option<KernelEvent>, Unread> {
        match message.kind {
            RTM_NEWLINK | RTM_DELLINK if message.payload.first() == Some(&AF_BRIDGE) => Ok(None),
            RTM_NEWLINK | RTM_DELLINK => {
                LinkView::parse(message).map(|view| self.counts(message, &view).then_some(KernelEvent::Host))
            }
            RTM_NEWADDR | RTM_DELADDR => AddressView::parse(message).map(|view| {
                let counts = !is_link_local(view.net) || self.may_be_external(view.link);
                counts.then_some(KernelEvent::Host)
            }),
            RTM_NEWNETCONF => Ok(is_forwarding_change(message).then_some(KernelEvent::Own)),
            RTM_NEWNEIGH | RTM_DELNEIGH if known.is_some() => Ok(None),
            RTM_NEWNEIGH | RTM_DELNEIGH => NeighView::parse(message).map(|view| self.neighbour(&view)),
            _ => self.route(message),
        }
    }

    /// Whether what a message says of a link counts: always of the underlay, and of one under a name of ours, whoever made
    /// it. Of another, unless it is a pod's, only if it is new, gone, or changed in what is asked of such a link.
    fn counts(&self, message: &RawMessage<'_>, view: &LinkView<'_>) -> bool {
        let other = self.external.is_some_and(|external| external != view.name);
        if !other || self.links.contains(&view.name) {
            return true;
        }
        let known = || self.known.iter().find(|known| known.index == view.index);
        let is_news = || known().is_none_or(|known| !known.is_still(&host_link(view)));
        !is_pods(view) && (message.kind == RTM_DELLINK || is_news())
    }

    /// Whether a link of this index is the underlay, or nobody knows.
    fn may_be_external(&self, index: u32) -> bool {
        let Some(external) = self.external else { return true };
        name_of(index) == Some(external)
    }

    fn neighbour(&self, view: &NeighView) -> Option<KernelEvent> {
        let ours = !view.of_port && self.our_link(view.link).is_some();
        ours.then_some(KernelEvent::Own)
    }

    /// The name of a link of this index, if it is one that we make.
    pub(super) fn our_link(&self, index: u32) -> Option<IfName> {
        name_of(index).filter(|name| self.links.contains(name))
    }

    /// Whether a route of this destination may be ours or stand in the way of one.
    pub(super) fn inside(&self, dst: IpNetwork) -> bool {
        self.networks.iter().any(|net| contains_net(*net, dst))
    }

    /// Most nf_tables messages name their table in the first attribute; a new generation without our table is not ours.
    /// Of others only what forwarded packets pass and what our rules stand in counts: a proxy that rewrites its thousand
    /// chains starts no pass.
    fn rules(&self, message: &RawMessage<'_>) -> Result<Option<KernelEvent>, Unread> {
        let table = table_of(message).ok_or(Unread::Other)?;
        let known = |rule: RuleView<'_>| self.gates.iter().any(|gate| gate == rule.chain);
        let counts = table.starts_with("flannel-")
            || passes_pods(message)
            || lets_tunnels_in(message)
            || RuleView::parse(message).is_some_and(known);
        Ok(counts.then_some(KernelEvent::Own))
    }

    fn route(&self, message: &RawMessage<'_>) -> Result<Option<KernelEvent>, Unread> {
        let mut gravest = None;
        RouteView::parse(message, |view| {
            if view.table != u32::from(RT_TABLE_MAIN) || view.cloned || is_link_local(view.dst) {
                return;
            }
            let inside = self.inside(view.dst);
            let connected = view.gateway.is_none() && view.protocol == RTPROT_KERNEL;
            let event = match (view.protocol == ROUTE_PROTOCOL || inside, connected || view.dst.prefix() == 0)
            {
                (_, true) => Some(KernelEvent::Host),
                (true, false) => Some(KernelEvent::Own),
                (false, false) => None,
            };
            gravest = graver(gravest, event);
        })?;
        Ok(gravest)
    }
}

/// A pod's end on this host: marked by our plugin, a port of a bridge, or (before it is either) a veth whose other end is
/// not up yet, which is no way to anywhere.
fn is_pods(view: &LinkView<'_>) -> bool {
    let leads_nowhere = || view.master.is_some() || view.flags & IFF_LOWER_UP == 0;
    view.is_containers() || view.kind == "veth" && leads_nowhere()
}

/// Of IPv6: every link that is up has one.
fn is_link_local(net: IpNetwork) -> bool {
    matches!(net, IpNetwork::V6(net) if net.ip().is_unicast_link_local())
}

/// The name of a link that is there.
fn name_of(index: u32) -> Option<IfName> {
    if_indextoname(index).ok().map(|name| IfName::from_kernel(name.as_bytes()))
}

/// Links and addresses, of which every change makes the host's facts stale.
fn is_of_host(message: &RawMessage<'_>, netfilter: bool) -> bool {
    !netfilter && matches!(message.kind, RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR)
}

/// Whether forwarded packets of pods pass what a message is about.
pub(super) fn passes_pods(message: &RawMessage<'_>) -> bool {
    if let Some(chain) = ChainView::parse(message) {
        return chain.hook.is_some_and(|(number, _)| number == FORWARD) || is_a_gate(chain.name);
    }
    is_deleted_table(message) || RuleView::parse(message).is_some_and(|rule| is_a_gate(rule.chain))
}

/// Whether tunnel packets of peers may pass what a message is about: a chain of the input hook, as far as that can be seen.
fn lets_tunnels_in(message: &RawMessage<'_>) -> bool {
    if let Some(chain) = ChainView::parse(message) {
        return chain.hook.is_some_and(|(number, _)| number == INPUT);
    }
    RuleView::parse(message).is_some_and(|rule| rule.chain == "INPUT")
}

/// Whether a chain of this name may be one that forwarded packets pass. Only a hint: which do is read anew.
fn is_a_gate(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name.contains("FORWARD") && !name.starts_with("KUBE-")
        || name.starts_with("FLANNEL-")
        || ["DOCKER-USER", "PREROUTING", "POSTROUTING"].contains(&&*name)
}

fn graver(a: Option<KernelEvent>, b: Option<KernelEvent>) -> Option<KernelEvent> {
    let weight = |e: Option<KernelEvent>| match e {
        None => 0,
        Some(KernelEvent::Own) => 1,
        Some(KernelEvent::Host) => 2,
        Some(KernelEvent::Overrun) => 3,
    };
    if weight(b) > weight(a) { b } else { a }
}
