//! A store that lost its data is not a cluster whose hosts left. And what a node remembers for a start
//! without the store.

use std::time::Duration;

use flanneld::core::{Input, Memory, Settings};
use subnet_lease::{Lease, StoreEvent};
use tests::solo::{Solo, settings};
use tests::world::{Scenario, Shape, Trouble, seeds};

use crate::daemon::{NETWORK, host, record};

fn own() -> Lease {
    record("10.244.1.0-24", "172.16.0.1", 1, None)
}

fn peer(n: u8) -> Lease {
    record(&format!("10.244.{n}.0-24"), &format!("172.16.0.{n}"), n, None)
}

/// Ready, with that many peers: numbers 2, 3, …
fn ready(peers: u8) -> Solo {
    let mut solo = Solo::new(settings(), host(&[]), own());
    solo.start(NETWORK, [own()].into_iter().chain((0..peers).map(|n| peer(n + 2))).collect());
    solo.wait(Duration::from_secs(6));
    assert!(solo.status().ready, "{:?}", solo.status());
    assert_eq!(solo.status().peers, usize::from(peers));
    solo.take_plans();
    solo
}

fn removed(leases: &[Lease]) -> Input {
    Input::Store(StoreEvent::Removed(leases.iter().map(|lease| lease.subnets).collect()))
}

fn snapshot(leases: Vec<Lease>, foreign: bool) -> Input {
    Input::Store(StoreEvent::Snapshot { leases, unreadable: Vec::new(), foreign })
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Peers kept, peers in all, ready.
fn stands(solo: &Solo) -> (usize, usize, bool) {
    let status = solo.status();
    (status.vanished, status.peers, status.ready)
}

#[test]
fn leases_that_end_one_by_one_are_removed_at_once() {
    let mut solo = ready(5);
    for n in 2..=6 {
        solo.hear(removed(&[peer(n)]));
    }
    assert_eq!(stands(&solo), (0, 0, true));
    assert!(!solo.take_plans().is_empty());
}

#[test]
fn peers_are_kept_when_most_of_them_vanish_in_one_step() {
    let mut solo = ready(5);
    solo.hear(removed(&[peer(2), peer(3), peer(4)]));
    assert_eq!(stands(&solo), (3, 5, false));
    assert!(solo.status().reasons.iter().any(|r| r.contains("vanished")), "{:?}", solo.status().reasons);
    solo.hear(Input::Store(StoreEvent::Upsert(peer(2))));
    assert_eq!(stands(&solo), (2, 5, false));
    solo.hear(Input::Store(StoreEvent::Upsert(peer(3))));
    solo.hear(Input::Store(StoreEvent::Upsert(peer(4))));
    assert_eq!(stands(&solo), (0, 5, true));
    assert!(solo.take_plans().is_empty(), "the kernel was not touched");
}

#[test]
fn a_peer_that_does_not_come_back_within_the_hold_is_removed() {
    let mut solo = ready(5);
    solo.hear(removed(&[peer(2), peer(3), peer(4)]));
    solo.hear(Input::Store(StoreEvent::Upsert(peer(2))));
    solo.wait(seconds(59));
    assert_eq!(stands(&solo), (2, 5, false));
    solo.wait(seconds(2));
    assert_eq!(stands(&solo), (0, 3, true));
    let plan = solo.take_plans().pop().unwrap().0.to_string();
    assert!(plan.contains("ip route delete 10.244.3.0/24"), "{plan}");
}

#[test]
fn half_of_the_peers_and_a_few_of_three_are_removed_at_once() {
    let mut solo = ready(4);
    solo.hear(removed(&[peer(2), peer(3)]));
    assert_eq!(stands(&solo), (0, 2, true));
    let mut solo = ready(3);
    solo.hear(removed(&[peer(2), peer(3)]));
    assert_eq!(stands(&solo), (0, 1, true));
}

#[test]
fn a_second_loss_during_the_hold_counts_together_with_the_first() {
    let mut solo = ready(8);
    solo.hear(removed(&[2, 3, 4, 5, 6].map(peer)));
    solo.hear(removed(&[7, 8].map(peer)));
    assert_eq!(stands(&solo), (7, 8, false));
}

#[test]
fn peers_that_end_together_with_our_own_lease_are_kept_however_few_they_are() {
    let mut solo = ready(2);
    let claims = solo.claims;
    solo.hear(removed(&[own(), peer(2), peer(3)]));
    assert_eq!(stands(&solo), (2, 2, false));
    assert_eq!(solo.claims, claims + 1, "and ours is claimed again");
    let mut solo = ready(2);
    solo.hear(snapshot(Vec::new(), false));
    assert_eq!(stands(&solo), (2, 2, false));
}

#[test]
fn peers_missing_in_another_history_are_kept() {
    let mut solo = ready(6);
    solo.hear(snapshot(vec![own(), peer(2), peer(3), peer(4), peer(5), peer(6)], true));
    assert_eq!(stands(&solo), (1, 6, false));
    let mut solo = ready(6);
    solo.hear(snapshot(vec![own(), peer(2), peer(3), peer(4), peer(5), peer(6)], false));
    assert_eq!(stands(&solo), (0, 5, true));
}

#[test]
fn with_a_hold_of_zero_vanished_peers_are_removed_at_once() {
    let mut solo = Solo::new(Settings { vanish_hold: Duration::ZERO, ..settings() }, host(&[]), own());
    solo.start(NETWORK, (1..=6).map(peer).collect());
    solo.wait(seconds(2));
    solo.hear(removed(&[2, 3, 4, 5, 6].map(peer)));
    assert_eq!(stands(&solo), (0, 0, true));
}

#[test]
fn the_hold_does_not_end_while_the_store_is_unreachable() {
    let mut solo = ready(5);
    solo.hear(removed(&[2, 3, 4, 5].map(peer)));
    solo.hear(Input::Store(StoreEvent::Stale("etcd does not answer".to_owned())));
    solo.wait(seconds(200));
    assert_eq!(stands(&solo), (4, 5, false));
    solo.hear(Input::Store(StoreEvent::Upsert(peer(2))));
    solo.wait(seconds(61));
    assert_eq!(stands(&solo), (0, 2, true));
}

#[test]
fn a_new_lease_wins_over_a_vanished_one_with_the_same_subnet() {
    let mut solo = ready(5);
    solo.hear(removed(&[2, 3, 4, 5].map(peer)));
    let taker = record("10.244.3.0-24", "172.16.0.77", 77, None);
    solo.hear(Input::Store(StoreEvent::Upsert(taker)));
    assert_eq!(stands(&solo), (3, 5, false));
    let wider = record("10.244.4.0-23", "172.16.0.78", 78, None);
    solo.hear(Input::Store(StoreEvent::Upsert(wider)));
    let plans: String = solo.take_plans().iter().map(|(plan, _)| plan.to_string()).collect();
    assert!(plans.contains("172.16.0.77") && plans.contains("10.244.4.0/23"), "{plans}");
    assert_eq!(
        solo.status().refused_count,
        0,
        "what vanished is not refused, it is not there: {:?}",
        solo.status()
    );
}

#[test]
fn the_state_is_saved_after_a_while_and_a_hold_at_once() {
    let mut solo = ready(5);
    let memory = solo.memory.take().expect("remembered");
    assert_eq!((memory.own.subnets, memory.peers.len()), (own().subnets, 5));
    assert_eq!(memory.config, NETWORK);
    assert_eq!(memory.peers[0], peer(2), "a peer's lease as the store had it");
    solo.hear(removed(&[2, 3, 4, 5].map(peer)));
    let memory = solo.memory.take().expect("remembered at once");
    assert_eq!((memory.peers.len(), memory.hold.map(|hold| hold.vanished.len())), (5, Some(4)));
    solo.wait(seconds(70));
    let memory = solo.memory.take().expect("remembered");
    assert_eq!((memory.peers.len(), memory.hold), (1, None));
}

/// Restarts a daemon in the middle of a hold, `after` its begin; most peers and its own lease are back by then.
fn restarted_in_a_hold(after: u64, again: Settings) -> Solo {
    let mut solo = ready(5);
    let everyone: Vec<_> = [own()].into_iter().chain((2..=6).map(peer)).collect();
    solo.hear(removed(&everyone));
    for n in 2..=5 {
        solo.hear(Input::Store(StoreEvent::Upsert(peer(n))));
    }
    solo.wait(seconds(after));
    assert_eq!(stands(&solo), (1, 5, false));
    let memory = solo.memory.take().unwrap();
    solo.restart(again);
    solo.hear(Input::Recalled(Box::new(memory), true));
    solo
}

fn all_but_the_last() -> Vec<Lease> {
    [own()].into_iter().chain((2..=5).map(peer)).collect()
}

#[test]
fn a_hold_survives_a_restart_and_ends_when_it_would_have_ended() {
    let mut solo = restarted_in_a_hold(20, settings());
    solo.start(NETWORK, all_but_the_last());
    assert_eq!(stands(&solo), (1, 5, false));
    solo.wait(seconds(39));
    assert_eq!(stands(&solo), (1, 5, false));
    assert!(solo.take_plans().is_empty(), "the kernel was not touched");
    solo.wait(seconds(2));
    assert_eq!(stands(&solo), (0, 4, true));
}

#[test]
fn a_hold_survives_a_restart_before_its_first_second_is_over() {
    let mut solo = restarted_in_a_hold(0, settings());
    solo.start(NETWORK, all_but_the_last());
    assert_eq!(stands(&solo), (1, 5, false));
    solo.hear(Input::Store(StoreEvent::Upsert(peer(6))));
    assert_eq!(stands(&solo), (0, 5, true));
    assert!(solo.take_plans().is_empty(), "the kernel was not touched");
}

#[test]
fn a_hold_survives_a_restart_without_the_store() {
    let mut solo = restarted_in_a_hold(20, settings());
    solo.hear(away());
    solo.start(NETWORK, all_but_the_last());
    assert_eq!(stands(&solo), (1, 5, false));
    assert!(solo.take_plans().is_empty(), "the kernel was not touched");
}

#[test]
fn a_hold_is_not_resumed_where_nothing_is_to_be_kept() {
    let mut solo = restarted_in_a_hold(20, Settings { vanish_hold: Duration::ZERO, ..settings() });
    solo.start(NETWORK, all_but_the_last());
    assert_eq!(stands(&solo), (0, 4, true));
}

fn remembered() -> Box<Memory> {
    Box::new(Memory {
        config: NETWORK.to_vec(),
        own: own(),
        peers: (2..=6).map(peer).collect(),
        settings: Vec::new(),
        hold: None,
    })
}

fn away() -> Input {
    Input::Store(StoreEvent::Stale("no store answers".to_owned()))
}

#[test]
fn without_the_store_the_network_starts_from_the_state_file_and_reports_stale() {
    let mut solo = Solo::new(settings(), host(&[]), own());
    solo.hear(Input::Recalled(remembered(), false));
    solo.hear(away());
    assert_eq!(stands(&solo), (0, 5, true));
    let status = solo.status();
    assert!(
        status.reasons.iter().any(|r| r.contains("no store answers")) && status.stale.is_some(),
        "{status:?}"
    );
    assert_eq!(solo.env.and_then(|env| env.leased()), Some(own().subnets));
    assert_eq!(solo.claims, 0, "there is nobody to ask");
    let plans = solo.take_plans().iter().map(|(plan, _)| plan.to_string()).collect::<String>();
    assert!(plans.contains("02:04:00:00:00:01"), "the address that the peers know: {plans}");
    solo.start(NETWORK, (1..=6).map(peer).collect());
    assert_eq!((stands(&solo), solo.claims), ((0, 5, true), 1));
    assert!(solo.take_plans().is_empty(), "the store says what was known");
    assert_eq!(solo.status().stale, None);
}

#[test]
fn a_silent_store_is_waited_for_three_seconds() {
    let mut solo = Solo::new(settings(), host(&[]), own());
    solo.hear(Input::Recalled(remembered(), false));
    solo.wait(Duration::from_millis(2900));
    assert!(!solo.status().ready);
    solo.wait(Duration::from_millis(200));
    assert!(solo.status().ready && solo.status().stale.is_some(), "{:?}", solo.status());
}

#[test]
fn after_a_restart_of_the_host_the_store_wins_over_the_state_file() {
    let mut solo = Solo::new(settings(), host(&[]), own());
    solo.hear(Input::Recalled(remembered(), false));
    solo.start(NETWORK, vec![peer(2)]);
    assert_eq!(stands(&solo), (0, 1, true));
}

#[test]
fn a_daemon_that_restarts_while_the_store_loses_its_data_keeps_the_peers_of_the_one_before_it() {
    let mut solo = ready(5);
    let memory = solo.memory.take().unwrap();
    solo.restart(settings());
    solo.hear(Input::Recalled(Box::new(memory), true));
    solo.start(NETWORK, Vec::new());
    assert_eq!(stands(&solo), (5, 5, false));
    assert!(solo.take_plans().is_empty(), "the kernel was not touched");
}

/// The daemon before this one received a move just before it was killed.
#[test]
fn the_state_file_deletes_nothing_in_the_kernel() {
    let mut solo = ready(5);
    let memory = solo.memory.take().unwrap();
    let moved = record("10.244.2.0-24", "172.16.0.22", 2, None);
    solo.hear(Input::Store(StoreEvent::Upsert(moved)));
    solo.hear(Input::Store(StoreEvent::Upsert(peer(9))));
    solo.take_plans();
    solo.restart(settings());
    solo.hear(Input::Recalled(Box::new(memory), true));
    solo.hear(away());
    assert!(solo.take_plans().is_empty(), "the kernel knows better");
    assert!(solo.status().ready);
}

#[test]
fn a_node_started_from_the_state_file_ends_when_its_subnet_has_another_host() {
    let mut solo = Solo::new(settings(), host(&[]), record("10.244.9.0-24", "172.16.0.1", 1, None));
    solo.hear(Input::Recalled(remembered(), false));
    solo.hear(away());
    let theirs = record("10.244.1.0-24", "172.16.0.50", 50, Some("taker"));
    solo.start(NETWORK, vec![theirs]);
    let why = solo.withdrawn.expect("subnet.env is withdrawn");
    assert!(why.contains("10.244.1.0-24 went to node taker at 172.16.0.50"), "{why}");
    assert!(why.contains("now holds 10.244.9.0-24"), "{why}");
}

const NET: &str = r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#;

fn shape(nodes: usize) -> Shape {
    Shape { nodes, network: NET.to_owned(), racks: 2, six: false, lag: 40, every_step: true }
}

/// After every step of every plan, each pair that worked before still works. The harm comes late enough that
/// everything is remembered.
#[test]
fn a_world_whose_store_loses_everything_loses_no_packet_and_no_subnet() {
    for seed in seeds(9000, 10) {
        for notified in [true, false] {
            let troubles = [
                (6000, 0, Trouble::Wipe(notified)),
                // Before they heard of it, before and after their own leases are back, and when only one is missing.
                (6000, 3, Trouble::Restart(300)),
                (6010, 9, Trouble::Restart(300)),
                (6060, 11, Trouble::Restart(300)),
                (6200, 13, Trouble::Restart(2000)),
                (7000, 15, Trouble::Restart(1)),
                (8000, 17, Trouble::Restart(500)),
                (8700, 17, Trouble::Restart(500)),
                (6005, 5, Trouble::Partition(5000)),
                (6005, 7, Trouble::Reboot(700)),
            ];
            let scenario = Scenario::new(&shape(20), seed).all_start(1000).act(troubles);
            let mut world = scenario.world();
            world.assign();
            let world = scenario
                .run_in(world)
                .unwrap_or_else(|failure| panic!("WORLD_SEED={seed} {notified} {failure}"));
            for n in 0..20 {
                let subnets = world.core(n).and_then(|core| core.own_subnets()).map(|own| own.to_string());
                assert_eq!(subnets, Some(format!("10.1.{n}.0-24")), "WORLD_SEED={seed}");
            }
        }
    }
}
