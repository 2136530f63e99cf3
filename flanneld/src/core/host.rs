//! The host under the node: an interface that the daemon waits for, odd facts, and the settings as they were before us.

use backends::kernel::OpError;
use backends::{External, Feature, IfName, KernelState, LocalNode, Object, Op, Plan, Sysctl};
use serde::{Deserialize, Serialize};
use subnet_lease::{Family, Guarded, IpNetwork, Subnets};
use tracing::error;

use super::membership::Network;
use super::{Effect, NodeCore, Tick};
use crate::exit::Exit;
use crate::host::iface;
use crate::host::outside::{self, Kind, Overlap};
use crate::host::path;

/// The address that every guest has behind the user-mode network of VirtualBox and QEMU.
const NAT_GUEST_ADDRESS: [u8; 4] = [10, 0, 2, 15];

/// A setting that we changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The link, or the underlay where it is one of the host.
    pub link: IfName,
    /// Which.
    pub name: Sysctl,
    /// What it was.
    pub before: i32,
    /// What we made of it.
    pub ours: i32,
}

/// The settings of links and host.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct HostSettings {
    /// Those that the last pass wanted.
    pub(super) wished: Vec<(IfName, Sysctl, i32)>,
    /// Those outside of our own links that we changed, since the host started.
    pub(super) changed: Vec<Changed>,
}

impl HostSettings {
    pub(super) fn wish(&mut self, want: &KernelState) {
        let setting = |o: &Object| if let Object::Sysctl(l, n, v) = o { Some((*l, *n, *v)) } else { None };
        self.wished = want.iter().filter_map(setting).collect();
    }

    /// What a setting was before it was ours, if it was something else.
    pub(super) fn before(&self, link: IfName, name: Sysctl) -> Option<i32> {
        let same = |c: &&Changed| c.name == name && (c.link == link || name.is_of_host());
        self.changed.iter().find(same).map(|c| c.before)
    }

    /// Notes what a plan changed; what hangs on our own links goes with them. Returns whether there is something new.
    fn note(&mut self, plan: &Plan, results: &[Result<(), OpError>], ours: &[IfName]) -> bool {
        let known = self.changed.len();
        for (op, _) in plan.ops.iter().zip(results).filter(|(_, result)| result.is_ok()) {
            let Op::Put { want: Object::Sysctl(link, name, value), have: Some(Object::Sysctl(.., before)) } =
                op
            else {
                continue;
            };
            if !ours.contains(link) && self.before(*link, *name).is_none() {
                self.changed.push(Changed { link: *link, name: *name, before: *before, ours: *value });
            }
        }
        self.changed.len() > known
    }
}

impl NodeCore {
    /// Before the first complete pass: a part of the kernel that the network needs and that is missing. Later such a part shows as
    /// a step that fails.
    pub(super) fn lacking(&self) -> Option<String> {
        let (network, facts) = (self.membership.network()?, self.underlay.facts()?);
        let needs = network.backends.needs(&network.config);
        let lacks = needs.into_iter().find(|feature| facts.system.lacks.contains(feature))?;
        (!self.pass.last().complete).then(|| self.without(lacks))
    }

    /// What to do about a part of the kernel that is missing.
    pub(super) fn without(&self, feature: Feature) -> String {
        let way_out = match feature {
            Feature::Vxlan => ", or use the host-gw backend",
            Feature::NfTables => ", or install iptables and run with --traffic-rules=iptables-legacy",
            Feature::Ipv6 | Feature::BridgeNetfilter => "",
        };
        let system = self.underlay.facts().map(|facts| facts.system.clone()).unwrap_or_default();
        format!("{}{way_out}", system.lack(feature))
    }

    /// Ends the daemon, for this reason.
    pub(super) fn end(&mut self, exit: Exit, sentence: String, effects: &mut Vec<Effect>) {
        error!("{sentence}");
        self.ending = Some(sentence);
        effects.push(Effect::Exit(exit));
    }

    /// Why it ended, once it did.
    pub fn ending(&self) -> Option<&str> {
        self.ending.as_deref()
    }

    pub(super) fn note_settings(&mut self, now: Tick, plan: &Plan, results: &[Result<(), OpError>]) {
        let ours = self.membership.network().map(|n| n.backends.links()).unwrap_or_default();
        if self.host_settings.note(plan, results, &ours) {
            // Written at once: afterwards nobody can find out what it was.
            self.memories.remember_now(now);
        }
    }

    /// Ends the daemon when a named interface did not appear in time.
    pub(super) fn unfit_due(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if let Some(sentence) = self.underlay.given_up(now, self.settings.iface_wait) {
            self.end(Exit::Interface, sentence, effects);
        }
    }

    /// Facts that work and are probably wrong, a sentence each.
    pub(super) fn host_notices(&self, node: &LocalNode) -> Vec<String> {
        let mut notices = self.twins(node);
        notices.extend(self.covered(node));
        notices.extend(self.nat_guest_address(node));
        notices.extend(self.narrow_address(node));
        notices.extend(self.unused_address(node));
        notices.extend(self.strange_address(node));
        notices.extend(self.narrow_path(node));
        notices.extend(self.without_bridge_rules());
        notices
    }

    /// Addresses without which this host is cut off.
    pub(super) fn guarded(&self) -> Vec<Guarded> {
        let (Some(facts), Some(external)) = (self.underlay.facts(), self.underlay.external()) else {
            return Vec::new();
        };
        outside::guarded(facts, Some(external), &self.settings.store_addresses)
    }

    /// What this host reaches without the tunnel: no subnet that overlaps it is leased anew. `had` are the subnets of its pods.
    pub(super) fn outside(&self, had: Option<Subnets>) -> Vec<IpNetwork> {
        let Some(facts) = self.underlay.facts() else { return Vec::new() };
        let hosts = self.guarded().into_iter().map(|guarded| IpNetwork::from(guarded.address));
        // IPv6 has a link-local network on every link.
        hosts.chain(outside::connected(facts, had)).collect()
    }

    /// What of this host the networks overlap.
    fn covered(&self, node: &LocalNode) -> Vec<String> {
        let Some(facts) = self.underlay.facts() else { return Vec::new() };
        let found = outside::overlaps(&node.network, facts, &self.guarded(), Some(node.subnets));
        let sentence = |overlap: &Overlap| {
            let effect = match overlap.kind {
                Kind::Vital => {
                    "no subnet with it is leased or admitted, and the hosts around it are taken for pods"
                }
                Kind::Connected => {
                    "no subnet that overlaps it is leased to this host, and pods there are out of its reach"
                }
                // One that takes a peer's packets is named as such.
                Kind::Routed => return None,
            };
            Some(format!(
                "{}: {effect}; choose a network apart from the hosts' (flannelctl network check)",
                overlap.sentence()
            ))
        };
        found.iter().filter_map(sentence).collect()
    }

    fn twins(&self, node: &LocalNode) -> Vec<String> {
        let twins = self.membership.peers().into_iter().flat_map(|peers| peers.twins());
        let external = &node.external;
        let sentence = |(subnets, name): (Subnets, Option<&str>)| {
            let name = name.map_or_else(|| "another host".to_owned(), |name| format!("node {name:?}"));
            format!(
                "{name} ({subnets}) publishes {} as well, which is ours on {}: each host needs an address of its own{}",
                external.public,
                external.link,
                self.candidates()
            )
        };
        twins.take(super::LISTED).map(sentence).collect()
    }

    fn nat_guest_address(&self, node: &LocalNode) -> Option<String> {
        let is = node.external.public.v4.is_some_and(|address| address.octets() == NAT_GUEST_ADDRESS);
        is.then(|| {
            format!(
                "{} publishes 10.0.2.15, which every machine has behind the NAT of VirtualBox or QEMU: no other host reaches it{}",
                node.external.link,
                self.candidates()
            )
        })
    }

    fn narrow_address(&self, node: &LocalNode) -> Option<String> {
        let public = node.external.public;
        let narrow =
            Family::ALL.into_iter().filter_map(|f| public.family(f)).find(|a| iface::is_link_local(*a))?;
        Some(format!(
            "{narrow} on {} is link-local: only hosts on the same wire reach it{}",
            node.external.link,
            self.candidates()
        ))
    }

    /// A flag for a family that the network does not have.
    fn unused_address(&self, node: &LocalNode) -> Option<String> {
        let asked = self.settings.iface.public;
        let unused = Family::ALL
            .into_iter()
            .find(|f| asked.family(*f).is_some() && node.network.network(*f).is_none())?;
        let flag = if unused == Family::V4 { "--public-ip" } else { "--public-ipv6" };
        Some(format!("{flag} has no effect: the network has no {unused}"))
    }

    fn strange_address(&self, node: &LocalNode) -> Option<String> {
        path::strange_address(self.underlay.facts()?, &node.external, self.settings.iface.public)
    }

    /// A route to the other hosts for which the kernel sends smaller packets than the interface does.
    fn narrow_path(&self, node: &LocalNode) -> Option<String> {
        let (route, network) =
            (path::narrowest(self.underlay.facts()?, &node.external)?, self.membership.network()?);
        let External { link, mtu, .. } = &node.external;
        let pods = network.backends.mtu(&network.config, &node.external);
        let fits =
            network.backends.mtu(&network.config, &External { mtu: route.mtu, ..node.external.clone() });
        let to = if route.dst.prefix() == 0 { "default".to_owned() } else { route.dst.to_string() };
        (pods > fits).then(|| {
            format!(
                "the route {to} dev {link} has mtu {}, below {mtu} of the interface: packets of pods larger than {fits} bytes \
                 are lost on that way, and pods get an MTU of {pods}; set \"MTU\": {} in the network's Backend (flannelctl network \
                 set), or the route's mtu to what the way carries",
                route.mtu, route.mtu
            )
        })
    }

    fn without_bridge_rules(&self) -> Option<String> {
        let facts = self.underlay.facts()?;
        let bridges =
            self.underlay.pods(self.publication.own()).into_iter().filter_map(|name| facts.link_named(name));
        let pods = bridges.into_iter().find(|link| link.kind == "bridge")?;
        let lacks = facts.system.lacks.contains(&Feature::BridgeNetfilter);
        lacks.then(|| {
            format!(
                "{}: a pod that reaches a pod of this node by a Service's address gets no answer over {}",
                facts.system.lack(Feature::BridgeNetfilter),
                pods.name
            )
        })
    }

    /// Other interfaces that would do, and how one is chosen.
    fn candidates(&self) -> String {
        let families = self.membership.network().map(Network::families).unwrap_or_default();
        self.underlay.candidates(&families)
    }
}
