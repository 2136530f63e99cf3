//! Transactions: compare, choose a branch, run it at one revision.
//!
//! All comparisons, those of nested transactions too, are made against the state before the first write; then the
//! chosen branches are checked as a whole; then they run and cannot fail any more.

use std::cmp::Ordering;

use etcd_client::proto::{
    PbCompare, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp,
    PbTxnResponse,
};

use super::error::ApiError;
use super::key_range::KeyRange;
use super::limits::COMPARED;
use super::mvcc::Version;
use super::state::{State, bare_header};

impl State {
    pub(crate) fn txn(&mut self, request: PbTxnRequest) -> Result<PbTxnResponse, ApiError> {
        self.comparable.set(COMPARED);
        let chosen = self.choose(request)?;
        self.check_branch(&chosen)?;
        if chosen.grows() {
            self.check_space()?;
        }
        // What the answers take is counted. Making them cannot fail.
        self.counted.set(true);
        let answer = self.run(chosen);
        self.counted.set(false);
        let answer = answer?;
        self.mvcc.seal();
        Ok(PbTxnResponse { header: Some(self.header()), ..answer })
    }

    fn choose(&self, request: PbTxnRequest) -> Result<Chosen, ApiError> {
        let mut succeeded = true;
        for compare in &request.compare {
            succeeded = succeeded && self.holds(compare)?;
        }
        let ops = if succeeded { request.success } else { request.failure };
        let steps = ops
            .into_iter()
            .map(|PbTxnRequestOp { request }| match request {
                Some(PbTxnOpRequest::RequestTxn(nested)) => Ok(Step::Nested(self.choose(nested)?)),
                other => Ok(Step::Op(other)),
            })
            .collect::<Result<_, ApiError>>()?;
        Ok(Chosen { succeeded, steps })
    }

    fn holds(&self, compare: &PbCompare) -> Result<bool, ApiError> {
        const VALUE: i32 = 3;
        let range = KeyRange::new(&compare.key, &compare.range_end);
        let Ok(found) = self.mvcc.range(&range, 0) else { return Ok(false) };
        let mut found = found.peekable();
        if found.peek().is_none() {
            // A key that does not exist compares as zeros, except that it has no value to compare.
            return Ok(compare.target != VALUE && matches(compare, None));
        }
        for version in found {
            let cost = 1 + if compare.target == VALUE { version.value.len() >> 10 } else { 0 };
            let left = self.comparable.get().checked_sub(cost).ok_or(ApiError::TooManyOps)?;
            self.comparable.set(left);
            if !matches(compare, Some(version)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check_branch(&self, chosen: &Chosen) -> Result<(), ApiError> {
        // A read sees what the transaction wrote before it.
        let written = chosen.put_bytes();
        chosen.each(&mut |op| match op {
            PbTxnOpRequest::RequestPut(put) => self.check_put(put),
            PbTxnOpRequest::RequestDeleteRange(delete) => self.check_delete(delete),
            _ => Ok(()),
        })?;
        chosen.each(&mut |op| match op {
            PbTxnOpRequest::RequestRange(range) => {
                self.check_read(range)?;
                self.charge([written].into_iter())
            }
            _ => Ok(()),
        })?;
        Ok(())
    }

    fn run(&mut self, chosen: Chosen) -> Result<PbTxnResponse, ApiError> {
        let mut responses = Vec::with_capacity(chosen.steps.len());
        for step in chosen.steps {
            let response = match step {
                Step::Nested(nested) => Some(PbTxnOpResponse::ResponseTxn(self.run(nested)?)),
                Step::Op(None) => None,
                Step::Op(Some(op)) => Some(self.run_op(op)?),
            };
            responses.push(PbResponseOp { response });
        }
        Ok(PbTxnResponse { header: Some(bare_header(0)), succeeded: chosen.succeeded, responses })
    }

    fn run_op(&mut self, op: PbTxnOpRequest) -> Result<PbTxnOpResponse, ApiError> {
        Ok(match op {
            PbTxnOpRequest::RequestRange(range) => PbTxnOpResponse::ResponseRange(self.read(&range)?),
            PbTxnOpRequest::RequestPut(put) => PbTxnOpResponse::ResponsePut(self.write(put)),
            PbTxnOpRequest::RequestDeleteRange(range) => {
                PbTxnOpResponse::ResponseDeleteRange(self.delete(&range))
            }
            PbTxnOpRequest::RequestTxn(nested) => {
                let nested = self.choose(nested)?;
                PbTxnOpResponse::ResponseTxn(self.run(nested)?)
            }
        })
    }
}

/// A transaction whose comparisons are settled.
struct Chosen {
    succeeded: bool,
    steps: Vec<Step>,
}

enum Step {
    /// `None` is an empty operation, which does nothing and is answered with nothing.
    Op(Option<PbTxnOpRequest>),
    Nested(Chosen),
}

impl Chosen {
    fn each(&self, visit: &mut impl FnMut(&PbTxnOpRequest) -> Result<(), ApiError>) -> Result<(), ApiError> {
        self.steps.iter().try_for_each(|step| match step {
            Step::Nested(nested) => nested.each(visit),
            Step::Op(Some(op)) => visit(op),
            Step::Op(None) => Ok(()),
        })
    }

    fn put_bytes(&self) -> usize {
        let bytes = |step: &Step| match step {
            Step::Nested(nested) => nested.put_bytes(),
            Step::Op(Some(PbTxnOpRequest::RequestPut(put))) => put.key.len() + put.value.len(),
            Step::Op(_) => 0,
        };
        self.steps.iter().map(bytes).sum()
    }

    fn grows(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Nested(nested) => nested.grows(),
            Step::Op(op) => matches!(op, Some(PbTxnOpRequest::RequestPut(_))),
        })
    }
}

/// Compares one key, `None` being a key that does not exist. The target's and the result's numbers are the protocol's;
/// a wanted figure that does not belong to the target counts as 0, as etcd has it.
fn matches(compare: &PbCompare, version: Option<&std::sync::Arc<Version>>) -> bool {
    let field = |of: fn(&Version) -> i64| version.map_or(0, |version| of(version));
    let wanted = compare.target_union.as_ref();
    let order = match (compare.target, wanted) {
        (0, Some(PbTargetUnion::Version(wanted))) => field(|version| version.version).cmp(wanted),
        (0, _) => field(|version| version.version).cmp(&0),
        (1, Some(PbTargetUnion::CreateRevision(wanted))) => {
            field(|version| version.create_revision).cmp(wanted)
        }
        (1, _) => field(|version| version.create_revision).cmp(&0),
        (2, Some(PbTargetUnion::ModRevision(wanted))) => field(|version| version.mod_revision).cmp(wanted),
        (2, _) => field(|version| version.mod_revision).cmp(&0),
        (3, Some(PbTargetUnion::Value(wanted))) => value(version).cmp(wanted),
        (3, _) => value(version).cmp(&[]),
        (4, Some(PbTargetUnion::Lease(wanted))) => field(|version| version.lease).cmp(wanted),
        (4, _) => field(|version| version.lease).cmp(&0),
        _ => Ordering::Equal,
    };
    match compare.result {
        0 => order == Ordering::Equal,
        1 => order == Ordering::Greater,
        2 => order == Ordering::Less,
        3 => order != Ordering::Equal,
        _ => true,
    }
}

fn value(version: Option<&std::sync::Arc<Version>>) -> &[u8] {
    version.map_or(&[], |version| &version.value)
}
