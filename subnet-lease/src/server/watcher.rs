//! One watch: what it waits for, and the responses it gets. Pure; `watch.rs` moves the messages.

use etcd_client::proto::{PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse};
use prost::Message;

use super::key_range::KeyRange;
use super::limits::MESSAGE;
use super::mvcc::Event;
use super::state::{Identity, header, key_value};

/// Bytes of events after which a response ends at the next revision's border.
const RESPONSE_BYTES: usize = 1 << 20;

/// What a client asks for on a watch stream.
pub(crate) enum Wish {
    Create { id: i64, start: i64, watcher: Watcher },
    Cancel(i64),
    Progress,
}

impl Wish {
    /// An empty message asks for nothing.
    pub(crate) fn read(message: PbWatchRequest) -> Option<Self> {
        Some(match message.request_union? {
            PbWatchRequestUnion::CancelRequest(cancel) => Self::Cancel(cancel.watch_id),
            PbWatchRequestUnion::ProgressRequest(_) => Self::Progress,
            PbWatchRequestUnion::CreateRequest(create) => {
                // No key means from the smallest key on.
                let key = if create.key.is_empty() { &[0][..] } else { &create.key };
                let watcher = Watcher {
                    range: KeyRange::new(key, &create.range_end),
                    next: 0,
                    prev_kv: create.prev_kv,
                    puts: !create.filters.contains(&NO_PUT),
                    deletes: !create.filters.contains(&NO_DELETE),
                    fragment: create.fragment,
                    progress: create.progress_notify,
                    told: false,
                };
                Self::Create { id: create.watch_id, start: create.start_revision, watcher }
            }
        })
    }
}

/// Filters by their numbers in the protocol.
const NO_PUT: i32 = 0;
const NO_DELETE: i32 = 1;

#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) range: KeyRange,
    /// First revision that the client has not been told of.
    pub(crate) next: i64,
    prev_kv: bool,
    puts: bool,
    deletes: bool,
    fragment: bool,
    /// The client wants a sign of life now and then.
    pub(crate) progress: bool,
    /// Something was sent since the last sign of life.
    pub(crate) told: bool,
}

impl Watcher {
    /// Takes all `events` up to revision `through` and turns those it waits for into responses.
    /// A response holds whole revisions and speaks for everything up to its header's revision.
    pub(crate) fn accept<'a>(
        &mut self,
        id: i64,
        identity: Identity,
        events: impl IntoIterator<Item = &'a Event>,
        through: i64,
    ) -> Vec<PbWatchResponse> {
        let (mut responses, mut part, mut bytes, mut last) = (Vec::new(), Vec::new(), 0, 0);
        for event in events.into_iter().filter(|event| self.waits_for(event)) {
            let at = event.kv.mod_revision;
            if bytes >= RESPONSE_BYTES && at != last {
                responses.push(response(id, identity, last, std::mem::take(&mut part)));
                bytes = 0;
            }
            last = at;
            let event = self.render(event);
            bytes += event.encoded_len();
            part.push(event);
        }
        if !part.is_empty() {
            responses.push(response(id, identity, through, part));
        }
        self.next = self.next.max(through + 1);
        self.told |= !responses.is_empty();
        if self.fragment { responses.into_iter().flat_map(fragments).collect() } else { responses }
    }

    fn waits_for(&self, event: &Event) -> bool {
        let kind = if event.kv.is_tombstone() { self.deletes } else { self.puts };
        kind && event.kv.mod_revision >= self.next && self.range.contains(&event.kv.key)
    }

    fn render(&self, event: &Event) -> PbEvent {
        PbEvent {
            r#type: i32::from(event.kv.is_tombstone()),
            kv: Some(key_value(&event.kv, true)),
            prev_kv: event.prev.as_ref().filter(|_| self.prev_kv).map(|prev| key_value(prev, true)),
        }
    }
}

/// A response of one watch at a revision.
pub(crate) fn response(id: i64, identity: Identity, revision: i64, events: Vec<PbEvent>) -> PbWatchResponse {
    PbWatchResponse { header: Some(header(identity, revision)), watch_id: id, events, ..Default::default() }
}

/// Cuts a response that is larger than a message may be; all pieces but the last say that more follows.
fn fragments(mut whole: PbWatchResponse) -> Vec<PbWatchResponse> {
    if whole.encoded_len() < MESSAGE {
        return vec![whole];
    }
    let events = std::mem::take(&mut whole.events);
    let (mut pieces, mut bytes) = (vec![whole.clone()], 0);
    for event in events {
        let size = event.encoded_len();
        if bytes > 0 && bytes + size >= MESSAGE {
            pieces.push(whole.clone());
            bytes = 0;
        }
        bytes += size;
        if let Some(piece) = pieces.last_mut() {
            piece.events.push(event);
        }
    }
    let last = pieces.len() - 1;
    for piece in &mut pieces[..last] {
        piece.fragment = true;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::server::mvcc::Version;

    const IDENTITY: Identity = Identity { cluster: 1, member: 2 };

    fn event(key: &str, revision: i64, size: usize) -> Event {
        let version = Version {
            key: Arc::from(key.as_bytes()),
            value: vec![b'x'; size].into(),
            create_revision: revision,
            mod_revision: revision,
            sub: 0,
            version: 1,
            lease: 0,
        };
        Event { kv: Arc::new(version), prev: None }
    }

    fn watcher(next: i64, fragment: bool) -> Watcher {
        Watcher {
            range: KeyRange::new(b"a", b"b"),
            next,
            prev_kv: false,
            puts: true,
            deletes: true,
            fragment,
            progress: false,
            told: false,
        }
    }

    fn shape(responses: &[PbWatchResponse]) -> Vec<(i64, usize, bool)> {
        let revision =
            |response: &PbWatchResponse| response.header.as_ref().map_or(0, |header| header.revision);
        responses.iter().map(|one| (revision(one), one.events.len(), one.fragment)).collect()
    }

    #[test]
    fn only_new_events_of_its_keys_reach_a_watch() {
        let events = [event("a", 4, 1), event("a", 5, 1), event("c", 6, 1), event("aa", 7, 1)];
        let mut watcher = watcher(5, false);
        assert_eq!(shape(&watcher.accept(0, IDENTITY, &events, 9)), [(9, 2, false)]);
        assert_eq!(watcher.next, 10);
        assert!(watcher.accept(0, IDENTITY, &events, 9).is_empty());
    }

    #[test]
    fn a_large_past_comes_in_several_responses_that_never_split_a_revision() {
        let half = RESPONSE_BYTES / 2;
        let events = [event("a", 4, half), event("ab", 4, half), event("ac", 4, half), event("a", 5, half)];
        assert_eq!(shape(&watcher(0, false).accept(0, IDENTITY, &events, 7)), [(4, 3, false), (7, 1, false)]);
    }

    #[test]
    fn a_response_over_the_message_limit_is_cut_into_fragments_on_request() {
        let events: Vec<_> = (0..5).map(|n| event(&format!("a{n}"), 4, MESSAGE / 2)).collect();
        assert_eq!(shape(&watcher(0, false).accept(0, IDENTITY, &events, 4)), [(4, 5, false)]);
        let pieces = watcher(0, true).accept(0, IDENTITY, &events, 4);
        assert_eq!(shape(&pieces), [(4, 1, true), (4, 1, true), (4, 1, true), (4, 1, true), (4, 1, false)]);
    }
}
