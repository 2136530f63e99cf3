//! A kernel in memory: the same laws as the real one, and it refuses on command.
//!
//! ```text
//!   Kernel::own, host, apply ──▶ FakeKernel ── Faults: refuse, interrupt, lose, stop
//!                                    ▼
//!   an operator's hand ───────▶ Namespace    links, what hangs on them, routes, rules; obeys laws.rs
//!                                    ▼
//!                                events()    what the real one would have told
//! ```
//!
//! It prints itself as the lines that would make it.

mod device;
mod faults;
mod faulty;
mod laws;
mod namespace;
mod routes;
mod view;

use std::fmt;

use nix::errno::Errno;

pub use faults::{Alter, Faults, Rng};
pub use faulty::{ApplyFault, DumpFault, Faulty};
pub use laws::LAWS;
pub use namespace::Namespace;
pub use routes::{Hop, RoutePlace};

use super::{Failed, Kernel, KernelError, KernelEvent, OpError, Own, benign};
use crate::netlink::NetlinkError;
use crate::plan::{Op, Owner};
use crate::state::{Facts, KernelState, LinkKind, Object};

/// A kernel in memory.
#[derive(Debug, Clone)]
pub struct FakeKernel {
    /// The kernel proper, for an operator's hand.
    pub net: Namespace,
    /// What it refuses.
    pub faults: Faults,
    filter: Option<Owner>,
}

impl FakeKernel {
    /// A fresh namespace: a loopback device that is down, nothing else. The seed chooses what an interrupted dump lacks.
    pub fn new(seed: u64) -> Self {
        Self { net: Namespace::new(), faults: Faults::new(seed), filter: None }
    }

    /// What was told since the last call, as far as it concerns the owner of the last dump; `Overrun` when
    /// notifications were lost.
    pub fn events(&mut self) -> Vec<KernelEvent> {
        let overrun = self.faults.overrun();
        let told = self.net.told(self.filter.as_ref());
        if overrun { vec![KernelEvent::Overrun] } else { told }
    }

    /// [`Kernel::apply`], with a look at the kernel after every step.
    pub fn apply_watched(
        &mut self,
        ops: &[Op],
        mut look: impl FnMut(&Namespace, &Op),
    ) -> Vec<Result<(), OpError>> {
        let mut failed = Failed::default();
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            let result = match failed.skips(op) {
                Some(error) => Err(error),
                None => self.one(op),
            };
            if matches!(result, Err(OpError::Failed(_))) {
                failed.note(op);
            }
            results.push(result);
            look(&self.net, op);
        }
        results
    }

    fn one(&mut self, op: &Op) -> Result<(), OpError> {
        let done = self.faults.refusal(op).map_or(Ok(()), Err).and_then(|()| self.net.perform(op));
        match done {
            Err(errno) if benign(op, errno) => Ok(()),
            Err(errno) => Err(OpError::Failed(error(op.object(), errno))),
            Ok(()) => Ok(()),
        }
    }
}

impl Kernel for FakeKernel {
    fn own(&mut self, owner: &Owner) -> Result<Own, KernelError> {
        self.filter = Some(owner.clone());
        self.faults.dump().map_err(refused)?;
        let mut objects = self.net.own(owner);
        let interrupted = self.faults.interrupt(&mut objects);
        Ok(Own {
            state: objects.into_iter().collect(),
            interrupted,
            unreadable: 0,
            firewall: self.net.firewall.clone(),
        })
    }

    fn host(&mut self) -> Result<Facts, KernelError> {
        self.faults.dump().map_err(refused)?;
        let mut facts = self.net.facts();
        facts.interrupted = self.faults.interrupt_host(&mut facts);
        Ok(facts)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        self.apply_watched(ops, |_, _| ())
    }
}

impl Namespace {
    /// One step as the real kernel's writer takes it; what it leaves to later passes is left here too.
    fn perform(&mut self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Put { want: Object::Link(want), have } => {
                let have = if let Some(Object::Link(have)) = have { Some(&**have) } else { None };
                self.put_link(want, have)
            }
            Op::Put { want: Object::Sysctl(link, name, value), .. } => self.put_sysctl(*link, *name, *value),
            Op::Put { want: Object::Address(a), .. } if a.narrow => self.put_narrow_address(a.link, a.net),
            Op::Put { want: Object::Address(a), .. } => self.put_address(a.link, a.net),
            Op::Put { want: Object::Up(link), .. } => self.set_up(*link, true),
            Op::Put { want: Object::Fdb(f), .. } => self.put_fdb(f, true),
            Op::Put { want: Object::Neigh(n), .. } => self.put_neighbour(n),
            Op::Put { want: Object::Route(r), .. } => match self.put_route(r, RoutePlace::Replace) {
                // As the real one does: a host route to the gateway goes first, and away afterwards (law 2).
                Err(Errno::EINVAL) if r.via.is_some_and(|v| v.is_ipv6()) && r.onlink => {
                    self.behind_a_host_route(r)
                }
                result => result,
            },
            Op::Put { want: Object::Table(t), .. } => self.put_table(t),
            Op::Put { want: Object::Iptables(rules), .. } => self.put_iptables(rules),
            Op::Delete(Object::Link(have)) => self.delete_link(have.name),
            Op::Delete(Object::Sysctl(..) | Object::Up(_)) => Ok(()),
            Op::Delete(Object::Address(a)) => self.delete_address(a.link, a.net),
            Op::Delete(Object::Fdb(f)) => self.delete_fdb(f),
            Op::Delete(Object::Neigh(n)) => self.delete_neighbour(n),
            Op::Delete(Object::Route(r)) => self.delete_route(&r.deletable()),
            Op::Delete(Object::Table(t)) => self.delete_table(t.key()),
            Op::Delete(Object::Iptables(rules)) => self.delete_iptables(rules),
            Op::Put { want: Object::Trusted(net), .. } => self.trust(*net, true),
            Op::Delete(Object::Trusted(net)) => self.trust(*net, false),
        }
    }
}

impl fmt::Display for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.net, f)
    }
}

impl fmt::Display for Namespace {
    /// The lines that would make this state, the host's own links as comments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for link in &self.facts().links {
            if !LinkKind::is_word(&link.kind) {
                writeln!(
                    f,
                    "# {}: {} mtu {}{}",
                    link.index,
                    link.name,
                    link.mtu,
                    if link.up { " up" } else { "" }
                )?;
            }
        }
        let all: KernelState = self.everything().into_iter().collect();
        all.iter().try_for_each(|o| writeln!(f, "{}", Op::Put { want: o.clone(), have: None }))
    }
}

fn error(object: &Object, errno: Errno) -> KernelError {
    match object {
        Object::Sysctl(link, name, _) => KernelError::Sysctl { path: name.path(*link), errno },
        _ => refused(errno),
    }
}

fn refused(errno: Errno) -> KernelError {
    NetlinkError::Refused { errno, text: None }.into()
}
