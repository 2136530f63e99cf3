//! The host under the daemon: which interface is the underlay, how full the pods' pools are.

pub(crate) mod conflists;
pub mod iface;
pub mod pool;
