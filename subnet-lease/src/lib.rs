//! What a lease is, and where leases live.
//!
//! ```text
//!   net-conf ──▶ NetworkConfig ──▶ Claim ─────────────────────────────┐
//!   (any JSON)   (only what works)  (my address, my attributes)        │ claim
//!                                                                      ▼
//!                     ┌──────────────────────────────────────────── Store ──────┐
//!                     │  memory (LeaseBook)  │  etcd (flannel's keys)  │  …      │
//!                     └──────────────────────────────────────────────┬──────────┘
//!                                                             watch  │ Config, Snapshot,
//!                                                                    ▼ Upsert, Removed, Unreadable, Stale
//!   Lease: Subnets ◀─ held by ─▶ PublicAddrs + BackendAttrs ──▶ PeerTable ──▶ Peer (admitted)
//!                                                                    └──────▶ refused, with the reason
//! ```
//!
//! A cluster has one network, say `10.5.0.0/16`, cut into subnets of one length. Every host *leases* one subnet (per address
//! family), writes into the store where it can be reached, and renews before the lease ends. Every host
//! reads all other leases: they are its *peers*. Hosts know nothing else of each other.
//!
//! ```
//! use subnet_lease::{BackendAttrs, Claim, MemoryStore, NetworkConfig, PeerTable, StoreEvent};
//!
//! let json = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#;
//! let (network, _warnings) = NetworkConfig::parse(json.as_bytes()).unwrap();
//! let store = MemoryStore::new();
//! store.set_config(json);
//! let claim = |address: &str| Claim {
//!     avoid: Vec::new(),
//!     public: [address.parse().unwrap()].into_iter().collect(),
//!     attrs: BackendAttrs::plain("host-gw"),
//!     previous: None,
//!     network: network.clone().into(),
//!     node: None,
//! };
//! let mine = store.claim_now(&claim("192.168.0.1")).unwrap().lease;
//! let theirs = store.claim_now(&claim("192.168.0.2")).unwrap().lease;
//!
//! let mut watch = store.subscribe();
//! watch.next_now(); // the configuration
//! let Some(StoreEvent::Snapshot { leases, unreadable, .. }) = watch.next_now() else { panic!() };
//! let peers = PeerTable::from_snapshot(&network, Some(&mine.subnets), mine.public, leases, unreadable);
//! assert_eq!(peers.peers().map(|peer| peer.key()).collect::<Vec<_>>(), [theirs.subnets]);
//! ```
//!
//! What always holds:
//! - The subnets are the identity of a lease. No two admitted peers overlap, and none overlaps ours.
//! - A `PeerTable` is made from a snapshot only, so "no peers" is what the store reported, never an assumption.
//! - A record that cannot be read is unknown, not absent: it is reported, and a peer that was known stays.
//! - No write replaces the lease of another host.
//! - No bytes from the store, a file or a peer make this crate panic.

mod admit;
mod attrs;
mod format;
mod model;
#[cfg(feature = "server")]
pub mod server;
#[cfg(all(test, feature = "etcd", feature = "server"))]
mod simulation;
mod store;

pub use admit::book::LeaseBook;
pub use admit::claim::Claim;
pub use admit::known::Peer;
pub use admit::peers::{Guarded, PeerTable};
pub use attrs::*;
pub use format::json::{NotJson, RawJson};
pub use format::record::RecordError;
pub use format::subnet_env::{SubnetEnv, SubnetEnvError, SubnetEnvLines};
pub use futures_core::future::BoxFuture;
pub use futures_core::stream::BoxStream;
pub use ipnetwork::IpNetwork;
pub use model::lease::{BackendAttrs, FiledBy, Lease, NetworkId, OwnLease, PublicAddrs};
pub use model::net::{Family, KeyError, Subnets, contains_net, overlap, parse_network};
pub use model::netconf::{FamilyFile, NetConfError, NetConfFile, NetworkConfig};
pub use model::pool::NetworkPool;
#[cfg(feature = "etcd")]
pub use store::etcd;
#[cfg(feature = "kube")]
pub use store::kube;
pub use store::{
    Allocation, Answer, Class, DataPath, Entry, Listed, MemoryStore, Shown, Store, StoreConfig, StoreError,
    StoreEvent, StoredConfig, Subscription, Version, open,
};
