//! What the kernel should look like, and making it so.
//!
//! ```text
//!   NetworkConfig, own lease, PeerTable, Facts
//!         │  Backend::desired, rules::rules            pure
//!         ▼
//!   KernelState (the wish)      Kernel::own ─▶ KernelState (the dump)
//!         └───────────── diff(want, have, owner) ────────────┘    pure
//!                               ▼
//!                       Plan: ops in dependency order
//!                               ▼
//!                       Kernel::apply ─▶ one result per op
//! ```
//!
//! A backend never touches the kernel: it says what it wishes for. Two kernels stand behind one trait: the real one
//! over netlink (feature `kernel`) and one in memory that obeys the same laws (feature `fake`).

#![warn(missing_docs)]

mod backend;
pub mod kernel;
pub mod local;
pub mod netlink;
mod plan;
pub mod rules;
mod state;

pub use backend::{Backend, External, LocalNode, choose};
pub use plan::{Op, Owner, Plan, ROUTE_PROTOCOL, Verdict, Wanted, conflicts, diff, tag};
pub use state::{
    Address, BadIfName, BadMac, Facts, Fdb, Feature, HostAddress, HostLink, HostRoute, IfName, KernelState,
    Key, Link, LinkKind, Mac, Neigh, Object, Route, RouteKind, Sysctl, System, TableKey, Vxlan,
    default_metric,
};
