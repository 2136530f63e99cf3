//! What every store promises, and what only Kubernetes can do to one.

use std::time::Duration;

use futures::StreamExt;
use futures_core::stream::BoxStream;
use serde_json::{Value, json};
use subnet_lease::{
    BackendAttrs, Claim, DataPath, Lease, NetworkConfig, OwnLease, PublicAddrs, Store, StoreError,
    StoreEvent, Subnets, VxlanData,
};
use tokio::time::timeout;

use crate::server::{Cluster, V4, stock_rules};

const SOON: Duration = Duration::from_secs(30);

fn claim(n: u8) -> Claim {
    let (network, _) = NetworkConfig::parse(V4.as_bytes()).unwrap();
    let data = VxlanData { vni: 1, mac: [2, 0, 0, 0, 0, n] };
    Claim {
        public: PublicAddrs { v4: Some([192, 168, 0, n].into()), v6: None },
        attrs: BackendAttrs::vxlan(Some(data), None),
        previous: None,
        network: network.into(),
        node: None,
        avoid: Default::default(),
    }
}

async fn next(watch: &mut BoxStream<'static, StoreEvent>) -> StoreEvent {
    timeout(SOON, watch.next()).await.expect("an event").expect("a watch never ends")
}

/// The leases of the first snapshot, and what could not be read.
async fn snapshot(watch: &mut BoxStream<'static, StoreEvent>) -> (Vec<Lease>, Vec<(String, String)>) {
    loop {
        if let StoreEvent::Snapshot { leases, unreadable, .. } = next(watch).await {
            return (leases, unreadable);
        }
    }
}

fn subnets(text: &str) -> Subnets {
    Subnets::of([text.parse().unwrap()]).unwrap()
}

fn annotation(node: &Value, suffix: &str) -> Value {
    node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{suffix}")].clone()
}

fn condition(node: &Value) -> Value {
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|it| it["type"] == "NetworkUnavailable").unwrap_or_default()
}

#[tokio::test]
async fn a_host_publishes_flannels_annotations_and_others_see_it_come_change_and_go() {
    let cluster = Cluster::start();
    cluster.grant(stock_rules());
    cluster.add_node("a", &["10.244.1.0/24"]);
    cluster.add_node("b", &["10.244.2.0/24"]);
    let (a, b) = (cluster.store_of("a", "flannel-a", V4), cluster.store_of("b", "flannel-b", V4));
    let own = a.claim(&claim(1)).await.unwrap();
    assert_eq!((own.lease.subnets, own.expires_in), (subnets("10.244.1.0/24"), None));
    let node = cluster.node("a");
    assert_eq!(annotation(&node, "kube-subnet-manager"), "true");
    assert_eq!(annotation(&node, "backend-type"), "vxlan");
    assert_eq!(annotation(&node, "backend-data"), r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#);
    assert_eq!(annotation(&node, "public-ip"), "192.168.0.1");
    assert_eq!(annotation(&node, "public-ipv6"), Value::Null);
    // The same again writes nothing.
    a.claim(&claim(1)).await.unwrap();
    assert_eq!(cluster.node("a")["metadata"]["resourceVersion"], node["metadata"]["resourceVersion"]);

    let mut watch = a.watch();
    assert_eq!(next(&mut watch).await, StoreEvent::Config(V4.into()));
    let (leases, unreadable) = snapshot(&mut watch).await;
    assert_eq!((leases, unreadable), (vec![own.lease.clone()], vec![]));
    let theirs: OwnLease = b.claim(&claim(2)).await.unwrap();
    assert_eq!(next(&mut watch).await, StoreEvent::Upsert(theirs.lease.clone()));
    let moved = b.claim(&claim(3)).await.unwrap();
    assert_eq!(next(&mut watch).await, StoreEvent::Upsert(moved.lease.clone()));
    // Wiped annotations end the lease; so does a Node that goes. A heartbeat is no event.
    cluster.call("PATCH", "/api/v1/nodes/b", json!({"metadata": {"labels": {"x": "y"}}}));
    cluster.annotate("b", &[("kube-subnet-manager", Value::Null)]);
    assert_eq!(next(&mut watch).await, StoreEvent::Removed(vec![moved.lease.subnets]));
    b.claim(&claim(3)).await.unwrap();
    assert!(matches!(next(&mut watch).await, StoreEvent::Upsert(_)));
    assert!(b.release(&moved.lease).await.unwrap());
    assert_eq!(next(&mut watch).await, StoreEvent::Removed(vec![moved.lease.subnets]));
    assert!(!b.release(&moved.lease).await.unwrap());
}

#[tokio::test]
async fn an_api_server_that_is_killed_is_followed_again_and_what_happened_meanwhile_is_seen() {
    let mut cluster = Cluster::start();
    cluster.add_node("a", &["10.244.1.0/24"]);
    cluster.add_node("b", &["10.244.2.0/24"]);
    let (a, b) = (cluster.store_of("a", "admin", V4), cluster.store_of("b", "admin", V4));
    let mut watch = a.watch();
    assert_eq!(snapshot(&mut watch).await.0, vec![]);
    cluster.stop();
    let StoreEvent::Stale(_) = next(&mut watch).await else { panic!("the watch is not stale") };
    assert!(matches!(b.claim(&claim(2)).await, Err(StoreError::Unreachable(_))));
    cluster.restart();
    let theirs = b.claim(&claim(2)).await.unwrap().lease;
    loop {
        match next(&mut watch).await {
            StoreEvent::Upsert(lease) => break assert_eq!(lease, theirs),
            StoreEvent::Snapshot { leases, .. } if leases.contains(&theirs) => break,
            StoreEvent::Removed(gone) => panic!("{gone:?} did not go"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn each_fault_of_a_node_is_one_sentence_and_hurts_no_other() {
    let cluster = Cluster::start();
    cluster.add_node("a", &["10.244.1.0/24"]);
    cluster.add_node("none", &[]);
    cluster.add_node("outside", &["10.9.0.0/24"]);
    let good = cluster.store_of("a", "admin", V4).claim(&claim(1)).await.unwrap().lease;
    let said = async |node: &str| {
        cluster.store_of(node, "admin", V4).claim(&claim(9)).await.unwrap_err().to_string()
    };
    assert!(said("gone").await.ends_with("there is no Node gone yet: its kubelet has not registered it"));
    let none = said("none").await;
    assert!(
        none.contains("Node none has no podCIDR") && none.ends_with("--cluster-cidr=10.244.0.0/16"),
        "{none}"
    );
    assert!(
        said("outside")
            .await
            .ends_with("the podCIDR 10.9.0.0/24 of Node outside is outside the network 10.244.0.0/16")
    );
    assert_eq!(
        annotation(&cluster.node("outside"), "public-ip"),
        Value::Null,
        "published before it was checked"
    );

    // Two Nodes with one podCIDR: the younger one is named, and a broken annotation keeps the peer.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    cluster.add_node("twin", &["10.244.1.0/24"]);
    let marks = [
        ("kube-subnet-manager", json!("true")),
        ("public-ip", json!("192.168.0.77")),
        ("backend-type", json!("vxlan")),
    ];
    cluster.annotate("twin", &marks);
    let twin = cluster.store_of("twin", "admin", V4);
    let mut watch = twin.watch();
    let (leases, unreadable) = snapshot(&mut watch).await;
    assert_eq!(leases, vec![good.clone()]);
    assert_eq!(unreadable.len(), 1, "{unreadable:?}");
    assert!(
        unreadable[0].1.starts_with("node twin has the podCIDR of node a, which is older"),
        "{unreadable:?}"
    );
    let refused = twin.claim(&claim(9)).await.unwrap_err().to_string();
    assert!(refused.contains("Node twin has the podCIDR of Node a, which is older"), "{refused}");
    cluster.annotate("a", &[("public-ip", json!("nonsense"))]);
    let StoreEvent::Unreadable { reason, .. } = next(&mut watch).await else { panic!() };
    assert_eq!(reason, "node a: its public-ip is \"nonsense\", not an IPv4 address");
    // The older one goes: the younger one holds what it has.
    cluster.delete_node("a");
    let (leases, _) = snapshot(&mut watch).await;
    assert_eq!(leases[0].node.as_deref(), Some("twin"));
    assert_eq!(twin.claim(&claim(9)).await.unwrap().lease.subnets, good.subnets);
}

#[tokio::test]
async fn a_node_that_is_made_again_is_claimed_as_soon_as_it_is_there() {
    let cluster = Cluster::start();
    let store = cluster.store_of("a", "admin", V4);
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    assert!(store.claim(&claim(1)).await.is_err());
    // The second try waits for the Node instead of finding the same.
    let claiming = store.clone();
    let claimed = tokio::spawn(async move { claiming.claim(&claim(1)).await });
    let followed = tokio::spawn(async move { while watch.next().await.is_some() {} });
    cluster.add_node("a", &["10.244.1.0/24"]);
    let own = timeout(SOON, claimed).await.unwrap().unwrap().unwrap();
    assert_eq!(own.lease.subnets, subnets("10.244.1.0/24"));
    followed.abort();
}

#[tokio::test]
async fn the_condition_follows_the_data_path_and_is_put_back() {
    let cluster = Cluster::start();
    cluster.grant(stock_rules());
    cluster.add_node("a", &["10.244.1.0/24"]);
    let condition_is = |status: &str| json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": status, "reason": "NoRouteCreated"}]}});
    cluster.call("PATCH", "/api/v1/nodes/a/status", condition_is("True"));
    let store = cluster.store_of("a", "flannel-a", V4);
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    let followed = tokio::spawn(async move { while watch.next().await.is_some() {} });
    store.set_data_path(DataPath::Works);
    let works = async || {
        for _ in 0..300 {
            if condition(&cluster.node("a"))["status"] == "False" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{}", condition(&cluster.node("a")));
    };
    works().await;
    assert_eq!(condition(&cluster.node("a"))["reason"], "FlannelIsUp");
    assert_eq!(condition(&cluster.node("a"))["message"], "Flannel is running on this node");
    cluster.call("PATCH", "/api/v1/nodes/a/status", condition_is("True"));
    works().await;
    followed.abort();
}

#[tokio::test]
async fn a_remark_that_lasts_is_an_event_of_the_node_once() {
    let cluster = Cluster::start();
    let mut rules = stock_rules();
    rules
        .as_array_mut()
        .unwrap()
        .push(json!({"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}));
    cluster.grant(rules);
    cluster.add_node("a", &["10.244.1.0/24"]);
    let store = cluster.store_of("a", "flannel-a", V4);
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    let followed = tokio::spawn(async move { while watch.next().await.is_some() {} });
    let events = async |sentences: &[&str]| {
        let mut found = Vec::new();
        for _ in 0..300 {
            let list = cluster.call("GET", "/api/v1/namespaces/default/events", Value::Null);
            let list = list["items"].as_array().unwrap();
            found = list.iter().map(|it| it["message"].as_str().unwrap().to_owned()).collect();
            found.sort();
            if found == sentences {
                assert!(
                    list.iter()
                        .all(|it| it["involvedObject"] == json!({"kind": "Node", "name": "a", "uid": "a"}))
                );
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{found:?}");
    };
    store.set_remarks(&["a peer is refused".to_owned()]);
    events(&["a peer is refused"]).await;
    // It is over and comes again, and something else with it: once an hour is enough.
    store.set_remarks(&[]);
    store.set_remarks(&["a peer is refused".to_owned(), "no route".to_owned()]);
    events(&["a peer is refused", "no route"]).await;
    followed.abort();
}

#[tokio::test]
async fn an_address_that_an_operator_writes_is_published_and_a_denied_right_is_named() {
    let cluster = Cluster::start();
    cluster.add_node("a", &["10.244.1.0/24"]);
    let denied = cluster.store_of("a", "flannel-a", V4);
    let said = denied.claim(&claim(1)).await.unwrap_err().to_string();
    assert!(said.contains("cannot get resource \"nodes\""), "{said}");
    let mut rules = stock_rules();
    rules.as_array_mut().unwrap().pop();
    cluster.grant(rules);
    let mut said = said;
    for _ in 0..100 {
        said = denied.claim(&claim(1)).await.unwrap_err().to_string();
        if !said.contains("cannot get") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(said.contains("cannot patch resource \"nodes/status\""), "{said}");

    cluster.annotate("a", &[("public-ip-overwrite", json!("203.0.113.7"))]);
    let store = cluster.store_of("a", "admin", V4);
    let own = store.claim(&claim(1)).await.unwrap();
    assert_eq!(annotation(&cluster.node("a"), "public-ip"), "203.0.113.7");
    let (leases, _) = snapshot(&mut store.watch()).await;
    assert_eq!(leases, vec![own.lease], "our own lease has the address that we asked for");
    let (leases, _) = snapshot(&mut cluster.store_of("b", "admin", V4).watch()).await;
    assert_eq!(leases[0].public.to_string(), "203.0.113.7");
    cluster.annotate("a", &[("public-ip-overwrite", json!("x"))]);
    let said = store.claim(&claim(1)).await.unwrap_err().to_string();
    assert!(
        said.ends_with("the annotation public-ip-overwrite of Node a is \"x\", not an IPv4 address"),
        "{said}"
    );
    let wrong = cluster.store_of("a", "nobody", V4).claim(&claim(1)).await.unwrap_err().to_string();
    assert!(wrong.contains("does not accept our credentials (401"), "{wrong}");
}
