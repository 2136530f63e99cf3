//! One node: the daemon's core, its kernel, and what the shell does between them.

use std::time::Duration;

use backends::kernel::Kernel;
use backends::kernel::fake::{FakeKernel, Rng};
use backends::rules::RuleSettings;
use backends::{Object, Owner};
use flanneld::core::{Effect, Input, Memory, NodeCore, Readiness, Settings, Tick};
use flanneld::recorder::{Recorder, Ring};
use subnet_lease::{SubnetEnv, Subnets};

use super::hand::Fight;
use super::{Site, What, World};
use crate::solo::settings;

/// A node and its host, which outlives it.
pub struct Node {
    /// The daemon, while it runs.
    pub core: Option<NodeCore>,
    /// Writes down what the daemon hears and decides, where somebody asked for that.
    pub(super) recorder: Option<Recorder<Ring>>,
    /// The host's kernel.
    pub kernel: FakeKernel,
    /// The underlay as it is plugged now.
    pub site: Site,
    /// What the last lease was; the kernel goes on with it while the daemon is away.
    pub subnets: Option<Subnets>,
    /// Counts the daemon's lives: a message to an earlier one reaches nobody.
    pub(super) life: u32,
    /// The host's subnet.env.
    pub(super) env: Option<SubnetEnv>,
    /// What the last daemon wanted to be remembered.
    pub(super) memory: Option<Memory>,
    /// The host started since.
    pub(super) cold: bool,
    /// How much of the store's news was delivered.
    pub(super) read: usize,
    /// The history of the store that it follows.
    pub(super) age: Option<usize>,
    pub(super) delivering: bool,
    pub(super) partitioned: bool,
    /// Left for good: its lease is gone.
    pub(super) left: bool,
    /// What was planted beside ours and must stay.
    pub(super) foreign: Vec<Object>,
    /// A stranger who does not give up.
    pub(super) fight: Option<Fight>,
    /// How long the daemon is away after it was killed within a plan.
    pub(super) back: Duration,
    /// Chance, for this node alone.
    pub(super) rng: Rng,
    /// Inputs that may start a pass, and passes that left something undone.
    pub(super) reasons: u64,
    /// The last pass left something undone: it will be tried again.
    undone: bool,
    started: Tick,
    alarm: Option<Tick>,
    seed: u64,
}

/// The longest an answer of the kernel takes.
const KERNEL_MS: usize = 3;

impl Node {
    pub(super) fn new(site: Site, seed: u64) -> Self {
        let mut node = Self {
            core: None,
            recorder: None,
            kernel: FakeKernel::new(seed ^ site.number as u64),
            subnets: None,
            life: 0,
            env: None,
            memory: None,
            cold: false,
            read: 0,
            age: None,
            delivering: false,
            partitioned: false,
            left: false,
            foreign: Vec::new(),
            fight: None,
            back: Duration::ZERO,
            rng: Rng::new(seed.rotate_left(32) ^ 0xd1ce ^ site.number as u64),
            reasons: 0,
            undone: false,
            started: Tick::ZERO,
            alarm: None,
            seed: 0x5eed + site.number as u64,
            site,
        };
        node.plug();
        node
    }

    /// Whether a pass runs, or one is due that is not an audit.
    pub(super) fn is_busy(&self, now: Tick) -> bool {
        self.core.as_ref().is_some_and(|core| self.undone || !core.is_quiet(now) || core.is_holding())
    }

    pub(super) fn readiness(&self) -> Option<&Readiness> {
        self.core.as_ref().map(NodeCore::readiness)
    }

    /// Passes that there was a reason for: one for each input, each audit, each pass that left something undone.
    pub(super) fn passes_and_reasons(&self, now: Tick) -> (u64, u64) {
        let audits = now.saturating_sub(self.started).as_secs() / 27;
        (self.core.as_ref().map_or(0, NodeCore::passes), self.reasons + audits + 3)
    }
}

impl World {
    pub(super) fn boot(&mut self, n: usize) {
        let (six, now) = (self.shape.six, self.now);
        let node = &mut self.nodes[n];
        if node.core.is_some() {
            return;
        }
        node.life += 1;
        (node.read, node.age, node.delivering, node.alarm) = (0, None, false, None);
        (node.reasons, node.started, node.undone) = (0, now, false);
        node.kernel.events();
        let settings = Settings {
            rules: RuleSettings { masquerade: true, forward_rules: true, ..RuleSettings::default() },
            blackhole_route: six,
            node: Some(format!("node-{n}")),
            seed: node.seed.wrapping_add(u64::from(node.life) << 32),
            ..settings()
        };
        let core = node.core.insert(NodeCore::new(settings));
        if let Some(recorder) = &mut node.recorder {
            recorder.start(now, core);
        }
        if let Some(env) = node.env {
            self.input(n, Input::Remembered(env));
        }
        let warm = !std::mem::take(&mut self.nodes[n].cold);
        if let Some(memory) = self.nodes[n].memory.clone() {
            self.input(n, Input::Recalled(Box::new(memory), warm));
        }
        self.tick(n);
        self.subscribe(n);
    }

    pub(super) fn kill(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.core, node.alarm) = (None, None);
        node.life += 1;
    }

    pub(super) fn input(&mut self, n: usize, input: Input) {
        let node = &mut self.nodes[n];
        node.undone = match &input {
            Input::Applied(results) => results.iter().any(Result::is_err),
            Input::Own(Ok(own)) => own.interrupted,
            Input::Own(Err(_)) | Input::Host(Err(_)) => true,
            _ => node.undone,
        };
        let answer = matches!(input, Input::Applied(_) | Input::Own(_) | Input::Host(_));
        node.reasons += u64::from(node.undone || !answer);
        if self.nodes[n].core.is_some() {
            self.say(n, || brief(&input));
        }
        let node = &mut self.nodes[n];
        let Some(core) = &mut node.core else { return };
        let effects = match &mut node.recorder {
            Some(recorder) => recorder.handle(core, self.now, Some(input)),
            None => core.handle(self.now, input),
        };
        self.perform(n, effects);
    }

    pub(super) fn tick(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.alarm = None;
        let Some(core) = &mut node.core else { return };
        // What was held back is tried again.
        node.reasons += u64::from(core.is_holding());
        let effects = match &mut node.recorder {
            Some(recorder) => recorder.handle(core, self.now, None),
            None => core.tick(self.now),
        };
        self.perform(n, effects);
    }

    /// A notification arrived.
    pub(super) fn notified(&mut self, n: usize) {
        use backends::kernel::KernelEvent::{Host, Overrun, Own};
        let weight = |event: &_| match event {
            Own => 1,
            Host => 2,
            Overrun => 3,
        };
        // As the real subscription does: all that waits, reduced to the gravest.
        if let Some(event) = self.nodes[n].kernel.events().into_iter().max_by_key(weight) {
            self.input(n, Input::Kernel(event));
        }
    }

    /// Something changed in a kernel: its daemon will hear of it.
    pub(super) fn notify(&mut self, n: usize) {
        let after = self.up_to_ms(n, KERNEL_MS);
        self.send(after, n, What::Notified);
    }

    /// The shell's part.
    fn perform(&mut self, n: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ReadHost => {
                    let facts = self.nodes[n].kernel.host();
                    self.answer(n, Input::Host(facts));
                }
                Effect::ReadOwn(owner) if self.shape.every_step => {
                    let own = self.nodes[n].kernel.own(&owner);
                    self.answer(n, Input::Own(own));
                }
                Effect::ReadOwn(owner) => {
                    let after = self.up_to_ms(n, KERNEL_MS);
                    self.send(after, n, What::Read(Box::new(owner)));
                }
                Effect::Apply(plan) => self.apply(n, &plan.ops),
                Effect::Claim(claim) => {
                    let after = self.up_to_ms(n, self.shape.lag);
                    self.send(after, n, What::ClaimArrives(claim));
                }
                Effect::Publish(env) => self.publish_env(n, env),
                Effect::Remember(memory) => self.nodes[n].memory = Some(*memory),
                Effect::Announce(_) | Effect::Listen(_) | Effect::Share(_) => {}
                Effect::Plane(wishes) => self.fail("plane", Some(n), format!("{wishes:?}")),
                Effect::Withdraw(why) => self.fail("withdraw", Some(n), why),
                Effect::Exit(code) => self.fail("exit", Some(n), format!("{code:?}")),
            }
        }
        self.set_alarm(n);
    }

    /// The dump is made now, not when it was asked for: a large world can't hold the dumps of all nodes.
    pub(super) fn read(&mut self, n: usize, owner: &Owner) {
        let own = self.nodes[n].kernel.own(owner);
        self.input(n, Input::Own(own));
    }

    fn publish_env(&mut self, n: usize, env: SubnetEnv) {
        if self.nodes[n].env.replace(env) != Some(env) {
            self.nodes[n].pods();
            self.notify(n);
        }
    }

    fn answer(&mut self, n: usize, input: Input) {
        let after = self.up_to_ms(n, KERNEL_MS);
        self.send(after, n, What::Input(Box::new(input)));
    }

    fn apply(&mut self, n: usize, ops: &[backends::Op]) {
        if self.trace == Some(n) {
            ops.iter().for_each(|op| println!("    {op}"));
        }
        self.count_repairs(n, ops);
        let results = self.apply_and_watch(n, ops);
        if self.nodes[n].kernel.faults.stopped() {
            self.kill(n);
            self.nodes[n].kernel.faults.heal();
            return self.start(n, self.nodes[n].back);
        }
        self.notify(n);
        self.answer(n, Input::Applied(results));
    }

    /// For `WORLD_TRACE`.
    pub(super) fn say(&self, n: usize, what: impl FnOnce() -> String) {
        if self.trace == Some(n) {
            println!("{:?} {}", self.now, what());
        }
    }

    fn set_alarm(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(core) = &node.core else { return };
        let next = core.next_deadline();
        if next == Tick::MAX || node.alarm.is_some_and(|at| at <= next && at >= self.now) {
            return;
        }
        node.alarm = Some(next);
        let after = next.saturating_sub(self.now);
        self.send(after, n, What::Tick);
    }
}

/// An input in one line, dumps left out.
fn brief(input: &Input) -> String {
    match input {
        Input::Own(own) => format!("Own({:?})", own.as_ref().map(|o| (o.state.len(), o.interrupted))),
        Input::Host(facts) => format!("Host({:?})", facts.as_ref().map(|f| f.interrupted)),
        Input::Applied(results) => {
            format!("Applied({} failed)", results.iter().filter(|r| r.is_err()).count())
        }
        other => format!("{other:?}").chars().take(200).collect(),
    }
}

/// The tunnel addresses a lease's holder must answer for.
pub(super) fn is_link_wide(object: &Object) -> bool {
    matches!(object, Object::Link(_) | Object::Address(_) | Object::Up(_) | Object::Sysctl(..))
}
