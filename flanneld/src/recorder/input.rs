//! An input as it is recorded, and back.

use std::borrow::Cow;

use backends::kernel::{KernelError, KernelEvent, OpError, Own, Touch};
use backends::plane::PlaneOutcome;
use backends::rules::Firewall;
use backends::{Facts, HostAddress, HostLink, HostRoute, Object, Plan, System};
use serde::{Deserialize, Serialize};
use subnet_lease::{Lease, OwnLease, StoreError, StoreEvent, SubnetEnv, Subnets};

use super::delta::{Base, Delta};
use super::did;
use crate::core::{Changed, Hold, Input, Memory, NodeCore, Share, without_secrets};

/// Failed steps that are recorded as lines too.
const LINES: usize = 10;

/// One input. No input at all, a tick, is one here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputRecord<'a> {
    /// Something was due.
    Tick,
    /// [`Input::Remembered`].
    Remembered(SubnetEnv),
    /// [`Input::Recalled`]; its peers are the difference to the last snapshot.
    Recalled {
        /// The net-conf, without secrets.
        config: String,
        /// Our own lease.
        own: Cow<'a, Lease>,
        /// The peers' leases.
        peers: Delta<'a, Lease>,
        /// Settings that an earlier run changed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        settings: Vec<Changed>,
        /// The hold that was on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hold: Option<Hold>,
        /// The host did not start since.
        warm: bool,
    },
    /// The net-conf, without secrets.
    Config(String),
    /// All leases, as the difference to the last snapshot.
    Snapshot {
        /// What can be read.
        leases: Delta<'a, Lease>,
        /// What can't, with the reason.
        unreadable: Delta<'a, (String, String)>,
        /// It is not a later state of the snapshots before it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        foreign: bool,
    },
    /// A lease came or changed.
    Upsert(Cow<'a, Lease>),
    /// Leases ended, in one step.
    Removed(Cow<'a, [Subnets]>),
    /// A lease can't be read, and why.
    Unreadable(Cow<'a, str>, Cow<'a, str>),
    /// A key that was no lease ended.
    Gone(Cow<'a, str>),
    /// The store can't be followed.
    Stale(Cow<'a, str>),
    /// [`Input::Kernel`].
    Kernel(KernelEvent),
    /// [`Input::Touched`].
    Touched(Cow<'a, [Touch]>),
    /// [`Input::Shared`].
    Shared(Cow<'a, [Share]>),
    /// [`Input::File`].
    File,
    /// [`Input::Host`], as the difference to the last.
    Host {
        /// Its links.
        links: Delta<'a, HostLink>,
        /// Its addresses.
        addresses: Delta<'a, HostAddress>,
        /// Its routes.
        routes: Delta<'a, HostRoute>,
        /// The way to the address that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reach: Option<HostRoute>,
        /// It speaks IPv6.
        ipv6: bool,
        /// The kernel.
        #[serde(default, skip_serializing_if = "is_unknown")]
        system: Cow<'a, System>,
        /// The dump was interrupted.
        interrupted: bool,
    },
    /// The host could not be read.
    HostFailed(Cow<'a, KernelError>),
    /// [`Input::Own`], as the difference to the last.
    Own {
        /// The dump.
        objects: Delta<'a, Object>,
        /// It was interrupted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        interrupted: bool,
        /// Messages in it that could not be read.
        #[serde(default, skip_serializing_if = "is_zero")]
        unreadable: u64,
        /// What others filter, where that changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        firewall: Option<Cow<'a, Firewall>>,
    },
    /// Our own objects could not be read.
    OwnFailed(Cow<'a, KernelError>),
    /// [`Input::Applied`].
    Applied(Applied<'a>),
    /// [`Input::Claimed`].
    Claimed(Cow<'a, Result<OwnLease, StoreError>>),
    /// [`Input::Plane`].
    Plane(Cow<'a, PlaneOutcome>),
    /// An input of this name that has no place in a file.
    TooLarge(String),
}

/// How a plan went.
#[derive(Debug, Serialize, Deserialize)]
pub struct Applied<'a> {
    /// How many steps it had.
    pub steps: usize,
    /// Runs of steps that failed alike: the first one, how many, why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<(usize, usize, Cow<'a, OpError>)>,
    /// The first that failed, as lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

/// What the writer remembers of the last of each.
#[derive(Debug, Default)]
pub(super) struct Bases {
    leases: Base,
    unreadable: Base,
    links: Base,
    addresses: Base,
    routes: Base,
    objects: Base,
    firewall: Firewall,
}

/// What the reader remembers of the last of each.
#[derive(Debug, Default)]
pub struct Known {
    leases: Vec<Lease>,
    unreadable: Vec<(String, String)>,
    facts: Facts,
    objects: Vec<Object>,
    firewall: Firewall,
}

impl<'a> InputRecord<'a> {
    pub(super) fn of(input: Option<&'a Input>, core: &NodeCore, bases: &mut Bases) -> Self {
        match input {
            None => Self::Tick,
            Some(Input::Remembered(env)) => Self::Remembered(*env),
            Some(Input::Recalled(memory, warm)) => Self::Recalled {
                config: without_secrets(&memory.config),
                own: Cow::Borrowed(&memory.own),
                peers: Delta::to(&memory.peers, &mut bases.leases),
                settings: memory.settings.clone(),
                hold: memory.hold.clone(),
                warm: *warm,
            },
            Some(Input::Store(event)) => Self::of_store(event, bases),
            Some(Input::Kernel(event)) => Self::Kernel(*event),
            Some(Input::Touched(touches)) => Self::Touched(touches.into()),
            Some(Input::Shared(others)) => Self::Shared(others.into()),
            Some(Input::File) => Self::File,
            Some(Input::Host(Ok(facts))) => Self::of_host(facts, bases),
            Some(Input::Host(Err(error))) => Self::HostFailed(Cow::Borrowed(error)),
            Some(Input::Own(Ok(Own { state, interrupted, unreadable, firewall }))) => Self::Own {
                objects: Delta::to(state.as_slice(), &mut bases.objects),
                firewall: (*firewall != bases.firewall).then(|| {
                    bases.firewall.clone_from(firewall);
                    Cow::Borrowed(firewall)
                }),
                interrupted: *interrupted,
                unreadable: *unreadable,
            },
            Some(Input::Own(Err(error))) => Self::OwnFailed(Cow::Borrowed(error)),
            Some(Input::Applied(results)) => Self::Applied(Applied::of(results, core.applying())),
            Some(Input::Claimed(result)) => Self::Claimed(Cow::Borrowed(result)),
            Some(Input::Plane(outcome)) => Self::Plane(Cow::Borrowed(outcome)),
        }
    }

    fn of_store(event: &'a StoreEvent, bases: &mut Bases) -> Self {
        match event {
            StoreEvent::Config(written) => Self::Config(without_secrets(written)),
            StoreEvent::Snapshot { leases, unreadable, foreign } => Self::Snapshot {
                leases: Delta::to(leases, &mut bases.leases),
                unreadable: Delta::to(unreadable, &mut bases.unreadable),
                foreign: *foreign,
            },
            StoreEvent::Upsert(lease) => Self::Upsert(Cow::Borrowed(lease)),
            StoreEvent::Removed(gone) => Self::Removed(gone.into()),
            StoreEvent::Unreadable { key, reason } => Self::Unreadable(key.into(), reason.into()),
            StoreEvent::Gone { key } => Self::Gone(key.into()),
            StoreEvent::Stale(reason) => Self::Stale(reason.into()),
        }
    }

    fn of_host(facts: &'a Facts, bases: &mut Bases) -> Self {
        // Every field by name: a new one must not be forgotten here.
        let Facts { links, addresses, routes, reach, ipv6, system, interrupted } = facts;
        Self::Host {
            links: Delta::to(links, &mut bases.links),
            addresses: Delta::to(addresses, &mut bases.addresses),
            routes: Delta::to(routes, &mut bases.routes),
            reach: *reach,
            ipv6: *ipv6,
            system: Cow::Borrowed(system),
            interrupted: *interrupted,
        }
    }

    /// Whether it has nothing new, as far as this record alone shows.
    pub fn is_quiet(&self) -> bool {
        match self {
            Self::Tick => true,
            Self::Own { objects, interrupted, firewall, .. } => {
                objects.is_nothing() && !interrupted && firewall.is_none()
            }
            Self::Host { links, addresses, routes, interrupted, .. } => {
                links.is_nothing() && addresses.is_nothing() && routes.is_nothing() && !interrupted
            }
            _ => false,
        }
    }
}

impl InputRecord<'static> {
    /// The input again; none is a tick. The error is the reason why it can't be restored.
    pub fn input(self, known: &mut Known) -> Result<Option<Input>, String> {
        Ok(Some(match self {
            Self::Tick => return Ok(None),
            Self::Remembered(env) => Input::Remembered(env),
            Self::Recalled { config, own, peers, settings, hold, warm } => {
                peers.apply(&mut known.leases)?;
                let (own, peers) = (own.into_owned(), known.leases.clone());
                let config = config.into_bytes();
                Input::Recalled(Box::new(Memory { config, own, peers, settings, hold }), warm)
            }
            Self::Config(text) => Input::Store(StoreEvent::Config(text.into_bytes())),
            Self::Snapshot { leases, unreadable, foreign } => {
                leases.apply(&mut known.leases)?;
                unreadable.apply(&mut known.unreadable)?;
                let (leases, unreadable) = (known.leases.clone(), known.unreadable.clone());
                Input::Store(StoreEvent::Snapshot { leases, unreadable, foreign })
            }
            Self::Upsert(lease) => Input::Store(StoreEvent::Upsert(lease.into_owned())),
            Self::Removed(gone) => Input::Store(StoreEvent::Removed(gone.into_owned())),
            Self::Unreadable(key, reason) => {
                Input::Store(StoreEvent::Unreadable { key: key.into_owned(), reason: reason.into_owned() })
            }
            Self::Gone(key) => Input::Store(StoreEvent::Gone { key: key.into_owned() }),
            Self::Stale(reason) => Input::Store(StoreEvent::Stale(reason.into_owned())),
            Self::Kernel(event) => Input::Kernel(event),
            Self::Touched(touches) => Input::Touched(touches.into_owned()),
            Self::Shared(others) => Input::Shared(others.into_owned()),
            Self::File => Input::File,
            Self::Host { links, addresses, routes, reach, ipv6, system, interrupted } => {
                let facts = &mut known.facts;
                links.apply(&mut facts.links)?;
                addresses.apply(&mut facts.addresses)?;
                routes.apply(&mut facts.routes)?;
                (facts.reach, facts.ipv6, facts.interrupted) = (reach, ipv6, interrupted);
                facts.system = system.into_owned();
                Input::Host(Ok(facts.clone()))
            }
            Self::HostFailed(error) => Input::Host(Err(error.into_owned())),
            Self::Own { objects, interrupted, unreadable, firewall } => {
                objects.apply(&mut known.objects)?;
                if let Some(changed) = firewall {
                    known.firewall = changed.into_owned();
                }
                let firewall = known.firewall.clone();
                let state = known.objects.iter().cloned().collect();
                Input::Own(Ok(Own { state, interrupted, unreadable, firewall }))
            }
            Self::OwnFailed(error) => Input::Own(Err(error.into_owned())),
            Self::Applied(applied) => Input::Applied(applied.results()?),
            Self::Claimed(result) => Input::Claimed(result.into_owned()),
            Self::Plane(outcome) => Input::Plane(outcome.into_owned()),
            Self::TooLarge(name) => return Err(format!("an input ({name}) was too large to be kept")),
        }))
    }
}

#[expect(clippy::ptr_arg, reason = "serde hands over the field as it is")]
fn is_unknown(system: &Cow<'_, System>) -> bool {
    **system == System::default()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// More steps than any plan has.
const MOST_STEPS: usize = 1 << 22;

impl<'a> Applied<'a> {
    fn of(results: &'a [Result<(), OpError>], plan: Option<&Plan>) -> Self {
        let mut failed: Vec<(usize, usize, Cow<OpError>)> = Vec::new();
        let mut lines = Vec::new();
        for (at, result) in results.iter().enumerate() {
            let Err(error) = result else { continue };
            if let Some(op) = plan.and_then(|plan| plan.ops.get(at)).filter(|_| lines.len() < LINES) {
                let line = op.to_string();
                lines.push(did::bounded(format!("{}: {error}", line.lines().next().unwrap_or_default())));
            }
            match failed.last_mut() {
                Some((first, length, why)) if *first + *length == at && **why == *error => *length += 1,
                _ => failed.push((at, 1, Cow::Borrowed(error))),
            }
        }
        Self { steps: results.len(), failed, lines }
    }

    fn results(self) -> Result<Vec<Result<(), OpError>>, String> {
        let wrong = "the results of a plan are not those of one";
        if self.steps > MOST_STEPS {
            return Err(wrong.to_owned());
        }
        let mut results = vec![Ok(()); self.steps];
        for (at, length, why) in self.failed {
            let run = at.checked_add(length).and_then(|end| results.get_mut(at..end)).ok_or(wrong)?;
            run.fill(Err(why.into_owned()));
        }
        Ok(results)
    }

    /// How many steps failed.
    pub fn failures(&self) -> usize {
        self.failed.iter().fold(0, |sum, (_, length, _)| sum.saturating_add(*length))
    }
}

/// What kind of input it is.
pub(super) fn name(input: Option<&Input>) -> &'static str {
    match input {
        None => "tick",
        Some(Input::Remembered(_)) => "remembered",
        Some(Input::Recalled(..)) => "recalled",
        Some(Input::Store(_)) => "store",
        Some(Input::Kernel(_)) => "kernel",
        Some(Input::Touched(_)) => "touched",
        Some(Input::Shared(_)) => "shared",
        Some(Input::File) => "file",
        Some(Input::Host(_)) => "host",
        Some(Input::Own(_)) => "own",
        Some(Input::Applied(_)) => "applied",
        Some(Input::Claimed(_)) => "claimed",
        Some(Input::Plane(_)) => "plane",
    }
}
