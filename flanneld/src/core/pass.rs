//! One pass: read, compare, apply.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use backends::kernel::{KernelClass, KernelError, OpError, Own, Touch};
use backends::rules::Firewall;
use backends::{
    Facts, Feature, HostRoute, KernelState, LocalNode, Object, Op, Owner, Plan, ROUTE_PROTOCOL, Route, Wish,
    diff,
};
use serde::{Deserialize, Serialize};
use subnet_lease::{Family, SubnetEnv, contains_net};
use tracing::{debug, info, warn};

use super::fights::Fights;
use super::listen::Listen;
use super::pace::Pace;
use super::report::{PassTimes, micros};
use super::saved::{Held, Saved, shared};
use super::status::{FailureReport, LISTED, PassReport};
use super::{Effect, NodeCore, Tick};
use crate::exit::Exit;

const NO_PERMISSION: &str = "the kernel does not let us: this needs CAP_NET_ADMIN in the network namespace it runs in \
    (run it as root, or as a service with that capability)";

/// So many routes that others left are logged by name.
const ADOPTED_LOGGED: usize = 32;

/// Where a pass stands.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) enum Phase {
    #[default]
    Idle,
    ReadingHost,
    ReadingOwn(Owner),
    Applying(#[serde(with = "shared")] Arc<Plan>),
}

/// The pass that runs, when the next one begins, and what the last one found.
#[derive(Debug)]
pub(super) struct Pass {
    phase: Phase,
    pace: Pace,
    /// Passes begun since the start.
    begun: u64,
    last: Outcome,
    fights: Fights,
    /// What the shell passes on. Not recorded: it follows from the next readings.
    pub(super) listen: Listen,
}

/// How the last pass ended.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Outcome {
    /// A pass ran with everything it needs.
    pub(super) complete: bool,
    /// The kernel was read once, before anything was changed.
    looked: bool,
    /// What a flannel left behind is gone, or there was none.
    swept: bool,
    /// Our own device, address or rules could not be made.
    pub(super) own_failure: Option<String>,
    /// Steps that failed, skipped ones included.
    pub(super) failed: usize,
    /// Peers that this backend can't reach.
    pub(super) conflicts: Vec<String>,
    /// Something was not deleted that should have been: the dump was interrupted, or the kernel refused.
    unswept: bool,
    /// When it began.
    began: Tick,
    counts: (usize, usize, usize),
    /// Of the steps that failed, the first of each kind.
    pub(super) failures: Vec<FailureReport>,
    /// The last one that ended: when it began, and what it did.
    pub(super) report: Option<(Tick, PassReport)>,
    /// How long all of them took.
    #[serde(default)]
    pub(super) times: PassTimes,
}

impl Pass {
    /// The first pass is due at once.
    pub(super) fn new(seed: u64) -> Self {
        let mut pace = Pace::new(seed);
        pace.mark();
        let (last, fights, listen) = (Outcome::default(), Fights::default(), Listen::default());
        Self { phase: Phase::Idle, pace, begun: 0, last, fights, listen }
    }

    /// Look again.
    pub(super) fn mark(&mut self) {
        self.pace.mark();
    }

    /// Look again, and what failed before may work now.
    pub(super) fn mark_fresh(&mut self) {
        self.pace.mark_fresh();
    }

    /// Who touched what.
    pub(super) fn touched(&mut self, now: Tick, touches: Vec<Touch>) {
        self.fights.touched(now, touches);
    }

    /// Audit so often.
    pub(super) fn audit_every(&mut self, period: Duration) {
        self.pace.audit_every(period);
    }

    /// When to look at [`NodeCore::begin_if_due`] again.
    pub(super) fn next(&self) -> Tick {
        if self.is_idle() { self.pace.next().min(self.fights.next()) } else { Tick::MAX }
    }

    /// Whether no pass runs.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Passes begun since the start.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// How the last one ended.
    pub(super) fn last(&self) -> &Outcome {
        &self.last
    }

    /// Who undoes what.
    pub(super) fn fights(&self) -> &Fights {
        &self.fights
    }

    /// The plan that is being applied.
    pub(super) fn applying(&self) -> Option<&Plan> {
        if let Phase::Applying(plan) = &self.phase { Some(plan) } else { None }
    }

    pub(super) fn save<'a>(&'a self, to: &mut Saved<'a>) {
        (to.phase, to.pace) = (Held::Borrowed(&self.phase), Held::Borrowed(&self.pace));
        (to.last, to.fights) = (Held::Borrowed(&self.last), Held::Borrowed(&self.fights));
        to.passes = self.begun;
    }

    pub(super) fn restore(from: &mut Saved<'_>, seed: u64) -> Self {
        Self {
            phase: from.phase.take().unwrap_or_default(),
            pace: from.pace.take().unwrap_or_else(|| Pace::new(seed)),
            begun: from.passes,
            last: from.last.take().unwrap_or_default(),
            fights: from.fights.take().unwrap_or_default(),
            listen: Listen::default(),
        }
    }
}

impl NodeCore {
    pub(super) fn begin_if_due(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if self.pass.fights.due(now) {
            self.pass.mark();
        }
        if !self.pass.is_idle() || !self.pass.pace.begin(now) {
            return;
        }
        self.pass.begun += 1;
        self.pass.last.began = now;
        if self.underlay.begin_reading() {
            self.pass.phase = Phase::ReadingHost;
            self.listen_to_all_links(effects);
            effects.push(Effect::ReadHost);
        } else {
            self.read_own(now, effects);
        }
    }

    pub(super) fn host(&mut self, now: Tick, facts: Result<Facts, KernelError>, effects: &mut Vec<Effect>) {
        match facts {
            Ok(facts) => {
                self.listen_beyond(&facts, effects);
                if self.underlay.read(facts) {
                    self.choose_external(now);
                    self.snapshot(now);
                }
            }
            Err(error) => {
                self.underlay.unread();
                return self.could_not_read("the host", &error, now, effects);
            }
        }
        self.read_own(now, effects);
    }

    /// Chooses the underlay from the newest facts.
    pub(super) fn choose_external(&mut self, now: Tick) {
        let Some(network) = self.membership.network() else { return };
        if self.underlay.choose(now, &self.settings.iface, &network.families())
            && let Some(external) = self.underlay.external()
        {
            let public = external.public;
            self.membership.publish_at(self.publication.own(), public, self.guarded());
        }
    }

    fn read_own(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(owner) = self.owner() else {
            self.pass.phase = Phase::Idle;
            return self.pass.pace.finished(now, self.underlay.is_stale());
        };
        if let Some(sentence) = self.lacking() {
            return self.end(Exit::Unsupported, sentence, effects);
        }
        self.listen_for(&owner, effects);
        self.pass.phase = Phase::ReadingOwn(owner.clone());
        effects.push(Effect::ReadOwn(owner));
    }

    /// None before the network's configuration is known.
    fn owner(&self) -> Option<Owner> {
        let network = self.membership.network()?;
        let pools: Vec<_> = network.config.pools().collect();
        let mut networks: Vec<_> = pools.iter().map(|p| p.network).collect();
        let earlier = self
            .publication
            .remembered()
            .into_iter()
            .flat_map(|env| Family::ALL.into_iter().filter_map(|f| env.network(f)));
        networks.extend(earlier.filter(|net| !pools.iter().any(|p| p.network == *net)));
        Some(Owner {
            network: self.settings.network.clone(),
            networks,
            names: network.backends.links(),
            external: self.underlay.external().map(|e| e.link),
            pools,
            pods: self.underlay.pods(self.publication.own()),
            routers: self.routers(),
            rules: self.settings.rule_names,
            // A flannel that ran here published its subnet.env; after a daemon of ours there is nothing left of it.
            first_pass: !self.pass.last.swept
                && self.publication.remembered().is_some()
                && !self.memories.is_warm(),
        })
    }

    /// Gateways to what is not in the network.
    fn routers(&self) -> Vec<IpAddr> {
        let networks: Vec<_> =
            self.membership.network().into_iter().flat_map(|n| n.config.pools()).map(|p| p.network).collect();
        let leads_out = |route: &&HostRoute| !networks.iter().any(|net| contains_net(*net, route.dst));
        let routes = self.underlay.facts().into_iter().flat_map(|facts| &facts.routes);
        let mut routers: Vec<_> = routes.filter(leads_out).filter_map(|route| route.gateway).collect();
        routers.sort_unstable();
        routers.dedup();
        routers
    }

    pub(super) fn dumped(&mut self, now: Tick, own: Result<Own, KernelError>, effects: &mut Vec<Effect>) {
        if let Ok(own) = &own {
            self.listen_to_gates(own, effects);
        }
        let Phase::ReadingOwn(owner) = std::mem::replace(&mut self.pass.phase, Phase::Idle) else { return };
        // We got our subnets while it was read: what hangs on them was not looked at, and would seem to be missing.
        if self.owner().is_some_and(|wider| wider.pods != owner.pods) {
            return self.read_own(now, effects);
        }
        let own = match own {
            Ok(own) => own,
            Err(error) => return self.could_not_read("our own objects", &error, now, effects),
        };
        if !std::mem::replace(&mut self.pass.last.looked, true) {
            self.pass.last.swept = own.state.iter().any(|object| is_ours_inside(object, &owner));
        }
        self.note_devices(&own);
        self.membership.report_refused();
        if let Err(sentence) = self.choose_renderer(&own.firewall) {
            return self.end(Exit::Unsupported, sentence, effects);
        }
        let Some((node, wish)) = self.wish(&own.firewall) else {
            return self.pass.pace.finished(now, self.underlay.is_stale());
        };
        let Wish { objects, planes, mut conflicts } = wish;
        let want: KernelState = objects.into_iter().collect();
        self.planes.wish(planes, effects);
        self.pace_audits(&want);
        debug!(?node.subnets, want = want.len(), have = own.state.len(), "pass");
        conflicts.extend(
            self.underlay.facts().into_iter().flat_map(|f| backends::conflicts(&want, &own.state, &owner, f)),
        );
        conflicts.extend(self.host_notices(&node));
        self.host_settings.wish(&want);
        let owner = Owner { first_pass: owner.first_pass && !self.pass.last.swept, ..owner };
        let mut plan = diff(&want, &own.state, &owner);
        if own.interrupted {
            plan.ops.retain(|op| !matches!(op, Op::Delete(_)));
        }
        if self.memories.in_use() {
            // What is remembered may be older than what the kernel has: what is there stays as it is.
            plan.ops.retain(|op| matches!(op, Op::Put { have: None, .. }));
        }
        self.log_adopted(&plan, &own);
        self.pass.fights.wish(&want);
        self.pass.fights.hold(now, self.pass.begun, &mut plan, !own.interrupted && own.unreadable == 0);
        self.report_conflicts(conflicts);
        self.pass.last.counts = plan.counts();
        self.pass.last.unswept = own.interrupted;
        if plan.is_empty() {
            return self.complete(now, Vec::new(), effects);
        }
        // Shared, not copied: the plan of a cold start is the largest thing a node ever holds.
        let plan = Arc::new(plan);
        self.pass.phase = Phase::Applying(plan.clone());
        effects.push(Effect::Apply(plan));
    }

    /// Routes of others that go because a flannel seems to have left them are named: the log is where they can be read again.
    fn log_adopted(&self, plan: &Plan, own: &Own) {
        let theirs = |op: &&Op| {
            matches!(op, Op::Delete(Object::Route(r)) if r.protocol != ROUTE_PROTOCOL
                && r.link.is_none_or(|link| !own.state.links().any(|ours| ours.name == link)))
        };
        for op in plan.ops.iter().filter(theirs).take(ADOPTED_LOGGED) {
            info!("a route that an earlier flannel seems to have left is deleted: {op}");
        }
    }

    pub(super) fn applied(&mut self, now: Tick, results: &[Result<(), OpError>], effects: &mut Vec<Effect>) {
        let Phase::Applying(plan) = std::mem::replace(&mut self.pass.phase, Phase::Idle) else { return };
        let failures = plan.ops.iter().zip(results).filter_map(|(op, r)| Some((op, r.as_ref().err()?)));
        let failures: Vec<_> = failures.collect();
        self.note_settings(now, &plan, results);
        self.pass.last.failures = failure_kinds(&failures);
        report_failures(&self.pass.last.failures);
        self.log_pass(now, failures.len());
        let hopeless = failures.iter().find_map(|(op, e)| self.hopeless(op, e));
        if let Some((exit, way_out)) = hopeless {
            return self.end(exit, way_out, effects);
        }
        self.pass.last.unswept |= failures.iter().any(|(op, _)| matches!(op, Op::Delete(_)));
        let failures = failures.into_iter().map(|(op, e)| (op.object().clone(), e.to_string())).collect();
        self.complete(now, failures, effects);
    }

    /// Failures that no retry mends: no permission, ever; at the start, a kernel that lacks what the backend needs.
    fn hopeless(&self, op: &Op, error: &OpError) -> Option<(Exit, String)> {
        let OpError::Failed(error) = error else { return None };
        let feature = match (error.class(), op.object()) {
            (KernelClass::Fatal, _) => return Some((Exit::Permission, NO_PERMISSION.to_owned())),
            (KernelClass::Unsupported, Object::Link(_)) => Feature::Vxlan,
            (KernelClass::Unsupported, Object::Table(_)) => Feature::NfTables,
            _ => return None,
        };
        (!self.pass.last.complete).then(|| (Exit::Unsupported, self.without(feature)))
    }

    /// The end of a pass that had all it needs.
    fn complete(&mut self, now: Tick, failures: Vec<(Object, String)>, effects: &mut Vec<Effect>) {
        self.pass.phase = Phase::Idle;
        self.pass.last.failed = failures.len();
        if failures.is_empty() {
            self.pass.last.failures.clear();
        }
        let report = self.pass_report(now);
        self.pass.last.times.add(report.took_us);
        self.pass.last.report = Some((self.pass.last.began, report));
        self.pass.fights.settle(failures.iter().map(|(object, _)| object));
        self.pass.last.own_failure = failures.iter().find(|(o, _)| is_own_end(o)).map(|(o, why)| {
            let line = Op::Put { want: o.clone(), have: None }.to_string();
            format!("{}: {why}", line.lines().next().unwrap_or_default())
        });
        let held = self.pass.fights.own_end();
        self.pass.last.own_failure = self
            .pass
            .last
            .own_failure
            .take()
            .or_else(|| held.map(|line| format!("{line}: somebody keeps undoing it")));
        self.pass.last.complete = true;
        // By memory nothing is deleted.
        self.pass.last.swept |= !self.pass.last.unswept && !self.memories.in_use();
        self.pass
            .pace
            .finished(now, self.pass.last.unswept || self.underlay.is_stale() || !failures.is_empty());
        self.publish(effects);
    }

    /// Everything that should be there for us; none before the gate is open.
    fn wish(&self, firewall: &Firewall) -> Option<(LocalNode, Wish)> {
        let (network, facts) = (self.membership.network()?, self.underlay.facts()?);
        let (peers, subnets) = (self.membership.peers()?, self.publication.own()?);
        let node = LocalNode {
            id: self.settings.network.clone(),
            network: network.config.clone(),
            external: self.underlay.external()?.clone(),
            subnets,
            identities: self.publication.identities()?.to_vec(),
            tx_checksum: self.settings.tx_checksum,
        };
        let mut wish = network.backends.desired(&node, peers, facts);
        let (rules, in_the_way) = self.standing_rules(&node, firewall);
        wish.conflicts.extend(in_the_way);
        let holes = subnets
            .iter()
            .filter(|_| self.settings.blackhole_route)
            .map(|net| Object::Route(Route::blackhole(net)));
        wish.objects.extend(rules.into_iter().chain(holes));
        Some((node, wish))
    }

    /// subnet.env follows the first pass that made our own end; a failing peer does not hold it back.
    pub(super) fn publish(&mut self, effects: &mut Vec<Effect>) {
        if self.pass.last.complete && self.pass.last.own_failure.is_none() {
            effects.extend(self.subnet_env().map(Effect::Publish));
        }
    }

    fn subnet_env(&self) -> Option<SubnetEnv> {
        let (network, external) = (self.membership.network()?, self.underlay.external()?);
        let mtu = network.backends.mtu(&network.config, external);
        Some(SubnetEnv::new(&network.config, &self.publication.own()?, mtu, self.settings.rules.masquerade))
    }

    fn could_not_read(&mut self, what: &str, error: &KernelError, now: Tick, effects: &mut Vec<Effect>) {
        warn!("could not read {what}: {error}");
        if error.class() == KernelClass::Fatal {
            self.end(Exit::Permission, NO_PERMISSION.to_owned(), effects);
        }
        self.pass.phase = Phase::Idle;
        self.pass.pace.finished(now, true);
    }

    fn report_conflicts(&mut self, conflicts: Vec<String>) {
        for conflict in conflicts.iter().filter(|c| !self.pass.last.conflicts.contains(c)) {
            warn!("{conflict}");
        }
        self.pass.last.conflicts = conflicts;
    }

    fn log_pass(&self, now: Tick, failed: usize) {
        let (added, changed, removed) = self.pass.last.counts;
        let took = now.saturating_sub(self.pass.last.began);
        info!(added, changed, removed, failed, ?took, "pass");
    }

    fn pass_report(&self, now: Tick) -> PassReport {
        let ((added, changed, removed), failed) = (self.pass.last.counts, self.pass.last.failed);
        let took = now.saturating_sub(self.pass.last.began);
        PassReport { ago_ms: 0, added, changed, removed, failed, took_us: micros(took) }
    }
}

/// What the node needs before a pod can use it: everything but peers.
pub(super) fn is_own_end(object: &Object) -> bool {
    matches!(
        object,
        Object::Link(_) | Object::Address(_) | Object::Up(_) | Object::Table(_) | Object::Iptables(_)
    )
}

/// A route that an earlier daemon of ours made in this network.
fn is_ours_inside(object: &Object, owner: &Owner) -> bool {
    matches!(object, Object::Route(route) if route.protocol == ROUTE_PROTOCOL
        && owner.networks.iter().any(|net| contains_net(*net, route.dst)))
}

/// The first failure of each kind, the rest of it counted.
fn failure_kinds(failures: &[(&Op, &OpError)]) -> Vec<FailureReport> {
    let mut kinds: BTreeMap<String, (&Op, usize)> = BTreeMap::new();
    for (op, error) in failures {
        kinds.entry(error.to_string()).or_insert((op, 0)).1 += 1;
    }
    let report =
        |(reason, (op, count)): (String, (&Op, usize))| FailureReport { line: op.to_string(), reason, count };
    kinds.into_iter().take(LISTED).map(report).collect()
}

fn report_failures(kinds: &[FailureReport]) {
    for FailureReport { line, reason, count } in kinds {
        let more = if *count > 1 { format!(" (and {} more like it)", count - 1) } else { String::new() };
        warn!("{line}: {reason}{more}");
    }
}
