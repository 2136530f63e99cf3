use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::PutOptions;
use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::{Claim, Family, Store, StoreError, Subnets};

use crate::host::{claim, key};
use crate::server::{DUAL, Etcd, V4};

#[tokio::test]
async fn a_lease_is_stored_under_flannels_key_in_flannels_bytes_for_a_day() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let host = Claim { previous: Some(key("10.5.52.0-24")), ..claim(V4, &["192.168.64.3"]) };
    let own = store.claim(&host).await.unwrap();
    assert_eq!(own.expires_in, Some(Duration::from_secs(86400)));
    let (record, lease, created, _) = etcd.read("10.5.52.0-24").await.unwrap();
    assert_eq!(
        record,
        r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}}"#
    );
    assert_eq!(u64::try_from(created), Ok(own.lease.epoch));
    let left = etcd.client().await.lease_time_to_live(lease, None).await.unwrap();
    assert_eq!(left.granted_ttl(), 86400);
}

#[tokio::test]
async fn claiming_again_renews_without_a_write_and_writes_only_what_changed() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let host = Claim { node: Some("a".into()), ..claim(V4, &["192.168.0.1"]) };
    let first = store.claim(&host).await.unwrap();
    let name = first.lease.subnets.to_string();
    let before = etcd.read(&name).await.unwrap();
    assert_eq!(store.claim(&host).await.unwrap(), first);
    assert_eq!(etcd.read(&name).await.unwrap(), before);

    let moved =
        Claim { previous: Some(first.lease.subnets), public: claim(V4, &["192.168.0.9"]).public, ..host };
    let second = store.claim(&moved).await.unwrap();
    assert_eq!((second.lease.subnets, second.lease.epoch), (first.lease.subnets, first.lease.epoch));
    let after = etcd.read(&name).await.unwrap();
    assert!(after.0.contains("192.168.0.9") && after.1 == before.1 && after.3 > before.3, "{after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_hosts_that_boot_together_get_twenty_subnets() {
    for (network, rack) in [(V4, 1), (DUAL, 2)] {
        let (etcd, _) = Etcd::with_network(network).await;
        let boots = (1..=20).map(|host| {
            let store = etcd.store();
            tokio::spawn(async move {
                let public = [format!("192.168.{rack}.{host}"), format!("fd00::{host}")];
                let public: Vec<&str> = public.iter().map(String::as_str).collect();
                store.claim(&claim(network, &public)).await.unwrap().lease.subnets
            })
        });
        let got: Vec<Subnets> = futures::future::join_all(boots.collect::<Vec<_>>())
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_disjoint(&got);
        assert_eq!(etcd.store().list().await.unwrap().leases.len(), 20);
    }
}

/// So few subnets that everybody wants what somebody else wants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_race_for_the_last_subnets_share_them_out_and_the_rest_is_told() {
    const CRAMPED: &str = r#"{"Network":"10.5.0.0/26","SubnetMin":"10.5.0.0","SubnetLen":28,"EnableIPv6":true,
        "IPv6Network":"fc00::/120","IPv6SubnetLen":124,"Backend":{"Type":"vxlan"}}"#;
    let (etcd, _) = Etcd::with_network(CRAMPED).await;
    let boots = (1..=6).map(|host| {
        let store = etcd.store();
        tokio::spawn(async move {
            let public = [format!("192.168.1.{host}"), format!("fd00::{host}")];
            store.claim(&claim(CRAMPED, &[&public[0], &public[1]])).await
        })
    });
    let results = futures::future::join_all(boots.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap);
    let (got, refused): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
    let got: Vec<Subnets> = got.into_iter().map(|own| own.unwrap().lease.subnets).collect();
    assert_disjoint(&got);
    assert_eq!(got.len(), 4);
    for error in refused.into_iter().map(Result::unwrap_err) {
        assert!(matches!(error, StoreError::Full(..)), "{error}");
    }
    assert_eq!(etcd.store().list().await.unwrap().leases.len(), 4, "who lost left nothing behind");
}

fn assert_disjoint(subnets: &[Subnets]) {
    for (index, a) in subnets.iter().enumerate() {
        assert!(subnets[index + 1..].iter().all(|b| !a.overlaps(b)), "{subnets:?}");
    }
}

#[tokio::test]
async fn a_subnet_that_went_to_somebody_else_is_never_overwritten() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let sleeper = claim(V4, &["192.168.0.1"]);
    let old = store.claim(&sleeper).await.unwrap().lease.subnets;
    let name = old.to_string();
    etcd.delete(&name).await;
    let newcomer = Claim { previous: Some(old), ..claim(V4, &["192.168.0.2"]) };
    assert_eq!(store.claim(&newcomer).await.unwrap().lease.subnets, old);
    let theirs = etcd.read(&name).await.unwrap();

    let awake = store.claim(&Claim { previous: Some(old), ..sleeper }).await.unwrap();
    assert_ne!(awake.lease.subnets, old);
    assert_eq!(etcd.read(&name).await.unwrap(), theirs);
}

#[tokio::test]
async fn a_lease_whose_record_is_garbage_still_keeps_its_subnet() {
    let (etcd, store) = Etcd::with_network(V4).await;
    etcd.put("10.5.7.0-24", "garbage", None).await;
    let host = Claim { previous: Some(key("10.5.7.0-24")), ..claim(V4, &["192.168.0.1"]) };
    assert_ne!(store.claim(&host).await.unwrap().lease.subnets, key("10.5.7.0-24"));
    assert_eq!(etcd.read("10.5.7.0-24").await.unwrap().0, "garbage");
}

#[tokio::test]
async fn a_dual_stack_lease_gives_way_to_an_earlier_one_that_has_one_of_its_families() {
    let (etcd, store) = Etcd::with_network(DUAL).await;
    let host = Claim {
        previous: Some(key("10.5.7.0-24&fc00:0:0:7::-64")),
        ..claim(DUAL, &["192.168.0.1", "fd00::1"])
    };
    etcd.put("10.5.8.0-24&fc00:0:0:7::-64", r#"{"PublicIP":"192.168.0.2","PublicIPv6":"fd00::2"}"#, None)
        .await;
    let own = store.claim(&host).await.unwrap().lease.subnets;
    assert_eq!(own.family(Family::V4), key("10.5.7.0-24").family(Family::V4));
    assert_ne!(own.family(Family::V6), host.previous.unwrap().family(Family::V6));
}

#[tokio::test]
async fn a_reservation_stays_one_while_its_host_says_new_things() {
    let (etcd, store) = Etcd::with_network(V4).await;
    etcd.put("10.5.7.0-24", r#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"Rack":7}"#, None).await;
    let own = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    assert_eq!((own.lease.subnets, own.expires_in), (key("10.5.7.0-24"), None));
    let (record, lease, ..) = etcd.read("10.5.7.0-24").await.unwrap();
    assert_eq!(lease, 0);
    assert!(record.contains("VtepMAC") && record.ends_with(r#","Rack":7}"#), "{record}");
}

#[tokio::test]
async fn a_lease_granted_for_too_short_a_time_gets_the_whole_time() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let granted = etcd.client().await.lease_grant(60, None).await.unwrap().id();
    let options = PutOptions::new().with_lease(granted);
    etcd.put("10.5.7.0-24", r#"{"PublicIP":"192.168.0.1","PublicIPv6":null}"#, Some(options)).await;
    let own = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    assert_eq!(own.expires_in, Some(Duration::from_secs(86400)));
    assert_ne!(etcd.read("10.5.7.0-24").await.unwrap().1, granted);
}

#[tokio::test]
async fn enabling_ipv6_moves_a_lease_in_one_step_and_keeps_its_ipv4_subnet() {
    let (etcd, store) = Etcd::with_network(V4).await;
    let old = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap().lease.subnets;
    let new = store.claim(&claim(DUAL, &["192.168.0.1", "fd00::1"])).await.unwrap().lease.subnets;
    assert_eq!(new.family(Family::V4), old.family(Family::V4));
    assert_eq!(etcd.read(&old.to_string()).await, None);
    let subnets: BTreeSet<_> =
        store.list().await.unwrap().leases.into_iter().map(|(lease, _)| lease.subnets).collect();
    assert_eq!(subnets, BTreeSet::from([new]));
}

#[tokio::test]
async fn a_net_conf_is_written_only_over_what_its_writer_saw() {
    let etcd = Etcd::start();
    let store = etcd.store();
    assert_eq!(store.get_config().await.unwrap(), None);
    let first = store.put_config(V4.as_bytes(), None).await.unwrap();
    assert!(matches!(store.put_config(b"{}", None).await, Err(StoreError::Raced(_))));
    store.put_config(DUAL.as_bytes(), Some(&first)).await.unwrap();
    assert!(matches!(store.put_config(b"{}", Some(&first)).await, Err(StoreError::Raced(_))));
    assert_eq!(store.get_config().await.unwrap().unwrap().json, DUAL.as_bytes());
}

#[tokio::test]
async fn leases_are_listed_with_the_time_they_have_left() {
    let (etcd, store) = Etcd::with_network(V4).await;
    store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    etcd.put("10.5.7.0-24", r#"{"PublicIP":"192.168.0.2","PublicIPv6":null}"#, None).await;
    etcd.put("rubbish", "x", None).await;
    let subnet_lease::Listed { leases, unreadable } = store.list().await.unwrap();
    for (lease, left) in &leases {
        let reserved = lease.subnets == key("10.5.7.0-24");
        assert_eq!((lease.ttl.is_none(), left.is_none()), (reserved, reserved));
    }
    assert_eq!((leases.len(), unreadable.len()), (2, 1));
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_named_and_a_dead_endpoint_is_passed_over() {
    let (etcd, _) = Etcd::with_network(V4).await;
    let dead = format!("http://127.0.0.1:{}", crate::server::free_port());
    let alone =
        EtcdStore::connect(EtcdConfig { endpoints: vec![dead.clone()], ..EtcdConfig::default() }).unwrap();
    let error = alone.claim(&claim(V4, &["192.168.0.1"])).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unreachable(text) if text.contains(&dead) && text.contains("refused")),
        "{error}"
    );
    let both = EtcdConfig { endpoints: vec![dead, etcd.endpoint()], ..EtcdConfig::default() };
    EtcdStore::connect(both).unwrap().claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
}
