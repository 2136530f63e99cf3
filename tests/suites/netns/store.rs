//! Nothing that the store does or sends hurts a node.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::caps::Need;
use netns_harness::flannel::{PREFIX, SUBNET_ENV, StoreKind, subnet_env, wait_for_subnet};
use netns_harness::{Family, Host, Net, Process, Program, Spec, Topology, UPLINK, eventually};

use crate::case::{Case, case, cluster, etcdctl, products, spec};

const SOON: Duration = Duration::from_secs(10);
/// Longer than any back-off of a store client, and than the pings that find a dead connection.
const LATER: Duration = Duration::from_secs(60);
const NET_CONF: &str = r#"{"Network": "10.42.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("bad_records_are_named_and_affect_no_peer", bad_records),
        case("an_unreachable_store_changes_nothing_and_is_followed_again_etcd", || away(StoreKind::Etcd)),
        case("an_unreachable_store_changes_nothing_and_is_followed_again_embedded", || {
            away(StoreKind::Embedded)
        }),
        case("a_deleted_lease_is_claimed_again_in_place", deleted_lease),
        case("hosts_join_and_are_seen_while_any_of_three_members_is_cut_off", member_cut_off),
        case("a_host_is_its_own_store_with_one_flag_and_keeps_its_subnet_over_restarts", own_store)
            .needing(&ALONE),
        case(
            "a_full_disk_is_reported_loses_nothing_and_the_embedded_store_goes_on_when_there_is_room",
            full_disk,
        )
        .needing(&ALONE),
    ]
}

/// The needs of one host whose pods reach nobody else.
const ALONE: [Need; 4] = [Need::Namespaces, Need::Veth, Need::Bridge, Need::Vxlan];

/// Records that another program may write into the store.
const BAD: [(&str, &str); 8] = [
    ("not-a-key", "x"),
    ("10.42.200.0-24", "not json"),
    ("10.42.201.0-24", "{}"),
    (
        "10.42.202.0-24",
        r#"{"PublicIP":"127.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#,
    ),
    (
        "128.0.0.0-1",
        r#"{"PublicIP":"172.30.0.66","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}"#,
    ),
    (
        "10.42.203.0-24",
        r#"{"PublicIP":"172.30.0.67","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}}"#,
    ),
    ("10.42.204.0-24", r#"{"PublicIP":"172.30.0.68","PublicIPv6":null,"BackendType":"host-gw"}"#),
    (
        "10.42.0.0-16",
        r#"{"PublicIP":"172.30.0.69","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}}"#,
    ),
];

fn bad_records() -> Result<()> {
    let mut cluster = cluster(spec(Family::V4))?;
    let netlink = cluster.net.host(0).netlink()?;
    let before = netlink.routes("flannel.1")?;
    for (key, value) in BAD {
        etcdctl(&cluster, &["put", &format!("{PREFIX}/subnets/{key}"), value])?;
    }
    eventually(SOON, || {
        let log = cluster.daemons[0].log();
        let unnamed: Vec<_> = BAD.iter().filter(|(key, _)| !log.contains(key)).collect();
        ensure!(unnamed.is_empty(), "not named: {unnamed:?}\n{log}");
        Ok(())
    })?;
    ensure!(netlink.routes("flannel.1")? == before, "a bad record became a route");
    cluster.wait_for_pings(SOON)?;
    cluster.join()?;
    cluster.wait_for_pings(SOON)?;
    Ok(())
}

fn away(store: StoreKind) -> Result<()> {
    let mut cluster = cluster(Spec { store, ..spec(Family::V4) })?;
    cluster.store.process().kill();
    cluster.wait_for_pings(SOON)?;
    let before = cluster.net.host(0).netlink()?.routes("flannel.1")?;
    ensure!(before.iter().filter(|net| net.prefix() == 24).count() == 2, "{before:?}");
    cluster.store.restart()?;
    cluster.join()?;
    cluster.wait_for_pings(Duration::from_secs(20)).map(drop)
}

fn deleted_lease() -> Result<()> {
    let cluster = cluster(spec(Family::V4))?;
    let before = cluster.store.list("subnets/")?;
    etcdctl(&cluster, &["del", "--prefix", &format!("{PREFIX}/subnets/")])?;
    eventually(SOON, || {
        let now = cluster.store.list("subnets/")?;
        ensure!(now == before, "{now:?}");
        Ok(())
    })?;
    ensure!(cluster.daemons.iter().all(|d| d.status().is_none()), "a daemon ended");
    cluster.wait_for_pings(SOON).map(drop)
}

fn daemon(words: &[&str]) -> Result<Program> {
    let program = Program::new(products()?.flanneld).arg(format!("--subnet-file={SUBNET_ENV}"));
    Ok(program.arg(format!("--iface={UPLINK}")).args(words.iter().copied()))
}

/// Runs `flannelctl` again until it succeeds.
fn control(host: &Host, words: &[&str]) -> Result<String> {
    let program = Program::new(products()?.flanneld).called("flannelctl").args(words.iter().copied());
    let mut text = String::new();
    eventually(LATER, || {
        text = host.exec(&program)?;
        Ok(())
    })?;
    Ok(text)
}

fn set_network(host: &Host, flags: &[&str]) -> Result<()> {
    fs::write(host.path("/run/net-conf.json"), NET_CONF)?;
    control(host, &[flags, &["network", "set", "/run/net-conf.json"]].concat()).map(drop)
}

/// Three members, each on a host of its own.
fn members(hosts: &[Host]) -> Result<Vec<Process>> {
    let addresses: Vec<_> = hosts.iter().map(|host| host.address(Family::V4)).collect::<Result<_>>()?;
    let names = addresses.iter().enumerate().map(|(n, address)| format!("m{n}=http://{address}:2380"));
    let cluster = names.collect::<Vec<_>>().join(",");
    let starts = hosts.iter().zip(&addresses).enumerate().map(|(n, (host, address))| {
        let [client, peer] = [2379, 2380].map(|port| format!("http://{address}:{port}"));
        let program = Program::new("etcd").named(&format!("m{n}")).args([
            format!("--name=m{n}"),
            "--data-dir=/var/lib/etcd".to_owned(),
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={cluster}"),
        ]);
        host.spawn(&program)
    });
    starts.collect()
}

/// A member that is cut off answers no request and has no new data: hosts find another member by themselves.
fn member_cut_off() -> Result<()> {
    // Three members, and five hosts, three of which join later.
    let net = Net::build(Topology::flat(8))?;
    let _members = members(&net.hosts()[..3])?;
    let endpoints =
        net.hosts()[..3].iter().map(|host| Ok(format!("http://{}:2379", host.address(Family::V4)?)));
    let flag = format!("--etcd-endpoints={}", endpoints.collect::<Result<Vec<_>>>()?.join(","));
    set_network(net.host(3), &[&flag])?;
    let join = |host: &Host| -> Result<Process> {
        let process = host.spawn(&daemon(&[&flag])?)?;
        wait_for_subnet(host, &process, LATER)?;
        Ok(process)
    };
    let mut daemons = vec![join(net.host(3))?, join(net.host(4))?];
    for cut in 0..3 {
        net.cut(cut)?;
        daemons.push(join(net.host(5 + cut))?);
        let others = daemons.len() - 1;
        for host in &net.hosts()[3..=5 + cut] {
            eventually(LATER, || {
                let routes = host.netlink()?.routes("flannel.1")?;
                let peers = routes.iter().filter(|net| net.prefix() == 24).count();
                ensure!(peers == others, "{} has {peers} of {others}: {routes:?}", host.name());
                Ok(())
            })?;
        }
        net.mend(cut)?;
    }
    ensure!(daemons.iter().all(|daemon| daemon.status().is_none()), "a daemon ended");
    Ok(())
}

fn own_store() -> Result<()> {
    let net = Net::build(Topology::flat(1))?;
    let host = net.host(0);
    let words = ["--store=embedded", "--subnet-lease-ttl=3", "--subnet-lease-renew-margin=1"];
    let first = host.spawn(&daemon(&words)?)?;
    set_network(host, &[])?;
    wait_for_subnet(host, &first, SOON)?;
    let had = subnet_env(host).context("subnet.env")?;
    let listed = control(host, &["lease", "list"])?;
    ensure!(listed.contains("2m 5"), "a lease of three minutes: {listed}");
    ensure!(first.stop()?.success(), "{}", first.log());
    fs::remove_file(host.path(SUBNET_ENV))?;
    let again = host.spawn(&daemon(&words)?.named("again"))?;
    wait_for_subnet(host, &again, SOON)?;
    ensure!(subnet_env(host).as_ref() == Some(&had), "{:?}, had {had:?}", subnet_env(host));
    ensure!(host.path("/var/lib/flannel/store/store.redb").exists(), "it is in the state directory");
    let abroad = host.output(&daemon(&["--store=embedded", "--etcd-endpoints=http://0.0.0.0:2379"])?)?;
    let text = String::from_utf8_lossy(&abroad.stderr).into_owned();
    ensure!(abroad.status.code() == Some(2) && text.contains("127.0.0.1:PORT"), "{}: {text}", abroad.status);
    Ok(())
}

fn full_disk() -> Result<()> {
    let net = Net::build(Topology::flat(1))?;
    let host = net.host(0);
    let tool = |line: &str| host.exec(&Program::new("sh").args(["-c", line]));
    tool("mkdir -p /var/lib/selvage && mount -t tmpfs -o size=3m none /var/lib/selvage")?;
    let store =
        host.spawn(&Program::new(products()?.flanneld).args(["store", "--data-dir=/var/lib/selvage"]))?;
    let etcdctl = "ETCDCTL_API=3 etcdctl --endpoints=127.0.0.1:2379";
    eventually(SOON, || tool(&format!("{etcdctl} put before it")).map(drop))?;
    let mut kept = 0;
    let refusal = loop {
        ensure!(kept < 1000, "a disk of 3 MiB took more");
        match tool(&format!("head -c 20000 /dev/zero | tr '\\0' x | {etcdctl} put filler/{kept}")) {
            Ok(_) => kept += 1,
            Err(error) => break format!("{error:#}"),
        }
    };
    ensure!(kept > 0 && refusal.contains("No space left"), "{kept}: {refusal}");
    ensure!(
        tool(&format!("{etcdctl} get before --print-value-only"))?.trim() == "it",
        "it goes on answering"
    );
    tool("mount -o remount,size=30m /var/lib/selvage")?;
    eventually(SOON, || tool(&format!("{etcdctl} put after it")).map(drop))?;
    let count = tool(&format!("{etcdctl} get --prefix filler/ --keys-only | grep -c filler"))?;
    ensure!(count.trim() == kept.to_string(), "{count} of {kept} are there");
    ensure!(store.status().is_none(), "{}", store.log());
    Ok(())
}
