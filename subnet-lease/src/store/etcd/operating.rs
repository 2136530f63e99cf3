//! What an operator does to single leases, and a host to its own.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::listing::{self, Held};
use super::session::{Dialer, Session};
use crate::model::lease::Lease;
use crate::model::net::Subnets;
use crate::store::StoreError;

/// A lease as the store has it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The lease.
    pub lease: Lease,
    /// The record itself.
    pub record: Vec<u8>,
    /// For how long it was granted and how much is left; `None` for a reservation.
    pub time: Option<(Duration, Duration)>,
    revision: i64,
    etcd_lease: i64,
}

async fn find(session: &mut Session, subnets: Subnets) -> Result<Option<(Held, Vec<u8>)>, StoreError> {
    let key = session.keys().lease(&subnets);
    let answer = session.get(key, None).await?;
    let Some(kv) = answer.kvs().first() else { return Ok(None) };
    let held = listing::read_lease(&subnets.to_string(), kv, session.ttl);
    let held = held.map_err(|unknown| StoreError::Config(format!("{}: {}", unknown.name, unknown.reason)))?;
    Ok(Some((held, kv.value().to_vec())))
}

pub(super) async fn show(dialer: &Dialer, subnets: &Subnets) -> Result<Option<Shown>, StoreError> {
    let subnets = *subnets;
    let (mut session, found) = dialer.reach(|s| Box::pin(find(s, subnets))).await?;
    let Some((Held { lease, mod_revision, etcd_lease }, record)) = found else { return Ok(None) };
    let time = if etcd_lease == 0 { None } else { session.times(etcd_lease).await? };
    Ok(Some(Shown { lease, record, time, revision: mod_revision, etcd_lease }))
}

/// The key goes only as it was read: its holder may have written it anew meanwhile.
async fn delete(
    session: &mut Session,
    held: &Lease,
    revision: i64,
    etcd_lease: i64,
) -> Result<(), StoreError> {
    let key = session.keys().lease(&held.subnets);
    let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, revision);
    session.swap(&key, Txn::new().when([unchanged]).and_then([TxnOp::delete(key.clone(), None)])).await?;
    if etcd_lease != 0 {
        session.revoke(etcd_lease).await;
    }
    Ok(())
}

pub(super) async fn end(dialer: &Dialer, shown: &Shown) -> Result<(), StoreError> {
    let subnets = shown.lease.subnets;
    let (mut session, _) = dialer.reach(|s| Box::pin(find(s, subnets))).await?;
    delete(&mut session, &shown.lease, shown.revision, shown.etcd_lease).await
}

pub(super) async fn release(dialer: &Dialer, lease: &Lease) -> Result<bool, StoreError> {
    let subnets = lease.subnets;
    let (mut session, found) = dialer.reach(|s| Box::pin(find(s, subnets))).await?;
    let Some((held, _)) = found.filter(|(held, _)| held.etcd_lease != 0 && held.lease.is_of(lease)) else {
        return Ok(false);
    };
    delete(&mut session, &held.lease, held.mod_revision, held.etcd_lease).await?;
    Ok(true)
}

pub(super) async fn reserve(dialer: &Dialer, lease: &Lease, shown: Option<&Shown>) -> Result<(), StoreError> {
    let subnets = lease.subnets;
    let (mut session, _) = dialer.reach(|s| Box::pin(find(s, subnets))).await?;
    let key = session.keys().lease(&lease.subnets);
    let unchanged = match shown {
        Some(shown) => Compare::mod_revision(key.clone(), CompareOp::Equal, shown.revision),
        None => Compare::version(key.clone(), CompareOp::Equal, 0),
    };
    let write = TxnOp::put(key.clone(), lease.to_record(), None);
    session.swap(&key, Txn::new().when([unchanged]).and_then([write])).await?;
    if let Some(shown) = shown.filter(|shown| shown.etcd_lease != 0) {
        session.revoke(shown.etcd_lease).await;
    }
    Ok(())
}
