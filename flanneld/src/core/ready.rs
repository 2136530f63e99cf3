//! Whether the node is ready, and the reasons why not.

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

/// The status has the details. They change often, and readiness must not change with them.
const VANISHED: &str =
    "most peers vanished from the store at once; they are kept until they are back, or for a while";

/// The status has the details. They change often, and readiness must not change with them.
const UNDONE: &str = "somebody keeps undoing what we set up";

impl NodeCore {
    /// Publishes the answer when it changed.
    pub(super) fn announce(&mut self, effects: &mut Vec<Effect>) {
        let now = self.judge();
        if now != self.ready {
            self.ready = now.clone();
            effects.push(Effect::Announce(now));
        }
    }

    pub(super) fn judge(&self) -> Readiness {
        let mut blocking = Vec::new();
        let mut notices = Vec::new();
        let last = self.pass.last();
        let stale = self.membership.stale().map(|(reason, _)| reason);
        let mut wait = |what: &str, because: Option<&String>| {
            blocking.push(because.map_or_else(|| format!("waiting for {what}"), Clone::clone));
        };
        if self.membership.network().is_none() {
            wait("the network's configuration in the store", self.membership.fault().or(stale));
        } else if self.underlay.external().is_none() {
            wait("an interface to the other hosts", self.underlay.problem());
        } else if self.membership.peers().is_none() {
            wait("the first snapshot of the store", stale);
        } else if self.publication.own().is_none() {
            wait("a lease", self.publication.problem());
        } else if !last.complete {
            wait("the first pass over the kernel", None);
        } else {
            blocking.extend(last.own_failure.clone());
            blocking.extend(self.underlay.problem().cloned());
            blocking.extend(self.membership.is_held().then(|| VANISHED.to_owned()));
            notices.extend(self.publication.contest().cloned());
            notices.extend(stale.map(|p| format!("stale: {p}")));
            notices.extend((last.failed > 0).then(|| format!("{} steps failed", last.failed)));
            notices.extend(self.pass.fights().is_fighting().then(|| UNDONE.to_owned()));
            notices.extend(last.conflicts.iter().cloned());
            notices.extend(self.planes.problems());
        }
        // Shown also while the node waits for something else: a fault of the configuration stays until it changes.
        if self.membership.network().is_some() {
            notices.extend(self.membership.fault().or_else(|| self.membership.unapplied()).cloned());
        }
        let ready = blocking.is_empty();
        blocking.extend(notices);
        Readiness { ready, reasons: blocking }
    }
}
