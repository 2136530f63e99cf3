//! The one task that owns the state. Everyone else sends it jobs and waits for answers.
//!
//! ```text
//!   kv, lease, watch services ──jobs──▶ ┌────────┐ ──changes of the whole batch──▶ disk
//!                                       │ engine │ ◀──────────── done ────────────
//!   answers  ◀────── after the disk ─── └────────┘ ──batch──▶ ring ──▶ every watch stream
//! ```
//! Jobs that wait while the disk is busy form the next batch: one commit for all of them. Nobody hears of a change,
//! by answer or by watch, before it is on the disk. When the disk refuses, the whole batch is answered with that error
//! and the state is read back from the file; while that fails too, jobs are refused and each new one tries again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, info};

use super::disk::Disk;
use super::error::{ApiError, ServerError};
use super::lease::Tick;
use super::mvcc::Event;
use super::state::{Changes, Identity, State};

/// Jobs waiting for the engine before senders wait too.
const QUEUE: usize = 1024;

/// Most jobs answered with one commit.
const BATCH_JOBS: usize = 512;

/// Batches that the ring holds for watch streams; a stream that falls further behind reads history instead.
const RING: usize = 256;

type Answer = Box<dyn FnOnce(Result<(), ApiError>) + Send>;
type Job = Box<dyn FnOnce(&mut State, Tick) -> Answer + Send>;

/// Changes that became durable together, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    pub(crate) first: i64,
    pub(crate) last: i64,
}

/// The way to the engine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    ring: broadcast::Sender<Arc<Batch>>,
    stopping: watch::Receiver<bool>,
    pub(crate) identity: Identity,
    /// Where to look for the next free lease.
    leases: Arc<AtomicU64>,
}

/// Ends the engine after the jobs that it has already been sent.
pub(crate) struct Running {
    quit: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServerError>>,
    /// How the task ended, once it has.
    outcome: Option<Result<(), ServerError>>,
}

impl Engine {
    /// Loads the disk and starts the task. `fresh` names a store that is new.
    pub(crate) async fn start(
        mut disk: Disk,
        fresh: Identity,
        stopping: watch::Receiver<bool>,
    ) -> Result<(Self, Running), ServerError> {
        let (disk, stored) = blocking(move || {
            let stored = disk.load(fresh);
            (disk, stored)
        })
        .await?;
        let state = State::restore(stored?, Tick::ZERO);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (ring, _) = broadcast::channel(RING);
        let (quit, quitting) = oneshot::channel();
        let identity = state.identity();
        info!(revision = state.mvcc.revision(), file = %disk.path().display(), "store opened");
        let owner = Owner { state: Some(state), disk, ring: ring.clone(), identity, began: Instant::now() };
        let task = tokio::spawn(owner.run(queue, quitting));
        // Random, as `fresh` is: an id that a client kept from before the last start is hardly anybody's.
        let leases = Arc::new(AtomicU64::new(fresh.member));
        Ok((
            Self { jobs, ring, stopping, identity, leases },
            Running { quit: Some(quit), task, outcome: None },
        ))
    }

    /// Has the engine do `job` and answers once all it changed is on the disk.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut State, Tick) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |state, now| {
            // Work ends when its caller does.
            if reply.is_closed() {
                return Box::new(|_| ());
            }
            let outcome = job(state, now);
            Box::new(move |durable| {
                // Who asked may have gone away.
                let _ = reply.send(durable.and(outcome));
            })
        });
        self.jobs.send(job).await.map_err(|_| ApiError::Stopped)?;
        answer.await.unwrap_or(Err(ApiError::Stopped))
    }

    /// A number for a lease, if it is free; else the next free one.
    pub(crate) fn fresh_lease(&self) -> i64 {
        self.leases.fetch_add(1, Ordering::Relaxed).cast_signed()
    }

    /// Every batch from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Arc<Batch>> {
        self.ring.subscribe()
    }

    /// Returns when the server is being stopped, so that streams without an end find theirs.
    pub(crate) async fn stopping(&self) {
        let mut stopping = self.stopping.clone();
        // An error means that the server itself is gone.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

impl Running {
    /// Returns when the engine has ended, which it does by itself only after an error.
    pub(crate) async fn ended(&mut self) {
        if self.outcome.is_none() {
            let ended = (&mut self.task).await;
            self.outcome = Some(ended.unwrap_or_else(|error| Err(ServerError::Stopped(error.to_string()))));
        }
    }

    pub(crate) async fn quit(mut self) -> Result<(), ServerError> {
        if let Some(quit) = self.quit.take() {
            // An error means that it has ended already.
            let _ = quit.send(());
        }
        self.ended().await;
        self.outcome.unwrap_or(Ok(()))
    }
}

struct Owner {
    /// `None` while the disk cannot be read.
    state: Option<State>,
    disk: Disk,
    ring: broadcast::Sender<Arc<Batch>>,
    identity: Identity,
    began: Instant,
}

impl Owner {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Job>,
        mut quitting: oneshot::Receiver<()>,
    ) -> Result<(), ServerError> {
        loop {
            let deadline = self.state.as_ref().and_then(State::next_deadline).map(|tick| self.began + tick);
            let first = tokio::select! {
                biased;
                job = queue.recv() => match job {
                    Some(job) => Some(job),
                    None => return Ok(()),
                },
                () = until(deadline) => None,
                _ = &mut quitting, if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            };
            let rest = std::iter::from_fn(|| queue.try_recv().ok());
            let jobs: Vec<_> = first.into_iter().chain(rest).take(BATCH_JOBS).collect();
            self = self.batch(jobs).await?;
        }
    }

    /// Does all jobs, makes their changes durable, answers. An error ends the engine.
    async fn batch(mut self, jobs: Vec<Job>) -> Result<Self, ServerError> {
        if self.state.is_none() {
            self = self.reload().await?;
        }
        let now = self.began.elapsed();
        // Without a state the jobs are dropped, which refuses them.
        let Some(state) = &mut self.state else { return Ok(self) };
        // Leases end after the jobs: a keep-alive that waited here while the disk was slow came in time.
        let answers: Vec<Answer> = jobs.into_iter().map(|job| job(state, now)).collect();
        state.expire(now);
        state.retain();
        let changes = state.take_changes();
        let durable = if changes.is_empty() {
            Ok(())
        } else {
            let outcome;
            (self, outcome) = self.commit(changes).await?;
            outcome
        };
        for answer in answers {
            answer(durable.clone());
        }
        Ok(self)
    }

    async fn commit(mut self, changes: Changes) -> Result<(Self, Result<(), ApiError>), ServerError> {
        let mut disk = self.disk;
        let (disk, changes, outcome) = blocking(move || {
            let outcome = disk.commit(&changes);
            (disk, changes, outcome)
        })
        .await?;
        self.disk = disk;
        if let Err(error) = outcome {
            error!(%error, file = %self.disk.path().display(), "changes refused by the disk");
            return Ok((self.reload().await?, Err(ApiError::Disk(error.to_string()))));
        }
        self.publish(changes.events);
        Ok((self, Ok(())))
    }

    fn publish(&self, events: Vec<Event>) {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return };
        let (first, last) = (first.kv.mod_revision, last.kv.mod_revision);
        // An error means that nobody watches.
        let _ = self.ring.send(Arc::new(Batch { events, first, last }));
    }

    /// Reads the state back from the disk.
    async fn reload(mut self) -> Result<Self, ServerError> {
        self.state = None;
        let (mut disk, identity) = (self.disk, self.identity);
        let (disk, stored) = blocking(move || {
            let stored = disk.load(identity);
            (disk, stored)
        })
        .await?;
        self.disk = disk;
        match stored {
            Ok(stored) => self.state = Some(State::restore(stored, self.began.elapsed())),
            Err(error) => error!(%error, "the store is not available"),
        }
        Ok(self)
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ServerError> {
    // A file in memory blocks nobody, and other threads are no part of a history that is to repeat itself.
    if cfg!(test) {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| ServerError::Stopped(error.to_string()))
}

#[cfg(test)]
mod tests;
