//! Bytes from outside, mutated (see `tests::fuzz`): nothing panics, nothing runs away, and the rules hold.

use tests::fuzz::{answers, kernel, store};

#[test]
fn whatever_the_kernel_says_is_read_or_passed_over() {
    kernel::target().run();
}

#[test]
fn whatever_answers_a_request_the_next_one_is_understood() {
    answers::target().run();
}

#[test]
fn whatever_stands_in_the_store_is_a_lease_or_refused() {
    store::records().run();
}

#[test]
fn whatever_the_network_is_said_to_be_works_or_is_refused() {
    store::net_confs().run();
}

#[test]
fn whatever_stands_in_subnet_env_is_read_or_refused() {
    store::subnet_envs().run();
}

#[test]
fn whoever_claims_what_all_hosts_admit_the_same() {
    store::admission().run();
}
