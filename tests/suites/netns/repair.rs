//! Every change of our objects is repaired, started by the notification, and nothing else is changed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::chaos::with_room;
use netns_harness::disturb::{PATIENCE, Picture, Times, outage, repair_times};
use netns_harness::flannel::Backend;
use netns_harness::{Family, Host, Program, Spec, UPLINK, eventually};
use serde_json::{Map, json};

use crate::case::{Case, case, cluster, spec};

const SOON: Duration = Duration::from_secs(5);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("foreign_routes_neighbours_and_tables_stay_during_every_repair", foreign_stays),
        case("a_foreign_device_with_our_name_stays_and_ours_is_made_after_it_is_gone", strangers_device),
        case("an_outage_after_a_link_flap_is_short", short_outage),
    ];
    for family in [Family::V4, Family::V6, Family::Dual] {
        for (word, backend, direct) in [
            ("vxlan", Backend::Vxlan, false),
            ("host_gw", Backend::HostGw, false),
            ("direct", Backend::Vxlan, true),
        ] {
            let name = format!("every_disturbance_of_{word}_{family}_is_repaired");
            cases.push(case(name, move || repaired(backend, direct, family)));
        }
    }
    cases
}

/// The whole list of disturbances on one cluster. The host changes each time, because repeated changes become
/// contended.
fn repaired(backend: Backend, direct: bool, family: Family) -> Result<()> {
    let network = match direct {
        true => Map::from_iter([("Backend".to_owned(), json!({"Type": "vxlan", "DirectRouting": true}))]),
        false => Map::new(),
    };
    let mut cluster = cluster(with_room(Spec { hosts: 5, backend, network, ..spec(family) }, 0))?;
    let only = std::env::var("DISTURBANCES").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|name| !name.is_empty()).collect();
    let times = repair_times(&mut cluster.net, backend, family, &only, 1)?;
    show(&times);
    ensure!(!times.is_empty(), "nothing was disturbed");
    ensure!(cluster.daemons.iter().all(|daemon| daemon.status().is_none()), "a daemon ended");
    cluster.wait_for_pings(SOON).map(drop)
}

fn show(times: &[Times]) {
    if std::env::args().any(|arg| arg == "--nocapture") {
        for it in times {
            println!("{:32} {:4} {:>8.1} ms", it.name, it.family, it.worst().as_secs_f64() * 1e3);
        }
    }
}

fn sh(host: &Host, line: &str) -> Result<String> {
    let mut words = line.split(' ');
    let program = Program::new(words.next().context("no program")?);
    host.exec(&program.args(words))
}

/// We never make a bridge, so a bridge is not ours and is not deleted.
fn strangers_device() -> Result<()> {
    let cluster = cluster(spec(Family::V4))?;
    let host = cluster.net.host(1);
    let before = Picture::of(host)?;
    let batch = "link delete flannel.1\nlink add flannel.1 type bridge\nlink set flannel.1 up\n";
    let swap = Program::new("ip").args(["-batch", "-"]).stdin(batch);
    // The daemon may be faster than two commands.
    eventually(SOON, || host.exec(&swap).map(drop))?;
    eventually(SOON, || {
        let log = cluster.daemons[1].log();
        let after = log.rsplit(" ready\n").next().unwrap_or_default();
        ensure!(after.contains("not ready: ") && after.contains("flannel.1"), "it is not logged: {log}");
        Ok(())
    })?;
    ensure!(sh(host, "ip -d link show flannel.1")?.contains("bridge"), "the stranger's device is gone");
    sh(host, "ip link delete flannel.1")?;
    eventually(PATIENCE, || {
        let different = before.differences(&Picture::of(host)?);
        ensure!(different.is_empty(), "{}", different.join("\n"));
        Ok(())
    })?;
    cluster.wait_for_pings(SOON).map(drop)
}

fn foreign_stays() -> Result<()> {
    let cluster = cluster(spec(Family::Dual))?;
    let host = cluster.net.host(1);
    for line in [
        "ip route add 10.42.250.0/28 via 172.30.0.99 dev eth0 onlink",
        "ip route add 192.0.2.0/24 via 10.42.240.0 dev flannel.1 onlink",
        "ip route add 10.42.0.0/16 dev eth0 table 77",
        "ip neigh add 172.30.0.98 lladdr 02:00:00:00:00:98 dev eth0 nud permanent",
        "ip link add vx9 type vxlan id 9 dstport 4789 dev eth0",
        "nft add table inet mine",
        "nft add table ip flannel-ipv5",
    ] {
        sh(host, &line.replace("eth0", UPLINK)).with_context(|| line.to_owned())?;
    }
    let foreign = |host: &Host| -> Result<String> {
        let lines = ["ip route show table 77", "ip link show vx9", "ip neigh show dev eth0 nud permanent"];
        let mut all: String =
            lines.iter().map(|l| sh(host, &l.replace("eth0", UPLINK))).collect::<Result<_>>()?;
        for (list, mark) in [
            ("ip route show", "10.42.250.0/28"),
            ("ip route show", "192.0.2.0/24"),
            ("nft list tables", "mine"),
            ("nft list tables", "flannel-ipv5"),
        ] {
            let text = sh(host, list)?;
            all.push_str(text.lines().find(|l| l.contains(mark)).with_context(|| format!("{mark} is gone"))?);
        }
        Ok(all)
    };
    let before = foreign(host)?;
    for harm in ["ip neigh flush dev flannel.1 nud permanent", "ip route delete 10.42.0.0/16 table 77"] {
        sh(host, harm)?;
    }
    sh(host, &format!("ip route add 10.42.0.0/16 dev {UPLINK} table 77"))?;
    cluster.wait_for_pings(SOON)?;
    ensure!(foreign(host)? == before, "something foreign changed");
    Ok(())
}

fn short_outage() -> Result<()> {
    let cluster = cluster(spec(Family::V4))?;
    let host = cluster.net.host(1);
    let report = outage(&cluster.pods[0], &cluster.pods[1], Family::V4, SOON, || {
        host.link_down("flannel.1")?;
        host.link_up("flannel.1")
    })?;
    // The bench has the real figure; a repair without a notification would take half a minute.
    ensure!(report.outage() < PATIENCE, "{report:?}");
    Ok(())
}
