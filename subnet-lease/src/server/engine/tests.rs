use std::time::Duration;

use etcd_client::proto::{PbLeaseGrantRequest, PbPutRequest, PbRangeRequest};

use super::*;
use crate::server::disk::tests::{FakeFile, IDENTITY};

struct Fixture {
    file: FakeFile,
    engine: Engine,
    running: Running,
    _stop: watch::Sender<bool>,
}

async fn start(file: FakeFile) -> Fixture {
    let (stop, stopping) = watch::channel(false);
    let (engine, running) = Engine::start(file.disk(), IDENTITY, stopping).await.unwrap();
    Fixture { file, engine, running, _stop: stop }
}

impl Fixture {
    async fn put(&self, key: &str, lease: i64) -> Result<i64, ApiError> {
        let put = PbPutRequest { key: key.into(), lease, ..Default::default() };
        let answer = self.engine.ask(move |state, _| state.put(put)).await?;
        Ok(answer.header.unwrap().revision)
    }

    async fn keys(&self) -> Vec<String> {
        let all = PbRangeRequest { key: vec![0], range_end: vec![0], ..Default::default() };
        let answer = self.engine.ask(move |state, _| state.range(&all)).await.unwrap();
        answer.kvs.into_iter().map(|kv| String::from_utf8(kv.key).unwrap()).collect()
    }

    async fn grant(&self, id: i64, ttl: i64) {
        let wish = PbLeaseGrantRequest { id, ttl };
        self.engine.ask(move |state, now| state.grant(&wish, 1, now)).await.unwrap();
    }
}

#[tokio::test]
async fn an_answered_write_is_there_after_a_restart_and_a_stopped_engine_says_so() {
    let before = start(FakeFile::default()).await;
    assert_eq!(before.put("a", 0).await, Ok(2));
    before.running.quit().await.unwrap();
    assert_eq!(before.engine.ask(|_, _| Ok(())).await, Err(ApiError::Stopped));

    let after = start(before.file).await;
    assert_eq!(after.keys().await, ["a"]);
    assert_eq!(after.put("b", 0).await, Ok(3));
}

#[tokio::test]
async fn a_write_that_the_disk_refuses_never_happened() {
    let store = start(FakeFile::default()).await;
    let mut batches = store.engine.follow();
    store.put("a", 0).await.unwrap();
    store.file.set_full(true);
    let refusal = store.put("b", 0).await.unwrap_err();
    assert!(matches!(refusal, ApiError::Disk(_)), "{refusal}");
    // While the file cannot be opened for writing either, jobs are refused.
    assert_eq!(store.engine.ask(|_, _| Ok(())).await, Err(ApiError::Stopped));

    store.file.set_full(false);
    assert_eq!(store.keys().await, ["a"]);
    assert_eq!(store.put("c", 0).await, Ok(3));
    let heard: Vec<_> = [batches.recv().await, batches.recv().await]
        .map(|batch| batch.unwrap().events[0].kv.key.to_vec())
        .to_vec();
    assert_eq!(heard, [b"a", b"c"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_takes_its_keys_and_watches_hear_of_it() {
    let store = start(FakeFile::default()).await;
    let mut batches = store.engine.follow();
    store.grant(5, 60).await;
    for key in ["b", "a"] {
        store.put(key, 5).await.unwrap();
        batches.recv().await.unwrap();
    }
    let began = Instant::now();
    let batch = batches.recv().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 60);
    let gone: Vec<_> = batch.events.iter().map(|event| (event.kv.is_tombstone(), &*event.kv.key)).collect();
    assert_eq!(gone, [(true, &b"a"[..]), (true, b"b")]);
    assert_eq!((batch.first, batch.last), (4, 4));
    assert!(store.keys().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lease_gets_its_full_time_again_after_a_restart() {
    let before = start(FakeFile::default()).await;
    before.grant(5, 60).await;
    before.put("a", 5).await.unwrap();
    tokio::time::advance(Duration::from_secs(50)).await;
    before.running.quit().await.unwrap();

    let after = start(before.file).await;
    let mut batches = after.engine.follow();
    let began = Instant::now();
    assert_eq!(after.keys().await, ["a"]);
    batches.recv().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn history_is_bounded_without_anyone_asking() {
    let store = start(FakeFile::default()).await;
    let (kept, oldest) = store
        .engine
        .ask(|state, _| {
            for n in 0..20_000 {
                let value = vec![0; n % 7];
                state.put(PbPutRequest { key: b"a".into(), value, ..Default::default() })?;
            }
            state.retain();
            Ok((state.mvcc.log_size().0, state.mvcc.compacted()))
        })
        .await
        .unwrap();
    assert_eq!(kept, 10_001);
    assert_eq!(oldest, 10_001);
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_keep_alive_came_in_time_survives_a_process_that_stood_still() {
    let store = start(FakeFile::default()).await;
    store.grant(7, 5).await;
    store.put("a", 7).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Its client sends a keep-alive now, and nobody reads it for a minute.
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::task::yield_now().await;
    let kept = store.engine.ask_urgently(|state, now| Ok(state.keep_alive(7, now))).await.unwrap();
    assert_eq!((kept.ttl, store.keys().await), (5, vec!["a".to_owned()]));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(store.keys().await.is_empty(), "without a keep-alive it ends as before");
}

#[tokio::test(start_paused = true)]
async fn a_keep_alive_that_waited_behind_large_jobs_comes_before_expiry() {
    let store = start(FakeFile::default()).await;
    store.grant(7, 5).await;
    store.put("a", 7).await.unwrap();
    tokio::time::sleep(Duration::from_millis(4999)).await;
    let puts = (0..1000).map(|n: u32| {
        let put = PbPutRequest { key: n.to_string().into(), value: vec![0; 100_000], ..Default::default() };
        store.engine.ask(move |state, _| state.put(put))
    });
    let kept = async {
        tokio::task::yield_now().await;
        store.engine.ask_urgently(|state, now| Ok(state.keep_alive(7, now))).await.unwrap().ttl
    };
    let slow = async {
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_millis(500)).await;
    };
    let (_, kept, ()) = tokio::join!(futures::future::join_all(puts), kept, slow);
    assert_eq!(kept, 5);
    assert!(store.engine.ask(|state, _| Ok(state.mvcc.live(b"a").is_some())).await.unwrap());
}
