//! Side by side with the real Go flannel and its CNI chain: either takes over from the other, both live in one cluster.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::disturb::outage;
use netns_harness::flannel::Backend;
use netns_harness::flannel::{Products, StoreKind, subnet_env, wait_for_subnet};
use netns_harness::{Cluster, Family, Spec, eventually};

use crate::case::{Case, case, cluster, peer, products, spec};

const SOON: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (word, backend) in [("vxlan", Backend::Vxlan), ("host_gw", Backend::HostGw)] {
        let there = case(format!("go_flannel_hands_over_to_us_and_takes_back_{word}"), move || swap(backend));
        cases.push(there.with_peers());
    }
    cases.push(case("go_flannel_and_ours_share_a_cluster_on_the_embedded_store", mixed).with_peers());
    cases.push(case("pods_of_the_go_chain_are_deleted_by_our_plugin_and_the_reverse", plugins).with_peers());
    cases
}

/// The Go daemon; network set and pods by our own tools.
fn go() -> Result<Products> {
    Ok(Products { flanneld: peer("flanneld")?, ..products()? })
}

fn swap(backend: Backend) -> Result<()> {
    let spec = Spec { backend, ..spec(Family::V4) };
    let cluster = cluster(spec)?;
    let host = cluster.net.host(0);
    let before = subnet_env(host).context("subnet.env")?;
    let mut running = cluster.daemons[0].clone();
    for (word, program) in [("Go flannel", go()?), ("ours", products()?)] {
        let report = outage(&cluster.pods[0], &cluster.pods[1], Family::V4, SOON, || {
            running.stop()?;
            running = host.spawn(&program.daemon(&cluster.store).named(&word.replace(' ', "-")))?;
            settled(&cluster, word, &running)
        })?;
        ensure!(report.lost() == 0, "{word} took over: {report:?}");
        ensure!(subnet_env(host).context("subnet.env")? == before, "{word} keeps the subnet");
        cluster.wait_for_pings(SOON)?;
    }
    Ok(())
}

/// The new daemon has programmed its peers: both say something of their own when they have.
fn settled(cluster: &Cluster, word: &str, process: &netns_harness::Process) -> Result<()> {
    wait_for_subnet(cluster.net.host(0), process, SOON)?;
    let done = if word == "ours" { " ready" } else { "Running backend" };
    eventually(SOON, || {
        ensure!(process.log().contains(done), "{}", process.log());
        Ok(())
    })?;
    cluster.wait_for_pings(SOON).map(drop)
}

fn mixed() -> Result<()> {
    let mut cluster = cluster(Spec { store: StoreKind::Embedded, hosts: 2, ..spec(Family::V4) })?;
    cluster.net.add_host()?;
    let host = cluster.net.host(2).clone();
    let daemon = host.spawn(&go()?.daemon(&cluster.store))?;
    wait_for_subnet(&host, &daemon, SOON)?;
    cluster.daemons.push(daemon);
    cluster.add_pods()?;
    cluster.wait_for_pings(SOON).map(drop)
}

fn plugins() -> Result<()> {
    let cluster = cluster(spec(Family::V4))?;
    let host = cluster.net.host(0);
    let mut chain = netns_harness::Cni::flannel(peer("flannel")?);
    chain.conf["cniVersion"] = "0.4.0".into();
    chain.conf["ipam"] = serde_json::json!({});
    let ours = products()?.cni();
    for (adds, deletes) in [(&chain, &ours), (&ours, &chain)] {
        let pod = netns_harness::Pod::add(host, "swapped", adds)?;
        pod.ping(&cluster.pods[1], Family::V4, SOON)?;
        let held = addresses_held(host)?;
        host.exec(&deletes.call("DEL", pod.name(), &pod.path()))?;
        ensure!(addresses_held(host)? == held - 1, "the address is free again");
    }
    Ok(())
}

fn addresses_held(host: &netns_harness::Host) -> Result<usize> {
    let dir = host.path("/var/lib/cni/networks/cbr0");
    let names = std::fs::read_dir(dir)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.iter().filter(|n| n.starts_with("10.")).count())
}
