//! Random disturbances under traffic: afterwards everything is as before. `CHAOS_SEED` and `CHAOS_SECONDS`
//! select another run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::chaos::{run, with_room};
use netns_harness::flannel::Backend;
use netns_harness::{Family, Spec};

use crate::case::{Case, case, cluster, spec};

pub(crate) fn cases() -> Vec<Case> {
    vec![case("random_disturbances_under_traffic_leave_nothing_behind", chaos)]
}

fn chaos() -> Result<()> {
    let number = |name: &str| -> Result<Option<u64>> {
        std::env::var(name).ok().map(|text| text.parse().with_context(|| name.to_owned())).transpose()
    };
    let seed = number("CHAOS_SEED")?.unwrap_or_else(|| std::process::id().into());
    let time = Duration::from_secs(number("CHAOS_SECONDS")?.unwrap_or(30));
    println!("CHAOS_SEED={seed}");
    let mut cluster =
        cluster(with_room(Spec { hosts: 5, backend: Backend::Vxlan, ..spec(Family::Dual) }, 0))?;
    let outcome = run(&mut cluster, time, seed, &[])?;
    println!("{outcome}");
    ensure!(outcome.count() > 0, "nothing was disturbed");
    Ok(())
}
