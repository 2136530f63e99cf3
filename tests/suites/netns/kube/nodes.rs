//! A whole cluster: kubelet, containerd and kube-proxy on each Node, and our DaemonSet from our image.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netns_harness::flannel::last_lines;
use netns_harness::probe::ping_until;
use netns_harness::stream::Stream;
use netns_harness::{Family, Namespace, Net, Process, Program, Topology, eventually};
use serde_json::Value;

use super::control::Control;
use crate::case::{Case, case, peer, products};
use crate::node::{Node, page as page_of};

/// Images are unpacked and pods started on three Nodes at once.
const PODS_START: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
/// Our image, as the manifest names it.
const OURS: &str = "docker.io/selvage/flannel:0.1.0";
const GO: &str = "docker.io/peers/flannel:1";
/// Between two packets of a stream.
const PACE: Duration = Duration::from_millis(2);
/// The port of the pods' web server on each Node.
const HOST_PORT: u16 = 18080;

pub(super) fn cases() -> Vec<Case> {
    let rows = [
        ("v4", Family::V4, "nftables", true),
        ("v4_iptables", Family::V4, "iptables", false),
        ("dual", Family::Dual, "nftables", true),
        ("v6", Family::V6, "nftables", true),
    ];
    let row = |(word, family, proxy, nft): (&str, Family, &'static str, bool)| {
        let name = format!("our_daemon_set_carries_the_pods_of_a_kubernetes_cluster_{word}");
        case(name, move || carries(family, proxy, nft))
            .with_peers()
            .with_programs(&["/usr/bin/busybox", "/usr/sbin/runc"])
    };
    let mut cases: Vec<Case> = rows.map(row).into();
    let more = [
        ("a_rolling_update_of_our_daemon_set_loses_no_packet", rolled as fn() -> Result<()>),
        ("kubectl_set_image_changes_go_flannel_to_ours_and_back_without_a_lost_packet", exchanged),
    ];
    cases.extend(more.map(|(name, body)| {
        case(name, body).with_peers().with_programs(&["/usr/bin/busybox", "/usr/sbin/runc"])
    }));
    cases
}

/// A cluster whose Nodes are real.
struct Cluster {
    control: Control,
    nodes: Vec<Node>,
    programs: Vec<Process>,
    family: Family,
    net: Net,
}

impl Cluster {
    fn up(size: usize, family: Family, proxy: &str) -> Result<Self> {
        let net = Net::build(Topology::flat(size).family(family))?;
        let names: Vec<&str> = net.hosts().iter().map(netns_harness::Host::name).collect();
        let control = Control::start(net.store(), family, &names)?;
        control.manage()?;
        let mut cluster = Self { control, nodes: Vec::new(), programs: Vec::new(), family, net };
        let programs = products()?.flanneld.parent().context("the daemon has a folder")?.to_owned();
        let image = cluster.image(&programs, OURS)?;
        for n in 0..size {
            cluster.join(n, proxy)?;
        }
        cluster.import(&image)?;
        Ok(cluster)
    }

    /// An image of the flannel whose programs are in this folder.
    fn image(&self, programs: &Path, name: &str) -> Result<Vec<u8>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flanneld/dist/image");
        let words = [programs, Path::new("/run/image.tar"), Path::new(name)];
        self.net.store().exec(&Program::new(script).args(words))?;
        Ok(fs::read(self.net.store().path("/run/image.tar"))?)
    }

    fn import(&self, image: &[u8]) -> Result<()> {
        let ctr = peer("ctr")?.display().to_string();
        for (host, node) in self.net.hosts().iter().zip(&self.nodes) {
            fs::write(host.path("/run/flannel.tar"), image)?;
            node.import(&ctr, 2, "/run/flannel.tar")?;
        }
        Ok(())
    }

    fn join(&mut self, n: usize, proxy: &str) -> Result<()> {
        let host = self.net.host(n);
        self.control.admit(host)?;
        let node = Node::on(host)?;
        self.programs.push(node.containerd(2)?);
        let addresses: Vec<String> = self
            .family
            .each()
            .iter()
            .map(|family| Ok(host.address(*family)?.to_string()))
            .collect::<Result<_>>()?;
        self.programs.push(node.kubelet(&[
            "--kubeconfig=/run/kubelet-kubeconfig",
            "--address=::",
            &format!("--hostname-override={}", host.name()),
            &format!("--node-ip={}", addresses.join(",")),
        ])?);
        let kube_proxy = peer("kube-proxy")?.display().to_string();
        self.programs.push(node.spawn(
            "kube-proxy",
            &[
                &kube_proxy,
                "--kubeconfig=/run/kubeconfig",
                &format!("--hostname-override={}", host.name()),
                &format!("--proxy-mode={proxy}"),
                "--conntrack-max-per-core=0",
                "--conntrack-tcp-timeout-established=0",
                "--conntrack-tcp-timeout-close-wait=0",
            ],
        )?);
        self.nodes.push(node);
        Ok(())
    }

    /// The manifest as it is shipped, with the network of this cluster.
    fn apply(&self, nft: bool) -> Result<()> {
        let text = include_str!("../../../../flanneld/dist/kubernetes/kube-flannel.yml");
        let network = match self.family {
            Family::V4 => r#""Network": "10.244.0.0/16","#,
            Family::V6 => r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd44::/48","#,
            Family::Dual => r#""Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd44::/48","#,
        };
        let mut text = text.replacen(r#""Network": "10.244.0.0/16","#, network, 1);
        if nft {
            text = text.replacen(r#""EnableNFTables": false"#, r#""EnableNFTables": true"#, 1);
        }
        self.control.kubectl(&["apply", "-f", "-"], &text).map(drop)
    }

    /// The pods with this label, by Node.
    fn pods(&self, namespace: &str, label: &str) -> Result<Vec<Value>> {
        let found =
            self.control.get(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector={label}"))?;
        let mut pods = found["items"].as_array().cloned().context("a list of pods")?;
        pods.sort_by_key(|pod| pod["spec"]["nodeName"].to_string());
        Ok(pods)
    }

    /// Waits until a DaemonSet has a ready pod on each Node.
    fn ready(&self, namespace: &str, label: &str) -> Result<Vec<Value>> {
        let mut pods = Vec::new();
        eventually(PODS_START, || {
            pods = self.pods(namespace, label)?;
            let is_ready = |pod: &&Value| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions
                    .is_some_and(|all| all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"))
            };
            let ready = pods.iter().filter(is_ready).count();
            ensure!(ready == self.nodes.len(), "{ready} of {} pods are ready", self.nodes.len());
            Ok(())
        })
        .with_context(|| self.report(namespace))?;
        Ok(pods)
    }

    /// What a person would look at first.
    fn report(&self, namespace: &str) -> String {
        let mut text = String::new();
        let views: [&[&str]; 4] = [
            &["get", "nodes,pods", "-A", "-o", "wide"],
            &["describe", "pods", "-n", namespace],
            &["get", "events", "-n", namespace],
            &["logs", "-n", namespace, "--all-containers", "--tail=20", "-l", "app"],
        ];
        for words in views {
            let seen = self.control.kubectl(words, "").unwrap_or_else(|error| format!("{error:#}"));
            let _ = writeln!(text, "{seen}");
        }
        for program in &self.programs {
            let _ = writeln!(text, "-- {}\n{}", program.name(), last_lines(&program.log(), 6));
        }
        text
    }

    fn exec(&self, pod: &Value, command: &[&str]) -> Result<String> {
        let name = pod["metadata"]["name"].as_str().context("a pod has a name")?;
        self.control.kubectl(&[&["exec", name, "--"], command].concat(), "")
    }

    /// The namespace of the pod with this address.
    fn space(&self, address: IpAddr) -> Result<Namespace> {
        for entry in fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if !line.starts_with(b"/bin/httpd\0") || !self.nodes.iter().any(|node| node.has(pid)) {
                continue;
            }
            let space = Namespace::of_process(self.net.run_dir(), &address.to_string(), pid)?;
            if space.run(|| UdpSocket::bind((address, 0)).is_ok())? {
                return Ok(space);
            }
        }
        bail!("no pod has {address}")
    }

    /// What `change` costs: packets between all pairs of pods meanwhile.
    fn undisturbed(&self, what: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let pods = self.ready("default", "app=web")?;
        let mut spaces = Vec::new();
        for pod in &pods {
            let address = addresses(&pod["status"])?[0];
            spaces.push((address, self.space(address)?));
        }
        let mut streams = Vec::new();
        for (from, source) in &spaces {
            for (to, target) in spaces.iter().filter(|(to, _)| to != from) {
                ping_until(source, *to, SOON)?;
                streams.push((from, to, Stream::start(source, target, *to, PACE)?));
            }
        }
        change().with_context(|| self.report("kube-flannel"))?;
        for (from, to, stream) in streams {
            let report = stream.stop()?;
            ensure!(report.lost() == 0 && report.sent > 500, "{what}: from {from} to {to}: {report:?}");
        }
        let now = self.ready("default", "app=web")?;
        let names =
            |pods: &[Value]| pods.iter().map(|pod| pod["metadata"]["uid"].clone()).collect::<Vec<_>>();
        ensure!(names(&now) == names(&pods), "{what}: pods were made again");
        Ok(())
    }

    /// Waits until each Node has the newest form of the daemon.
    fn rolled_out(&self) -> Result<()> {
        let words =
            ["rollout", "status", "-n", "kube-flannel", "daemonset/kube-flannel-ds", "--timeout=180s"];
        self.control.kubectl(&words, "").map(drop)
    }
}

/// Pods that serve a page, one on each Node, and a Service before them. The page is served by the pod's sandbox, which has the same image.
const WEB: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: local/web:1
        imagePullPolicy: Never
        command: [/bin/sleep, "86400"]
        ports: [{containerPort: 80, hostPort: 18080}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80}]
"#;

fn addresses(of: &Value) -> Result<Vec<IpAddr>> {
    let list = of["podIPs"].as_array().context("no podIPs")?;
    list.iter().map(|ip| Ok(ip["ip"].as_str().context("an address")?.parse()?)).collect()
}

fn carries(family: Family, proxy: &str, nft: bool) -> Result<()> {
    let cluster = Cluster::up(3, family, proxy)?;
    cluster.apply(nft)?;
    cluster.control.kubectl(&["apply", "-f", "-"], WEB)?;
    cluster.ready("kube-flannel", "app=flannel")?;
    let pods = cluster.ready("default", "app=web")?;
    let mut seen = Vec::new();
    for pod in &pods {
        seen.push(addresses(&pod["status"])?);
        ensure!(seen.last().map(Vec::len) == Some(family.each().len()), "{seen:?}");
    }
    let service = cluster.control.get("/api/v1/namespaces/default/services/web")?;
    let service: Vec<IpAddr> = serde_json::from_value(service["spec"]["clusterIPs"].clone())?;
    ensure!(service.len() == family.each().len(), "{service:?}");
    for (n, pod) in pods.iter().enumerate() {
        let others =
            seen.iter().enumerate().filter(|(m, _)| *m != n).flat_map(|(_, all)| all.iter().copied());
        let hosts = cluster.net.hosts().iter().enumerate().filter(|(m, _)| *m != n);
        let at = |address| SocketAddr::new(address, 80);
        let mut pages: Vec<SocketAddr> = others.chain(service.iter().copied()).map(at).collect();
        for (_, host) in hosts {
            for family in family.each() {
                pages.push(SocketAddr::new(host.address(*family)?, HOST_PORT));
            }
        }
        let space = cluster.space(seen[n][0])?;
        for page in pages {
            eventually(SOON, || {
                let text = space.run(|| page_of(page))??;
                ensure!(text.ends_with("hello\n"), "{page}: {text:?}");
                Ok(())
            })
            .with_context(|| cluster.report("kube-flannel"))?;
        }
        let text = cluster.exec(pod, &["cat", "/www/index.html"])?;
        ensure!(text == "hello\n", "kubectl exec: {text:?}");
    }
    Ok(())
}

fn rolled() -> Result<()> {
    let cluster = Cluster::up(3, Family::V4, "nftables")?;
    cluster.apply(true)?;
    cluster.control.kubectl(&["apply", "-f", "-"], WEB)?;
    cluster.ready("kube-flannel", "app=flannel")?;
    cluster.undisturbed("rolling update", || {
        let restart = ["rollout", "restart", "-n", "kube-flannel", "daemonset/kube-flannel-ds"];
        cluster.control.kubectl(&restart, "")?;
        cluster.rolled_out()
    })
}

fn exchanged() -> Result<()> {
    let cluster = Cluster::up(3, Family::V4, "iptables")?;
    // What a host of Go flannel has besides: the plugins that the flannel plugin calls.
    let peers = peer("bridge")?.parent().context("the peers have a folder")?.to_owned();
    for (node, plugin) in cluster
        .nodes
        .iter()
        .flat_map(|node| ["bridge", "host-local", "portmap", "loopback"].map(|plugin| (node, plugin)))
    {
        node.exec(&["cp", &peers.join(plugin).display().to_string(), "/opt/cni/bin/"])?;
    }
    let folder = cluster.net.store().path("/run/go");
    fs::create_dir_all(&folder)?;
    fs::copy(peer("flanneld")?, folder.join("flanneld"))?;
    fs::copy(peer("flannel")?, folder.join("cni-plugin"))?;
    cluster.import(&cluster.image(Path::new("/run/go"), GO)?)?;
    cluster.control.kubectl(&["apply", "-f", "-"], include_str!("go-flannel.yml"))?;
    cluster.control.kubectl(&["apply", "-f", "-"], WEB)?;
    cluster.ready("kube-flannel", "app=flannel")?;
    for image in [OURS, GO] {
        cluster.undisturbed(image, || {
            let containers =
                ["install-cni-plugin", "install-cni", "kube-flannel"].map(|it| format!("{it}={image}"));
            let [first, second, third] = &containers;
            let words =
                ["set", "image", "-n", "kube-flannel", "daemonset/kube-flannel-ds", first, second, third];
            cluster.control.kubectl(&words, "")?;
            cluster.rolled_out()
        })?;
    }
    Ok(())
}
