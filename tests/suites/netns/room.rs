//! A network that grows, one that would shrink, and one that is full.

use std::fs;

use anyhow::{Context, Result, ensure};
use netns_harness::disturb::outage;
use netns_harness::flannel::{subnet_env, wait_for_subnet};
use netns_harness::{Family, Program, Spec, eventually};

use crate::case::{Case, case, cluster, etcdctl, products, spec};
use crate::lease::{LATER, SOON, control, own_key, refused};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("a_network_that_grows_is_followed_without_loss_and_none_shrinks_below_its_leases", growth),
        case("the_last_subnet_is_leased_and_then_the_shortage_is_reported_until_one_is_free", last_subnet),
    ]
}

fn growth() -> Result<()> {
    let small = serde_json::json!({"Network": "10.42.0.0/20"});
    let network = small.as_object().cloned().unwrap_or_default();
    let mut cluster = cluster(Spec { network, ..spec(Family::V4) })?;
    let host = cluster.net.host(0).clone();
    let write = |conf: &serde_json::Value| fs::write(host.path("/run/new.json"), conf.to_string());
    let conf = |net: &str| {
        let mut conf = cluster.spec().net_conf();
        conf["Network"] = net.into();
        conf
    };
    let report = outage(&cluster.pods[0], &cluster.pods[1], Family::V4, SOON, || {
        write(&conf("10.42.0.0/16"))?;
        control(&cluster, &host, &["network", "set", "/run/new.json"])?;
        for host in cluster.net.hosts() {
            eventually(SOON, || {
                let env = subnet_env(host).context("subnet.env")?;
                ensure!(env["FLANNEL_NETWORK"] == "10.42.0.0/16", "{env:?}");
                Ok(())
            })?;
        }
        Ok(())
    })?;
    ensure!(report.lost() == 0, "{report:?}");
    let rules = host.exec(&Program::new("nft").args(["list", "ruleset"]))?;
    ensure!(rules.contains("10.42.0.0/16") && !rules.contains("10.42.0.0/20"), "{rules}");
    let text = control(&cluster, &host, &["lease", "reserve", "10.42.200.0/24", "--for", "172.30.9.9"]);
    text.context("a subnet of the larger network")?;
    host.exec(&Program::new("ip").args("route add 10.99.16.0/20 via 172.30.0.9 dev eth0".split(' ')))?;
    for (net, force, why) in [
        ("10.42.0.0/20", "", "10.42.200.0-24"),
        ("10.77.0.0/16", "", "outside"),
        // What lies in the network on this host.
        ("172.30.0.0/16", "--force", "this host's own address"),
        ("10.99.0.0/16", "", "10.99.16.0/20, a route via 172.30.0.9 dev eth0"),
        ("10.99.0.0/16", "--force", "outside"),
    ] {
        write(&conf(net))?;
        let flag = [force].into_iter().filter(|flag| !flag.is_empty());
        let verb: Vec<&str> = ["network", "set", "/run/new.json"].into_iter().chain(flag).collect();
        let text = refused(&cluster, &verb)?;
        ensure!(text.contains(why), "{net}: {text}");
    }
    cluster.join()?;
    cluster.wait_for_pings(SOON).map(drop)
}

fn last_subnet() -> Result<()> {
    let small = serde_json::json!({"Network": "10.42.0.0/22"});
    let network = small.as_object().cloned().unwrap_or_default();
    let mut cluster = cluster(Spec { network, ..spec(Family::V4) })?;
    cluster.net.add_host()?;
    let host = cluster.net.host(3).clone();
    let daemon = host.spawn(&products()?.daemon(&cluster.store))?;
    eventually(SOON, || {
        let program = products()?.control_on_host(&cluster.store).arg("status");
        let text = String::from_utf8(host.output(&program)?.stdout)?;
        ensure!(text.contains("all 3 subnets of 10.42.0.0/22 are leased"), "{text}");
        Ok(())
    })?;
    let free = own_key(cluster.net.host(2))?;
    cluster.daemons[2].kill();
    etcdctl(&cluster, &["del", &free])?;
    wait_for_subnet(&host, &daemon, LATER)?;
    Ok(())
}
