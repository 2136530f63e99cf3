//! What must come true whatever goes wrong at the seam: the next passes make everything as wished.

use backends::diff;
use backends::kernel::fake::{ApplyFault, DumpFault, Faulty};
use nix::errno::Errno;

use super::*;

pub(super) const LAWS: &[Law] = &[
    ("an interrupted dump costs nothing that is there", interrupted),
    ("a dump that fails is no empty one", failed),
    ("a refusal is filed under its own step, wherever that stands", every_place),
    ("answers that are lost leave a plan unknown, and the next dump knows", unanswered),
    ("a link that goes between dump and plan is made anew by the next one", vanished),
];

/// A tunnel with peers, as wished.
fn wish(lab: &mut dyn Lab) -> KernelState {
    tunnel_end(lab, V4);
    for n in 2..6 {
        put(lab, fdb(V4, n)).unwrap();
        put(lab, neigh(V4, n)).unwrap();
        put(lab, route(V4, n)).unwrap();
    }
    state(lab)
}

/// One pass as the core makes it: on an interrupted dump nothing is deleted. How many steps failed.
fn pass(kernel: &mut dyn Kernel, want: &KernelState) -> Option<usize> {
    let own = kernel.own(&owner()).ok()?;
    let mut plan = diff(want, &own.state, &owner());
    if own.interrupted {
        plan.ops.retain(|op| !matches!(op, Op::Delete(_)));
    }
    Some(kernel.apply(&plan.ops).iter().filter(|r| r.is_err()).count())
}

fn interrupted(lab: &mut dyn Lab) {
    let want = wish(lab);
    for seed in 0..20 {
        let mut faulty = Faulty::new(lab.kernel(), seed);
        faulty.strike_dump(DumpFault::Interrupted);
        // What a dump hides and is there is refused or put again, and neither harms.
        pass(&mut faulty, &want).unwrap();
        assert_eq!(pass(&mut faulty, &want), Some(0));
        assert_eq!(state(lab), want);
    }
}

fn failed(lab: &mut dyn Lab) {
    let want = wish(lab);
    for errno in [Errno::EBUSY, Errno::ENOBUFS, Errno::EINTR] {
        let mut faulty = Faulty::new(lab.kernel(), 0);
        faulty.strike_dump(DumpFault::Failed(errno));
        assert_eq!(pass(&mut faulty, &want), None);
        assert_eq!(state(lab), want);
    }
}

fn every_place(lab: &mut dyn Lab) {
    let want = wish(lab);
    let link = want.links().next().unwrap().clone();
    delete(lab, link).unwrap();
    let steps = diff(&want, &state(lab), &owner()).ops.len();
    for n in 0..steps {
        let mut faulty = Faulty::new(lab.kernel(), 0);
        let plan = diff(&want, &faulty.own(&owner()).unwrap().state, &owner());
        faulty.strike_apply(ApplyFault::Refused(n, Errno::EBUSY));
        let results = faulty.apply(&plan.ops);
        assert_eq!(results.len(), plan.ops.len());
        assert_eq!(results[n].as_ref().map_err(errno), Err(Errno::EBUSY), "{}", plan.ops[n]);
        pass(&mut faulty, &want).unwrap();
        assert_eq!(pass(&mut faulty, &want), Some(0), "after {}", plan.ops[n]);
        assert_eq!(state(lab), want);
        let link = want.links().next().unwrap().clone();
        delete(lab, link).unwrap();
    }
}

fn unanswered(lab: &mut dyn Lab) {
    let want = wish(lab);
    for fault in [ApplyFault::Unanswered, ApplyFault::Unsent] {
        let link = want.links().next().unwrap().clone();
        delete(lab, link).unwrap();
        let mut faulty = Faulty::new(lab.kernel(), 0);
        faulty.strike_apply(fault);
        assert!(pass(&mut faulty, &want).unwrap() > 10);
        assert_eq!(pass(&mut faulty, &want), Some(0));
        assert_eq!(state(lab), want);
    }
}

fn vanished(lab: &mut dyn Lab) {
    let want = wish(lab);
    let few: KernelState =
        want.iter().filter(|o| !matches!(o, Object::Route(_) | Object::Neigh(_))).cloned().collect();
    let plan = diff(&few, &state(lab), &owner());
    let back = diff(&want, &few, &owner());
    lab.hand(&Act::DeleteLink(tunnel(V4))).unwrap();
    assert!(lab.kernel().apply(&plan.ops).iter().all(Result::is_ok), "what was to go is gone");
    let refused: Vec<_> =
        lab.kernel().apply(&back.ops).iter().map(|r| r.as_ref().map_err(errno).copied()).collect();
    assert!(refused.iter().all(|r| *r == Err(Errno::ENODEV)), "{refused:?}");
    assert_eq!(pass(lab.kernel(), &want), Some(0));
    assert_eq!(state(lab), want);
}
