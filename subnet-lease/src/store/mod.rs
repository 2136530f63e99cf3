//! Where leases live: one contract, several stores.
//!
//! ```text
//!   StoreConfig ── open ──▶ dyn Store ─┬─ claim · release · watch                        the daemon
//!                                      └─ list · show · reserve · end · get_config · …   flannelctl
//! ```

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::admit::claim::Claim;
use crate::model::lease::{Lease, OwnLease};
use crate::model::net::Subnets;

mod data_path;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "kube")]
pub mod kube;
mod memory;
mod open;
#[cfg(any(feature = "etcd", feature = "kube"))]
mod pause;
mod shown;

pub use data_path::DataPath;
pub use memory::{MemoryStore, Subscription};
pub use open::{StoreConfig, open};
pub use shown::{Allocation, Entry, Listed, Shown, StoredConfig, Version};

/// A future of the store's answer.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where leases live. Promises only convergence: events may repeat, merge, or briefly go back in time. What cannot be
/// read is reported as such and never looks like an absence.
///
/// The first methods are the daemon's, the others those of an operator. Every write names the version that its caller
/// saw, so nothing is written over that somebody else changed meanwhile.
pub trait Store: Send + Sync {
    /// Makes the store say this about us: acquires, republishes or renews. Safe to repeat, and to be repeated before
    /// [`OwnLease::expires_in`] is over. Never writes over a subnet that is somebody else's: a host that lost its own
    /// gets another one, and sees so by comparing.
    fn claim<'a>(&'a self, claim: &'a Claim) -> Answer<'a, OwnLease>;

    /// Gives a lease back before its time, if its record still names the same host. Returns whether it did: a reservation
    /// stays, and so does what is somebody else's.
    fn release<'a>(&'a self, lease: &'a Lease) -> Answer<'a, bool>;

    /// The network's configuration and all leases, now and as they change; our own lease among them. Begins with a
    /// `Config`, then a `Snapshot`; sends another `Snapshot` after every gap. After a `Stale` any other event means that the
    /// store is being followed again (where there was no gap, a repeated `Config`). Never ends.
    fn watch(&self) -> BoxStream<'static, StoreEvent>;

    /// Whether pods here reach the others: a store that passes it on does so while it is watched.
    fn set_data_path(&self, _path: DataPath) {}

    /// What an operator must know of this node, one sentence each, for stores that have a place for it. Does not wait.
    fn set_remarks(&self, _remarks: &[String]) {}

    /// Which network this is, as a sentence names it: in etcd what its keys begin with.
    fn name(&self) -> String;

    /// Who decides which subnets a host gets.
    fn allocation(&self) -> Allocation {
        Allocation::Chosen
    }

    /// The net-conf; `None` where there is none yet.
    fn get_config(&self) -> Answer<'_, Option<StoredConfig>>;

    /// Writes the net-conf if it still has the version that the writer saw (`None`: there was none). The JSON is not
    /// checked here. Returns the new version; `Raced` if somebody else wrote meanwhile.
    fn put_config<'a>(&'a self, json: &'a [u8], seen: Option<&'a Version>) -> Answer<'a, Version>;

    /// All leases with the time each has left, and the keys that could not be read.
    fn list(&self) -> Answer<'_, Listed>;

    /// One lease with what the store knows of its time; `None` where there is no such key.
    fn show<'a>(&'a self, subnets: &'a Subnets) -> Answer<'a, Option<Shown>>;

    /// Makes a lease that never ends: a new one, or in place of the one that was shown.
    fn reserve<'a>(&'a self, lease: &'a Lease, shown: Option<&'a Shown>) -> Answer<'a, ()>;

    /// Gives a reservation an end again: it becomes a lease of the usual length, which its holder renews.
    fn unreserve<'a>(&'a self, shown: &'a Shown) -> Answer<'a, ()>;

    /// Ends a lease or reservation, whoever holds it, if it is still as it was shown; `Raced` otherwise.
    fn end<'a>(&'a self, shown: &'a Shown) -> Answer<'a, ()>;

    /// Everything of the network, at one moment, with the time each key has left.
    fn export(&self) -> Answer<'_, Vec<Entry>>;

    /// Writes what was exported, in steps of some keys. Unless it may `replace`, a key that is there already stops
    /// it: `Raced`, and nothing of that step is done.
    fn import<'a>(&'a self, entries: &'a [Entry], replace: bool) -> Answer<'a, ()>;
}

/// What a watch sends.
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
        /// Not a later state of what was sent before: another store answers, or this one was put back from a backup.
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
    /// A key that was no lease, whether it could be read or not, ended.
    Gone {
        /// The last part of the key.
        key: String,
    },
    /// The store cannot be followed at present, for this reason. What was sent before stays the best there is.
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
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
}

/// What a caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again, with back-off.
    Transient,
    /// Report it, keep the rest working, try again slowly.
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
