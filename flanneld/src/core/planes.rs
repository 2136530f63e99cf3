//! Wishes that are not kernel state: they are passed on when they change, and their outcomes are kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use backends::plane::{PlaneOutcome, PlaneWish};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Effect, NodeCore, saved};

/// Where the planes stand.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Planes {
    #[serde(with = "saved::shared")]
    wished: Arc<Vec<PlaneWish>>,
    outcomes: BTreeMap<String, PlaneOutcome>,
}

impl Planes {
    /// Passes a wish on if it differs from the last one.
    pub(super) fn wish(&mut self, wished: Vec<PlaneWish>, effects: &mut Vec<Effect>) {
        if wished != *self.wished {
            self.outcomes.retain(|backend, _| wished.iter().any(|wish| wish.backend == *backend));
            self.wished = Arc::new(wished);
            effects.push(Effect::Plane(self.wished.clone()));
        }
    }

    /// One sentence for each plane that is not as wished.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.outcomes.values().filter(|outcome| outcome.failed > 0).map(|outcome| {
            let PlaneOutcome { backend, failed, in_place, reasons } = outcome;
            let first = reasons.first().map(|(row, why)| format!(": {row}: {why}")).unwrap_or_default();
            format!("{backend}: {failed} of {} rows failed{first}", failed.saturating_add(*in_place))
        })
    }
}

impl NodeCore {
    /// The outcome of a plane's wish. No pass follows: nothing in the kernel depends on it.
    pub(super) fn converged(&mut self, outcome: PlaneOutcome) {
        // An outcome may arrive after its wish was withdrawn.
        if !self.planes.wished.iter().any(|wish| wish.backend == outcome.backend) {
            return;
        }
        let before: Vec<String> = self.planes.problems().collect();
        self.planes.outcomes.insert(outcome.backend.clone(), outcome);
        for problem in self.planes.problems().filter(|problem| !before.contains(problem)) {
            warn!("{problem}");
        }
    }
}
