use std::fmt;
use std::time::Duration;

use crate::model::lease::Lease;

/// Who decides which subnets a host gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The host chooses from what is free.
    Chosen,
    /// The store assigns them (the `podCIDR` of a Kubernetes node): nothing can be reserved.
    Assigned,
}

/// The version of a value, in the store's own count: equal versions are equal values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A net-conf as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredConfig {
    /// The JSON, not looked at.
    pub json: Vec<u8>,
    /// When it was last written.
    pub version: Version,
}

/// A lease as the store has it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The lease.
    pub lease: Lease,
    /// The record itself.
    pub record: Vec<u8>,
    /// For how long it was granted and how much is left; `None` for a reservation.
    pub time: Option<(Duration, Duration)>,
    /// When it was last written.
    pub version: Version,
}

/// All leases of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Each with the time it has left; `None` for reservations, and where the store did not say.
    pub leases: Vec<(Lease, Option<Duration>)>,
    /// Keys that could not be read, and why.
    pub unreadable: Vec<(String, String)>,
}

/// One key of the network with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What follows the network's name: `config`, `subnets/10.5.52.0-24`.
    pub key: String,
    /// The value, not looked at.
    pub value: Vec<u8>,
    /// The time it has left; none where it stays for good.
    pub ttl: Option<Duration>,
}
