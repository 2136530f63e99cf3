//! The recording of a real daemon: it survives a kill, shows what happened, and can be replayed.

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_harness::flannel::SUBNET_ENV;
use netns_harness::{Cluster, Family, Host, Program, Spec, eventually};

use crate::case::{Case, case, cluster, products, spec};

const SOON: Duration = Duration::from_secs(20);
const EVENTS: &str = "/run/flannel/events";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("the_inputs_and_decisions_of_a_killed_daemon_are_on_file_and_replay", killed),
        case("a_file_that_cannot_be_written_is_reported_once_and_the_daemon_goes_on", unwritable),
    ]
}

fn control(cluster: &Cluster, host: &Host, words: &[&str]) -> Result<String> {
    host.exec(&products()?.control_on_host(&cluster.store).args(words.iter().copied()))
}

fn killed() -> Result<()> {
    let mut cluster = cluster(Spec { hosts: 2, ..spec(Family::Dual) })?;
    let host = cluster.net.host(0).clone();
    let sh = |line: &str| host.exec(&Program::new("ip").args(line.split(' ')));
    let route = sh("route show proto 67")?.split(' ').next().unwrap_or_default().to_owned();
    sh(&format!("route delete {route}"))?;
    let repaired = format!("ip route replace {route} ");
    // As a table, and as one object per line.
    eventually(SOON, || {
        let printed = control(&cluster, &host, &["events"])?;
        ensure!(printed.matches(&repaired).count() >= 2, "{printed}");
        Ok(())
    })?;
    cluster.daemons[0].kill();

    let printed = control(&cluster, &host, &["events", "--since", "1h"])?;
    ensure!(
        printed.contains(" starts\n") && printed.contains("net-conf") && printed.contains(&repaired),
        "{printed}"
    );
    ensure!(
        !control(&cluster, &host, &["events", "--since", "2001-01-01", "--output", "json"])?.is_empty(),
        "json"
    );
    ensure!(
        control(&cluster, &host, &["events", "--since", "0s"])?.is_empty(),
        "nothing is younger than now"
    );
    let replayed = control(&cluster, &host, &["replay", EVENTS])?;
    ensure!(replayed.contains(&repaired) && replayed.contains("all decided as recorded"), "{replayed}");

    cluster.restart_daemon(0)?;
    eventually(SOON, || {
        let printed = control(&cluster, &host, &["events"])?;
        ensure!(printed.matches(" starts\n").count() == 2, "{printed}");
        let again = printed.rsplit(" starts\n").next().unwrap_or_default();
        ensure!(again.contains(" found nothing to do\n") && !again.contains("plan "), "{printed}");
        Ok(())
    })?;
    replays(&cluster, &host)?;
    tampered(&cluster, &host)?;
    // The file goes with its folder; later inputs are on file again.
    host.exec(&Program::new("mv").args(["/run/flannel", "/run/elsewhere"]))?;
    eventually(SOON, || {
        let printed = control(&cluster, &host, &["events"])?;
        ensure!(
            printed.contains(" goes on in a new file\n") && printed.contains("subnet.env was touched"),
            "{printed}"
        );
        Ok(())
    })?;
    replays(&cluster, &host)
}

/// Repeats until the last decision is on file, because the daemon may still write.
fn replays(cluster: &Cluster, host: &Host) -> Result<()> {
    eventually(SOON, || {
        let replayed = control(cluster, host, &["replay", EVENTS])?;
        ensure!(replayed.contains("all decided as recorded"), "{replayed}");
        Ok(())
    })
    .map(drop)
}

/// A replay reports decisions that another program would make, and its exit code is not 0.
fn tampered(cluster: &Cluster, host: &Host) -> Result<()> {
    let file = host.path(EVENTS);
    let text = std::fs::read_to_string(&file)?;
    let lines: Vec<_> = text.lines().filter(|line| !line.contains("\"publish ")).collect();
    let other = host.path("/run/flannel/other");
    std::fs::write(&other, lines.join("\n"))?;
    let output =
        host.output(&products()?.control(&cluster.store).args(["replay", "--brief", "/run/flannel/other"]))?;
    let message =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {message}", output.status);
    ensure!(
        message.contains("decided then:\n    nothing") && message.contains("decided differently"),
        "{message}"
    );
    Ok(())
}

fn unwritable() -> Result<()> {
    let mut cluster = Cluster::prepare(&spec(Family::V4), &products()?)?;
    cluster.set_network()?;
    let host = cluster.net.host(0).clone();
    let daemon = products()?.daemon(&cluster.store).arg("--record-file=/proc/nowhere/events");
    let process = host.spawn(&daemon)?;
    eventually(SOON, || {
        ensure!(host.path(SUBNET_ENV).exists(), "{}", process.log());
        Ok(())
    })?;
    let log = process.log();
    ensure!(log.matches("nothing is recorded: /proc/nowhere/events").count() == 1, "{log}");
    cluster.daemons.push(process);
    Ok(())
}
