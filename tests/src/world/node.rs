//! One node: the daemon's core, its kernel, and what the shell does between them.

use std::net::IpAddr;
use std::time::Duration;

use backends::kernel::Kernel;
use backends::kernel::fake::{FakeKernel, Place};
use backends::{IfName, Mac, Object, Route, RouteKind, default_metric};
use flanneld::iface::IfaceWish;
use flanneld::node::{Effect, Input, NodeCore, Readiness, Settings, Tick};
use flanneld::record::{Recorder, Ring};
use ipnetwork::IpNetwork;
use subnet_lease::{Family, NetworkId, SubnetEnv, Subnets};

use super::{Shape, What, World};

/// Where a node stands: its underlay.
#[derive(Debug, Clone)]
pub struct Site {
    /// Which of the underlay networks.
    pub rack: usize,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<IpNetwork>,
    /// MTU in bytes.
    pub mtu: u32,
    number: usize,
}

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
    /// How much of the store's news was delivered.
    pub(super) read: usize,
    pub(super) delivering: bool,
    pub(super) partitioned: bool,
    /// Left for good: its lease is gone.
    pub(super) left: bool,
    /// What was planted beside ours and must stay.
    pub(super) foreign: Vec<Route>,
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

impl Site {
    /// The place of node `n`.
    pub fn new(n: usize, shape: &Shape) -> Self {
        Self::at(n, n % shape.racks, shape.six)
    }

    /// A place in another network.
    pub fn at(n: usize, rack: usize, six: bool) -> Self {
        let host = n + 1;
        let four = format!("172.{}.{}.{}/16", 16 + rack, host / 250, host % 250 + 1).parse().unwrap();
        let mut addresses = vec![four];
        addresses
            .extend(six.then(|| format!("fd00:{:x}::{host:x}/64", 16 + rack).parse::<IpNetwork>().unwrap()));
        Self { rack, addresses, mtu: 1500, number: n }
    }

    /// Its address of one family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().map(|net| net.ip()).find(|ip| Family::of(ip) == family)
    }

    fn gateways(&self) -> Vec<Route> {
        let via = |net: &IpNetwork| match net {
            IpNetwork::V4(_) => format!("172.{}.255.254", 16 + self.rack).parse().unwrap(),
            IpNetwork::V6(_) => format!("fd00:{:x}::ffff", 16 + self.rack).parse::<IpAddr>().unwrap(),
        };
        let any = |six| if six { "::/0" } else { "0.0.0.0/0" }.parse().unwrap();
        self.addresses.iter().map(|net| outward(any(net.is_ipv6()), via(net))).collect()
    }
}

impl Site {
    /// What the network service takes away when the host leaves this place.
    pub(super) fn gateways_and(&self, others: &[Route]) -> Vec<Route> {
        [self.gateways().as_slice(), others].concat()
    }
}

/// A route of the host's own over the underlay.
pub(super) fn outward(dst: IpNetwork, via: IpAddr) -> Route {
    let (metric, kind, link) = (default_metric(&dst), RouteKind::Unicast, Some(eth0()));
    Route { dst, metric, kind, via: Some(via), link, onlink: false, scope: 0, protocol: 4 }
}

pub(super) fn eth0() -> IfName {
    "eth0".parse().unwrap()
}

impl Node {
    pub(super) fn new(site: Site, seed: u64) -> Self {
        let mut node = Self {
            core: None,
            recorder: None,
            kernel: FakeKernel::new(seed ^ site.number as u64),
            subnets: None,
            life: 0,
            env: None,
            read: 0,
            delivering: false,
            partitioned: false,
            left: false,
            foreign: Vec::new(),
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

    /// What the host's own network service does: link, addresses, default routes, and the strangers beside ours.
    pub(super) fn plug(&mut self) {
        let net = &mut self.kernel.net;
        let [.., a, b] = self.site.number.to_be_bytes();
        let _ = net.add_link(eth0(), self.site.mtu, Mac([2, 0xee, 0, 0, a, b]));
        net.set_up(eth0(), true).unwrap();
        for address in &self.site.addresses {
            net.put_address(eth0(), *address).unwrap();
        }
        for route in self.site.gateways() {
            net.put_route(&route, Place::Replace).unwrap();
        }
        self.plant();
    }

    /// Routes of others: elsewhere, more specific than a lease, and wider than one.
    fn plant(&mut self) {
        let via = self.site.gateways()[0].via.unwrap();
        let dst = |text: &str| text.parse::<IpNetwork>().unwrap();
        let mut foreign: Vec<_> =
            ["192.0.2.0/24", "10.255.255.64/28", "10.255.0.0/20"].map(|d| outward(dst(d), via)).to_vec();
        foreign[1].protocol = 3;
        for route in &foreign {
            self.kernel.net.put_route(route, Place::Replace).unwrap();
        }
        self.foreign = foreign;
    }

    /// Whether a pass runs, or one is due that is not an audit.
    pub(super) fn is_busy(&self, now: Tick) -> bool {
        self.core.as_ref().is_some_and(|core| self.undone || !core.is_quiet(now))
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
        (node.read, node.delivering, node.left, node.alarm) = (0, false, false, None);
        (node.reasons, node.started, node.undone) = (0, now, false);
        node.kernel.events();
        let settings = Settings {
            network: NetworkId::default(),
            iface: IfaceWish::default(),
            ip_masq: true,
            fully_random: false,
            forward_rules: true,
            blackhole_route: six,
            renew_margin: Duration::from_secs(3600),
            node: Some(format!("node-{n}")),
            seed: node.seed.wrapping_add(u64::from(node.life) << 32),
        };
        let core = node.core.insert(NodeCore::new(settings));
        if let Some(recorder) = &mut node.recorder {
            recorder.start(now, core);
        }
        if let Some(env) = node.env {
            self.input(n, Input::Remembered(env));
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
        let Some(core) = &mut node.core else { return };
        if self.trace == Some(n) {
            println!("{:?} {}", self.now, brief(&input));
        }
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
        let effects = match &mut node.recorder {
            Some(recorder) => recorder.handle(core, self.now, None),
            None => core.tick(self.now),
        };
        self.perform(n, effects);
    }

    /// A notification arrived.
    pub(super) fn told(&mut self, n: usize) {
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
    pub(super) fn tell(&mut self, n: usize) {
        let after = self.up_to_ms(KERNEL_MS);
        self.send(after, n, What::Told);
    }

    /// The shell's part.
    fn perform(&mut self, n: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ReadHost => {
                    let facts = self.nodes[n].kernel.host();
                    self.answer(n, Input::Host(facts));
                }
                Effect::ReadOwn(owner) => {
                    let own = self.nodes[n].kernel.own(&owner);
                    self.answer(n, Input::Own(own));
                }
                Effect::Apply(plan) => self.apply(n, &plan.ops),
                Effect::Claim(claim) => {
                    let after = self.up_to_ms(self.shape.lag);
                    self.send(after, n, What::ClaimArrives(claim));
                }
                Effect::Publish(env) => self.nodes[n].env = Some(env),
                Effect::Announce(_) => {}
                Effect::Withdraw(why) => panic!("{} node {n} withdraws: {why}", self.replay()),
                Effect::Exit(code) => panic!("{} node {n} exits: {code:?}", self.replay()),
            }
        }
        self.set_alarm(n);
    }

    fn answer(&mut self, n: usize, input: Input) {
        let after = self.up_to_ms(KERNEL_MS);
        self.send(after, n, What::Input(Box::new(input)));
    }

    fn apply(&mut self, n: usize, ops: &[backends::Op]) {
        if self.trace == Some(n) {
            ops.iter().for_each(|op| println!("    {op}"));
        }
        let results = self.apply_and_watch(n, ops);
        if self.nodes[n].kernel.faults.stopped() {
            self.kill(n);
            self.nodes[n].kernel.faults.heal();
            let after = self.up_to_ms(2000);
            return self.start(n, after);
        }
        self.tell(n);
        self.answer(n, Input::Applied(results));
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
