//! Another program keeps changing our objects back: the object becomes contended, and everything else goes
//! on.

use std::collections::HashSet;
use std::time::Duration;

use backends::kernel::{KernelEvent, Touch, Who};
use backends::{IfName, Key};
use flanneld::core::Input;
use nix::errno::Errno;
use subnet_lease::{Lease, StoreEvent};
use tests::lines::type_line;
use tests::solo::{Solo, settings};

use crate::daemon::{NETWORK, host, record};

const BEAT: Duration = Duration::from_millis(50);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn own() -> Lease {
    record("10.244.1.0-24", "172.16.0.1", 1, None)
}

fn peer(n: u8) -> Lease {
    record(&format!("10.244.{n}.0-24"), &format!("172.16.0.{n}"), n, None)
}

/// A daemon with these peers and nothing to do.
fn settled(peers: impl IntoIterator<Item = u8>) -> Solo {
    let mut solo = Solo::new(settings(), host(&[]), own());
    solo.start(NETWORK, std::iter::once(own()).chain(peers.into_iter().map(peer)).collect());
    solo.notice();
    solo.wait(Duration::from_secs(2));
    solo.take_plans();
    solo
}

/// Applies a line of another program, sends the notifications, and lets a moment pass. Returns whether the
/// kernel accepted the line.
fn meddle(solo: &mut Solo, line: &str) -> bool {
    let done = type_line(&mut solo.kernel.net, line).is_ok();
    solo.notice();
    solo.wait(BEAT);
    done
}

/// The lines of our plans since the last call.
fn lines(solo: &mut Solo) -> Vec<String> {
    let plans = solo.take_plans();
    assert!(plans.iter().all(|(_, failed)| *failed == 0), "a step failed: {plans:?}");
    plans
        .iter()
        .flat_map(|(plan, _)| plan.to_string().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// Another program deletes the route to a peer, if it exists.
fn delete_route(solo: &mut Solo, n: u8) {
    let start = format!("ip route replace 10.244.{n}.0/24 ");
    let line = solo
        .kernel
        .to_string()
        .lines()
        .find(|l| l.starts_with(&start))
        .map(|l| l.replace("replace", "delete"));
    if let Some(line) = line {
        type_line(&mut solo.kernel.net, &line).unwrap();
    }
    solo.notice();
}

fn route_is_there(solo: &Solo, n: u8) -> bool {
    solo.kernel.to_string().contains(&format!("ip route replace 10.244.{n}.0/24"))
}

fn link() -> IfName {
    "flannel.1".parse().unwrap()
}

/// A notification names this program for the route of peer 2.
fn seen(solo: &mut Solo) {
    let who = Who { program: Some("meddler".to_owned()), port: 4711, protocol: None };
    let what = Key::Route("10.244.2.0/24".parse().unwrap(), 0);
    solo.hear(Input::Touched(vec![Touch { what, by: Some(who) }]));
}

#[test]
fn a_route_that_is_deleted_again_and_again_is_repaired_with_back_off_and_never_given_up() {
    let mut solo = settled(2..5);
    let (mut repairs, mut longest, mut missing) = (0, 0, 0);
    for _ in 0..1200 {
        seen(&mut solo);
        delete_route(&mut solo, 2);
        solo.wait(BEAT);
        repairs += lines(&mut solo).len();
        missing = if route_is_there(&solo, 2) { 0 } else { missing + 1 };
        longest = longest.max(missing);
    }
    assert!((15..35).contains(&repairs), "a minute of it, {repairs} repairs");
    assert!((150..400).contains(&longest), "the longest pause in beats of 50 ms: {longest}");
    let status = solo.status();
    assert_eq!(status.contended.len(), 1, "{status:?}");
    let contended = &status.contended[0];
    assert!(contended.line.starts_with("ip route replace 10.244.2.0/24 "), "{contended:?}");
    assert_eq!(contended.by.as_deref(), Some("meddler (process 4711)"));
    assert_eq!(contended.repairs, repairs as u64);
    assert!(status.ready && status.reasons.iter().any(|r| r.contains("undoing")), "{status:?}");
}

#[test]
fn a_contended_object_is_repaired_within_a_quarter_of_the_contended_time_and_then_forgotten() {
    for (beats, within) in [(10, 1000), (40, 1000), (80, 1250), (400, 6000)] {
        let mut solo = settled(2..4);
        for _ in 0..beats {
            delete_route(&mut solo, 2);
            solo.wait(BEAT);
        }
        let mut waited = Duration::ZERO;
        while !route_is_there(&solo, 2) {
            solo.wait(ms(10));
            waited += ms(10);
        }
        assert!(waited <= ms(within), "{beats} beats: {waited:?}");
        assert!(solo.status().contended_count <= 1);
        solo.wait(Duration::from_secs(60));
        let status = solo.status();
        assert_eq!((status.contended_count, status.contended.len()), (0, 0), "{status:?}");
        assert!(!status.reasons.iter().any(|r| r.contains("undoing")), "{status:?}");
        lines(&mut solo);
        delete_route(&mut solo, 2);
        assert_eq!(lines(&mut solo).len(), 1, "the next one is repaired at once");
    }
}

#[test]
fn a_contended_object_does_not_slow_down_others() {
    let mut solo = settled(2..8);
    for round in 0..100 {
        delete_route(&mut solo, 2);
        solo.wait(BEAT);
        // One change in two seconds is not contended.
        if round % 40 == 20 {
            let before = solo.core.passes();
            delete_route(&mut solo, 5);
            assert!(solo.core.passes() > before);
            assert!(route_is_there(&solo, 5), "round {round}");
        }
    }
    assert_eq!(solo.status().contended_count, 1);
}

#[test]
fn no_pass_starts_while_the_only_step_is_held() {
    let mut solo = settled(2..4);
    while route_is_there(&solo, 2) {
        delete_route(&mut solo, 2);
        solo.wait(ms(100));
    }
    let again = solo.status().contended[0].again_ms;
    assert!((1..=1000).contains(&again), "{again}");
    let before = solo.core.passes();
    solo.wait(ms(again - 1));
    assert_eq!(solo.core.passes(), before);
    solo.wait(ms(1));
    assert_eq!((solo.core.passes(), route_is_there(&solo, 2)), (before + 1, true));
}

#[test]
fn a_foreign_object_that_is_added_again_and_again_under_our_name_is_contended() {
    let mut solo = settled(2..4);
    let mut removed = 0;
    for _ in 0..200 {
        meddle(
            &mut solo,
            "ip neigh replace 10.244.77.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
        );
        removed += lines(&mut solo).len();
    }
    assert!((5..25).contains(&removed), "{removed}");
    assert_eq!(solo.status().contended[0].line, "ip neigh delete 10.244.77.0 dev flannel.1");
}

#[test]
fn a_peer_that_moves_or_leaves_is_followed_at_once_while_its_objects_are_contended() {
    let mut solo = settled(2..4);
    while route_is_there(&solo, 2) {
        delete_route(&mut solo, 2);
        solo.wait(BEAT);
    }
    let neighbour = "ip neigh delete 10.244.2.0 dev flannel.1";
    solo.wait(Duration::from_secs(5));
    let moved = record("10.244.2.0-24", "172.16.0.20", 9, None);
    for _ in 0..40 {
        meddle(&mut solo, neighbour);
    }
    assert_eq!(solo.status().contended_count, 2, "{:?}", solo.status().contended);
    solo.hear(Input::Store(StoreEvent::Upsert(moved.clone())));
    let now = solo.kernel.to_string();
    assert!(now.contains("ip neigh replace 10.244.2.0 lladdr 02:04:00:00:00:09"), "{now}");
    for _ in 0..40 {
        meddle(&mut solo, neighbour);
    }
    solo.wait(Duration::from_secs(3));
    solo.hear(Input::Store(StoreEvent::Removed(vec![moved.subnets])));
    solo.wait(ms(100));
    assert!(!solo.kernel.to_string().contains("10.244.2.0"), "{}", solo.kernel);
}

#[test]
fn a_link_that_flaps_at_twenty_hertz_is_held_and_repaired_within_a_second_afterwards() {
    for beats in [10, 100, 600] {
        let mut solo = settled(2..50);
        let before = solo.kernel.to_string();
        let (passes, mut steps) = (solo.core.passes(), 0);
        for beat in 0..beats {
            // The moment of the flap relative to our pass differs from beat to beat.
            for state in ["down", "up"] {
                type_line(&mut solo.kernel.net, &format!("ip link set flannel.1 {state}")).unwrap();
                solo.hear(Input::Touched(vec![Touch { what: Key::Link(link()), by: None }]));
                solo.notice();
                solo.wait(ms(if state == "down" { 5 + beat % 40 } else { 45 - beat % 40 }));
            }
            steps += solo.take_plans().iter().map(|(plan, _)| plan.ops.len()).sum::<usize>();
        }
        solo.wait(ms(1000));
        assert_eq!(solo.kernel.to_string(), before, "after {beats} beats");
        let seconds = beats / 20;
        // A pass takes no time here, so a storm gets one pass every ten milliseconds.
        assert!(solo.core.passes() - passes <= 30 + 100 * seconds, "{} passes", solo.core.passes() - passes);
        // Without holding, every beat would repair both objects of each peer.
        assert!(steps as u64 <= 48 * 2 * (30 + beats / 20), "{beats} beats, {steps} steps: it is fed");
    }
}

#[test]
fn objects_on_a_held_link_are_held_with_it_and_are_not_contended_themselves() {
    let mut solo = settled(2..6);
    let mut plans = Vec::new();
    for _ in 0..100 {
        meddle(&mut solo, "ip link delete flannel.1");
        plans.extend(solo.take_plans());
    }
    assert!((5..25).contains(&plans.len()), "{}", plans.len());
    for (plan, failed) in &plans {
        assert!(plan.to_string().starts_with("ip link add flannel.1"), "{plan}");
        assert_eq!(*failed, 0, "{plan}");
    }
    let status = solo.status();
    assert_eq!(status.contended_count, 1, "{:?}", status.contended);
    assert!(status.contended[0].line.starts_with("ip link add flannel.1"));
    let down = !solo.kernel.to_string().contains("flannel.1");
    assert_eq!(status.ready, !down, "a node without its device is not ready: {status:?}");
    solo.wait(Duration::from_secs(4));
    assert!(solo.status().ready && route_is_there(&solo, 5));
}

#[test]
fn a_whole_table_that_is_flushed_again_and_again_is_held_as_a_whole() {
    let peers: Vec<u8> = (2..=250).collect();
    let mut solo = settled(peers.iter().copied());
    let routes: Vec<String> = solo
        .kernel
        .to_string()
        .lines()
        .filter(|l| l.contains("route replace 10.244."))
        .map(|l| l.replace("replace", "delete"))
        .collect();
    assert_eq!(routes.len(), peers.len());
    let (mut steps, passes) = (0, solo.core.passes());
    for _ in 0..200 {
        for line in &routes {
            let _ = type_line(&mut solo.kernel.net, line);
        }
        solo.notice();
        solo.wait(BEAT);
        steps += solo.take_plans().iter().map(|(plan, _)| plan.ops.len()).sum::<usize>();
    }
    assert!(steps <= peers.len() * 20, "{steps} steps");
    assert!(solo.core.passes() - passes < 80, "released together: {} passes", solo.core.passes() - passes);
    let status = solo.status();
    assert_eq!((status.contended_count, status.contended.len()), (peers.len(), 100));
}

#[test]
fn changes_of_the_store_and_failed_steps_are_neither_drift_nor_contended() {
    let mut solo = settled(2..5);
    for _ in 0..10 {
        solo.hear(Input::Store(StoreEvent::Removed(vec![peer(3).subnets])));
        solo.hear(Input::Store(StoreEvent::Upsert(peer(3))));
        solo.notice();
        solo.wait(ms(200));
    }
    lines(&mut solo);
    solo.kernel.faults.fail_key(Key::Route("10.244.9.0/24".parse().unwrap(), 0), Errno::EINVAL);
    solo.hear(Input::Store(StoreEvent::Upsert(peer(9))));
    for _ in 0..200 {
        solo.hear(Input::Kernel(KernelEvent::Own));
        solo.wait(BEAT);
    }
    let status = solo.status();
    assert_eq!((status.contended_count, &status.drift), (0, &Vec::new()));
    assert!(status.failures[0].line.starts_with("ip route replace 10.244.9.0/24"), "{:?}", status.failures);
}

#[test]
fn drift_is_counted_by_kind() {
    let mut solo = settled(2..5);
    delete_route(&mut solo, 2);
    meddle(&mut solo, "bridge fdb delete 02:04:00:00:00:03 dev flannel.1 dst 172.16.0.3 self");
    meddle(&mut solo, "ip link set flannel.1 mtu 1280");
    meddle(&mut solo, "ip neigh replace 10.244.77.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent");
    let drift: HashSet<_> = solo.status().drift.into_iter().collect();
    let expected = [("route", 1), ("forwarding-entry", 1), ("link", 1), ("neighbour", 1)];
    assert_eq!(drift, expected.map(|(kind, n)| (kind.to_owned(), n)).into_iter().collect());
    assert_eq!(solo.status().contended_count, 0);
}

#[test]
fn ten_thousand_notifications_in_a_second_are_a_few_passes() {
    let mut solo = settled(2..5);
    let before = solo.core.passes();
    for n in 0..10_000 {
        solo.hear(Input::Kernel(if n % 2 == 0 { KernelEvent::Own } else { KernelEvent::Host }));
        solo.wait(Duration::from_micros(100));
    }
    // Ten passes at once, and one every ten milliseconds, because a pass takes no time here.
    assert!(solo.core.passes() - before <= 111, "{}", solo.core.passes() - before);
}

#[test]
fn the_status_has_the_state_of_the_node() {
    let mut solo = Solo::new(settings(), host(&[]), own());
    let status = solo.status();
    assert!(!status.ready && status.reasons[0].contains("configuration"), "{status:?}");
    solo.start(NETWORK, vec![own(), peer(2), record("10.99.0.0-24", "172.16.0.9", 9, None)]);
    solo.notice();
    solo.wait(ms(1500));
    solo.hear(Input::Store(StoreEvent::Stale("etcd does not answer".to_owned())));
    solo.wait(ms(700));
    let status = solo.status();
    assert!(status.ready);
    assert_eq!(status.networks, ["10.244.0.0/16"]);
    assert_eq!(status.subnets, ["10.244.1.0/24"]);
    assert_eq!((status.backend.as_deref(), status.mtu, status.peers), (Some("vxlan"), Some(1450), 1));
    let external = status.external.unwrap();
    assert_eq!((external.link.as_str(), external.local.as_str()), ("eth0", "172.16.0.1"));
    assert!(external.why.contains("default route"), "{}", external.why);
    assert_eq!((status.refused_count, status.refused[0].lease.as_str()), (1, "10.99.0.0-24"));
    let stale = status.stale.unwrap();
    assert_eq!((stale.for_ms, stale.reason.as_str()), (700, "etcd does not answer"));
    let last = status.last_pass.unwrap();
    assert_eq!((last.added, last.failed), (0, 0), "the last pass was the verification");
    assert!(last.ago_ms <= 2200 && status.passes >= 2, "{last:?}");
    solo.hear(Input::Store(StoreEvent::Upsert(peer(3))));
    let last = solo.status().last_pass.unwrap();
    assert_eq!((last.ago_ms, last.added), (0, 3));
    assert!(solo.status().stale.is_none());
    let text = serde_json::to_string(&solo.status()).unwrap();
    assert_eq!(serde_json::from_str::<flanneld::core::Status>(&text).unwrap(), solo.status());
}

#[test]
fn a_setting_that_drops_packets_while_somebody_keeps_it_so_makes_the_node_unready() {
    let mut solo = settled(2..3);
    let (mut repairs, mut unready) = (0, 0);
    for _ in 0..60 {
        type_line(&mut solo.kernel.net, "echo 0 > /proc/sys/net/ipv4/conf/flannel.1/forwarding").unwrap();
        solo.notice();
        solo.wait(Duration::from_secs(1));
        repairs += lines(&mut solo).len();
        let status = solo.status();
        let held = status.contended.iter().any(|contended| contended.again_ms > 0);
        assert_eq!(status.ready, !held, "{status:?}");
        unready += usize::from(held);
    }
    assert!((10..30).contains(&repairs), "a minute of it, {repairs} repairs");
    assert!(unready > 20, "{unready} of 60 seconds");
    solo.wait(Duration::from_secs(120));
    assert!(solo.status().ready);
}
