//! Worlds of many daemons: whatever strikes them, they converge, and nothing that worked stops working.
//!
//! `WORLD_SEED` runs one seed in place of all; a failure prints the command.

use std::time::Duration;

use tests::world::{Shape, Trouble, World};

const VXLAN: &str = r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#;
const DUAL: &str = r#"{"Network": "10.0.0.0/8", "EnableIPv6": true, "IPv6Network": "fd00:244::/40", "IPv6SubnetLen": 64,
    "Backend": {"Type": "vxlan"}}"#;
const DIRECT: &str = r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
const HOST_GW: &str = r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "host-gw"}}"#;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn small(network: &str, racks: usize) -> Shape {
    let six = network == DUAL;
    Shape { nodes: 50, network: network.to_owned(), racks, six, lag: 40, every_step: true }
}

/// The seeds to run: these, or the one that is named.
fn seeds(from: u64, count: u64) -> Vec<u64> {
    match std::env::var("WORLD_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => (from..from + count).collect(),
    }
}

/// Fifty nodes start within a second, while the first troubles strike already; then more of them.
fn live(shape: &Shape, seed: u64) {
    let mut world = World::new(shape.clone(), seed);
    world.start_all(seconds(1));
    world.troubles(10, seconds(3));
    world.check();
    world.troubles(25, seconds(10));
    world.check();
}

#[test]
fn fifty_vxlan_nodes_converge_whatever_strikes_them() {
    seeds(0, 60).into_iter().for_each(|seed| live(&small(VXLAN, 3), seed));
}

#[test]
fn fifty_dual_stack_nodes_converge_whatever_strikes_them() {
    seeds(100, 60).into_iter().for_each(|seed| live(&small(DUAL, 3), seed));
}

#[test]
fn fifty_directly_routed_nodes_converge_whatever_strikes_them() {
    seeds(200, 60).into_iter().for_each(|seed| live(&small(DIRECT, 3), seed));
}

fn big(seed: u64) {
    let network = r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#.to_owned();
    let mut world =
        World::new(Shape { nodes: 1200, network, racks: 2, six: false, lag: 400, every_step: false }, seed);
    world.start_all(Duration::from_millis(100));
    world.trouble(1199, Duration::ZERO, Trouble::Restart);
    world.check();
}

#[test]
fn twelve_hundred_nodes_that_join_at_once_all_reach_each_other() {
    seeds(1, 1).into_iter().for_each(big);
}
