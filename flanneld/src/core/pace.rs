//! When to make the next pass.
//!
//! The first input after a quiet moment starts a pass at once; inputs that arrive while a pass runs start the next one. A leaky
//! bucket limits passes in a storm to a tenth of the time, whatever a pass takes. Failures are retried with a jittered
//! back-off. An audit comes also when nothing happens, because notifications can be lost.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Tick;

/// Passes that a storm may start back to back.
const BUCKET: u32 = 10;
/// One more each time that the last pass took, times this ...
const REST: u32 = 10;
/// ... and not sooner or later than this. A pass takes 2 ms at 1,000 peers, and 22 ms at 10,000.
const REFILL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// First pause after a pass that left something undone; doubles from there.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const RETRY_LAST: Duration = Duration::from_secs(30);
/// The time between two passes without an event.
const AUDIT: Duration = Duration::from_secs(30);

fn usual() -> Duration {
    AUDIT
}

/// Decides when a pass may begin.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pace {
    /// Something changed since the last pass began.
    dirty: bool,
    spent: u32,
    refilled: Tick,
    period: Duration,
    began: Tick,
    failures: u32,
    retry: Option<Tick>,
    audit: Tick,
    #[serde(default = "usual")]
    audits: Duration,
    seed: u64,
}

impl Pace {
    pub(super) fn new(seed: u64) -> Self {
        let zero = Tick::ZERO;
        Self {
            dirty: false,
            spent: 0,
            refilled: zero,
            period: REFILL.0,
            began: zero,
            failures: 0,
            retry: None,
            audit: zero,
            audits: AUDIT,
            seed,
        }
    }

    /// Look again.
    pub(super) fn mark(&mut self) {
        self.dirty = true;
    }

    /// Look again, and what failed before may work now. Not for the kernel's notifications: our own writes come back
    /// as such.
    pub(super) fn mark_fresh(&mut self) {
        self.dirty = true;
        self.failures = 0;
    }

    /// Audit this often where nothing notifies changes, and no more seldom than usual.
    pub(super) fn audit_every(&mut self, period: Duration) {
        self.audits = period.min(AUDIT);
    }

    /// The pass that ran left something undone, or nothing.
    pub(super) fn finished(&mut self, now: Tick, undone: bool) {
        self.failures = if undone { self.failures } else { 0 };
        self.retry = undone.then(|| now + self.back_off());
        self.audit = now + self.jitter(self.audits);
        self.refill(now);
        self.period = (now.saturating_sub(self.began) * REST).clamp(REFILL.0, REFILL.1);
    }

    /// Whether a pass should begin now; if so it counts as begun.
    pub(super) fn begin(&mut self, now: Tick) -> bool {
        self.refill(now);
        let due = self.audit <= now || self.retry.is_some_and(|at| at <= now);
        if !(due || self.dirty && self.spent < BUCKET) {
            return false;
        }
        self.spent += 1;
        self.began = now;
        self.dirty = false;
        self.retry = None;
        true
    }

    /// When to look at [`begin`](Self::begin) again.
    pub(super) fn next(&self) -> Tick {
        let soon = if self.spent < BUCKET { Tick::ZERO } else { self.refilled + self.period };
        let dirty = self.dirty.then_some(soon);
        dirty.into_iter().chain(self.retry).fold(self.audit, Tick::min)
    }

    fn refill(&mut self, now: Tick) {
        let periods = now.saturating_sub(self.refilled).as_micros() / self.period.as_micros();
        let drops = u32::try_from(periods).unwrap_or(u32::MAX).min(self.spent);
        self.spent -= drops;
        self.refilled = if self.spent == 0 { now } else { self.refilled + self.period * drops };
    }

    fn back_off(&mut self) -> Duration {
        let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_LAST);
        self.failures += 1;
        self.jitter(pause)
    }

    /// Ninety to a hundred and ten percent, so that a thousand nodes do not do the same thing in the same moment.
    fn jitter(&mut self, span: Duration) -> Duration {
        self.seed = mix(self.seed);
        let percent = u32::try_from(self.seed % 21).unwrap_or(10) + 90;
        span * percent / 100
    }
}

/// One step of SplitMix64: spreads a seed. No generator of a library, since the seed is part of the recorded state: a
/// recording must replay with every version of a library.
pub(super) fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Tick {
        Tick::from_millis(n)
    }

    #[test]
    fn the_first_input_after_a_quiet_moment_starts_a_pass_at_once() {
        let mut pace = Pace::new(1);
        pace.finished(ms(0), false);
        assert!(!pace.begin(ms(5)));
        pace.mark();
        assert!(pace.begin(ms(5)));
        assert!(!pace.begin(ms(5)), "one input, one pass");
    }

    #[test]
    fn a_storm_gets_ten_passes_and_then_a_tenth_of_the_time() {
        for (takes, expected) in [(0, 109..=110), (3, 43..=44), (30, 19..=20), (200, 5..=6)] {
            let mut pace = Pace::new(1);
            pace.finished(ms(0), false);
            let (mut passes, mut ends) = (0, None);
            for now in 0..1000 {
                pace.mark();
                if ends.take_if(|at| *at <= now).is_some() {
                    pace.finished(ms(now), false);
                }
                if ends.is_none() && pace.begin(ms(now)) {
                    passes += 1;
                    ends = Some(now + takes);
                }
            }
            assert!(expected.contains(&passes), "{takes} ms each: {passes}");
        }
    }

    #[test]
    fn failures_back_off_to_half_a_minute_and_new_input_starts_over() {
        let mut pace = Pace::new(7);
        let mut now = ms(0);
        for _ in 0..12 {
            pace.finished(now, true);
            now = pace.next();
            assert!(pace.begin(now));
        }
        pace.finished(now, true);
        assert!(pace.next() - now >= Duration::from_secs(27));
        pace.mark_fresh();
        assert!(pace.begin(now));
        pace.finished(now, true);
        assert!(pace.next() - now <= Duration::from_millis(111));
    }

    #[test]
    fn an_audit_comes_round_without_any_event() {
        let mut pace = Pace::new(3);
        pace.finished(ms(0), false);
        let next = pace.next();
        assert!((Duration::from_secs(27)..=Duration::from_secs(33)).contains(&next));
        assert!(pace.begin(next));
    }
}
