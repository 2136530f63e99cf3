//! The one clock: time since boot, suspend included, so that the daemon notices a lease that ended while the host slept.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Longer than any useful wait.
pub const LONG: Duration = Duration::from_secs(365 * 24 * 3600);

/// Time since 1970, if the clock is set: for people only.
pub fn wall() -> Duration {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from)
}

/// Time since boot.
pub fn boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
