//! The names of rules in the kernel, by network.

use serde::{Deserialize, Serialize};
use subnet_lease::{Family, NetworkId};

use super::iptables::{FWD, POSTRTG};
use crate::local::hash::Fnv32;

/// The names that one network's tables and chains have. Two networks of a host never have the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleNames {
    /// flannel's own names, which a daemon's first network has.
    #[default]
    Flannel,
    /// flannel's names, then a hyphen and this number of the network's id in eight hexadecimal digits.
    Network(u32),
}

impl RuleNames {
    /// The names that a network has which is not its daemon's first.
    pub fn of(network: &NetworkId) -> Self {
        Self::Network(Fnv32::of(network.as_str().as_bytes()).value())
    }

    /// Whether these are flannel's own. Such are not written into recordings, which older programs read.
    pub fn are_flannels(&self) -> bool {
        *self == Self::Flannel
    }

    /// The name of the table of a family.
    pub fn table(self, family: Family) -> String {
        self.chain(table_of(family))
    }

    /// The name that takes the place of a chain of flannel's in iptables, which allows 28 characters.
    pub fn chain(self, flannels: &str) -> String {
        match self {
            Self::Flannel => flannels.to_owned(),
            Self::Network(number) => format!("{flannels}-{number:08x}"),
        }
    }

    /// What a table of this name is, if it is one of ours or of another network.
    pub fn of_table(name: &str) -> Option<(Family, Self)> {
        Family::ALL.into_iter().find_map(|family| Some((family, Self::behind(table_of(family), name)?)))
    }

    /// Whose a chain of iptables with this name is, if it is one of ours or of another network.
    pub fn of_chain(name: &str) -> Option<Self> {
        [POSTRTG, FWD].into_iter().find_map(|flannels| Self::behind(flannels, name))
    }

    fn behind(flannels: &str, name: &str) -> Option<Self> {
        let rest = name.strip_prefix(flannels)?;
        if rest.is_empty() {
            return Some(Self::Flannel);
        }
        let names = Self::Network(u32::from_str_radix(rest.strip_prefix('-')?, 16).ok()?);
        // Exactly as written: no sign, no capital letter, eight digits.
        (names.chain(flannels) == name).then_some(names)
    }
}

fn table_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_network_has_names_of_its_own_that_read_back_and_fit_iptables() {
        let other = RuleNames::of(&NetworkId::new("/other"));
        for names in [RuleNames::Flannel, other, RuleNames::Network(7), RuleNames::Network(u32::MAX)] {
            for family in Family::ALL {
                assert_eq!(RuleNames::of_table(&names.table(family)), Some((family, names)));
            }
            for chain in [POSTRTG, FWD].map(|chain| names.chain(chain)) {
                assert_eq!(RuleNames::of_chain(&chain), Some(names));
                assert!(chain.len() <= 28, "{chain}");
            }
        }
        assert_eq!(RuleNames::Flannel.table(Family::V4), "flannel-ipv4");
        assert_eq!(RuleNames::Flannel.chain(FWD), "FLANNEL-FWD");
        assert_eq!(other.chain(FWD), format!("FLANNEL-FWD-{}", Fnv32::of(b"/other")));
    }

    #[test]
    fn a_name_that_we_would_not_write_is_nobodys() {
        for name in ["flannel-ipv4-", "flannel-ipv4-+0000007", "flannel-ipv4-0000000A", "flannel-ipv4-7", "x"]
        {
            assert_eq!(RuleNames::of_table(name), None, "{name}");
        }
        for name in ["FLANNEL-FWD-00000007x", "FLANNEL-FWD7", "KUBE-FORWARD"] {
            assert_eq!(RuleNames::of_chain(name), None, "{name}");
        }
    }
}
