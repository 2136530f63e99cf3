//! The embedded server under its real clients: the etcd client library, `etcdctl`, and beside a real etcd.
#![cfg(feature = "server")]

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
