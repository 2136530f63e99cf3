//! A start adopts: what an earlier daemon left is kept where it is right, and repaired in the first pass
//! where it is wrong, whichever daemon left it and whenever it died.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnetwork::IpNetwork;
use netns_harness::disturb::Picture;
use netns_harness::flannel::{Backend, vxlan_lease};
use netns_harness::{Cluster, Family, Host, Process, Program, Spec, UPLINK, eventually};
use nix::sys::signal::Signal;
use serde_json::{Map, json};

use crate::case::{Case, case, cluster, products, spec};

const SOON: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("an_address_changed_while_the_daemon_was_down_is_repaired_in_the_first_pass", other_address),
        case("an_mtu_changed_while_the_daemon_was_down_is_repaired_in_the_first_pass", other_mtu),
        case(
            "an_underlay_moved_to_a_bridge_while_the_daemon_was_down_is_followed_in_the_first_pass",
            other_link,
        ),
        case("a_start_after_a_kill_at_any_moment_of_a_cold_start_ends_in_the_same_state", killed_cold),
    ];
    for family in [Family::V4, Family::V6, Family::Dual] {
        for (word, backend, direct) in [
            ("vxlan", Backend::Vxlan, false),
            ("host_gw", Backend::HostGw, false),
            ("direct", Backend::Vxlan, true),
        ] {
            let name = format!("a_restart_on_an_unchanged_host_plans_nothing_{word}_{family}");
            cases.push(case(name, move || nothing_to_do(backend, direct, family)));
        }
    }
    cases
}

fn nothing_to_do(backend: Backend, direct: bool, family: Family) -> Result<()> {
    let vxlan = || Map::from_iter([("Backend".to_owned(), json!({"Type": "vxlan", "DirectRouting": true}))]);
    let network = if direct { vxlan() } else { Map::new() };
    let cluster = cluster(Spec { backend, network, ..spec(family) })?;
    let host = cluster.net.host(0);
    ensure!(changes(&cluster.daemons[0]) > 0, "the log has no lines about changes as this case expects them");
    let mut running = cluster.daemons[0].clone();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let plan = host.exec(&products()?.control_on_host(&cluster.store).arg("plan"))?;
        ensure!(plan == "# nothing to do\n", "{plan}");
        running.signal(signal);
        running.wait(SOON)?;
        let name = format!("after-{signal}");
        running = host.spawn(&products()?.daemon(&cluster.store).named(&name))?;
        is_ready(&running)?;
        ensure!(changes(&running) == 0, "{}", running.log());
    }
    Ok(())
}

/// How many passes of this run changed something.
fn changes(process: &Process) -> usize {
    process.log().lines().filter(|line| line.contains("added=")).count()
}

fn is_ready(process: &Process) -> Result<Duration> {
    eventually(SOON, || {
        ensure!(process.log().contains(" ready\n"), "{}", process.log());
        Ok(())
    })
}

/// Stops the second host's daemon, changes the host, and starts it again: one pass repairs everything.
fn changed(change: impl FnOnce(&Host) -> Result<()>) -> Result<(Cluster, Process)> {
    let cluster = cluster(spec(Family::V4))?;
    let host = cluster.net.host(1).clone();
    cluster.daemons[1].stop()?;
    change(&host)?;
    // By address: another interface may have the address now.
    let daemon = Program::new(products()?.flanneld).args([
        format!("--etcd-endpoints={}", cluster.store.endpoint()),
        "--iface-regex=^172[.]30[.]".to_owned(),
        "--ip-masq".to_owned(),
    ]);
    let daemon = host.spawn(&daemon.named("after"))?;
    is_ready(&daemon)?;
    let log = daemon.log();
    let at_once = log.lines().take_while(|line| !line.ends_with(" ready"));
    let passes: Vec<_> = at_once.filter(|line| line.contains("added=")).collect();
    ensure!(passes.len() == 1 && passes[0].contains("failed=0"), "{log}");
    cluster.wait_for_pings(SOON)?;
    let plan =
        host.exec(&products()?.control_on_host(&cluster.store).args(["plan", "--iface-regex=^172[.]30[.]"]))?;
    ensure!(plan == "# nothing to do\n" || plan.is_empty(), "{plan}");
    Ok((cluster, daemon))
}

fn other_address() -> Result<()> {
    let address = "172.30.77.77";
    let (cluster, _daemon) = changed(|host| {
        let old = host.addresses()[0];
        host.delete_address(UPLINK, old)?;
        host.add_address(UPLINK, IpNetwork::new(address.parse()?, old.prefix())?)
    })?;
    let leases = cluster.store.list("subnets/")?;
    ensure!(leases.len() == 3 && leases.values().any(|lease| lease.contains(address)), "{leases:?}");
    Ok(())
}

fn other_mtu() -> Result<()> {
    let (cluster, _daemon) = changed(|host| sh(host, &format!("ip link set {UPLINK} mtu 1400")))?;
    let text = cluster.net.host(1).exec(&Program::new("ip").args(["link", "show", "flannel.1"]))?;
    ensure!(text.contains("mtu 1350"), "{text}");
    Ok(())
}

fn other_link() -> Result<()> {
    let (cluster, _daemon) = changed(|host| {
        let address = host.addresses()[0];
        sh(
            host,
            &format!(
                "ip link add br9 type bridge && ip link set {UPLINK} master br9 && ip link set br9 up && \
                 ip address delete {address} dev {UPLINK} && ip address add {address} dev br9"
            ),
        )
    })?;
    let text = cluster.net.host(1).exec(&Program::new("ip").args(["-d", "link", "show", "flannel.1"]))?;
    ensure!(text.contains("dev br9"), "{text}");
    Ok(())
}

fn sh(host: &Host, script: &str) -> Result<()> {
    host.exec(&Program::new("sh").args(["-e", "-c", script])).map(drop)
}

const PEERS: u8 = 250;
const KILLS: u32 = 20;

fn killed_cold() -> Result<()> {
    let network =
        json!({"Network": "10.64.0.0/10", "SubnetLen": 24}).as_object().cloned().unwrap_or_default();
    let cluster = Cluster::prepare(&Spec { hosts: 1, network, ..spec(Family::V4) }, &products()?)?;
    cluster.set_network()?;
    let lease = |n: u8, half: u8| {
        let public = IpAddr::from([172, 30, 100 + half, n]);
        vxlan_lease(&format!("10.{}.{n}.0/24", 70 + half), public, &format!("02:00:00:00:{half:02x}:{n:02x}"))
    };
    let leases: Vec<_> = (0..2).flat_map(|half| (1..=PEERS).map(move |n| lease(n, half))).collect();
    cluster.store.put(&leases)?;
    let host = cluster.net.host(0);
    let daemon = products()?.daemon(&cluster.store);
    let cleanup = products()?.control_on_host(&cluster.store).arg("cleanup");

    // The first start is for the lease and the device's address, which the lease keeps. The second one is the
    // cold start to compare with.
    let first = host.spawn(&daemon.clone().named("first"))?;
    is_ready(&first)?;
    first.stop()?;
    host.exec(&cleanup)?;
    let undisturbed = host.spawn(&daemon.clone().named("undisturbed"))?;
    let took = is_ready(&undisturbed)?;
    let expected = Picture::of(host)?;
    ensure!(host.netlink()?.routes("flannel.1")?.len() >= 2 * usize::from(PEERS), "not all peers are there");
    undisturbed.stop()?;

    let seed = RandomState::new().build_hasher().finish();
    let mut random = seed | 1;
    let mut cut_short = 0;
    for round in 0..KILLS {
        host.exec(&cleanup)?;
        let victim = host.spawn(&daemon.clone().named(&format!("victim-{round}")))?;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // It ends in time only when it fails.
        let _ = victim.wait(took.mul_f64(f64::from((random >> 40) as u32) / f64::from(1_u32 << 24)));
        victim.kill();
        cut_short += u32::from(!victim.log().contains(" ready\n"));
        let next = host.spawn(&daemon.clone().named(&format!("next-{round}")))?;
        is_ready(&next)?;
        let wrong = expected.differences(&Picture::of(host)?);
        ensure!(wrong.is_empty(), "seed {seed}, round {round}: {wrong:#?}\n{}\n{}", victim.log(), next.log());
        next.kill();
    }
    ensure!(cut_short > KILLS / 4, "only {cut_short} of {KILLS} were killed before they were ready");
    Ok(())
}
