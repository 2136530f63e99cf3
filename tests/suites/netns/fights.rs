//! Another program keeps undoing a real daemon's work: the daemon names the object and, where the kernel
//! reports it, the program; it does not spin, other objects are not affected, and afterwards everything is
//! right again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::{Cluster, Family, Program, eventually};

use crate::case::{Case, case, cluster, spec};

/// How often the other program acts, every tenth of a second.
const TIMES: usize = 60;
/// The time after the end: a quarter of the contended time, and reserve for a busy machine.
const CONVERGED: Duration = Duration::from_secs(10);
/// The CPU time that the daemon may use meanwhile.
const CPU: Duration = Duration::from_secs(2);

/// One case, on the first of three hosts. `PEER` stands for the second host's subnet.
#[derive(Clone, Copy)]
struct Fight {
    name: &'static str,
    /// The other program, in sh; `$i` counts.
    line: &'static str,
    /// Expected in the daemon's log: our step, and the program that undoes it.
    ours: &'static str,
    theirs: &'static str,
    /// Hosts that must reach each other all the time.
    undisturbed: (usize, usize),
}

const NOBODY: &str = "somebody unknown";

const FIGHTS: [Fight; 4] = [
    Fight {
        name: "a_program_that_keeps_deleting_a_route_is_named_and_no_other_route_is_affected",
        // One process for all of it, like a routing daemon; `ip` itself has mostly ended before its name can
        // be read.
        line: "echo route delete PEER.0/24; sleep 0.1",
        ours: "ip route replace PEER.0/24",
        theirs: "undone by ip (process ",
        undisturbed: (0, 2),
    },
    Fight {
        name: "a_mac_that_is_changed_again_and_again_is_repaired_with_back_off",
        line: "ip link set flannel.1 address 02:00:00:00:be:$(printf %02x $i); sleep 0.1",
        ours: "ip link set flannel.1 address",
        theirs: NOBODY,
        undisturbed: (1, 2),
    },
    Fight {
        name: "a_stale_fdb_entry_that_is_added_again_and_again_is_deleted_with_back_off",
        line: "bridge fdb replace 02:00:00:00:be:ef dev flannel.1 dst 172.30.0.99 self permanent; sleep 0.1",
        ours: "bridge fdb delete 02:00:00:00:be:ef",
        theirs: NOBODY,
        undisturbed: (0, 2),
    },
    Fight {
        name: "a_program_that_keeps_flushing_the_rules_is_named",
        line: "nft delete table ip flannel-ipv4; sleep 0.1",
        ours: "nft replace table ip flannel-ipv4",
        theirs: "undone by nft (process ",
        undisturbed: (0, 2),
    },
];

pub(crate) fn cases() -> Vec<Case> {
    FIGHTS.iter().map(|fight| case(fight.name, move || fought(fight))).collect()
}

fn fought(fight: &Fight) -> Result<()> {
    let cluster = cluster(spec(Family::V4))?;
    let peer = subnet(&cluster, 1)?;
    let daemon = &cluster.daemons[0];
    let before = daemon.cost().context("the daemon runs")?.cpu;
    let loops = format!("for i in $(seq {TIMES}); do {}; done", fight.line.replace("PEER", &peer));
    let script =
        if fight.line.starts_with("echo") { format!("({loops}) | ip -force -batch -") } else { loops };
    let other = cluster.net.host(0).spawn(&Program::new("sh").args(["-c", &script]))?;
    let (a, b) = fight.undisturbed;
    while other.status().is_none() {
        cluster.pods[a].ping(&cluster.pods[b], Family::V4, Duration::from_secs(2))?;
    }
    let used = daemon.cost().context("the daemon still runs")?.cpu.saturating_sub(before);
    ensure!(used < CPU, "{used:?} of processor time");
    let ours = fight.ours.replace("PEER", &peer);
    eventually(CONVERGED, || {
        let log = daemon.log();
        let undone = |line: &&str| line.contains("undo") && line.contains(&ours);
        let mut lines = log.lines().filter(undone);
        ensure!(lines.any(|line| line.contains(fight.theirs)), "{ours} by {}: {log}", fight.theirs);
        let repairs = log.lines().filter(|line| line.contains("added=")).count();
        ensure!(repairs < TIMES, "{repairs} repairs of {TIMES}: it is fed\n{log}");
        Ok(())
    })?;
    cluster.wait_for_pings(CONVERGED).map(drop)
}

/// The first three bytes of a host's subnet.
fn subnet(cluster: &Cluster, host: usize) -> Result<String> {
    let pod = cluster.pods[host].address(Family::V4)?.to_string();
    pod.rsplit_once('.').map(|(net, _)| net.to_owned()).context("an IPv4 address")
}
