//! The watch: all Nodes once, then changes from there on, and back to the whole after a gap.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use futures_core::stream::BoxStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::events;
use super::fault::{Answer, Fault};
use super::frames::{Event, Frames};
use super::http::Connection;
use super::listing::{self, Listed, broken};
use super::node::Node;
use super::own::OwnNode;
use super::publish;
use super::table::{Change, Table};
use crate::store::pause::pause;
use crate::store::{StoreError, StoreEvent};

/// How often the file with the network's configuration is read.
const CONFIG_EVERY: Duration = Duration::from_secs(2);
/// The same while there is none.
const CONFIG_AWAITED: Duration = Duration::from_millis(200);
/// That file is no larger, in bytes.
const CONFIG_LARGEST: u64 = 1 << 20;
/// A server that ends a watch sooner ends the next one as well.
const SHORT: Duration = Duration::from_secs(1);

/// Never ends. Does nothing while it is not polled.
pub(super) fn follow(shared: Arc<Shared>) -> BoxStream<'static, StoreEvent> {
    stream::unfold(Follower::new(shared), |mut follower| async {
        let event = follower.next().await;
        Some((event, follower))
    })
    .boxed()
}

struct Follower {
    shared: Arc<Shared>,
    events: VecDeque<StoreEvent>,
    config: Option<Vec<u8>>,
    /// The version up to which every change was sent.
    place: Option<String>,
    /// Where we were when the history broke off.
    lost: Option<String>,
    table: Table,
    frames: Option<Frames>,
    opened: Instant,
    /// The server can stream its list; until it was seen not to.
    streams: bool,
    failures: u32,
    /// The server asked for this pause.
    asked: Option<Duration>,
    complaint: Option<String>,
    /// What writes the Node's condition and events. Ends with the watch.
    reports: JoinSet<()>,
}

impl Follower {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            events: VecDeque::new(),
            config: None,
            place: None,
            lost: None,
            table: Table::default(),
            frames: None,
            opened: Instant::now(),
            streams: true,
            failures: 0,
            asked: None,
            complaint: None,
            reports: JoinSet::new(),
        }
    }

    async fn next(&mut self) -> StoreEvent {
        if self.reports.is_empty() && self.shared.dialer.config.set_condition {
            let shared = Arc::clone(&self.shared);
            self.reports.spawn(async move { publish::keep_condition(&shared).await });
            let shared = Arc::clone(&self.shared);
            self.reports.spawn(async move { events::keep(&shared).await });
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if let Err(fault) = self.step().await {
                self.failed(fault);
            }
        }
    }

    fn failed(&mut self, fault: Fault) {
        self.frames = None;
        match &fault {
            Fault::Answer(Answer { code: 410, .. }) => return self.list_again(),
            Fault::Answer(Answer { code: 401, .. }) => self.shared.dialer.forget_printed(),
            _ => {}
        }
        if let Fault::Answer(answer) = &fault {
            self.asked = answer.retry_after;
        }
        self.failures = self.failures.saturating_add(1);
        self.complain(StoreError::from(fault).to_string());
    }

    /// Says a sentence once, until the store is followed again.
    fn complain(&mut self, sentence: String) {
        if self.complaint.as_ref() != Some(&sentence) {
            self.events.push_back(StoreEvent::Stale(sentence.clone()));
            self.complaint = Some(sentence);
        }
    }

    async fn step(&mut self) -> Result<(), Fault> {
        self.read_config().await;
        if self.config.is_none() {
            sleep(CONFIG_AWAITED).await;
            return Ok(());
        }
        let Some(frames) = &mut self.frames else { return self.reconnect().await };
        match timeout(CONFIG_EVERY, frames.wait()).await {
            Ok(Ok(true)) => self.take(),
            Ok(Ok(false)) => {
                self.frames = None;
                // As often as the server likes, but not at once again and again.
                self.failures += u32::from(self.opened.elapsed() < SHORT);
                Ok(())
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Ok(()),
        }
    }

    async fn read_config(&mut self) {
        let path = self.shared.dialer.config.net_conf.clone();
        let read = tokio::task::spawn_blocking(move || read_config(&path)).await;
        match read.unwrap_or_else(|_| Err("not read".to_owned())) {
            Ok(text) if self.config.as_ref() == Some(&text) => {}
            Ok(text) => {
                self.config = Some(text.clone());
                self.events.push_back(StoreEvent::Config(text));
            }
            Err(why) if self.config.is_none() => self.complain(why),
            Err(why) => tracing::debug!("going on with the network's configuration as it was: {why}"),
        }
    }

    async fn reconnect(&mut self) -> Result<(), Fault> {
        if self.failures > 0 {
            let pause = pause(self.failures, self.shared.seed);
            sleep(self.asked.take().unwrap_or_default().clamp(pause, Duration::from_secs(60))).await;
        }
        let connection = self.shared.dialer.connect().await?;
        match self.place.clone() {
            Some(place) => {
                self.frames = Some(listing::watch(connection, &place).await?);
                if self.complaint.is_some() {
                    // Resumed without a gap. Any event says so; this one repeats what is known.
                    self.events.extend(self.config.clone().map(StoreEvent::Config));
                }
            }
            None => self.list(connection).await?,
        }
        self.opened = Instant::now();
        (self.failures, self.complaint) = (0, None);
        Ok(())
    }

    async fn list(&mut self, connection: Connection) -> Result<(), Fault> {
        let streamed = match self.streams {
            true => listing::streamed(&self.shared, connection).await?,
            false => None,
        };
        self.streams = streamed.is_some();
        let (Listed { version, listing, own }, frames) = match streamed {
            Some(streamed) => streamed,
            None => {
                let mut connection = self.shared.dialer.connect().await?;
                let listed = listing::paged(&self.shared, &mut connection).await?;
                let frames = listing::watch(connection, &listed.version).await?;
                (listed, frames)
            }
        };
        let (table, mut leases, unreadable) = listing.finish();
        self.table = table;
        self.shared.set_own(own, self.rival());
        leases.iter_mut().for_each(|lease| self.shared.as_claimed(lease));
        let number = |version: &Option<String>| version.as_ref()?.parse::<u64>().ok();
        let foreign = number(&self.lost.take()) > number(&Some(version.clone()));
        self.events.push_back(StoreEvent::Snapshot { leases, unreadable, foreign });
        (self.place, self.frames) = (Some(version), Some(frames));
        Ok(())
    }

    /// Takes the event that is there.
    fn take(&mut self) -> Result<(), Fault> {
        let Self { frames: Some(frames), table, shared, place, .. } = self else { return Ok(()) };
        let read = |fields| Node::read(fields, &shared.prefix).map_err(broken);
        let (node, change) = match frames.event()? {
            Event::There(fields) => {
                let node = read(fields)?;
                if node.name == shared.name() {
                    shared.set_own(Some(OwnNode::of(&node)), None);
                }
                (node, table.there(&node))
            }
            Event::Gone(fields) => {
                let node = read(fields)?;
                if node.name == shared.name() {
                    shared.set_own(None, None);
                }
                (node, table.gone(node.name))
            }
            Event::Bookmark(fields) => (read(fields)?, Change::Nothing),
            Event::Failed(answer) => return Err(Fault::Answer(answer)),
        };
        let place = place.get_or_insert_default();
        place.clear();
        place.push_str(node.version);
        match change {
            Change::Nothing => {}
            Change::Events(events) => {
                self.shared.set_rival(self.rival());
                for mut event in events {
                    if let StoreEvent::Upsert(lease) = &mut event {
                        self.shared.as_claimed(lease);
                    }
                    self.events.push_back(event);
                }
            }
            Change::ListAgain => self.list_again(),
        }
        Ok(())
    }

    fn rival(&self) -> Option<String> {
        self.table.rival(self.shared.name()).map(str::to_owned)
    }

    /// What was read so far is still sent; then comes a snapshot.
    fn list_again(&mut self) {
        self.lost = self.place.take().or_else(|| self.lost.take());
        self.frames = None;
        self.failures += 1;
    }
}

/// The file with the network's configuration. The error is a sentence.
pub(super) fn read_config(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut text = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(CONFIG_LARGEST + 1).read_to_end(&mut text));
    match read {
        Err(error) => Err(format!("net-config-path {}: {error}", path.display())),
        Ok(length) if length as u64 > CONFIG_LARGEST => {
            Err(format!("net-config-path {}: larger than 1 MiB", path.display()))
        }
        Ok(_) => Ok(text),
    }
}
