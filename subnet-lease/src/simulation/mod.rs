//! Twenty hosts with the client as it is, and the server as it is on a file in memory, in one thread on virtual time:
//! between them wires that lose nothing and deliver in order, late, not at all, or end.
//!
//! ```text
//!   host 0 … 19: EtcdStore ── wire ──┐
//!                 (claim, watch)     ├──▶ services ─▶ engine ─▶ file
//!   dice ─▶ delays, troubles ────────┘            └─▶ observer: who held which key, ever
//! ```
//!
//! `SIM_SEED` says which history; the same seed gives the same one, which a test shows. Everything random comes from the
//! seed, so whatever is added here must draw from it, too.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod host;
mod hostile;
mod net;
mod site;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use self::host::Host;
use self::net::{Link, Net};
use self::site::Site;
use crate::model::net::Subnets;

pub(crate) use self::net::Wire;

pub(crate) const NETWORK: &str =
    r#"{"Network":"10.5.0.0/19","EnableIPv6":true,"IPv6Network":"fc00::/59","Backend":{"Type":"host-gw"}}"#;
const HOSTS: usize = 20;
/// So short that a cut outlasts it.
const TTL: Duration = Duration::from_secs(120);
const MARGIN: Duration = Duration::from_secs(80);
/// Of virtual time, in which something goes wrong every few seconds.
const TROUBLED: Duration = Duration::from_secs(1800);
/// Then all is well for so long: more than a lease, a ping and every back-off.
const CALM: Duration = Duration::from_secs(300);

/// What happened, with its time.
#[derive(Clone)]
pub(crate) struct Diary(Arc<Mutex<Vec<String>>>, Instant);

impl Diary {
    fn note(&self, what: impl std::fmt::Display) {
        let line = format!("{:9.3} {what}", self.1.elapsed().as_secs_f64());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// Lives through a history; what happened.
fn live(seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let diary = Diary(Arc::default(), Instant::now());
        let (net, accepted) = Net::new(HOSTS, seed);
        let mut site = Site::start(accepted, diary.clone()).await;
        let hosts: Vec<Host> = (0..HOSTS).map(|n| Host::start(n, &net, diary.clone())).collect();
        trouble(&mut Rng::with_seed(seed), &net, &mut site, &diary).await;
        net.mend();
        tokio::time::sleep(CALM).await;
        judge(&hosts, &diary);
        diary.0.lock().unwrap().clone()
    })
}

/// Cuts some hosts off, in one way or the other, for a while that a lease may or may not outlast; restarts the server.
async fn trouble(dice: &mut Rng, net: &Net, site: &mut Site, diary: &Diary) {
    let mut mended: BTreeMap<usize, Instant> = BTreeMap::new();
    let end = Instant::now() + TROUBLED;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(500 + dice.u64(..20_000))).await;
        mended.retain(|host, at| {
            let still = *at > Instant::now();
            if !still {
                net.set(*host, Link::Whole);
                diary.note(format_args!("host {host}: mended"));
            }
            still
        });
        if dice.u64(..8) == 0 {
            diary.note("server: killed, and started again");
            site.restart(net).await;
            continue;
        }
        let link = if dice.u64(..2) == 0 { Link::Dead } else { Link::Cut };
        let first = usize::try_from(dice.u64(..HOSTS as u64)).unwrap();
        let number = usize::try_from(1 + dice.u64(..6)).unwrap();
        let until = Instant::now() + Duration::from_secs(1 + dice.u64(..200));
        for host in (first..first + number).map(|n| n % HOSTS) {
            net.set(host, link);
            diary.note(format_args!("host {host}: {link:?}"));
            mended.insert(host, until);
        }
    }
}

/// In the end everybody has subnets of their own, and everybody knows.
fn judge(hosts: &[Host], diary: &Diary) {
    let told = || diary.0.lock().unwrap().join("\n");
    let held: Vec<Subnets> = hosts.iter().filter_map(Host::holds).collect();
    assert_eq!(held.len(), HOSTS, "{}", told());
    for (n, one) in held.iter().enumerate() {
        assert!(held[..n].iter().all(|other| !other.overlaps(one)), "{held:?}\n{}", told());
    }
    let mut all = held;
    all.sort();
    for host in hosts {
        assert_eq!(host.sees(), all, "{host:?}\n{}", told());
    }
}

#[test]
fn twenty_hosts_end_up_with_subnets_of_their_own_whatever_becomes_of_their_wires() {
    let seeds = match std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..std::env::var("SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10),
    };
    for seed in seeds {
        eprintln!("SIM_SEED={seed}");
        let diary = live(seed);
        let times = |what: &str| diary.iter().filter(|line| line.contains(what)).count();
        eprintln!(
            "{} entries: {} claims held, {} times stale, {} leases ended",
            diary.len(),
            times("holds"),
            times("stale"),
            times("gone")
        );
        assert!(times("stale") > 0 && times("holds") > HOSTS, "nothing was tried");
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let (one, again, other) = (live(7), live(7), live(8));
    let differs = one.iter().zip(&again).find(|(one, again)| one != again);
    assert_eq!(differs, None);
    assert_eq!(one.len(), again.len());
    assert_ne!(one, other);
}
