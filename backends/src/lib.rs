//! What the kernel should look like, and making it so.
//!
//! ```text
//!   NetworkConfig, own lease, PeerTable, Facts
//!         │  Backend::desired, traffic::rules          pure
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
mod conflict;
pub mod dbus;
mod diff;
mod facts;
pub mod kernel;
mod name;
pub mod netlink;
mod owner;
mod plan;
mod state;
mod system;
pub mod traffic;

pub use backend::{Backend, External, LocalNode, choose};
pub use conflict::conflicts;
pub use diff::diff;
pub use facts::{Facts, HostAddress, HostLink, HostRoute};
pub use name::{BadIfName, BadMac, IfName, Mac};
pub use owner::{Owner, ROUTE_PROTOCOL, Verdict, Wanted, tag};
pub use plan::{Op, Plan};
pub use state::{
    Address, Fdb, KernelState, Key, Link, LinkKind, Neigh, Object, Route, RouteKind, Sysctl, TableKey, Vxlan,
    default_metric,
};
pub use system::{Feature, System};
