//! The difference between the wish and the dump, as a plan.
//!
//! ```text
//!   links that must be made anew, or stand in a wanted one's way  ── delete
//!   Link → Sysctl → Address → Up → FDB → neighbour → route → rules ── create, replace (make before break)
//!   rules → route → neighbour → FDB → Up → Address → Link           ── delete what is ours and unwanted
//! ```

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::name::IfName;
use crate::owner::{Owner, Verdict, Wanted};
use crate::plan::{Op, Plan};
use crate::state::{KernelState, Link, Object};

/// What to do so that `have` becomes `want`. Everything in `have` that the owner calls foreign is left alone.
pub fn diff(want: &KernelState, have: &KernelState, owner: &Owner) -> Plan {
    let wanted = Wanted::new(owner, want, have);
    let away = links_in_the_way(want, have, owner);
    let mut plan =
        Plan { ops: away.iter().map(|l| Op::Delete(Object::Link(Box::new((*l).clone())))).collect() };
    let gone: HashSet<IfName> = away.iter().map(|l| l.name).collect();
    let doomed: HashSet<IfName> = unwanted_links(want, have, owner, &gone);

    let readdressed = readdressed_links(want, have);

    // What hangs on a link that goes, goes with it (law 5), and a new MAC costs a link all its neighbours: hidden here,
    // so that it is planned anew in this pass.
    let visible = |o: &&Object| match o {
        Object::Link(l) => !gone.contains(&l.name),
        Object::Neigh(n) if readdressed.contains(&n.link) => false,
        o => !o.link().is_some_and(|l| gone.contains(&l) || doomed.contains(&l)),
    };
    let have: Vec<(&Object, Verdict)> =
        have.iter().filter(visible).map(|o| (o, owner.verdict(o, &wanted))).collect();

    let mut deletes = Vec::new();
    merge(want.as_slice(), &have, &mut plan.ops, &mut deletes);
    plan.ops.extend(deletes.into_iter().rev().cloned().map(Op::Delete));
    plan
}

/// One forward walk over both, in key order.
fn merge<'a>(
    want: &[Object],
    have: &[(&'a Object, Verdict)],
    puts: &mut Vec<Op>,
    deletes: &mut Vec<&'a Object>,
) {
    let (mut w, mut h) = (0, 0);
    while w < want.len() || h < have.len() {
        let order = match (want.get(w), have.get(h)) {
            (Some(want), Some((have, _))) => want.key().cmp(&have.key()),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        match order {
            Ordering::Less => {
                puts.push(Op::Put { want: want[w].clone(), have: None });
                w += 1;
            }
            Ordering::Greater => {
                if have[h].1 != Verdict::Foreign {
                    deletes.push(have[h].0);
                }
                h += 1;
            }
            Ordering::Equal => {
                let same = have[h..].iter().take_while(|(o, _)| o.key() == want[w].key()).count();
                one_key(&want[w], &have[h..h + same], puts);
                (w, h) = (w + 1, h + same);
            }
        }
    }
}

/// One wanted object against everything in the dump that has its key: only the first is in force. The others go
/// before it is replaced, since a replacement that equals one of them is refused (EEXIST).
fn one_key(want: &Object, have: &[(&Object, Verdict)], puts: &mut Vec<Op>) {
    let (first, others) = (have[0], &have[1..]);
    let ours = others.iter().filter(|(_, verdict)| *verdict != Verdict::Foreign);
    puts.extend(ours.map(|(o, _)| Op::Delete((*o).clone())));
    if first.0 != want {
        puts.push(Op::Put { want: want.clone(), have: Some(first.0.clone()) });
    }
}

/// Links of ours that can't become what is wanted in place, or whose identity the kernel refuses beside a wanted one.
fn links_in_the_way<'a>(want: &KernelState, have: &'a KernelState, owner: &Owner) -> Vec<&'a Link> {
    let ours = have.links().filter(|l| owner.owns_link(l.name, Some(&l.tag)));
    ours.filter(|have| {
        let same = want.links().find(|w| w.name == have.name);
        let remade = same.is_some_and(|w| !have.can_become(w));
        remade || (same.is_none() && want.links().any(|w| w.clashes_with(have)))
    })
    .collect()
}

fn unwanted_links(
    want: &KernelState,
    have: &KernelState,
    owner: &Owner,
    gone: &HashSet<IfName>,
) -> HashSet<IfName> {
    let wanted: HashSet<_> = want.links().map(|l| l.name).collect();
    let ours = have.links().filter(|l| owner.owns_link(l.name, Some(&l.tag)));
    ours.map(|l| l.name).filter(|n| !wanted.contains(n) && !gone.contains(n)).collect()
}

fn readdressed_links(want: &KernelState, have: &KernelState) -> HashSet<IfName> {
    let changes = |w: &&Link| have.links().any(|h| h.name == w.name && h.mac != w.mac);
    want.links().filter(changes).map(|l| l.name).collect()
}
