use std::time::Duration;

use etcd_client::{GetOptions, GetResponse, KeyValue, ResponseHeader};

use super::ascent::Ascent;
use super::session::Session;
use crate::model::lease::Lease;
use crate::model::net::Subnets;
use crate::store::{StoreError, StoreEvent};

/// Keys per answer: flannel's records have 250 bytes, so a page is far below any limit.
const PAGE: i64 = 1000;

/// Everything there is, at one revision.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) config: Option<Vec<u8>>,
    /// When the net-conf was last written.
    pub(super) config_revision: i64,
    pub(super) leases: Vec<Held>,
    pub(super) unknown: Vec<Unknown>,
    pub(super) revision: i64,
    pub(super) cluster: u64,
    /// Unreadable keys that are not named one by one.
    unnamed: usize,
    ascent: Ascent,
}

/// Unreadable keys that are named, and as much of their names. Ours: whoever reads about a thousand has read enough.
const NAMED: usize = 1000;
const NAME: usize = 200;

/// A lease with what a compare-and-swap needs.
pub(super) struct Held {
    pub(super) lease: Lease,
    pub(super) mod_revision: i64,
    pub(super) etcd_lease: i64,
}

/// A key that is there and cannot be read.
pub(super) struct Unknown {
    pub(super) name: String,
    pub(super) reason: String,
    /// Whom or what it keeps from being leased, where at least the key can be read.
    pub(super) subnets: Option<Subnets>,
}

impl Listing {
    pub(super) fn unreadable(&self) -> Vec<(String, String)> {
        let named = self.unknown.iter().map(|unknown| (unknown.name.clone(), unknown.reason.clone()));
        let rest =
            (self.unnamed > 0).then(|| ("…".to_owned(), format!("{} more keys can't be read", self.unnamed)));
        named.chain(rest).collect()
    }

    /// Notes a key that cannot be read. Those that are no subnets keep nothing from anybody, so a number will do for many.
    fn note_unknown(&mut self, unknown: Unknown) {
        if unknown.subnets.is_none() && self.unknown.len() >= NAMED {
            self.unnamed += 1;
        } else {
            self.unknown.push(unknown);
        }
    }

    pub(super) fn into_snapshot(self, foreign: bool) -> StoreEvent {
        let unreadable = self.unreadable();
        let leases = self.leases.into_iter().map(|held| held.lease).collect();
        StoreEvent::Snapshot { leases, unreadable, foreign }
    }

    /// Adds a page. Returns the key to go on with.
    fn take(&mut self, session: &Session, page: &GetResponse) -> Result<Option<Vec<u8>>, StoreError> {
        let next = self.ascent.page(page)?;
        for kv in page.kvs() {
            let Some(name) = session.keys().name(kv.key()) else { continue };
            match read_lease(&name, kv, session.ttl) {
                Ok(held) => self.leases.push(held),
                Err(unknown) => self.note_unknown(unknown),
            }
        }
        Ok(next)
    }

    /// The first answer decides at which revision all are read.
    fn note(&mut self, header: Option<&ResponseHeader>) {
        if let Some(header) = header.filter(|_| self.revision == 0) {
            (self.revision, self.cluster) = (header.revision(), header.cluster_id());
        }
    }

    fn take_config(&mut self, answer: &GetResponse) {
        let kv = answer.kvs().first();
        self.config = kv.map(|kv| kv.value().to_vec());
        self.config_revision = kv.map_or(0, KeyValue::mod_revision);
    }
}

/// A key and value as a lease. `ttl` is what a key with an etcd lease was presumably granted: asking would be one
/// request per key.
pub(super) fn read_lease(name: &str, kv: &KeyValue, ttl: Duration) -> Result<Held, Unknown> {
    let epoch = u64::try_from(kv.create_revision()).unwrap_or(0);
    let ttl = (kv.lease() != 0).then_some(ttl);
    match Lease::from_record(name, kv.value()) {
        Ok(lease) => {
            let lease = Lease { ttl, epoch, ..lease };
            Ok(Held { lease, mod_revision: kv.mod_revision(), etcd_lease: kv.lease() })
        }
        Err(error) => {
            Err(Unknown { name: shortened(name), reason: error.to_string(), subnets: name.parse().ok() })
        }
    }
}

/// A key as it is named: somebody may write one of a megabyte.
pub(super) fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}… ({} bytes)", &name[..end], name.len()),
        None => name.to_owned(),
    }
}

/// Reads the net-conf and all leases at one revision: one request, and one more for each further thousand leases.
pub(super) async fn read(session: &mut Session) -> Result<Listing, StoreError> {
    let mut listing = Listing::default();
    let (keys, mut limit) = (session.keys().clone(), PAGE);
    let leases = GetOptions::new().with_range(keys.subnets_end()).with_limit(limit);
    let mut next = match session.get_both(keys.config(), keys.subnets(), leases).await {
        Ok((header, config, page)) => {
            listing.note(header.as_ref());
            listing.take_config(&config);
            listing.take(session, &page)?
        }
        Err(error) if too_large(&error) => {
            let config = session.get(keys.config(), None).await?;
            listing.note(config.header());
            listing.take_config(&config);
            limit /= 2;
            Some(keys.subnets().into_bytes())
        }
        Err(error) => return Err(error),
    };
    while let Some(from) = next.take() {
        match page(session, &from, listing.revision, limit, false).await {
            Ok(page) => {
                next = listing.take(session, &page)?;
                limit = (limit * 2).min(PAGE);
            }
            Err(error) if !too_large(&error) => return Err(error),
            Err(_) if limit > 1 => {
                limit /= 2;
                next = Some(from);
            }
            Err(error) => next = skip_one(session, &from, &mut listing, &error).await?,
        }
    }
    Ok(listing)
}

/// Every lease key written since a revision: subnets and place in the order of creation. Values are not asked for.
pub(super) async fn written_since(
    session: &mut Session,
    revision: i64,
) -> Result<Vec<(Subnets, u64)>, StoreError> {
    let keys = session.keys().clone();
    let options = GetOptions::new().with_range(keys.subnets_end());
    let options = options.with_keys_only().with_min_mod_revision(revision.saturating_add(1));
    let answer = session.get(keys.subnets(), Some(options)).await?;
    let read = answer.kvs().iter().filter_map(|kv| {
        let subnets = keys.name(kv.key())?.parse().ok()?;
        Some((subnets, u64::try_from(kv.create_revision()).unwrap_or(0)))
    });
    Ok(read.collect())
}

async fn page(
    session: &mut Session,
    from: &[u8],
    revision: i64,
    limit: i64,
    keys_only: bool,
) -> Result<GetResponse, StoreError> {
    let end = session.keys().subnets_end();
    let mut options = GetOptions::new().with_range(end).with_limit(limit).with_revision(revision);
    if keys_only {
        options = options.with_keys_only();
    }
    session.get(from, Some(options)).await
}

/// Notes a key whose value alone is too large to be read. Returns the key to go on with.
async fn skip_one(
    session: &mut Session,
    from: &[u8],
    listing: &mut Listing,
    error: &StoreError,
) -> Result<Option<Vec<u8>>, StoreError> {
    let page = page(session, from, listing.revision, 1, true).await?;
    for kv in page.kvs() {
        let name = session.keys().name(kv.key()).unwrap_or_default();
        let subnets = name.parse().ok();
        listing.note_unknown(Unknown { name: shortened(&name), reason: error.to_string(), subnets });
    }
    listing.ascent.page(&page)
}

/// The words of the gRPC libraries for an answer above our limit, or the server's.
pub(super) fn too_large(error: &StoreError) -> bool {
    let words = ["message length too large", "message larger than max"];
    matches!(error, StoreError::Failing(text) if words.iter().any(|words| text.contains(words)))
}
