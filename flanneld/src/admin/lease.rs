//! `flannelctl lease`: who has which subnets, as the store says.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use subnet_lease::etcd::EtcdStore;
use subnet_lease::{Family, Lease};

use super::{Form, Output};
use crate::config::NodeConfig;
use crate::daemon::block_on;
use crate::exit::Failure;

#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum Verb {
    /// List the leases in the store.
    List(Output),
}

/// A lease with the time it has left; none for one that never ends.
type Held = (Lease, Option<Duration>);

/// A key that could not be read, and why.
type Unreadable = (String, String);

pub(super) fn run(verb: Verb, config: NodeConfig) -> Result<String, Failure> {
    let Verb::List(Output { output }) = verb;
    let store = EtcdStore::connect(config.etcd)?;
    let (mut leases, unreadable) = block_on(async { Ok(store.list().await?) })?;
    leases.sort_by_key(|(lease, _)| lease.subnets);
    if output == Form::Json {
        return Ok(as_json(&leases, &unreadable));
    }
    for (key, why) in &unreadable {
        eprintln!("flannelctl: {key} can't be read: {why}");
    }
    Ok(as_table(&leases))
}

fn as_table(leases: &[Held]) -> String {
    if leases.is_empty() {
        return "no leases\n".to_owned();
    }
    let row = |(lease, left): &Held| {
        vec![
            families(|family| lease.subnets.family(family).map(|subnet| subnet.to_string())).join("\n"),
            families(|family| lease.public.family(family).map(|address| address.to_string())).join("\n"),
            lease.node.clone().unwrap_or_default(),
            backend(lease).to_owned(),
            left.map_or_else(|| "for ever".to_owned(), time),
        ]
    };
    super::table(&["SUBNET", "HOST", "NODE", "BACKEND", "LEFT"], leases.iter().map(row))
}

fn as_json(leases: &[Held], unreadable: &[Unreadable]) -> String {
    let lease = |(lease, left): &Held| {
        json!({
            "subnets": families(|family| lease.subnets.family(family).map(|subnet| subnet.to_string())),
            "public": families(|family| lease.public.family(family).map(|address| address.to_string())),
            "node": lease.node,
            "backend": backend(lease),
            "seconds_left": left.map(|left| left.as_secs()),
        })
    };
    let leases: Vec<Value> = leases.iter().map(lease).collect();
    let unreadable: Vec<Value> =
        unreadable.iter().map(|(key, why)| json!({ "key": key, "why": why })).collect();
    super::json(&json!({ "leases": leases, "unreadable": unreadable }))
}

/// Leases of `alloc` and `udp` do not say which.
fn backend(lease: &Lease) -> &str {
    if lease.attrs.kind.is_empty() { "-" } else { &lease.attrs.kind }
}

fn families(text: impl Fn(Family) -> Option<String>) -> Vec<String> {
    Family::ALL.into_iter().filter_map(text).collect()
}

/// Hours and minutes, or minutes and seconds.
fn time(left: Duration) -> String {
    let seconds = left.as_secs();
    match (seconds / 3600, seconds / 60 % 60) {
        (0, minutes) => format!("{minutes}m {:02}s", seconds % 60),
        (hours, minutes) => format!("{hours}h {minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use subnet_lease::{BackendAttrs, Subnets};

    use super::*;

    fn held(subnets: &str, public: &[&str], node: Option<&str>, left: Option<u64>) -> Held {
        let subnets: Subnets = subnets.parse().unwrap();
        let public = public.iter().map(|address| address.parse::<std::net::IpAddr>().unwrap()).collect();
        let lease = Lease {
            node: node.map(str::to_owned),
            ..Lease::new(subnets, public, BackendAttrs::plain("vxlan"))
        };
        (lease, left.map(Duration::from_secs))
    }

    #[test]
    fn a_table_has_a_line_per_family_and_stays_within_a_hundred_columns() {
        let long = "a-node-with-a-name-that-would-not-fit.into-any-column.of.a.terminal.example.com";
        let leases = [
            held("10.5.7.0-24", &["192.168.0.7"], Some("node-7"), Some(86_399)),
            held("10.5.8.0-24&fc00:0:0:8::-64", &["192.168.0.8", "fd00::8"], None, None),
            held(
                "0.0.0.0-0&fc00:1234:5678:9abc::-64",
                &["fd00:1234:5678:9abc:def0:1234:5678:9abc"],
                Some(long),
                Some(61),
            ),
        ];
        let table = as_table(&leases);
        assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
        let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["SUBNET", "HOST", "NODE", "BACKEND", "LEFT"]);
        assert_eq!(words[1], ["10.5.7.0/24", "192.168.0.7", "node-7", "vxlan", "23h", "59m"]);
        assert_eq!(words[2], ["10.5.8.0/24", "192.168.0.8", "vxlan", "for", "ever"]);
        assert_eq!(words[3], ["fc00:0:0:8::/64", "fd00::8"]);
        assert!(table.contains("1m 01s"), "{table}");
        assert_eq!(as_table(&[]), "no leases\n");
    }

    #[test]
    fn json_has_every_field_and_what_could_not_be_read() {
        let unreadable = [("10.5.9.0-24".to_owned(), "not JSON".to_owned())];
        let text = as_json(&[held("10.5.7.0-24", &["192.168.0.7"], Some("n"), None)], &unreadable);
        let expected = json!({
            "leases": [{
                "subnets": ["10.5.7.0/24"], "public": ["192.168.0.7"], "node": "n", "backend": "vxlan", "seconds_left": null,
            }],
            "unreadable": [{ "key": "10.5.9.0-24", "why": "not JSON" }],
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}
