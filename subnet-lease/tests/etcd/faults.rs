//! What an etcd and the way to it can do to a host, and how soon it is noticed. `--nocapture` shows the times.

use std::time::{Duration, Instant};

use futures::StreamExt;
use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::{BoxStream, Claim, Store, StoreError, StoreEvent};

use crate::host::{PATIENCE, claim, key, snapshot, stale, until};
use crate::relay::Relay;
use crate::server::{Cluster, DUAL, Etcd, V4};

const RECORD: &str = r#"{"PublicIP":"192.168.0.9","PublicIPv6":null}"#;

type Watch = BoxStream<'static, StoreEvent>;

fn told(what: &str, since: Instant) {
    eprintln!("{what}: {} ms", since.elapsed().as_millis());
}

async fn upserted(watch: &mut Watch, name: &str) {
    let wanted = key(name);
    let is = |event| matches!(event, StoreEvent::Upsert(ref l) if l.subnets == wanted).then_some(());
    until(watch, is).await;
}

/// Nothing but the pings can tell.
#[tokio::test]
async fn a_wire_that_went_dead_is_noticed() {
    let (etcd, _) = Etcd::with_network(V4).await;
    let relay = Relay::to(etcd.port()).await;
    let config = EtcdConfig { endpoints: vec![relay.endpoint()], ..EtcdConfig::default() };
    let mut watch = EtcdStore::connect(config).unwrap().watch();
    snapshot(&mut watch).await;
    relay.kill();
    let since = Instant::now();
    stale(&mut watch).await;
    told("dead wire noticed", since);
}

/// The old address is gone, and with it everything that was sent to it: only who moved can know at once.
#[tokio::test]
async fn a_host_that_moved_follows_the_store_at_once_over_a_new_connection() {
    let (etcd, _) = Etcd::with_network(V4).await;
    let relay = Relay::to(etcd.port()).await;
    let config = EtcdConfig { endpoints: vec![relay.endpoint()], ..EtcdConfig::default() };
    let store = EtcdStore::connect(config).unwrap();
    let mut watch = store.watch();
    let host = Claim { node: Some("mover".into()), ..claim(V4, &["192.168.0.1"]) };
    let own = store.claim(&host).await.unwrap().lease.subnets;
    snapshot(&mut watch).await;
    relay.kill_the_open();
    let since = Instant::now();
    let moved = Claim { public: claim(V4, &["192.168.0.2"]).public, previous: Some(own), ..host };
    // Had the pings noticed, the watch would have said that it is stale.
    let listens = until(&mut watch, |event| match event {
        StoreEvent::Upsert(lease) if lease.subnets == own => Some(None),
        StoreEvent::Stale(reason) => Some(Some(reason)),
        _ => None,
    });
    let (claimed, stale) = tokio::join!(store.claim(&moved), listens);
    claimed.unwrap();
    told("followed after a move", since);
    assert_eq!(stale, None);
}

#[tokio::test]
async fn pings_are_no_more_than_etcd_allows() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    // Three pings; etcd says goodbye ("too many pings") after the third that comes too soon.
    let quiet = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    etcd.put("10.5.7.0-24", RECORD, None).await;
    upserted(&mut watch, "10.5.7.0-24").await;
}

#[tokio::test]
async fn an_etcd_that_is_full_is_named_as_such_and_leases_are_written_when_there_is_room_again() {
    let quota = ["--quota-backend-bytes".to_string(), (16 << 20).to_string()];
    let etcd = Etcd::start_with(&quota);
    let store = etcd.store();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    let mut client = etcd.client().await;
    while client.put("/filler", vec![b'x'; 1 << 20], None).await.is_ok() {}
    let error = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap_err();
    assert!(matches!(&error, StoreError::Failing(text) if text.contains("space exceeded")), "{error}");
    snapshot(&mut store.watch()).await;

    let revision = client.delete("/filler", None).await.unwrap().header().unwrap().revision();
    let now = Some(etcd_client::CompactionOptions::new().with_physical());
    client.compact(revision, now).await.unwrap();
    client.defragment().await.unwrap();
    let alarm = etcd_client::AlarmType::Nospace;
    let member = client.status().await.unwrap().header().unwrap().member_id();
    let mut options = etcd_client::AlarmOptions::new();
    options.with_member(member);
    client.alarm(etcd_client::AlarmAction::Deactivate, alarm, Some(options)).await.unwrap();
    store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
}

#[tokio::test]
async fn a_token_that_has_expired_costs_nothing() {
    let etcd = Etcd::start_with(&["--auth-token-ttl".into(), "1".into()]);
    let mut admin = etcd.client().await;
    admin.user_add("root", "r00t", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.auth_enable().await.unwrap();
    let login = EtcdConfig { username: Some("root".into()), password: Some("r00t".into()), ..etcd.config() };
    let store = EtcdStore::connect(login).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    // Somebody else's token of the same age, asked until it is refused.
    let options = etcd_client::ConnectOptions::new().with_user("root", "r00t");
    let mut other = etcd_client::Client::connect([etcd.endpoint()], Some(options)).await.unwrap();
    let expired = async {
        while other.get("/coreos.com/network/config", None).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    };
    tokio::time::timeout(PATIENCE, expired).await.expect("tokens end");
    let own = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    upserted(&mut watch, &own.lease.subnets.to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_and_watches_outlive_the_loss_of_the_leader_and_of_a_follower() {
    let mut cluster = Cluster::start();
    let store = EtcdStore::connect(cluster.config()).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    let first = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap().lease.subnets;
    upserted(&mut watch, &first.to_string()).await;

    let leader = cluster.leader().await;
    cluster.members[leader].stop();
    let since = Instant::now();
    let second = claimed(&store, "192.168.0.2").await;
    told("claimed after the leader was killed", since);
    upserted(&mut watch, &second).await;
    told("told after the leader was killed", since);
    assert_eq!(store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap().lease.subnets, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stopped_answering_is_left_for_another() {
    let cluster = Cluster::start();
    let store = EtcdStore::connect(cluster.config()).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    // The one that the watch is connected to.
    cluster.members[0].pause(true);
    let since = Instant::now();
    let claiming = async {
        let name = claimed(&store, "192.168.0.1").await;
        told("claimed while a member is paused", since);
        name
    };
    // Listened to all the while, as by the daemon.
    let (name, _) = tokio::join!(claiming, stale(&mut watch));
    told("paused member noticed", since);
    upserted(&mut watch, &name).await;
    told("told while a member is paused", since);
    cluster.members[0].pause(false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_replaced_by_another_is_no_other_history() {
    let mut cluster = Cluster::start();
    let store = EtcdStore::connect(cluster.config()).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    let first = claimed(&store, "192.168.0.1").await;
    upserted(&mut watch, &first).await;
    // The one that the watch is connected to.
    tokio::time::timeout(PATIENCE, cluster.replace(0)).await.expect("a cluster takes a new member");
    let second = claimed(&store, "192.168.0.2").await;
    until(&mut watch, |event| match event {
        StoreEvent::Snapshot { leases, foreign, .. } => panic!("listed anew: {leases:?} {foreign}"),
        StoreEvent::Upsert(lease) => (lease.subnets == key(&second)).then_some(()),
        _ => None,
    })
    .await;
}

/// As the daemon does: again until it works.
async fn claimed(store: &EtcdStore, public: &str) -> String {
    let tries = async {
        loop {
            match store.claim(&claim(V4, &[public])).await {
                Ok(own) => return own.lease.subnets.to_string(),
                Err(error) => {
                    eprintln!("refused meanwhile: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, tries).await.expect("a claim in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_hosts_that_boot_in_one_moment_all_get_subnets_of_their_own() {
    let cluster = Cluster::start();
    for (network, rack) in [(V4, 1), (DUAL, 2)] {
        let store = EtcdStore::connect(cluster.config()).unwrap();
        let seen = store.get_config().await.unwrap().map(|config| config.version);
        store.put_config(network.as_bytes(), seen.as_ref()).await.unwrap();
        let boots = (1..=50).map(|host| {
            let mut config = cluster.config();
            config.endpoints.rotate_left(host % 3);
            tokio::spawn(async move {
                let store = EtcdStore::connect(config).unwrap();
                let public = [format!("192.168.{rack}.{host}"), format!("fd00::{host}")];
                let public: Vec<&str> = public.iter().map(String::as_str).collect();
                let since = Instant::now();
                let subnets = store.claim(&claim(network, &public)).await.unwrap().lease.subnets;
                (subnets, since.elapsed())
            })
        });
        let got = futures::future::join_all(boots.collect::<Vec<_>>()).await;
        let (got, mut took): (Vec<_>, Vec<_>) = got.into_iter().map(Result::unwrap).unzip();
        for (n, one) in got.iter().enumerate() {
            assert!(got[..n].iter().all(|other| !other.overlaps(one)), "{got:?}");
        }
        took.sort();
        eprintln!("50 claims at once, three members: median {:?}, slowest {:?}", took[25], took[49]);
    }
}
