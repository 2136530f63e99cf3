//! A subscription to the kernel's notifications that outlives its socket: one that fails is opened again, and a flood
//! is read in gulps.

use std::os::fd::AsRawFd;
use std::time::Duration;

use backends::kernel::KernelEvent;
use backends::kernel::real::{EventFilter, Events, Notice};
use backends::netlink::NetlinkError;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

/// First pause before a socket that failed is opened again; doubles to [`AGAIN_LAST`]. Ours; audits go on meanwhile.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(60);
/// The most drains in one [`GULP`]; later notifications wait for the next gulp. Passes are no faster in a storm.
const DRAINS: u32 = 20;
const GULP: Duration = Duration::from_millis(100);

/// What a subscription is to the shell.
pub(crate) trait Source: AsRawFd {
    fn drain(&mut self, filter: &EventFilter) -> Result<Notice, NetlinkError>;
    fn unreadable(&self) -> u64;
}

impl Source for Events {
    fn drain(&mut self, filter: &EventFilter) -> Result<Notice, NetlinkError> {
        Self::drain(self, filter)
    }

    fn unreadable(&self) -> u64 {
        Self::unreadable(self)
    }
}

/// One subscription, open or to be opened again.
pub(crate) struct Subscription<S: Source = Events> {
    name: &'static str,
    open: Box<dyn Fn() -> Result<S, NetlinkError>>,
    source: Option<AsyncFd<S>>,
    failures: u32,
    /// When to open it again, or when the next gulp may be taken.
    not_before: Instant,
    gulp: Instant,
    drains: u32,
    /// Unreadable messages of the sockets before this one.
    unreadable: u64,
}

impl<S: Source> Subscription<S> {
    /// Opened in this thread's network namespace, at once or when it can be.
    pub(crate) fn new(name: &'static str, open: impl Fn() -> Result<S, NetlinkError> + 'static) -> Self {
        let now = Instant::now();
        let mut subscription = Self {
            name,
            open: Box::new(open),
            source: None,
            failures: 0,
            not_before: now,
            gulp: now,
            drains: 0,
            unreadable: 0,
        };
        if let Err(error) = subscription.reopen() {
            subscription.failed(&error);
        }
        subscription
    }

    /// Whether notifications arrive.
    pub(crate) fn is_open(&self) -> bool {
        self.source.is_some()
    }

    /// Notifications that could not be read, so far.
    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable + self.source.as_ref().map_or(0, |source| source.get_ref().unreadable())
    }

    /// The next notifications that matter. A lost socket counts as an overrun twice: at once, and when another socket is open.
    /// The future may be dropped at any await.
    pub(crate) async fn next(&mut self, filter: &EventFilter) -> Notice {
        loop {
            sleep_until(self.not_before).await;
            let drained = match &mut self.source {
                Some(source) => drain(source, filter).await,
                None => match self.reopen() {
                    Ok(()) => {
                        info!("{}: open again", self.name);
                        return overrun();
                    }
                    Err(error) => Err(error),
                },
            };
            match drained {
                Ok(notice) => {
                    self.note_drain();
                    if notice.event.is_some() || !notice.touches.is_empty() {
                        return notice;
                    }
                }
                Err(error) if self.is_open() => {
                    self.failed(&error);
                    return overrun();
                }
                Err(error) => self.failed(&error),
            }
        }
    }

    #[allow(
        deprecated,
        reason = "its successor is unsafe; the descriptor is the socket's own for as long as both live"
    )]
    fn reopen(&mut self) -> Result<(), NetlinkError> {
        self.source = Some(AsyncFd::new((self.open)()?)?);
        Ok(())
    }

    fn failed(&mut self, error: &NetlinkError) {
        self.unreadable = self.unreadable();
        self.source = None;
        match self.failures {
            0 => warn!("{}: {error}; relying on audits until it can be opened again", self.name),
            _ => debug!("{}: {error}", self.name),
        }
        let pause = AGAIN_FIRST.saturating_mul(1 << self.failures.min(16)).min(AGAIN_LAST);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Instant::now() + pause;
    }

    fn note_drain(&mut self) {
        // Not reset by opening: a socket that fails before the first notification is no better than one that can't be opened.
        self.failures = 0;
        let now = Instant::now();
        if now >= self.gulp + GULP {
            (self.gulp, self.drains) = (now, 0);
        }
        self.drains += 1;
        self.not_before = if self.drains < DRAINS { now } else { self.gulp + GULP };
    }
}

async fn drain<S: Source>(source: &mut AsyncFd<S>, filter: &EventFilter) -> Result<Notice, NetlinkError> {
    let mut guard = source.readable_mut().await?;
    let drained = guard.get_inner_mut().drain(filter);
    guard.clear_ready();
    drained
}

fn overrun() -> Notice {
    Notice { event: Some(KernelEvent::Overrun), ..Notice::default() }
}

#[cfg(test)]
mod tests;
