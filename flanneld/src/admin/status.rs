//! `flannelctl status`: what the daemon on this host says about itself.

use std::path::Path;
use std::time::Duration;

use super::{Form, Output, table};
use crate::config::NodeConfig;
use crate::core::{PassReport, Status};
use crate::daemon::block_on;
use crate::exit::{Exit, Failure};
use crate::host::pool::{self, Pool};
use crate::host::rival;
use crate::serve::socket::{self, NoStatus};

pub(super) fn run(Output { output }: Output, config: &NodeConfig) -> Result<(String, Exit), Failure> {
    let asked = block_on(async { Ok(socket::ask(&config.network).await) })?;
    let status = asked.map_err(|error| Failure::new(Exit::NotReady, sentence(&error, config)))?;
    let exit = if status.ready { Exit::Done } else { Exit::NotReady };
    let said = match output {
        Form::Json => serde_json::to_value(&status).map(|value| super::json(&value)),
        Form::Table => Ok(as_tables(&status, &pool::read(Path::new(pool::INDEXES)))),
    };
    said.map(|said| (said, exit)).map_err(|error| Failure::new(Exit::Failed, error))
}

fn sentence(error: &NoStatus, config: &NodeConfig) -> String {
    let other = match error {
        NoStatus::NotRunning(_) => rival::find(&config.network),
        NoStatus::Silent(..) => None,
    };
    let other = other.map(|rival| format!("; {rival} does: flannelctl plan shows what it leaves wrong"));
    format!("{error}{}", other.unwrap_or_default())
}

fn as_tables(status: &Status, pools: &[Pool]) -> String {
    let mut out = table(&["READY", if status.ready { "yes" } else { "no" }], summary(status, pools));
    let lists = [
        ("REFUSED LEASES", status.refused_count, refused(status)),
        ("CONTENDED OBJECTS", status.contended_count, contended(status)),
        ("CONFLICTS", status.conflicts.len(), one_column(&status.conflicts)),
        ("FAILED STEPS", status.failures.len(), failures(status)),
    ];
    let facts =
        status.facts.iter().map(|fact| [&fact.what, &fact.value, &fact.from].map(|t| clean(t)).to_vec());
    for (name, count, rows) in lists.into_iter().filter(|(_, count, _)| *count > 0) {
        let shown = if rows.len() < count {
            format!("{name} (first {} of {count})", rows.len())
        } else {
            name.to_owned()
        };
        out.push('\n');
        out.push_str(&table(&[&shown, ""], rows.into_iter()));
    }
    if !status.facts.is_empty() {
        out.push('\n');
        out.push_str(&table(&["FACT", "VALUE", "FROM"], facts));
    }
    out
}

/// A line for each subnet of this node's pods.
fn lines(pools: &[Pool]) -> String {
    let line = |pool: &Pool| {
        let Pool { network, subnet, used, size } = pool;
        let short = if pool.is_short() { "; WARNING: few are left" } else { "" };
        format!("{network} {subnet}: {used} of {size} held{short}")
    };
    pools.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Name and value; what is not known is left out.
fn summary(status: &Status, pools: &[Pool]) -> impl Iterator<Item = Vec<String>> {
    let list = |parts: &[String]| Some(parts.join(", ")).filter(|text| !text.is_empty());
    let backend = status.backend.as_deref().map(|backend| format!(", backend {backend}")).unwrap_or_default();
    let underlay = status.external.as_ref().map(|u| {
        let told = if u.public == u.local { String::new() } else { format!(", told to peers {}", u.public) };
        format!("{}, MTU {}, {}{told}: {}", u.link, u.mtu, u.local, u.why)
    });
    let stale =
        status.stale.as_ref().map(|stale| format!("stale for {}: {}", span(stale.for_ms), stale.reason));
    let drift: Vec<_> = status.drift.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let rows = [
        ("because", Some(status.reasons.join("\n")).filter(|text| !text.is_empty())),
        ("node", status.node.clone()),
        ("network", list(&status.networks).map(|networks| format!("{networks}{backend}"))),
        ("own subnets", list(&status.subnets)),
        ("underlay", underlay),
        ("MTU for pods", status.mtu.map(|mtu| mtu.to_string())),
        ("pod addresses", Some(lines(pools)).filter(|text| !text.is_empty())),
        ("traffic rules", status.traffic_rules.clone()),
        ("peers", Some(peers(status))),
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

fn peers(status: &Status) -> String {
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

fn refused(status: &Status) -> Vec<Vec<String>> {
    status.refused.iter().map(|refused| vec![clean(&refused.lease), clean(&refused.reason)]).collect()
}

fn contended(status: &Status) -> Vec<Vec<String>> {
    let row = |object: &crate::core::ContendedReport| {
        let who = object.by.as_deref().unwrap_or("somebody");
        let again = if object.again_ms == 0 {
            String::new()
        } else {
            format!(", again in {}", span(object.again_ms))
        };
        let story = format!(
            "changed by {who} for {}, put right {} times{again}",
            span(object.for_ms),
            object.repairs
        );
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

/// Records of the store are whatever somebody wrote: a terminal must not act on them.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// A span as people say it.
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
    use crate::core::{ContendedReport, Fact, FailureReport, Refused, Stale, Underlay};

    fn troubled() -> Status {
        Status {
            reasons: vec!["waiting for a lease".to_owned(), "stale: no store answers".to_owned()],
            node: Some("node-7".to_owned()),
            networks: vec!["10.42.0.0/16".to_owned(), "fd42::/48".to_owned()],
            backend: Some("vxlan".to_owned()),
            subnets: vec!["10.42.7.0/24".to_owned()],
            external: Some(Underlay {
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

    #[test]
    fn tables_tell_all_that_is_wrong_within_a_hundred_columns() {
        let text = as_tables(&troubled(), &[]);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.starts_with("READY"), "{text}");
        for part in [
            "waiting for a lease",
            "10.42.0.0/16, fd42::/48, backend vxlan",
            "10.42.7.0/24",
            "told to peers 198.51.100.7",
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
        ] {
            assert!(
                text.split_whitespace().collect::<Vec<_>>().join(" ").contains(part),
                "{part} in:\n{text}"
            );
        }
    }

    #[test]
    fn a_node_without_trouble_is_a_dozen_lines() {
        let status = Status { ready: true, node: Some("n".to_owned()), peers: 2, ..Status::default() };
        let text = as_tables(&status, &[]);
        assert!(
            text.lines().next().is_some_and(|line| line.ends_with("yes")) && text.lines().count() < 13,
            "{text}"
        );
    }
}
