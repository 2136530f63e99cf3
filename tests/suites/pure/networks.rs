//! Two networks in one daemon: each minds its own objects, and what is the host's is decided once.

use std::collections::VecDeque;
use std::time::Duration;

use backends::kernel::Kernel as _;
use backends::kernel::fake::{Alter, FakeKernel, Rng};
use backends::rules::iptables::Flavour;
use backends::rules::{Asked, RuleNames, RuleSettings};
use backends::{Object, Op, Plan, ROUTE_PROTOCOL};
use flanneld::core::{Arbiter, Effect, Input, NodeCore, Settings, Tick};
use ipnetwork::IpNetwork;
use subnet_lease::{LeaseBook, NetworkId, StoreEvent, contains_net};
use tests::lines::type_line;
use tests::solo::settings;
use tests::world::seeds;

const ONE: &str = r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const TWO: &str = r#"{"Network": "10.2.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}"#;
const POOLS: [&str; 2] = ["10.1.0.0/16", "10.2.0.0/16"];
const DEVICES: [&str; 2] = ["flannel.1", "flannel.2"];
const DAY: Duration = Duration::from_secs(24 * 3600);

fn id(network: usize) -> NetworkId {
    NetworkId::new(["/one", "/two"][network])
}

/// What the rules are called of the network that is the first of its daemon, and of the other.
fn names(first: usize) -> [RuleNames; 2] {
    [0, 1].map(|network| if network == first { RuleNames::Flannel } else { RuleNames::of(&id(network)) })
}

/// A daemon of two networks, and its host.
struct Daemon {
    kernel: FakeKernel,
    arbiter: Arbiter,
    cores: [NodeCore; 2],
    seen: [u64; 2],
}

/// Some such hosts, and a store for each network.
struct Cluster {
    hosts: Vec<Daemon>,
    books: [LeaseBook; 2],
    names: [RuleNames; 2],
    now: Tick,
}

impl Cluster {
    fn new(hosts: usize, seed: u64, change: impl Fn(usize, Settings) -> Settings) -> Self {
        Self::with_names(names(0), hosts, seed, change)
    }

    fn with_names(
        names: [RuleNames; 2],
        hosts: usize,
        seed: u64,
        change: impl Fn(usize, Settings) -> Settings,
    ) -> Self {
        let daemon = |n: usize| {
            let mut kernel = FakeKernel::new(seed ^ n as u64);
            kernel.net.firewall.programs = Flavour::ALL.to_vec();
            for line in [
                "ip link add eth0".to_owned(),
                "ip link set eth0 up".to_owned(),
                format!("ip address add 172.16.0.{}/24 dev eth0", n + 1),
                "ip route add 0.0.0.0/0 via 172.16.0.254 dev eth0".to_owned(),
            ] {
                type_line(&mut kernel.net, &line).unwrap();
            }
            let of = |network| {
                let node = Some(format!("node-{n}"));
                let seed = seed + 10 * n as u64 + network as u64;
                let rules = RuleSettings { masquerade: true, forward_rules: true, ..RuleSettings::default() };
                let rule_names = names[network];
                let own = Settings { network: id(network), node, seed, rules, rule_names, ..settings() };
                NodeCore::new(change(network, own))
            };
            Daemon { kernel, arbiter: Arbiter::default(), cores: [of(0), of(1)], seen: [0; 2] }
        };
        Self { hosts: (0..hosts).map(daemon).collect(), books: Default::default(), names, now: Tick::ZERO }
    }

    fn start(&mut self, configurations: [&str; 2]) {
        for host in 0..self.hosts.len() {
            for (network, text) in configurations.into_iter().enumerate() {
                let leases = self.books[network].leases().cloned().collect();
                let snapshot = StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign: false };
                self.hear(host, network, Input::Store(StoreEvent::Config(text.into())));
                self.hear(host, network, Input::Store(snapshot));
            }
        }
        self.wait(Duration::from_secs(2));
    }

    /// Passes on an input, and does all that follows from it. As the shell does, others' news comes first.
    fn hear(&mut self, host: usize, network: usize, input: Input) {
        let mut inputs = VecDeque::from([(host, network, input)]);
        while let Some((host, network, input)) = inputs.pop_front() {
            let Daemon { arbiter, cores, seen, .. } = &mut self.hosts[host];
            let news = arbiter.news(&id(network), &mut seen[network]).map(Input::Shared);
            let now = self.now;
            let effects: Vec<_> =
                news.into_iter().chain([input]).flat_map(|i| cores[network].handle(now, i)).collect();
            for effect in effects {
                inputs.extend(self.perform(host, network, effect));
            }
        }
    }

    fn perform(&mut self, host: usize, network: usize, effect: Effect) -> Vec<(usize, usize, Input)> {
        let Daemon { kernel, arbiter, .. } = &mut self.hosts[host];
        let answer = match effect {
            Effect::ReadHost => Input::Host(kernel.host()),
            Effect::ReadOwn(owner) => Input::Own(kernel.own(&owner)),
            Effect::Apply(plan) => {
                minds_its_own(&plan, network, self.names[network]);
                Input::Applied(kernel.apply(&plan.ops))
            }
            Effect::Claim(claim) => {
                let (own, events) = self.books[network].claim(self.now, &claim, DAY).unwrap();
                let hosts = 0..self.hosts.len();
                let heard =
                    hosts.flat_map(|h| events.iter().map(move |e| (h, network, Input::Store(e.clone()))));
                return [(host, network, Input::Claimed(Ok(own)))].into_iter().chain(heard).collect();
            }
            Effect::Share(share) => {
                arbiter.share(share);
                return Vec::new();
            }
            Effect::Announce(readiness) => {
                arbiter.judge(&id(network), readiness);
                return Vec::new();
            }
            Effect::Exit(code) => panic!("host {host} network {network} ends: {code:?}"),
            Effect::Plane(_)
            | Effect::Listen(_)
            | Effect::Publish(_)
            | Effect::Remember(_)
            | Effect::Withdraw(_) => {
                return Vec::new();
            }
        };
        vec![(host, network, answer)]
    }

    /// Lets time pass: what is due is done, and kernels' notifications arrive.
    fn wait(&mut self, span: Duration) {
        let until = self.now + span;
        loop {
            self.notice();
            let all = self.hosts.iter().enumerate().flat_map(|(h, host)| {
                host.cores.iter().enumerate().map(move |(n, core)| (core.next_deadline(), h, n))
            });
            let Some((at, host, network)) = all.min().filter(|(at, ..)| *at <= until) else { break };
            self.now = self.now.max(at);
            let now = self.now;
            let effects = self.hosts[host].cores[network].tick(now);
            for effect in effects {
                for (host, network, input) in self.perform(host, network, effect) {
                    self.hear(host, network, input);
                }
            }
        }
        self.now = until;
    }

    fn notice(&mut self) {
        for host in 0..self.hosts.len() {
            while let Some(event) = self.hosts[host].kernel.events().pop() {
                for network in 0..2 {
                    self.hear(host, network, Input::Kernel(event));
                }
            }
        }
    }

    /// Everything is as wished: all are ready, and every host has a route to every other one in both networks.
    fn check(&self) {
        for (n, host) in self.hosts.iter().enumerate() {
            let text = host.kernel.to_string();
            for (network, core) in host.cores.iter().enumerate() {
                assert!(core.readiness().ready, "host {n} network {network}: {:?}", core.readiness());
                let own = core.own_subnets();
                for lease in self.books[network].leases().filter(|lease| Some(lease.subnets) != own) {
                    let net = lease.subnets.iter().next().unwrap();
                    let device = DEVICES[network];
                    assert!(
                        text.lines()
                            .any(|l| l.contains(&format!("route replace {net} ")) && l.contains(device)),
                        "host {n} has no route to {net} over {device}:\n{text}"
                    );
                }
                let of = rules_of(&host.kernel, self.names[network]);
                assert_eq!(of.len(), 1, "host {n} network {network} has the rules {of:?}");
            }
        }
    }
}

/// The rules with these names that a host has.
fn rules_of(kernel: &FakeKernel, names: RuleNames) -> Vec<Object> {
    let mut all = kernel.net.everything();
    all.retain(|o| match o {
        Object::Table(table) => table.names == names,
        Object::Iptables(rules) => rules.names == names,
        _ => false,
    });
    all
}

/// A step is on a device of the network, on a route inside it, on rules with its names, or a setting of the host.
fn minds_its_own(plan: &Plan, network: usize, names: RuleNames) {
    let names = [names, RuleNames::of(&id(network))];
    let pool: IpNetwork = POOLS[network].parse().unwrap();
    for op in &plan.ops {
        let own = match op.object() {
            Object::Route(route) => contains_net(pool, route.dst),
            Object::Link(link) => link.name.as_str() == DEVICES[network],
            Object::Sysctl(..) => matches!(op, Op::Put { .. }),
            Object::Table(table) => names.contains(&table.names),
            Object::Iptables(rules) => names.contains(&rules.names),
            other => other.link().is_none_or(|link| link.as_str() == DEVICES[network]),
        };
        assert!(own, "network {network} plans: {op}");
    }
}

/// A stranger's hand on some objects of either network.
fn meddle(kernel: &mut FakeKernel, rng: &mut Rng) {
    for _ in 0..1 + rng.below(6) {
        let mut all = kernel.net.everything();
        all.retain(|o| match o {
            Object::Route(route) => route.protocol == ROUTE_PROTOCOL,
            Object::Link(link) => DEVICES.contains(&link.name.as_str()),
            Object::Table(_) | Object::Iptables(_) => true,
            other => other.link().is_some_and(|link| DEVICES.contains(&link.as_str())),
        });
        let how = if rng.below(2) == 0 { Alter::Delete } else { Alter::Change };
        if let Some(object) = rng.pick(&all) {
            // It may have gone with its link.
            let _ = kernel.net.alter(object, how);
        }
    }
}

#[test]
fn two_networks_in_one_daemon_converge_whatever_strikes_them_and_never_touch_each_other() {
    for seed in seeds(7000, 20) {
        let program = [Asked::Nftables, Asked::Iptables][usize::from(seed % 2 == 1)];
        let mut cluster = Cluster::new(4, seed, |_, settings| Settings {
            rules: RuleSettings { program, ..settings.rules.clone() },
            ..settings
        });
        cluster.start([ONE, TWO]);
        cluster.check();
        let mut rng = Rng::new(seed);
        for _ in 0..10 {
            let host = rng.below(4);
            meddle(&mut cluster.hosts[host].kernel, &mut rng);
            // Nobody sends a notification when a setting changes: an audit finds it.
            cluster.wait(Duration::from_secs(40));
            cluster.check();
        }
    }
}

#[test]
fn a_network_that_becomes_the_first_of_its_daemon_or_ceases_to_be_keeps_one_set_of_rules() {
    let mut cluster = Cluster::new(1, 1, |_, settings| settings);
    cluster.start([ONE, TWO]);
    cluster.check();
    // The next daemon has them in the other order.
    let mut next = Cluster::with_names(names(1), 1, 2, |_, settings| settings);
    next.hosts[0].kernel = cluster.hosts[0].kernel.clone();
    next.books = cluster.books;
    next.start([ONE, TWO]);
    next.check();
    assert_eq!(rules_of(&next.hosts[0].kernel, names(0)[1]), [], "the old ones of the second");
}

#[test]
fn a_network_that_collides_with_another_of_its_host_is_refused_by_name() {
    for (second, why) in [
        (r#"{"Network": "10.1.128.0/17", "Backend": {"Type": "vxlan", "VNI": 2}}"#, "10.1.128.0/17 overlaps"),
        (r#"{"Network": "10.2.0.0/16", "Backend": {"Type": "vxlan"}}"#, "flannel.1 is a device"),
    ] {
        let mut cluster = Cluster::new(1, 1, |_, settings| settings);
        cluster.start([ONE, second]);
        let [one, two] = &cluster.hosts[0].cores;
        assert!(one.readiness().ready, "{:?}", one.readiness());
        let reasons = two.readiness().reasons.join("\n");
        assert!(!two.readiness().ready && reasons.contains(why) && reasons.contains("/one"), "{reasons}");
        // What is wrong is mended in the store.
        cluster.hear(0, 1, Input::Store(StoreEvent::Config(TWO.into())));
        cluster.wait(Duration::from_secs(2));
        cluster.check();
    }
}

#[test]
fn rules_are_made_alike_for_all_networks_of_a_host() {
    let mut cluster = Cluster::new(1, 1, |network, settings| {
        let program = [Asked::Nftables, Asked::Iptables][network];
        Settings { rules: RuleSettings { program, ..RuleSettings::default() }, ..settings }
    });
    cluster.start([ONE, TWO]);
    let output = cluster.hosts[0].cores[1].status(cluster.now).traffic_rules;
    assert_eq!(output.as_deref(), Some("nftables: as network /one of this host has it"));
}

#[test]
fn the_host_is_ready_when_all_its_networks_are() {
    let mut arbiter = Arbiter::default();
    arbiter.expect(&id(1));
    let ready = flanneld::core::Readiness { ready: true, reasons: Vec::new() };
    let host = arbiter.judge(&id(0), ready.clone());
    assert!(!host.ready, "the other has not been heard");
    let waits = flanneld::core::Readiness { ready: false, reasons: vec!["waiting for a lease".to_owned()] };
    assert_eq!(arbiter.judge(&id(1), waits).reasons, ["/two: waiting for a lease"]);
    assert!(arbiter.judge(&id(1), ready).ready);
}
