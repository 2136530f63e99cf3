//! Two networks in one daemon. No flag offers them yet: the suite's own program is the daemon here.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use backends::rules::RuleNames;
use flanneld::cli::{self, Command};
use flanneld::daemon;
use netns_harness::{Cluster, Family, Host, Process, Program, Spec, eventually, probe};
use subnet_lease::NetworkId;

use crate::case::{Case, capabilities, case, cluster, products, spec};
use crate::rules::{IPTABLES, MAKERS, Maker};

const SOON: Duration = Duration::from_secs(10);
/// Makes this program a daemon: its arguments are those of the networks, a word `AND` between them.
const DAEMON: &str = "SELVAGE_TEST_NETWORKS";
const AND: &str = "--and--";

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for maker in MAKERS {
        let name = format!("two_networks_in_one_daemon_have_rules_each_and_survive_a_kill_{}", maker.word());
        cases.push(case(name, move || two(maker)).with_programs_anywhere(&IPTABLES));
    }
    cases
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

fn start(cluster: &Cluster, host: &Host, maker: Maker, name: &str) -> Result<Process> {
    let both = [
        format!("--etcd-endpoints={}", cluster.store.endpoint()),
        "--iface=eth0".to_owned(),
        "--ip-masq".to_owned(),
        maker.flag.to_owned(),
        "--iptables-resync=1".to_owned(),
    ];
    let one = ["--subnet-file=/run/flannel/subnet.env", AND];
    let two = ["--etcd-prefix=/other", "--subnet-file=/run/other/subnet.env"];
    let program = Program::new(std::env::current_exe()?).env(DAEMON, "1").args(both.clone());
    let program = program.args(one).args(both).args(two).named(name).bounded(&capabilities()?);
    let daemon = host.spawn(&program)?;
    eventually(SOON, || {
        ensure!(daemon.log().contains(" ready\n"), "{}", daemon.log());
        Ok(())
    })?;
    Ok(daemon)
}

/// The rules of a host as text.
fn rules(host: &Host, maker: Maker) -> Result<String> {
    let list = match maker.word() {
        "nftables" => "nft -a list ruleset".to_owned(),
        program => format!("{program}-save | grep -v '^#' | sed 's/\\[.*//'"),
    };
    sh(host, &list)
}

fn sh(host: &Host, script: &str) -> Result<String> {
    host.exec(&Program::new("sh").args(["-e", "-c", script]))
}

/// The first network's rules, as long as they are the same objects: with their handles, where the kernel shows these.
fn first_rules(text: &str, maker: Maker) -> Vec<String> {
    let ours = |line: &&str| line.contains(" FLANNEL-FWD ") || line.contains(" FLANNEL-POSTRTG ");
    match maker.word() {
        "nftables" => {
            let table = text.split("table ip flannel-ipv4 {").nth(1).unwrap_or_default();
            table.lines().take_while(|line| *line != "}").map(str::to_owned).collect()
        }
        _ => text.lines().filter(ours).map(str::to_owned).collect(),
    }
}

/// Someone deletes the second network's rules: they come back, and the first's are not written anew.
fn apart(host: &Host, maker: Maker, daemon: &Process) -> Result<()> {
    let names = RuleNames::of(&NetworkId::new("/other"));
    let (table, chain) = (names.table(subnet_lease::Family::V4), names.chain("FLANNEL-POSTRTG"));
    let (first_rule, way) = match maker.word() {
        "nftables" => (format!("table ip {table} {{"), format!("nft delete table ip {table}")),
        program => (format!("-A {chain} -m mark"), format!("{program} -t nat -F {chain}")),
    };
    let whole = || -> Result<String> {
        let text = rules(host, maker)?;
        let both = text.contains("10.99.0.0/16") && text.contains("10.42.0.0/16");
        ensure!(text.contains(&first_rule) && both, "{text}\n{}", daemon.log());
        Ok(text)
    };
    eventually(SOON, || whole().map(drop))?;
    let before = first_rules(&whole()?, maker);
    ensure!(before.len() > 3, "{before:?}");
    sh(host, &way)?;
    eventually(SOON, || whole().map(drop))?;
    ensure!(first_rules(&whole()?, maker) == before, "the first network's rules were written anew");
    ensure!(!daemon.log().contains("keeps"), "{}", daemon.log());
    Ok(())
}

/// Packets of the second network arrive: from one host to the other's end of its tunnel.
fn second_carries(cluster: &Cluster) -> Result<()> {
    let script = ". /run/other/subnet.env; echo ${FLANNEL_SUBNET%.*}.0";
    let far = sh(cluster.net.host(1), script)?;
    probe::ping_until(cluster.net.host(0).space(), far.trim().parse()?, SOON).map(drop)
}

fn two(maker: Maker) -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let conf = r#"{"Network": "10.99.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}"#;
    std::fs::write(cluster.net.host(0).path("/run/other.json"), conf)?;
    let set = products()?.control(&cluster.store);
    cluster.net.host(0).exec(&set.args(["network", "set", "/run/other.json", "--etcd-prefix=/other"]))?;
    let mut daemons = Vec::new();
    for (n, old) in cluster.daemons.iter().enumerate() {
        old.stop()?;
        daemons.push(start(&cluster, cluster.net.host(n), maker, "both")?);
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
    second_carries(&cluster)?;
    apart(host, maker, &daemons[0])?;
    let before = rules(host, maker)?;
    daemons[0].kill();
    let next = start(&cluster, host, maker, "next")?;
    ensure!(!next.log().contains("pass added="), "a restart changed the host: {}", next.log());
    ensure!(rules(host, maker)? == before, "a restart changed the rules: {}", rules(host, maker)?);
    cluster.wait_for_pings(SOON).map(drop)
}
