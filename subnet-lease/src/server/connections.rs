//! The connections there are: a bounded number, of which the one that was silent for longest makes room for a new one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::limits::CONNECTIONS;

/// All connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Shared>);

struct Shared {
    began: Instant,
    most: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    open: BTreeMap<u64, Open>,
}

struct Open {
    /// When the client last sent something, in milliseconds.
    heard: Arc<AtomicU64>,
    cut: oneshot::Sender<()>,
}

/// One connection's place among them; it is free again when this is dropped.
pub(crate) struct Place {
    all: Connections,
    id: u64,
    heard: Arc<AtomicU64>,
}

impl Default for Connections {
    fn default() -> Self {
        Self::of(CONNECTIONS)
    }
}

impl Connections {
    pub(crate) fn of(most: usize) -> Self {
        Self(Arc::new(Shared { began: Instant::now(), most, inner: Mutex::default() }))
    }

    /// A place for a connection, and what is sent when another one takes it.
    pub(crate) fn admit(&self) -> (Place, oneshot::Receiver<()>) {
        let (cut, is_cut) = oneshot::channel();
        let heard = Arc::new(AtomicU64::new(self.now()));
        let mut inner = self.lock();
        if inner.open.len() >= self.0.most {
            let silent = inner.open.iter().min_by_key(|(_, open)| open.heard.load(Ordering::Relaxed));
            if let Some(open) = silent.map(|(id, _)| *id).and_then(|id| inner.open.remove(&id)) {
                // It may have ended at this moment.
                let _ = open.cut.send(());
            }
        }
        inner.next += 1;
        let id = inner.next;
        inner.open.insert(id, Open { heard: heard.clone(), cut });
        (Place { all: self.clone(), id, heard }, is_cut)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A panic elsewhere leaves a map that is still whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The client sent something.
    pub(crate) fn heard(&self) {
        self.heard.store(self.all.now(), Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_was_silent_for_longest_makes_room() {
        let all = Connections::of(2);
        let (first, mut first_cut) = all.admit();
        let (_second, mut second_cut) = all.admit();
        tokio::time::advance(Duration::from_secs(1)).await;
        first.heard();
        let (third, mut third_cut) = all.admit();
        assert!(second_cut.try_recv().is_ok());
        assert!(first_cut.try_recv().is_err() && third_cut.try_recv().is_err());
        drop(third);
        let (_fourth, _) = all.admit();
        assert!(first_cut.try_recv().is_err(), "one that ended leaves its place");
    }
}
