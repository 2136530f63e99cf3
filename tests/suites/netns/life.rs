//! Hosts join and leave, addresses change, daemons are stopped, killed and started again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use netns_harness::disturb::outage;
use netns_harness::flannel::{Backend, SUBNET_ENV, subnet_env, wait_for_subnet};
use netns_harness::{Cluster, Family, Program, Spec, UPLINK, eventually};
use nix::sys::signal::Signal;

use crate::case::{Case, case, cluster, etcdctl, products, spec};

const SOON: Duration = Duration::from_secs(5);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("a_host_that_joins_is_reached_and_a_host_that_leaves_is_removed", join_and_leave),
        case("a_host_whose_address_changes_keeps_its_subnet", changed_address),
        case("a_deleted_subnet_env_is_written_again", subnet_env_vanishes),
        case("readyz_is_200_after_the_first_pass", ready),
        case("cleanup_deletes_our_objects_and_nothing_else", cleanup),
        case("promtool_finds_nothing_wrong_with_the_metrics", metrics).with_programs_anywhere(&["promtool"]),
        case("the_units_are_no_more_exposed_than_promised", units)
            .needing(&[])
            .with_programs_anywhere(&["systemd-analyze"]),
        case("without_the_right_to_change_the_network_the_daemon_reports_it_and_ends", no_permission),
        case("a_demonstration_runs_without_root_and_leaves_nothing", rootless_demo),
    ];
    for family in [Family::V4, Family::V6, Family::Dual] {
        for (word, signal) in [("term", Signal::SIGTERM), ("kill", Signal::SIGKILL)] {
            let name = format!("no_packet_is_lost_over_{word}_and_restart_{family}");
            cases.push(case(name, move || restart_under_traffic(family, signal)));
        }
    }
    cases
}

fn join_and_leave() -> Result<()> {
    let mut cluster = cluster(spec(Family::Dual))?;
    cluster.join()?;
    cluster.wait_for_pings(SOON)?;
    let routes = |cluster: &Cluster| cluster.net.host(0).netlink()?.routes("flannel.1");
    let before = routes(&cluster)?.len();
    let leases = cluster.store.list("subnets/")?;
    let gone =
        subnet_env(cluster.net.host(3)).unwrap_or_default()["FLANNEL_SUBNET"].replace(".1/24", ".0-24");
    let key = leases.keys().find(|key| key.contains(&gone)).context("the host's lease")?.clone();
    cluster.daemons[3].kill();
    etcdctl(&cluster, &["del", &key])?;
    eventually(SOON, || {
        let now = routes(&cluster)?.len();
        ensure!(now == before - 1, "{now} routes, {before} before");
        Ok(())
    })?;
    Ok(())
}

fn changed_address() -> Result<()> {
    let cluster = cluster(spec(Family::V4))?;
    let host = cluster.net.host(1);
    let before = subnet_env(host).context("subnet.env")?;
    let old = host.addresses()[0];
    let new = IpNetwork::new("172.30.77.77".parse()?, old.prefix())?;
    host.delete_address(UPLINK, old)?;
    host.add_address(UPLINK, new)?;
    cluster.wait_for_pings(SOON)?;
    eventually(SOON, || {
        let leases = cluster.store.list("subnets/")?;
        let printed = leases.values().filter(|value| value.contains(&new.ip().to_string())).count();
        ensure!(printed == 1, "the store shows {leases:?}");
        Ok(())
    })?;
    ensure!(subnet_env(host).context("subnet.env")? == before, "the subnet stays");
    Ok(())
}

fn subnet_env_vanishes() -> Result<()> {
    let cluster = cluster(spec(Family::V4))?;
    let host = cluster.net.host(0);
    let before = std::fs::read(host.path(SUBNET_ENV))?;
    for harm in [None, Some("FLANNEL_MTU=9\n")] {
        match harm {
            None => std::fs::remove_file(host.path(SUBNET_ENV))?,
            Some(text) => std::fs::write(host.path(SUBNET_ENV), text)?,
        }
        eventually(SOON, || {
            ensure!(std::fs::read(host.path(SUBNET_ENV))? == before, "not as before");
            Ok(())
        })?;
    }
    Ok(())
}

fn ready() -> Result<()> {
    let mut cluster = Cluster::prepare(&spec(Family::V4), &products()?)?;
    let host = cluster.net.host(0).clone();
    let daemon = products()?.daemon(&cluster.store).args(["--healthz-ip=127.0.0.1", "--healthz-port=8081"]);
    let process = host.spawn(&daemon)?;
    let answer = |what: &'static str| http_get(&host, what);
    eventually(SOON, || {
        let (status, body) = answer("/readyz")?;
        ensure!(status == 503 && body.contains("configuration"), "{status} {body}");
        Ok(())
    })?;
    ensure!(answer("/healthz")?.0 == 200, "alive while waiting");
    cluster.set_network()?;
    wait_for_subnet(&host, &process, SOON)?;
    eventually(SOON, || {
        let (status, body) = answer("/readyz")?;
        ensure!(status == 200, "{status} {body}");
        Ok(())
    })?;
    // A fact that becomes wrong makes the node not ready, and ready again after its repair.
    let address = host.addresses()[0];
    host.delete_address(UPLINK, address)?;
    eventually(SOON, || {
        let (status, body) = answer("/readyz")?;
        ensure!(status == 503, "{status} {body}");
        Ok(())
    })?;
    host.add_address(UPLINK, address)?;
    eventually(SOON, || {
        let (status, body) = answer("/readyz")?;
        ensure!(status == 200, "{status} {body}");
        Ok(())
    })?;
    cluster.daemons.push(process);
    Ok(())
}

fn metrics() -> Result<()> {
    let flags = ["--healthz-ip=127.0.0.1", "--healthz-port=8081"].map(str::to_owned).to_vec();
    let cluster = cluster(Spec { hosts: 2, flags, ..spec(Family::V4) })?;
    let host = cluster.net.host(0);
    let (status, body) = http_get(host, "/metrics")?;
    ensure!(status == 200 && body.contains("flanneld_lease_expiry_timestamp_seconds "), "{status} {body}");
    let message = host.exec(&Program::new("promtool").args(["check", "metrics"]).stdin(body))?;
    ensure!(message.trim().is_empty(), "{message}");
    Ok(())
}

/// In tenths, as `systemd-analyze` takes its threshold.
fn units() -> Result<()> {
    for (unit, threshold) in [("flanneld", "25"), ("selvage-store", "20")] {
        let file = format!("{}/../flanneld/dist/{unit}.service", env!("CARGO_MANIFEST_DIR"));
        let arguments = ["security", "--no-pager", "--offline=true", "--threshold", threshold, &file];
        let output = std::process::Command::new("systemd-analyze").args(arguments).output()?;
        let message = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && message.contains("Overall exposure level"), "{message}");
    }
    Ok(())
}

fn cleanup() -> Result<()> {
    for backend in [Backend::Vxlan, Backend::HostGw] {
        let mut cluster = cluster(Spec { backend, ..spec(Family::Dual) })?;
        let host = cluster.net.host(0).clone();
        let control = |verb: &str| -> Result<String> {
            host.exec(&products()?.control_on_host(&cluster.store).args(verb.split(' ')))
        };
        let show = |tool: &str, args: &str| host.exec(&Program::new(tool).args(args.split(' ')));
        show("ip", "route add 10.42.250.0/28 dev eth0 proto static")?;
        show("nft", "add table inet mine")?;
        cluster.daemons[0].stop()?;
        let printed = control("cleanup --dry-run")?;
        ensure!(show("ip", "route show proto 67")?.lines().count() == 2, "a dry run changed something");
        let done = control("cleanup")?;
        ensure!(done.starts_with(&printed), "printed:\n{printed}\ndone:\n{done}");
        for (tool, args) in
            [("ip", "route show proto 67"), ("ip", "-6 route show proto 67"), ("ip", "link show type vxlan")]
        {
            ensure!(show(tool, args)?.trim().is_empty(), "{tool} {args} still shows something");
        }
        let tables = show("nft", "list tables")?;
        ensure!(tables.contains("mine") && !tables.contains("flannel-"), "{tables}");
        ensure!(show("ip", "route show")?.contains("10.42.250.0/28"), "a foreign route is gone");
        ensure!(subnet_env(&host).is_none(), "subnet.env is still there");
        ensure!(control("cleanup")?.contains("not there"), "a second time there is nothing to do");
        cluster.restart_daemon(0)?;
        cluster.wait_for_pings(SOON)?;
    }
    Ok(())
}

/// As the user `nobody`, without any capability.
fn nobody(program: impl Into<std::ffi::OsString>) -> Program {
    let drop = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    Program::new("setpriv").args(drop).arg(program)
}

fn no_permission() -> Result<()> {
    let cluster = Cluster::prepare(&spec(Family::V4), &products()?)?;
    cluster.set_network()?;
    let host = cluster.net.host(0);
    // A folder that nobody can read: the folder of the programs may be readable.
    let copy = host.path("/run/flanneld");
    std::fs::copy(products()?.flanneld, &copy)?;
    let endpoint = format!("--etcd-endpoints={}", cluster.store.endpoint());
    let process = host.spawn(&nobody("/run/flanneld").arg(endpoint).arg(format!("--iface={UPLINK}")))?;
    let status = process.wait(SOON)?;
    ensure!(status.code() == Some(5), "{status}: {}", process.log());
    ensure!(process.log().contains("CAP_NET_ADMIN"), "{}", process.log());
    ensure!(cluster.store.list("subnets/")?.is_empty(), "no lease was taken");
    Ok(())
}

fn rootless_demo() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("selvage-rootless-").tempdir_in("/tmp")?;
    let products = products()?;
    let from = products.flanneld.parent().context("a folder")?;
    for name in ["demo", "flanneld", "flannel"] {
        std::fs::copy(from.join(name), dir.path().join(name))?;
    }
    // Its own folder for temporary files: other runs may exist on this machine.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let demo = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(dir.path().join("demo"))
        .args(["--hosts", "2"])
        .env_remove("XDG_RUNTIME_DIR")
        .env("TMPDIR", dir.path())
        .output()?;
    let message = String::from_utf8_lossy(&demo.stdout).into_owned() + &String::from_utf8_lossy(&demo.stderr);
    ensure!(demo.status.success(), "{}: {message}", demo.status);
    ensure!(message.contains("done in"), "{message}");
    let ours = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with("selvage-");
    let left = std::fs::read_dir(dir.path())?.filter(|e| e.as_ref().is_ok_and(ours)).count();
    ensure!(left == 0, "{left} directories are left");
    Ok(())
}

/// One HTTP request from inside the host: status and body.
fn http_get(host: &netns_harness::Host, what: &str) -> Result<(u16, String)> {
    use std::io::{Read, Write};
    let text = host.run(|| -> Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", 8081))?;
        stream.set_read_timeout(Some(SOON))?;
        write!(stream, "GET {what} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let status = text.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()))
}

fn restart_under_traffic(family: Family, signal: Signal) -> Result<()> {
    let cluster = cluster(spec(family))?;
    let daemon = products()?.daemon(&cluster.store);
    let mut running = cluster.daemons.clone();
    for one in family.each() {
        let report = outage(&cluster.pods[0], &cluster.pods[1], *one, SOON, || {
            for (n, process) in running.iter_mut().enumerate().take(2) {
                process.signal(signal);
                process.wait(SOON)?;
                *process =
                    cluster.net.host(n).spawn(&daemon.clone().named(&format!("flanneld-{signal}-{one}")))?;
                eventually(SOON, || {
                    ensure!(process.log().contains(" ready"), "{}", process.log());
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        ensure!(report.lost() == 0, "{report:?}");
    }
    Ok(())
}
