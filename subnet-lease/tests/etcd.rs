//! The etcd store against a real etcd, started by each test on a free loopback port with a directory of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails fails its test")]
#![allow(clippy::disallowed_methods, reason = "it measures how soon a fault is noticed")]

#[path = "etcd/authority.rs"]
mod authority;
#[path = "etcd/claims.rs"]
mod claims;
#[path = "etcd/cost.rs"]
mod cost;
#[path = "etcd/embedded.rs"]
mod embedded;
#[path = "etcd/faults.rs"]
mod faults;
#[path = "etcd/histories.rs"]
mod histories;
#[path = "etcd/host.rs"]
mod host;
#[path = "etcd/relay.rs"]
mod relay;
#[path = "etcd/server.rs"]
mod server;
#[path = "etcd/site.rs"]
mod site;
#[path = "etcd/transport.rs"]
mod transport;
#[path = "etcd/watching.rs"]
mod watching;
