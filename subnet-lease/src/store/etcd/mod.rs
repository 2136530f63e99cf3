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

mod ascent;
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

use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp};
use futures::stream::{self, StreamExt};
use futures_core::stream::BoxStream;

pub use config::EtcdConfig;
use session::Dialer;

use crate::admit::claim::Claim;
use crate::model::lease::{Lease, OwnLease};
use crate::model::net::Subnets;
use crate::store::{Answer, Entry, Listed, Shown, Store, StoreError, StoreEvent, StoredConfig, Version};

/// The store in an etcd. Clones share the choice of endpoint.
#[derive(Clone, Debug)]
pub struct EtcdStore {
    dialer: Arc<Dialer>,
}

/// Questions for a lease's time that are under way together.
const AT_ONCE: usize = 32;

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

    async fn read_config(&self) -> Result<Option<StoredConfig>, StoreError> {
        let key = self.dialer.keys.config();
        let (_, found) = self.dialer.reach(|s| Box::pin(s.get(key.clone(), None))).await?;
        let stored = |kv: &KeyValue| StoredConfig {
            json: kv.value().to_vec(),
            version: operating::version(kv.mod_revision()),
        };
        Ok(found.kvs().first().map(stored))
    }

    async fn write_config(&self, json: &[u8], seen: Option<&Version>) -> Result<Version, StoreError> {
        let key = self.dialer.keys.config();
        let wrong = |_| StoreError::Config(format!("{key}: not a revision of this store"));
        let revision = seen.map_or(Ok(0), |seen| seen.0.parse::<i64>()).map_err(wrong)?;
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, revision);
        let write = TxnOp::put(key.clone(), json, None);
        let swap = Txn::new().when([unchanged]).and_then([write]);
        // Not tried at another endpoint: the first one may have done it, and only its answer was lost.
        let (mut session, _) = self.dialer.reach(|s| Box::pin(s.get(key.clone(), None))).await?;
        Ok(operating::version(session.swap(&key, swap).await?))
    }

    async fn read_all(&self) -> Result<Listed, StoreError> {
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
        Ok(Listed { leases, unreadable })
    }
}

impl Store for EtcdStore {
    fn claim<'a>(&'a self, claim: &'a Claim) -> Answer<'a, OwnLease> {
        Box::pin(claiming::claim(&self.dialer, claim))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> Answer<'a, bool> {
        Box::pin(operating::release(&self.dialer, lease))
    }

    fn watch(&self) -> BoxStream<'static, StoreEvent> {
        follow::follow(Arc::clone(&self.dialer))
    }

    fn name(&self) -> String {
        self.dialer.config.prefix.clone()
    }

    fn get_config(&self) -> Answer<'_, Option<StoredConfig>> {
        Box::pin(self.read_config())
    }

    fn put_config<'a>(&'a self, json: &'a [u8], seen: Option<&'a Version>) -> Answer<'a, Version> {
        Box::pin(self.write_config(json, seen))
    }

    fn list(&self) -> Answer<'_, Listed> {
        Box::pin(self.read_all())
    }

    fn show<'a>(&'a self, subnets: &'a Subnets) -> Answer<'a, Option<Shown>> {
        Box::pin(operating::show(&self.dialer, subnets))
    }

    fn reserve<'a>(&'a self, lease: &'a Lease, shown: Option<&'a Shown>) -> Answer<'a, ()> {
        Box::pin(operating::reserve(&self.dialer, lease, shown))
    }

    fn unreserve<'a>(&'a self, shown: &'a Shown) -> Answer<'a, ()> {
        Box::pin(operating::unreserve(&self.dialer, shown))
    }

    fn end<'a>(&'a self, shown: &'a Shown) -> Answer<'a, ()> {
        Box::pin(operating::end(&self.dialer, shown))
    }

    fn export(&self) -> Answer<'_, Vec<Entry>> {
        Box::pin(copy::export(&self.dialer))
    }

    fn import<'a>(&'a self, entries: &'a [Entry], replace: bool) -> Answer<'a, ()> {
        Box::pin(copy::import(&self.dialer, entries, replace))
    }
}
