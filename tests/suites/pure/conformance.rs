//! The fake kernel obeys the laws. The suite `netns` checks the same laws on the real kernel.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use backends::kernel::fake::LAWS;
use tests::conformance::{FakeLab, laws};

#[test]
fn the_fake_kernel_obeys_every_law() {
    let broken = |law: &fn(&mut dyn tests::conformance::Lab)| {
        catch_unwind(AssertUnwindSafe(|| law(&mut FakeLab::default()))).is_err()
    };
    let broken: Vec<_> = laws().into_iter().filter(|(_, law)| broken(law)).map(|(name, _)| name).collect();
    assert!(broken.is_empty(), "broken: {broken:#?}");
}

#[test]
fn every_law_on_the_list_has_a_test() {
    let number = |name: &str| name.split_once(": ").and_then(|(n, _)| n.parse::<u8>().ok());
    let shown: HashSet<u8> = laws().iter().filter_map(|(name, _)| number(name)).collect();
    // Interrupted dumps and overruns come only on command, and packets need a real kernel.
    let elsewhere = [11, 12, 16];
    let missing: Vec<_> = LAWS.iter().filter(|(n, _)| !shown.contains(n) && !elsewhere.contains(n)).collect();
    assert!(missing.is_empty(), "no test: {missing:#?}");
}
