//! `flannelctl lease`: who has which subnets, as the store says.

use std::net::IpAddr;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use subnet_lease::{
    BackendAttrs, Family, IpNetwork, Lease, Listed, NetworkConfig, Shown, Store, Subnets, open,
};

use super::{Form, Output};
use crate::config::NodeConfig;
use crate::daemon::block_on;
use crate::exit::{Exit, Failure};

#[derive(Debug, Clone, Subcommand)]
pub(super) enum Verb {
    /// List the leases in the store.
    List(Output),
    /// Print one lease and its record, as the store has it.
    Show(Which),
    /// Keep subnets for one host for ever: a key without an end. The host takes them when it claims.
    Reserve {
        #[command(flatten)]
        which: Which,
        /// Address by which the host is known; once per family.
        #[arg(long = "for", value_name = "ADDRESS", required = true)]
        public: Vec<IpAddr>,
        /// Its name; without one every host of that address may take it.
        #[arg(long)]
        node: Option<String>,
    },
    /// End a lease or reservation, so that somebody else may have the subnets at once. A reservation that its host has
    /// claimed becomes a lease with an end again.
    Release {
        #[command(flatten)]
        which: Which,
        /// Also the lease of a host that may run. One that does claims it again at once, if nobody is faster; until then
        /// its pods are cut off.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Which {
    /// The lease's subnets, one per family: 10.5.7.0/24, or 10.5.7.0/24 fc00:0:0:7::/64.
    #[arg(required = true, num_args = 1..=2, value_name = "SUBNET")]
    subnets: Vec<IpNetwork>,
}

impl Which {
    fn subnets(&self) -> Result<Subnets, Failure> {
        let exact = Subnets::of(self.subnets.iter().copied());
        let exact = exact.filter(|found| found.iter().count() == self.subnets.len());
        let aligned =
            exact.filter(|found| self.subnets.iter().all(|net| found.iter().any(|own| own == *net)));
        aligned.ok_or_else(|| {
            wrong("subnets are written with their first address, at most one of each family".to_owned())
        })
    }
}

fn wrong(why: String) -> Failure {
    Failure::new(Exit::Invalid, why)
}

/// A lease with the time it has left; none for one that never ends.
type Held = (Lease, Option<Duration>);

/// A key that could not be read, and why.
type Unreadable = (String, String);

pub(super) fn run(verb: Verb, config: NodeConfig) -> Result<String, Failure> {
    let margin = config.store.renew_margin();
    let store = open(&config.store)?;
    let store = &*store;
    match verb {
        Verb::List(Output { output }) => list(store, output),
        Verb::Show(which) => block_on(async { Ok(tell(&found(store, which.subnets()?).await?)) }),
        Verb::Reserve { which, public, node } => {
            let lease = Lease {
                node,
                ..Lease::new(which.subnets()?, public.into_iter().collect(), BackendAttrs::default())
            };
            block_on(reserve(store, lease))
        }
        Verb::Release { which, force } => block_on(async {
            let shown = found(store, which.subnets()?).await?;
            let (who, subnets) = (holder(&shown.lease), shown.lease.subnets);
            if let Some(why) = alive(&shown, margin).filter(|_| !force) {
                return Err(Failure::new(Exit::Failed, why));
            }
            if shown.time.is_none() && !force && !is_unclaimed(store, &shown.lease).await? {
                store.unreserve(&shown).await?;
                return Ok(format!(
                    "{subnets}: no longer reserved; a lease of {who}, which ends unless it is renewed\n"
                ));
            }
            store.end(&shown).await?;
            Ok(format!("{subnets}, held by {who}: released\n"))
        }),
    }
}

async fn found(store: &dyn Store, subnets: Subnets) -> Result<Shown, Failure> {
    let shown = store.show(&subnets).await?;
    shown.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("{subnets}: there is no lease of exactly these subnets"))
    })
}

/// Whether no host holds a reservation yet. Hosts of the alloc backend publish nothing, so it cannot be known of them.
async fn is_unclaimed(store: &dyn Store, lease: &Lease) -> Result<bool, Failure> {
    let config = store.get_config().await?.and_then(|stored| NetworkConfig::parse(&stored.json).ok());
    let silent = config.is_none_or(|(network, _)| network.backend.record_name().is_empty());
    Ok(lease.is_unclaimed() && !silent)
}

/// Why the holder may well run. A host renews when its lease has the margin left to live, once a day: nobody can tell one
/// that runs from one that stopped since it last did so, until it does not do so again.
fn alive(shown: &Shown, margin: Duration) -> Option<String> {
    let (granted, left) = shown.time.filter(|(_, left)| *left > margin)?;
    let Lease { subnets, .. } = shown.lease;
    Some(format!(
        "{subnets}: {} renewed it {} ago and need not do so again for {}, so it may run; if it surely does not, --force \
         releases the lease (if it runs after all, it claims it again at once, and its pods are cut off until then)",
        holder(&shown.lease),
        time(granted.saturating_sub(left)),
        time(left.saturating_sub(margin)),
    ))
}

/// A name of the store is whatever somebody wrote.
fn holder(lease: &Lease) -> String {
    let name = lease
        .node
        .as_ref()
        .map_or_else(|| "a node without a name".to_owned(), |node| format!("node {node:?}"));
    format!("{name} at {}", lease.public)
}

async fn reserve(store: &dyn Store, lease: Lease) -> Result<String, Failure> {
    let subnets = lease.subnets;
    let config = store.get_config().await?.ok_or_else(|| {
        Failure::new(Exit::Failed, "the store has no net-conf; flannelctl network set FILE writes one")
    })?;
    let lines = |errors: Vec<_>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let (network, _) = NetworkConfig::parse(&config.json).map_err(|errors| wrong(lines(errors)))?;
    if !network.leases(&subnets) {
        let pools: Vec<_> =
            network.pools().map(|p| format!("/{} of {} to {}", p.subnet_len, p.min, p.max)).collect();
        return Err(wrong(format!(
            "{subnets} is no subnet that this network leases ({})",
            pools.join(" and ")
        )));
    }
    let others = store.list().await?.leases;
    let overlaps = |other: &&Lease| other.subnets != subnets && other.subnets.overlaps(&subnets);
    if let Some(other) = others.iter().map(|(other, _)| other).find(overlaps) {
        let who = holder(other);
        return Err(Failure::new(
            Exit::Failed,
            format!("{subnets} overlaps {}, which is held by {who}", other.subnets),
        ));
    }
    let shown = store.show(&subnets).await?;
    let same = |shown: &Shown| {
        shown.lease.public.meets(&lease.public) && (lease.node.is_none() || lease.node == shown.lease.node)
    };
    match shown {
        None => store.reserve(&lease, None).await?,
        // What it says stays; only its end goes.
        Some(shown) if same(&shown) => store.reserve(&shown.lease, Some(&shown)).await?,
        Some(shown) => {
            let who = holder(&shown.lease);
            return Err(Failure::new(Exit::Failed, format!("{subnets} is held by {who}")));
        }
    }
    Ok(format!("{subnets}: reserved for {}\n", holder(&lease)))
}

fn tell(shown: &Shown) -> String {
    let left = shown.time.map_or_else(
        || "for ever".to_owned(),
        |(granted, left)| format!("{} of {}", time(left), time(granted)),
    );
    let rows = [
        ("subnets", shown.lease.subnets.iter().map(|net| net.to_string()).collect::<Vec<_>>().join(" ")),
        ("held by", holder(&shown.lease)),
        ("left", left),
        ("record", String::from_utf8_lossy(&shown.record).chars().filter(|c| !c.is_control()).collect()),
    ];
    rows.iter().map(|(name, value)| format!("{name:8} {value}\n")).collect()
}

fn list(store: &dyn Store, output: Form) -> Result<String, Failure> {
    let Listed { mut leases, unreadable } = block_on(async { Ok(store.list().await?) })?;
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
        let public = public.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect();
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
