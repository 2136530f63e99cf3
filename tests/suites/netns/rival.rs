//! One daemon per network and host: a second one is found before the first write, and is refused by its pid
//! or waits.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::disturb::{Picture, outage};
use netns_harness::flannel::{Products, subnet_env, wait_for_subnet};
use netns_harness::{Cluster, Family, Host, Process, Program, Spec, eventually};
use nix::sys::signal::Signal;

use crate::case::{Case, capabilities, case, cluster, peer, products, spec};

const SOON: Duration = Duration::from_secs(10);
/// The documented codes.
const RIVAL: i32 = 8;
const NOT_READY: i32 = 9;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("a_second_daemon_of_ours_is_refused_by_pid_and_writes_nothing", || refused(false)),
        case("a_daemon_beside_a_go_flannel_is_refused_by_pid_and_writes_nothing", || refused(true))
            .with_peers(),
        case("a_daemon_beside_k3s_is_refused_and_beside_what_is_only_called_so_it_runs", beside_k3s),
        case("two_networks_on_one_host_are_allowed", || two_networks(false)),
        case("another_network_beside_a_go_flannel_is_allowed", || two_networks(true)).with_peers(),
        case("status_shows_the_state_of_the_node", status),
        case("verbs_on_a_node_use_the_settings_of_its_daemon", settings_of_the_daemon),
        case("cleanup_beside_a_daemon_is_refused_and_changes_nothing", cleanup_beside_a_daemon),
        case("a_cni_configuration_before_ours_is_named_by_the_log_and_the_status", rival_configuration),
        case("a_lease_is_released_with_the_rest_where_cleanup_is_asked_to", release_lease),
        case("explain_marks_the_first_wrong_step", explain),
        case("events_are_followed_across_a_restart", follow),
    ];
    for (word, go) in [("ours", false), ("go_flannel", true)] {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let name = format!(
                "takeover_waits_for_{word}_until_{}_and_loses_no_packet",
                signal.as_str().to_lowercase()
            );
            let there = case(name, move || takeover(go, signal));
            cases.push(if go { there.with_peers() } else { there });
        }
    }
    cases
}

/// The Go daemon, where named; otherwise ours.
fn programs(go: bool) -> Result<Products> {
    let ours = products()?;
    Ok(if go { Products { flanneld: peer("flanneld")?, ..ours } } else { ours })
}

/// A cluster whose first host runs the given daemon.
fn with_first(go: bool) -> Result<(Cluster, Host, Process)> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let host = cluster.net.host(0).clone();
    let mut running = cluster.daemons[0].clone();
    if go {
        running.stop()?;
        running = host.spawn(&programs(true)?.daemon(&cluster.store).named("go"))?;
        eventually(SOON, || {
            ensure!(running.log().contains("Running backend"), "{}", running.log());
            Ok(())
        })?;
    }
    Ok((cluster, host, running))
}

fn refused(go: bool) -> Result<()> {
    let (cluster, host, running) = with_first(go)?;
    let picture = Picture::of(&host)?;
    let leases = cluster.store.list("subnets/")?;
    let daemon = products()?.daemon(&cluster.store).named("second");
    let (status, message) = ends(&host, &daemon)?;
    ensure!(status == Some(RIVAL), "{status:?}: {message}");
    let pid = format!("(pid {})", running.pid());
    for part in [pid.as_str(), "--takeover", "kill "] {
        ensure!(message.contains(part), "{part} is not in: {message}");
    }
    ensure!(Picture::of(&host)? == picture, "it changed the host");
    ensure!(cluster.store.list("subnets/")? == leases, "it wrote to the store");
    ensure!(running.status().is_none(), "the first one ended");
    // After its end the start is allowed.
    running.kill();
    let next = host.spawn(&daemon.named("third"))?;
    is_ready(&next)
}

fn ends(host: &Host, program: &Program) -> Result<(Option<i32>, String)> {
    let process = host.spawn(program)?;
    let status = process.wait(SOON)?;
    Ok((status.code(), process.log()))
}

fn is_ready(process: &Process) -> Result<()> {
    let wait = eventually(SOON, || {
        ensure!(process.log().contains(" ready\n"), "{}", process.log());
        Ok(())
    });
    wait.map(drop)
}

fn beside_k3s() -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let host = cluster.net.host(0);
    cluster.daemons[0].stop()?;
    let daemon = products()?.daemon(&cluster.store);
    // Other programs of that name, and other users' processes, keep nobody from starting.
    let other = ["-c", "exec -a k3s-server sleep infinity"];
    let other = host.spawn(&Program::new("bash").args(other).bounded(&capabilities()?))?;
    let file = host.path("/run/k3s");
    let program = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("sleep"))
        .find(|file| file.exists())
        .context("sleep is in PATH")?;
    std::fs::copy(program, file)?;
    let user = ["--reuid=65534", "--clear-groups", "bash", "-c", "exec -a 'k3s server' /run/k3s infinity"];
    let user = host.spawn(&Program::new("setpriv").args(user).named("user"))?;
    let first = host.spawn(&daemon.clone().named("first"))?;
    is_ready(&first)?;
    first.stop()?;
    ensure!(other.status().is_none() && user.status().is_none(), "they ended: {}", user.log());
    let k3s = Program::new("/run/k3s").called("k3s-server").arg("infinity");
    let k3s = host.spawn(&k3s)?;
    let (status, message) = ends(host, &daemon.clone().named("second"))?;
    ensure!(
        status == Some(RIVAL) && message.contains(&format!("k3s with its own flannel (pid {})", k3s.pid())),
        "{message}"
    );
    // The daemon has the unit's capabilities, and k3s has all.
    ensure!(message.contains("may be at work") && message.contains("can't be read"), "{message}");
    // An agent without flannel has no configuration for it.
    std::fs::create_dir_all(host.path("/var/lib/rancher/k3s/agent/etc"))?;
    is_ready(&host.spawn(&daemon.named("third"))?)
}

fn two_networks(go: bool) -> Result<()> {
    let (cluster, host, first) = with_first(go)?;
    let other = "--etcd-prefix=/other";
    let conf =
        r#"{"Network": "10.99.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan", "VNI": 2}}"#;
    std::fs::write(host.path("/run/other.json"), conf)?;
    let set = products()?.control(&cluster.store).args(["network", "set", "/run/other.json", other]);
    host.exec(&set)?;
    let daemon = Program::new(products()?.flanneld).args([
        &format!("--etcd-endpoints={}", cluster.store.endpoint()),
        other,
        "--iface=eth0",
        "--subnet-file=/run/other/subnet.env",
        "--iptables-forward-rules=false",
    ]);
    let second = host.spawn(&daemon.named("other"))?;
    is_ready(&second)?;
    ensure!(first.status().is_none(), "{}", first.log());
    ensure!(host.netlink()?.routes("flannel.1")?.len() > 1, "the first network's routes are gone");
    cluster.wait_for_pings(SOON).map(drop)
}

fn takeover(go: bool, signal: Signal) -> Result<()> {
    let (cluster, host, running) = with_first(go)?;
    let before = subnet_env(&host);
    let daemon = products()?.daemon(&cluster.store).arg("--takeover").named("next");
    let report = outage(&cluster.pods[0], &cluster.pods[1], Family::V4, SOON, || {
        let next = host.spawn(&daemon)?;
        eventually(SOON, || {
            ensure!(next.log().contains(&format!("(pid {}) to end", running.pid())), "{}", next.log());
            Ok(())
        })?;
        running.signal(signal);
        running.wait(SOON)?;
        wait_for_subnet(&host, &next, SOON)?;
        is_ready(&next)
    })?;
    ensure!(report.lost() == 0, "{report:?}");
    ensure!(subnet_env(&host) == before, "another subnet");
    cluster.wait_for_pings(SOON).map(drop)
}

fn status() -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::Dual) })?;
    let host = cluster.net.host(0);
    let ask = products()?.control_on_host(&cluster.store).arg("status");
    let message = host.exec(&ask)?;
    for part in ["READY", "yes", "10.42.0.0/16, fd42::/48, backend vxlan", "eth0, MTU", "1, refused 0"] {
        ensure!(message.contains(part), "{part} is not in:\n{message}");
    }
    for part in ["left, renewed in", "PEER", "used"] {
        ensure!(message.contains(part), "{part} is not in:\n{message}");
    }
    // Nobody else is answered: not another user, and not a root that sees another /run and has no capability.
    let control = [products()?.flanneld.display().to_string(), "status".to_owned()];
    let user = ["--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    let user = Program::new("setpriv").args(user).args(["bash", "-c", "exec -a flannelctl \"$@\"", "-"]);
    let message = host.output(&user.args(control))?;
    let message = String::from_utf8_lossy(&message.stderr).into_owned();
    ensure!(message.contains("it answers root only"), "another user is answered: {message}");
    let list = host.exec(&Program::new("cat").arg("/proc/net/unix"))?;
    ensure!(!list.contains('@'), "an abstract socket, which every process of the namespace reaches: {list}");
    cluster.daemons[0].stop()?;
    let output = host.output(&ask)?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(NOT_READY) && message.contains("no flanneld of network"),
        "{message}"
    );
    Ok(())
}

/// `flannelctl` without a flag.
fn bare(words: &str) -> Result<Program> {
    Ok(Program::new(products()?.flanneld).called("flannelctl").args(words.split(' ')))
}

/// The daemon runs with flags that no default has; pasting a plan of other settings would take its masquerade rules away.
fn settings_of_the_daemon() -> Result<()> {
    let mut cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let host = cluster.net.host(0).clone();
    let output = host.output(&bare("plan")?)?;
    let (plan, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && plan.trim() == "# nothing to do", "{plan}{notes}");
    let named = format!("settings of the running flanneld (pid {}) are used: ", cluster.daemons[0].pid());
    ensure!(notes.contains(&named) && notes.contains("ip-masq"), "{notes}");
    let config = host.exec(&bare("config")?)?;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(config.lines().any(|line| words(line) == "ip-masq true flanneld's flag"), "{config}");
    ensure!(host.exec(&bare("lease list")?)?.contains("172."), "the daemon's store is asked");
    let plan = host.exec(&bare("plan --ip-masq=false")?)?;
    ensure!(plan.contains("masquerade") || plan.contains("other rules"), "a flag overrides: {plan}");
    // A password in the daemon's environment is used and never shown.
    cluster.daemons[0].stop()?;
    let secret = Program::new(products()?.flanneld).args([
        format!("--etcd-endpoints={}", cluster.store.endpoint()),
        format!("--iface={}", netns_harness::UPLINK),
    ]);
    let secret = secret.env("FLANNELD_ETCD_USERNAME", "flannel").env("FLANNELD_ETCD_PASSWORD", "hunter2");
    cluster.daemons[0] = host.spawn(&secret.named("secret"))?;
    eventually(SOON, || {
        let config = host.output(&bare("config")?)?;
        let text = [config.stdout, config.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(!text.contains("hunter2"), "the password is shown: {text}");
        let line =
            text.lines().map(words).find(|line| line.starts_with("etcd-password ")).unwrap_or_default();
        ensure!(line == "etcd-password *** flanneld's FLANNELD_ETCD_PASSWORD", "{text}");
        Ok(())
    })
    .map(drop)
}

fn cleanup_beside_a_daemon() -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let host = cluster.net.host(0);
    let picture = Picture::of(host)?;
    let output = host.output(&bare("cleanup")?)?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let pid = format!("(pid {})", cluster.daemons[0].pid());
    ensure!(output.status.code() == Some(RIVAL), "{message}");
    for part in [pid.as_str(), "stop it first", "--dry-run"] {
        ensure!(message.contains(part), "{part} is not in: {message}");
    }
    ensure!(Picture::of(host)? == picture, "it changed the host");
    let printed = host.exec(&bare("cleanup --dry-run")?)?;
    ensure!(printed.contains("ip link delete flannel.1") && printed.contains(&pid), "{printed}");
    ensure!(Picture::of(host)? == picture, "a dry run changed the host");
    Ok(())
}

fn rival_configuration() -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let (host, daemon) = (cluster.net.host(0), &cluster.daemons[0]);
    let folder = host.path("/var/lib/rancher/k3s/agent/etc/cni/net.d");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("10-flannel.conflist"), "{}")?;
    std::fs::write(folder.join("05-other.conflist"), "{}")?;
    let named = "05-other.conflist comes before 10-flannel.conflist";
    let message = host.exec(&bare("status")?)?;
    ensure!(message.contains(named) && message.contains("warning"), "{message}");
    // The folder is new: it is found at the next look, and watched from then on.
    eventually(Duration::from_secs(90), || {
        ensure!(daemon.log().contains(named), "{}", daemon.log());
        Ok(())
    })?;
    std::fs::remove_file(folder.join("05-other.conflist"))?;
    eventually(SOON, || {
        ensure!(daemon.log().contains("no CNI configuration comes before ours any more"), "{}", daemon.log());
        Ok(())
    })?;
    ensure!(!host.exec(&bare("status")?)?.contains(named), "it is still named");
    Ok(())
}

fn release_lease() -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let host = cluster.net.host(0);
    let control =
        |words: &str| host.exec(&products()?.control_on_host(&cluster.store).args(words.split(' ')));
    let before = cluster.store.list("subnets/")?.len();
    cluster.daemons[0].stop()?;
    let printed = control("cleanup --release-lease --dry-run")?;
    ensure!(printed.contains("flannelctl lease release --force 10.42."), "{printed}");
    ensure!(cluster.store.list("subnets/")?.len() == before, "a dry run released it");
    ensure!(control("cleanup --release-lease")? == printed, "a real run prints the same lines");
    ensure!(cluster.store.list("subnets/")?.len() == before - 1, "it is still there");
    ensure!(
        control("cleanup --release-lease")?.contains("the store has no lease of this node"),
        "a second time"
    );
    Ok(())
}

fn explain() -> Result<()> {
    let cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let host = cluster.net.host(0);
    let (here, there) = (cluster.pods[0].address(Family::V4)?, cluster.pods[1].address(Family::V4)?);
    let message = host.exec(&bare(&format!("explain {here} {there}"))?)?;
    ensure!(message.matches("nothing is wrong as far as this host sees").count() == 2, "{message}");
    for part in ["lease", "route", "neighbour", "FDB", "rules", "pod", "dev flannel.1", "container "] {
        ensure!(message.contains(part), "{part} is not in:\n{message}");
    }
    // While the daemon stands still nobody repairs it.
    cluster.daemons[0].signal(Signal::SIGSTOP);
    let flush = host.exec(&Program::new("sh").args([
        "-c",
        "for m in $(bridge fdb show dev flannel.1 | cut -d' ' -f1); do bridge fdb del $m dev flannel.1; done",
    ]));
    let message = host.exec(&bare(&format!("explain {there}"))?);
    cluster.daemons[0].signal(Signal::SIGCONT);
    let (_, message) = (flush?, message?);
    for part in ["> FDB", "WRONG: it is missing", "repaired by: the daemon's next pass"] {
        ensure!(message.contains(part), "{part} is not in:\n{message}");
    }
    Ok(())
}

fn follow() -> Result<()> {
    let mut cluster = cluster(Spec { hosts: 2, ..spec(Family::V4) })?;
    let host = cluster.net.host(0).clone();
    let follower = host.spawn(&bare("events -f")?.named("follower"))?;
    let starts = |count: usize| {
        eventually(SOON, || {
            ensure!(follower.log().matches(" starts\n").count() == count, "{}", follower.log());
            Ok(())
        })
    };
    starts(1)?;
    cluster.daemons[0].stop()?;
    cluster.restart_daemon(0)?;
    starts(2)?;
    follower.kill();
    Ok(())
}
