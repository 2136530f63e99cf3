//! What the daemon answers: HTTP for probes and metrics, and a local socket for `flannelctl` and the CNI plugin.

pub mod http;
mod metrics;
pub mod socket;
mod unlink;
