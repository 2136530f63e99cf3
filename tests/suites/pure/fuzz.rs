//! Mutated bytes from outside (see `tests::fuzz`): nothing panics, nothing runs away, and the rules hold.

use tests::fuzz::{answers, kernel, store};

#[test]
fn any_bytes_from_the_kernel_are_read_or_skipped() {
    kernel::target().run();
}

#[test]
fn after_any_answer_the_next_request_works() {
    answers::target().run();
}

#[test]
fn any_record_is_a_lease_or_refused() {
    store::records().run();
}

#[test]
fn any_net_conf_works_or_is_refused() {
    store::net_confs().run();
}

#[test]
fn any_subnet_env_is_read_or_refused() {
    store::subnet_envs().run();
}

#[test]
fn all_hosts_admit_the_same_of_any_leases() {
    store::admission().run();
}
