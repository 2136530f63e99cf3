//! Whose job is next: the client's that has used the engine least.
//!
//! Each client has a clock that runs while its jobs do. The job of the client whose clock is behind the others' is next.
//! A new client starts at the clock of the job that was taken last; one that comes back starts a little earlier. So a
//! client with small jobs waits for the job that runs, and not for all that others have sent before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far a clock may be behind that of the job that was taken last, in microseconds. More than a large job takes.
const CREDIT: u64 = 50_000;

/// How much of the engine a client has used. It lives as long as its connection.
#[derive(Debug)]
pub(crate) struct Clock {
    id: u64,
    /// Microseconds; `NEW` before the first job.
    at: AtomicU64,
}

const NEW: u64 = u64::MAX;

impl Clock {
    pub(crate) fn of(id: u64) -> Arc<Self> {
        Arc::new(Self { id, at: AtomicU64::new(NEW) })
    }
}

/// Jobs that wait, by client.
#[derive(Debug)]
pub(crate) struct Turns<J> {
    waiting: BTreeMap<u64, (Arc<Clock>, VecDeque<J>)>,
    /// Clock, order of arrival and client, of clients with a job that waits.
    order: BTreeSet<(u64, u64, u64)>,
    now: u64,
    arrived: u64,
}

impl<J> Default for Turns<J> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), order: BTreeSet::new(), now: 0, arrived: 0 }
    }
}

impl<J> Turns<J> {
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(crate) fn push(&mut self, clock: &Arc<Clock>, job: J) {
        let (_, jobs) = self.waiting.entry(clock.id).or_insert_with(|| (clock.clone(), VecDeque::new()));
        jobs.push_back(job);
        if jobs.len() == 1 {
            self.queue(clock);
        }
    }

    /// Takes the next job and does it; `work` returns how long that took, in microseconds.
    pub(crate) fn next(&mut self, work: impl FnOnce(J) -> u64) {
        let Some((at, _, id)) = self.order.pop_first() else { return };
        self.now = self.now.max(at);
        let Some((clock, jobs)) = self.waiting.get_mut(&id) else { return };
        let clock = clock.clone();
        let job = jobs.pop_front();
        let more = !jobs.is_empty();
        if !more {
            self.waiting.remove(&id);
        }
        let cost = job.map_or(0, work);
        clock.at.store(at.saturating_add(cost), Ordering::Relaxed);
        if more {
            self.queue(&clock);
        }
    }

    fn queue(&mut self, clock: &Clock) {
        let at = match clock.at.load(Ordering::Relaxed) {
            NEW => self.now,
            at => at.max(self.now.saturating_sub(CREDIT)),
        };
        self.arrived += 1;
        self.order.insert((at, self.arrived, clock.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_of_one_client_keep_their_order() {
        let (mut turns, client) = (Turns::default(), Clock::of(1));
        (0..5).for_each(|job| turns.push(&client, job));
        let mut order = Vec::new();
        while !turns.is_empty() {
            turns.next(|job| {
                order.push(job);
                1
            });
        }
        assert_eq!(order, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_small_job_waits_for_one_large_job_and_not_for_a_hundred() {
        const LARGE: u64 = 20_000;
        let mut turns = Turns::default();
        let honest = Clock::of(0);
        let hostile: Vec<_> = (1..=100).map(Clock::of).collect();
        turns.push(&honest, 10);
        for _ in 0..10 {
            hostile.iter().for_each(|clock| turns.push(clock, LARGE));
        }
        (0..450).for_each(|_| turns.next(|cost| cost));
        for round in 0..20 {
            turns.push(&honest, 10);
            let mut taken = 0;
            turns.next(|cost| {
                taken = cost;
                cost
            });
            assert_eq!(taken, 10, "in round {round}");
            turns.next(|cost| cost);
        }
    }

    #[test]
    fn all_jobs_have_their_turn() {
        let mut turns = Turns::default();
        let clocks: Vec<_> = (0..50).map(Clock::of).collect();
        let mut left = 5000;
        for n in 0..left {
            turns.push(&clocks[n % 50], (n % 7) as u64);
        }
        while !turns.is_empty() {
            turns.next(|cost| {
                left -= 1;
                cost
            });
        }
        assert_eq!(left, 0);
    }
}
