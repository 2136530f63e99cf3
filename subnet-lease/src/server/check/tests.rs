use etcd_client::proto::PbCompare;

use super::*;

fn put_of(key: &str) -> PbTxnRequestOp {
    let put = PbPutRequest { key: key.into(), ..Default::default() };
    PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestPut(put)) }
}

fn delete_of(key: &str, end: &str) -> PbTxnRequestOp {
    let delete = PbDeleteRequest { key: key.into(), range_end: end.into(), ..Default::default() };
    PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestDeleteRange(delete)) }
}

fn nested(success: Vec<PbTxnRequestOp>, failure: Vec<PbTxnRequestOp>) -> PbTxnRequestOp {
    let txn = PbTxnRequest { success, failure, ..Default::default() };
    PbTxnRequestOp { request: Some(PbTxnOpRequest::RequestTxn(txn)) }
}

fn verdict(success: Vec<PbTxnRequestOp>) -> Result<(), ApiError> {
    txn(&PbTxnRequest { success, ..Default::default() })
}

#[test]
fn a_request_without_a_key_is_refused() {
    assert_eq!(put(&PbPutRequest::default()), Err(ApiError::EmptyKey));
    assert_eq!(verdict(vec![put_of("")]), Err(ApiError::EmptyKey));
    let compare = vec![PbCompare::default()];
    assert_eq!(txn(&PbTxnRequest { compare, ..Default::default() }), Err(ApiError::EmptyKey));
}

#[test]
fn what_is_ignored_may_not_be_given() {
    let given = PbPutRequest { key: b"a".into(), value: b"v".into(), lease: 7, ..Default::default() };
    let ignore_value = PbPutRequest { ignore_value: true, ..given.clone() };
    assert_eq!(put(&ignore_value), Err(ApiError::ValueProvided));
    assert_eq!(put(&PbPutRequest { ignore_lease: true, ..given }), Err(ApiError::LeaseProvided));
}

#[test]
fn a_write_over_the_size_limit_is_refused() {
    let sized = |size| PbPutRequest { key: b"a".into(), value: vec![0; size], ..Default::default() };
    assert_eq!(put(&sized(REQUEST - 100)), Ok(()));
    assert_eq!(put(&sized(REQUEST)), Err(ApiError::TooLarge));
}

#[test]
fn nested_transactions_share_the_limit_on_operations() {
    let puts = |count: usize| (0..count).map(|n| put_of(&n.to_string())).collect::<Vec<_>>();
    assert_eq!(verdict(puts(OPS)), Ok(()));
    assert_eq!(verdict(puts(OPS + 1)), Err(ApiError::TooManyOps));
    assert_eq!(verdict(vec![nested(puts(OPS - 1), vec![])]), Ok(()));
    assert_eq!(verdict(vec![nested(puts(OPS), vec![])]), Err(ApiError::TooManyOps));
}

#[test]
fn a_key_is_written_once_in_a_transaction() {
    let twice = Err(ApiError::DuplicateKey);
    assert_eq!(verdict(vec![put_of("a"), put_of("a")]), twice);
    assert_eq!(verdict(vec![put_of("b"), delete_of("a", "c")]), twice);
    assert_eq!(verdict(vec![put_of("c"), delete_of("a", "c")]), Ok(()));
    assert_eq!(verdict(vec![delete_of("a", "c"), delete_of("b", "")]), Ok(()));
    assert_eq!(verdict(vec![put_of("b"), delete_of("a", "\0")]), Ok(()));
    assert_eq!(verdict(vec![put_of("a"), nested(vec![], vec![put_of("a")])]), twice);
    assert_eq!(verdict(vec![nested(vec![put_of("a")], vec![put_of("a")])]), Ok(()));
    assert_eq!(verdict(vec![nested(vec![put_of("a")], vec![]), nested(vec![put_of("a")], vec![])]), twice);
    assert_eq!(verdict(vec![nested(vec![delete_of("a", "")], vec![]), put_of("a")]), twice);
}

#[test]
fn nested_transactions_share_another_limit_over_all_branches() {
    let wide = |count: usize| nested(vec![put_of("a"); 1], vec![PbTxnRequestOp { request: None }; count - 1]);
    let all =
        |each: usize, count: usize| PbTxnRequest { success: vec![wide(each); count], ..Default::default() };
    assert_eq!(shape_of_txn(&all(16, 60), OPS, &mut OPS_IN_ALL.clone()), Ok(()));
    assert_eq!(shape_of_txn(&all(16, 61), OPS, &mut OPS_IN_ALL.clone()), Err(ApiError::TooManyOps));
}
