//! A task per plane: it always works on the newest wish, at its own pace, and no pass waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use backends::plane::{self, Plane, PlaneWish};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::error;

use crate::core::Input;

/// Pauses between attempts at rows that failed: doubled from the first to the last. Ours.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The planes that were ever wished for in this run.
pub(crate) struct PlaneTasks {
    open: fn(&str) -> Option<Box<dyn Plane>>,
    inbox: mpsc::Sender<Input>,
    wishes: BTreeMap<String, watch::Sender<PlaneWish>>,
}

impl PlaneTasks {
    pub(crate) fn new(inbox: mpsc::Sender<Input>) -> Self {
        Self { open: plane::open, inbox, wishes: BTreeMap::new() }
    }

    /// Passes wishes on; a plane that is not among them gets an empty one.
    pub(crate) fn wish(&mut self, wishes: &[PlaneWish]) {
        for (backend, sender) in &self.wishes {
            if !wishes.iter().any(|wish| wish.backend == *backend) {
                sender.send_replace(PlaneWish { backend: backend.clone(), ..PlaneWish::default() });
            }
        }
        for wish in wishes {
            match self.wishes.get(&wish.backend) {
                Some(sender) => drop(sender.send_replace(wish.clone())),
                None => self.begin(wish),
            }
        }
    }

    fn begin(&mut self, wish: &PlaneWish) {
        let Some(plane) = (self.open)(&wish.backend) else {
            return error!(
                "{} wishes for more than the kernel holds, and nothing here makes it",
                wish.backend
            );
        };
        let (sender, newest) = watch::channel(wish.clone());
        self.wishes.insert(wish.backend.clone(), sender);
        tokio::spawn(keep(plane, newest, self.inbox.clone()));
    }
}

/// Ends with the daemon: its sender is dropped then.
async fn keep(mut plane: Box<dyn Plane>, mut newest: watch::Receiver<PlaneWish>, inbox: mpsc::Sender<Input>) {
    let (mut last, mut pause) = (None, FIRST_PAUSE);
    loop {
        let wish = newest.borrow_and_update().clone();
        let outcome = plane.converge(&wish).await;
        let failed = outcome.failed > 0;
        if last.as_ref() != Some(&outcome) && inbox.send(Input::Plane(outcome.clone())).await.is_err() {
            return;
        }
        last = Some(outcome);
        let changed = match failed {
            true => timeout(pause, newest.changed()).await,
            false => Ok(newest.changed().await),
        };
        pause = match changed {
            Ok(Ok(())) => FIRST_PAUSE,
            Ok(Err(_)) => return,
            Err(_) => (pause * 2).min(LAST_PAUSE),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use backends::plane::PlaneOutcome;
    use subnet_lease::BoxFuture;
    use tokio::sync::Semaphore;

    use super::*;

    /// Converges when it is let, and keeps what it was asked for. Rows named `bad` fail the first time.
    struct Slow {
        go: Arc<Semaphore>,
        seen: Arc<Mutex<Vec<usize>>>,
    }

    impl Plane for Slow {
        fn converge<'a>(&'a mut self, want: &'a PlaneWish) -> BoxFuture<'a, PlaneOutcome> {
            Box::pin(async move {
                self.go.acquire().await.unwrap().forget();
                let mut seen = self.seen.lock().unwrap();
                seen.push(want.rows.len());
                let bad = want.rows.contains_key("bad") && seen.len() == 1;
                let failures = if bad { vec![("bad".to_owned(), "no".to_owned())] } else { Vec::new() };
                PlaneOutcome::of(want, failures)
            })
        }
    }

    fn wish(rows: &[&str]) -> PlaneWish {
        let rows = rows.iter().map(|row| ((*row).to_owned(), String::new())).collect();
        PlaneWish { backend: "slow".to_owned(), rows }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_plane_skips_wishes_that_are_out_of_date_and_repeats_what_failed() {
        let (go, seen) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (inbox, mut inputs) = mpsc::channel(8);
        let mut tasks = PlaneTasks::new(inbox.clone());
        let (sender, newest) = watch::channel(wish(&["bad"]));
        tasks.wishes.insert("slow".to_owned(), sender);
        let slow = Slow { go: go.clone(), seen: seen.clone() };
        tokio::spawn(keep(Box::new(slow), newest, inbox));
        go.add_permits(2);
        let mut next = async || match inputs.recv().await.unwrap() {
            Input::Plane(outcome) => (outcome.in_place, outcome.failed),
            other => panic!("{other:?}"),
        };
        assert_eq!((next().await, next().await), ((0, 1), (1, 0)), "it tried again by itself");
        for rows in [&["a", "b"][..], &["a", "b", "c"], &["a", "b", "c", "d"]] {
            tasks.wish(&[wish(rows)]);
        }
        go.add_permits(1);
        assert_eq!(next().await, (4, 0));
        tasks.wish(&[]);
        go.add_permits(1);
        assert_eq!(next().await, (0, 0), "what nobody wishes for is emptied");
        assert_eq!(*seen.lock().unwrap(), [1, 1, 4, 0]);
    }
}
