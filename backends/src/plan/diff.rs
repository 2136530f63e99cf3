//! The difference between the wish and the dump, as a plan.
//!
//! ```text
//!   links that must be made anew, or stand in a wanted one's way  ── delete; one under a stranger's name ── rename
//!   Link → Sysctl → Address ── create, replace (make before break); unwanted addresses ── delete
//!   Up → FDB → neighbour → route → rules ── create, replace
//!   rules → route → neighbour → FDB → Up → Link ── delete what is ours and unwanted
//! ```
//!
//! Addresses go as soon as their successors are there: one of ours may have become a peer's gateway, which the kernel
//! refuses as long as it is this host's (law 19).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;

use crate::plan::{Op, Owner, Ownership, Plan, Wanted};
use crate::state::{IfName, KernelState, Link, Object, RouteKind};

/// What to do so that `have` becomes `want`. Everything in `have` that the owner calls foreign is left alone.
pub fn diff(want: &KernelState, have: &KernelState, owner: &Owner) -> Plan {
    let lost = renamed_links(want, have, owner);
    let away = links_in_the_way(want, have, owner, &lost);
    let delete = |l: &&Link| Op::Delete(Object::Link(Box::new((*l).clone())));
    let mut plan = Plan { ops: away.iter().map(delete).chain(lost.iter().map(rename)).collect() };
    let have = under_wanted_names(have, &lost);
    let have = have.as_ref();

    // A name that a renamed link gets is not gone, whoever had it.
    let taken = |name: IfName| lost.iter().any(|(_, w)| w.name == name);
    let gone: HashSet<IfName> = away.iter().map(|l| l.name).filter(|name| !taken(*name)).collect();
    let doomed: HashSet<IfName> = unwanted_links(want, have, owner, &gone);
    let readdressed = readdressed_links(want, have);
    let wanted = Wanted::new(owner, want, have);

    // What hangs on a link that goes, goes with it (law 5), and a new MAC costs a link all its neighbours: hidden here,
    // so that it is planned anew in this pass. A link that nobody wishes for goes last, so until then its route to a
    // peer stands before others to the same destination.
    let replaced = |o: &Object| matches!(o, Object::Route(_)) && want.get(&o.key()).is_some();
    let visible = |o: &&Object| match o {
        Object::Link(l) => !gone.contains(&l.name),
        Object::Neigh(n) if readdressed.contains(&n.link) => false,
        o => o.link().is_none_or(|l| !gone.contains(&l) && (!doomed.contains(&l) || replaced(o))),
    };
    let have: Vec<(&Object, Ownership)> =
        have.iter().filter(visible).map(|o| (o, owner.ownership(o, &wanted))).collect();

    let mut deletes = Vec::new();
    merge(want.as_slice(), &have, &mut plan.ops, &mut deletes);
    let (addresses, others): (Vec<_>, Vec<_>) =
        deletes.into_iter().rev().cloned().partition(|o| matches!(o, Object::Address(_)));
    let before = |op: &Op| matches!(op.object(), Object::Link(_) | Object::Sysctl(..) | Object::Address(_));
    let successors = plan.ops.iter().take_while(|op| before(op)).count();
    plan.ops.splice(successors..successors, addresses.into_iter().map(Op::Delete));
    plan.ops.extend(others.into_iter().map(Op::Delete));
    plan
}

/// One forward walk over both, in key order.
fn merge<'a>(
    want: &[Object],
    have: &[(&'a Object, Ownership)],
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
                if have[h].1 != Ownership::Foreign {
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
fn one_key(want: &Object, have: &[(&Object, Ownership)], puts: &mut Vec<Op>) {
    let (first, others) = (have[0].0, &have[1..]);
    let ours = others.iter().filter(|(_, whose)| *whose != Ownership::Foreign);
    puts.extend(ours.map(|(o, _)| Op::Delete((*o).clone())));
    // A special route is deleted by less than its whole identity (law 25), which may be that of the first.
    let unsure = others.iter().any(|(o, _)| matches!(o, Object::Route(r) if r.kind == RouteKind::Special));
    if first.is_stubborn() {
        puts.push(Op::Delete(first.clone()));
        puts.push(Op::Put { want: want.clone(), have: None });
    } else if !first.is_as(want) || unsure {
        puts.push(Op::Put { want: want.clone(), have: Some(first.clone()) });
    }
}

/// Links of ours that somebody gave another name, with what they are to be again. Nothing is lost with a name.
fn renamed_links<'a>(
    want: &'a KernelState,
    have: &'a KernelState,
    owner: &Owner,
) -> Vec<(&'a Link, &'a Link)> {
    let ours = |l: &&Link| owner.owns_link(l.name, Some(&l.tag)) && !want.links().any(|w| w.name == l.name);
    let keeps_the_name = |w: &Link| have.links().any(|l| l.name == w.name && l.can_become(w));
    let mut lost: Vec<(&Link, &Link)> = have
        .links()
        .filter(ours)
        .filter_map(|l| Some((l, want.links().find(|w| w.clashes_with(l) && !keeps_the_name(w))?)))
        .collect();
    lost.dedup_by_key(|(_, w)| w.name);
    lost
}

fn rename((have, want): &(&Link, &Link)) -> Op {
    let named = Link { name: want.name, ..(*have).clone() };
    Op::Put { want: Object::Link(Box::new(named)), have: Some(Object::Link(Box::new((*have).clone()))) }
}

/// The dump as it is after the renaming, which is the rare case.
fn under_wanted_names<'a>(have: &'a KernelState, lost: &[(&Link, &Link)]) -> Cow<'a, KernelState> {
    if lost.is_empty() {
        return Cow::Borrowed(have);
    }
    let name = |old: IfName| lost.iter().find(|(h, _)| h.name == old).map_or(old, |(_, w)| w.name);
    // What has a wanted name and goes is not to be taken for what gets the name.
    let goes = |o: &&Object| {
        let link = if let Object::Link(l) = o { Some(l.name) } else { o.link() };
        !link.is_some_and(|l| lost.iter().any(|(_, w)| w.name == l))
    };
    Cow::Owned(have.iter().filter(goes).map(|o| o.renamed(name)).collect())
}

/// Links of ours that can't become what is wanted in place, or whose identity the kernel refuses beside a wanted one.
fn links_in_the_way<'a>(
    want: &KernelState,
    have: &'a KernelState,
    owner: &Owner,
    lost: &[(&Link, &Link)],
) -> Vec<&'a Link> {
    let ours = have.links().filter(|l| owner.owns_link(l.name, Some(&l.tag)));
    ours.filter(|have| {
        let same = want.links().find(|w| w.name == have.name);
        let remade = same.is_some_and(|w| !have.can_become(w));
        let clashes = same.is_none() && want.links().any(|w| w.clashes_with(have));
        remade || clashes && !lost.iter().any(|(l, _)| l.name == have.name)
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
