//! The connections, and what their clients hold of what all clients share.
//!
//! A bound that is reached must not stop honest clients. So each bound has a victim: of the connections, those of the
//! address that has most of them; of everything else, the client that holds most of it. Who asks for little is refused
//! once at most.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::error::ApiError;
use super::limits;
use super::turns::Clock;

/// What all clients share, each with a bound of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Calls,
    Received,
    Answers,
    Outboxes,
    Watches,
}

const ROOMS: usize = 5;

impl Room {
    fn most(self) -> usize {
        match self {
            Self::Calls => limits::CALLS,
            Self::Received => limits::RECEIVED,
            Self::Answers => limits::ANSWERS,
            Self::Outboxes => limits::OUTBOXES,
            Self::Watches => limits::WATCHED,
        }
    }
}

/// All connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Shared>);

struct Shared {
    began: Instant,
    most: usize,
    unproven: usize,
    inner: Mutex<Inner>,
    /// Something is free again.
    freed: Notify,
    /// A large answer was encoded, and the other tasks have not had their turn since.
    encoded: AtomicBool,
}

#[derive(Default)]
struct Inner {
    next: u64,
    open: BTreeMap<u64, Open>,
    /// What all clients hold, those whose connection has ended a moment ago too.
    held: [usize; ROOMS],
}

struct Open {
    client: Arc<Client>,
    cut: oneshot::Sender<()>,
}

/// Who is at the other end of a connection.
pub(crate) struct Client {
    all: Connections,
    id: u64,
    /// How much of the engine it has used.
    pub(crate) clock: Arc<Clock>,
    from: Option<IpAddr>,
    /// When it last sent something, in milliseconds.
    heard: AtomicU64,
    /// It has sent a request.
    proven: AtomicBool,
    /// Changed under the lock of `all` only.
    held: [AtomicUsize; ROOMS],
}

/// A connection's place among all; it is free again when this is dropped.
pub(crate) struct Place(Arc<Client>);

/// Part of a room. It is free again when this is dropped.
pub(crate) struct Held {
    client: Arc<Client>,
    room: Room,
    amount: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self::of(limits::CONNECTIONS, limits::UNPROVEN)
    }
}

impl Connections {
    pub(crate) fn of(most: usize, unproven: usize) -> Self {
        let inner = Mutex::default();
        let (freed, encoded) = (Notify::new(), AtomicBool::new(false));
        Self(Arc::new(Shared { began: Instant::now(), most, unproven, inner, freed, encoded }))
    }

    /// A place for a connection, and what is sent when the connection must end.
    pub(crate) fn admit(&self, from: Option<IpAddr>) -> (Place, oneshot::Receiver<()>) {
        let (cut, is_cut) = oneshot::channel();
        let mut inner = self.lock();
        if let Some(id) = inner.victim(self.0.most, self.0.unproven) {
            inner.cut(id);
        }
        inner.next += 1;
        let client = Arc::new(Client {
            all: self.clone(),
            id: inner.next,
            clock: Clock::of(inner.next),
            from,
            heard: AtomicU64::new(self.now()),
            proven: AtomicBool::new(false),
            held: Default::default(),
        });
        inner.open.insert(client.id, Open { client: client.clone(), cut });
        (Place(client), is_cut)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A panic elsewhere leaves a map that is still whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The connection that makes room for a new one, where there must be room.
    fn victim(&self, most: usize, unproven: usize) -> Option<u64> {
        if self.open.len() < most {
            return None;
        }
        let silent = |client: &Client| client.heard.load(Ordering::Relaxed);
        let clients = || self.open.values().map(|open| &*open.client);
        let strangers = || clients().filter(|client| !client.proven.load(Ordering::Relaxed));
        if strangers().count() >= unproven {
            return strangers().min_by_key(|client| silent(client)).map(|client| client.id);
        }
        let mut of_address = BTreeMap::<_, usize>::new();
        clients().for_each(|client| *of_address.entry(client.from).or_default() += 1);
        let rank = |client: &&Client| (usize::MAX - of_address[&client.from], silent(client));
        clients()
            .filter(|client| client.proven.load(Ordering::Relaxed))
            .min_by_key(rank)
            .map(|client| client.id)
    }

    fn cut(&mut self, id: u64) {
        if let Some(open) = self.open.remove(&id) {
            // It may have ended at this moment.
            let _ = open.cut.send(());
        }
    }

    /// Ends the connection that holds most of a room, if that is more than `client` holds, unless what ended
    /// connections still hold is enough.
    fn make_room(&mut self, room: Room, amount: usize, client: &Client) {
        let held = |open: &Open| open.client.held[room as usize].load(Ordering::Relaxed);
        let staying: usize = self.open.values().map(held).sum();
        if staying + amount <= room.most() {
            return;
        }
        let most = self.open.iter().max_by_key(|(_, open)| held(open)).map(|(id, open)| (*id, held(open)));
        if let Some((id, most)) = most
            && most > client.held[room as usize].load(Ordering::Relaxed)
        {
            self.cut(id);
        }
    }
}

impl Place {
    pub(crate) fn client(&self) -> Arc<Client> {
        self.0.clone()
    }

    /// The client sent something.
    pub(crate) fn heard(&self) {
        self.0.heard.store(self.0.all.now(), Ordering::Relaxed);
    }

    /// The client sent a request.
    pub(crate) fn proven(&self) {
        self.0.proven.store(true, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.all.lock().open.remove(&self.0.id);
    }
}

impl Client {
    /// Takes part of a room, or is refused. Then the client that holds most of it loses its connection.
    pub(crate) fn hold(self: &Arc<Self>, room: Room, amount: usize) -> Result<Held, ApiError> {
        let mut inner = self.all.lock();
        if inner.held[room as usize] + amount > room.most() {
            inner.make_room(room, amount, self);
            return Err(ApiError::TooManyRequests);
        }
        inner.held[room as usize] += amount;
        self.held[room as usize].fetch_add(amount, Ordering::Relaxed);
        Ok(Held { client: self.clone(), room, amount })
    }

    /// The same, and waits a while.
    pub(crate) async fn hold_within(
        self: &Arc<Self>,
        room: Room,
        amount: usize,
        patience: Duration,
    ) -> Result<Held, ApiError> {
        let holding = async {
            loop {
                let freed = self.all.0.freed.notified();
                tokio::pin!(freed);
                // From now on nothing that becomes free is missed.
                freed.as_mut().enable();
                if let Ok(held) = self.hold(room, amount) {
                    return held;
                }
                freed.await;
            }
        };
        tokio::time::timeout(patience, holding).await.map_err(|_| ApiError::TooManyRequests)
    }

    /// Whether a large answer may be encoded now: one, and then all other tasks have a turn.
    pub(crate) fn may_encode(&self) -> bool {
        if self.all.0.encoded.swap(true, Ordering::Relaxed) {
            return false;
        }
        let all = self.all.clone();
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            all.0.encoded.store(false, Ordering::Relaxed);
        });
        true
    }

    /// How much of a room is free.
    pub(crate) fn free(&self, room: Room) -> usize {
        room.most().saturating_sub(self.all.lock().held[room as usize])
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let room = self.room as usize;
        self.client.all.lock().held[room] -= self.amount;
        self.client.held[room].fetch_sub(self.amount, Ordering::Relaxed);
        self.client.all.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proven(all: &Connections, from: u8) -> (Place, oneshot::Receiver<()>) {
        let (place, cut) = all.admit(Some(IpAddr::from([10, 0, 0, from])));
        place.proven();
        (place, cut)
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_was_silent_for_longest_makes_room() {
        let all = Connections::of(2, 2);
        let (first, mut first_cut) = proven(&all, 1);
        let (_second, mut second_cut) = proven(&all, 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        first.heard();
        let (third, mut third_cut) = proven(&all, 1);
        assert!(second_cut.try_recv().is_ok());
        assert!(first_cut.try_recv().is_err() && third_cut.try_recv().is_err());
        drop(third);
        let (_fourth, _) = proven(&all, 1);
        assert!(first_cut.try_recv().is_err(), "one that ended leaves its place");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_without_a_request_take_a_part_of_the_places_and_no_client() {
        let all = Connections::of(8, 4);
        let mut honest: Vec<_> = (0..4).map(|_| proven(&all, 1)).collect();
        tokio::time::advance(Duration::from_secs(1)).await;
        let silent: Vec<_> = (0..100).map(|_| all.admit(None)).collect();
        assert!(honest.iter_mut().all(|(_, cut)| cut.try_recv().is_err()));
        drop(silent);
    }

    #[tokio::test]
    async fn the_address_with_most_connections_makes_room_and_not_the_silent_client_of_another() {
        let all = Connections::of(8, 8);
        let (_honest, mut cut) = proven(&all, 1);
        let _attack: Vec<_> = (0..100).map(|_| proven(&all, 2)).collect();
        assert!(cut.try_recv().is_err());
    }

    #[tokio::test]
    async fn who_holds_most_of_a_full_room_is_cut_and_who_asked_gets_it_soon() {
        let all = Connections::default();
        let (honest, mut honest_cut) = proven(&all, 1);
        let (small, mut small_cut) = proven(&all, 2);
        let (large, mut large_cut) = proven(&all, 3);
        let third = limits::RECEIVED / 3;
        let _small = small.client().hold(Room::Received, third).unwrap();
        let held: Vec<_> = (0..2).map(|_| large.client().hold(Room::Received, third).unwrap()).collect();
        let client = honest.client();
        assert_eq!(client.hold(Room::Received, 100).err(), Some(ApiError::TooManyRequests));
        assert!(large_cut.try_recv().is_ok());
        // Its connection ends soon: nobody else is cut meanwhile.
        assert!(client.hold(Room::Received, 100).is_err());
        assert!(small_cut.try_recv().is_err() && honest_cut.try_recv().is_err());
        let waiting = client.hold_within(Room::Received, 100, Duration::from_secs(60));
        let ending = async { drop(held) };
        assert!(tokio::join!(waiting, ending).0.is_ok());
    }

    #[tokio::test]
    async fn who_holds_most_is_refused_and_cuts_nobody() {
        let all = Connections::default();
        let (large, mut large_cut) = proven(&all, 1);
        let (small, mut small_cut) = proven(&all, 2);
        let _small = small.client().hold(Room::Calls, 1).unwrap();
        let _held = large.client().hold(Room::Calls, limits::CALLS - 1).unwrap();
        assert!(large.client().hold(Room::Calls, 1).is_err());
        assert!(large_cut.try_recv().is_err() && small_cut.try_recv().is_err());
    }
}
