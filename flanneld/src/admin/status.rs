//! `flannelctl status` and `flannelctl peers`: what the daemon on this host reports about itself.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use super::{Answer, Form, Table, clean};
use crate::config::NodeConfig;
use crate::core::{LeaseReport, PassReport, PeerReport, Status};
use crate::exit::{Exit, Failure};
use crate::host::pool::{self, Pool};
use crate::serve::socket::{self, NoStatus};
use crate::shell::block_on;
use crate::shell::rival;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Wait until the node is ready, for so many seconds at most.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60")]
    pub(super) wait: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Peers {
    /// Print the peers again whenever they change.
    #[arg(long)]
    watch: bool,
}

/// Time between two questions of whoever waits. Ours.
const AGAIN: Duration = Duration::from_millis(200);

/// Peers that `status` shows; `peers` shows all of them.
const PEERS_SHOWN: usize = 8;

pub(super) fn run(arguments: &Arguments, config: &NodeConfig) -> Result<(Answer, Exit), Failure> {
    let asked = block_on(async { Ok(ask_until(arguments.wait, config).await) })?;
    let status = asked.map_err(|error| Failure::new(Exit::NotReady, sentence(&error, config)))?;
    let exit = if status.ready { Exit::Done } else { Exit::NotReady };
    let mut answer = Answer::new(&status);
    for (n, table) in tables(&status, &pool::read(Path::new(pool::INDEXES))).into_iter().enumerate() {
        answer = if n == 0 { answer.table(table) } else { answer.text("\n").table(table) };
    }
    Ok((answer, exit))
}

/// The last answer within the time, or the first one of a node that is ready.
async fn ask_until(seconds: Option<u64>, config: &NodeConfig) -> Result<Status, NoStatus> {
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds.unwrap_or_default());
    loop {
        let asked = socket::ask(&config.daemons, &config.core.network, false).await;
        if asked.as_ref().is_ok_and(|status| status.ready) || tokio::time::Instant::now() + AGAIN > end {
            return asked;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Prints by itself: with `--watch` it has no end.
pub(super) fn peers(
    arguments: &Peers,
    form: Form,
    width: Option<usize>,
    config: &NodeConfig,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut last = String::new();
    block_on(async {
        loop {
            let asked = socket::ask(&config.daemons, &config.core.network, true).await;
            let status = asked.map_err(|error| Failure::new(Exit::NotReady, sentence(&error, config)))?;
            let text = peers_of(&status).print(form, width);
            if text != last {
                // A terminal shows the newest alone.
                let clear = if arguments.watch && width.is_some() { "\x1b[H\x1b[2J" } else { "" };
                match write!(out, "{clear}{text}").and_then(|()| out.flush()) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    written => written
                        .map_err(|error| Failure::new(Exit::Failed, format!("can't write: {error}")))?,
                }
                last = text;
            }
            if !arguments.watch {
                return Ok(());
            }
            tokio::time::sleep(AGAIN).await;
        }
    })
}

fn peers_of(status: &Status) -> Answer {
    let Status { listed_peers, refused, refused_count, vanished, .. } = status;
    let answer = Answer::new(serde_json::json!({
        "peers": listed_peers, "vanished": vanished, "refused": refused, "refused_count": refused_count,
    }));
    let answer = match listed_peers.is_empty() {
        true => answer.text("no peers\n"),
        false => answer.table(peer_table(listed_peers)),
    };
    match refused.is_empty() {
        true => answer,
        false => answer.text("\n").table(refused_table(status)),
    }
}

fn peer_table(peers: &[PeerReport]) -> Table {
    let row = |peer: &PeerReport| {
        vec![
            clean(peer.node.as_deref().unwrap_or("-")),
            peer.subnets.join("\n"),
            peer.public.join("\n"),
            clean(peer.problem.as_deref().unwrap_or("used")),
        ]
    };
    Table::new(&["PEER", "SUBNET", "HOST", "STATE"], peers.iter().map(row))
}

fn sentence(error: &NoStatus, config: &NodeConfig) -> String {
    let other = match error {
        NoStatus::NotRunning(_) => rival::find(&config.core.network, &config.daemons),
        NoStatus::Silent(..) => None,
    };
    let other = other.map(|rival| format!("; {rival} runs: flannelctl plan prints what it leaves wrong"));
    format!("{error}{}", other.unwrap_or_default())
}

fn tables(status: &Status, pools: &[Pool]) -> Vec<Table> {
    let ready = if status.ready { "yes" } else { "no" };
    let mut tables = vec![Table::new(&["READY", ready], summary(status, pools))];
    if (1..=PEERS_SHOWN).contains(&status.listed_peers.len()) && status.peers <= PEERS_SHOWN {
        tables.push(peer_table(&status.listed_peers));
    }
    if status.refused_count > 0 {
        tables.push(refused_table(status));
    }
    let lists = [
        ("CONTENDED OBJECTS", status.contended_count, contended(status)),
        ("CONFLICTS", status.conflicts.len(), one_column(&status.conflicts)),
        ("FAILED STEPS", status.failures.len(), failures(status)),
    ];
    let lists = lists.into_iter().filter(|(_, count, _)| *count > 0);
    tables
        .extend(lists.map(|(name, count, rows)| Table::new(&[&first_of(name, rows.len(), count), ""], rows)));
    if !status.facts.is_empty() {
        let fact =
            |fact: &crate::core::Fact| [&fact.what, &fact.value, &fact.from].map(|t| clean(t)).to_vec();
        tables.push(Table::new(&["FACT", "VALUE", "FROM"], status.facts.iter().map(fact)));
    }
    tables
}

fn refused_table(status: &Status) -> Table {
    let Status { refused, refused_count, .. } = status;
    let rows = refused.iter().map(|refused| vec![clean(&refused.lease), clean(&refused.reason)]);
    Table::new(&[&first_of("REFUSED LEASES", refused.len(), *refused_count), ""], rows)
}

fn first_of(name: &str, shown: usize, count: usize) -> String {
    if shown < count { format!("{name} (first {shown} of {count})") } else { name.to_owned() }
}

/// A line for each subnet of this node's pods.
fn lines(pools: &[Pool]) -> String {
    let line = |pool: &Pool| {
        let Pool { network, subnet, used, size } = pool;
        let warning = pool.warning().map(|warning| format!("; WARNING: {warning}")).unwrap_or_default();
        format!("{network} {subnet}: {used} of {size} held{warning}")
    };
    pools.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Name and value; what is not known is left out.
fn summary(status: &Status, pools: &[Pool]) -> impl Iterator<Item = Vec<String>> {
    let list = |parts: &[String]| Some(parts.join(", ")).filter(|text| !text.is_empty());
    let backend = status.backend.as_deref().map(|backend| format!(", backend {backend}")).unwrap_or_default();
    let underlay = status.external.as_ref().map(|u| {
        let public = if u.public == u.local { String::new() } else { format!(", published {}", u.public) };
        format!("{}, MTU {}, {}{public}: {}", u.link, u.mtu, u.local, u.why)
    });
    let stale =
        status.stale.as_ref().map(|stale| format!("stale for {}: {}", span(stale.for_ms), stale.reason));
    let drift: Vec<_> = status.drift.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    // Reasons of a node that is ready do not stop it.
    let why = if status.ready { "warning" } else { "because" };
    let reasons = status.reasons.iter().chain(&status.rival_conflists).chain(&status.changed_settings);
    let reasons: Vec<_> = reasons.map(String::as_str).collect();
    let rows = [
        (why, Some(reasons.join("\n")).filter(|text| !text.is_empty())),
        ("node", status.node.clone()),
        ("network", list(&status.networks).map(|networks| format!("{networks}{backend}"))),
        ("own subnets", list(&status.subnets)),
        ("lease", status.lease.as_ref().map(lease)),
        ("underlay", underlay),
        ("MTU for pods", status.mtu.map(|mtu| mtu.to_string())),
        ("pod addresses", Some(lines(pools)).filter(|text| !text.is_empty())),
        ("traffic rules", status.traffic_rules.clone()),
        ("peers", Some(peer_counts(status))),
        ("memory", status.unremembered.clone()),
        ("store", stale),
        ("last pass", status.last_pass.as_ref().map(|pass| last_pass(pass, status.passes))),
        ("drift", list(&drift)),
        (
            "unreadable",
            Some(status.unreadable).filter(|n| *n > 0).map(|n| format!("{n} notifications of the kernel")),
        ),
    ];
    rows.into_iter().filter_map(|(name, value)| Some(vec![name.to_owned(), clean(&value?)]))
}

fn lease(lease: &LeaseReport) -> String {
    let time = |ms| super::lease::time(Duration::from_millis(ms));
    match (lease.left_ms, lease.renewal_ms) {
        (Some(left), Some(renewal)) => format!("{} left, renewed in {}", time(left), time(renewal)),
        (Some(left), None) => format!("{} left", time(left)),
        (None, _) => "for ever (a reservation)".to_owned(),
    }
}

fn peer_counts(status: &Status) -> String {
    let kept = match status.vanished {
        0 => String::new(),
        kept => format!(", {kept} of them vanished from the store and kept"),
    };
    format!("{}{kept}, refused {}", status.peers, status.refused_count)
}

fn last_pass(pass: &PassReport, passes: u64) -> String {
    let PassReport { ago_ms, added, changed, removed, failed, took_us } = pass;
    let took = Duration::from_micros(*took_us);
    format!(
        "{} ago: added {added}, changed {changed}, removed {removed}, failed {failed}, took {took:?} (of {passes})",
        span(*ago_ms)
    )
}

fn contended(status: &Status) -> Vec<Vec<String>> {
    let row = |object: &crate::core::ContendedReport| {
        let who = object.by.as_deref().unwrap_or("another program");
        let again = if object.again_ms == 0 {
            String::new()
        } else {
            format!(", again in {}", span(object.again_ms))
        };
        let story =
            format!("changed by {who} for {}, repaired {} times{again}", span(object.for_ms), object.repairs);
        vec![clean(&object.line), clean(&story)]
    };
    status.contended.iter().map(row).collect()
}

fn failures(status: &Status) -> Vec<Vec<String>> {
    let row = |failure: &crate::core::FailureReport| {
        let more =
            if failure.count > 1 { format!(" ({} of this kind)", failure.count) } else { String::new() };
        vec![clean(&failure.line), clean(&format!("{}{more}", failure.reason))]
    };
    status.failures.iter().map(row).collect()
}

fn one_column(lines: &[String]) -> Vec<Vec<String>> {
    lines.iter().map(|line| vec![clean(line)]).collect()
}

/// A span as people write it.
fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{ContendedReport, Fact, FailureReport, Refused, Stale, UnderlayReport};

    fn troubled() -> Status {
        Status {
            reasons: vec!["waiting for a lease".to_owned(), "stale: no store answers".to_owned()],
            node: Some("node-7".to_owned()),
            networks: vec!["10.42.0.0/16".to_owned(), "fd42::/48".to_owned()],
            backend: Some("vxlan".to_owned()),
            subnets: vec!["10.42.7.0/24".to_owned()],
            external: Some(UnderlayReport {
                link: "eth0".to_owned(),
                mtu: 1500,
                local: "172.30.0.7".to_owned(),
                public: "198.51.100.7".to_owned(),
                why: "it has the default route".to_owned(),
            }),
            mtu: Some(1450),
            facts: vec![Fact {
                what: "MTU of flannel.1".to_owned(),
                value: "1450".to_owned(),
                from: "1500 of eth0 less 50 of the tunnel's header".to_owned(),
            }],
            peers: 3,
            lease: Some(LeaseReport { left_ms: Some(82_800_000), renewal_ms: Some(79_200_000) }),
            rival_conflists: vec![
                "in /etc/cni/net.d 05-other.conflist comes before 10-flannel.conflist".to_owned(),
            ],
            refused_count: 250,
            refused: vec![Refused {
                lease: "10.42.8.0-24".to_owned(),
                reason: "not JSON \u{1b}[2J".to_owned(),
            }],
            stale: Some(Stale { for_ms: 65_000, reason: "no store answers".to_owned() }),
            passes: 12,
            last_pass: Some(PassReport {
                ago_ms: 3000,
                added: 1,
                failed: 1,
                took_us: 2100,
                ..PassReport::default()
            }),
            failures: vec![FailureReport {
                line: "ip link set flannel.1 up".to_owned(),
                reason: "EPERM".to_owned(),
                count: 2,
            }],
            drift: vec![("route".to_owned(), 3)],
            contended_count: 1,
            contended: vec![ContendedReport {
                line: "ip route replace 10.42.9.0/24 via 10.42.9.0 dev flannel.1 onlink proto 67 scope 10"
                    .to_owned(),
                for_ms: 9000,
                repairs: 5,
                again_ms: 1500,
                by: Some("route protocol 186".to_owned()),
            }],
            conflicts: vec!["10.42.10.0/24: 192.0.2.1 is on no connected network".to_owned()],
            unreadable: 2,
            ..Status::default()
        }
    }

    fn text(status: &Status, pools: &[Pool], width: Option<usize>) -> String {
        tables(status, pools).iter().map(|table| table.lines(width)).collect()
    }

    #[test]
    fn tables_show_all_that_is_wrong_and_wrap_on_a_terminal_only() {
        let narrow = text(&troubled(), &[], Some(90));
        assert!(narrow.lines().all(|line| line.chars().count() <= 90), "{narrow}");
        let text = text(&troubled(), &[], None);
        assert!(text.starts_with("READY"), "{text}");
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "because waiting for a lease",
            "10.42.0.0/16, fd42::/48, backend vxlan",
            "10.42.7.0/24",
            "23h 00m left, renewed in 22h 00m",
            "published 198.51.100.7",
            "it has the default route",
            "1450",
            "3, refused 250",
            "stale for 1 min",
            "REFUSED LEASES (first 1 of 250)",
            "not JSON ?[2J",
            "3 route",
            "route protocol 186",
            "again in 1 s",
            "192.0.2.1 is on no connected network",
            "EPERM (2 of this kind)",
            "2 notifications",
            "MTU of flannel.1 1450 1500 of eth0 less 50",
            "05-other.conflist comes before",
        ] {
            assert!(words(&text).contains(part), "{part} in:\n{text}");
        }
        let ready = Status { ready: true, ..troubled() };
        let ready = self::text(&ready, &[], None);
        assert!(words(&ready).contains("READY yes warning waiting for a lease"), "{ready}");
    }

    #[test]
    fn a_node_without_trouble_is_a_dozen_lines() {
        let peer = PeerReport {
            node: Some("h1".to_owned()),
            subnets: vec!["10.42.1.0/24".to_owned()],
            public: vec!["172.30.0.2".to_owned()],
            problem: None,
        };
        let lease = Some(LeaseReport { left_ms: None, renewal_ms: None });
        let status = Status {
            ready: true,
            node: Some("n".to_owned()),
            peers: 1,
            listed_peers: vec![peer],
            lease,
            ..Status::default()
        };
        let text = text(&status, &[], None);
        let words: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["READY", "yes"]);
        assert!(words.contains(&vec!["h1", "10.42.1.0/24", "172.30.0.2", "used"]), "{text}");
        assert!(text.contains("for ever") && text.lines().count() < 13, "{text}");
    }
}
