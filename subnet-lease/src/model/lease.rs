use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::format::json::RawJson;
use crate::model::net::{Family, Subnets};

/// Which network of this host. There is one at first, `default`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetworkId(String);

impl NetworkId {
    /// Names a network.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for NetworkId {
    fn default() -> Self {
        Self::new("default")
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The addresses under which other hosts reach this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicAddrs {
    /// The IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

impl PublicAddrs {
    /// The address of one family.
    pub fn family(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// Whether some family has the same address in both.
    pub fn meets(&self, other: &Self) -> bool {
        Family::ALL.into_iter().any(|f| self.family(f).is_some_and(|addr| other.family(f) == Some(addr)))
    }
}

impl fmt::Display for PublicAddrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4} {v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => f.write_str("none"),
        }
    }
}

impl FromIterator<IpAddr> for PublicAddrs {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addrs: I) -> Self {
        let mut public = Self::default();
        for addr in addrs {
            match addr {
                IpAddr::V4(addr) => public.v4 = Some(addr),
                IpAddr::V6(addr) => public.v6 = Some(addr),
            }
        }
        public
    }
}

/// What backends say about a host to the backends of its peers, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BackendAttrs {
    /// flannel's `BackendType`; empty for `alloc` (and `udp`).
    pub kind: String,
    /// `BackendData`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<RawJson>,
    /// `BackendV6Data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<RawJson>,
    /// Of further backends that the host runs: data per family, by kind (`Backends` in the record, beyond flannel's fields).
    /// Kinds that nobody here uses are kept as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, [Option<RawJson>; 2]>,
}

impl BackendAttrs {
    /// Attributes of a backend without data.
    pub fn plain(kind: &str) -> Self {
        Self { kind: kind.into(), ..Self::default() }
    }

    /// The data of one family.
    pub fn family(&self, family: Family) -> Option<&RawJson> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The data per family of a kind that the host publishes.
    pub fn of(&self, is_kind: impl Fn(&str) -> bool) -> Option<[Option<&RawJson>; 2]> {
        if is_kind(&self.kind) {
            return Some([self.v4.as_ref(), self.v6.as_ref()]);
        }
        let (_, data) = self.others.iter().find(|(kind, _)| is_kind(kind))?;
        Some([data[0].as_ref(), data[1].as_ref()])
    }

    /// Every kind that the host publishes, flannel's first.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.kind.as_str()).chain(self.others.keys().map(String::as_str))
    }

    /// Adds what a further backend publishes. Of one kind the first counts.
    pub fn add(&mut self, other: Self) {
        if !self.kinds().any(|kind| kind == other.kind) {
            self.others.insert(other.kind, [other.v4, other.v6]);
        }
    }
}

/// By what a store files its leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FiledBy {
    /// The subnets, as in etcd.
    #[default]
    Subnets,
    /// The name of the holder, as in Kubernetes: the key alone does not say which subnets the lease has.
    Node,
}

impl FiledBy {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
    fn is_subnets(&self) -> bool {
        *self == Self::Subnets
    }
}

/// The field of [`Lease::former`].
const FORMER: &str = "Former";

/// Who holds which subnets, and how they are reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// What is leased; the identity of the lease.
    pub subnets: Subnets,
    /// Where the holder is.
    pub public: PublicAddrs,
    /// How the holder's backend is reached.
    pub attrs: BackendAttrs,
    /// Name of the holder (`Node` in the record), beyond flannel's own fields; an old flannel ignores and drops it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Fields of the record that we do not know, kept as they were. Left out where a lease is written down for people
    /// (serde): what is in them is nobody's business.
    #[serde(skip)]
    pub extra: BTreeMap<String, RawJson>,
    /// What its key in the store is.
    #[serde(default, skip_serializing_if = "FiledBy::is_subnets")]
    pub filed_by: FiledBy,
    /// For how long the lease was granted, as far as the store tells; `None` = for ever (a reservation).
    pub ttl: Option<Duration>,
    /// When the subnets were first taken, in the store's own count (etcd: the key's create revision); 0 where it has none.
    /// Of two leases that collide the earlier one counts, on all hosts alike.
    pub epoch: u64,
}

impl Lease {
    /// A lease as its holder describes it.
    pub fn new(subnets: Subnets, public: PublicAddrs, attrs: BackendAttrs) -> Self {
        Self {
            subnets,
            public,
            attrs,
            node: None,
            extra: BTreeMap::new(),
            filed_by: FiledBy::Subnets,
            ttl: None,
            epoch: 0,
        }
    }

    /// The last part of its key in the store.
    pub fn key(&self) -> String {
        match (self.filed_by, &self.node) {
            (FiledBy::Node, Some(node)) => node.clone(),
            _ => self.subnets.to_string(),
        }
    }

    /// The subnets that the holder had before and lost, if it says so (`Former` in the record, beyond flannel's fields).
    pub fn former(&self) -> Option<Subnets> {
        serde_json::from_str::<&str>(self.extra.get(FORMER)?.as_str()).ok()?.parse().ok()
    }

    pub(crate) fn former_field(lost: Subnets) -> (String, RawJson) {
        (FORMER.to_owned(), RawJson::trusted(format!("\"{lost}\"")))
    }

    /// Whether it is a reservation that its host has not claimed yet: it names the host, never ends, and no backend published
    /// anything.
    pub fn is_unclaimed(&self) -> bool {
        self.public != PublicAddrs::default() && self.ttl.is_none() && self.attrs == BackendAttrs::default()
    }

    /// Whether both name the same holder.
    pub fn is_of(&self, other: &Self) -> bool {
        self.public == other.public && self.node == other.node
    }

    /// Whether the records of both would be the same.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.subnets == other.subnets
            && self.public == other.public
            && self.attrs == other.attrs
            && self.node == other.node
            && self.extra == other.extra
    }
}

/// The lease that this host got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnLease {
    /// The lease as the store has it now.
    pub lease: Lease,
    /// Time until the store forgets it unless it is claimed again; `None` = never (a reservation).
    pub expires_in: Option<Duration>,
}
