//! What daemon and plugin both need of this machine beside netlink. It needs no feature and no other crate.

pub mod dbus;
