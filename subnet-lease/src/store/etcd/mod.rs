//! Leases in etcd (v3 API, 3.4 and newer), in flannel's keys and values.
//!
//! ```text
//!   <prefix>/config                   the net-conf
//!   <prefix>/subnets/10.5.52.0-24     a lease, attached to an etcd lease of 24 h; without one it is a reservation
//!
//!   claim:  list ──▶ choose (pure) ──▶ compare-and-swap ──▶ new key: list again, the earlier of two that overlap stays
//!             ▲                              │ somebody was faster
//!             └──────────────────────────────┘
//!   watch:  list at one revision ──▶ watch from the next one ──▶ events; a gap leads back to the list
//! ```
//!
//! Nothing is kept between calls but the endpoint that answered last: certificates and passwords are read anew for every
//! connection, and a connection is to one endpoint, since the client's own balancer goes on using dead ones.

mod claiming;
mod config;
mod copy;
mod follow;
mod keys;
mod listing;
mod operating;
mod session;
mod told;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use futures::stream::{self, StreamExt};
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;

pub use config::EtcdConfig;
pub use copy::Entry;
pub use operating::Shown;
use session::Dialer;

use crate::admit::claim::Claim;
use crate::model::lease::{Lease, OwnLease};
use crate::model::net::Subnets;
use crate::store::{Store, StoreError, StoreEvent};

/// The store in an etcd. Clones share the choice of endpoint.
#[derive(Clone, Debug)]
pub struct EtcdStore {
    dialer: Arc<Dialer>,
}

/// Questions for a lease's time that are under way together.
const AT_ONCE: usize = 32;

/// A net-conf as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredConfig {
    /// The JSON, not looked at.
    pub json: Vec<u8>,
    /// When it was last written, in etcd's count of changes.
    pub revision: i64,
}

impl EtcdStore {
    /// Checks the configuration and returns at once; connections are made when needed, so a server that is down is no error
    /// here. A wrong setting is one that names flag and value.
    pub fn connect(config: EtcdConfig) -> Result<Self, StoreError> {
        Ok(Self { dialer: Arc::new(Dialer::new(config)?) })
    }

    /// Over a simulated wire; everything random follows from the seed.
    #[cfg(all(test, feature = "server"))]
    #[allow(clippy::unwrap_used, reason = "a step that fails fails its test")]
    pub(crate) fn simulated(config: EtcdConfig, wire: crate::simulation::Wire, seed: u64) -> Self {
        let mut dialer = Dialer::new(config).unwrap();
        (dialer.wire, dialer.seed) = (Some(wire), seed);
        Self { dialer: Arc::new(dialer) }
    }

    /// The net-conf; `None` where there is none yet.
    pub async fn get_config(&self) -> Result<Option<StoredConfig>, StoreError> {
        let key = self.dialer.keys.config();
        let (_, found) = self.dialer.reach(|s| Box::pin(s.get(key.clone(), None))).await?;
        Ok(found
            .kvs()
            .first()
            .map(|kv| StoredConfig { json: kv.value().to_vec(), revision: kv.mod_revision() }))
    }

    /// Writes the net-conf if it still has the revision that the writer saw (`None`: there was none). The JSON is not
    /// checked here. Returns the new revision; `Raced` if somebody else wrote meanwhile.
    pub async fn put_config(&self, json: &[u8], seen: Option<i64>) -> Result<i64, StoreError> {
        let key = self.dialer.keys.config();
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, seen.unwrap_or(0));
        let write = TxnOp::put(key.clone(), json, None);
        let swap = Txn::new().when([unchanged]).and_then([write]);
        // Not tried at another endpoint: the first one may have done it, and only its answer was lost.
        let (mut session, _) = self.dialer.reach(|s| Box::pin(s.get(key.clone(), None))).await?;
        session.swap(&key, swap).await
    }

    /// All leases with the time each has left (`None` for reservations, and where the server did not say), and what could
    /// not be read: key and reason.
    #[allow(clippy::type_complexity, reason = "two lists, named in the line above")]
    pub async fn list(&self) -> Result<(Vec<(Lease, Option<Duration>)>, Vec<(String, String)>), StoreError> {
        let (session, listing) = self.dialer.reach(|s| Box::pin(listing::read(s))).await?;
        let unreadable = listing.unreadable();
        let timed = listing.leases.into_iter().map(|held| {
            let mut session = session.clone();
            async move {
                let ends = held.etcd_lease != 0;
                let left = if ends { session.time_left(held.etcd_lease).await.ok().flatten() } else { None };
                (held.lease, left)
            }
        });
        let leases = stream::iter(timed).buffered(AT_ONCE).collect().await;
        Ok((leases, unreadable))
    }
}

impl EtcdStore {
    /// One lease with what the store knows of its time; `None` where there is no such key.
    pub async fn show(&self, subnets: &Subnets) -> Result<Option<Shown>, StoreError> {
        operating::show(&self.dialer, subnets).await
    }

    /// Ends a lease or reservation, whoever holds it, if it is still as it was shown; `Raced` otherwise.
    pub async fn end(&self, shown: &Shown) -> Result<(), StoreError> {
        operating::end(&self.dialer, shown).await
    }

    /// Writes a key that never ends: new, or in place of one that is as it was shown.
    pub async fn reserve(&self, lease: &Lease, shown: Option<&Shown>) -> Result<(), StoreError> {
        operating::reserve(&self.dialer, lease, shown).await
    }

    /// Everything under the prefix, at one revision, with the time each key has left.
    pub async fn export(&self) -> Result<Vec<Entry>, StoreError> {
        copy::export(&self.dialer).await
    }

    /// Writes what was exported, a hundred keys in one step. Unless it may `replace`, a key that is there already stops
    /// it, and nothing of that step is done.
    pub async fn import(&self, entries: &[Entry], replace: bool) -> Result<(), StoreError> {
        copy::import(&self.dialer, entries, replace).await
    }
}

impl Store for EtcdStore {
    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<OwnLease, StoreError>> {
        Box::pin(claiming::claim(&self.dialer, claim))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(operating::release(&self.dialer, lease))
    }

    fn watch(&self) -> BoxStream<'static, StoreEvent> {
        follow::follow(Arc::clone(&self.dialer))
    }
}
