//! Kubernetes as the store: a real kube-apiserver with an etcd beneath it on the store's host, and our daemons on the others. Nodes
//! are either made by the case, or real: see [`nodes`].

mod control;
mod nodes;

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_harness::flannel::{Products, SUBNET_ENV, wait_for_subnet};
use netns_harness::{Family, Host, Net, Pod, Process, Program, Topology, UPLINK, eventually};
use serde_json::{Map, Value, json};

use self::control::{Control, STARTS};
use crate::case::{Case, case, peer, products};

const SOON: Duration = Duration::from_secs(30);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = nodes::cases();
    cases.extend([
        case("kubernetes_is_the_store_and_pods_reach_each_other_v4", || reach(Family::V4)).with_peers(),
        case("kubernetes_is_the_store_and_pods_reach_each_other_dual", || reach(Family::Dual)).with_peers(),
        case("what_is_wiped_on_a_node_is_put_back_and_a_node_that_is_made_again_is_claimed", repair)
            .with_peers(),
        case("an_api_server_that_is_killed_changes_nothing_and_is_followed_again", killed).with_peers(),
        case("go_flannel_and_ours_share_a_kubernetes_cluster", mixed).with_peers(),
    ]);
    cases
}

/// A cluster of three whose leases are in Kubernetes.
struct Kube {
    net: Net,
    control: Control,
    daemons: Vec<Process>,
    pods: Vec<Pod>,
    family: Family,
}

impl Kube {
    fn prepare(family: Family) -> Result<Self> {
        let net = Net::build(Topology::flat(3).family(family))?;
        let control = Control::start(net.store(), family, &[])?;
        let kube = Self { net, control, daemons: Vec::new(), pods: Vec::new(), family };
        for (n, host) in kube.net.hosts().iter().enumerate() {
            kube.register(host, n)?;
            let conf = json!({
                "Network": "10.42.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"},
                "EnableIPv6": family.each().len() == 2, "IPv6Network": "fd42::/48",
            });
            fs::write(host.path("/run/net-conf.json"), conf.to_string())?;
            kube.control.admit(host)?;
        }
        Ok(kube)
    }

    fn up(family: Family) -> Result<Self> {
        let mut kube = Self::prepare(family)?;
        for n in 0..3 {
            kube.daemons.push(kube.start(n, &products()?)?);
        }
        kube.add_pods()?;
        Ok(kube)
    }

    fn add_pods(&mut self) -> Result<()> {
        for (host, daemon) in self.net.hosts().iter().zip(&self.daemons) {
            wait_for_subnet(host, daemon, SOON)?;
            self.pods.push(Pod::add(host, "pod", &products()?.cni())?);
        }
        self.pings()
    }

    /// A daemon of any flannel.
    fn start(&self, n: usize, products: &Products) -> Result<Process> {
        let host = self.net.host(n);
        let flags = [
            "--kube-subnet-mgr".to_owned(),
            "--kubeconfig-file=/run/kubeconfig".to_owned(),
            "--net-config-path=/run/net-conf.json".to_owned(),
            format!("--subnet-file={SUBNET_ENV}"),
            format!("--iface={UPLINK}"),
            "--ip-masq".to_owned(),
        ];
        host.spawn(&Program::new(&products.flanneld).args(flags).env("NODE_NAME", host.name()))
    }

    fn pings(&self) -> Result<()> {
        eventually(SOON, || {
            for (from, pod) in self.pods.iter().enumerate() {
                for (_, other) in self.pods.iter().enumerate().filter(|(to, _)| *to != from) {
                    for family in self.family.each() {
                        pod.ping(other, *family, Duration::from_millis(200))?;
                    }
                }
            }
            Ok(())
        })
        .map(drop)
    }

    /// The Node as kubelet and controller-manager leave it.
    fn register(&self, host: &Host, n: usize) -> Result<()> {
        let mut cidrs = vec![format!("10.42.{}.0/24", n + 1)];
        if self.family.each().len() == 2 {
            cidrs.push(format!("fd42:0:0:{}::/64", n + 1));
        }
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            // Go flannel ends in a panic at a Node without annotations.
            "metadata": {"name": host.name(), "annotations": {"some": "thing"}},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        });
        self.control.call("POST", "/api/v1/nodes", &node).map(drop)
    }

    fn annotation(&self, host: &Host, suffix: &str) -> Result<Value> {
        let node = self.control.get(&path(host))?;
        Ok(node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{suffix}")].clone())
    }
}

fn path(host: &Host) -> String {
    format!("/api/v1/nodes/{}", host.name())
}

fn reach(family: Family) -> Result<()> {
    let kube = Kube::up(family)?;
    for host in kube.net.hosts() {
        ensure!(kube.annotation(host, "backend-type")? == "vxlan");
        let node = kube.control.get(&path(host))?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let works = conditions.iter().any(|it| it["type"] == "NetworkUnavailable" && it["status"] == "False");
        ensure!(works, "{conditions:?}");
    }
    Ok(())
}

fn repair() -> Result<()> {
    let kube = Kube::up(Family::V4)?;
    let host = kube.net.host(0);
    let before = kube.annotation(host, "backend-data")?;
    let put_back = || {
        eventually(SOON, || {
            let now = kube.annotation(host, "backend-data")?;
            ensure!(now == before, "{now}");
            Ok(())
        })?;
        kube.pings()
    };
    let suffixes = ["kube-subnet-manager", "backend-type", "backend-data", "public-ip"];
    let wiped = suffixes.map(|suffix| (format!("flannel.alpha.coreos.com/{suffix}"), Value::Null));
    let wiped: Map<String, Value> = wiped.into_iter().collect();
    kube.control.call("PATCH", &path(host), &json!({"metadata": {"annotations": wiped}}))?;
    put_back()?;
    kube.control.call("DELETE", &path(host), &Value::Null)?;
    kube.register(host, 0)?;
    put_back()?;
    ensure!(kube.daemons.iter().all(|daemon| daemon.status().is_none()), "a daemon ended");
    Ok(())
}

fn killed() -> Result<()> {
    let mut kube = Kube::up(Family::V4)?;
    kube.control.kill();
    kube.pings()?;
    let netlink = kube.net.host(0).netlink()?;
    let routes = netlink.routes("flannel.1")?;
    kube.control.restart()?;
    let host = kube.net.host(2);
    let moved = json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/kube-subnet-manager": null}}});
    kube.control.call("PATCH", &path(host), &moved)?;
    eventually(STARTS, || {
        ensure!(kube.annotation(host, "kube-subnet-manager")? == "true", "not put back");
        Ok(())
    })?;
    kube.pings()?;
    ensure!(netlink.routes("flannel.1")? == routes);
    Ok(())
}

fn mixed() -> Result<()> {
    let mut kube = Kube::prepare(Family::V4)?;
    let go = Products { flanneld: peer("flanneld")?, ..products()? };
    let ours = products()?;
    for (n, program) in [&go, &ours, &ours].into_iter().enumerate() {
        kube.daemons.push(kube.start(n, program)?);
    }
    kube.add_pods()
}
