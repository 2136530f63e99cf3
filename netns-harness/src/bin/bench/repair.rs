//! How long it takes until a host is as before, after every disturbance.

use anyhow::Result;
use netns_harness::chaos::{add_peers, with_room};
use netns_harness::disturb::{Times, repair_times};
use netns_harness::flannel::{Backend, Products, StoreKind};
use netns_harness::{Cluster, Family, Spec};

use crate::figures::Figures;

/// The number of repetitions of each disturbance, on one host after the other.
const ROUNDS: usize = 2;
/// A host that is disturbed too often has to rest, so that its objects do not become contended: with more
/// hosts the run is shorter.
const HOSTS: usize = 6;

/// Every disturbance, on hosts with that many more peers.
pub(crate) fn measure(products: &Products, peers: u16, figures: &mut Figures) -> Result<()> {
    let spec = Spec { hosts: HOSTS, store: StoreKind::Etcd, ..Spec::default() };
    let mut cluster = Cluster::up(&with_room(spec, peers), products)?;
    add_peers(&cluster, peers)?;
    let mut all = repair_times(&mut cluster.net, Backend::Vxlan, Family::V4, &[], ROUNDS)?;
    all.sort_by_key(Times::median);
    let ms = |times: &Times| times.median().as_secs_f64() * 1e3;
    let name = format!("{peers} vxlan IPv4: repair of {} disturbances", all.len());
    if let (Some(middle), Some(last)) = (all.get(all.len() / 2), all.last()) {
        figures.add(&format!("{name}, median"), "ms", 20.0, ms(middle));
        figures.add(&format!("{name}, all"), "ms", 100.0, ms(last));
    }
    for times in all.iter().rev().take(3) {
        figures.add(&format!("{peers} vxlan IPv4: repair of {}", times.name), "ms", None, ms(times));
    }
    Ok(())
}
