//! Whether the node is ready, from facts, and why not.

use serde::{Deserialize, Serialize};

use super::{Effect, NodeCore};

/// Whether pods can start here and reach the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The answer.
    pub ready: bool,
    /// One sentence for each thing that is awaited or wrong; also things that do not stop the node.
    pub reasons: Vec<String>,
}

/// Which and by whom is in the status; here a changing list would be a changing answer.
const VANISHED: &str =
    "most peers vanished from the store at once; they are kept until they are back, or for a while";

/// Which and by whom is in the status; here a changing list would be a changing answer.
const UNDONE: &str = "somebody keeps undoing what we set up";

impl NodeCore {
    /// Tells when the answer changed.
    pub(super) fn announce(&mut self, effects: &mut Vec<Effect>) {
        let now = self.judge();
        if now != self.ready {
            self.ready = now.clone();
            effects.push(Effect::Announce(now));
        }
    }

    pub(super) fn judge(&self) -> Readiness {
        let mut blocking = Vec::new();
        let mut told = Vec::new();
        let mut wait = |what: &str, because: Option<&String>| {
            blocking.push(because.map_or_else(|| format!("waiting for {what}"), Clone::clone));
        };
        if self.network.is_none() {
            wait("the network's configuration in the store", self.store_problem.as_ref());
        } else if self.external.is_none() {
            wait("an interface to the other hosts", self.external_problem.as_ref());
        } else if self.peers.is_none() {
            wait("the first snapshot of the store", self.store_problem.as_ref());
        } else if self.own.is_none() {
            wait("a lease", self.claim.problem.as_ref());
        } else if !self.last.complete {
            wait("the first pass over the kernel", None);
        } else {
            blocking.extend(self.last.own_failure.clone());
            blocking.extend(self.external_problem.clone());
            blocking.extend(self.vanished.is_held().then(|| VANISHED.to_owned()));
            told.extend(self.store_problem.as_ref().map(|p| format!("stale: {p}")));
            told.extend(self.unapplied.clone());
            told.extend((self.last.failed > 0).then(|| format!("{} steps failed", self.last.failed)));
            told.extend(self.fights.is_fighting().then(|| UNDONE.to_owned()));
            told.extend(self.last.conflicts.iter().cloned());
            told.extend(self.planes.problems());
        }
        let ready = blocking.is_empty();
        blocking.extend(told);
        Readiness { ready, reasons: blocking }
    }
}
