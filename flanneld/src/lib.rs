//! The daemon: one loop joining the store and the kernel. `flanneld` runs it; `flannelctl` is for people.

pub mod cli;
pub mod clock;
pub mod config;
pub mod dry_run;
pub mod exit;
pub mod iface;
pub mod node;
pub mod signals;
