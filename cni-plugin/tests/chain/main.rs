//! The plugins that go behind another, against a real kernel: traffic through what they make, every key, exchange with
//! the reference plugins. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic to fail")]

mod host;
mod loopback;
mod portmap;
