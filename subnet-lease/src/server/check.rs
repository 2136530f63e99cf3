//! What can be refused without looking at the store: etcd's limits and the shape of requests.

use std::collections::BTreeSet;

use etcd_client::proto::{PbDeleteRequest, PbPutRequest, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp};
use prost::Message;

use super::error::ApiError;
use super::key_range::KeyRange;
use super::limits::{OPS, OPS_IN_ALL, REQUEST};

/// Refuses a read or a delete that names no key.
pub(crate) fn key(key: &[u8]) -> Result<(), ApiError> {
    if key.is_empty() { Err(ApiError::EmptyKey) } else { Ok(()) }
}

pub(crate) fn put(request: &PbPutRequest) -> Result<(), ApiError> {
    shape_of_put(request)?;
    size(request)
}

pub(crate) fn delete(request: &PbDeleteRequest) -> Result<(), ApiError> {
    key(&request.key)?;
    size(request)
}

pub(crate) fn txn(request: &PbTxnRequest) -> Result<(), ApiError> {
    let mut in_all = OPS_IN_ALL;
    shape_of_txn(request, OPS, &mut in_all)?;
    writes(&request.success)?;
    writes(&request.failure)?;
    size(request)
}

fn size(request: &impl Message) -> Result<(), ApiError> {
    if request.encoded_len() > REQUEST { Err(ApiError::TooLarge) } else { Ok(()) }
}

fn shape_of_put(request: &PbPutRequest) -> Result<(), ApiError> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(ApiError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(ApiError::LeaseProvided);
    }
    Ok(())
}

/// Nested transactions share the limit: each level has what the one around it leaves.
/// All of them together share another one, or a few kilobytes would be a million operations.
fn shape_of_txn(request: &PbTxnRequest, limit: usize, in_all: &mut usize) -> Result<(), ApiError> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = limit.checked_sub(ops).ok_or(ApiError::TooManyOps)?;
    let all = request.compare.len() + request.success.len() + request.failure.len();
    *in_all = in_all.checked_sub(all).ok_or(ApiError::TooManyOps)?;
    for compare in &request.compare {
        key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(PbTxnOpRequest::RequestRange(range)) => key(&range.key)?,
            Some(PbTxnOpRequest::RequestPut(put)) => shape_of_put(put)?,
            Some(PbTxnOpRequest::RequestDeleteRange(range)) => key(&range.key)?,
            Some(PbTxnOpRequest::RequestTxn(nested)) => shape_of_txn(nested, left, in_all)?,
            None => {}
        }
    }
    Ok(())
}

#[derive(Default)]
struct Writes {
    puts: BTreeSet<Vec<u8>>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    /// Adds puts from one place; a key that is put or deleted already is refused.
    fn add(&mut self, puts: BTreeSet<Vec<u8>>) -> Result<(), ApiError> {
        let put_twice = puts.iter().any(|key| self.puts.contains(key));
        let deleted = self
            .deletes
            .iter()
            .filter_map(KeyRange::bounds)
            .any(|bounds| puts.range::<[u8], _>(bounds).next().is_some());
        if put_twice || deleted {
            return Err(ApiError::DuplicateKey);
        }
        self.puts.extend(puts);
        Ok(())
    }
}

/// Refuses a branch that could write one key twice. The two branches of a nested transaction exclude each other, so
/// they may put the same key; operations here are compared with both.
fn writes(ops: &[PbTxnRequestOp]) -> Result<Writes, ApiError> {
    let (mut all, mut nested, mut own_puts) = (Writes::default(), Vec::new(), BTreeSet::new());
    for op in ops {
        match &op.request {
            // etcd overlooks deletes without an upper end here: the key is put, then deleted, or the other way round.
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) if delete.range_end != [0] => {
                all.deletes.push(KeyRange::new(&delete.key, &delete.range_end));
            }
            Some(PbTxnOpRequest::RequestPut(put)) if !own_puts.insert(put.key.clone()) => {
                return Err(ApiError::DuplicateKey);
            }
            Some(PbTxnOpRequest::RequestTxn(txn)) => nested.push(txn),
            _ => {}
        }
    }
    for txn in nested {
        let (mut success, failure) = (writes(&txn.success)?, writes(&txn.failure)?);
        success.puts.extend(failure.puts);
        all.add(success.puts)?;
        all.deletes.extend(success.deletes.into_iter().chain(failure.deletes));
    }
    all.add(own_puts)?;
    Ok(all)
}

#[cfg(test)]
mod tests;
