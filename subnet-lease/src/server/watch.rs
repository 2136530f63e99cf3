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
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::connection::Peer;
use super::connections::{Client, Held, Room};
use super::engine::{Batch, Engine};
use super::error::ApiError;
use super::limits::{OUTBOX, OUTBOX_PATIENCE, OUTBOXES, SMALL, WATCH, WATCHED_KEY, WATCHES};
use super::watcher::{Part, Watcher, Wish, response};

/// Time between signs of life for watches that want them. etcd's figure.
const PROGRESS: Duration = Duration::from_secs(600);

pub(crate) struct WatchService(pub(crate) Engine);

/// A response on its way, with the room that it takes.
type Sent = (Result<PbWatchResponse, Status>, Option<Held>);

/// What a client reads. The room of a response is free when the next one is asked for: then the transport has taken it.
pub(crate) struct Outgoing {
    responses: mpsc::Receiver<Sent>,
    taken: Option<Held>,
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
        let client = request.extensions().get::<Peer>().map(|peer| peer.client.clone());
        let session = Session::new(self.0.clone(), client, outbox);
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
    client: Option<Arc<Client>>,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
}

impl Session {
    fn new(engine: Engine, client: Option<Arc<Client>>, outbox: mpsc::Sender<Sent>) -> Self {
        Self { batches: engine.follow(), engine, outbox, client, watchers: BTreeMap::new(), next_id: 0 }
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
        let refusal = if !self.has_room_for(&mut watcher) {
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

    fn has_room_for(&self, watcher: &mut Watcher) -> bool {
        let weight = watcher.range.weight();
        if self.watchers.len() >= WATCHES || weight > WATCHED_KEY {
            return false;
        }
        let Some(client) = &self.client else { return true };
        watcher.held = client.hold(Room::Watches, WATCH + weight).ok();
        watcher.held.is_some()
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
                let parts = watcher.accept(&batch.events, batch.last);
                self.send_parts(id, parts).await?;
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
            let past = self.engine.ask_for(
                self.client.as_ref().map(|client| client.clock.clone()),
                move |state, _| {
                    let revision = state.mvcc.revision();
                    let compacted = state.mvcc.compacted();
                    Ok((state.mvcc.since(next, &range), revision, compacted))
                },
            );
            let (past, revision, compacted) = match past.await {
                Ok(answer) => answer,
                Err(error) => return self.fail(error).await,
            };
            let Ok(past) = past else { return self.lost(id, revision, compacted).await };
            let parts = watcher.accept(&past.events, past.through);
            self.send_parts(id, parts).await?;
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
        let clock = self.client.as_ref().map(|client| client.clock.clone());
        match self.engine.ask_for(clock, |state, _| Ok(state.mvcc.revision())).await {
            Ok(revision) => Ok(revision),
            Err(error) => self.fail(error).await,
        }
    }

    /// Ends the stream; clients come back.
    async fn fail<T>(&mut self, error: ApiError) -> Result<T, Gone> {
        let _ = self.outbox.send((Err(error.into()), None)).await;
        Err(Gone)
    }

    /// Sends events, a response after the other: none is made before there is room for it. Where others take all room for
    /// long, this stream ends, and its client comes back.
    async fn send_parts(&mut self, id: i64, parts: Vec<Part>) -> Result<(), Gone> {
        for part in parts {
            let weight = part.weight();
            if weight > OUTBOXES {
                return self.too_large(id, weight).await;
            }
            let mut room = None;
            if let Some(client) = &self.client {
                match client.hold_within(Room::Outboxes, weight, OUTBOX_PATIENCE).await {
                    Ok(held) => room = Some(held),
                    Err(error) => return self.fail(error).await,
                }
            }
            let mut responses = part.responses(id, self.engine.identity).into_iter().peekable();
            while let Some(response) = responses.next() {
                let room = if responses.peek().is_none() { room.take() } else { None };
                self.send_holding(response, room).await?;
            }
            if weight > SMALL {
                // Other tasks run between two large responses.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// One revision changed more than a response may have: the watch ends, and its client reads everything again.
    async fn too_large(&mut self, id: i64, bytes: usize) -> Result<(), Gone> {
        self.watchers.remove(&id);
        let revision = self.revision().await?;
        let ended = PbWatchResponse {
            canceled: true,
            cancel_reason: ApiError::AnswerTooLarge(bytes, OUTBOXES).to_string(),
            ..response(id, self.engine.identity, revision, Vec::new())
        };
        self.send(ended).await
    }

    /// Sends a response without events.
    async fn send(&mut self, response: PbWatchResponse) -> Result<(), Gone> {
        self.send_holding(response, None).await
    }

    async fn send_holding(&mut self, response: PbWatchResponse, room: Option<Held>) -> Result<(), Gone> {
        tokio::select! {
            sent = self.outbox.send((Ok(response), room)) => sent.map_err(|_| Gone),
            () = self.engine.stopping() => Err(Gone),
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
    use crate::server::connections::Connections;
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
        tokio::spawn(Session::new(engine.clone(), None, outbox).run(wishes));
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
        tokio::spawn(Session::new(engine.clone(), None, outbox).run(wishes));
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
        let (place, _cut) = Connections::default().admit(None);
        let mut streams = Vec::new();
        for _ in 0..100 {
            let (outbox, responses) = mpsc::channel(OUTBOX);
            let session = Session::new(engine.clone(), Some(place.client()), outbox);
            tokio::spawn(session.run(stream::iter([Ok(create("a"))]).chain(stream::pending())));
            streams.push(responses);
        }
        for stream in &mut streams {
            assert!(stream.recv().await.unwrap().0.unwrap().created);
        }
        let put = PbPutRequest { key: "a".into(), value: vec![0; 1 << 20], ..Default::default() };
        engine.ask(move |state, _| state.put(put)).await.unwrap();
        let (mut got, mut ended, mut held) = (0, 0, Vec::new());
        for stream in &mut streams {
            let (response, room) = stream.recv().await.unwrap();
            held.push(room);
            if response.is_ok() { got += 1 } else { ended += 1 }
        }
        assert_eq!((got, ended), (15, 85), "15 MiB of the room's 16 are taken");
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_cut_and_an_honest_watch_goes_on() {
        let (_stop, stopping) = watch::channel(false);
        let (engine, _running) = Engine::start(FakeFile::default().disk(), IDENTITY, stopping).await.unwrap();
        let all = Connections::default();
        let (hostile, cut) = all.admit(None);
        let mut unread = Vec::new();
        for _ in 0..100 {
            let (outbox, responses) = mpsc::channel(OUTBOX);
            let session = Session::new(engine.clone(), Some(hostile.client()), outbox);
            tokio::spawn(session.run(stream::iter([Ok(create("a"))]).chain(stream::pending())));
            unread.push(responses);
        }
        // As the connection does it.
        tokio::spawn(async move {
            let _ = cut.await;
            drop((unread, hostile));
        });
        let (honest, _cut) = all.admit(None);
        let (outbox, mut responses) = mpsc::channel(OUTBOX);
        let session = Session::new(engine.clone(), Some(honest.client()), outbox);
        tokio::spawn(session.run(stream::iter([Ok(create("a"))]).chain(stream::pending())));
        assert!(responses.recv().await.unwrap().0.unwrap().created);
        for _ in 0..20 {
            let put = PbPutRequest { key: "a".into(), value: vec![0; 1 << 20], ..Default::default() };
            engine.ask(move |state, _| state.put(put)).await.unwrap();
            assert_eq!(responses.recv().await.unwrap().0.unwrap().events.len(), 1);
        }
    }
}
