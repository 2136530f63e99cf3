//! What this kernel has and has not: what does not change while a host runs, or only with a module.

use std::fmt;

use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use crate::state::Sysctl;

/// The kernel and what it comes with. Of an unknown one (all empty) nothing bad is assumed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// `uname -r`.
    pub release: String,
    /// `ID` of os-release; empty where there is none.
    pub distribution: String,
    /// What was looked for and is not there.
    pub lacks: Vec<Feature>,
    /// Settings of the host that not every host has, and this one has.
    pub settings: Vec<Sysctl>,
}

/// A part of the kernel that may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Feature {
    /// Tunnel devices.
    Vxlan,
    /// Traffic rules.
    NfTables,
    /// The family.
    Ipv6,
    /// Rules for packets between ports of one bridge.
    BridgeNetfilter,
}

/// Before it, permanent neighbours counted as well ("neighbor: Improve garbage collection", 5.0).
const PERMANENT_ARE_FREE: (u32, u32) = (5, 0);
/// Before it, source NAT changed a checksum of zero, "none", to one that is wrong ("netfilter: nat: never update the UDP
/// checksum when it's 0", 5.7). Older series got the repair later; the number alone does not show that.
const CHECKSUM_IS_RIGHT: (u32, u32) = (5, 7);

impl System {
    /// Major and minor number; none where the release does not begin with two numbers.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Whether tunnel packets that go through source NAT may get a wrong checksum from an offloading device.
    pub fn breaks_checksums(&self) -> bool {
        self.version().is_some_and(|version| version < CHECKSUM_IS_RIGHT)
    }

    /// Whether the entries of a tunnel device take room in the neighbour table, too.
    pub fn counts_permanent_neighbours(&self) -> bool {
        self.version().is_some_and(|version| version < PERMANENT_ARE_FREE)
    }

    /// Whether this host has such a setting.
    pub fn has(&self, setting: Sysctl) -> bool {
        self.settings.contains(&setting)
    }

    /// What is wanted of a missing feature, in one sentence that names the module and where it is to be had.
    pub fn lack(&self, feature: Feature) -> String {
        let package = feature.package(&self.distribution);
        let package = package.map(|name| format!("; {name} has it")).unwrap_or_default();
        let release = if self.release.is_empty() { "this" } else { &self.release };
        match feature {
            Feature::Ipv6 => format!(
                "kernel {release} has no IPv6, which the network wants: load the module (modprobe ipv6), or start the kernel \
                 without ipv6.disable=1"
            ),
            _ => format!(
                "kernel {release} has no {feature}: load the module (modprobe {}{package})",
                feature.module()
            ),
        }
    }
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vxlan, Self::NfTables, Self::Ipv6, Self::BridgeNetfilter];

    /// What `modprobe` calls it.
    pub fn module(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::NfTables => "nf_tables",
            Self::Ipv6 => "ipv6",
            Self::BridgeNetfilter => "br_netfilter",
        }
    }

    /// The feature that a family needs of the kernel.
    pub fn of_family(family: Family) -> Option<Self> {
        (family == Family::V6).then_some(Self::Ipv6)
    }

    /// The package that distributions keep the module in where it is not in that of the kernel.
    fn package(self, distribution: &str) -> Option<&'static str> {
        match (distribution, self) {
            ("ubuntu", Self::Vxlan) => Some(
                "the package linux-modules-extra-$(uname -r), on a Raspberry Pi linux-modules-extra-raspi,",
            ),
            ("fedora" | "rhel" | "centos" | "rocky" | "almalinux", Self::BridgeNetfilter | Self::Vxlan) => {
                Some("the package kernel-modules or kernel-modules-extra")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.module())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(release: &str, distribution: &str) -> System {
        System { release: release.into(), distribution: distribution.into(), ..System::default() }
    }

    #[test]
    fn what_a_kernel_gets_wrong_follows_from_its_number() {
        for (release, checksums, neighbours) in [
            ("4.18.0-553.el8_10.x86_64", true, true),
            ("4.4", true, true),
            ("5.0.1", true, false),
            ("5.6.19-300.fc32.x86_64", true, false),
            ("5.7.0", false, false),
            ("5.10.0-32-amd64", false, false),
            ("6.18.44", false, false),
            ("unknown", false, false),
            ("", false, false),
        ] {
            let system = system(release, "");
            let found = (system.breaks_checksums(), system.counts_permanent_neighbours());
            assert_eq!(found, (checksums, neighbours), "{release}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_module_and_package() {
        for (distribution, feature, expected) in [
            ("ubuntu", Feature::Vxlan, "linux-modules-extra-raspi"),
            ("debian", Feature::Vxlan, "(modprobe vxlan)"),
            ("rhel", Feature::BridgeNetfilter, "modprobe br_netfilter; the package kernel-modules"),
            ("", Feature::NfTables, "modprobe nf_tables"),
            ("", Feature::Ipv6, "ipv6.disable=1"),
        ] {
            let sentence = system("6.1.0", distribution).lack(feature);
            assert!(
                sentence.contains(expected) && sentence.starts_with("kernel 6.1.0 has no "),
                "{sentence}"
            );
        }
    }
}
