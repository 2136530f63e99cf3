//! What must hold: after every step of every plan, and at every quiet moment.

use std::time::Duration;

use backends::kernel::fake::{FakeKernel, Hop, Namespace};
use backends::kernel::{Kernel as _, KernelEvent, OpError};
use backends::{Object, Op};
use flanneld::core::{Effect, Input, Tick};
use subnet_lease::{Family, Subnets};

use super::node::is_link_wide;
use super::{Node, Shape, World};

/// Passes that came one upon the other are paced: one more is taken at once only after a pause.
const PAUSE: Duration = Duration::from_secs(2);
/// Until then every node looked again without a reason.
const AUDIT: Duration = Duration::from_secs(35);

/// What worked, and what has been disturbed since.
pub struct Watch {
    nodes: usize,
    families: &'static [Family],
    /// How often a node was disturbed from outside.
    touched: Vec<u32>,
    /// Until when a node's pairs may break for a reason that is under way: its lease was taken away.
    shaky: Vec<Tick>,
    /// For each pair and family: both ends' count of disturbances when packets got through, plus one; 0 = never.
    worked: Vec<(u32, u32)>,
    /// Failures found while a kernel was borrowed.
    broken: Option<(&'static str, String)>,
}

impl Watch {
    pub(super) fn new(shape: &Shape) -> Self {
        let families = if shape.six { &Family::ALL[..] } else { &Family::ALL[..1] };
        let pairs = if shape.every_step { shape.nodes * shape.nodes * families.len() } else { 0 };
        Self {
            nodes: shape.nodes,
            families,
            touched: vec![1; shape.nodes],
            shaky: vec![Tick::ZERO; shape.nodes],
            worked: vec![(0, 0); pairs],
            broken: None,
        }
    }

    /// Something outside of the daemon changed this node: its pairs start over.
    pub(super) fn touch(&mut self, n: usize) {
        self.touched[n] += 1;
    }

    /// The store says for a while that this node has no lease: pairs go when others hear of it, and come back.
    pub(super) fn doubt(&mut self, n: usize, until: Tick) {
        self.touch(n);
        self.shaky[n] = until;
    }

    fn note(&mut self, from: usize, to: usize, family: usize, works: Result<(), String>, op: &Op) {
        let at = (from * self.nodes + to) * self.families.len() + family;
        let now = (self.touched[from], self.touched[to]);
        match works {
            Ok(()) => self.worked[at] = now,
            Err(why) if self.worked[at] == now && self.broken.is_none() => {
                self.broken = Some(("gap", format!("`{op}` cut off {from} → {to}, which worked: {why}")));
            }
            Err(_) => {}
        }
    }
}

impl World {
    /// Applies a plan and looks at everything it could have broken after each step.
    pub(super) fn apply_and_watch(&mut self, n: usize, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let mut kernel = std::mem::replace(&mut self.nodes[n].kernel, FakeKernel::new(0));
        let (nodes, watch, every, now) = (&self.nodes, &mut self.watch, self.shape.every_step, self.now);
        let look = |net: &Namespace, op: &Op| {
            if every {
                look(nodes, watch, now, n, net, op);
            }
        };
        let results = match self.broken {
            Some(broken) => apply_but(&mut kernel, ops, broken, look),
            None => kernel.apply_watched(ops, look),
        };
        self.nodes[n].kernel = kernel;
        if let Some((rule, broken)) = self.watch.broken.take() {
            self.fail(rule, Some(n), broken);
        }
        results
    }

    /// Everything that must hold when nothing is under way: every pass is empty, every pair gets through, strangers'
    /// objects are there, and no node made passes without a reason.
    pub fn check(&mut self) {
        self.settle();
        for node in &mut self.nodes {
            node.kernel.faults.heal();
        }
        self.settle();
        let pause = if std::mem::take(&mut self.silent) { AUDIT } else { PAUSE };
        self.run_for(pause);
        self.settle();
        for n in 0..self.nodes.len() {
            self.check_passes(n);
            self.check_idempotent(n);
            self.check_strangers(n);
        }
        self.settle();
        self.check_pairs();
    }

    fn check_passes(&self, n: usize) {
        let (passes, reasons) = self.nodes[n].passes_and_reasons(self.now);
        if passes > reasons {
            self.fail("bounded", Some(n), format!("{passes} passes for {reasons} reasons"));
        }
    }

    /// One more pass over everything finds nothing to do.
    fn check_idempotent(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let Some(core) = &mut node.core else { return };
        let mut wrong = Vec::new();
        if !core.readiness().ready {
            wrong.push(format!("is not ready: {:?}", core.readiness()));
        }
        node.reasons += 1;
        let mut effects = core.handle(now, Input::Kernel(KernelEvent::Overrun));
        let mut looked = false;
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::ReadHost => effects.extend(core.handle(now, Input::Host(node.kernel.host()))),
                Effect::ReadOwn(owner) => {
                    looked = true;
                    effects.extend(core.handle(now, Input::Own(node.kernel.own(&owner))));
                }
                Effect::Apply(plan) => wrong.push(format!("is not as wished:\n{plan}")),
                Effect::Claim(claim) => wrong.push(format!("claims again: {claim:?}")),
                Effect::Listen(_)
                | Effect::Plane(_)
                | Effect::Share(_)
                | Effect::Publish(_)
                | Effect::Remember(_)
                | Effect::Withdraw(_)
                | Effect::Announce(_) => {}
                Effect::Exit(code) => wrong.push(format!("ends: {code:?}")),
            }
        }
        if !looked {
            wrong.push("did not look".to_owned());
        }
        if !wrong.is_empty() {
            self.fail("converged", Some(n), wrong.join("; "));
        }
    }

    fn check_strangers(&self, n: usize) {
        let node = &self.nodes[n];
        if let Some(lost) = node.lost(&node.kernel.net) {
            self.fail("foreign", Some(n), format!("a stranger's {lost:?} is gone"));
        }
    }

    /// Every pair of nodes that hold a lease, whether their daemons run or not.
    pub fn check_pairs(&self) {
        let members: Vec<_> =
            self.nodes.iter().enumerate().filter(|(_, n)| n.subnets.is_some() && !n.left).collect();
        for (from, a) in &members {
            for (to, b) in members.iter().filter(|(to, _)| to != from) {
                for family in self.watch.families {
                    if let Err(why) = walk(&a.kernel.net, a, b, *family) {
                        self.fail("reach", Some(*from), format!("→ {to}: {why}\n{}", self.explain(a, b)));
                    }
                }
            }
        }
    }

    /// Why a pair may not get through: what the store says of the far end, and both daemons of each other.
    fn explain(&self, a: &Node, b: &Node) -> String {
        let listed: Vec<_> = self.book.leases.leases().filter(|l| Some(l.subnets) == b.subnets).collect();
        let seen = a.core.as_ref().and_then(|c| c.peers());
        let refused: Vec<_> = seen.into_iter().flat_map(|p| p.refused()).collect();
        let shown = b.core.as_ref().map(|c| c.shown_lease());
        format!("in the store: {listed:?}\nrefused here: {refused:?}\nshown there: {shown:?}")
    }

    /// Each node's kernel as text, for comparing worlds.
    pub fn print(&self) -> String {
        self.nodes.iter().map(|n| n.kernel.to_string()).collect()
    }
}

/// Leaves out the steps that the bug leaves out, and says that they were done.
fn apply_but(
    kernel: &mut FakeKernel,
    ops: &[Op],
    broken: fn(&Op) -> bool,
    look: impl FnMut(&Namespace, &Op),
) -> Vec<Result<(), OpError>> {
    let done: Vec<_> = ops.iter().filter(|op| !broken(op)).cloned().collect();
    let mut results = kernel.apply_watched(&done, look).into_iter();
    ops.iter().map(|op| if broken(op) { Ok(()) } else { results.next().unwrap_or(Ok(())) }).collect()
}

/// After one step on node `n`: what it could have broken, and strangers' routes.
fn look(nodes: &[Node], watch: &mut Watch, now: Tick, n: usize, net: &Namespace, op: &Op) {
    let here = &nodes[n];
    if let Some(lost) = here.lost(net) {
        watch.broken = Some(("foreign", format!("`{op}` touched a stranger's {lost:?}")));
    }
    let wide = is_link_wide(op.object());
    for (m, there) in nodes.iter().enumerate() {
        let Some(subnets) = there.subnets.filter(|_| m != n && !there.left) else { continue };
        if watch.shaky[n] > now || watch.shaky[m] > now || !wide && !concerns(op.object(), &subnets, there) {
            continue;
        }
        for (f, &family) in watch.families.iter().enumerate() {
            watch.note(n, m, f, walk(net, here, there, family), op);
            if wide && here.subnets.is_some() {
                watch.note(m, n, f, arrive(&there.kernel.net, there, net, here, family), op);
            }
        }
    }
}

fn concerns(object: &Object, subnets: &Subnets, peer: &Node) -> bool {
    match object {
        Object::Route(r) => subnets.iter().any(|net| net.contains(r.dst.ip()) || r.dst.contains(net.ip())),
        Object::Neigh(neigh) => subnets.iter().any(|net| net.contains(neigh.address)),
        Object::Fdb(fdb) => {
            peer.kernel.net.answers(fdb.mac) || peer.site.addresses.iter().any(|a| a.ip() == fdb.dst)
        }
        _ => false,
    }
}

/// A packet from one node's host to the first pod address of another.
fn walk(net: &Namespace, from: &Node, to: &Node, family: Family) -> Result<(), String> {
    arrive(net, from, &to.kernel.net, to, family)
}

fn arrive(net: &Namespace, from: &Node, there: &Namespace, to: &Node, family: Family) -> Result<(), String> {
    let Some(subnet) = to.subnets.and_then(|s| s.family(family)) else { return Ok(()) };
    let far = to.site.address(family);
    match net.forward(subnet.network()) {
        Hop::Tunnel(_, outer, _) if Some(outer) != far => {
            Err(format!("{subnet}: the tunnel leads to {outer}"))
        }
        Hop::Tunnel(_, _, mac) if !there.answers(mac) => Err(format!("{subnet}: nobody answers for {mac}")),
        Hop::Link(_, via) if Some(via) != far => Err(format!("{subnet}: the route leads to {via}")),
        Hop::Link(..) if from.site.rack != to.site.rack => Err(format!("{subnet}: another rack")),
        Hop::Lost(why) => Err(format!("{subnet}: {why}")),
        Hop::Tunnel(..) | Hop::Link(..) => Ok(()),
    }
}
