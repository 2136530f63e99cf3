//! The daemon's edge: tasks, clock, files, signals and the kernel thread. It feeds the core and performs its effects.

pub mod clock;
mod conflists;
pub mod dry_run;
mod kernel_thread;
pub mod log;
mod plane_tasks;
pub mod publish;
pub(crate) mod rival;
pub mod run;
mod settings_files;
pub mod signals;
pub(crate) mod state_file;
pub(crate) mod store;
mod subscription;
mod tap;

use std::future::Future;
use std::time::Duration;

use crate::exit::{Exit, Failure};

/// How long blocking work may go on after the rest has ended. Ours: the last write of a small file.
const LAST_WORK: Duration = Duration::from_millis(500);

/// Runs a future on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, format!("can't start: {error}")))?;
    let ended = runtime.block_on(future);
    // Waits for a file that is being written, but not for the look-up of a name that no resolver answers.
    runtime.shutdown_timeout(LAST_WORK);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the look-up of a name that no name server answers.
    #[test]
    fn blocking_work_that_does_not_end_is_not_waited_for() {
        let (keep, wait) = std::sync::mpsc::channel::<()>();
        let ended = block_on(async {
            tokio::task::spawn_blocking(move || wait.recv());
            Ok(7)
        });
        assert_eq!(ended, Ok(7));
        drop(keep);
    }
}
