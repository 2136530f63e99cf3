//! What the etcd client library sees.

use etcd_client::{
    Client, Compare, CompareOp, Error, EventType, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions,
    PutOptions, Txn, TxnOp, WatchFilterType, WatchOptions, WatchStream,
};
use subnet_lease::server::{Server, ServerConfig};

use super::fixture::{PATIENCE, Store, config};

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::GRpcStatus(status)) => format!("{:?}: {}", status.code(), status.message()),
        other => panic!("not refused by the server: {other:?}"),
    }
}

async fn keys(client: &mut Client, prefix: &str) -> Vec<String> {
    let found = client.get(prefix, Some(GetOptions::new().with_prefix().with_keys_only())).await.unwrap();
    found.kvs().iter().map(|kv| kv.key_str().unwrap().to_owned()).collect()
}

/// The next events of a stream: kind, key, value, revision, value before.
async fn events(stream: &mut WatchStream) -> Vec<(EventType, String, String, i64, Option<String>)> {
    let message = tokio::time::timeout(PATIENCE, stream.message());
    let response = message.await.expect("an event was lost").unwrap().unwrap();
    let seen = response.events().iter().map(|event| {
        let kv = event.kv().unwrap();
        let before = event.prev_kv().map(|prev| prev.value_str().unwrap().to_owned());
        let (key, value) = (kv.key_str().unwrap().to_owned(), kv.value_str().unwrap().to_owned());
        (event.event_type(), key, value, kv.mod_revision(), before)
    });
    seen.collect()
}

async fn watch(client: &mut Client, key: &str, options: WatchOptions) -> WatchStream {
    let mut stream = client.watch(key, Some(options)).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    stream
}

#[tokio::test]
async fn puts_reads_by_prefix_and_deletes_work_as_clients_expect() {
    let store = Store::new();
    let mut client = store.client().await;
    for key in ["/net/a", "/net/b", "/other"] {
        client.put(key, "1", None).await.unwrap();
    }
    assert_eq!(keys(&mut client, "/net/").await, ["/net/a", "/net/b"]);
    let put = client.put("/net/a", "2", Some(PutOptions::new().with_prev_key())).await.unwrap();
    assert_eq!(put.prev_key().unwrap().value_str().unwrap(), "1");
    let old = client.get("/net/a", Some(GetOptions::new().with_revision(2))).await.unwrap();
    assert_eq!(old.kvs()[0].value_str().unwrap(), "1");
    assert_eq!(old.header().unwrap().revision(), 5);
    let options = etcd_client::DeleteOptions::new().with_prefix();
    assert_eq!(client.delete("/net/", Some(options)).await.unwrap().deleted(), 2);
    assert!(keys(&mut client, "/net/").await.is_empty());
}

#[tokio::test]
async fn of_two_claims_to_one_key_the_second_loses_and_sees_the_first() {
    let store = Store::new();
    let mut client = store.client().await;
    let claim = |owner: &str| {
        Txn::new()
            .when([Compare::version("subnet", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("subnet", owner, None)])
            .or_else([TxnOp::get("subnet", None)])
    };
    assert!(client.txn(claim("first")).await.unwrap().succeeded());
    let lost = client.txn(claim("second")).await.unwrap();
    assert!(!lost.succeeded());
    assert_eq!(lost.header().unwrap().revision(), 2);
    let etcd_client::TxnOpResponse::Get(seen) = &lost.op_responses()[0] else { panic!("{lost:?}") };
    assert_eq!(seen.kvs()[0].value_str().unwrap(), "first");
}

#[tokio::test]
async fn a_watch_shows_each_change_with_what_was_there_before() {
    let store = Store::new();
    let mut client = store.client().await;
    let mut stream = watch(&mut client, "/net/", WatchOptions::new().with_prefix().with_prev_key()).await;
    client.put("/other", "x", None).await.unwrap();
    client.put("/net/a", "1", None).await.unwrap();
    client.put("/net/a", "2", None).await.unwrap();
    client.delete("/net/a", None).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(events(&mut stream).await);
    }
    let (a, none) = (|| "/net/a".to_owned(), String::new);
    assert_eq!(
        seen,
        [
            (EventType::Put, a(), "1".into(), 3, None),
            (EventType::Put, a(), "2".into(), 4, Some("1".into())),
            (EventType::Delete, a(), none(), 5, Some("2".into())),
        ]
    );
}

#[tokio::test]
async fn several_watches_share_a_stream_and_are_cancelled_one_by_one() {
    let store = Store::new();
    let mut client = store.client().await;
    let mut stream = watch(&mut client, "a", WatchOptions::new()).await;
    stream.watch("b", Some(WatchOptions::new().with_filters([WatchFilterType::NoPut]))).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().watch_id(), 1);
    stream.watch("c", Some(WatchOptions::new().with_watch_id(1))).await.unwrap();
    let twice = stream.message().await.unwrap().unwrap();
    assert!(twice.created() && twice.canceled() && twice.watch_id() == -1);
    assert_eq!(twice.cancel_reason(), "mvcc: duplicate watch ID provided on the WatchStream");

    stream.cancel(0).await.unwrap();
    let cancelled = stream.message().await.unwrap().unwrap();
    assert!(cancelled.canceled() && cancelled.watch_id() == 0);
    client.put("a", "unseen", None).await.unwrap();
    client.put("b", "filtered", None).await.unwrap();
    client.delete("b", None).await.unwrap();
    assert_eq!(events(&mut stream).await[0].0, EventType::Delete);
}

#[tokio::test]
async fn a_watch_from_the_past_reads_history_and_one_from_too_far_back_learns_where_it_ends() {
    let store = Store::new();
    let mut client = store.client().await;
    for value in ["1", "2", "3"] {
        client.put("a", value, None).await.unwrap();
    }
    let mut stream = watch(&mut client, "a", WatchOptions::new().with_start_revision(3)).await;
    assert_eq!(events(&mut stream).await.iter().map(|event| event.3).collect::<Vec<_>>(), [3, 4]);

    client.compact(4, None).await.unwrap();
    let mut stream = watch(&mut client, "a", WatchOptions::new().with_start_revision(3)).await;
    let lost = stream.message().await.unwrap().unwrap();
    assert!(lost.canceled());
    assert_eq!(lost.compact_revision(), 4);
    let old = client.get("a", Some(GetOptions::new().with_revision(3))).await;
    assert_eq!(refusal(old), "OutOfRange: etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test]
async fn asked_for_progress_a_stream_names_a_revision_it_has_told_everything_of() {
    let store = Store::new();
    let mut client = store.client().await;
    let mut stream = watch(&mut client, "a", WatchOptions::new()).await;
    for key in ["a", "b", "b"] {
        client.put(key, "1", None).await.unwrap();
    }
    stream.request_progress().await.unwrap();
    assert_eq!(events(&mut stream).await.len(), 1);
    let progress = stream.message().await.unwrap().unwrap();
    assert_eq!((progress.watch_id(), progress.header().unwrap().revision()), (-1, 4));
}

#[tokio::test]
async fn a_client_that_does_not_read_its_watch_misses_nothing_and_holds_nobody_up() {
    const CHANGES: usize = 600;
    let store = Store::new();
    let mut client = store.client().await;
    let mut stream = watch(&mut client, "a", WatchOptions::new()).await;
    // Far more than the stream's window, its outbox and the ring hold.
    let value = vec![b'x'; 16 << 10];
    for _ in 0..CHANGES {
        client.put("a", value.clone(), None).await.unwrap();
    }
    let mut revisions = Vec::new();
    while revisions.len() < CHANGES {
        revisions.extend(events(&mut stream).await.into_iter().map(|event| event.3));
    }
    let last = 1 + i64::try_from(CHANGES).unwrap();
    assert_eq!(revisions, (2..=last).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lease_that_is_not_kept_alive_takes_its_key_with_it() {
    let store = Store::new();
    let mut client = store.client().await;
    let mut stream = watch(&mut client, "a", WatchOptions::new()).await;
    let lease = client.lease_grant(1, Some(LeaseGrantOptions::new().with_id(77))).await.unwrap();
    assert_eq!((lease.id(), lease.ttl()), (77, 2));
    client.put("a", "1", Some(PutOptions::new().with_lease(77))).await.unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(77).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 2);
    let status =
        client.lease_time_to_live(77, Some(LeaseTimeToLiveOptions::new().with_keys())).await.unwrap();
    assert_eq!((status.granted_ttl(), status.keys()), (2, &[b"a".to_vec()][..]));

    assert_eq!(events(&mut stream).await[0].0, EventType::Put);
    assert_eq!(events(&mut stream).await[0].0, EventType::Delete);
    assert_eq!(client.lease_time_to_live(77, None).await.unwrap().ttl(), -1);
    assert_eq!(refusal(client.lease_revoke(77).await), "NotFound: etcdserver: requested lease not found");
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 0);
}

#[tokio::test]
async fn without_authentication_the_auth_calls_answer_as_etcds_do() {
    let store = Store::new();
    let mut client = store.client().await;
    assert!(client.user_list().await.unwrap().users().is_empty());
    assert!(client.role_list().await.unwrap().roles().is_empty());
    client.auth_disable().await.unwrap();
    assert_eq!(
        refusal(client.auth_enable().await),
        "FailedPrecondition: etcdserver: root user does not exist"
    );
    assert_eq!(refusal(client.user_get("a").await), "FailedPrecondition: etcdserver: user name not found");
    let options = etcd_client::ConnectOptions::new().with_user("root", "secret");
    let login = Client::connect([&store.endpoint], Some(options)).await.map(|_| ());
    assert_eq!(refusal(login), "FailedPrecondition: etcdserver: authentication is not enabled");
}

#[tokio::test]
async fn status_and_members_describe_one_process() {
    let store = Store::new();
    let mut client = store.client().await;
    let status = client.status().await.unwrap();
    let members = client.member_list().await.unwrap();
    let [member] = members.members() else { panic!("{members:?}") };
    assert_eq!(member.id(), status.leader());
    assert_eq!(member.client_urls(), std::slice::from_ref(&store.endpoint));
    assert!(status.db_size() > 0);
    let more = client.member_add(["http://127.0.0.1:1"], None).await;
    assert!(refusal(more).contains("a cluster needs etcd"));
}

#[tokio::test]
async fn messages_beyond_the_limits_are_refused_and_the_connection_survives() {
    let store = Store::new();
    let mut client = store.client().await;
    let large = refusal(client.put("a", vec![0; 3 << 19], None).await);
    assert_eq!(large, "InvalidArgument: etcdserver: request is too large");
    assert!(refusal(client.put("a", vec![0; 16 << 20], None).await).contains("too large"));
    let txn = Txn::new().and_then((0..129).map(|n| TxnOp::put(n.to_string(), "", None)).collect::<Vec<_>>());
    let many = refusal(client.txn(txn).await);
    assert_eq!(many, "InvalidArgument: etcdserver: too many operations in txn request");
    assert_eq!(refusal(client.put("", "", None).await), "InvalidArgument: etcdserver: key is not provided");
    client.put("a", vec![0; 1 << 20], None).await.unwrap();
}

#[tokio::test]
async fn an_address_that_others_can_reach_needs_the_word() {
    let dir = tempfile::tempdir().unwrap();
    let open = ServerConfig { listen: vec!["0.0.0.0:0".parse().unwrap()], ..config(dir.path()) };
    let refusal = Server::bind(open.clone()).await.err().unwrap().to_string();
    assert!(refusal.contains("0.0.0.0:0") && refusal.contains("--insecure"), "{refusal}");
    assert!(Server::bind(ServerConfig { insecure: true, ..open }).await.is_ok());
}

#[test]
fn a_second_server_on_the_same_directory_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::on(dir.path()).unwrap();
    let refusal = Store::on(dir.path()).err().unwrap().to_string();
    assert!(refusal.contains("store.redb is in use by another server"), "{refusal}");
}

#[test]
fn stopping_ends_open_watches_instead_of_waiting_for_them() {
    let store = Store::new();
    super::fixture::runtime().block_on(async {
        let mut client = store.client().await;
        let mut stream = watch(&mut client, "a", WatchOptions::new()).await;
        let stopped = tokio::task::spawn_blocking(|| drop(store));
        let last = stream.message().await;
        assert!(refusal(last).starts_with("Unavailable"), "a client that sees this comes back");
        drop((stream, client));
        stopped.await.unwrap();
    });
}
