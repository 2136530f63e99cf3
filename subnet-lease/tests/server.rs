//! The embedded server under its real clients: the etcd client library, `etcdctl`, and beside a real etcd.
#![cfg(feature = "server")]
#![allow(clippy::disallowed_methods, reason = "it waits for what comes, and not for ever")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a step that fails fails its test"
)]

#[path = "server/client.rs"]
mod client;
#[path = "server/etcdctl.rs"]
mod etcdctl;
#[path = "server/fixture.rs"]
mod fixture;
#[path = "server/restart.rs"]
mod restart;
#[path = "server/same_as_etcd.rs"]
mod same_as_etcd;
