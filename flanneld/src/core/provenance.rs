//! Every fact that the node uses, with its origin.

use backends::{Feature, IfName, Sysctl};
use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use super::NodeCore;

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The subject.
    pub what: String,
    /// The value.
    pub value: String,
    /// Its origin.
    pub from: String,
}

fn fact(what: impl Into<String>, value: impl ToString, from: impl Into<String>) -> Fact {
    Fact { what: what.into(), value: value.to_string(), from: from.into() }
}

impl NodeCore {
    /// The known facts; each comes after those that it follows from.
    pub(super) fn known_facts(&self) -> Vec<Fact> {
        let mut facts = self.underlay_facts();
        facts.extend(self.mtu_facts());
        facts.extend(self.routing_facts());
        facts.extend(self.kernel_facts());
        facts.extend(self.setting_facts());
        facts
    }

    fn underlay_facts(&self) -> Vec<Fact> {
        let Some(external) = self.underlay.external() else { return Vec::new() };
        let index = format!("{} (index {})", external.link, external.index);
        let mut facts = vec![fact("underlay", index, self.underlay.why())];
        for family in Family::ALL {
            let (Some(local), Some(public)) = (external.local.family(family), external.public.family(family))
            else {
                continue;
            };
            facts.push(fact(
                format!("{family} tunnel source"),
                local,
                format!("an address of {}", external.link),
            ));
            let flag = if family == Family::V4 { "--public-ip" } else { "--public-ipv6" };
            let asked = self.settings.iface.public.family(family).is_some();
            let from = if asked { flag } else { "the tunnel source" };
            facts.push(fact(format!("{family} published to peers"), public, from));
        }
        facts
    }

    fn mtu_facts(&self) -> Vec<Fact> {
        let (Some(network), Some(external)) = (self.membership.network(), self.underlay.external()) else {
            return Vec::new();
        };
        let mut facts = vec![fact(format!("MTU of {}", external.link), external.mtu, "the kernel")];
        let devices = network.backends.mtus(&network.config, external);
        facts.extend(devices.iter().map(|(link, mtu, from)| fact(format!("MTU of {link}"), mtu, from)));
        let from = match (devices.len(), network.config.mtu) {
            (0, Some(_)) => "the smaller of the underlay's and the network's configuration",
            (0, None) => "the underlay's",
            (1, _) => "the tunnel device's",
            _ => "the smallest of the tunnel devices'",
        };
        facts.push(fact("MTU for pods", network.backends.mtu(&network.config, external), from));
        facts
    }

    /// How many peers are reached over the wire itself.
    fn routing_facts(&self) -> Vec<Fact> {
        let (Some(network), Some(facts)) = (self.membership.network(), self.underlay.facts()) else {
            return Vec::new();
        };
        let (Some(external), Some(peers)) = (self.underlay.external(), self.membership.peers()) else {
            return Vec::new();
        };
        if !network.backends.routes_directly() {
            return Vec::new();
        }
        let on_wire = |family: Family| {
            let all = peers.peers().filter_map(|p| p.public(family));
            all.fold((0, 0), |(on, all), public| {
                (on + usize::from(facts.on_link(external.index, public)), all + 1)
            })
        };
        let families = network.families().into_iter();
        let one = |family: Family| {
            let (on, all) = on_wire(family);
            let prefixes =
                facts.connected(external.index).filter(|net| net.is_ipv4() == (family == Family::V4));
            let prefixes: Vec<_> = prefixes.map(|net| net.to_string()).take(super::LISTED).collect();
            let from = format!("connected to {}: {}", external.link, prefixes.join(", "));
            fact(format!("{family} peers on the wire"), format!("{on} of {all}"), from)
        };
        families.map(one).collect()
    }

    fn kernel_facts(&self) -> Vec<Fact> {
        let Some(facts) = self.underlay.facts() else { return Vec::new() };
        let system = &facts.system;
        if system.release.is_empty() {
            return Vec::new();
        }
        let there = |feature: &Feature| if system.lacks.contains(feature) { "missing" } else { "there" };
        let features: Vec<_> = Feature::ALL.iter().map(|f| format!("{f} {}", there(f))).collect();
        let mut found = vec![
            fact("kernel", &system.release, "uname"),
            fact("kernel features", features.join(", "), "asked of the kernel"),
        ];
        let checksum = match (self.settings.tx_checksum, system.breaks_checksums()) {
            (Some(on), _) => (if on { "by hardware" } else { "by software" }, "--tunnel-checksum"),
            (None, true) => ("by software", "this kernel gets them wrong behind source NAT (before 5.7)"),
            (None, false) => ("as the kernel has it", "this kernel gets them right (5.7 and later)"),
        };
        if self.membership.network().is_some_and(|n| !n.backends.links().is_empty()) {
            found.push(fact("tunnel checksums", checksum.0, checksum.1));
        }
        found
    }

    fn setting_facts(&self) -> Vec<Fact> {
        let ours = self.membership.network().map(|n| n.backends.links()).unwrap_or_default();
        let one = |(link, name, value): &(IfName, Sysctl, i32)| {
            let from = match self.host_settings.before(*link, *name) {
                _ if ours.contains(link) => "wanted of our device".to_owned(),
                Some(before) => format!("set by us, was {before}"),
                None => "wanted, and found so".to_owned(),
            };
            let path = name.path(*link);
            fact(path.strip_prefix("/proc/sys/").unwrap_or(&path), value, from)
        };
        self.host_settings.wished.iter().map(one).collect()
    }
}
