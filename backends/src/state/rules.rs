//! The identity of rules. In recordings those with flannel's own names are written as before other names existed.

use serde::{Deserialize, Serialize};
use subnet_lease::Family;

use crate::rules::iptables::{Flavour, IptablesRules};
use crate::rules::{RuleNames, RuleTable};

/// A table of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "WrittenTable", into = "WrittenTable")]
pub struct TableKey {
    /// Its family.
    pub family: Family,
    /// What it is called.
    pub names: RuleNames,
}

/// What is one network's in one of the four rule sets that a host can have in iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "WrittenIptables", into = "WrittenIptables")]
pub struct IptablesKey {
    /// Which iptables.
    pub flavour: Flavour,
    /// Address family.
    pub family: Family,
    /// What the chains are called.
    pub names: RuleNames,
}

impl RuleTable {
    /// Its identity.
    pub fn key(&self) -> TableKey {
        TableKey { family: self.family, names: self.names }
    }
}

impl IptablesRules {
    /// Its identity.
    pub fn key(&self) -> IptablesKey {
        IptablesKey { flavour: self.flavour, family: self.family, names: self.names }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenTable {
    Flannels(Family),
    Named(Family, RuleNames),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenIptables {
    Flannels(Flavour, Family),
    Named(Flavour, Family, RuleNames),
}

impl From<WrittenTable> for TableKey {
    fn from(written: WrittenTable) -> Self {
        match written {
            WrittenTable::Flannels(family) => Self { family, names: RuleNames::Flannel },
            WrittenTable::Named(family, names) => Self { family, names },
        }
    }
}

impl From<TableKey> for WrittenTable {
    fn from(TableKey { family, names }: TableKey) -> Self {
        if names.are_flannels() { Self::Flannels(family) } else { Self::Named(family, names) }
    }
}

impl From<WrittenIptables> for IptablesKey {
    fn from(written: WrittenIptables) -> Self {
        match written {
            WrittenIptables::Flannels(flavour, family) => Self { flavour, family, names: RuleNames::Flannel },
            WrittenIptables::Named(flavour, family, names) => Self { flavour, family, names },
        }
    }
}

impl From<IptablesKey> for WrittenIptables {
    fn from(IptablesKey { flavour, family, names }: IptablesKey) -> Self {
        if names.are_flannels() {
            Self::Flannels(flavour, family)
        } else {
            Self::Named(flavour, family, names)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Key;

    #[test]
    fn keys_with_flannels_names_are_written_as_older_programs_read_them() {
        let table = |names| Key::Table(TableKey { family: Family::V6, names });
        let iptables =
            |names| Key::Iptables(IptablesKey { flavour: Flavour::Nft, family: Family::V4, names });
        for (key, text) in [
            (table(RuleNames::Flannel), r#"{"Table":"V6"}"#),
            (table(RuleNames::Network(7)), r#"{"Table":["V6",{"network":7}]}"#),
            (iptables(RuleNames::Flannel), r#"{"Iptables":["nft","V4"]}"#),
            (iptables(RuleNames::Network(7)), r#"{"Iptables":["nft","V4",{"network":7}]}"#),
        ] {
            assert_eq!(serde_json::to_string(&key).unwrap(), text);
            assert_eq!(serde_json::from_str::<Key>(text).unwrap(), key);
        }
    }
}
