//! Events on our own Node: what an operator must know, and each sentence seldom.

use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::fault::{Answer, Fault};
use super::http::{Ask, PROTOBUF};
use super::publish::timestamp;
use crate::store::pause::pause;

/// What is over sooner becomes no event: a start has many short waits.
const LASTS: Duration = Duration::from_secs(5);
/// The same sentence makes no second event within this time.
const AGAIN: Duration = Duration::from_secs(3_600);
/// No more events are written within that time.
const MOST: usize = 20;
/// No message is longer, in bytes: the API server's own limit.
const LONGEST: usize = 1_024;
const PATH: &str = "/api/v1/namespaces/default/events";

/// Writes an event for each remark that lasts. Never ends, unless the API server forbids events: flannel's own rights have none.
pub(super) async fn keep(shared: &Shared) {
    let mut remarks = shared.remarks.subscribe();
    let mut ledger = Ledger::default();
    let mut failures = 0;
    loop {
        let now = Instant::now();
        ledger.note(&remarks.borrow_and_update(), now);
        for sentence in ledger.due(now) {
            match post(shared, &sentence).await {
                Ok(()) => {
                    failures = 0;
                    ledger.written(sentence, now);
                }
                Err(Fault::Answer(answer @ Answer { code: 403, .. })) => {
                    tracing::info!("no events are written to the Node: {}", answer.message);
                    return;
                }
                Err(fault) => {
                    tracing::debug!("an event is not written: {fault:?}");
                    failures += 1;
                    break;
                }
            }
        }
        let next = ledger
            .next(now)
            .map(|at| at + if failures > 0 { pause(failures, shared.seed) } else { Duration::ZERO });
        let wait = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = remarks.changed() => if changed.is_err() { return },
            () = wait => {}
        }
    }
}

/// Which sentences hold since when, and which were written when.
#[derive(Default)]
struct Ledger {
    holding: Vec<(String, Instant)>,
    written: Vec<(String, Instant)>,
}

impl Ledger {
    fn note(&mut self, remarks: &[String], now: Instant) {
        self.holding.retain(|(sentence, _)| remarks.contains(sentence));
        for sentence in remarks {
            if !self.holding.iter().any(|(held, _)| held == sentence) {
                self.holding.push((sentence.clone(), now));
            }
        }
        self.written.retain(|(_, at)| now.duration_since(*at) < AGAIN);
    }

    fn due(&self, now: Instant) -> Vec<String> {
        let lasts = self.unwritten().filter(|(_, since)| now.duration_since(*since) >= LASTS);
        lasts.map(|(sentence, _)| sentence.clone()).take(MOST.saturating_sub(self.written.len())).collect()
    }

    fn written(&mut self, sentence: String, now: Instant) {
        self.written.push((sentence, now));
    }

    /// When there is something to do again, if nothing changes before.
    fn next(&self, now: Instant) -> Option<Instant> {
        let due = self.unwritten().map(|(_, since)| *since + LASTS).min()?;
        if self.written.len() < MOST {
            return Some(due.max(now));
        }
        self.written.iter().map(|(_, at)| *at + AGAIN).min()
    }

    fn unwritten(&self) -> impl Iterator<Item = &(String, Instant)> {
        self.holding.iter().filter(|(sentence, _)| !self.written.iter().any(|(done, _)| done == sentence))
    }
}

async fn post(shared: &Shared, sentence: &str) -> Result<(), Fault> {
    let name = shared.name();
    let mut end = sentence.len().min(LONGEST);
    while !sentence.is_char_boundary(end) {
        end -= 1;
    }
    let time = timestamp();
    let event = json!({
        "kind": "Event", "apiVersion": "v1", "metadata": {"generateName": format!("{name}."), "namespace": "default"},
        // As kubelet does: `kubectl describe node` looks for the name in place of the UID.
        "involvedObject": {"kind": "Node", "name": name, "uid": name},
        "type": "Warning", "reason": "Flannel", "message": &sentence[..end], "count": 1,
        "source": {"component": "flannel", "host": name}, "firstTimestamp": time, "lastTimestamp": time,
    });
    let body = Some(("application/json", event.to_string().into_bytes()));
    let mut connection = shared.dialer.connect().await?;
    connection.whole(Ask { method: Method::POST, path: PATH, accept: PROTOBUF, body }).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_that_lasts_is_written_once_an_hour() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        let remarks = vec!["a peer is refused".to_owned()];
        ledger.note(&remarks, start);
        assert!(ledger.due(start).is_empty());
        assert_eq!(ledger.next(start), Some(start + LASTS));
        let due = start + LASTS;
        assert_eq!(ledger.due(due), remarks);
        ledger.written(remarks[0].clone(), due);
        assert_eq!((ledger.due(due), ledger.next(due)), (vec![], None));
        // It ends and comes back: still known.
        ledger.note(&[], due);
        ledger.note(&remarks, due);
        assert!(ledger.due(due + LASTS).is_empty());
        let later = due + AGAIN;
        ledger.note(&remarks, later);
        assert_eq!(ledger.due(later), remarks);
    }

    #[test]
    fn a_flood_of_sentences_makes_a_bounded_number_of_events() {
        let start = Instant::now();
        let mut ledger = Ledger::default();
        let remarks: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        ledger.note(&remarks, start);
        let now = start + LASTS;
        let due = ledger.due(now);
        assert_eq!(due.len(), MOST);
        due.into_iter().for_each(|sentence| ledger.written(sentence, now));
        assert!(ledger.due(now).is_empty());
        assert_eq!(ledger.next(now), Some(now + AGAIN));
    }
}
