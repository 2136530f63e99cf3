use std::cell::Cell;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::errno::Errno;

use super::*;

/// A socket that is always readable, fails on command, and counts how often it is read.
struct Script {
    ends: (UnixStream, UnixStream),
    broken: Rc<Cell<bool>>,
    drains: Rc<Cell<u32>>,
}

impl AsRawFd for Script {
    fn as_raw_fd(&self) -> RawFd {
        self.ends.0.as_raw_fd()
    }
}

impl Source for Script {
    fn drain(&mut self, _: &EventFilter) -> Result<Notice, NetlinkError> {
        use std::io::{Read as _, Write as _};
        self.drains.set(self.drains.get() + 1);
        let _ = self.ends.0.read(&mut [0; 64]).unwrap();
        self.ends.1.write_all(b"more").unwrap();
        match self.broken.get() {
            true => Err(NetlinkError::Socket(Errno::EIO)),
            false => Ok(Notice { event: Some(KernelEvent::Own), ..Notice::default() }),
        }
    }

    fn unreadable(&self) -> u64 {
        1
    }
}

#[derive(Default)]
struct Knobs {
    broken: Rc<Cell<bool>>,
    drains: Rc<Cell<u32>>,
    opened: Rc<Cell<u32>>,
    /// Opening fails.
    shut: Rc<Cell<bool>>,
}

fn scripted(knobs: &Knobs) -> Subscription<Script> {
    let (broken, drains) = (knobs.broken.clone(), knobs.drains.clone());
    let (opened, shut) = (knobs.opened.clone(), knobs.shut.clone());
    Subscription::new("test", move || {
        opened.set(opened.get() + 1);
        if shut.get() {
            return Err(NetlinkError::Socket(Errno::EMFILE));
        }
        let ends = UnixStream::pair().unwrap();
        ends.0.set_nonblocking(true).unwrap();
        ends.1.set_nonblocking(true).unwrap();
        std::io::Write::write_all(&mut &ends.1, b"first").unwrap();
        Ok(Script { ends, broken: broken.clone(), drains: drains.clone() })
    })
}

/// Runs on a clock that jumps.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(test)
}

async fn event(subscription: &mut Subscription<Script>) -> Option<KernelEvent> {
    subscription.next(&EventFilter::default()).await.event
}

#[test]
fn a_socket_that_fails_is_opened_again_and_what_was_missed_is_an_overrun() {
    run(async {
        let knobs = Knobs::default();
        let mut subscription = scripted(&knobs);
        assert_eq!(event(&mut subscription).await, Some(KernelEvent::Own));
        knobs.broken.set(true);
        assert_eq!(event(&mut subscription).await, Some(KernelEvent::Overrun), "at once");
        assert!(!subscription.is_open());
        knobs.broken.set(false);
        let before = Instant::now();
        assert_eq!(event(&mut subscription).await, Some(KernelEvent::Overrun), "and once it is open");
        assert!(before.elapsed() >= AGAIN_FIRST, "{:?}", before.elapsed());
        assert_eq!(event(&mut subscription).await, Some(KernelEvent::Own));
        assert_eq!(subscription.unreadable(), 2, "what the first could not read still counts");
    });
}

#[test]
fn one_that_keeps_failing_is_tried_ever_more_slowly_and_never_given_up() {
    run(async {
        let knobs = Knobs::default();
        knobs.shut.set(true);
        let mut subscription = scripted(&knobs);
        assert!(!subscription.is_open(), "the daemon starts without it");
        let silent = tokio::time::timeout(Duration::from_secs(3600), event(&mut subscription)).await;
        assert!(silent.is_err());
        assert!((60..80).contains(&knobs.opened.get()), "{}", knobs.opened.get());
        knobs.shut.set(false);
        assert_eq!(event(&mut subscription).await, Some(KernelEvent::Overrun));
        knobs.broken.set(true);
        let before = knobs.opened.get();
        let hour = tokio::time::timeout(Duration::from_secs(3600), async {
            loop {
                event(&mut subscription).await;
            }
        });
        assert!(hour.await.is_err());
        let opened = knobs.opened.get() - before;
        assert!(opened < 80, "one that opens and fails at once is no better: {opened}");
    });
}

#[test]
fn a_flood_is_read_in_gulps() {
    run(async {
        let knobs = Knobs::default();
        let mut subscription = scripted(&knobs);
        let second = tokio::time::timeout(Duration::from_secs(1), async {
            loop {
                event(&mut subscription).await;
            }
        });
        assert!(second.await.is_err());
        assert!((100..=DRAINS * 11).contains(&knobs.drains.get()), "{}", knobs.drains.get());
    });
}
