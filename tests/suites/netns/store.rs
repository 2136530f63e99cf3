//! What the store does or says never hurts a node.

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_harness::flannel::{PREFIX, StoreKind};
use netns_harness::{Family, Spec, eventually};

use crate::case::{Case, case, cluster, etcdctl, spec};

const SOON: Duration = Duration::from_secs(5);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("bad_records_hurt_nobody_and_are_named", bad_records),
        case("a_store_that_is_away_changes_nothing_and_is_followed_again_etcd", || away(StoreKind::Etcd)),
        case("a_store_that_is_away_changes_nothing_and_is_followed_again_embedded", || {
            away(StoreKind::Embedded)
        }),
        case("a_deleted_lease_is_claimed_again_in_place", deleted_lease),
    ]
}

/// What somebody else might write into the store.
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
