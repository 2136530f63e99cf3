//! The command line of the daemon: one table of flags, from which parsing, help, environment names and the reference
//! page come.
//!
//! ```text
//!   arguments ─▶ parse (Go's flag syntax) ─▶ Command::Run(Vec<Given>) ─▶ config (with environment, file, defaults)
//!                  └──────── TABLE ────────┴──▶ usage(), reference(), flannelctl's own flags
//! ```

mod parse;
mod table;
mod text;
mod width;

pub use parse::{BadArgument, Command, Given, parse, parse_bool, parse_int};
pub use table::TABLE;
pub use text::{reference, usage};
pub(crate) use width::terminal_width;

use clap::error::ErrorKind;

use crate::exit::Exit;

/// One setting: a flag with its variable, or a variable alone.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Name of the flag without dashes; of a variable alone, its name in capitals.
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// The value when nobody gives one, as it would be written.
    pub default: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Whether it does anything here.
    pub status: Status,
    /// Never shown in logs or listings.
    pub secret: bool,
}

/// What a setting's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `-x` or `-x=false`, never `-x false`.
    Bool,
    /// A whole number, also in Go's `0x`, `0o` and `0b` forms.
    Int,
    /// Text; each further occurrence adds one.
    List,
}

/// Whether a setting does anything here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Supported,
    /// flannel has it, this daemon not yet: refused unless its value is the default. The reason is a sentence.
    NotYet(&'static str),
    /// Accepted, so that command lines written for flannel work, and without effect. The reason is a sentence.
    NoEffect(&'static str),
}

impl Flag {
    /// The environment variable that sets it; none for flags that only a command line can have.
    pub fn variable(&self) -> Option<String> {
        match self.name {
            "version" => None,
            name if self.is_variable_only() => Some(name.to_owned()),
            name => Some(format!("FLANNELD_{}", name.to_uppercase().replace(['-', '.'], "_"))),
        }
    }

    /// Whether there is no flag, only an environment variable.
    pub fn is_variable_only(&self) -> bool {
        !self.name.contains(|c: char| c.is_ascii_lowercase())
    }
}

/// The row of a flag or of a variable that has no flag.
pub fn lookup(name: &str) -> Option<&'static Flag> {
    rows().find(|flag| flag.name == name)
}

/// Every row, in the order of the help.
pub fn rows() -> impl Iterator<Item = &'static Flag> {
    TABLE.iter().flat_map(|(_, rows)| rows.iter())
}

/// Prints clap's message, which is an error or the help that was asked for. Returns the exit code.
pub(crate) fn refuse(error: &clap::Error) -> Exit {
    // Nobody may read standard error.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        ErrorKind::InvalidSubcommand => Exit::Word,
        _ => Exit::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The names of flannel's flags, from its `--help`.
    const FLANNEL: &[&str] = &[
        "etcd-cafile",
        "etcd-certfile",
        "etcd-endpoints",
        "etcd-keyfile",
        "etcd-password",
        "etcd-prefix",
        "etcd-username",
        "healthz-ip",
        "healthz-port",
        "iface",
        "iface-can-reach",
        "iface-regex",
        "ip-blackhole-route",
        "ip-masq",
        "ip-masq-fully-random-disable",
        "iptables-forward-rules",
        "iptables-resync",
        "kube-annotation-prefix",
        "kube-api-url",
        "kube-subnet-mgr",
        "kubeconfig-file",
        "log_backtrace_at",
        "net-config-path",
        "public-ip",
        "public-ipv6",
        "set-node-network-unavailable",
        "subnet-file",
        "subnet-lease-renew-margin",
        "v",
        "version",
        "vmodule",
    ];

    #[test]
    fn every_flag_of_flannel_has_a_row() {
        let missing: Vec<_> = FLANNEL.iter().filter(|name| lookup(name).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn every_variable_that_flannel_reads_has_a_row() {
        for name in [
            "NODE_NAME",
            "POD_NAME",
            "POD_NAMESPACE",
            "EVENT_QUEUE_DEPTH",
            "CONT_WHEN_CACHE_NOT_READY",
            "WIREGUARD_KEY_FILE",
            "ACCESS_KEY_ID",
            "ACCESS_KEY_SECRET",
            "NOTIFY_SOCKET",
        ] {
            assert!(lookup(name).is_some_and(Flag::is_variable_only), "{name}");
        }
    }

    #[test]
    fn a_name_stands_once_in_the_table() {
        let names: BTreeSet<_> = rows().map(|flag| flag.name).collect();
        assert_eq!(names.len(), rows().count());
    }

    #[test]
    fn a_variable_is_the_flag_in_capitals_after_a_prefix() {
        let variable = |name: &str| lookup(name).unwrap().variable();
        assert_eq!(variable("etcd-prefix").as_deref(), Some("FLANNELD_ETCD_PREFIX"));
        assert_eq!(variable("log_backtrace_at").as_deref(), Some("FLANNELD_LOG_BACKTRACE_AT"));
        assert_eq!(variable("NODE_NAME").as_deref(), Some("NODE_NAME"));
        assert_eq!(variable("version"), None);
    }

    #[test]
    fn every_default_is_a_value_of_its_kind() {
        for flag in rows() {
            match flag.kind {
                Kind::Bool => assert!(parse_bool(flag.default).is_some(), "{}", flag.name),
                Kind::Int => assert!(parse_int(flag.default).is_some(), "{}", flag.name),
                Kind::Text | Kind::List => {}
            }
        }
    }
}
