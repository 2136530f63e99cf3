//! One daemon on one fake kernel, without time: effects are performed at once, until there are none.

use std::time::Duration;

use backends::Plan;
use backends::kernel::fake::FakeKernel;
use backends::kernel::{Kernel, KernelEvent};
use flanneld::core::{Effect, Input, Memory, NodeCore, Settings, Status, Tick};
use subnet_lease::{Claim, Lease, OwnLease, StoreEvent, SubnetEnv};

/// The daemon with its host.
pub struct Solo {
    /// The daemon.
    pub core: NodeCore,
    /// Its kernel.
    pub kernel: FakeKernel,
    /// The plans it applied, and how many steps of each failed.
    pub plans: Vec<(Plan, usize)>,
    /// Its subnet.env.
    pub env: Option<SubnetEnv>,
    /// What it wants to remember.
    pub memory: Option<Memory>,
    /// Why subnet.env was withdrawn, if it was.
    pub withdrawn: Option<String>,
    /// How many claims it made.
    pub claims: usize,
    /// What it claimed last.
    pub claim: Option<Claim>,
    /// What the store grants.
    pub own: Lease,
    now: Tick,
}

/// The settings of these tests: without rules, which are long and always the same.
pub fn settings() -> Settings {
    Settings {
        iptables_resync: Duration::from_secs(5),
        renew_margin: Duration::from_secs(3600),
        vanish_hold: Duration::from_secs(60),
        seed: 7,
        ..Settings::default()
    }
}

impl Solo {
    /// A daemon that is not started. The store will grant this lease.
    pub fn new(settings: Settings, kernel: FakeKernel, own: Lease) -> Self {
        Self {
            core: NodeCore::new(settings),
            kernel,
            plans: Vec::new(),
            env: None,
            memory: None,
            withdrawn: None,
            claims: 0,
            claim: None,
            own,
            now: Tick::ZERO,
        }
    }

    /// Starts it: the net-conf, then all leases.
    pub fn start(&mut self, network: &[u8], leases: Vec<Lease>) {
        self.hear(Input::Store(StoreEvent::Config(network.to_vec())));
        self.hear(Input::Store(StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign: false }));
    }

    /// Gives it an input, and performs all effects that follow, without retries.
    pub fn hear(&mut self, input: Input) {
        let effects = self.core.handle(self.now, input);
        self.perform(effects);
    }

    /// Gives it the kernel's notifications, as the real subscription does: the most important one of each
    /// batch, until there are none.
    pub fn notice(&mut self) {
        let weight = |event: &KernelEvent| match event {
            KernelEvent::Own => 1,
            KernelEvent::Host => 2,
            KernelEvent::Overrun => 3,
        };
        while let Some(event) = self.kernel.events().into_iter().max_by_key(weight) {
            self.hear(Input::Kernel(event));
        }
    }

    /// Kills the daemon and starts another one on the same host. The new one has no input from the store yet.
    pub fn restart(&mut self, settings: Settings) {
        self.core = NodeCore::new(settings);
        if let Some(env) = self.env {
            self.hear(Input::Remembered(env));
        }
    }

    /// Lets time pass, and does everything that is due, including retries.
    pub fn wait(&mut self, span: Duration) {
        let until = self.now + span;
        while self.core.next_deadline() <= until {
            self.now = self.now.max(self.core.next_deadline());
            let effects = self.core.tick(self.now);
            self.perform(effects);
        }
        self.now = until;
    }

    /// Its status.
    pub fn status(&self) -> Status {
        self.core.status(self.now)
    }

    /// The plans since the last call.
    pub fn take_plans(&mut self) -> Vec<(Plan, usize)> {
        std::mem::take(&mut self.plans)
    }

    fn perform(&mut self, mut effects: Vec<Effect>) {
        while !effects.is_empty() {
            let next: Vec<_> = effects.into_iter().filter_map(|effect| self.answer(effect)).collect();
            effects = next.into_iter().flat_map(|input| self.core.handle(self.now, input)).collect();
        }
    }

    fn answer(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::ReadHost => Some(Input::Host(self.kernel.host())),
            Effect::ReadOwn(owner) => Some(Input::Own(self.kernel.own(&owner))),
            Effect::Apply(plan) => {
                let results = self.kernel.apply(&plan.ops);
                let failed = results.iter().filter(|r| r.is_err()).count();
                self.plans.push((std::sync::Arc::unwrap_or_clone(plan), failed));
                Some(Input::Applied(results))
            }
            Effect::Claim(claim) => {
                self.claims += 1;
                self.claim = Some((*claim).clone());
                self.own = Lease { public: claim.public, attrs: claim.attrs.clone(), ..self.own.clone() };
                let expires_in = Some(Duration::from_secs(24 * 3600));
                Some(Input::Claimed(Ok(OwnLease { lease: self.own.clone(), expires_in })))
            }
            Effect::Publish(env) => {
                self.env = Some(env);
                None
            }
            Effect::Remember(memory) => {
                self.memory = Some(*memory);
                None
            }
            Effect::Withdraw(why) => {
                self.withdrawn = Some(why);
                None
            }
            Effect::Plane(_)
            | Effect::Announce(_)
            | Effect::Listen(_)
            | Effect::Share(_)
            | Effect::Exit(_) => None,
        }
    }
}
