//! The host under the daemon: which interface is the underlay, what stays outside of the network, how full the pods' pools are.

pub(crate) mod conflists;
pub mod iface;
pub(crate) mod outside;
pub(crate) mod path;
pub mod pool;
pub(crate) mod setting_writers;
