//! Worlds of many daemons: after any trouble they converge, and nothing that worked stops working. A failure
//! prints the commands that repeat it, whole and made smaller. `WORLD_SEEDS=5000` runs that many seeds of
//! each test, `WORLD_SEED=7` one seed.

use std::fs;
use std::path::Path;

use backends::{Object, Op};
use tests::world::{Scenario, Shape, Trouble, Why, in_file, seeds, shrink};

/// Above the last subnet there are foreign routes, more specific than a lease, which would win.
const VXLAN: &str = r#"{"Network": "10.0.0.0/8", "SubnetMax": "10.254.255.0", "Backend": {"Type": "vxlan"}}"#;
const DUAL: &str = r#"{"Network": "10.0.0.0/8", "SubnetMax": "10.254.255.0", "EnableIPv6": true,
    "IPv6Network": "fd00:244::/40", "IPv6SubnetLen": 64, "Backend": {"Type": "vxlan"}}"#;
const DIRECT: &str = r#"{"Network": "10.0.0.0/8", "SubnetMax": "10.254.255.0",
    "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
const HOST_GW: &str =
    r#"{"Network": "10.0.0.0/8", "SubnetMax": "10.254.255.0", "Backend": {"Type": "host-gw"}}"#;

fn of(nodes: usize, network: &str, racks: usize) -> Shape {
    let six = network == DUAL;
    Shape { nodes, network: network.to_owned(), racks, six, lag: 40, every_step: nodes <= 100 }
}

/// Fifty nodes start within a second while the first troubles already happen; then more of them happen.
fn live(network: &str, seed: u64) -> Scenario {
    Scenario::new(&of(50, network, 3), seed).all_start(1000).troubled(10, 3000).act([]).troubled(25, 10_000)
}

#[test]
fn fifty_vxlan_nodes_converge_after_any_trouble() {
    for seed in seeds(0, 100) {
        live(VXLAN, seed).prove();
    }
}

#[test]
fn fifty_dual_stack_nodes_converge_after_any_trouble() {
    for seed in seeds(1000, 60) {
        live(DUAL, seed).prove();
    }
}

#[test]
fn fifty_directly_routed_nodes_converge_after_any_trouble() {
    for seed in seeds(2000, 100) {
        live(DIRECT, seed).prove();
    }
}

/// No moves: host-gw has no route to another rack.
#[test]
fn fifty_host_gw_nodes_that_do_not_move_converge_after_any_trouble() {
    for seed in seeds(3000, 60) {
        let mut scenario =
            Scenario::new(&of(50, HOST_GW, 1), seed).all_start(1000).act([]).troubled(35, 10_000);
        for act in &mut scenario.acts {
            act.retain(|s| !matches!(s.trouble, Trouble::Move | Trouble::MoveAway(_)));
        }
        scenario.prove();
    }
}

/// A daemon is killed after its first, second, third … step, and started again each time.
#[test]
fn a_daemon_killed_after_any_step_of_its_plan_is_continued_without_a_gap() {
    for seed in seeds(4000, 1) {
        let mut scenario = Scenario::new(&of(6, DUAL, 2), seed).all_start(1000);
        for steps in 0..45 {
            scenario = scenario.act([(0, 0, Trouble::KillAfter(steps, 500)), (0, 0, Trouble::Reboot(100))]);
        }
        scenario.prove();
    }
}

#[test]
fn any_order_of_the_same_leases_ends_in_the_same_kernels() {
    let print = |seed| {
        let troubles =
            [Trouble::Overrun, Trouble::Interrupt(2), Trouble::Refuse(5, Why::Busy), Trouble::Partition(900)];
        let troubles =
            troubles.iter().cycle().take(20).cloned().enumerate().map(|(n, trouble)| (1000, n, trouble));
        let scenario = Scenario::new(&of(20, DIRECT, 3), seed).all_start(1000).and(troubles);
        let mut world = scenario.world();
        world.assign();
        scenario.run_in(world).unwrap_or_else(|failure| panic!("WORLD_SEED={seed} {failure}")).print()
    };
    let reference = print(5000);
    for seed in seeds(5001, 10) {
        assert_eq!(print(seed), reference, "WORLD_SEED={seed}");
    }
}

/// A cold start until convergence, then troubles. `WORLD_NODES=2000` makes it larger; time and memory grow
/// with the square.
#[test]
fn a_thousand_nodes_converge_after_any_trouble() {
    let nodes = std::env::var("WORLD_NODES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    for seed in seeds(6000, 1) {
        let shape = Shape { lag: 400, ..of(nodes, VXLAN, 2) };
        Scenario::new(&shape, seed).all_start(100).act([]).troubled(40, 5000).prove();
    }
}

/// A seed found each of these scenarios, which was then made smaller.
#[test]
fn every_scenario_that_once_failed_converges() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/worlds");
    let mut files: Vec<_> = fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.extend(std::env::var_os("WORLD_FILE").map(Into::into));
    files.sort();
    for file in files {
        if let Err(failure) = in_file(&file).run() {
            panic!("{}: {failure}", file.display());
        }
    }
}

/// A kernel that does not delete neighbours: this shows only when a peer leaves or changes.
fn forgets_neighbours(op: &Op) -> bool {
    matches!(op, Op::Delete(Object::Neigh(_)))
}

#[test]
fn a_bug_is_found_and_its_scenario_is_made_small() {
    let scenario = live(VXLAN, 42).and([(8000, 30, Trouble::Leave)]);
    let scenario = Scenario { broken: Some(forgets_neighbours), ..scenario };
    let failure = scenario.run().err().expect("the bug is found");
    assert_eq!(failure.rule, "converged", "{failure}");
    let (small, failure) = shrink(&scenario, failure);
    assert!(small.troubles() <= 3 && small.shape.nodes <= 3, "{small}");
    assert_eq!(failure.rule, "converged");
    let file = tempfile::tempdir().unwrap().path().join("small.json");
    small.write(&file);
    let read = in_file(&file);
    assert!(read.run().is_ok(), "without the bug the same scenario is lived through");
    assert_eq!(Scenario { broken: Some(forgets_neighbours), ..read }.run().err().unwrap().rule, "converged");
}
