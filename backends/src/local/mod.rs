//! What daemon and plugin both need of this machine beside netlink. No feature of this crate is needed for it.

pub mod daemon;
pub mod dbus;
pub mod files;
pub mod hash;
pub mod mounts;
pub mod pool_stamp;
pub mod processes;
pub mod random;
