//! What a backend wishes for that is not kernel state: a UDP table, routes of a cloud, commands, IKE connections.
//!
//! ```text
//!   Wish.planes ──▶ Effect::Plane ──▶ watch channel (the newest wish only) ──▶ a task per plane: converge
//!                                                                                   │
//!   status, readiness ◀── Input::Plane ◀─────────────────────────── PlaneOutcome ◀──┘
//! ```
//!
//! A plane has the shape of the kernel: a table of rows that should be there, a call that makes it so, an outcome per row. It
//! works at its own pace, and no pass ever waits for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use subnet_lease::BoxFuture;

/// Failed rows that an outcome names; the rest is counted.
const NAMED: usize = 16;

/// What should be there, as rows: subnet to endpoint, subnet to instance, peer to command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneWish {
    /// Name of the backend that wishes for it; one plane a backend.
    pub backend: String,
    /// The rows.
    pub rows: BTreeMap<String, String>,
}

/// What a plane made of a wish.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneOutcome {
    /// Name of the backend.
    pub backend: String,
    /// Rows that are in place.
    pub in_place: usize,
    /// Rows that are not.
    pub failed: usize,
    /// The first of these, and why.
    pub reasons: Vec<(String, String)>,
}

impl PlaneOutcome {
    /// The outcome of a wish, given the rows that failed.
    pub fn of(want: &PlaneWish, failures: Vec<(String, String)>) -> Self {
        let failed = failures.len();
        Self {
            backend: want.backend.clone(),
            in_place: want.rows.len().saturating_sub(failed),
            failed,
            reasons: failures.into_iter().take(NAMED).collect(),
        }
    }
}

/// Something that keeps a table of rows as wished for.
pub trait Plane: Send {
    /// Makes the table as wished for. What is as wished already is left alone; safe to repeat. A wish that is not
    /// wanted any more is dropped between two rows.
    fn converge<'a>(&'a mut self, want: &'a PlaneWish) -> BoxFuture<'a, PlaneOutcome>;
}

/// The plane of a backend: one row a backend that has one. None has one at present.
pub fn open(backend: &str) -> Option<Box<dyn Plane>> {
    let _ = backend;
    None
}
