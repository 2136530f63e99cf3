//! `flannelctl lease`: who has which subnets, as the store has it.

use std::net::IpAddr;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use subnet_lease::{
    BackendAttrs, Family, IpNetwork, Lease, Listed, NetworkConfig, Shown, Store, Subnets, open,
};

use super::{Answer, Table, clean};
use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};
use crate::shell::block_on;

#[derive(Debug, Clone, Subcommand)]
pub(super) enum Verb {
    /// List the leases in the store.
    List,
    /// Print the leases of a node, an address or a subnet with their records, as the store has them.
    Show(Wanted),
    /// Keep subnets for one host for ever. The host gets them when it claims a lease.
    Reserve {
        #[command(flatten)]
        which: Which,
        /// Address by which the host is known; once per family.
        #[arg(long = "for", value_name = "ADDRESS", required = true)]
        public: Vec<IpAddr>,
        /// Its name; without one, every host of that address may take the subnets.
        #[arg(long)]
        node: Option<String>,
    },
    /// End a lease or reservation, so that another host may have the subnets at once. A reservation that its host has claimed
    /// becomes a lease with an end again.
    Release {
        #[command(flatten)]
        wanted: Wanted,
        /// Also the lease of a host that may run. A host that runs claims it again at once, unless another is faster; until
        /// then its pods are cut off.
        #[arg(long)]
        force: bool,
    },
}

/// Leases by what people know of them.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Wanted {
    /// A node's name, an address (of the host or of a pod), or a subnet: 10.5.7.0/24.
    #[arg(required = true, num_args = 1..=2, value_name = "NODE|IP|SUBNET")]
    words: Vec<String>,
}

impl Wanted {
    /// Whether all words fit this lease.
    fn fits(&self, lease: &Lease) -> bool {
        self.words.iter().all(|word| {
            if let Ok(address) = word.parse::<IpAddr>() {
                let public = lease.public.family(Family::of(&address)) == Some(address);
                return public || lease.subnets.iter().any(|subnet| subnet.contains(address));
            }
            match word.parse::<IpNetwork>() {
                Ok(net) => lease.subnets.iter().any(|subnet| subnet == net),
                Err(_) => lease.node.as_ref() == Some(word),
            }
        })
    }
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

pub(super) fn run(verb: Verb, config: NodeConfig) -> Result<Answer, Failure> {
    let margin = config.store.renew_margin();
    let store = open(&config.store)?;
    let store = &*store;
    match verb {
        Verb::List => list(store),
        Verb::Show(wanted) => block_on(async { Ok(described(&found(store, &wanted).await?)) }),
        Verb::Reserve { which, public, node } => {
            let lease = Lease {
                node,
                ..Lease::new(which.subnets()?, public.into_iter().collect(), BackendAttrs::default())
            };
            block_on(reserve(store, lease))
        }
        Verb::Release { wanted, force } => block_on(async {
            let shown = found(store, &wanted).await?;
            let [shown] = &shown[..] else {
                let subnets: Vec<_> = shown.iter().map(|shown| shown.lease.subnets.to_string()).collect();
                return Err(wrong(format!("several leases fit; name the subnet: {}", subnets.join(", "))));
            };
            if let Some(why) = alive(shown, margin).filter(|_| !force) {
                return Err(Failure::new(Exit::Failed, why));
            }
            if shown.time.is_none() && !force && !is_unclaimed(store, &shown.lease).await? {
                store.unreserve(shown).await?;
                return Ok(done(&shown.lease, "no longer reserved; it ends unless it is renewed"));
            }
            store.end(shown).await?;
            Ok(done(&shown.lease, "released"))
        }),
    }
}

/// What was done to a lease.
fn done(lease: &Lease, what: &str) -> Answer {
    let subnets = families(|family| lease.subnets.family(family).map(|subnet| subnet.to_string()));
    let public = families(|family| lease.public.family(family).map(|address| address.to_string()));
    Answer::new(json!({ "subnets": subnets, "public": public, "node": lease.node, "done": what }))
        .text(format!("{}, held by {}: {what}\n", lease.subnets, holder(lease)))
}

/// This node's lease, for `cleanup --release-lease`.
pub(super) struct OwnLease(Option<Shown>);

/// Finds it by the node's name, or where it has none by the subnets that subnet.env names.
pub(super) fn own_lease(config: &NodeConfig, leased: Option<Subnets>) -> Result<OwnLease, Failure> {
    let store = open(&config.store)?;
    let is_own = |lease: &Lease| match &lease.node {
        Some(node) => config.core.node.as_deref() == Some(node.as_str()),
        None => Some(lease.subnets) == leased,
    };
    block_on(async {
        let leases = store.list().await?.leases;
        let own = leases.into_iter().map(|(lease, _)| lease).find(is_own);
        Ok(OwnLease(match own {
            Some(lease) => store.show(&lease.subnets).await?,
            None => None,
        }))
    })
}

impl OwnLease {
    /// The command that does the same; none where nothing is to be done.
    pub(super) fn step(&self) -> Option<String> {
        let shown = self.0.as_ref().filter(|shown| shown.time.is_some())?;
        let subnets: Vec<_> = shown.lease.subnets.iter().map(|subnet| subnet.to_string()).collect();
        Some(format!("flannelctl lease release --force {}", subnets.join(" ")))
    }

    /// Why nothing is to be done.
    pub(super) fn note(&self) -> Option<String> {
        match &self.0 {
            None => Some("the store has no lease of this node".to_owned()),
            Some(shown) if shown.time.is_none() => Some(format!(
                "{} is a reservation of {}: it stays",
                shown.lease.subnets,
                holder(&shown.lease)
            )),
            Some(_) => None,
        }
    }

    pub(super) fn end(self, config: &NodeConfig) -> Result<(), Failure> {
        let Some(shown) = self.0.filter(|shown| shown.time.is_some()) else { return Ok(()) };
        let store = open(&config.store)?;
        block_on(async { Ok(store.end(&shown).await?) })
    }
}

/// At least one.
async fn found(store: &dyn Store, wanted: &Wanted) -> Result<Vec<Shown>, Failure> {
    let Listed { mut leases, unreadable } = store.list().await?;
    leases.sort_by_key(|(lease, _)| lease.subnets);
    let mut found = Vec::new();
    for (lease, _) in leases.iter().filter(|(lease, _)| wanted.fits(lease)) {
        // It may have ended meanwhile.
        found.extend(store.show(&lease.subnets).await?);
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let words = wanted.words.join(" ");
    let key = words.replace('/', "-");
    let why = match unreadable.iter().find(|(name, _)| name.split('&').any(|part| part == key)) {
        Some((name, why)) => format!("{name} can't be read: {why}"),
        None => {
            format!("{words}: no lease has this node, address or subnet (flannelctl lease list shows all)")
        }
    };
    Err(Failure::new(Exit::Failed, why))
}

/// Whether no host holds a reservation yet. Hosts of the alloc backend publish nothing, so it cannot be known of them.
async fn is_unclaimed(store: &dyn Store, lease: &Lease) -> Result<bool, Failure> {
    let config = store.get_config().await?.and_then(|stored| NetworkConfig::parse(&stored.json).ok());
    let silent = config.is_none_or(|(network, _)| network.backend.record_name().is_empty());
    Ok(lease.is_unclaimed() && !silent)
}

/// Why the holder may run. A host renews its lease once a day, when the margin is left. Until then nothing in the store
/// distinguishes a host that runs from one that has stopped.
fn alive(shown: &Shown, margin: Duration) -> Option<String> {
    let (granted, left) = shown.time.filter(|(_, left)| *left > margin)?;
    let Lease { subnets, .. } = shown.lease;
    Some(format!(
        "{subnets}: {} renewed it {} ago and renews it again in {}, so it may run; if you know that it does not run, use --force \
         (a host that runs claims its lease again at once, and its pods are cut off until then)",
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

async fn reserve(store: &dyn Store, lease: Lease) -> Result<Answer, Failure> {
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
        // Its content stays; only its end is removed.
        Some(shown) if same(&shown) => store.reserve(&shown.lease, Some(&shown)).await?,
        Some(shown) => {
            let who = holder(&shown.lease);
            return Err(Failure::new(Exit::Failed, format!("{subnets} is held by {who}")));
        }
    }
    Ok(done(&lease, "reserved"))
}

/// Leases in full.
fn described(all: &[Shown]) -> Answer {
    let record = |shown: &Shown| String::from_utf8_lossy(&shown.record).into_owned();
    let json = |shown: &Shown| {
        let mut json = lease_as_json(&shown.lease, shown.time.map(|(_, left)| left));
        json["seconds_granted"] = shown.time.map(|(granted, _)| granted.as_secs()).into();
        json["record"] = record(shown).into();
        json
    };
    let text = |shown: &Shown| {
        let left = shown.time.map_or_else(
            || "for ever (a reservation)".to_owned(),
            |(granted, left)| format!("{} of {}", time(left), time(granted)),
        );
        let subnets: Vec<_> = shown.lease.subnets.iter().map(|net| net.to_string()).collect();
        let rows = [
            ("subnets", subnets.join(" ")),
            ("held by", holder(&shown.lease)),
            ("backend", backend(&shown.lease).to_owned()),
            ("left", left),
            ("record", clean(&record(shown))),
        ];
        rows.iter().map(|(name, value)| format!("{name:8} {value}\n")).collect::<String>()
    };
    let texts: Vec<_> = all.iter().map(text).collect();
    Answer::new(json!({ "leases": all.iter().map(json).collect::<Vec<_>>() })).text(texts.join("\n"))
}

fn list(store: &dyn Store) -> Result<Answer, Failure> {
    let Listed { mut leases, unreadable } = block_on(async { Ok(store.list().await?) })?;
    leases.sort_by_key(|(lease, _)| lease.subnets);
    for (key, why) in &unreadable {
        eprintln!("flannelctl: {} can't be read: {}", clean(key), clean(why));
    }
    let answer = Answer::new(as_json(&leases, &unreadable));
    Ok(if leases.is_empty() { answer.text("no leases\n") } else { answer.table(as_table(&leases)) })
}

fn as_table(leases: &[Held]) -> Table {
    let row = |(lease, left): &Held| {
        vec![
            families(|family| lease.subnets.family(family).map(|subnet| subnet.to_string())).join("\n"),
            families(|family| lease.public.family(family).map(|address| address.to_string())).join("\n"),
            clean(lease.node.as_deref().unwrap_or("-")),
            clean(backend(lease)),
            left.map_or_else(|| "for ever".to_owned(), time),
        ]
    };
    Table::new(&["SUBNET", "HOST", "NODE", "BACKEND", "LEFT"], leases.iter().map(row))
}

fn as_json(leases: &[Held], unreadable: &[Unreadable]) -> Value {
    let leases: Vec<Value> = leases.iter().map(|(lease, left)| lease_as_json(lease, *left)).collect();
    let unreadable: Vec<Value> =
        unreadable.iter().map(|(key, why)| json!({ "key": key, "why": why })).collect();
    json!({ "leases": leases, "unreadable": unreadable })
}

fn lease_as_json(lease: &Lease, left: Option<Duration>) -> Value {
    json!({
        "subnets": families(|family| lease.subnets.family(family).map(|subnet| subnet.to_string())),
        "public": families(|family| lease.public.family(family).map(|address| address.to_string())),
        "node": lease.node,
        "backend": backend(lease),
        "seconds_left": left.map(|left| left.as_secs()),
    })
}

/// Leases of `alloc` and `udp` do not contain which.
fn backend(lease: &Lease) -> &str {
    if lease.attrs.kind.is_empty() { "-" } else { &lease.attrs.kind }
}

fn families(text: impl Fn(Family) -> Option<String>) -> Vec<String> {
    Family::ALL.into_iter().filter_map(text).collect()
}

/// Hours and minutes, or minutes and seconds.
pub(super) fn time(left: Duration) -> String {
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
    fn a_table_has_a_line_per_family_and_fits_the_terminal() {
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
        let table = as_table(&leases).lines(Some(170));
        assert!(table.lines().all(|line| line.chars().count() <= 170), "{table}");
        let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["SUBNET", "HOST", "NODE", "BACKEND", "LEFT"]);
        assert_eq!(words[1], ["10.5.7.0/24", "192.168.0.7", "node-7", "vxlan", "23h", "59m"]);
        assert_eq!(words[2], ["10.5.8.0/24", "192.168.0.8", "-", "vxlan", "for", "ever"]);
        assert_eq!(words[3], ["fc00:0:0:8::/64", "fd00::8"]);
        assert!(table.contains("1m 01s"), "{table}");
    }

    #[test]
    fn json_has_every_field_and_what_could_not_be_read() {
        let unreadable = [("10.5.9.0-24".to_owned(), "not JSON".to_owned())];
        let listed = as_json(&[held("10.5.7.0-24", &["192.168.0.7"], Some("n"), None)], &unreadable);
        let expected = json!({
            "leases": [{
                "subnets": ["10.5.7.0/24"], "public": ["192.168.0.7"], "node": "n", "backend": "vxlan", "seconds_left": null,
            }],
            "unreadable": [{ "key": "10.5.9.0-24", "why": "not JSON" }],
        });
        assert_eq!(listed, expected);
    }

    #[test]
    fn a_lease_is_found_by_its_node_an_address_or_a_subnet() {
        let (lease, _) =
            held("10.5.8.0-24&fc00:0:0:8::-64", &["192.168.0.8", "fd00::8"], Some("node-8"), None);
        let fits =
            |words: &[&str]| Wanted { words: words.iter().map(|w| (*w).to_owned()).collect() }.fits(&lease);
        for words in [
            &["node-8"][..],
            &["192.168.0.8"],
            &["10.5.8.77"],
            &["fc00:0:0:8::1"],
            &["10.5.8.0/24"],
            &["10.5.8.0/24", "fc00:0:0:8::/64"],
        ] {
            assert!(fits(words), "{words:?}");
        }
        for words in [&["node-9"][..], &["10.5.9.1"], &["10.5.8.0/25"], &["10.5.8.0/24", "node-9"]] {
            assert!(!fits(words), "{words:?}");
        }
    }
}
