//! TERM and INT ask to stop; a second one ends the process at once.

use tokio::signal::unix::{SignalKind, signal};

/// Completes with the first TERM or INT.
pub async fn stop() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
