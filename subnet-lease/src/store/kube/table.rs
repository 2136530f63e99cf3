//! Which Node means what: from Nodes that change to leases that change.

use std::collections::HashMap;

use super::node::{Node, Reading};
use crate::model::lease::Lease;
use crate::model::net::Subnets;
use crate::store::StoreEvent;

/// All Nodes, by name; of each only what is needed to see a change.
#[derive(Default)]
pub(super) struct Table {
    nodes: HashMap<Box<str>, Entry>,
    holders: HashMap<Subnets, Box<str>>,
    /// Nodes that wait for an older one.
    seconds: usize,
}

struct Entry {
    digest: u64,
    created: u64,
    state: State,
}

#[derive(Clone, PartialEq, Eq)]
enum State {
    Nothing,
    /// It holds these.
    Holds(Subnets),
    /// It has the subnets of an older Node, and waits.
    Second(Subnets),
    /// What is wrong was reported; its peers keep what it held, as far as that is known.
    Unreadable(Option<Subnets>),
}

/// What a change of one Node means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    Events(Vec<StoreEvent>),
    /// Only a look at all Nodes says.
    ListAgain,
}

/// All Nodes of a list, before it is known which of them hold what.
#[derive(Default)]
pub(super) struct Listing {
    read: Vec<(Box<str>, u64, u64, Reading)>,
}

impl Listing {
    pub(super) fn add(&mut self, node: &Node<'_>) {
        self.read.push((node.name.into(), node.digest(), node.created, node.reading()));
    }

    /// The table, the leases, and what can't be read: key and reason.
    pub(super) fn finish(mut self) -> (Table, Vec<Lease>, Vec<(String, String)>) {
        // Of two Nodes with one podCIDR the older one holds it, on all hosts alike.
        self.read.sort_by(|a, b| (a.2, &a.0).cmp(&(b.2, &b.0)));
        let (mut leases, mut unreadable) = (Vec::with_capacity(self.read.len()), Vec::new());
        let mut table = Table::default();
        for (name, digest, created, reading) in self.read {
            let state = match reading {
                Reading::Nothing => State::Nothing,
                Reading::Lease(lease) => match table.holders.get(&lease.subnets) {
                    None => {
                        let subnets = lease.subnets;
                        leases.push(lease);
                        State::Holds(subnets)
                    }
                    Some(holder) => {
                        unreadable.push((name.to_string(), second(&name, &lease.subnets, holder)));
                        State::Second(lease.subnets)
                    }
                },
                Reading::Unreadable(subnets, why) => {
                    unreadable.push((name.to_string(), why));
                    State::Unreadable(subnets)
                }
            };
            table.put(&name, Some(Entry { digest, created, state }));
        }
        (table, leases, unreadable)
    }
}

impl Table {
    /// A Node came or changed.
    pub(super) fn there(&mut self, node: &Node<'_>) -> Change {
        let digest = node.digest();
        let before = match self.nodes.get(node.name) {
            // Nothing is allocated for a heartbeat.
            Some(entry) if entry.digest == digest => return Change::Nothing,
            Some(entry) => entry.state.clone(),
            None => State::Nothing,
        };
        let (state, event) = match node.reading() {
            Reading::Nothing => (State::Nothing, None),
            Reading::Lease(lease) => match self.other_holder(node.name, &lease.subnets) {
                Some((_, older)) if older > node.created => return Change::ListAgain,
                Some((holder, _)) => {
                    let reason = second(node.name, &lease.subnets, holder);
                    let event = StoreEvent::Unreadable { key: node.name.to_owned(), reason };
                    (State::Second(lease.subnets), Some(event))
                }
                None => (State::Holds(lease.subnets), Some(StoreEvent::Upsert(lease))),
            },
            Reading::Unreadable(subnets, reason) => {
                let held = if let State::Holds(held) | State::Unreadable(Some(held)) = before {
                    Some(held)
                } else {
                    subnets
                };
                let event = StoreEvent::Unreadable { key: node.name.to_owned(), reason };
                (State::Unreadable(held), Some(event))
            }
        };
        let Some(left) = self.left(node.name, &before, &state) else { return Change::ListAgain };
        self.put(node.name, Some(Entry { digest, created: node.created, state }));
        changed(left, event)
    }

    /// A Node went.
    pub(super) fn gone(&mut self, name: &str) -> Change {
        let Some(entry) = self.nodes.get(name) else { return Change::Nothing };
        let Some(left) = self.left(name, &entry.state, &State::Nothing) else { return Change::ListAgain };
        self.put(name, None);
        changed(left, None)
    }

    /// The Node that holds what this one has as well.
    pub(super) fn rival(&self, name: &str) -> Option<&str> {
        let State::Second(subnets) = &self.nodes.get(name)?.state else { return None };
        self.other_holder(name, subnets).map(|(holder, _)| holder)
    }

    /// The subnets that a Node gives up with a change of its state; none where only a list says what follows.
    fn left(&self, name: &str, before: &State, after: &State) -> Option<Option<Subnets>> {
        let gives_up = match (before, after) {
            (State::Nothing, _) => return Some(None),
            (before, after) if before == after => return Some(None),
            // The peer stays as it was, or is as it was again.
            (State::Holds(a) | State::Unreadable(Some(a)), State::Holds(b) | State::Unreadable(Some(b)))
                if a == b =>
            {
                return Some(None);
            }
            // Reported anew by the name of the Node.
            (State::Second(_) | State::Unreadable(None), State::Nothing) => return None,
            (State::Second(_) | State::Unreadable(None), _) => return Some(None),
            (State::Holds(held) | State::Unreadable(Some(held)), _) => *held,
        };
        let waits = |entry: &Entry| entry.state == State::Second(gives_up);
        let somebody = self.seconds > 0 && self.nodes.values().any(waits);
        (!somebody && self.other_holder(name, &gives_up).is_none()).then_some(Some(gives_up))
    }

    fn other_holder(&self, name: &str, subnets: &Subnets) -> Option<(&str, u64)> {
        let holder = self.holders.get(subnets).filter(|holder| ***holder != *name)?;
        Some((holder, self.nodes.get(holder)?.created))
    }

    fn put(&mut self, name: &str, entry: Option<Entry>) {
        let state =
            |entry: &Option<Entry>| entry.as_ref().map_or(State::Nothing, |entry| entry.state.clone());
        let after = state(&entry);
        let before = match entry {
            Some(entry) => self.nodes.insert(name.into(), entry),
            None => self.nodes.remove(name),
        };
        match state(&before) {
            State::Holds(subnets) => drop(self.holders.remove(&subnets)),
            State::Second(_) => self.seconds -= 1,
            _ => {}
        }
        match after {
            State::Holds(subnets) => drop(self.holders.insert(subnets, name.into())),
            State::Second(_) => self.seconds += 1,
            _ => {}
        }
    }
}

fn changed(left: Option<Subnets>, event: Option<StoreEvent>) -> Change {
    let removed = left.map(|subnets| StoreEvent::Removed(vec![subnets]));
    let events: Vec<_> = removed.into_iter().chain(event).collect();
    if events.is_empty() { Change::Nothing } else { Change::Events(events) }
}

fn second(name: &str, subnets: &Subnets, holder: &str) -> String {
    format!(
        "node {name} has the podCIDR of node {holder}, which is older: {}; delete one of the Nodes, and its kubelet registers \
         it again",
        cidrs(subnets)
    )
}

/// As podCIDRs are written.
pub(super) fn cidrs(subnets: &Subnets) -> String {
    subnets.iter().map(|net| net.to_string()).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::super::node::tests::{bytes, prefix};
    use super::super::proto::object;
    use super::*;

    fn with<T>(name: &str, cidr: &str, created: u64, public: &str, then: impl FnOnce(&Node<'_>) -> T) -> T {
        let annotations = [("kube-subnet-manager", "true"), ("public-ip", public)];
        let bytes = bytes(name, &[cidr], if public.is_empty() { &[] } else { &annotations });
        let node = Node::read(object(&bytes).unwrap().1, &prefix()).unwrap();
        then(&Node { created, ..node })
    }

    fn table(nodes: &[(&str, &str, u64, &str)]) -> (Table, Vec<Lease>, Vec<(String, String)>) {
        let mut listing = Listing::default();
        for (name, cidr, created, public) in nodes {
            with(name, cidr, *created, public, |node| listing.add(node));
        }
        listing.finish()
    }

    fn there(table: &mut Table, name: &str, cidr: &str, created: u64, public: &str) -> Change {
        with(name, cidr, created, public, |node| table.there(node))
    }

    const A: &str = "10.0.1.0/24";
    const B: &str = "10.0.2.0/24";

    fn removed(cidr: &str) -> StoreEvent {
        StoreEvent::Removed(vec![Subnets::of([cidr.parse().unwrap()]).unwrap()])
    }

    #[test]
    fn the_older_of_two_nodes_holds_the_podcidr_and_both_are_named() {
        let (mut table, leases, unreadable) = table(&[("new", A, 9, "1.1.1.1"), ("old", A, 5, "1.1.1.2")]);
        assert_eq!(leases.iter().map(|l| l.node.as_deref().unwrap()).collect::<Vec<_>>(), ["old"]);
        assert_eq!(unreadable[0].0, "new");
        assert!(
            unreadable[0].1.starts_with("node new has the podCIDR of node old, which is older: 10.0.1.0/24;")
        );
        assert_eq!(table.rival("new"), Some("old"));
        assert_eq!(table.gone("old"), Change::ListAgain);
        let Change::Events(events) = there(&mut table, "third", A, 10, "1.1.1.3") else { panic!() };
        assert!(matches!(&events[..], [StoreEvent::Unreadable { key, .. }] if key == "third"));
        assert_eq!(there(&mut table, "oldest", A, 1, "1.1.1.4"), Change::ListAgain);
    }

    #[test]
    fn a_heartbeat_is_nothing_and_a_change_is_an_event() {
        let (mut table, ..) = table(&[("a", A, 5, "1.1.1.1")]);
        assert_eq!(there(&mut table, "a", A, 5, "1.1.1.1"), Change::Nothing);
        let Change::Events(events) = there(&mut table, "a", A, 5, "1.1.1.2") else { panic!() };
        assert!(matches!(&events[..], [StoreEvent::Upsert(lease)] if lease.public.to_string() == "1.1.1.2"));
    }

    #[test]
    fn annotations_that_go_and_a_podcidr_that_changes_end_the_lease() {
        let (mut table, ..) = table(&[("a", A, 5, "1.1.1.1"), ("b", B, 5, "1.1.1.2")]);
        assert_eq!(there(&mut table, "a", A, 5, ""), Change::Events(vec![removed(A)]));
        assert_eq!(there(&mut table, "a", A, 5, ""), Change::Nothing);
        let Change::Events(events) = there(&mut table, "b", A, 6, "1.1.1.2") else { panic!() };
        assert_eq!(events[0], removed(B));
        assert!(matches!(&events[1], StoreEvent::Upsert(lease) if lease.epoch == 6));
        assert_eq!(table.gone("b"), Change::Events(vec![removed(A)]));
        assert_eq!(table.gone("b"), Change::Nothing);
    }

    #[test]
    fn a_node_that_turns_unreadable_takes_nothing_away_until_it_goes() {
        let (mut table, ..) = table(&[("a", A, 5, "1.1.1.1")]);
        let Change::Events(events) = there(&mut table, "a", A, 5, "x") else { panic!() };
        assert!(matches!(&events[..], [StoreEvent::Unreadable { key, .. }] if key == "a"));
        let Change::Events(events) = there(&mut table, "a", A, 5, "1.1.1.1") else { panic!() };
        assert!(matches!(&events[..], [StoreEvent::Upsert(_)]));
        there(&mut table, "a", A, 5, "x");
        let Change::Events(events) = there(&mut table, "a", B, 6, "1.1.1.1") else { panic!() };
        assert!(events[0] == removed(A) && matches!(&events[1], StoreEvent::Upsert(_)), "{events:?}");
        there(&mut table, "a", B, 6, "x");
        assert_eq!(table.gone("a"), Change::Events(vec![removed(B)]));
    }
}
