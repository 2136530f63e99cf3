//! One pass: read, compare, apply.

use std::collections::BTreeMap;
use std::sync::Arc;

use backends::kernel::{KernelClass, KernelError, OpError, Own};
use backends::rules::Firewall;
use backends::{
    External, Facts, Feature, IfName, KernelState, LocalNode, Object, Op, Owner, Plan, ROUTE_PROTOCOL, Route,
    Wish, diff,
};
use serde::{Deserialize, Serialize};
use subnet_lease::{Family, SubnetEnv};
use tracing::{debug, info, warn};

use super::report::{PassTimes, micros};
use super::status::{FailureReport, LISTED, PassReport};
use super::{Effect, NodeCore, Phase, Tick};
use crate::exit::Exit;
use crate::host::iface;

const NO_PERMISSION: &str = "the kernel does not let us: this needs CAP_NET_ADMIN in the network namespace it runs in \
    (run it as root, or as a service with that capability)";

/// So many routes that others left are logged by name.
const ADOPTED_LOGGED: usize = 32;

/// How the last pass ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// A pass ran with everything it needs.
    pub(super) complete: bool,
    /// What an earlier daemon left behind is gone.
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

impl NodeCore {
    pub(super) fn begin_if_due(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Idle) || !self.pace.begin(now) {
            return;
        }
        self.passes += 1;
        self.last.began = now;
        if self.host_stale {
            self.host_stale = false;
            self.phase = Phase::ReadingHost;
            effects.push(Effect::ReadHost);
        } else {
            self.read_own(now, effects);
        }
    }

    pub(super) fn host(&mut self, now: Tick, facts: Result<Facts, KernelError>, effects: &mut Vec<Effect>) {
        match facts {
            // On an interrupted read nothing is chosen anew; it is read once more after this pass.
            Ok(facts) if facts.interrupted && self.facts.is_some() => self.host_stale = true,
            Ok(facts) => {
                // What was told since it was asked for may not be in it.
                self.host_stale |= facts.interrupted;
                self.facts = Some(facts);
                self.choose_external(now);
                self.snapshot(now);
            }
            Err(error) => {
                self.host_stale = true;
                return self.could_not_read("the host", &error, now, effects);
            }
        }
        self.read_own(now, effects);
    }

    /// Chooses the underlay from the newest facts. Once there is one it is only replaced by a better answer, never
    /// by none: what works is not taken down because a fact went missing.
    pub(super) fn choose_external(&mut self, now: Tick) {
        let (Some(network), Some(facts)) = (&self.network, &self.facts) else { return };
        let families: Vec<_> = network.config.pools().map(|p| p.family()).collect();
        let choice = iface::choose(facts, &self.settings.iface, &families).map_err(|error| error.to_string());
        // An address that is being replaced, or comes up, leaves the link-local one for a moment: no peer is told that.
        let falls_back = |new: &External| {
            self.external.as_ref().is_some_and(|old| iface::falls_back(old.local, new.local))
        };
        match choice {
            Ok(choice) if falls_back(&choice.external) => {
                self.external_problem =
                    Some(format!("{}: only a link-local address is left", choice.external.link));
            }
            Ok(choice) => {
                if self.external.as_ref() != Some(&choice.external) {
                    let e = &choice.external;
                    info!(link = %e.link, mtu = e.mtu, local = %e.local, public = %e.public, "underlay: {}", choice.why);
                }
                let public = choice.external.public;
                self.external = Some(choice.external);
                let guarded = self.guarded();
                if let Some(peers) = &mut self.peers {
                    peers.set_own(self.own, public);
                    peers.set_guarded(guarded);
                }
                self.external_why = choice.why;
                self.external_problem = None;
                self.unfit_since = None;
            }
            Err(sentence) => {
                if self.external_problem.as_ref() != Some(&sentence) {
                    warn!("{sentence}");
                }
                self.external_problem = Some(sentence);
                self.follow_index();
                self.unfit(now);
            }
        }
    }

    fn read_own(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(owner) = self.owner() else {
            self.phase = Phase::Idle;
            return self.pace.finished(now, self.host_stale);
        };
        if let Some(sentence) = self.lacking() {
            return self.end(Exit::Unsupported, sentence, effects);
        }
        self.phase = Phase::ReadingOwn(owner.clone());
        effects.push(Effect::ReadOwn(owner));
    }

    /// None before the network's configuration is known.
    fn owner(&self) -> Option<Owner> {
        let network = self.network.as_ref()?;
        let pools: Vec<_> = network.config.pools().collect();
        let mut networks: Vec<_> = pools.iter().map(|p| p.network).collect();
        let earlier =
            self.remembered.iter().flat_map(|env| Family::ALL.into_iter().filter_map(|f| env.network(f)));
        networks.extend(earlier.filter(|net| !pools.iter().any(|p| p.network == *net)));
        Some(Owner {
            network: self.settings.network.clone(),
            networks,
            names: network.backends.links(),
            external: self.external.as_ref().map(|e| e.link),
            pools,
            pods: self.pods(),
            first_pass: !self.last.swept,
        })
    }

    /// Links of others with an address of our subnets.
    pub(super) fn pods(&self) -> Vec<IfName> {
        let (Some(facts), Some(own)) = (&self.facts, &self.own) else { return Vec::new() };
        facts.links_within(&own.iter().collect::<Vec<_>>())
    }

    pub(super) fn dumped(&mut self, now: Tick, own: Result<Own, KernelError>, effects: &mut Vec<Effect>) {
        let Phase::ReadingOwn(owner) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        // We got our subnets while it was read: what hangs on them was not looked at, and would seem to be missing.
        if self.owner().is_some_and(|wider| wider.pods != owner.pods) {
            return self.read_own(now, effects);
        }
        let own = match own {
            Ok(own) => own,
            Err(error) => return self.could_not_read("our own objects", &error, now, effects),
        };
        self.note_devices(&own);
        self.report_refused();
        if let Err(sentence) = self.choose_renderer(&own.firewall) {
            return self.end(Exit::Unsupported, sentence, effects);
        }
        let Some((node, wish)) = self.wish(&own.firewall) else {
            return self.pace.finished(now, self.host_stale);
        };
        let Wish { objects, planes, mut conflicts } = wish;
        let want: KernelState = objects.into_iter().collect();
        self.planes.wish(planes, effects);
        self.pace_audits(&want);
        debug!(?node.subnets, want = want.len(), have = own.state.len(), "pass");
        conflicts.extend(self.facts.iter().flat_map(|f| backends::conflicts(&want, &own.state, &owner, f)));
        conflicts.extend(self.host_notices(&node));
        self.host_settings.wish(&want);
        let mut plan = diff(&want, &own.state, &owner);
        if own.interrupted {
            plan.ops.retain(|op| !matches!(op, Op::Delete(_)));
        }
        if self.memories.in_use {
            // What is remembered may be older than what the kernel has: what is there stays as it is.
            plan.ops.retain(|op| matches!(op, Op::Put { have: None, .. }));
        }
        self.log_adopted(&plan, &own);
        self.fights.wish(&want);
        self.fights.hold(now, self.passes, &mut plan, !own.interrupted && own.unreadable == 0);
        self.report_conflicts(conflicts);
        self.last.counts = plan.counts();
        self.last.unswept = own.interrupted;
        if plan.is_empty() {
            return self.complete(now, Vec::new(), effects);
        }
        // Shared, not copied: the plan of a cold start is the largest thing a node ever holds.
        let plan = Arc::new(plan);
        self.phase = Phase::Applying(plan.clone());
        effects.push(Effect::Apply(plan));
    }

    /// Routes of others that go because a flannel seems to have left them are named: the log is where they can be read again.
    fn log_adopted(&self, plan: &Plan, own: &Own) {
        let theirs = |op: &&Op| {
            matches!(op, Op::Delete(Object::Route(r)) if r.protocol != ROUTE_PROTOCOL
                && r.link.is_none_or(|link| !own.state.links().any(|ours| ours.name == link)))
        };
        for op in plan.ops.iter().filter(theirs).take(ADOPTED_LOGGED) {
            info!("a route that a flannel seems to have left here goes: {op}");
        }
    }

    pub(super) fn applied(&mut self, now: Tick, results: &[Result<(), OpError>], effects: &mut Vec<Effect>) {
        let Phase::Applying(plan) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        let failures = plan.ops.iter().zip(results).filter_map(|(op, r)| Some((op, r.as_ref().err()?)));
        let failures: Vec<_> = failures.collect();
        self.note_settings(now, &plan, results);
        self.last.failures = failure_kinds(&failures);
        report_failures(&self.last.failures);
        self.log_pass(now, failures.len());
        let hopeless = failures.iter().find_map(|(op, e)| self.hopeless(op, e));
        if let Some((exit, way_out)) = hopeless {
            return self.end(exit, way_out, effects);
        }
        self.last.unswept |= failures.iter().any(|(op, _)| matches!(op, Op::Delete(_)));
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
        (!self.last.complete).then(|| (Exit::Unsupported, self.without(feature)))
    }

    /// The end of a pass that had all it needs.
    fn complete(&mut self, now: Tick, failures: Vec<(Object, String)>, effects: &mut Vec<Effect>) {
        self.phase = Phase::Idle;
        self.last.failed = failures.len();
        if failures.is_empty() {
            self.last.failures.clear();
        }
        let report = self.pass_report(now);
        self.last.times.add(report.took_us);
        self.last.report = Some((self.last.began, report));
        self.fights.settle(failures.iter().map(|(object, _)| object));
        self.last.own_failure = failures.iter().find(|(o, _)| is_own_end(o)).map(|(o, why)| {
            let line = Op::Put { want: o.clone(), have: None }.to_string();
            format!("{}: {why}", line.lines().next().unwrap_or_default())
        });
        let held = self.fights.own_end();
        self.last.own_failure = self
            .last
            .own_failure
            .take()
            .or_else(|| held.map(|line| format!("{line}: somebody keeps undoing it")));
        self.last.complete = true;
        self.last.swept |= !self.last.unswept;
        self.pace.finished(now, self.last.unswept || self.host_stale || !failures.is_empty());
        self.publish(effects);
    }

    /// Everything that should be there for us; none before the gate is open.
    fn wish(&self, firewall: &Firewall) -> Option<(LocalNode, Wish)> {
        let (network, facts) = (self.network.as_ref()?, self.facts.as_ref()?);
        let (peers, subnets) = (self.peers.as_ref()?, self.own?);
        let node = LocalNode {
            id: self.settings.network.clone(),
            network: network.config.clone(),
            external: self.external.clone()?,
            subnets,
            identities: self.identities.clone()?,
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
        if self.last.complete && self.last.own_failure.is_none() {
            effects.extend(self.subnet_env().map(Effect::Publish));
        }
    }

    fn subnet_env(&self) -> Option<SubnetEnv> {
        let (network, external) = (self.network.as_ref()?, self.external.as_ref()?);
        let mtu = network.backends.mtu(&network.config, external);
        Some(SubnetEnv::new(&network.config, &self.own?, mtu, self.settings.ip_masq))
    }

    fn could_not_read(&mut self, what: &str, error: &KernelError, now: Tick, effects: &mut Vec<Effect>) {
        warn!("could not read {what}: {error}");
        if error.class() == KernelClass::Fatal {
            self.end(Exit::Permission, NO_PERMISSION.to_owned(), effects);
        }
        self.phase = Phase::Idle;
        self.pace.finished(now, true);
    }

    fn report_conflicts(&mut self, conflicts: Vec<String>) {
        for conflict in conflicts.iter().filter(|c| !self.last.conflicts.contains(c)) {
            warn!("{conflict}");
        }
        self.last.conflicts = conflicts;
    }

    fn log_pass(&self, now: Tick, failed: usize) {
        let (added, changed, removed) = self.last.counts;
        let took = now.saturating_sub(self.last.began);
        info!(added, changed, removed, failed, ?took, "pass");
    }

    fn pass_report(&self, now: Tick) -> PassReport {
        let ((added, changed, removed), failed) = (self.last.counts, self.last.failed);
        let took = now.saturating_sub(self.last.began);
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
