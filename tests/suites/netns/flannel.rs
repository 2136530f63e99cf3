//! Together with the real Go flannel and its CNI chain: each takes over from the other, and both work in one
//! cluster.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::disturb::{Picture, outage};
use netns_harness::flannel::Backend;
use netns_harness::flannel::{Products, StoreKind, subnet_env, wait_for_subnet};
use netns_harness::{Cluster, Family, Host, Program, Spec, eventually};
use serde_json::json;

use crate::case::{Case, case, cluster, peer, products, spec};

const SOON: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (word, backend) in [("vxlan", Backend::Vxlan), ("host_gw", Backend::HostGw)] {
        let there = case(format!("go_flannel_hands_over_to_us_and_back_{word}"), move || swap(backend));
        cases.push(there.with_peers());
    }
    for (word, backend, direct) in [
        ("vxlan", Backend::Vxlan, false),
        ("direct", Backend::Vxlan, true),
        ("host_gw", Backend::HostGw, false),
    ] {
        let name = format!("objects_that_go_flannel_left_of_a_departed_peer_are_deleted_{word}");
        cases.push(case(name, move || sweep(backend, direct)).with_peers());
        let name = format!("plan_on_a_node_of_go_flannel_prints_lines_that_a_shell_can_run_{word}");
        cases.push(case(name, move || plan(backend, direct)).with_peers());
    }
    cases.push(case("go_flannel_and_ours_share_a_cluster_on_the_embedded_store", mixed).with_peers());
    cases.push(case("our_plugin_deletes_pods_of_the_go_chain_and_the_reverse", plugins).with_peers());
    cases
}

/// The Go daemon; our own tools set the network and make pods.
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

/// The new daemon has written its peers: each daemon logs a line of its own then.
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

fn backend_spec(backend: Backend, direct: bool) -> Spec {
    let mut spec = Spec { backend, ..spec(Family::V4) };
    let kind = json!({"Type": backend.to_string(), "DirectRouting": direct});
    spec.network.insert("Backend".to_owned(), kind);
    spec
}

/// Two hosts with our daemon, and a last host with the Go daemon.
fn with_go_host(backend: Backend, direct: bool) -> Result<Cluster> {
    let mut cluster = cluster(Spec { hosts: 2, ..backend_spec(backend, direct) })?;
    cluster.net.add_host()?;
    let host = cluster.net.host(2).clone();
    let daemon = host.spawn(&go()?.daemon(&cluster.store).named("go"))?;
    wait_for_subnet(&host, &daemon, SOON)?;
    cluster.daemons.push(daemon);
    cluster.add_pods()?;
    cluster.wait_for_pings(SOON)?;
    Ok(cluster)
}

/// Subnets that the network gives out and no host has: a flannel can have had routes to them.
fn free_subnets(cluster: &Cluster) -> Result<[u8; 2]> {
    let leased = cluster.store.list("subnets/")?;
    let is_free = |n: &u8| !leased.iter().any(|(key, _)| key.contains(&format!("10.42.{n}.")));
    let free: Vec<u8> = (180..190).filter(is_free).take(2).collect();
    free.try_into().map_err(|free| anyhow::anyhow!("only {free:?} are free"))
}

/// A peer that the Go daemon has written leaves while no daemon runs.
fn sweep(backend: Backend, direct: bool) -> Result<()> {
    let cluster = with_go_host(backend, direct)?;
    let host = cluster.net.host(2);
    // One peer on the underlay's own network, and one behind a router, which host-gw cannot reach.
    let [one, other] = free_subnets(&cluster)?;
    let (near, far) = (format!("10.42.{one}.0-24"), format!("10.42.{other}.0-24"));
    let near = (near.as_str(), "172.30.0.240", "02:00:00:00:00:f0");
    let far = (far.as_str(), "192.0.2.241", "02:00:00:00:00:f1");
    let peers = if backend == Backend::HostGw { vec![near] } else { vec![near, far] };
    let record = |(subnet, public, mac): (&str, &str, &str)| {
        let mut record = json!({"PublicIP": public, "PublicIPv6": null, "BackendType": backend.to_string()});
        if backend == Backend::Vxlan {
            record["BackendData"] = json!({"VNI": 1, "VtepMAC": mac});
        }
        (format!("subnets/{subnet}"), record.to_string())
    };
    cluster.store.put(&peers.iter().map(|peer| record(*peer)).collect::<Vec<_>>())?;
    let marks = |host: &Host| -> Result<usize> {
        let script = "ip route; ip neigh show nud permanent; bridge fdb show";
        let text = host.exec(&Program::new("sh").args(["-c", script]))?;
        let marked = |line: &&str| {
            let subnets = [near.0, far.0].map(|key| key.trim_end_matches("0-24"));
            subnets.iter().chain(&[":00:f0", ":00:f1"]).any(|mark| line.contains(mark))
        };
        Ok(text.lines().filter(marked).count())
    };
    eventually(SOON, || {
        ensure!(marks(host)? >= peers.len(), "Go flannel has not programmed them");
        Ok(())
    })?;
    cluster.daemons[2].kill();
    cluster.store.delete(&peers.iter().map(|peer| record(*peer).0).collect::<Vec<_>>())?;
    let ours = host.spawn(&products()?.daemon(&cluster.store).named("ours"))?;
    settled_on(host, &cluster, &ours)?;
    let left = marks(host)?;
    ensure!(left == 0, "{left} entries of peers that went are left");
    Ok(())
}

fn settled_on(host: &Host, cluster: &Cluster, ours: &netns_harness::Process) -> Result<()> {
    wait_for_subnet(host, ours, SOON)?;
    eventually(SOON, || {
        ensure!(ours.log().contains(" ready\n"), "{}", ours.log());
        Ok(())
    })?;
    cluster.wait_for_pings(SOON).map(drop)
}

fn plan(backend: Backend, direct: bool) -> Result<()> {
    let cluster = with_go_host(backend, direct)?;
    let host = cluster.net.host(2);
    let ask = products()?.control_on_host(&cluster.store).arg("plan");
    let sh =
        |args: &[&str], script: &str| host.exec(&Program::new("sh").args(args.iter().copied()).stdin(script));
    let (picture, leases) = (Picture::of(host)?, cluster.store.list("")?);
    let healthy = host.exec(&ask)?;
    ensure!(Picture::of(host)? == picture && cluster.store.list("")? == leases, "a plan changed something");
    sh(&["-n"], &healthy)?;
    for mark in ["missing", "stale", "wrong"] {
        let about = |line: &&str| {
            line.contains(&format!("# {mark}")) && !line.contains("nft ") && !line.contains("echo ")
        };
        ensure!(healthy.lines().filter(about).count() == 0, "on a healthy node:\n{healthy}");
    }

    let [free, _] = free_subnets(&cluster)?;
    let (harm, expected) = match backend {
        Backend::HostGw => (
            "ip route del 10.42.0.0/16 via 172.30.0.1 2>/dev/null
             peer=$(ip route | grep -m1 '10.42.*via' | cut -d' ' -f1); ip route del $peer
             ip route add 10.42.FREE.0/24 via 172.30.0.250 onlink dev eth0",
            ["# missing", "ip route delete 10.42.FREE.0/24"].as_slice(),
        ),
        Backend::Vxlan => (
            "ip link set flannel.1 mtu 1280
             ip route del $(ip route | grep -m1 '10.42.*via' | cut -d' ' -f1)
             ip neigh replace 10.42.250.0 lladdr 02:00:00:00:00:fa dev flannel.1 nud permanent
             bridge fdb replace 02:00:00:00:00:fa dev flannel.1 dst 172.30.0.250 self permanent",
            ["# missing", "# stale", "# wrong: mtu 1280"].as_slice(),
        ),
    };
    let fill = |text: &str| text.replace("FREE", &free.to_string());
    sh(&["-s"], &fill(harm))?;
    let broken = host.exec(&ask)?;
    for reason in expected {
        let reason = &fill(reason);
        ensure!(broken.contains(reason), "{reason} is not in:\n{broken}");
    }
    sh(&["-e", "-s"], &broken).with_context(|| broken.clone())?;
    let after = host.exec(&ask)?;
    ensure!(after == "# nothing to do\n", "ran:\n{broken}\nand then:\n{after}");
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

fn addresses_held(host: &Host) -> Result<usize> {
    let dir = host.path("/var/lib/cni/networks/cbr0");
    let names = std::fs::read_dir(dir)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.iter().filter(|n| n.starts_with("10.")).count())
}
