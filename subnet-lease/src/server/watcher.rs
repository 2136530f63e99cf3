//! One watch: what it waits for, and the responses it gets. Pure; `watch.rs` moves the messages.

use etcd_client::proto::{PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse};
use prost::Message;

use super::connections::Held;
use super::key_range::KeyRange;
use super::limits::MESSAGE;
use super::mvcc::{Event, Version};
use super::state::{Identity, ROW, header, key_value};

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
                    held: None,
                };
                Self::Create { id: create.watch_id, start: create.start_revision, watcher }
            }
        })
    }
}

/// Filters by their numbers in the protocol.
const NO_PUT: i32 = 0;
const NO_DELETE: i32 = 1;

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
    /// Its part of what all watches may take.
    pub(crate) held: Option<Held>,
}

/// Events for one watch that belong into one response. Nothing is copied before it is turned into one.
pub(crate) struct Part {
    events: Vec<Event>,
    /// Up to here the client has been told everything.
    revision: i64,
    prev_kv: bool,
    fragment: bool,
}

impl Watcher {
    /// Takes all `events` up to revision `through` and divides those it waits for into parts.
    /// A part has whole revisions and stands for everything up to its revision.
    pub(crate) fn accept<'a>(
        &mut self,
        events: impl IntoIterator<Item = &'a Event>,
        through: i64,
    ) -> Vec<Part> {
        let part =
            |events, revision| Part { events, revision, prev_kv: self.prev_kv, fragment: self.fragment };
        let (mut parts, mut events_of_part, mut bytes, mut last) = (Vec::new(), Vec::new(), 0, 0);
        for event in events.into_iter().filter(|event| self.waits_for(event)) {
            let at = event.kv.mod_revision;
            if bytes >= RESPONSE_BYTES && at != last {
                parts.push(part(std::mem::take(&mut events_of_part), last));
                bytes = 0;
            }
            last = at;
            bytes += weight(event, self.prev_kv);
            events_of_part.push(event.clone());
        }
        if !events_of_part.is_empty() {
            parts.push(part(events_of_part, through));
        }
        self.next = self.next.max(through + 1);
        self.told |= !parts.is_empty();
        parts
    }

    fn waits_for(&self, event: &Event) -> bool {
        let kind = if event.kv.is_tombstone() { self.deletes } else { self.puts };
        kind && event.kv.mod_revision >= self.next && self.range.contains(&event.kv.key)
    }
}

impl Part {
    /// Bytes of its response, roughly.
    pub(crate) fn weight(&self) -> usize {
        self.events.iter().map(|event| weight(event, self.prev_kv)).sum()
    }

    /// The response, in fragments where the client wants them and it is large.
    pub(crate) fn responses(self, id: i64, identity: Identity) -> Vec<PbWatchResponse> {
        let events = self.events.iter().map(|event| render(event, self.prev_kv)).collect();
        let whole = response(id, identity, self.revision, events);
        if self.fragment { fragments(whole) } else { vec![whole] }
    }
}

fn weight(event: &Event, prev_kv: bool) -> usize {
    let before = event.prev.as_ref().filter(|_| prev_kv);
    let bytes = |version: &Version| version.key.len() + version.value.len() + ROW;
    bytes(&event.kv) + before.map_or(0, |before| bytes(before))
}

fn render(event: &Event, prev_kv: bool) -> PbEvent {
    PbEvent {
        r#type: i32::from(event.kv.is_tombstone()),
        kv: Some(key_value(&event.kv, true)),
        prev_kv: event.prev.as_ref().filter(|_| prev_kv).map(|prev| key_value(prev, true)),
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
            held: None,
        }
    }

    fn accept(watcher: &mut Watcher, events: &[Event], through: i64) -> Vec<PbWatchResponse> {
        let parts = watcher.accept(events, through);
        parts.into_iter().flat_map(|part| part.responses(0, IDENTITY)).collect()
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
        assert_eq!(shape(&accept(&mut watcher, &events, 9)), [(9, 2, false)]);
        assert_eq!(watcher.next, 10);
        assert!(accept(&mut watcher, &events, 9).is_empty());
    }

    #[test]
    fn a_large_past_comes_in_several_responses_that_never_split_a_revision() {
        let half = RESPONSE_BYTES / 2;
        let events = [event("a", 4, half), event("ab", 4, half), event("ac", 4, half), event("a", 5, half)];
        assert_eq!(shape(&accept(&mut watcher(0, false), &events, 7)), [(4, 3, false), (7, 1, false)]);
    }

    #[test]
    fn a_response_over_the_message_limit_is_cut_into_fragments_on_request() {
        let events: Vec<_> = (0..5).map(|n| event(&format!("a{n}"), 4, MESSAGE / 2)).collect();
        assert_eq!(shape(&accept(&mut watcher(0, false), &events, 4)), [(4, 5, false)]);
        let pieces = accept(&mut watcher(0, true), &events, 4);
        assert_eq!(shape(&pieces), [(4, 1, true), (4, 1, true), (4, 1, true), (4, 1, true), (4, 1, false)]);
    }
}
