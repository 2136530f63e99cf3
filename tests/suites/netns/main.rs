//! What only a kernel can show: real daemons and real pods in network namespaces. Needs root or open user
//! namespaces.
//!
//! `SELVAGE_PRODUCTS` is the folder of the programs (as `tests/build` prints it), `SELVAGE_PEERS` the folder
//! of the real programs to test against (`tests/peers/build`). A case declares its needs. A case whose needs
//! are missing is listed as skipped; if `SELVAGE_ALLOW_SKIPS` is set (a comma list of cases, or `none`),
//! every other skip fails.

#![allow(clippy::print_stdout, reason = "the suite prints what it skips")]

mod adopt;
mod case;
mod chaos;
mod clients;
mod coexist;
mod connect;
mod drops;
mod fights;
mod flannel;
mod handover;
mod host;
mod kube;
mod laws;
mod lease;
mod life;
mod matrix;
mod networkd;
mod networks;
mod node;
mod record;
mod repair;
mod rival;
mod room;
mod rules;
mod store;
mod storms;
mod underlays;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    if let Some(ended) = networks::daemon_if_asked() {
        return ended;
    }
    if let Err(error) = netns_harness::enter() {
        println!("{error:#}");
        return ExitCode::FAILURE;
    }
    let mut args = Arguments::from_args();
    // Cases count lost packets and milliseconds, so they run one at a time by default.
    args.test_threads = args.test_threads.or(Some(1));
    let cases = [
        laws::cases(),
        connect::cases(),
        life::cases(),
        repair::cases(),
        fights::cases(),
        chaos::cases(),
        networkd::cases(),
        networks::cases(),
        host::cases(),
        underlays::cases(),
        record::cases(),
        store::cases(),
        kube::cases(),
        lease::cases(),
        room::cases(),
        storms::cases(),
        flannel::cases(),
        handover::cases(),
        adopt::cases(),
        rival::cases(),
        clients::cases(),
        rules::cases(),
        matrix::cases(),
        coexist::cases(),
        drops::cases(),
    ];
    case::run(&args, cases.into_iter().flatten().collect())
}
