//! The host under the node: an interface that the daemon waits for, odd facts, and the settings as they were before us.

use backends::kernel::OpError;
use backends::{Feature, IfName, KernelState, LocalNode, Object, Op, Plan, Sysctl};
use serde::{Deserialize, Serialize};
use subnet_lease::{Family, Guarded, IpNetwork};
use tracing::error;

use super::membership::Network;
use super::{Effect, NodeCore, Tick};
use crate::exit::Exit;
use crate::host::iface;

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
        notices.extend(self.without_bridge_rules());
        notices
    }

    /// Addresses without which this host is cut off from the others, from the world or from the store.
    pub(super) fn guarded(&self) -> Vec<Guarded> {
        let (Some(facts), Some(external)) = (self.underlay.facts(), self.underlay.external()) else {
            return Vec::new();
        };
        let own = Family::ALL.into_iter().filter_map(|family| external.local.family(family));
        let own = own.map(|address| (address, "this host's own address"));
        let defaults = Family::ALL.into_iter().flat_map(|family| facts.defaults(family));
        let gateways =
            defaults.filter_map(|route| route.gateway).map(|address| (address, "this host's gateway"));
        let stores = self.settings.store_addresses.iter().filter(|address| !address.is_loopback());
        let stores = stores.map(|address| (*address, "the store's address"));
        let all = own.chain(gateways).chain(stores);
        all.map(|(address, what)| Guarded { address, what: what.to_owned() }).collect()
    }

    /// Networks that this host reaches without the tunnel. No new lease may overlap them.
    pub(super) fn outside(&self) -> Vec<IpNetwork> {
        let (Some(facts), Some(external)) = (self.underlay.facts(), self.underlay.external()) else {
            return Vec::new();
        };
        let hosts = self.guarded().into_iter().map(|guarded| IpNetwork::from(guarded.address));
        // IPv6 has a link-local network on every link.
        hosts.chain(facts.connected(external.index)).collect()
    }

    /// Networks that hold what must stay outside of them.
    fn covered(&self, node: &LocalNode) -> Vec<String> {
        let guarded = self.guarded();
        let pools = node.network.pools().map(|pool| pool.network);
        let sentence = |network: IpNetwork| {
            let Guarded { address, what } =
                guarded.iter().find(|guarded| network.contains(guarded.address))?;
            Some(format!(
                "the network {network} has {address} in it, {what}: no subnet with it is leased or admitted, and the hosts \
                 around it are taken for pods; choose a network apart from the hosts'"
            ))
        };
        pools.filter_map(sentence).collect()
    }

    fn twins(&self, node: &LocalNode) -> Vec<String> {
        let twins = self.membership.peers().into_iter().flat_map(|peers| peers.twins());
        let external = &node.external;
        let sentence = |(subnets, name): (subnet_lease::Subnets, Option<&str>)| {
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
