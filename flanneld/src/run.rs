//! The shell: feeds inputs to the core and performs its effects. The only place with I/O, a clock and tasks.
//!
//! ```text
//!   store task ── StoreEvent ─┐                       ┌─ Claim ──▶ a task per claim ── Claimed ─┐
//!   inotify ───── File ───────┤                       ├─ Publish ▶ subnet.env                   │
//!   netlink ───── Kernel ─────┼─▶ inbox ─▶ NodeCore ──┼─ Announce ▶ /readyz, READY=1             │
//!   timer ──────── tick ──────┘             ▲         └─ ReadHost, ReadOwn, Apply ─▶ kernel thread
//!                                           └──────────────── Host, Own, Applied, Claimed ───────┘
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use backends::kernel::KernelEvent;
use backends::kernel::real::{EventFilter, Events};
use futures::StreamExt;
use subnet_lease::{Claim, Store};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::clock;
use crate::exit::Exit;
use crate::kernel_thread::{self, Ask};
use crate::node::{Effect, Input, NodeCore, Readiness, Settings, Tick};
use crate::publish;

/// What the shell is given.
pub struct Shell {
    /// For the core.
    pub settings: Settings,
    /// Where leases live.
    pub store: Arc<dyn Store>,
    /// Where to write subnet.env.
    pub subnet_file: PathBuf,
    /// Who asks whether the node is ready.
    pub readiness: watch::Sender<Readiness>,
}

struct Running {
    store: Arc<dyn Store>,
    subnet_file: PathBuf,
    readiness: watch::Sender<Readiness>,
    kernel: std::sync::mpsc::Sender<Ask>,
    inbox: mpsc::UnboundedSender<Input>,
    filter: EventFilter,
    exit: Option<Exit>,
    notified: bool,
}

/// Runs the daemon until it is told to stop or must.
pub async fn run(shell: Shell) -> Exit {
    match start(shell) {
        Ok((mut running, mut core, inputs, events)) => running.serve(&mut core, inputs, events).await,
        Err(sentence) => {
            error!("{sentence}");
            Exit::Permission
        }
    }
}

type Subscriptions = [Option<AsyncFd<Events>>; 2];
type Started = (Running, NodeCore, mpsc::UnboundedReceiver<Input>, Subscriptions);

fn start(shell: Shell) -> Result<Started, String> {
    let (inbox, inputs) = mpsc::unbounded_channel();
    // Subscribed before the first dump: what changes in between is told.
    let route = Events::route().map_err(|e| format!("netlink notifications: {e}"))?;
    let route = pollable(route).map_err(|e| format!("netlink notifications: {e}"))?;
    let netfilter = Events::netfilter().ok().and_then(|e| pollable(e).ok());
    let kernel = kernel_thread::start(inbox.clone())?;
    let mut watched = shell.store.watch();
    let stored = inbox.clone();
    tokio::spawn(async move {
        while let Some(event) = watched.next().await {
            if stored.send(Input::Store(event)).is_err() {
                break;
            }
        }
    });
    publish::watch(&shell.subnet_file, inbox.clone());
    let running = Running {
        store: shell.store,
        subnet_file: shell.subnet_file,
        readiness: shell.readiness,
        kernel,
        inbox,
        filter: EventFilter::default(),
        exit: None,
        notified: false,
    };
    Ok((running, NodeCore::new(shell.settings), inputs, [Some(route), netfilter]))
}

#[allow(
    deprecated,
    reason = "its successor is unsafe; the descriptor is the socket's own for as long as both live"
)]
fn pollable(events: Events) -> std::io::Result<AsyncFd<Events>> {
    AsyncFd::new(events)
}

impl Running {
    async fn serve(
        &mut self,
        core: &mut NodeCore,
        mut inputs: mpsc::UnboundedReceiver<Input>,
        [route, mut netfilter]: Subscriptions,
    ) -> Exit {
        let mut stop = std::pin::pin!(crate::signals::stop());
        if let Ok(env) = subnet_lease::SubnetEnv::read(&self.subnet_file) {
            self.perform(core.handle(clock::boot(), Input::Remembered(env)));
        }
        let mut route = route;
        while self.exit.is_none() {
            let effects = tokio::select! {
                biased;
                () = &mut stop => {
                    info!("stopping; the kernel's state stays");
                    return Exit::Done;
                }
                Some(input) = inputs.recv() => core.handle(clock::boot(), input),
                event = next_event(&mut route, &self.filter) => core.handle(clock::boot(), Input::Kernel(event)),
                event = next_event(&mut netfilter, &self.filter) => core.handle(clock::boot(), Input::Kernel(event)),
                () = sleep_until(deadline(core.next_deadline())) => core.tick(clock::boot()),
            };
            self.perform(effects);
        }
        self.exit.unwrap_or(Exit::Done)
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ReadHost => self.ask(Ask::Host),
                Effect::ReadOwn(owner) => {
                    self.filter =
                        EventFilter { networks: owner.networks.clone(), links: owner.names.clone() };
                    self.ask(Ask::Own(owner));
                }
                Effect::Apply(plan) => {
                    debug!("plan:\n{plan}");
                    self.ask(Ask::Apply(plan));
                }
                Effect::Claim(claim) => self.claim(*claim),
                Effect::Publish(env) => {
                    if let Err(error) = publish::write(&self.subnet_file, &env) {
                        warn!("cannot write {}: {error}", self.subnet_file.display());
                    }
                }
                Effect::Withdraw(reason) => publish::withdraw(&self.subnet_file, &reason),
                Effect::Announce(readiness) => self.announce(readiness),
                Effect::Exit(code) => self.exit = Some(code),
            }
        }
    }

    fn ask(&mut self, ask: Ask) {
        if self.kernel.send(ask).is_err() {
            error!("the kernel thread has ended");
            self.exit = Some(Exit::Failed);
        }
    }

    fn claim(&self, claim: Claim) {
        let (store, inbox) = (self.store.clone(), self.inbox.clone());
        tokio::spawn(async move {
            // The receiver is gone only when the daemon is about to end.
            let _ = inbox.send(Input::Claimed(store.claim(&claim).await));
        });
    }

    fn announce(&mut self, readiness: Readiness) {
        match readiness.ready {
            true if !self.notified => {
                info!("ready");
                publish::notify_ready();
                self.notified = true;
            }
            true => info!("ready again"),
            false => info!("not ready: {}", readiness.reasons.join("; ")),
        }
        self.readiness.send_replace(readiness);
    }
}

/// The next notification that matters; never, without a subscription.
async fn next_event(events: &mut Option<AsyncFd<Events>>, filter: &EventFilter) -> KernelEvent {
    loop {
        let Some(subscription) = events else { return std::future::pending().await };
        let Ok(mut guard) = subscription.readable_mut().await else { continue };
        let drained = guard.get_inner_mut().drain(filter);
        guard.clear_ready();
        match drained {
            Ok(Some(event)) => return event,
            Ok(None) => {}
            Err(error) => {
                warn!("netlink notifications: {error}; relying on audits");
                *events = None;
                return KernelEvent::Overrun;
            }
        }
    }
}

/// A tick as an instant of the runtime's clock. That one stands still while the host sleeps, so a deadline may come
/// late by as much; the first input after waking corrects it.
fn deadline(at: Tick) -> Instant {
    let now = Instant::now();
    now.checked_add(at.saturating_sub(clock::boot())).unwrap_or(now + clock::LONG)
}
