//! Many virtual hosts on one Linux machine, made of namespaces, for tests, demonstrations and measurements.
//!
//! ```text
//!   this process
//!     ├─ RunDir   selvage-ID/ on the machine, locked; a tmpfs that only we see
//!     ├─ Net      switches, wires, a router between racks
//!     │   └─ Host   network namespace + mount namespace: own /run, /var/lib, /sys
//!     │        ├─ Process   flanneld, etcd, … each with a log, each killed with us
//!     │        └─ Pod       network namespace that a CNI plugin connects
//!     └─ probe, stream, disturb, chaos    ask, send and break, from inside any of them
//! ```
//!
//! It runs the product by command lines only, so the programs of another flannel can take their place.
//!
//! ```no_run
//! use std::time::Duration;
//! use netns_harness::flannel::{Products, Store, StoreKind, net_conf, wait_for_subnet, Backend};
//! use netns_harness::{Family, Net, Pod, Topology, disturb, enter};
//!
//! fn main() -> anyhow::Result<()> {
//!     enter()?; // first: an ordinary user becomes root in a user namespace
//!     let products = Products::find()?;
//!     let net = Net::build(Topology::flat(2).family(Family::Dual))?;
//!     let store = Store::start(net.store(), StoreKind::Embedded, &products)?;
//!     store.set_network(&products, &net_conf(2, Backend::Vxlan, Family::Dual))?;
//!     for host in net.hosts() {
//!         let daemon = host.spawn(&products.daemon(&store))?;
//!         wait_for_subnet(host, &daemon, Duration::from_secs(10))?;
//!     }
//!     let cni = products.cni();
//!     let (one, other) = (Pod::add(net.host(0), "pod", &cni)?, Pod::add(net.host(1), "pod", &cni)?);
//!     one.ping(&other, Family::V6, Duration::from_secs(1))?;
//!     let report = disturb::outage(&one, &other, Family::V4, Duration::from_secs(5), || {
//!         net.host(0).link_down("flannel.1")?;
//!         net.host(0).link_up("flannel.1")
//!     })?;
//!     println!("{:?} until pods talk again, {} packets lost", report.outage(), report.lost());
//!     Ok(())
//! }
//! ```
//!
//! What always holds:
//! - Every namespace, mount and file is held by a descriptor of this process, and every child dies with it. So after the process ends,
//!   even by SIGKILL, only one nearly empty directory is left, and the next run removes it.
//! - A run removes only directories whose lock is free; runs side by side do not disturb each other.
//! - No address, link, route, rule or sysctl of the machine itself is changed, and no other program is needed.
#![allow(clippy::disallowed_methods, reason = "the harness measures time and waits for other programs")]
#![warn(missing_docs)]

pub mod caps;
pub mod chaos;
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
pub use pod::{Cni, Pod, Sandbox};
pub use process::{Cost, Process, Program};
pub use screen::Screen;
pub use topology::{Family, Net, Topology, UPLINK, eventually};
pub use wire::{Netlink, Switch, wire};
