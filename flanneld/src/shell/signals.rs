//! TERM and INT ask to stop; a second one ends the process at once.

use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};

/// Completes with the first TERM or INT.
pub async fn stop() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    // A parent that waits for signals by itself has them blocked, and its children inherit that.
    let ours: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    // Cannot fail: the set is valid.
    let _ = ours.thread_unblock();
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
