//! Two networks in one daemon. No flag offers them yet: the suite's own program is the daemon here.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use flanneld::cli::{self, Command};
use flanneld::daemon;
use netns_harness::disturb::Picture;
use netns_harness::{Cluster, Family, Host, Process, Program, Spec, eventually};

use crate::case::{Case, capabilities, case, cluster, products, spec};

const SOON: Duration = Duration::from_secs(10);
/// Makes this program a daemon: its arguments are those of the networks, a word `AND` between them.
const DAEMON: &str = "SELVAGE_TEST_NETWORKS";
const AND: &str = "--and--";

pub(crate) fn cases() -> Vec<Case> {
    vec![case("two_networks_in_one_daemon_carry_packets_and_survive_a_kill", two)]
}

/// The daemon's end, where this program is to be one.
pub(crate) fn daemon_if_asked() -> Option<ExitCode> {
    std::env::var_os(DAEMON)?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let parsed = words.split(|word| word == AND).filter_map(|words| match cli::parse(words) {
        Ok(Command::Run(given)) => Some(given),
        _ => None,
    });
    let parsed: Vec<_> = parsed.collect();
    let given: Vec<_> = parsed.iter().map(Vec::as_slice).collect();
    Some(match daemon::networks(&given) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    })
}

fn start(cluster: &Cluster, host: &Host, name: &str) -> Result<Process> {
    let both = [format!("--etcd-endpoints={}", cluster.store.endpoint()), "--iface=eth0".to_owned()];
    // Rules are not yet kept by network, so neither asks for any.
    let one = ["--subnet-file=/run/flannel/subnet.env", "--iptables-forward-rules=false", AND];
    let two =
        ["--etcd-prefix=/other", "--subnet-file=/run/other/subnet.env", "--iptables-forward-rules=false"];
    let program = Program::new(std::env::current_exe()?).env(DAEMON, "1").args(both.clone());
    let program = program.args(one).args(both).args(two).named(name).bounded(&capabilities()?);
    let daemon = host.spawn(&program)?;
    eventually(SOON, || {
        ensure!(daemon.log().contains(" ready\n"), "{}", daemon.log());
        Ok(())
    })?;
    Ok(daemon)
}

fn two() -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let conf = r#"{"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}"#;
    std::fs::write(cluster.net.host(0).path("/run/other.json"), conf)?;
    let set = products()?.control(&cluster.store);
    cluster.net.host(0).exec(&set.args(["network", "set", "/run/other.json", "--etcd-prefix=/other"]))?;
    let mut daemons = Vec::new();
    for (n, old) in cluster.daemons.iter().enumerate() {
        old.stop()?;
        daemons.push(start(&cluster, cluster.net.host(n), "both")?);
    }
    let host = cluster.net.host(0);
    let has_both = || {
        for link in ["flannel.1", "flannel.2"] {
            let routes = host.netlink()?.routes(link)?;
            ensure!(!routes.is_empty(), "no route over {link}: {}", daemons[0].log());
        }
        Ok(())
    };
    eventually(SOON, has_both)?;
    cluster.wait_for_pings(SOON)?;
    ensure!(host.path("/run/other/subnet.env").exists(), "the second network has no subnet.env");
    let picture = Picture::of(host)?;
    daemons[0].kill();
    let next = start(&cluster, host, "next")?;
    ensure!(Picture::of(host)? == picture, "a restart changed the host: {}", next.log());
    cluster.wait_for_pings(SOON).map(drop)
}
