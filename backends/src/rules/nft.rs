//! A table as text for `nft -f -`.

use std::fmt;

use subnet_lease::Family;

use super::{Chain, ChainKind, End, Hook, Match, Policy, Rule, RuleTable, Verdict};

impl RuleTable {
    /// The table's name: `flannel-ipv4` or `flannel-ipv6`, and of another than the daemon's first network more.
    pub fn name(&self) -> String {
        self.names.table(self.family)
    }

    /// The family as nft says it: `ip` or `ip6`.
    pub fn nft_family(&self) -> &'static str {
        nft_family(self.family)
    }

    /// Text that replaces the whole table in one transaction when given to `nft -f -`. What the kernel then reports
    /// reads as equal to this table.
    pub fn to_nft(&self) -> String {
        self.to_string()
    }
}

fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

impl fmt::Display for RuleTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = format!("table {} {}", self.nft_family(), self.name());
        // Only what exists can be deleted, hence the first line.
        writeln!(f, "add {table}\ndelete {table}\n{table} {{")?;
        if self.flags != 0 {
            writeln!(f, "\t# flags {:#x}", self.flags)?;
        }
        self.chains.iter().try_for_each(|chain| write!(f, "{chain}"))?;
        writeln!(f, "}}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if self.hook != Hook::Other(None) {
            let Self { kind, hook, priority, policy, .. } = self;
            writeln!(f, "\t\ttype {kind} hook {hook} priority {priority}; policy {policy};")?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "\t\t{rule}"))?;
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for ChainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Other(kind) => kind,
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward => f.write_str("forward"),
            Self::Postrouting => f.write_str("postrouting"),
            Self::Other(Some(number)) => write!(f, "{number}"),
            Self::Other(None) => f.write_str("none"),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::When(matches, verdict) => {
                matches.iter().try_for_each(|m| write!(f, "{m} "))?;
                write!(f, "{verdict}")
            }
            Self::Unknown(expressions) => write!(f, "# not ours: {expressions}"),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { end, inside, net } => {
                let family = nft_family(Family::of(&net.ip()));
                let end = if *end == End::Source { "saddr" } else { "daddr" };
                write!(f, "{family} {end} {}{net}", if *inside { "" } else { "!= " })
            }
            Self::Mark(bits) => write!(f, "meta mark & {bits:#x} == {bits:#x}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Return => "return",
            Self::Masquerade { fully_random: false } => "masquerade",
            Self::Masquerade { fully_random: true } => "masquerade fully-random",
        })
    }
}
