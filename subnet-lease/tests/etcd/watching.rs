use std::time::Duration;

use etcd_client::TxnOp;
use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::{Store, StoreEvent};

use crate::host::{claim, key, next, snapshot, stale, until};
use crate::relay::Relay;
use crate::server::{self, DUAL, Etcd, V4};

const RECORD: &str = r#"{"PublicIP":"192.168.0.9","PublicIPv6":null}"#;

#[tokio::test]
async fn a_watch_tells_the_net_conf_then_all_leases_then_who_joins_changes_and_leaves() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let first = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap().lease;
    let mut watch = store.watch();
    assert_eq!(next(&mut watch).await, StoreEvent::Config(V4.into()));
    assert_eq!(
        next(&mut watch).await,
        StoreEvent::Snapshot { leases: vec![first.clone()], unreadable: vec![], foreign: false }
    );
    let second = store.claim(&claim(V4, &["192.168.0.2"])).await.unwrap().lease;
    assert_eq!(next(&mut watch).await, StoreEvent::Upsert(second));
    etcd.delete(&first.subnets.to_string()).await;
    assert_eq!(next(&mut watch).await, StoreEvent::Removed(vec![first.subnets]));
    let seen = store.get_config().await.unwrap().map(|config| config.version);
    store.put_config(DUAL.as_bytes(), seen.as_ref()).await.unwrap();
    assert_eq!(next(&mut watch).await, StoreEvent::Config(DUAL.into()));
}

#[tokio::test]
async fn a_watch_that_finds_no_net_conf_says_so_and_begins_when_there_is_one() {
    let etcd = Etcd::start();
    let mut watch = etcd.store().watch();
    assert_eq!(
        stale(&mut watch).await,
        "/coreos.com/network/config is missing: no network is configured yet"
    );
    etcd.put("10.5.7.0-24", RECORD, None).await;
    etcd.store().put_config(V4.as_bytes(), None).await.unwrap();
    assert_eq!(next(&mut watch).await, StoreEvent::Config(V4.into()));
    assert_eq!(snapshot(&mut watch).await.0.len(), 1);
}

#[tokio::test]
async fn a_lease_that_nobody_renews_is_told_to_have_ended() {
    let (etcd, _) = Etcd::with_network(V4).await;
    let config = EtcdConfig { ttl: Duration::from_secs(1), renew_margin: Duration::ZERO, ..etcd.config() };
    let store = EtcdStore::connect(config).unwrap();
    let own = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await.0.len(), 1);
    assert_eq!(next(&mut watch).await, StoreEvent::Removed(vec![own.lease.subnets]));
}

#[tokio::test]
async fn garbage_is_reported_as_unreadable_and_nothing_else_is_lost() {
    let (etcd, store) = Etcd::with_network(V4).await;
    etcd.put("10.5.7.0-24", RECORD, None).await;
    etcd.put("no-subnet", RECORD, None).await;
    etcd.put("10.5.8.0-24", b"\xff\x00".to_vec(), None).await;
    etcd.client().await.put("/coreos.com/network/subnetsX/10.5.9.0-24", RECORD, None).await.unwrap();
    let mut watch = store.watch();
    let (leases, unreadable) = snapshot(&mut watch).await;
    assert_eq!(leases.iter().map(|lease| lease.subnets).collect::<Vec<_>>(), [key("10.5.7.0-24")]);
    assert_eq!(
        unreadable.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        ["10.5.8.0-24", "no-subnet"]
    );

    etcd.put("10.5.7.0-24", "{", None).await;
    let event = next(&mut watch).await;
    assert!(matches!(&event, StoreEvent::Unreadable { key, .. } if key == "10.5.7.0-24"), "{event:?}");
    etcd.put("10.5.7.0-24", RECORD, None).await;
    assert!(
        matches!(next(&mut watch).await, StoreEvent::Upsert(lease) if lease.subnets == key("10.5.7.0-24"))
    );
    etcd.delete("no-subnet").await;
    assert_eq!(
        next(&mut watch).await,
        StoreEvent::Gone { key: "no-subnet".to_owned() },
        "and nothing is listed again"
    );
}

#[tokio::test]
async fn a_watch_outlives_a_restart_of_etcd_and_loses_nothing() {
    let (mut etcd, store) = Etcd::with_network(V4).await;
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    etcd.restart();
    assert!(!stale(&mut watch).await.is_empty());
    etcd.put("10.5.7.0-24", RECORD, None).await;
    let mut followed = false;
    until(&mut watch, |event| match event {
        StoreEvent::Config(_) | StoreEvent::Snapshot { .. } => {
            followed = true;
            None
        }
        StoreEvent::Upsert(lease) => (lease.subnets == key("10.5.7.0-24")).then_some(()),
        _ => None,
    })
    .await;
    assert!(followed, "the end of the outage was told");
}

#[tokio::test]
async fn changes_made_while_the_wire_is_cut_are_told_when_it_is_mended() {
    let (etcd, _) = Etcd::with_network(V4).await;
    etcd.put("10.5.7.0-24", RECORD, None).await;
    let relay = Relay::to(etcd.port()).await;
    let config = EtcdConfig { endpoints: vec![relay.endpoint()], ..EtcdConfig::default() };
    let mut watch = EtcdStore::connect(config).unwrap().watch();
    snapshot(&mut watch).await;
    relay.cut();
    stale(&mut watch).await;
    etcd.delete("10.5.7.0-24").await;
    etcd.put("10.5.8.0-24", RECORD, None).await;
    relay.mend();
    let told = [until_change(&mut watch).await, until_change(&mut watch).await];
    assert_eq!(told[0], StoreEvent::Removed(vec![key("10.5.7.0-24")]), "resumed, without a new list");
    assert!(matches!(&told[1], StoreEvent::Upsert(lease) if lease.subnets == key("10.5.8.0-24")));
}

async fn until_change(watch: &mut subnet_lease::BoxStream<'static, StoreEvent>) -> StoreEvent {
    until(watch, |event| match event {
        StoreEvent::Config(_) | StoreEvent::Stale(_) => None,
        change => Some(change),
    })
    .await
}

#[tokio::test]
async fn history_compacted_away_meanwhile_is_replaced_by_a_snapshot() {
    let (etcd, _) = Etcd::with_network(V4).await;
    etcd.put("10.5.7.0-24", RECORD, None).await;
    let relay = Relay::to(etcd.port()).await;
    let config = EtcdConfig { endpoints: vec![relay.endpoint()], ..EtcdConfig::default() };
    let mut watch = EtcdStore::connect(config).unwrap().watch();
    snapshot(&mut watch).await;
    relay.cut();
    stale(&mut watch).await;
    etcd.delete("10.5.7.0-24").await;
    etcd.put("10.5.8.0-24", RECORD, None).await;
    let revision = etcd.read("10.5.8.0-24").await.unwrap().3;
    etcd.client().await.compact(revision, None).await.unwrap();
    relay.mend();
    let leases = snapshot(&mut watch).await.0;
    assert_eq!(leases.iter().map(|lease| lease.subnets).collect::<Vec<_>>(), [key("10.5.8.0-24")]);
}

#[tokio::test]
async fn another_etcd_at_the_same_address_is_noticed_by_its_younger_history() {
    let (mut etcd, store) = Etcd::with_network(V4).await;
    for host in 1..5 {
        etcd.put(&format!("10.5.{host}.0-24"), RECORD, None).await;
    }
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await.0.len(), 4);
    etcd.replace_by_empty();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    etcd.put("10.5.9.0-24", RECORD, None).await;
    let leases = until(&mut watch, |event| match event {
        StoreEvent::Snapshot { leases, .. } => Some(leases),
        StoreEvent::Upsert(lease) => panic!("took the new history for the old one: {lease:?}"),
        _ => None,
    })
    .await;
    assert!(leases.len() <= 1);
}

/// An etcd put back from a backup counts on from there, and soon has as many revisions as it had.
#[tokio::test]
async fn another_history_that_grew_as_long_as_the_one_before_is_noticed_by_what_it_lacks() {
    let (mut etcd, _) = Etcd::with_network(V4).await;
    for host in 1..5 {
        etcd.put(&format!("10.5.{host}.0-24"), RECORD, None).await;
    }
    let relay = Relay::to(etcd.port()).await;
    let config = EtcdConfig { endpoints: vec![relay.endpoint()], ..EtcdConfig::default() };
    let mut watch = EtcdStore::connect(config).unwrap().watch();
    assert_eq!(snapshot(&mut watch).await.0.len(), 4);
    relay.cut();
    stale(&mut watch).await;
    etcd.replace_by_empty();
    let store = etcd.store();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    for host in 11..20 {
        etcd.put(&format!("10.5.{host}.0-24"), RECORD, None).await;
    }
    relay.mend();
    let (leases, foreign) = until(&mut watch, |event| match event {
        StoreEvent::Snapshot { leases, foreign, .. } => Some((leases.len(), foreign)),
        StoreEvent::Upsert(lease) => panic!("took the new history for the old one: {lease:?}"),
        _ => None,
    })
    .await;
    assert_eq!((leases, foreign), (9, true));
}

#[tokio::test]
async fn leases_deleted_together_are_told_together_and_of_a_key_its_last_state() {
    let (etcd, store) = Etcd::with_network(V4).await;
    for host in 1..4 {
        etcd.put(&format!("10.5.{host}.0-24"), RECORD, None).await;
    }
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await.0.len(), 3);
    let all = etcd_client::DeleteOptions::new().with_prefix();
    etcd.client().await.delete(server::key(""), Some(all)).await.unwrap();
    let gone = (1..4).map(|host| key(&format!("10.5.{host}.0-24"))).collect();
    assert_eq!(next(&mut watch).await, StoreEvent::Removed(gone));
}

/// Without a net-conf nobody can join; those who knew it still hear what became of the leases.
#[tokio::test]
async fn a_store_that_lost_everything_says_that_all_leases_are_gone() {
    let (mut etcd, store) = Etcd::with_network(V4).await;
    for host in 1..5 {
        etcd.put(&format!("10.5.{host}.0-24"), RECORD, None).await;
    }
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await.0.len(), 4);
    etcd.replace_by_empty();
    let (leases, foreign) = until(&mut watch, |event| match event {
        StoreEvent::Snapshot { leases, foreign, .. } => Some((leases.len(), foreign)),
        _ => None,
    })
    .await;
    assert_eq!((leases, foreign), (0, true));
    assert!(stale(&mut watch).await.contains("no network is configured yet"));
}

#[tokio::test]
async fn thousands_of_leases_come_in_one_snapshot() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let mut client = etcd.client().await;
    let names: Vec<String> = (0..2500).map(|n| format!("10.5.{}.{}-28", n / 16, n % 16 * 16)).collect();
    for some in names.chunks(100) {
        let puts: Vec<TxnOp> = some.iter().map(|name| TxnOp::put(server::key(name), RECORD, None)).collect();
        client.txn(etcd_client::Txn::new().and_then(puts)).await.unwrap();
    }
    let (leases, unreadable) = snapshot(&mut store.watch()).await;
    assert_eq!((leases.len(), unreadable), (2500, vec![]));
}

/// More than the 64 MiB that one answer may have.
#[tokio::test]
async fn fat_records_neither_stop_the_list_nor_hide_the_others() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let fat = vec![b'x'; 1_400_000];
    for n in 0..50 {
        etcd.put(&format!("10.5.{n}.0-24"), fat.clone(), None).await;
    }
    etcd.put("10.5.100.0-24", RECORD, None).await;
    let (leases, unreadable) = snapshot(&mut store.watch()).await;
    assert_eq!(leases.iter().map(|lease| lease.subnets).collect::<Vec<_>>(), [key("10.5.100.0-24")]);
    assert_eq!(unreadable.len(), 50);
    assert_eq!(unreadable[0].1, "the record has 1400000 bytes, at most 65536 are read");
}
