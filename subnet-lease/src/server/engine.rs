//! The one task that owns the state. Everyone else sends it jobs and waits for answers.
//!
//! ```text
//!   kv, lease, watch services ──jobs──▶ ┌────────┐ ──changes of the whole batch──▶ disk
//!                                       │ engine │ ◀──────────── done ────────────
//!   answers  ◀────── after the disk ─── └────────┘ ──batch──▶ ring ──▶ every watch stream
//! ```
//! Jobs that wait while the disk is busy form the next batch: one commit for all of them, as far as a batch may go. No
//! answer and no watch shows a change before it is on the disk. When the disk refuses, the whole batch is answered with
//! that error and the state is read back from the file; while that fails too, jobs are refused and each new one tries
//! again.
//!
//! A lease ends only after every keep-alive that has arrived was done. Time in which the whole process stood still is no
//! time of a lease: its keep-alives may have arrived, and nobody has read them yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, info};

use super::call::Call;
use super::connections::Room;
use super::disk::Disk;
use super::error::{ApiError, ServerError};
use super::lease::Tick;
use super::limits::{BATCH, BATCH_BYTES, QUEUE};
use super::mvcc::Event;
use super::state::{Changes, Identity, State};
use super::turns::{Clock, Turns};

/// A timer that is this late shows that the process stood still: stopped, without a processor, or its machine asleep.
const STANDSTILL: Duration = Duration::from_secs(1);

/// Microseconds that writing a kibibyte counts for: a disk of 64 MiB a second.
const WRITE_COST: usize = 16;

/// Batches that the ring holds for watch streams; a stream that falls further behind reads history instead.
const RING: usize = 256;

type Answer = Box<dyn FnOnce(Result<(), ApiError>) + Send>;
type Work = Box<dyn FnOnce(&mut State, Tick) -> Answer + Send>;

struct Job {
    /// Its client's; none for jobs of streams in simulated networks and of tests.
    clock: Option<Arc<Clock>>,
    /// It is small and goes before the others.
    urgent: bool,
    work: Work,
}

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
        let owner = Owner {
            state: Some(state),
            disk,
            ring: ring.clone(),
            identity,
            turns: Turns::default(),
            anyone: Clock::of(0),
            began: Instant::now(),
            stood: Duration::ZERO,
        };
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
        let call = Call::current();
        let clock = call.as_ref().map(|call| call.client().clock.clone());
        self.send(clock, false, move |state, now| {
            state.begin_answer(call.as_ref().map_or(usize::MAX, |call| call.client().free(Room::Answers)));
            let outcome = job(state, now);
            let (Some(call), bytes) = (call, state.answered()) else { return outcome };
            if matches!(outcome, Err(ApiError::TooManyRequests)) {
                // It is refused again, and whoever holds most of the room leaves.
                let _ = call.client().hold(Room::Answers, bytes);
            }
            // There is room: only this task takes any, and it has looked before.
            outcome.and_then(|answer| call.hold_answer(bytes).map(|()| answer))
        })
        .await
    }

    /// The same for a job of a stream, which is small.
    pub(crate) async fn ask_for<T: Send + 'static>(
        &self,
        clock: Option<Arc<Clock>>,
        job: impl FnOnce(&mut State, Tick) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.send(clock, false, job).await
    }

    /// The same for a job that takes a moment and must not come late.
    pub(crate) async fn ask_urgently<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut State, Tick) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.send(None, true, job).await
    }

    async fn send<T: Send + 'static>(
        &self,
        clock: Option<Arc<Clock>>,
        urgent: bool,
        job: impl FnOnce(&mut State, Tick) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |state, now| {
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
        self.jobs.send(Job { clock, urgent, work }).await.map_err(|_| ApiError::Stopped)?;
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
    turns: Turns<Work>,
    /// The clock of jobs without a client.
    anyone: Arc<Clock>,
    began: Instant,
    /// How long the process stood still since then, together.
    stood: Duration,
}

impl Owner {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Job>,
        mut quitting: oneshot::Receiver<()>,
    ) -> Result<(), ServerError> {
        loop {
            if !queue.is_closed() && !matches!(quitting.try_recv(), Err(oneshot::error::TryRecvError::Empty))
            {
                queue.close();
            }
            let deadline = self.state.as_ref().and_then(State::next_deadline);
            let deadline = deadline.map(|tick| self.began + self.stood + tick);
            let first = if self.turns.is_empty() {
                tokio::select! {
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
                }
            } else {
                // Others run between two batches.
                tokio::task::yield_now().await;
                None
            };
            let late = deadline.map_or(Duration::ZERO, |deadline| deadline.elapsed());
            if late > STANDSTILL {
                // Whoever sent a keep-alive in that time has a moment more, until it is read.
                self.stood += late + STANDSTILL;
            }
            let rest = std::iter::from_fn(|| queue.try_recv().ok());
            let mut urgent = Vec::new();
            for job in first.into_iter().chain(rest) {
                if job.urgent {
                    urgent.push(job.work);
                } else {
                    self.turns.push(job.clock.as_ref().unwrap_or(&self.anyone), job.work);
                }
            }
            self = self.batch(urgent).await?;
        }
    }

    /// Does the urgent jobs and, as far as a batch goes, the others; makes their changes durable; answers. An error
    /// ends the engine.
    async fn batch(mut self, urgent: Vec<Work>) -> Result<Self, ServerError> {
        if self.state.is_none() {
            self = self.reload().await?;
        }
        let now = self.began.elapsed().saturating_sub(self.stood);
        let Some(state) = &mut self.state else {
            // Without a state the jobs are dropped, which refuses them.
            self.turns = Turns::default();
            return Ok(self);
        };
        let mut answers: Vec<Answer> = urgent.into_iter().map(|work| work(state, now)).collect();
        let began = Instant::now();
        while !self.turns.is_empty() && began.elapsed() < BATCH && state.unwritten() < BATCH_BYTES {
            self.turns.next(|work| {
                let (before, began) = (state.unwritten(), Instant::now());
                answers.push(work(state, now));
                let written = (state.unwritten().saturating_sub(before) >> 10) * WRITE_COST;
                let took = began.elapsed().as_micros() + 1;
                u64::try_from(took).unwrap_or(u64::MAX).saturating_add(written as u64)
            });
        }
        // After the keep-alives: those that waited here while the disk was slow came in time.
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
