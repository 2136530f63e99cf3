//! What the kernel should look like, and how it gets there.
//!
//! ```text
//!   NetworkConfig, own lease, PeerTable, Facts
//!         │  Backend::desired, rules::rules            pure
//!         ▼
//!   KernelState (the wish)      Kernel::own ─▶ KernelState (the dump)
//!         └───────────── diff(want, have, owner) ────────────┘    pure
//!                               ▼
//!                       Plan: steps in dependency order
//!                               ▼
//!                       Kernel::apply ─▶ one result per step
//! ```
//!
//! A backend never touches the kernel: it returns a wish. Two kernels implement one trait: the real one over netlink
//! (feature `kernel`), and one in memory that obeys the same laws (feature `fake`).
//!
//! The wish is a set of objects, the difference is a plan, and a plan prints as the lines that an operator would type:
//!
//! ```
//! use backends::rules::RuleNames;
//! use backends::{KernelState, Object, Owner, ROUTE_PROTOCOL, Route, RouteKind, diff};
//! use subnet_lease::NetworkId;
//!
//! let peer = Object::Route(Route {
//!     dst: "10.5.7.0/24".parse().unwrap(),
//!     metric: 0,
//!     kind: RouteKind::Unicast,
//!     via: Some("192.168.0.7".parse().unwrap()),
//!     link: Some("eth0".parse().unwrap()),
//!     onlink: false,
//!     scope: 0,
//!     protocol: ROUTE_PROTOCOL,
//! });
//! let wish: KernelState = [peer].into_iter().collect();
//! let owner = Owner {
//!     network: NetworkId::default(),
//!     networks: vec!["10.5.0.0/16".parse().unwrap()],
//!     names: vec![],
//!     external: Some("eth0".parse().unwrap()),
//!     pools: vec![],
//!     pods: vec![],
//!     routers: vec![],
//!     rules: RuleNames::Flannel,
//!     first_pass: false,
//! };
//!
//! let plan = diff(&wish, &KernelState::default(), &owner);
//! assert_eq!(plan.to_string(), "ip route replace 10.5.7.0/24 via 192.168.0.7 dev eth0 proto 67\n");
//! // A host that is as wished needs nothing.
//! assert!(diff(&wish, &wish, &owner).is_empty());
//! // A peer that left: its route is ours, so it is deleted.
//! let plan = diff(&KernelState::default(), &wish, &owner);
//! assert_eq!(plan.counts(), (0, 0, 1));
//! ```
//!
//! What always holds:
//! - An object that is not ours is never changed. `Owner` decides from the dump alone.
//! - A plan that is half applied is a dump with differences: the next pass continues.
//! - A failed step holds back only the steps that cannot exist without it.
//! - No bytes from the kernel or from another program make this crate panic.

#![warn(missing_docs)]

mod backend;
pub mod kernel;
pub mod local;
pub mod netlink;
mod plan;
pub mod plane;
pub mod rules;
mod state;

pub use backend::{Backend, Backends, Devices, External, Identity, LocalNode, Pair, Sources, Wish};
pub use netlink::{BadIfName, BadMac, IfName, Mac};
pub use plan::{Op, Owner, Ownership, Plan, Wanted, conflicts, diff, tag};
pub use state::{
    Address, Facts, Fdb, Feature, HostAddress, HostLink, HostRoute, IptablesKey, KernelState, Key, Link,
    LinkKind, Neigh, Object, ROUTE_PROTOCOL, Route, RouteKind, Sysctl, System, TableKey, Vxlan,
    default_metric,
};
