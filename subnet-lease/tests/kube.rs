//! The Kubernetes store against a real kube-apiserver with an etcd beneath it, started by each test on free loopback ports.

#![cfg(feature = "kube")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails fails its test")]
#![allow(clippy::disallowed_methods, reason = "it waits for a server to start")]

#[path = "kube/contract.rs"]
mod contract;
#[path = "kube/server.rs"]
mod server;
