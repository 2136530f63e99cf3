//! Leases cannot be lost, stolen or poisoned.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netns_harness::disturb::outage;
use netns_harness::flannel::{PREFIX, SUBNET_ENV, StoreKind, subnet_env, wait_for_subnet};
use netns_harness::{Cluster, Family, Host, Process, Program, Spec, eventually};
use nix::sys::signal::Signal;

use crate::case::{Case, case, cluster, etcdctl, products, spec};

pub(crate) const SOON: Duration = Duration::from_secs(10);
/// Longer than any back-off of a store client.
pub(crate) const LATER: Duration = Duration::from_secs(30);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("a_host_that_slept_past_its_lease_ends_and_the_new_owner_keeps_it", slept),
        case("two_hosts_with_one_public_address_are_named_and_share_no_lease", one_address),
        case("a_lease_is_reserved_shown_and_released_by_hand", by_hand),
        case("with_release_on_exit_a_host_releases_its_lease_when_it_stops", released_on_exit),
        case("seventeen_kinds_of_bad_record_change_no_kernel_and_lose_no_packet", poison),
        case("a_state_directory_that_cannot_be_written_is_reported_and_stops_nothing", no_memory),
    ];
    for store in [StoreKind::Etcd, StoreKind::Embedded] {
        let name = |what: &str| format!("no_packet_and_no_subnet_is_lost_when_{what}_{store}");
        cases.push(case(name("all_leases_are_deleted"), move || deleted(store)));
        cases.push(case(name("the_store_is_emptied"), move || emptied(store)));
        cases.push(case(name("a_backup_from_before_ten_joins_is_put_back"), move || put_back(store)));
        cases.push(case(format!("hosts_start_without_the_store_from_their_state_file_{store}"), move || {
            cold(store)
        }));
    }
    cases
}

fn of(store: StoreKind, hosts: usize) -> Spec {
    Spec { store, hosts, ..spec(Family::V4) }
}

fn data(store: StoreKind) -> &'static str {
    match store {
        StoreKind::Etcd => "/var/lib/etcd",
        StoreKind::Embedded => "/var/lib/selvage",
    }
}

/// Keys and public addresses of all leases.
fn holders(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let address = |record: &String| record.split('"').nth(3).unwrap_or_default().to_owned();
    Ok(cluster.store.list("subnets/")?.iter().map(|(key, record)| (key.clone(), address(record))).collect())
}

pub(crate) fn control(cluster: &Cluster, host: &Host, words: &[&str]) -> Result<String> {
    host.exec(&products()?.control_on_host(&cluster.store).args(words.iter().copied()))
}

/// The same command, which must fail; returns its error.
pub(crate) fn refused(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let program = products()?.control_on_host(&cluster.store).args(words.iter().copied());
    let output = cluster.net.host(0).output(&program)?;
    ensure!(!output.status.success(), "{words:?} was done: {}", String::from_utf8_lossy(&output.stdout));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Harms the store under traffic. No packet is lost, and every host keeps its subnet.
fn harmless(cluster: &mut Cluster, harm: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let before = holders(cluster)?;
    let pods = std::mem::take(&mut cluster.pods);
    // The hosts that joined last: a backup may not have them.
    let [.., from, to] = &pods[..] else { bail!("two pods are needed") };
    let report = outage(from, to, Family::V4, SOON, || {
        harm(cluster)?;
        eventually(LATER, || {
            let now = holders(cluster)?;
            ensure!(now == before, "{now:?}\nbefore: {before:?}");
            Ok(())
        })?;
        for (host, daemon) in cluster.net.hosts().iter().zip(&cluster.daemons) {
            ensure!(daemon.status().is_none(), "{} ended: {}", daemon.name(), daemon.log());
            eventually(SOON, || control(cluster, host, &["status"]).map(drop))?;
        }
        Ok(())
    })?;
    cluster.pods = pods;
    ensure!(report.lost() == 0, "{report:?}");
    cluster.wait_for_pings(SOON).map(drop)
}

fn deleted(store: StoreKind) -> Result<()> {
    let mut cluster = cluster(of(store, 6))?;
    harmless(&mut cluster, |cluster| {
        etcdctl(cluster, &["del", "--prefix", &format!("{PREFIX}/subnets/")]).map(drop)
    })?;
    // The net-conf is lost too: no host can join, but existing hosts go on.
    harmless(&mut cluster, |cluster| etcdctl(cluster, &["del", "--prefix", PREFIX]).map(drop))?;
    cluster.set_network()?;
    cluster.join()?;
    cluster.wait_for_pings(SOON).map(drop)
}

fn emptied(store: StoreKind) -> Result<()> {
    let mut cluster = cluster(of(store, 6))?;
    harmless(&mut cluster, |cluster| {
        cluster.store.process().kill();
        fs::remove_dir_all(cluster.net.store().path(data(store)))?;
        cluster.store.restart()
    })?;
    cluster.set_network()?;
    cluster.join()?;
    cluster.wait_for_pings(LATER).map(drop)
}

fn put_back(store: StoreKind) -> Result<()> {
    let mut cluster = cluster(of(store, 3))?;
    let folder = cluster.net.store().path(data(store));
    let backup = folder.with_extension("backup");
    cluster.store.process().kill();
    copy(&folder, &backup)?;
    cluster.store.restart()?;
    for _ in 0..10 {
        cluster.join()?;
    }
    cluster.wait_for_pings(LATER)?;
    harmless(&mut cluster, |cluster| {
        cluster.store.process().kill();
        fs::remove_dir_all(&folder)?;
        copy(&backup, &folder)?;
        cluster.store.restart()
    })
}

/// Copies a folder with its content, in this process, because only this process sees the hosts' files.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() { copy(&from, &to)? } else { fs::copy(&from, &to).map(drop)? }
    }
    Ok(())
}

/// Bad records: key, record, and a part of the reason that every node then reports.
fn bad_records(cluster: &Cluster) -> Result<Vec<(String, String, &'static str)>> {
    let vxlan = |address: &str, vni: u32, mac: &str| {
        format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"{mac}"}}}}"#
        )
    };
    let sane = |n: u8| vxlan(&format!("172.30.9.{n}"), 1, &format!("02:00:00:00:00:{n:02x}"));
    let key = own_key(cluster.net.host(0))?;
    let own = key.rsplit('/').next().unwrap_or_default();
    let within = |length: &str| own.replace("0-24", length);
    let theirs = cluster.store.list("subnets/")?[&key].clone();
    let mac =
        theirs.split("VtepMAC\":\"").nth(1).and_then(|rest| rest.get(..17)).context("a MAC")?.to_owned();
    let bad = [
        ("not-a-key", sane(1), "the key is not"),
        ("10.42.201.1-24", sane(2), "spelled unlike"),
        ("10.42.202.0-24", "not json".to_owned(), "not a JSON object"),
        ("10.42.203.0-24", "[]".to_owned(), "not a JSON object"),
        ("10.42.204.0-24", r#"{"PublicIP":7}"#.to_owned(), "PublicIP is 7"),
        ("10.42.205.0-24", format!(r#"{{"x":"{}"}}"#, "x".repeat(70_000)), "at most 65536"),
        ("128.0.0.0-1", sane(3), "outside the network"),
        ("10.42.0.0-16", sane(4), "not one of the network's subnets"),
        (&within("128-25"), sane(5), "overlaps"),
        ("10.42.206.0-24", vxlan("127.0.0.1", 1, "02:00:00:00:00:06"), "not that of a host"),
        ("10.42.207.0-24", vxlan("224.0.0.7", 1, "02:00:00:00:00:07"), "not that of a host"),
        ("10.42.209.0-24", vxlan("10.42.209.9", 1, "02:00:00:00:00:09"), "inside its own subnet"),
        ("10.42.210.0-24", vxlan("172.30.9.10", 1, "01:00:5e:00:00:0a"), "VtepMAC"),
        ("10.42.211.0-24", vxlan("172.30.9.11", 1, "00:00:00:00:00:00"), "VtepMAC"),
        ("10.42.212.0-24", vxlan("172.30.9.12", 1, &mac), "hardware address"),
        ("10.42.213.0-24", vxlan("172.30.9.13", 7, "02:00:00:00:00:0d"), "VNI is 7"),
        ("10.42.214.0-24", sane(14).replace("vxlan", "host-gw"), "backend is"),
    ];
    Ok(bad.into_iter().map(|(key, record, why)| (key.to_owned(), record, why)).collect())
}

/// Every object that a peer can bring into a kernel.
fn kernel(host: &Host) -> Result<String> {
    let mut all = String::new();
    for (tool, args) in [
        ("ip", "route show table all dev flannel.1"),
        ("bridge", "fdb show dev flannel.1"),
        ("ip", "neigh show dev flannel.1 nud permanent"),
    ] {
        let mut lines: Vec<_> =
            host.exec(&Program::new(tool).args(args.split(' ')))?.lines().map(str::to_owned).collect();
        // The link's own IPv6 address appears after duplicate detection.
        lines.retain(|line| !line.contains("fe80:"));
        lines.sort();
        all += &lines.join("\n");
    }
    Ok(all)
}

fn poison() -> Result<()> {
    let cluster = cluster(spec(Family::V4))?;
    let before: Vec<_> = cluster.net.hosts().iter().map(kernel).collect::<Result<_>>()?;
    let bad = bad_records(&cluster)?;
    let unnamed = |host: &Host| -> Result<Vec<String>> {
        let status: serde_json::Value =
            serde_json::from_str(&control(&cluster, host, &["status", "--output=json"])?)?;
        let refused = status["refused"].as_array().context("refused")?;
        let named = |key: &str, why: &str| {
            refused
                .iter()
                .any(|r| r["lease"] == key && r["reason"].as_str().is_some_and(|text| text.contains(why)))
        };
        let unnamed = bad.iter().filter(|(key, _, why)| !named(key, why));
        Ok(unnamed.map(|(key, _, why)| format!("{key} ({why})")).collect())
    };
    let report = outage(&cluster.pods[0], &cluster.pods[1], Family::V4, SOON, || {
        for (key, record, _) in &bad {
            cluster.store.put(&[(format!("subnets/{key}"), record.clone())])?;
        }
        for host in cluster.net.hosts() {
            eventually(SOON, || {
                let unnamed = unnamed(host)?;
                ensure!(unnamed.is_empty(), "{} does not name {unnamed:?}", host.name());
                Ok(())
            })?;
        }
        Ok(())
    })?;
    ensure!(report.lost() == 0, "{report:?}");
    for (host, before) in cluster.net.hosts().iter().zip(&before) {
        eventually(SOON, || {
            let now = kernel(host)?;
            ensure!(now == *before, "{}:\n{now}\nbefore:\n{before}", host.name());
            Ok(())
        })?;
    }
    let keys: Vec<_> = bad.iter().map(|(key, ..)| format!("subnets/{key}")).collect();
    cluster.store.delete(&keys)?;
    eventually(SOON, || {
        let status = control(&cluster, cluster.net.host(0), &["status"])?;
        ensure!(status.contains("refused 0"), "{status}");
        Ok(())
    })?;
    ensure!(cluster.daemons.iter().all(|daemon| daemon.status().is_none()), "a daemon ended");
    cluster.wait_for_pings(SOON).map(drop)
}

/// The state after a power failure: no daemon, no device, no subnet.env, no store.
fn cold(store: StoreKind) -> Result<()> {
    let mut cluster = cluster(of(store, 3))?;
    for host in cluster.net.hosts() {
        eventually(SOON, || {
            let state = fs::read_to_string(host.path("/var/lib/flannel/state"))?;
            ensure!(state.matches("PublicIP\"").count() == 3, "{state}");
            Ok(())
        })?;
    }
    let before = cluster.net.hosts().iter().map(subnet_env).collect::<Vec<_>>();
    cluster.store.process().kill();
    for (host, daemon) in cluster.net.hosts().iter().zip(&cluster.daemons) {
        daemon.kill();
        host.netlink()?.delete_link("flannel.1")?;
        fs::remove_file(host.path(SUBNET_ENV))?;
    }
    for number in 0..3 {
        cluster.restart_daemon(number)?;
    }
    for (host, daemon) in cluster.net.hosts().iter().zip(&cluster.daemons) {
        wait_for_subnet(host, daemon, SOON)?;
    }
    cluster.wait_for_pings(SOON)?;
    let after = cluster.net.hosts().iter().map(subnet_env).collect::<Vec<_>>();
    ensure!(after == before, "{after:?}\nbefore: {before:?}");
    let host = cluster.net.host(0).clone();
    let status = control(&cluster, &host, &["status"])?;
    ensure!(status.contains("stale for"), "{status}");
    cluster.store.restart()?;
    eventually(LATER, || {
        let status = control(&cluster, &host, &["status"])?;
        ensure!(!status.contains("stale for"), "{status}");
        Ok(())
    })?;
    cluster.join()?;
    cluster.wait_for_pings(LATER).map(drop)
}

fn no_memory() -> Result<()> {
    let mut cluster = Cluster::prepare(&spec(Family::V4), &products()?)?;
    cluster.set_network()?;
    let daemon = products()?.daemon(&cluster.store).args(["--state-dir=/proc/nowhere", "--record-file=off"]);
    cluster.daemons.push(cluster.net.host(0).spawn(&daemon)?);
    cluster.start_daemons()?;
    cluster.add_pods()?;
    cluster.wait_for_pings(SOON)?;
    eventually(SOON, || {
        let program = products()?.control_on_host(&cluster.store).arg("status");
        let status = cluster.net.host(0).exec(&program)?;
        ensure!(status.contains("/proc/nowhere/state: can't be written"), "{status}");
        Ok(())
    })
    .map(drop)
}

/// A record as a host of this address and name would write it.
fn record(address: &str, node: &str, mac: u8) -> String {
    format!(
        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}},"Node":"{node}"}}"#
    )
}

pub(crate) fn own_key(host: &Host) -> Result<String> {
    let env = subnet_env(host).context("subnet.env")?;
    Ok(format!("{PREFIX}/subnets/{}", env["FLANNEL_SUBNET"].replace(".1/24", ".0-24")))
}

fn ended(daemon: &Process) -> Result<ExitStatus> {
    daemon.wait(LATER)
}

fn slept() -> Result<()> {
    let mut cluster = cluster(spec(Family::V4))?;
    let host = cluster.net.host(1).clone();
    let (key, old) = (own_key(&host)?, subnet_env(&host));
    let routes = host.netlink()?.routes("flannel.1")?;
    let taker = cluster.net.host(2).clone();
    let address = taker.address(Family::V4)?.to_string();
    cluster.daemons[2].stop()?;
    cluster.daemons[1].signal(Signal::SIGSTOP);
    for gone in [&own_key(&taker)?, &key] {
        etcdctl(&cluster, &["del", gone])?;
    }
    fs::remove_file(taker.path(SUBNET_ENV))?;
    let theirs = record(&address, taker.name(), 9);
    etcdctl(&cluster, &["put", &key, &theirs])?;
    cluster.restart_daemon(2)?;
    wait_for_subnet(&taker, &cluster.daemons[2], SOON)?;
    cluster.daemons[1].signal(Signal::SIGCONT);
    let status = ended(&cluster.daemons[1])?;
    let log = cluster.daemons[1].log();
    ensure!(status.code() == Some(6), "{status}: {log}");
    ensure!(
        log.contains(&format!("node {} at {address}", taker.name()))
            && log.contains(&format!("node {}", host.name())),
        "{log}"
    );
    ensure!(cluster.store.list("subnets/")?[&key] == theirs, "the new owner's record was touched");
    ensure!(!host.path(SUBNET_ENV).exists(), "new pods would get addresses");
    ensure!(host.path(format!("{SUBNET_ENV}.lost")).exists(), "it is kept beside");
    let kept = host.netlink()?.routes("flannel.1")?;
    ensure!(!kept.is_empty() && kept.is_subset(&routes), "running pods keep their routes: {kept:?}");
    eventually(SOON, || {
        let log = cluster.daemons[2].log();
        let text = format!("is ours, node {}, since that of node {} at", taker.name(), host.name());
        ensure!(log.contains(&text), "{log}");
        Ok(())
    })?;
    cluster.restart_daemon(1)?;
    wait_for_subnet(&host, &cluster.daemons[1], SOON)?;
    let new = subnet_env(&host);
    ensure!(new.is_some() && new != old, "{new:?}");
    ensure!(cluster.store.list("subnets/")?[&key] == theirs, "the new owner's record was touched");
    ensure!(cluster.store.list("subnets/")?.len() == 3, "one lease each");
    Ok(())
}

fn one_address() -> Result<()> {
    let mut cluster = Cluster::prepare(&spec(Family::V4), &products()?)?;
    cluster.set_network()?;
    let daemon = products()?.daemon(&cluster.store).arg("--public-ip=172.30.200.200");
    for host in &cluster.net.hosts()[..2] {
        cluster.daemons.push(host.spawn(&daemon)?);
    }
    cluster.start_daemons()?;
    for (me, other) in [(0, 1), (1, 0)] {
        let names = [me, other].map(|n| format!("node \"{}\"", cluster.net.host(n).name()));
        eventually(SOON, || {
            let log = cluster.daemons[me].log();
            let text =
                log.lines().any(|l| l.contains("refused") && names.iter().all(|name| l.contains(name)));
            ensure!(text, "{names:?} in {log}");
            Ok(())
        })?;
    }
    eventually(SOON, || {
        let subnets: Vec<_> = cluster.net.hosts().iter().filter_map(subnet_env).collect();
        ensure!(subnets.len() == 3 && subnets[0] != subnets[1], "{subnets:?}");
        Ok(())
    })
    .map(drop)
}

fn by_hand() -> Result<()> {
    let mut cluster = Cluster::prepare(&spec(Family::V4), &products()?)?;
    cluster.set_network()?;
    let host = cluster.net.host(0).clone();
    let address = host.address(Family::V4)?.to_string();
    let reserved = ["lease", "reserve", "10.42.77.0/24", "--for", &address];
    control(&cluster, &host, &reserved)?;
    cluster.start_daemons()?;
    ensure!(subnet_env(&host).context("subnet.env")?["FLANNEL_SUBNET"] == "10.42.77.1/24");
    cluster.add_pods()?;
    cluster.wait_for_pings(SOON)?;
    let show = |what: &str| control(&cluster, &host, &["lease", "show", what]);
    ensure!(show("10.42.77.0/24")?.contains("for ever"), "{}", show("10.42.77.0/24")?);
    ensure!(control(&cluster, &host, &["lease", "list"])?.contains("for ever"));
    let other = own_key(cluster.net.host(1))?;
    let other = other.rsplit('/').next().unwrap_or_default().replace('-', "/");
    for (words, why) in [
        (&["lease", "reserve", &other, "--for", "172.30.9.9"][..], "held by node"),
        (&["lease", "reserve", "10.42.77.0/25", "--for", "172.30.9.9"], "subnet"),
        (&["lease", "reserve", "10.99.0.0/24", "--for", "172.30.9.9"], "no subnet that this network leases"),
        (&["lease", "release", &other], "--force"),
        (&["lease", "release", "10.42.78.0/24"], "no lease"),
    ] {
        let text = refused(&cluster, words)?;
        ensure!(text.contains(why), "{words:?}: {text}");
    }
    let before = holders(&cluster)?;
    let text = control(&cluster, &host, &["lease", "release", &other, "--force"])?;
    ensure!(text.contains("released"), "{text}");
    eventually(SOON, || {
        ensure!(holders(&cluster)? == before, "a host that runs claims its own again");
        Ok(())
    })?;
    // The lease of a stopped host is released, and its subnet is free at once.
    cluster.daemons[2].kill();
    let third = own_key(cluster.net.host(2))?;
    let subnet = third.rsplit('/').next().unwrap_or_default().replace('-', "/");
    control(&cluster, &host, &["lease", "release", &subnet, "--force"])?;
    eventually(SOON, || {
        ensure!(host.netlink()?.routes("flannel.1")?.iter().all(|net| net.to_string() != subnet));
        Ok(())
    })?;
    Ok(())
}

fn released_on_exit() -> Result<()> {
    let mut cluster = cluster(spec(Family::V4))?;
    let host = cluster.net.host(2).clone();
    let key = own_key(&host)?;
    cluster.daemons[2].stop()?;
    ensure!(cluster.store.list("subnets/")?.contains_key(&key), "stopping alone gives nothing back");
    let daemon = products()?.daemon(&cluster.store).arg("--release-on-exit");
    let process = host.spawn(&daemon.named("leaver"))?;
    eventually(SOON, || control(&cluster, &host, &["status"]).map(drop))?;
    process.stop()?;
    ensure!(!cluster.store.list("subnets/")?.contains_key(&key), "{}", process.log());
    eventually(SOON, || {
        let routes = cluster.net.host(0).netlink()?.routes("flannel.1")?;
        ensure!(routes.iter().filter(|net| net.prefix() == 24).count() == 1, "{routes:?}");
        Ok(())
    })?;
    cluster.daemons.pop();
    Ok(())
}
