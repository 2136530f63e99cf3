//! The plugins that go behind another, against a real kernel: traffic through what they make, every key, exchange with
//! the reference plugins. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic to fail")]

#[path = "../host/mod.rs"]
mod host;

mod bandwidth;
mod bridge;
mod exchange;
mod firewall;
mod firewalld;
mod hostile;
mod iptables;
mod loopback;
mod portmap;
mod reuse;
mod spoof;
mod store;
mod tuning;
