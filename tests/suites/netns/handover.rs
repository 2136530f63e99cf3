//! The daemon deletes links of containers for the plugin, and no other links.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use backends::local::daemon::{DAEMONS, USUAL_NETWORK, file_of};
use netns_harness::flannel::{StoreKind, subnet_env};
use netns_harness::{Cni, Family, Host, Pod, Process, Program, Spec, eventually};

use crate::case::{Case, case, cluster, products, spec};

const SOON: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("running_pods_get_another_mtu_on_request_and_not_earlier", lowered),
        case("the_daemon_deletes_the_link_for_a_del", served),
        case("the_daemon_deletes_no_link_that_is_not_a_containers", refused),
    ]
}

fn one_host() -> Spec {
    Spec { hosts: 1, store: StoreKind::Embedded, ..spec(Family::V4) }
}

fn served() -> Result<()> {
    let cluster = cluster(one_host())?;
    let (host, daemon, cni) = (cluster.net.host(0), &cluster.daemons[0], products()?.cni());
    let [first, second] = ["first", "second"].map(|name| Pod::add(host, name, &cni));
    let (first, second) = (first?, second?);
    let link = hosts_end(&first)?;
    ensure!(host.netlink()?.has_link(&link), "{link} is there");
    host.exec(&powerless(&cni, &first))?;
    ensure!(!host.netlink()?.has_link(&link), "{link} is gone when DEL returns");
    // The daemon, which could do it, is gone; the plugin alone lacks the right.
    daemon.kill();
    let link = hosts_end(&second)?;
    let alone = host.output(&powerless(&cni, &second))?;
    ensure!(!alone.status.success() && host.netlink()?.has_link(&link), "without a daemon: {alone:?}");
    host.exec(&second.call("DEL"))?;
    ensure!(!host.netlink()?.has_link(&link), "{link} is gone when DEL returns");
    Ok(())
}

/// The network's MTU shrinks while a pod runs: the pod's interface follows on request, not earlier.
fn lowered() -> Result<()> {
    let cluster = cluster(one_host())?;
    let (host, products) = (cluster.net.host(0), products()?);
    sh(host, "ip netns add x")?;
    host.exec(&products.cni().call("ADD", "x", "/run/netns/x"))?;
    let inside = || sh(host, "ip -n x -o link show eth0");
    ensure!(inside()?.contains("mtu 1450"), "{}", inside()?);
    sh(host, "ip link set eth0 mtu 1400")?;
    eventually(SOON, || {
        let env = subnet_env(host).context("subnet.env")?;
        ensure!(env["FLANNEL_MTU"] == "1350", "{env:?}");
        Ok(())
    })?;
    let ask = products.control_on_host(&cluster.store).args(["cni", "mtu"]);
    let shown = host.exec(&ask.clone().arg("--dry-run"))?;
    ensure!(shown.contains("ip link set eth0 mtu 1350  # cni cbr0 x eth0"), "{shown}");
    ensure!(inside()?.contains("mtu 1450"), "nobody asked: {}", inside()?);
    let done = host.exec(&ask)?;
    ensure!(done == shown, "{done}");
    ensure!(inside()?.contains("mtu 1350"), "{}", inside()?);
    ensure!(sh(host, "ip -o link show master cni0")?.contains("mtu 1350"), "the host's end as well");
    ensure!(host.exec(&ask)? == "every pod has the MTU 1350\n", "a second time there is nothing to do");
    sh(host, "ip netns delete x").map(drop)
}

fn sh(host: &Host, line: &str) -> Result<String> {
    host.exec(&Program::new("sh").args(["-c", line]))
}

fn refused() -> Result<()> {
    let cluster = cluster(one_host())?;
    let (host, daemon) = (cluster.net.host(0), &cluster.daemons[0]);
    let made = "ip link add plain type veth peer name plain1
        ip link add alike type veth peer name alike1; ip link set alike alias 'icni cbr0 c1 eth0'
        ip link add bridge9 type bridge; ip link set bridge9 alias 'cni cbr0 c9 eth0'";
    host.exec(&Program::new("sh").args(["-e"]).stdin(made))?;
    let links = ["lo", "eth0", "cni0", "flannel.1", "plain", "alike", "bridge9"];
    for link in links {
        let index = host.netlink()?.index(link)?;
        ensure!(ask(host, &format!("unlink {index}\n"))? == "+\n", "{link}: it looks at it later");
    }
    for nonsense in ["unlink 4000000\n", "unlink 0\n"] {
        ensure!(ask(host, nonsense)? == "+\n", "{nonsense}");
    }
    for nonsense in ["unlink\n", "unlink eth0\n", "unlink -1\n", "unlink 1 2\n"] {
        ensure!(!ask(host, nonsense)?.starts_with('+'), "{nonsense}");
    }
    eventually(SOON, || {
        ensure!(!is_unlinking(daemon)?, "it is still at it");
        Ok(())
    })?;
    for link in links {
        ensure!(host.netlink()?.has_link(link), "{link} is gone");
    }
    // The daemon would have deleted it.
    let (pod, index) = (&cluster.pods[0], host.netlink()?.index(&hosts_end(&cluster.pods[0])?)?);
    ensure!(ask(host, &format!("unlink {index}\n"))? == "+\n");
    let link = hosts_end(pod)?;
    eventually(SOON, || {
        ensure!(!host.netlink()?.has_link(&link), "{link} is still there");
        Ok(())
    })
    .map(drop)
}

/// The name of the host's end of the pair.
fn hosts_end(pod: &Pod) -> Result<String> {
    pod.result()["interfaces"][1]["name"].as_str().map(str::to_owned).context("a host's end")
}

/// A DEL without the right to change the network.
fn powerless(cni: &Cni, pod: &Pod) -> Program {
    Program::new("setpriv")
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
        .arg(&cni.plugin)
        .env("CNI_COMMAND", "DEL")
        .env("CNI_CONTAINERID", pod.name())
        .env("CNI_NETNS", &*pod.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", &cni.path)
        .stdin(cni.conf.to_string())
}

/// The answer of the daemon's socket.
fn ask(host: &Host, question: &str) -> Result<String> {
    host.run(|| -> Result<String> {
        let file = file_of(Path::new(DAEMONS), USUAL_NETWORK)?;
        let mut stream = UnixStream::connect(file.with_extension("sock"))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(question.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?
}

fn is_unlinking(daemon: &Process) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        // A process that has just ended has no open socket.
        let name = fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
        if name.trim_end() == "unlink" {
            return Ok(true);
        }
    }
    Ok(false)
}
