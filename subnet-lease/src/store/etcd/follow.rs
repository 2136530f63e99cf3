//! The watch: one list, then changes from the next revision on, and back to the list after a gap.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use etcd_client::{GetOptions, KeyValue, WatchOptions, WatchResponse, WatchStream};
use futures::stream::{self, StreamExt};
use futures_core::stream::BoxStream;
use tokio::sync::watch;

use super::keys::Keys;
use super::listing::{self, Listing};
use super::session::{Dialer, Session, whole};
use crate::model::lease::PublicAddrs;
use crate::model::net::Subnets;
use crate::store::pause::pause;
use crate::store::{StoreError, StoreEvent};

/// Never ends. Does nothing while it is not polled.
pub(super) fn follow(dialer: Arc<Dialer>) -> BoxStream<'static, StoreEvent> {
    stream::unfold(Follower::new(dialer), |mut follower| async {
        let event = follower.next().await;
        Some((event, follower))
    })
    .boxed()
}

struct Follower {
    dialer: Arc<Dialer>,
    events: VecDeque<StoreEvent>,
    config: Option<Vec<u8>>,
    place: Option<Position>,
    /// Where we were when the history broke off.
    lost: Option<Position>,
    /// The newest lease, and the net-conf.
    marks: [Option<Mark>; 2],
    /// In place of the mark the store has something else.
    foreign: bool,
    link: Option<Link>,
    failures: u32,
    complaint: Option<String>,
}

/// Up to where we were told everything; going on there needs the same cluster with that history.
#[derive(Clone, Copy)]
struct Position {
    cluster: u64,
    /// Next revision of the net-conf's watch and of the leases'. They share a connection, but each comes at its own pace.
    next: [i64; 2],
}

/// The newest lease that we were told of, or the net-conf where there is none. A store that was put back from a backup
/// soon has as many revisions as before, but in place of this one it has another.
#[derive(Clone)]
struct Mark {
    key: Vec<u8>,
    revision: i64,
    etcd_lease: i64,
}

/// An open watch.
struct Link {
    /// Held because the connection ends with its last client.
    session: Session,
    stream: WatchStream,
    /// Where the host stands, and where it stood when the connection was made.
    host: watch::Receiver<PublicAddrs>,
    stood: PublicAddrs,
    /// Ids by which the server tells our watches apart, in the order of `Position::next`.
    ids: Vec<i64>,
}

const CONFIG: usize = 0;
const LEASES: usize = 1;

impl Follower {
    fn new(dialer: Arc<Dialer>) -> Self {
        Self {
            dialer,
            events: VecDeque::new(),
            config: None,
            place: None,
            lost: None,
            marks: [None, None],
            foreign: false,
            link: None,
            failures: 0,
            complaint: None,
        }
    }

    async fn next(&mut self) -> StoreEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if let Err(error) = self.step().await {
                if let Some(link) = self.link.take() {
                    self.dialer.turn_from(link.session.endpoint());
                }
                self.failures = self.failures.saturating_add(1);
                self.complain(error.to_string());
            }
        }
    }

    /// Says a sentence once, until the store is followed again.
    fn complain(&mut self, sentence: String) {
        if self.complaint.as_ref() != Some(&sentence) {
            self.events.push_back(StoreEvent::Stale(sentence.clone()));
            self.complaint = Some(sentence);
        }
    }

    async fn step(&mut self) -> Result<(), StoreError> {
        let Some(link) = &mut self.link else { return self.reconnect().await };
        let message = tokio::select! {
            biased;
            message = link.stream.message() => message,
            () = moved(&mut link.host, &mut link.stood) => {
                self.link = None;
                return Ok(());
            }
        };
        match message {
            Ok(Some(response)) => self.heard(&response),
            Ok(None) => Err(StoreError::Unreachable("the watch was closed".into())),
            Err(error) => {
                let error = link.session.told(&error);
                // An answer above every limit: the list takes it piece by piece.
                if listing::too_large(&error) {
                    self.list_again();
                }
                Err(error)
            }
        }
    }

    async fn reconnect(&mut self) -> Result<(), StoreError> {
        if self.failures > 0 {
            tokio::time::sleep(pause(self.failures, self.dialer.seed)).await;
        }
        let host = self.dialer.host.subscribe();
        let stood = *host.borrow();
        let (session, (place, stream)) = match self.place {
            Some(place) => {
                let [lease, config] = &self.marks;
                // Each with the place of its own watch: one may be behind the other.
                let mark = lease
                    .as_ref()
                    .map(|mark| (mark, LEASES))
                    .or_else(|| config.as_ref().map(|mark| (mark, CONFIG)));
                let mark = mark.map(|(mark, watch)| (mark.clone(), place.next[watch].saturating_sub(1)));
                let (session, resumed) =
                    self.dialer.reach(|s| Box::pin(resume(s, place, mark.clone()))).await?;
                let Resumed::Watch(stream) = resumed else {
                    self.foreign = matches!(resumed, Resumed::Foreign);
                    self.list_again();
                    return Ok(());
                };
                (session, (place, *stream))
            }
            None => {
                let (mut session, listing) = self.dialer.reach(|s| Box::pin(listing::read(s))).await?;
                let place = self.listed(listing);
                let stream = open_watch(&mut session, place).await?;
                (session, (place, stream))
            }
        };
        self.place = Some(place);
        self.link = Some(Link { session, stream, host, stood, ids: Vec::with_capacity(2) });
        Ok(())
    }

    fn listed(&mut self, mut listing: Listing) -> Position {
        let place = Position { cluster: listing.cluster, next: [listing.revision.saturating_add(1); 2] };
        let earlier =
            |lost: Position| lost.cluster != place.cluster || lost.next.iter().any(|n| *n > place.next[0]);
        let foreign = std::mem::take(&mut self.foreign) || self.lost.take().is_some_and(earlier);
        self.marks = Mark::newest(&listing, &self.dialer.keys);
        match listing.config.take() {
            Some(config) => {
                if self.config.as_ref() != Some(&config) {
                    self.events.push_back(StoreEvent::Config(config.clone()));
                    self.config = Some(config);
                }
                self.events.push_back(listing.into_snapshot(foreign));
                self.followed_again();
            }
            None => {
                // Nobody can join, but who knew the net-conf goes on, and hears what became of the leases.
                if self.config.is_some() {
                    self.events.push_back(listing.into_snapshot(foreign));
                    self.complaint = None;
                }
                self.failures = 0;
                let key = self.dialer.keys.config();
                self.complain(format!("{key} is missing: no network is configured yet"));
            }
        }
        place
    }

    /// What was heard so far is still told; then comes a snapshot.
    fn list_again(&mut self) {
        self.lost = self.place.take().or(self.lost);
        self.link = None;
    }

    fn followed_again(&mut self) {
        (self.failures, self.complaint) = (0, None);
    }

    fn heard(&mut self, response: &WatchResponse) -> Result<(), StoreError> {
        if response.canceled() {
            // A compacted revision, or a reason in words. With the history gone only the list helps; for the rest
            // (an expired token, a lost leader) a new connection does.
            if response.compact_revision() > 0 {
                self.list_again();
                self.failures += 1;
                return Ok(());
            }
            return Err(StoreError::Unreachable(format!(
                "the watch was cancelled: {}",
                response.cancel_reason()
            )));
        }
        if response.created() {
            self.created(response);
        } else if response.events().is_empty() {
            self.progress(response);
        }
        self.changed(response.events().iter().filter_map(|event| event.kv()));
        Ok(())
    }

    fn created(&mut self, response: &WatchResponse) {
        let (Some(link), Some(place)) = (&mut self.link, &self.place) else { return };
        link.ids.push(response.watch_id());
        let both = link.ids.len() == 2;
        // Another cluster, or one restored from a backup, would let us wait for a revision that means something else.
        let header = response.header();
        let same = header.is_some_and(|h| {
            h.cluster_id() == place.cluster
                && place.next.iter().all(|next| h.revision().saturating_add(1) >= *next)
        });
        if !same {
            self.list_again();
            self.failures += 1;
        } else if both && self.complaint.is_some() && self.config.is_some() {
            // Resumed without a gap. Any event says so; this one repeats what is known.
            self.events.extend(self.config.clone().map(StoreEvent::Config));
            self.followed_again();
        }
    }

    /// The server says how far it is. Manual reports (watch id -1) may be wrong in etcd 3.4, and no place ever moves back.
    fn progress(&mut self, response: &WatchResponse) {
        let (Some(link), Some(place)) = (&self.link, &mut self.place) else { return };
        let watch = link.ids.iter().position(|id| *id == response.watch_id());
        if let (Some(watch), Some(header)) = (watch, response.header()) {
            place.next[watch] = place.next[watch].max(header.revision().saturating_add(1));
        }
    }

    /// What one answer ends with: of several changes of a key only the last one is told, and leases that ended together are
    /// told together.
    fn changed<'a>(&mut self, kvs: impl DoubleEndedIterator<Item = &'a KeyValue>) {
        let mut seen = HashSet::new();
        let mut last: Vec<&KeyValue> = kvs.rev().filter(|kv| seen.insert(kv.key())).collect();
        last.reverse();
        let (mut ended, mut changed) = (Vec::new(), Vec::new());
        for kv in last {
            // Version 0 marks a deletion. Asking the event for its type would panic on one that the client does not know.
            let deleted = kv.version() == 0;
            if kv.key() == self.dialer.keys.config().as_bytes() {
                self.advance(CONFIG, kv);
                self.marks[1] = (!deleted).then(|| Mark::of(kv));
                self.config_changed((!deleted).then(|| kv.value().to_vec()));
            } else if let Some(name) = self.dialer.keys.name(kv.key()) {
                self.advance(LEASES, kv);
                if deleted { ended.push((name, kv)) } else { changed.push((name, kv)) }
            }
        }
        if self.config.is_some() {
            self.leases_ended(&ended);
            changed.iter().for_each(|(name, kv)| self.lease_changed(name, kv));
        }
    }

    fn advance(&mut self, watch: usize, kv: &KeyValue) {
        if let Some(place) = &mut self.place {
            place.next[watch] = place.next[watch].max(kv.mod_revision().saturating_add(1));
        }
    }

    fn config_changed(&mut self, config: Option<Vec<u8>>) {
        match config {
            Some(config) if self.config.is_some() => {
                self.events.push_back(StoreEvent::Config(config.clone()));
                self.config = Some(config);
                self.complaint = None;
            }
            // The first one: list, so that a snapshot follows it.
            Some(_) => self.list_again(),
            None => self
                .complain(format!("{} was deleted: going on with what it said", self.dialer.keys.config())),
        }
    }

    fn leases_ended(&mut self, ended: &[(String, &KeyValue)]) {
        let is_mark = |mark: &Mark| ended.iter().any(|(_, kv)| kv.key() == mark.key);
        if self.marks[0].as_ref().is_some_and(is_mark) {
            self.marks[0] = None;
        }
        let mut removed: Vec<Subnets> = Vec::new();
        for (name, _) in ended {
            match name.parse() {
                Ok(subnets) => removed.push(subnets),
                Err(_) => self.events.push_back(StoreEvent::Gone { key: listing::shortened(name) }),
            }
        }
        if !removed.is_empty() {
            self.events.push_back(StoreEvent::Removed(removed));
        }
    }

    fn lease_changed(&mut self, name: &str, kv: &KeyValue) {
        self.marks[0] = Some(Mark::of(kv));
        self.events.push_back(match listing::read_lease(name, kv, self.dialer.config.ttl) {
            Ok(held) => StoreEvent::Upsert(held.lease),
            Err(unknown) => StoreEvent::Unreadable { key: unknown.name, reason: unknown.reason },
        });
    }
}

impl Mark {
    fn of(kv: &KeyValue) -> Self {
        Self { key: kv.key().to_vec(), revision: kv.mod_revision(), etcd_lease: kv.lease() }
    }

    fn newest(listing: &Listing, keys: &Keys) -> [Option<Self>; 2] {
        let lease = listing.leases.iter().max_by_key(|held| held.mod_revision).map(|newest| Self {
            key: keys.lease(&newest.lease.subnets).into_bytes(),
            revision: newest.mod_revision,
            etcd_lease: newest.etcd_lease,
        });
        let (key, revision) = (keys.config().into_bytes(), listing.config_revision);
        [lease, (revision > 0).then_some(Self { key, revision, etcd_lease: 0 })]
    }

    /// Whether the store has it as it was at a revision.
    async fn stands(&self, session: &mut Session, at: i64) -> Result<bool, StoreError> {
        let then = GetOptions::new().with_keys_only().with_revision(at);
        let answer = session.get(self.key.clone(), Some(then)).await?;
        let same = |kv: &KeyValue| (kv.mod_revision(), kv.lease()) == (self.revision, self.etcd_lease);
        Ok(answer.kvs().first().is_some_and(same))
    }
}

/// How a watch goes on after its connection broke.
enum Resumed {
    Watch(Box<WatchStream>),
    /// The revision was compacted or has not come yet, or nothing is left by which to know the history again.
    Gap,
    /// The store's history is not the one that was followed.
    Foreign,
}

/// `mark` is what must be in the store, and the revision up to which its watch has read everything.
async fn resume(
    session: &mut Session,
    place: Position,
    mark: Option<(Mark, i64)>,
) -> Result<Resumed, StoreError> {
    let Some((mark, at)) = mark else { return Ok(Resumed::Gap) };
    match mark.stands(session, at).await {
        Ok(true) => open_watch(session, place).await.map(|stream| Resumed::Watch(Box::new(stream))),
        Ok(false) => Ok(Resumed::Foreign),
        // "required revision has been compacted", or "is a future revision".
        Err(StoreError::Failing(why)) if why.contains("revision") => Ok(Resumed::Gap),
        Err(error) => Err(error),
    }
}

/// Returns when this host is known under another address than when the connection was made; the first one is no other.
async fn moved(host: &mut watch::Receiver<PublicAddrs>, stood: &mut PublicAddrs) {
    loop {
        let now = *host.borrow_and_update();
        if *stood == PublicAddrs::default() {
            *stood = now;
        }
        if *stood != now || host.changed().await.is_err() {
            return;
        }
    }
}

/// Watches the net-conf and the leases from a place on.
async fn open_watch(session: &mut Session, place: Position) -> Result<WatchStream, StoreError> {
    let keys = session.keys().clone();
    let from = |next: i64| WatchOptions::new().with_start_revision(next).with_progress_notify();
    let config = Some(from(place.next[CONFIG]));
    let leases = from(place.next[LEASES]).with_range(keys.subnets_end()).with_fragment();
    let (mut watch, way) = (session.watch.clone(), session.way());
    let opening = async move {
        let mut stream = watch.watch(keys.config(), config).await?;
        stream.watch(keys.subnets(), Some(leases)).await?;
        Ok(stream)
    };
    whole(way, None, opening).await
}
