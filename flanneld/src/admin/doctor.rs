//! `flannelctl doctor`: the causes of trouble that the daemon on this host knows, most likely first, each with the fact that was
//! seen and the command that mends it or shows more.

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::{Answer, clean};
use crate::config::NodeConfig;
use crate::core::Status;
use crate::exit::{Exit, Failure};
use crate::host::pool::{self, Pool};
use crate::host::setting_writers;
use crate::serve::socket::{self, NoStatus};
use crate::shell::block_on;
use crate::shell::rival::{self, Rival};

/// Why packets are lost, or may be.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Cause {
    cause: &'static str,
    fact: String,
    mend: String,
}

impl Cause {
    fn new(cause: &'static str, fact: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { cause, fact: fact.into(), mend: mend.into() }
    }
}

pub(super) fn run(config: &NodeConfig) -> Result<(Answer, Exit), Failure> {
    let asked = block_on(async { Ok(socket::ask(&config.daemons, &config.core.network, false).await) })?;
    let causes = match asked {
        Ok(status) => causes(&status, &pool::read(Path::new(pool::INDEXES)), Path::new("/")),
        Err(error) => vec![without_answer(&error, rival::find(&config.core.network, &config.daemons))],
    };
    let exit = if causes.is_empty() { Exit::Done } else { Exit::NotReady };
    Ok((answer(&causes), exit))
}

fn answer(causes: &[Cause]) -> Answer {
    let answer = Answer::new(json!({ "causes": causes }));
    if causes.is_empty() {
        return answer.text("the daemon on this host knows of nothing wrong\n");
    }
    let text = |(n, cause): (usize, &Cause)| {
        let Cause { cause, fact, mend } = cause;
        format!(
            "{n}. {cause}\n   seen: {}\n   do:   {}\n",
            clean(fact).replace('\n', "\n         "),
            clean(mend)
        )
    };
    answer.text((1..).zip(causes).map(text).collect::<Vec<_>>().join("\n"))
}

fn without_answer(error: &NoStatus, rival: Option<Rival>) -> Cause {
    match (error, rival) {
        (NoStatus::NotRunning(_), Some(rival)) => {
            let mend = format!("flannelctl plan prints what it leaves wrong; {} ends it", rival.stop);
            Cause::new("another flanneld runs on this host, and ours does not", rival.to_string(), mend)
        }
        (NoStatus::NotRunning(_), None) => {
            let mend = "systemctl start flanneld; journalctl -u flanneld shows why it ended";
            Cause::new("flanneld does not run", error.to_string(), mend)
        }
        (NoStatus::Silent(..), _) => {
            let mend = "run flannelctl as root; journalctl -u flanneld";
            Cause::new("flanneld does not answer", error.to_string(), mend)
        }
    }
}

/// In the order of their weight: what stops the whole node, what breaks some traffic, what may break it later.
fn causes(status: &Status, pools: &[Pool], root: &Path) -> Vec<Cause> {
    let mut causes = Vec::new();
    if !status.ready {
        let mend =
            "flannelctl status shows all that is known; flannelctl events --since 10m shows how it came";
        causes.push(Cause::new("the node is not ready", status.reasons.join("\n"), mend));
    }
    for failure in &status.failures {
        let fact = format!("{}: {}", failure.line, failure.reason);
        causes.push(Cause::new(
            "the kernel refuses a step of the daemon",
            fact,
            "run that line as root: the answer is the same until its reason is gone",
        ));
    }
    for object in &status.contended {
        let by = object.by.clone().or_else(|| writers(&object.line, root));
        let by = by.unwrap_or_else(|| "another program, which the kernel does not name".to_owned());
        let fact = format!("{}, changed by {by}, repaired {} times", object.line, object.repairs);
        causes.push(Cause::new(
            "another program undoes what the daemon sets up",
            fact,
            "flannelctl host-setup, or stop that program",
        ));
    }
    for conflict in &status.rival_conflists {
        causes.push(Cause::new(
            "the container runtime uses another network",
            conflict.clone(),
            "mv the file that comes first out of the folder, and start the pods again",
        ));
    }
    for conflict in &status.conflicts {
        causes.push(Cause::new(
            "traffic is lost, or may be, for what is on this host",
            conflict.clone(),
            "what the sentence says; flannelctl network show and flannelctl peers show more",
        ));
    }
    for refused in &status.refused {
        let mend = format!("flannelctl lease show {}", refused.lease.replace('-', "/").replace('&', " "));
        let fact = format!("{}: {}", refused.lease, refused.reason);
        causes.push(Cause::new("a lease is refused, so its host has no traffic with this one", fact, mend));
    }
    if let Some(stale) = &status.stale {
        let mend = "flannelctl lease list asks the same store from here";
        causes.push(Cause::new(
            "the store does not answer: hosts that join or move are not seen",
            stale.reason.clone(),
            mend,
        ));
    }
    for (pool, warning) in pools.iter().filter_map(|pool| Some((pool, pool.warning()?))) {
        let fact =
            format!("{} {}: {} of {} held, {warning}", pool.network, pool.subnet, pool.used, pool.size);
        causes.push(Cause::new(
            "pod addresses run out",
            fact,
            "ls /var/lib/cni/networks/* shows which containers hold them",
        ));
    }
    if let Some(sentence) = &status.changed_settings {
        causes.push(Cause::new(
            "the settings file changed since the start",
            sentence.clone(),
            "flannelctl config shows what is in force; systemctl restart flanneld",
        ));
    }
    // What is ready and has a warning that no list above has.
    let others = status.reasons.iter().filter(|_| status.ready && causes.is_empty());
    let others: Vec<_> =
        others.map(|reason| Cause::new("a warning", reason.clone(), "flannelctl status")).collect();
    causes.extend(others);
    causes
}

/// Who may have set a setting, as a line of a plan has it: the kernel names nobody.
fn writers(line: &str, root: &Path) -> Option<String> {
    let (value, path) = line.strip_prefix("echo ")?.split_once(" > ")?;
    let found = setting_writers::suspects(root, path.trim_matches('\''), value);
    (!found.is_empty()).then(|| format!("another program (perhaps: {})", found.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{ContendedReport, Refused, Stale};

    #[test]
    fn a_healthy_node_has_no_cause() {
        let status = Status { ready: true, peers: 3, ..Status::default() };
        assert_eq!(causes(&status, &[], Path::new("/nowhere")), []);
        assert!(answer(&[]).print(super::super::Form::Text, None).contains("nothing wrong"));
    }

    #[test]
    fn what_stops_the_node_comes_first_and_each_cause_has_a_fact_and_a_command() {
        let status = Status {
            reasons: vec!["waiting for a lease".to_owned()],
            refused: vec![Refused { lease: "10.42.8.0-24".to_owned(), reason: "its VNI is 2".to_owned() }],
            stale: Some(Stale { for_ms: 1, reason: "no store answers".to_owned() }),
            contended: vec![ContendedReport {
                line: "ip route replace 10.42.9.0/24".to_owned(),
                for_ms: 9000,
                repairs: 5,
                again_ms: 0,
                by: Some("route protocol 186".to_owned()),
            }],
            rival_conflists: vec!["in /etc/cni/net.d 05-other.conflist comes before ours".to_owned()],
            ..Status::default()
        };
        let pool =
            Pool { network: "cbr0".to_owned(), subnet: "10.42.7.0/24".to_owned(), used: 253, size: 253 };
        let found = causes(&status, &[pool], Path::new("/nowhere"));
        let facts: Vec<_> = found.iter().map(|cause| cause.fact.as_str()).collect();
        for (n, part) in [
            "waiting for a lease",
            "route protocol 186",
            "05-other",
            "its VNI is 2",
            "no store",
            "none is left",
        ]
        .iter()
        .enumerate()
        {
            assert!(facts[n].contains(part), "{n}: {facts:?}");
        }
        assert!(found.iter().all(|cause| !cause.mend.is_empty()));
        assert!(found.iter().any(|cause| cause.mend == "flannelctl lease show 10.42.8.0/24"), "{found:?}");
    }

    #[test]
    fn who_may_set_a_contended_setting_is_searched_for() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/sysctl.d")).unwrap();
        std::fs::write(root.path().join("etc/sysctl.d/99-cis.conf"), "net.ipv4.ip_forward = 0\n").unwrap();
        let writers = |line| writers(line, root.path()).unwrap_or_default();
        assert!(
            writers("echo 1 > /proc/sys/net/ipv4/ip_forward")
                .contains("99-cis.conf has `net.ipv4.ip_forward = 0`")
        );
        assert_eq!(writers("ip route replace 10.42.9.0/24"), "");
    }

    #[test]
    fn a_daemon_that_does_not_run_is_the_cause() {
        let network = subnet_lease::NetworkId::new("/a");
        let cause = without_answer(&NoStatus::NotRunning(network), None);
        assert!(cause.mend.contains("systemctl start flanneld"), "{cause:?}");
    }
}
