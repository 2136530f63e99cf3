//! Pods on different hosts reach each other, with every backend, family and store.

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_harness::flannel::{Backend, StoreKind, subnet_env};
use netns_harness::probe::ping_sized;
use netns_harness::{Family, Spec};
use serde_json::{Map, json};

use crate::case::{Case, case, cluster};

const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Dual];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for backend in [Backend::Vxlan, Backend::HostGw] {
        for family in FAMILIES {
            for store in [StoreKind::Etcd, StoreKind::Embedded] {
                let name = format!("pods_reach_each_other_over_{backend}_{family}_with_{store}");
                cases.push(case(name.replace('-', "_"), move || talk(backend, family, store)));
            }
        }
    }
    cases.push(case("direct_routing_uses_no_tunnel_on_the_same_wire", direct_routing));
    cases
}

fn talk(backend: Backend, family: Family, store: StoreKind) -> Result<()> {
    let cluster = cluster(Spec { backend, family, store, ..Spec::default() })?;
    let (from, to) = (&cluster.pods[0], &cluster.pods[2]);
    let env = subnet_env(from.host()).unwrap_or_default();
    let mtu: usize = env.get("FLANNEL_MTU").map_or(Ok(0), |text| text.parse())?;
    // The largest packet that subnet.env promises passes unfragmented; IP and ICMP headers are inside the
    // MTU.
    for family in family.each() {
        let headers = if *family == Family::V4 { 28 } else { 48 };
        ping_sized(from.space(), to.address(*family)?, mtu - headers, Duration::from_secs(2))?;
    }
    Ok(())
}

fn direct_routing() -> Result<()> {
    let network = Map::from_iter([("Backend".to_owned(), json!({"Type": "vxlan", "DirectRouting": true}))]);
    let cluster = cluster(Spec { family: Family::Dual, store: StoreKind::Etcd, network, ..Spec::default() })?;
    let netlink = cluster.net.host(0).netlink()?;
    let through =
        |link| netlink.routes(link).map(|routes| routes.iter().filter(|r| r.prefix() == 24).count());
    ensure!(through(netns_harness::UPLINK)? >= 2, "peers on the same wire have plain routes");
    ensure!(through("flannel.1")? == 0, "no peer goes through the tunnel");
    Ok(())
}
