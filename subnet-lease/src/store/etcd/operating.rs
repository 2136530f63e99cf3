//! What an operator does to single leases, and a host to its own.

use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::listing::{self, Held};
use super::session::{Dialer, Session, attached};
use crate::model::lease::Lease;
use crate::model::net::Subnets;
use crate::store::{Shown, StoreError, Version};

async fn find(session: &mut Session, subnets: Subnets) -> Result<Option<(Held, Vec<u8>)>, StoreError> {
    let key = session.keys().lease(&subnets);
    let answer = session.get(key, None).await?;
    let Some(kv) = answer.kvs().first() else { return Ok(None) };
    let held = listing::read_lease(&subnets.to_string(), kv, session.ttl);
    let held = held.map_err(|unknown| StoreError::Config(format!("{}: {}", unknown.name, unknown.reason)))?;
    Ok(Some((held, kv.value().to_vec())))
}

/// What was shown, as it is in the store now; `Raced` if somebody wrote it meanwhile.
async fn find_again(dialer: &Dialer, shown: &Shown) -> Result<(Session, Held), StoreError> {
    let subnets = shown.lease.subnets;
    let (session, found) = dialer.reach(|s| Box::pin(find(s, subnets))).await?;
    match found {
        Some((held, _)) if version(held.mod_revision) == shown.version => Ok((session, held)),
        _ => Err(StoreError::Raced(session.keys().lease(&subnets))),
    }
}

pub(super) fn version(revision: i64) -> Version {
    Version(revision.to_string())
}

pub(super) async fn show(dialer: &Dialer, subnets: &Subnets) -> Result<Option<Shown>, StoreError> {
    let subnets = *subnets;
    let (mut session, found) = dialer.reach(|s| Box::pin(find(s, subnets))).await?;
    let Some((Held { lease, mod_revision, etcd_lease }, record)) = found else { return Ok(None) };
    let time = if etcd_lease == 0 { None } else { session.times(etcd_lease).await? };
    Ok(Some(Shown { lease, record, time, version: version(mod_revision) }))
}

/// The key goes only as it was read: its holder may have written it anew meanwhile.
async fn delete(session: &mut Session, held: &Held) -> Result<(), StoreError> {
    let key = session.keys().lease(&held.lease.subnets);
    write(session, held, TxnOp::delete(key, None)).await?;
    if held.etcd_lease != 0 {
        session.revoke(held.etcd_lease).await;
    }
    Ok(())
}

/// One step on a key that is as it was read.
async fn write(session: &mut Session, held: &Held, step: TxnOp) -> Result<(), StoreError> {
    let key = session.keys().lease(&held.lease.subnets);
    let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, held.mod_revision);
    session.swap(&key, Txn::new().when([unchanged]).and_then([step])).await.map(drop)
}

pub(super) async fn end(dialer: &Dialer, shown: &Shown) -> Result<(), StoreError> {
    let (mut session, held) = find_again(dialer, shown).await?;
    delete(&mut session, &held).await
}

pub(super) async fn release(dialer: &Dialer, lease: &Lease) -> Result<bool, StoreError> {
    let subnets = lease.subnets;
    let (mut session, found) = dialer.reach(|s| Box::pin(find(s, subnets))).await?;
    let Some((held, _)) = found.filter(|(held, _)| held.etcd_lease != 0 && held.lease.is_of(lease)) else {
        return Ok(false);
    };
    delete(&mut session, &held).await?;
    Ok(true)
}

pub(super) async fn reserve(dialer: &Dialer, lease: &Lease, shown: Option<&Shown>) -> Result<(), StoreError> {
    let subnets = lease.subnets;
    let put = |key: String| TxnOp::put(key, lease.to_record(), None);
    let Some(shown) = shown else {
        let (mut session, _) = dialer.reach(|s| Box::pin(find(s, subnets))).await?;
        let key = session.keys().lease(&subnets);
        let absent = Compare::version(key.clone(), CompareOp::Equal, 0);
        return session.swap(&key, Txn::new().when([absent]).and_then([put(key.clone())])).await.map(drop);
    };
    let (mut session, held) = find_again(dialer, shown).await?;
    let key = session.keys().lease(&subnets);
    write(&mut session, &held, put(key)).await?;
    if held.etcd_lease != 0 {
        session.revoke(held.etcd_lease).await;
    }
    Ok(())
}

pub(super) async fn unreserve(dialer: &Dialer, shown: &Shown) -> Result<(), StoreError> {
    let (mut session, held) = find_again(dialer, shown).await?;
    if held.etcd_lease != 0 {
        return Ok(());
    }
    let (etcd_lease, _) = session.grant(session.ttl).await?;
    let key = session.keys().lease(&held.lease.subnets);
    let written = write(&mut session, &held, TxnOp::put(key, &*shown.record, attached(etcd_lease))).await;
    if written.is_err() {
        session.revoke(etcd_lease).await;
    }
    written
}
