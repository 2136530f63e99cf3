use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use super::listing::{self, Held, Listing};
use super::session::{Dialer, Session, attached};
use crate::admit::claim::Claim;
use crate::model::lease::{Lease, OwnLease};
use crate::model::net::Subnets;
use crate::store::StoreError;

/// Races lost, or connections, before the caller hears of it. Each lost race is somebody else's success, and the next
/// choice avoids what that one took.
const ATTEMPTS: usize = 10;

/// Acquires, republishes or renews.
pub(super) async fn claim(dialer: &Dialer, claim: &Claim) -> Result<OwnLease, StoreError> {
    dialer.stands_at(claim.public);
    let (mut session, mut listing) = dialer.reach(|s| Box::pin(listing::read(s))).await?;
    let mut outcome = Err(StoreError::Raced("every free subnet".into()));
    for attempts_left in (0..ATTEMPTS).rev() {
        outcome = attempt(&mut session, claim, &listing).await;
        match &outcome {
            _ if attempts_left == 0 => {}
            Err(StoreError::Raced(key)) => {
                tracing::debug!(key, "somebody else wrote first, choosing again");
                listing = listing::read(&mut session).await?;
            }
            // A write whose answer was lost is found by the next list, being ours.
            Err(StoreError::Unreachable(_)) => {
                (session, listing) = dialer.reach(|s| Box::pin(listing::read(s))).await?
            }
            _ => break,
        }
    }
    outcome
}

async fn attempt(session: &mut Session, claim: &Claim, listing: &Listing) -> Result<OwnLease, StoreError> {
    let unknown: Vec<Subnets> = listing.unknown.iter().filter_map(|unknown| unknown.subnets).collect();
    let choice = claim.choose(listing.leases.iter().map(|held| &held.lease), &unknown)?;
    let own = choice.own.and_then(|own| listing.leases.iter().find(|held| held.lease.subnets == own));
    match own {
        Some(held) if held.lease.subnets == choice.subnets => renew(session, claim, held).await,
        own => acquire(session, claim, choice.subnets, own, listing.revision).await,
    }
}

/// Keeps what is ours. The key may have become somebody else's since it was read, so a write names the revision that was
/// read, and a keep-alive the etcd lease that hung on it.
async fn renew(session: &mut Session, claim: &Claim, held: &Held) -> Result<OwnLease, StoreError> {
    let key = session.keys().lease(&held.lease.subnets);
    let mut lease = claim.lease(held.lease.subnets, Some(&held.lease));
    lease.epoch = held.lease.epoch;
    let mut etcd_lease = held.etcd_lease;
    if etcd_lease != 0 {
        let left = session.keep_alive(etcd_lease).await?.ok_or_else(|| StoreError::Raced(key.clone()))?;
        lease.ttl = Some(left);
        // Granted for less than is configured now.
        if left < session.ttl {
            let (id, granted) = session.grant(session.ttl).await?;
            (etcd_lease, lease.ttl) = (id, Some(granted));
        }
    }
    if etcd_lease != held.etcd_lease || !held.lease.says_the_same(&lease) {
        let unchanged = Compare::mod_revision(key.clone(), CompareOp::Equal, held.mod_revision);
        let write = TxnOp::put(key.clone(), lease.to_record(), attached(etcd_lease));
        let swapped = session.swap(&key, Txn::new().when([unchanged]).and_then([write])).await;
        if swapped.is_err() && etcd_lease != held.etcd_lease {
            session.revoke(etcd_lease).await;
        }
        swapped?;
    }
    Ok(OwnLease { expires_in: lease.ttl, lease })
}

/// Takes a key that is not there, giving up `old` in the same step.
async fn acquire(
    session: &mut Session,
    claim: &Claim,
    subnets: Subnets,
    old: Option<&Held>,
    seen: i64,
) -> Result<OwnLease, StoreError> {
    let key = session.keys().lease(&subnets);
    let mut lease = claim.lease(subnets, old.map(|old| &old.lease));
    let mut etcd_lease = 0;
    // What an operator reserved stays reserved when the network's shape moves it.
    if old.is_none_or(|old| old.etcd_lease != 0) {
        let (id, granted) = session.grant(session.ttl).await?;
        (etcd_lease, lease.ttl) = (id, Some(granted));
    }
    let mut conditions = vec![Compare::version(key.clone(), CompareOp::Equal, 0)];
    let mut writes = vec![TxnOp::put(key.clone(), lease.to_record(), attached(etcd_lease))];
    if let Some(old) = old {
        let old_key = session.keys().lease(&old.lease.subnets);
        conditions.push(Compare::mod_revision(old_key.clone(), CompareOp::Equal, old.mod_revision));
        writes.push(TxnOp::delete(old_key, None));
    }
    let outcome = match session.swap(&key, Txn::new().when(conditions).and_then(writes)).await {
        Ok(revision) => {
            lease.epoch = u64::try_from(revision).unwrap_or(0);
            give_way(session, claim, &lease, seen, revision).await
        }
        Err(error) => Err(error),
    };
    if matches!(outcome, Err(StoreError::Raced(_))) && etcd_lease != 0 {
        session.revoke(etcd_lease).await;
    }
    outcome.map(|()| OwnLease { expires_in: lease.ttl, lease })
}

/// The comparison guards one key; but another key, written since the list was read, may hold one of our two families, or a
/// longer or shorter subnet. So everybody looks again after writing, and of two that overlap the later one goes: both see
/// both, since each looks after it wrote, and the revision of the write is an order that both see alike. Peers judge by
/// the same order.
async fn give_way(
    session: &mut Session,
    claim: &Claim,
    lease: &Lease,
    seen: i64,
    written: i64,
) -> Result<(), StoreError> {
    let others = listing::written_since(session, seen).await?;
    let ahead =
        |(other, epoch): &(Subnets, u64)| *epoch < lease.epoch && claim.contends(other, &lease.subnets);
    if !others.iter().any(ahead) {
        return Ok(());
    }
    let key = session.keys().lease(&lease.subnets);
    let still_ours = Compare::mod_revision(key.clone(), CompareOp::Equal, written);
    session.swap(&key, Txn::new().when([still_ours]).and_then([TxnOp::delete(key.clone(), None)])).await?;
    Err(StoreError::Raced(key))
}
