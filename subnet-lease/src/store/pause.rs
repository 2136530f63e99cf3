//! How long to wait before trying again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Pauses between attempts to reconnect: doubled from the first to the last, flannel's figures.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Between half and the whole of the doubled pause, so that a cluster's hosts do not come back in one moment.
pub(super) fn pause(failures: u32, seed: u64) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LAST_PAUSE);
    let mut hasher = DefaultHasher::new();
    (failures, seed).hash(&mut hasher);
    let random = hasher.finish() % 512;
    whole.mul_f64(0.5 + f64::from(u32::try_from(random).unwrap_or(0)) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_a_tenth_of_a_second_to_five_and_differ_between_hosts() {
        for (failures, whole) in [(1, 100), (2, 200), (5, 1600), (7, 5000), (u32::MAX, 5000)] {
            let pauses: Vec<_> = (0..50).map(|seed| pause(failures, seed).as_millis()).collect();
            assert!(pauses.iter().all(|ms| (whole / 2..=whole).contains(ms)), "{failures}: {pauses:?}");
            assert!(pauses.windows(2).any(|two| two[0] != two[1]));
        }
    }
}
