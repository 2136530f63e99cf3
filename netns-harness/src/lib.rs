//! x
#![allow(clippy::disallowed_methods, reason = "the harness measures time and waits for other programs")]

pub mod caps;
mod cluster;
pub mod disturb;
mod enter;
pub mod flannel;
mod host;
mod lab;
mod live;
mod namespace;
mod pod;
pub mod probe;
mod process;
pub mod rundir;
mod screen;
pub mod stream;
mod topology;
mod wire;

pub use cluster::{Cluster, Spec, SpecFile};
pub use enter::{enter, is_rootless};
pub use host::Host;
pub use lab::{Lab, Place};
pub use namespace::Namespace;
pub use pod::{Cni, Pod};
pub use screen::Screen;
pub use process::{Cost, Process, Program};
pub use topology::{Family, Net, Topology, UPLINK, eventually};
pub use wire::{Netlink, Switch, wire};
