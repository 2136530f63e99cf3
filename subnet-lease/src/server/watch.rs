//! The Watch service: one task for each stream, any number of watches on it.
//!
//! A stream follows the ring of durable batches. A watch that starts in the past, a batch that leaves a gap, or a ring
//! that ran over while the client was slow: each time the watch reads history until it has caught up, and what the
//! ring still holds of that is skipped. Memory for a slow client is bounded by its outbox and the ring.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use etcd_client::proto::{PbWatchRequest, PbWatchResponse, PbWatchService};
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::engine::{Batch, Engine};
use super::error::ApiError;
use super::limits::{OUTBOX, OUTBOX_PATIENCE, OUTBOX_SMALL, OUTBOXES, WATCHED_KEY, WATCHES};
use super::watcher::{Watcher, Wish, response};

/// Time between signs of life for watches that want them. etcd's figure.
const PROGRESS: Duration = Duration::from_secs(600);

pub(crate) struct WatchService {
    engine: Engine,
    /// Room for large responses that wait for their clients, in bytes, of all streams together.
    room: Arc<Semaphore>,
}

impl WatchService {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, room: Arc::new(Semaphore::new(OUTBOXES)) }
    }
}

/// A response on its way, with the room that it takes.
type Sent = (Result<PbWatchResponse, Status>, Option<OwnedSemaphorePermit>);

/// What a client reads. The room of a response is free when the next one is asked for: then the transport has taken it.
pub(crate) struct Outgoing {
    responses: mpsc::Receiver<Sent>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Stream for Outgoing {
    type Item = Result<PbWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.taken = None;
        let next = ready!(self.responses.poll_recv(cx));
        Poll::Ready(next.map(|(response, room)| {
            self.taken = room;
            response
        }))
    }
}

#[tonic::async_trait]
impl PbWatchService for WatchService {
    type WatchStream = Outgoing;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (outbox, responses) = mpsc::channel(OUTBOX);
        let session = Session::new(self.engine.clone(), self.room.clone(), outbox);
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(Outgoing { responses, taken: None }))
    }
}

/// The client has gone, or the server goes: nothing more can be sent.
struct Gone;

struct Session {
    engine: Engine,
    batches: broadcast::Receiver<Arc<Batch>>,
    outbox: mpsc::Sender<Sent>,
    room: Arc<Semaphore>,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
}

impl Session {
    fn new(engine: Engine, room: Arc<Semaphore>, outbox: mpsc::Sender<Sent>) -> Self {
        Self { batches: engine.follow(), engine, outbox, room, watchers: BTreeMap::new(), next_id: 0 }
    }

    async fn run(mut self, mut inbound: impl Stream<Item = Result<PbWatchRequest, Status>> + Unpin) {
        let (engine, outbox) = (self.engine.clone(), self.outbox.clone());
        let mut report_at = Instant::now() + PROGRESS;
        let mut speaking = true;
        loop {
            let reports = self.watchers.values().any(|watcher| watcher.progress);
            let done = tokio::select! {
                biased;
                message = inbound.next(), if speaking => match message {
                    Some(Ok(message)) => self.wish(message).await,
                    // It has no more wishes, and still listens.
                    None => {
                        speaking = false;
                        Ok(())
                    }
                    Some(Err(_)) => Err(Gone),
                },
                batch = self.batches.recv() => match batch {
                    Ok(batch) => self.batch(&batch).await,
                    Err(broadcast::error::RecvError::Lagged(_)) => self.catch_up_all().await,
                    Err(broadcast::error::RecvError::Closed) => Err(Gone),
                },
                () = tokio::time::sleep_until(report_at), if reports => {
                    report_at = Instant::now() + PROGRESS;
                    self.report().await
                }
                () = outbox.closed() => Err(Gone),
                () = engine.stopping() => {
                    let _ = outbox.try_send((Err(ApiError::Stopped.into()), None));
                    Err(Gone)
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn wish(&mut self, message: PbWatchRequest) -> Result<(), Gone> {
        match Wish::read(message) {
            None => Ok(()),
            Some(Wish::Create { id, start, watcher }) => self.create(id, start, watcher).await,
            Some(Wish::Cancel(id)) => self.cancel(id).await,
            Some(Wish::Progress) => self.progress().await,
        }
    }

    async fn create(&mut self, wanted: i64, start: i64, mut watcher: Watcher) -> Result<(), Gone> {
        let revision = self.revision().await?;
        let mut created = response(wanted, self.engine.identity, revision, Vec::new());
        created.created = true;
        let refusal = if self.watchers.len() >= WATCHES || watcher.range.weight() > WATCHED_KEY {
            Some("etcdserver: too many requests")
        } else if watcher.range.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if wanted != 0 && self.watchers.contains_key(&wanted) {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else {
            None
        };
        if let Some(reason) = refusal {
            (created.watch_id, created.canceled) = (-1, true);
            created.cancel_reason = reason.to_owned();
            return self.send(created).await;
        }
        let id = if wanted == 0 { self.free_id() } else { wanted };
        created.watch_id = id;
        watcher.next = if start == 0 { revision + 1 } else { start };
        let in_the_past = watcher.next <= revision;
        self.watchers.insert(id, watcher);
        self.send(created).await?;
        if in_the_past { self.catch_up(id).await } else { Ok(()) }
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        if self.watchers.remove(&id).is_none() {
            return Ok(());
        }
        let revision = self.revision().await?;
        let canceled =
            PbWatchResponse { canceled: true, ..response(id, self.engine.identity, revision, Vec::new()) };
        self.send(canceled).await
    }

    /// Says up to which revision every watch of this stream has been told everything.
    async fn progress(&mut self) -> Result<(), Gone> {
        const WHOLE_STREAM: i64 = -1;
        let revision = self.revision().await?;
        self.catch_up_all().await?;
        self.send(response(WHOLE_STREAM, self.engine.identity, revision, Vec::new())).await
    }

    /// A sign of life for each watch that wants one and has been silent.
    async fn report(&mut self) -> Result<(), Gone> {
        let revision = self.revision().await?;
        self.catch_up_all().await?;
        let mut signs = Vec::new();
        for (id, watcher) in self.watchers.iter_mut().filter(|(_, watcher)| watcher.progress) {
            if !std::mem::take(&mut watcher.told) {
                signs.push(response(*id, self.engine.identity, revision, Vec::new()));
            }
        }
        for sign in signs {
            self.send(sign).await?;
        }
        Ok(())
    }

    async fn batch(&mut self, batch: &Batch) -> Result<(), Gone> {
        let mut behind = Vec::new();
        // One watch after the other: a large value is copied for those that are sent it now, and not for all.
        for id in self.watchers.keys().copied().collect::<Vec<_>>() {
            let Some(watcher) = self.watchers.get_mut(&id) else { continue };
            if watcher.next < batch.first {
                behind.push(id);
            } else if watcher.next <= batch.last {
                for response in watcher.accept(id, self.engine.identity, &batch.events, batch.last) {
                    self.send(response).await?;
                }
            }
        }
        for id in behind {
            self.catch_up(id).await?;
        }
        Ok(())
    }

    async fn catch_up_all(&mut self) -> Result<(), Gone> {
        for id in self.watchers.keys().copied().collect::<Vec<_>>() {
            self.catch_up(id).await?;
        }
        Ok(())
    }

    /// Reads history for one watch until it is up to date.
    async fn catch_up(&mut self, id: i64) -> Result<(), Gone> {
        while let Some(watcher) = self.watchers.get_mut(&id) {
            let (next, range) = (watcher.next, watcher.range.clone());
            let past = self.engine.ask(move |state, _| {
                let revision = state.mvcc.revision();
                let compacted = state.mvcc.compacted();
                Ok((state.mvcc.since(next, &range), revision, compacted))
            });
            let (past, revision, compacted) = match past.await {
                Ok(answer) => answer,
                Err(error) => return self.fail(error).await,
            };
            let Ok(past) = past else { return self.lost(id, revision, compacted).await };
            let responses = watcher.accept(id, self.engine.identity, &past.events, past.through);
            for response in responses {
                self.send(response).await?;
            }
            if past.through >= revision {
                break;
            }
        }
        Ok(())
    }

    /// The history that a watch needs is compacted: it ends, and its client learns from where it can go on.
    async fn lost(&mut self, id: i64, revision: i64, compacted: i64) -> Result<(), Gone> {
        self.watchers.remove(&id);
        let lost = PbWatchResponse {
            canceled: true,
            compact_revision: compacted,
            ..response(id, self.engine.identity, revision, Vec::new())
        };
        self.send(lost).await
    }

    async fn revision(&mut self) -> Result<i64, Gone> {
        match self.engine.ask(|state, _| Ok(state.mvcc.revision())).await {
            Ok(revision) => Ok(revision),
            Err(error) => self.fail(error).await,
        }
    }

    /// Ends the stream; clients come back.
    async fn fail<T>(&mut self, error: ApiError) -> Result<T, Gone> {
        let _ = self.outbox.send((Err(error.into()), None)).await;
        Err(Gone)
    }

    async fn send(&mut self, response: PbWatchResponse) -> Result<(), Gone> {
        let room = match self.room_for(response.encoded_len()).await {
            Ok(room) => room,
            Err(error) => return self.fail(error).await,
        };
        tokio::select! {
            sent = self.outbox.send((Ok(response), room)) => sent.map_err(|_| Gone),
            () = self.engine.stopping() => Err(Gone),
        }
    }

    /// Room for a response; small ones need none. Where others take it all for long, this stream ends, and its client
    /// comes back.
    async fn room_for(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        if bytes <= OUTBOX_SMALL {
            return Ok(None);
        }
        let bytes = u32::try_from(bytes.min(OUTBOXES)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(bytes);
        match tokio::time::timeout(OUTBOX_PATIENCE, room).await {
            Ok(Ok(room)) => Ok(Some(room)),
            _ => Err(ApiError::TooManyRequests),
        }
    }

    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbPutRequest, PbWatchRequestUnion};
    use futures::stream;
    use tokio::sync::watch;

    use super::*;
    use crate::server::disk::tests::{FakeFile, IDENTITY};

    fn create(key: &str) -> PbWatchRequest {
        let mut union = PbWatchRequestUnion::CreateRequest(Default::default());
        if let PbWatchRequestUnion::CreateRequest(create) = &mut union {
            create.key = key.into();
            create.progress_notify = key == "quiet";
        }
        PbWatchRequest { request_union: Some(union) }
    }

    async fn put(engine: &Engine, key: &'static str) {
        let put = PbPutRequest { key: key.into(), ..Default::default() };
        engine.ask(move |state, _| state.put(put)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_that_asked_for_it_gets_a_sign_of_life_and_others_do_not() {
        let (_stop, stopping) = watch::channel(false);
        let (engine, _running) = Engine::start(FakeFile::default().disk(), IDENTITY, stopping).await.unwrap();
        let (outbox, mut responses) = mpsc::channel(OUTBOX);
        let wishes = stream::iter([Ok(create("other")), Ok(create("quiet"))]);
        let room = Arc::new(Semaphore::new(OUTBOXES));
        tokio::spawn(Session::new(engine.clone(), room, outbox).run(wishes));
        for id in 0..2 {
            assert_eq!(responses.recv().await.unwrap().0.unwrap().watch_id, id);
        }
        put(&engine, "elsewhere").await;
        let began = Instant::now();
        let sign = responses.recv().await.unwrap().0.unwrap();
        assert_eq!((sign.watch_id, sign.events.len(), sign.header.unwrap().revision), (1, 0, 2));
        assert_eq!(began.elapsed().as_secs(), PROGRESS.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_so_many_watches_and_none_on_a_long_key() {
        let (_stop, stopping) = watch::channel(false);
        let (engine, _running) = Engine::start(FakeFile::default().disk(), IDENTITY, stopping).await.unwrap();
        let (outbox, mut responses) = mpsc::channel(OUTBOX);
        let long = create(&"k".repeat(WATCHED_KEY + 1));
        let wishes = stream::iter(std::iter::once(long).chain((0..=WATCHES).map(|_| create("a"))).map(Ok));
        let room = Arc::new(Semaphore::new(OUTBOXES));
        tokio::spawn(Session::new(engine.clone(), room, outbox).run(wishes));
        let mut refused = async || responses.recv().await.unwrap().0.unwrap().canceled;
        assert!(refused().await);
        for _ in 0..WATCHES {
            assert!(!refused().await);
        }
        assert!(refused().await);
    }

    #[tokio::test(start_paused = true)]
    async fn large_responses_that_nobody_reads_take_no_more_than_their_room_and_end_their_stream() {
        let (_stop, stopping) = watch::channel(false);
        let (engine, _running) = Engine::start(FakeFile::default().disk(), IDENTITY, stopping).await.unwrap();
        let room = Arc::new(Semaphore::new(OUTBOXES));
        let mut streams = Vec::new();
        for _ in 0..100 {
            let (outbox, responses) = mpsc::channel(OUTBOX);
            let session = Session::new(engine.clone(), room.clone(), outbox);
            tokio::spawn(session.run(stream::iter([Ok(create("a"))]).chain(stream::pending())));
            streams.push(responses);
        }
        for stream in &mut streams {
            assert!(stream.recv().await.unwrap().0.unwrap().created);
        }
        let put = PbPutRequest { key: "a".into(), value: vec![0; 1 << 20], ..Default::default() };
        engine.ask(move |state, _| state.put(put)).await.unwrap();
        let (mut got, mut ended) = (0, 0);
        for stream in &mut streams {
            let (response, _held) = stream.recv().await.unwrap();
            std::mem::forget(_held);
            if response.is_ok() { got += 1 } else { ended += 1 }
        }
        assert_eq!((got, ended), (31, 69), "31 MiB of the room's 32 are taken");
    }
}
