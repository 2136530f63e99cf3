//! The host under the daemon: which interface is the underlay, who else is at work here, how full the pods' pools are.

pub(crate) mod conflists;
pub mod iface;
pub mod pool;
pub(crate) mod rival;
