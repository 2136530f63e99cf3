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
pub mod signals;
pub(crate) mod state_file;
pub(crate) mod store;
mod subscription;
mod tap;
