//! The shell: feeds inputs to the core and performs its effects. The only place with I/O, a clock and tasks.
//!
//! ```text
//!   store task ── StoreEvent ─┐                       ┌─ Claim ──▶ a task per claim ── Claimed ─┐
//!   inotify ───── File ───────┤                       ├─ Publish ▶ subnet.env                   │
//!   netlink ───── Kernel ─────┼─▶ inbox ─▶ NodeCore ──┼─ Announce ▶ /readyz, READY=1             │
//!   timer ──────── tick ──────┘             ▲         └─ ReadHost, ReadOwn, Apply ─▶ kernel thread
//!                                           └──────────────── Host, Own, Applied, Claimed ───────┘
//! ```

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use backends::kernel::real::{EventFilter, Events, Notice};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use subnet_lease::{Claim, DataPath, Lease, NetworkId, Store};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::tap::Tap;
use crate::config::SettingsFiles;
use crate::core::{
    Arbiter, Effect, Input, Listen, NodeCore, Readiness, Settings, Status, StatusRequest, Tick,
};
use crate::exit::Exit;
use crate::host::conflists;
use crate::shell::clock;
use crate::shell::kernel_thread::{self, Ask, KernelThread};
use crate::shell::plane_tasks::PlaneTasks;
use crate::shell::state_file::StateFile;
use crate::shell::subscription::Subscription;
use crate::shell::{conflists as conflist_watch, publish, settings_files, signals};

/// Inputs that may wait for the core; a task with more inputs waits. Ours: more than arrives during one pass.
const INBOX: usize = 1024;
/// How long stopping may wait for the kernel.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// What the shell is given.
pub struct Shell {
    /// For the core.
    pub settings: Settings,
    /// Where leases live.
    pub store: Arc<dyn Store>,
    /// Where to write subnet.env.
    pub subnet_file: PathBuf,
    /// The directory of what is remembered for the next start.
    pub state_dir: PathBuf,
    /// Whether a daemon that is stopped gives its lease back.
    pub release_on_exit: bool,
    /// The recorder's file.
    pub record_file: Option<PathBuf>,
    /// The files that the settings come from.
    pub settings_files: Arc<SettingsFiles>,
    /// What belongs to the host, shared by all networks of this daemon.
    pub host: Rc<RefCell<Host>>,
    /// Requests for the status. There are no more once the other end is gone.
    pub status: mpsc::Receiver<StatusRequest>,
}

/// What belongs to the host and not to one network.
pub struct Host {
    /// Which network has what of it.
    pub arbiter: Arbiter,
    /// The host's readiness, for those who ask.
    pub readiness: watch::Sender<Readiness>,
    /// systemd was notified.
    pub notified: bool,
}

struct Running {
    network: NetworkId,
    host: Rc<RefCell<Host>>,
    /// The arbiter's version that the core knows.
    seen: u64,
    store: Arc<dyn Store>,
    subnet_file: PathBuf,
    state: StateFile,
    release_on_exit: bool,
    kernel: KernelThread,
    inbox: mpsc::Sender<Input>,
    filter: EventFilter,
    status: mpsc::Receiver<StatusRequest>,
    planes: PlaneTasks,
    settings_files: Arc<SettingsFiles>,
    tap: Tap,
    exit: Option<Exit>,
}

/// Runs the daemon until it is stopped or must stop.
pub async fn run(shell: Shell) -> Exit {
    match start(shell) {
        Ok((mut running, mut core, inputs, events)) => running.serve(&mut core, inputs, events).await,
        Err(sentence) => {
            error!("{sentence}");
            Exit::Permission
        }
    }
}

/// Runs a daemon of several networks until it is stopped, or one of them must end.
pub async fn run_all(shells: Vec<Shell>) -> Exit {
    let mut running: FuturesUnordered<_> = shells.into_iter().map(run).collect();
    while let Some(exit) = running.next().await {
        if exit != Exit::Done {
            return exit;
        }
    }
    Exit::Done
}

type Subscriptions = [Subscription; 2];
type Started = (Running, NodeCore, mpsc::Receiver<Input>, Subscriptions);

fn start(shell: Shell) -> Result<Started, String> {
    let (inbox, inputs) = mpsc::channel(INBOX);
    // Subscribed before the first dump: changes in between are notified.
    let route = Subscription::new("netlink notifications", Events::route);
    if !route.is_open() {
        return Err("no notifications of the kernel".to_owned());
    }
    let netfilter = Subscription::new("nf_tables notifications", Events::netfilter);
    let kernel = kernel_thread::start(inbox.clone(), shell.settings.iface.can_reach)?;
    let mut watched = shell.store.watch();
    let stored = inbox.clone();
    tokio::spawn(async move {
        while let Some(event) = watched.next().await {
            if stored.send(Input::Store(event)).await.is_err() {
                break;
            }
        }
    });
    publish::watch(&shell.subnet_file, inbox.clone());
    conflist_watch::watch();
    settings_files::watch(shell.settings_files.clone());
    let state = StateFile::open(&shell.state_dir, &shell.settings.network);
    let network = shell.settings.network.clone();
    shell.host.borrow_mut().arbiter.expect(&network);
    let core = NodeCore::new(shell.settings);
    let running = Running {
        network,
        host: shell.host,
        seen: 0,
        store: shell.store,
        subnet_file: shell.subnet_file,
        state,
        release_on_exit: shell.release_on_exit,
        filter: EventFilter { ours: kernel.ports.clone(), ..EventFilter::default() },
        kernel,
        planes: PlaneTasks::new(inbox.clone()),
        inbox,
        status: shell.status,
        settings_files: shell.settings_files,
        tap: Tap::open(shell.record_file.as_deref(), clock::boot(), &core),
        exit: None,
    };
    Ok((running, core, inputs, [route, netfilter]))
}

impl Running {
    async fn serve(
        &mut self,
        core: &mut NodeCore,
        mut inputs: mpsc::Receiver<Input>,
        [mut route, mut netfilter]: Subscriptions,
    ) -> Exit {
        let mut stop = std::pin::pin!(signals::stop());
        if let Ok(env) = subnet_lease::SubnetEnv::read(&self.subnet_file) {
            self.step(core, Some(Input::Remembered(env)));
        }
        if let Some((memory, warm)) = self.state.read() {
            self.step(core, Some(Input::Recalled(Box::new(memory), warm)));
        }
        while self.exit.is_none() {
            // Not in this order: a flood of one of these must not keep the others from being read.
            tokio::select! {
                () = &mut stop => {
                    info!("stopping; the kernel's state stays");
                    if core.applying().is_some() {
                        last_apply(&mut inputs, signals::stop()).await;
                    }
                    if let Some(memory) = core.unremembered() {
                        self.state.keep_now(&memory);
                    }
                    if let Some(lease) = core.shown_lease().filter(|_| self.release_on_exit) {
                        self.release(lease).await;
                    }
                    return Exit::Done;
                }
                Some(asker) = self.status.recv() => {
                    let status = Status {
                        unreadable: route.unreadable() + netfilter.unreadable(),
                        unremembered: self.state.problem(),
                        rival_conflists: conflists::all(),
                        changed_settings: self.settings_files.changed(),
                        listed_peers: core.peer_reports(asker.peers),
                        ..core.status(clock::boot())
                    };
                    // An asker that does not wait for the answer needs none.
                    let _ = asker.answer.send(status);
                }
                Some(input) = inputs.recv() => self.step(core, Some(input)),
                notice = route.next(&self.filter) => self.notice(core, notice),
                notice = netfilter.next(&self.filter) => self.notice(core, notice),
                () = sleep_until(deadline(core.next_deadline())) => self.step(core, None),
            }
        }
        self.exit.unwrap_or(Exit::Done)
    }

    /// Every input, and the effects that follow from it; none is a tick.
    fn step(&mut self, core: &mut NodeCore, input: Option<Input>) {
        let news = self.host.borrow().arbiter.news(&self.network, &mut self.seen);
        for input in news.map(Input::Shared).map(Some).into_iter().chain([input]) {
            let effects = self.tap.handle(core, clock::boot(), input);
            self.perform(effects);
        }
    }

    fn notice(&mut self, core: &mut NodeCore, Notice { event, touches }: Notice) {
        if !touches.is_empty() {
            self.step(core, Some(Input::Touched(touches)));
        }
        if let Some(event) = event {
            self.step(core, Some(Input::Kernel(event)));
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Share(share) => self.host.borrow_mut().arbiter.share(share),
                Effect::Listen(listen) => self.listen(*listen),
                Effect::ReadHost => self.ask(Ask::Host),
                Effect::ReadOwn(owner) => self.ask(Ask::Own(owner)),
                Effect::Apply(plan) => {
                    debug!("plan:\n{plan}");
                    self.ask(Ask::Apply(plan));
                }
                Effect::Claim(claim) => self.claim(*claim),
                Effect::Plane(wishes) => self.planes.wish(&wishes),
                Effect::Publish(env) => {
                    if let Err(error) = publish::write(&self.subnet_file, &env) {
                        warn!("cannot write {}: {error}", self.subnet_file.display());
                    }
                }
                Effect::Remember(memory) => self.state.keep(*memory),
                Effect::Withdraw(reason) => publish::withdraw(&self.subnet_file, &reason),
                Effect::Announce(readiness) => self.announce(readiness),
                Effect::Exit(code) => self.exit = Some(code),
            }
        }
    }

    fn listen(&mut self, listen: Listen) {
        let Listen { networks, links, external, known, gates, rules } = listen;
        let ours = std::mem::take(&mut self.filter.ours);
        self.filter = EventFilter { networks, links, external, ours, known, gates, rules };
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
            let _ = inbox.send(Input::Claimed(store.claim(&claim).await)).await;
        });
    }

    /// Somebody else may have the subnet at once.
    async fn release(&self, lease: &Lease) {
        match timeout(STOP_WITHIN, self.store.release(lease)).await {
            Ok(Ok(true)) => info!(subnets = %lease.subnets, "lease given back"),
            Ok(Ok(false)) => {
                info!(subnets = %lease.subnets, "the lease is reserved or another host's: it stays")
            }
            Ok(Err(error)) => warn!("lease not given back, it ends with its time: {error}"),
            Err(_) => warn!("lease not given back, it ends with its time: the store does not answer"),
        }
    }

    fn announce(&self, readiness: Readiness) {
        self.store.set_remarks(&readiness.reasons);
        self.store.set_data_path(match readiness.ready {
            true => DataPath::Works,
            false => DataPath::Fails(readiness.reasons.join("; ")),
        });
        let mut host = self.host.borrow_mut();
        let readiness = host.arbiter.judge(&self.network, readiness);
        info!("{}", announcement(host.readiness.borrow().ready, host.notified, &readiness));
        if readiness.ready && !host.notified {
            publish::notify_ready();
            host.notified = true;
        }
        host.readiness.send_replace(readiness);
    }
}

/// The log's line on a new readiness, after one that was ready or not; `notified`: the node was ready before.
fn announcement(was_ready: bool, notified: bool, now: &Readiness) -> String {
    let reasons = now.reasons.join("; ");
    match (now.ready, was_ready) {
        (false, _) => format!("not ready: {reasons}"),
        (true, true) if reasons.is_empty() => "ready, without warnings".to_owned(),
        (true, true) => format!("ready, with warnings: {reasons}"),
        (true, false) if notified => "ready again".to_owned(),
        (true, false) => "ready".to_owned(),
    }
}

/// Waits for the end of the running apply, so that the next start finds no plan that is half done. The wait is short, and ends
/// when `again` asks a second time.
async fn last_apply(inputs: &mut mpsc::Receiver<Input>, again: impl Future<Output = ()>) {
    let applied = async {
        while let Some(input) = inputs.recv().await {
            if matches!(input, Input::Applied(_)) {
                return;
            }
        }
    };
    tokio::select! {
        ended = timeout(STOP_WITHIN, applied) => if ended.is_err() {
            warn!("the kernel is busy for {STOP_WITHIN:?}; the next start takes up what is half done");
        },
        () = again => warn!("stopped twice; ending at once"),
    }
}

/// A tick as an instant of the runtime's clock. That one stands still while the host sleeps, so a deadline may come
/// late by as much; the first input after waking corrects it.
fn deadline(at: Tick) -> Instant {
    let now = Instant::now();
    now.checked_add(at.saturating_sub(clock::boot())).unwrap_or(now + clock::LONG)
}

#[cfg(test)]
mod tests;
