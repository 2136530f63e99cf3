//! The daemon: one loop joining the store and the kernel. `flanneld` runs it; `flannelctl` is for people.

pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod dry_run;
pub mod exit;
pub mod http;
pub mod iface;
mod kernel_thread;
pub mod log;
mod metrics;
pub mod node;
pub mod pool;
pub mod publish;
pub mod record;
mod rival;
pub mod run;
pub mod signals;
pub mod socket;
mod state_file;
mod store;
mod subscription;
mod unlink;
