//! Everything under the prefix, out of one store and into another: between the embedded server and an etcd.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::AT_ONCE;
use super::ascent::Ascent;
use super::session::{Dialer, Session, attached};
use crate::store::{Entry, StoreError};

/// Keys per transaction; etcd allows 128 steps.
const STEPS: usize = 100;

/// Keys per answer: of flannel's records far below any limit, of the largest values (1.5 MiB) just below ours.
const PAGE: i64 = 40;

/// All there is, at one revision, in the order of keys.
pub(super) async fn export(dialer: &Dialer) -> Result<Vec<Entry>, StoreError> {
    let (start, end) = dialer.keys.all();
    let options = |limit| GetOptions::new().with_range(end.clone()).with_limit(limit);
    let (mut session, first) = dialer.reach(|s| Box::pin(s.get(start.clone(), Some(options(PAGE))))).await?;
    let revision = first.header().map_or(0, |header| header.revision());
    let (mut entries, mut page, mut ascent) = (Vec::new(), first, Ascent::default());
    loop {
        for kv in page.kvs() {
            let key = kv.key().strip_prefix(start.as_bytes()).unwrap_or_else(|| kv.key());
            let key = String::from_utf8(key.to_vec())
                .map_err(|_| StoreError::Unsupported(format!("{start}: a key that is not UTF-8")))?;
            entries.push((Entry { key, value: kv.value().to_vec(), ttl: None }, kv.lease()));
        }
        let Some(from) = ascent.page(&page)? else { break };
        page = session.get(from, Some(options(PAGE).with_revision(revision))).await?;
    }
    let timed = entries.into_iter().map(|(entry, lease)| with_time(session.clone(), entry, lease));
    let timed: Vec<_> = stream::iter(timed).buffered(AT_ONCE).try_collect().await?;
    Ok(timed.into_iter().flatten().collect())
}

/// An entry with the time it has left; none if that is over.
async fn with_time(mut session: Session, entry: Entry, lease: i64) -> Result<Option<Entry>, StoreError> {
    if lease == 0 {
        return Ok(Some(entry));
    }
    let left = session.time_left(lease).await?;
    Ok(left.map(|left| Entry { ttl: Some(left), ..entry }))
}

/// Writes all of it, a hundred keys in one step. Without `replace` a key that is there stops it at that step, with
/// nothing of the step done: `Raced` names the first key of it.
pub(super) async fn import(dialer: &Dialer, entries: &[Entry], replace: bool) -> Result<(), StoreError> {
    let probe = || Some(GetOptions::new().with_count_only());
    let (session, _) = dialer.reach(|s| Box::pin(s.get(dialer.keys.config(), probe()))).await?;
    for some in entries.chunks(STEPS) {
        let ttls: Vec<Option<Duration>> = some.iter().map(|entry| entry.ttl).collect();
        let leased = ttls.into_iter().map(|ttl| {
            let mut session = session.clone();
            async move {
                match ttl {
                    Some(ttl) => session.grant(ttl).await.map(|(id, _)| id),
                    None => Ok(0),
                }
            }
        });
        let leases: Vec<i64> = stream::iter(leased).buffered(AT_ONCE).try_collect().await?;
        let key = |entry: &Entry| format!("{}{}", dialer.keys.all().0, entry.key);
        let absent: Vec<_> =
            some.iter().filter(|_| !replace).map(|e| Compare::version(key(e), CompareOp::Equal, 0)).collect();
        let puts =
            some.iter().zip(&leases).map(|(e, lease)| TxnOp::put(key(e), e.value.clone(), attached(*lease)));
        let step = Txn::new().when(absent).and_then(puts.collect::<Vec<_>>());
        let mut writer = session.clone();
        let written = writer.swap(&key(&some[0]), step).await;
        if written.is_err() {
            for lease in leases.into_iter().filter(|lease| *lease != 0) {
                writer.revoke(lease).await;
            }
        }
        written?;
    }
    Ok(())
}
