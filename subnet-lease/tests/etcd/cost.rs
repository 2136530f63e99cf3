//! What a start costs: requests, and bytes. `--nocapture` shows the figures.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use etcd_client::{Txn, TxnOp};
use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::{Store, StoreEvent};

use crate::host::{claim, snapshot, until};
use crate::relay::Relay;
use crate::server::{self, Etcd, V4};

/// Requests that etcd's metrics have counted since it started.
fn requests(etcd: &Etcd) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", etcd.port())).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("grpc_server_started_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn a_host_that_starts_into_five_thousand_leases_sends_at_most_fifteen_requests() {
    const LEASES: usize = 5000;
    let network = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    let (etcd, _) = Etcd::with_network(network).await;
    let mut client = etcd.client().await;
    let lease = client.lease_grant(3600, None).await.unwrap().id();
    let records: Vec<(String, String)> = (0..LEASES)
        .map(|n| {
            let [high, low] = u16::try_from(n + 256).unwrap().to_be_bytes();
            let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#);
            let record = format!(
                r#"{{"PublicIP":"172.16.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
            );
            (server::key(&format!("10.{high}.{low}.0-24")), record)
        })
        .collect();
    for some in records.chunks(100) {
        let options = || Some(etcd_client::PutOptions::new().with_lease(lease));
        let puts: Vec<_> =
            some.iter().map(|(key, record)| TxnOp::put(key.clone(), record.clone(), options())).collect();
        client.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    let before = requests(&etcd);
    let relay = Relay::to(etcd.port()).await;
    let config = EtcdConfig { endpoints: vec![relay.endpoint()], ..EtcdConfig::default() };
    let store = EtcdStore::connect(config).unwrap();
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await.0.len(), LEASES);
    let listed = relay.received();
    let own = store.claim(&claim(network, &["192.168.0.1"])).await.unwrap();
    let is = |event| matches!(event, StoreEvent::Upsert(l) if l.subnets == own.lease.subnets).then_some(());
    until(&mut watch, is).await;
    let sent = requests(&etcd) - before;
    eprintln!(
        "start into {LEASES} leases: {sent} requests, {} KiB received, {} bytes a peer and listing",
        relay.received() >> 10,
        listed / LEASES as u64
    );
    assert!(sent <= 15, "{sent} requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_is_told_to_others_while_two_hundred_join_one_after_the_other() {
    let (etcd, _) = Etcd::with_network(V4).await;
    let mut watch = etcd.store().watch();
    snapshot(&mut watch).await;
    let mut took = Vec::new();
    for n in 0..200_u8 {
        let since = Instant::now();
        let host = claim(V4, &[&format!("192.168.0.{n}")]);
        let own = etcd.store().claim(&host).await.unwrap();
        let is =
            |event| matches!(event, StoreEvent::Upsert(l) if l.subnets == own.lease.subnets).then_some(());
        until(&mut watch, is).await;
        took.push(since.elapsed());
    }
    took.sort();
    eprintln!("claim until told to a watch: p50 {:?}, p99 {:?}", took[100], took[198]);
}
