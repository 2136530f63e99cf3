//! Where leases live: one contract, several stores.

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::admit::claim::Claim;
use crate::model::lease::{Lease, OwnLease};
use crate::model::net::Subnets;

#[cfg(feature = "etcd")]
pub mod etcd;
mod memory;

pub use memory::{MemoryStore, Subscription};

/// Where leases live. Promises only convergence: events may repeat, merge, or briefly go back in time. What cannot be
/// read is reported as such and never looks like an absence.
pub trait Store: Send + Sync {
    /// Makes the store say this about us: acquires, republishes or renews. Safe to repeat, and to be repeated before
    /// [`OwnLease::expires_in`] is over. Never writes over a subnet that is somebody else's: a host that lost its own
    /// gets another one, and sees so by comparing.
    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<OwnLease, StoreError>>;

    /// Gives a lease back before its time, if its record still names the same host. Returns whether it did: a reservation
    /// stays, and so does what is somebody else's.
    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// The network's configuration and all leases, now and as they change; our own lease among them. Begins with a
    /// `Config`, then a `Snapshot`; sends another `Snapshot` after every gap. After a `Stale` any other event says that the
    /// store is being followed again (where there was no gap, a repeated `Config`). Never ends.
    fn watch(&self) -> BoxStream<'static, StoreEvent>;
}

/// What a store has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// The net-conf as it stands in the store, not looked at.
    Config(Vec<u8>),
    /// Everything there is; what is not in it is gone.
    Snapshot {
        /// All leases that could be read.
        leases: Vec<Lease>,
        /// All keys that could not, each with the reason: present, but unknown.
        unreadable: Vec<(String, String)>,
        /// Not a later state of what was told before: another store answers, or this one was put back from a backup.
        foreign: bool,
    },
    /// A lease came or changed.
    Upsert(Lease),
    /// Leases ended, all in one step of the store.
    Removed(Vec<Subnets>),
    /// A lease came or changed and cannot be read.
    Unreadable {
        /// The last part of its key.
        key: String,
        /// Why.
        reason: String,
    },
    /// The store cannot be followed at present, for this reason. What was said before stays the best there is.
    Stale(String),
}

/// Why a store did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum StoreError {
    /// The store did not answer, or not in time.
    #[error("store not reachable: {0}")]
    Unreachable(String),
    /// The store, or the way to it, can't be trusted, or does not trust us: certificates, which may be replaced while we run.
    #[error("store not trusted: {0}")]
    Untrusted(String),
    /// The store answers that it can't serve at present.
    #[error("store fails: {0}")]
    Failing(String),
    /// The store refuses us; an operator can change that in the store while we run.
    #[error("store denies access: {0}")]
    Denied(String),
    /// Somebody else wrote this key first.
    #[error("{0} was changed by another host meanwhile")]
    Raced(String),
    /// No subnet is left in this network, which has so many.
    #[error(
        "all {1} subnets of {0} are leased; remove leases of hosts that are gone, or enlarge the network"
    )]
    Full(IpNetwork, u128),
    /// The store lacks what we need of it.
    #[error("store not usable: {0}")]
    Unsupported(String),
    /// We were told wrong.
    #[error("{0}")]
    Config(String),
}

/// What a caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again, with back-off.
    Transient,
    /// Tell the operator, keep the rest working, try again slowly.
    Conflict,
    /// At start: give up with the sentence. Later: as a conflict.
    Unsupported,
    /// Give up.
    Fatal,
}

impl StoreError {
    /// What to do next.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable(_)
            | Self::Untrusted(_)
            | Self::Failing(_)
            | Self::Denied(_)
            | Self::Raced(_) => Class::Transient,
            Self::Full(..) => Class::Conflict,
            Self::Unsupported(_) => Class::Unsupported,
            Self::Config(_) => Class::Fatal,
        }
    }
}
