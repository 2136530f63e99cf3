//! Clients of the CNI plugin that are not ours, unmodified: the library, its tool, CRI-O's library, and
//! runtimes.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netns_harness::caps::Need;
use netns_harness::eventually;
use serde_json::{Value, json};

use crate::case::{Case, case, peer};
use crate::node::{Node, ROOT, SOCKET};

const PATIENCE: Duration = Duration::from_secs(30);
const LIST: &str = "/etc/cni/net.d/10-network.conflist";
const PLUGINS: &str = "/opt/cni/bin";

pub(crate) fn cases() -> Vec<Case> {
    let needs = [Need::Namespaces, Need::Veth, Need::Bridge, Need::NfTables, Need::Ipv6];
    let node = ["/usr/bin/busybox", "/usr/bin/nsenter"];
    let of_debian = ["/usr/bin/busybox", "/usr/bin/containerd", "/usr/sbin/runc"];
    let case = |name: &str, body: fn() -> Result<()>| case(name, body).needing(&needs).with_peers();
    vec![
        case("cnitool_calls_every_verb", cnitool).with_programs(&node),
        case("libcni_works_with_its_cache_and_its_capabilities", library).with_programs(&node),
        case("configurations_of_the_first_versions_get_results_of_these_versions", first_versions)
            .with_programs(&node),
        case("cri_os_library_adds_checks_and_deletes", ocicni).with_programs(&node),
        case("podman_runs_containers_on_our_network", podman).with_programs(&[
            "/usr/bin/busybox",
            "/usr/bin/podman",
            "/usr/sbin/runc",
        ]),
        case("containerd_of_debian_runs_sandboxes_by_its_socket", containerd).with_programs(&of_debian),
        case("ctr_runs_a_container_with_cni", ctr).with_programs(&of_debian),
        case("go_makes_of_values_what_was_recorded", values),
        case("a_kubelet_with_containerd_runs_a_static_pod", kubelet)
            .with_programs(&["/usr/bin/busybox", "/usr/sbin/runc"]),
    ]
}

/// The answers that the suite without a kernel compares ours with.
fn values() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/go-values.tsv");
    let answered = Command::new(peer("values")?).stdin(fs::File::open(path)?).output()?;
    ensure!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stderr));
    let (recorded, answered) = (fs::read_to_string(path)?, String::from_utf8(answered.stdout)?);
    ensure!(recorded.lines().count() == answered.lines().count(), "{answered}");
    for (recorded, answered) in recorded.lines().zip(answered.lines()) {
        ensure!(recorded == answered, "recorded is {recorded:?}, and Go answers {answered:?}");
    }
    Ok(())
}

/// flannel's network with port maps and limits.
fn network(version: &str) -> Value {
    let delegate = json!({ "hairpinMode": true, "isDefaultGateway": true });
    json!({
        "cniVersion": version, "name": "cbr0",
        "plugins": [
            { "type": "flannel", "delegate": delegate },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ],
    })
}

/// The list that podman makes for its own network.
fn podman_network() -> Value {
    let ipam = json!({
        "type": "host-local", "ranges": [[{ "subnet": "10.244.1.0/24", "gateway": "10.244.1.1" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    json!({
        "cniVersion": "0.4.0", "name": "cbr0",
        "plugins": [
            { "type": "bridge", "bridge": "cni-podman1", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "firewall", "backend": "" },
            { "type": "tuning", "capabilities": { "mac": true } },
        ],
    })
}

fn cnitool() -> Result<()> {
    let node = Node::start(&network("1.1.0"))?;
    let sandbox = node.sandbox("pod")?;
    let program = peer("cnitool")?.display().to_string();
    let call = |verb: &str| {
        let path = format!("CNI_PATH={PLUGINS}");
        node.exec(&[&path, "NETCONFPATH=/etc/cni/net.d", &program, verb, "cbr0", &sandbox])
    };
    call("status")?;
    let result: Value = serde_json::from_str(&call("add")?)?;
    ensure!(result["cniVersion"] == "1.1.0" && result["ips"][0]["address"] == "10.244.1.2/24", "{result}");
    call("check")?;
    call("del")?;
    call("del")?;
    node.is_clean()
}

fn library() -> Result<()> {
    let node = Node::start(&network("1.1.0"))?;
    let sandboxes = [node.sandbox("one")?, node.sandbox("two")?];
    let program = peer("libcni")?.display().to_string();
    let call = |verb: &str, one: usize, capabilities: &str| {
        let (path, id) = (&sandboxes[one], format!("c{one}"));
        node.exec(&[capabilities, &program, LIST, PLUGINS, "/var/lib/cni/cache", verb, &id, path, "eth0"])
    };
    let ports = |port: u16| {
        format!(
            "CAPABILITIES={{\"portMappings\":[{{\"hostPort\":{port},\"containerPort\":80,\"protocol\":\"tcp\"}}]}}"
        )
    };
    let capabilities = call("validate", 0, "CAPABILITIES=")?;
    ensure!(capabilities.contains("portMappings") && capabilities.contains("bandwidth"), "{capabilities}");
    call("status", 0, "CAPABILITIES=")?;
    let added = [call("add", 0, &ports(18080))?, call("add", 1, &ports(18081))?];
    ensure!(call("cached", 0, "CAPABILITIES=")? == added[0], "the cached result is the printed one");
    for one in 0..2 {
        call("check", one, &ports(18080 + u16::try_from(one)?))?;
    }
    // The library deletes what its cache has and the list does not have, then calls GC of the plugins.
    call("gc", 0, "CAPABILITIES=")?;
    ensure!(node.held()? == ["10.244.1.2"], "only the first is still valid: {:?}", node.held()?);
    call("check", 0, &ports(18080))?;
    call("del", 0, &ports(18080))?;
    node.is_clean()
}

/// The first versions, as rkt used them: no interfaces in a result, one address of each family.
fn first_versions() -> Result<()> {
    for version in ["0.1.0", "0.2.0"] {
        let mut conf = network(version);
        conf["plugins"].as_array_mut().context("plugins")?.truncate(1);
        let node = Node::start(&conf)?;
        let sandbox = node.sandbox("pod")?;
        let program = peer("libcni")?.display().to_string();
        let call = |verb: &str| {
            node.exec(&[&program, LIST, PLUGINS, "/var/lib/cni/cache", verb, "c1", &sandbox, "eth0"])
        };
        let result: Value = serde_json::from_str(&call("add")?)?;
        ensure!(
            result["ip4"]["ip"] == "10.244.1.2/24" && result["ip4"]["gateway"] == "10.244.1.1",
            "{result}"
        );
        ensure!(result.get("interfaces").is_none() && result["cniVersion"] == version, "{result}");
        call("del")?;
        node.is_clean().with_context(|| version.to_owned())?;
    }
    Ok(())
}

fn ocicni() -> Result<()> {
    let node = Node::start(&network("1.0.0"))?;
    let sandbox = node.sandbox("pod")?;
    let program = peer("ocicnitool")?.display().to_string();
    let call = |verb: &str| {
        let (bin, conf) = (format!("BIN_PATH={PLUGINS}"), "CONF_PATH=/etc/cni/net.d");
        node.exec(&[&bin, conf, &program, verb, "default", "pod", "c1", &sandbox])
    };
    let output = call("add")?;
    ensure!(output.contains("10.244.1.2/24"), "{output}");
    // It calls CHECK, and the pod is unusable when CHECK fails.
    ensure!(call("status")?.contains("10.244.1.2/24"));
    call("del")?;
    node.is_clean()
}

fn podman() -> Result<()> {
    podman_on(&network("1.0.0")).context("flannel's network")?;
    podman_on(&podman_network()).context("podman's own network")
}

fn podman_on(network: &Value) -> Result<()> {
    let node = Node::start(network)?;
    let podman = |words: &[&str]| {
        let files =
            ["CONTAINERS_CONF=/run/node/containers.conf", "CONTAINERS_STORAGE_CONF=/run/node/storage.conf"];
        node.exec(&[&files[..], &["podman"], words].concat())
    };
    let web = ["--rootfs", ROOT, "/bin/httpd", "-f", "-p", "80", "-h", "/www"];
    podman(
        &[&["run", "-d", "--name", "web", "-p", "18080:80", "-p", "127.0.0.1:18081:80"], &web[..]].concat(),
    )?;
    for address in ["10.244.1.2:80", "127.0.0.1:18080", "127.0.0.1:18081", "10.244.1.1:18080"] {
        node.fetch(address).with_context(|| address.to_owned())?;
    }
    let asked =
        ["run", "--rm", "--ip", "10.244.1.77", "--mac-address", "02:00:00:00:00:77", "--rootfs", ROOT];
    let output = podman(&[&asked[..], &["/bin/ip", "addr", "show", "eth0"]].concat())?;
    ensure!(output.contains("10.244.1.77/24") && output.contains("02:00:00:00:00:77"), "{output}");
    podman(&["restart", "-t", "1", "web"])?;
    node.fetch("127.0.0.1:18080").context("after a restart")?;
    podman(&["rm", "-f", "-t", "1", "web"])?;
    node.is_clean()
}

fn containerd() -> Result<()> {
    let node = Node::start(&network("1.0.0"))?;
    let _process = node.containerd(1)?;
    let cri = peer("cri")?.display().to_string();
    let status = node.exec(&[&cri, SOCKET, "status"])?;
    ensure!(status.contains("NetworkReady true"), "{status}");
    let limits =
        r#"ANNOTATIONS={"kubernetes.io/ingress-bandwidth":"80M","kubernetes.io/egress-bandwidth":"80M"}"#;
    let output = node.exec(&[limits, &cri, SOCKET, "run", "web", "18080:80"])?;
    let lines: Vec<&str> = output.lines().collect();
    let [id, address] = lines[..] else { bail!("{output}") };
    ensure!(node.held()? == [address], "{:?}, and the sandbox has {address}", node.held()?);
    for at in [&*format!("{address}:80"), "127.0.0.1:18080", "10.244.1.1:18080"] {
        node.fetch(at).with_context(|| at.to_owned())?;
    }
    // It sends the largest possible burst, and keys in upper case.
    let queues = node.exec(&["tc", "qdisc", "show"])?;
    ensure!(queues.matches("tbf").count() == 2 && queues.contains("rate 80Mbit"), "{queues}");
    node.exec(&[&cri, SOCKET, "stop", id])?;
    node.is_clean()?;
    // It calls DEL twice, the second time without a namespace.
    node.exec(&[&cri, SOCKET, "remove", id])?;
    node.is_clean()
}

fn ctr() -> Result<()> {
    let node = Node::start(&network("1.0.0"))?;
    let _process = node.containerd(1)?;
    let run = [
        "ctr", "-a", SOCKET, "run", "--rm", "--cni", "--rootfs", ROOT, "c1", "/bin/ip", "addr", "show",
        "eth0",
    ];
    let output = node.exec(&run)?;
    ensure!(output.contains("10.244.1.2/24"), "{output}");
    node.is_clean()
}

fn kubelet() -> Result<()> {
    let node = Node::start(&network("1.1.0"))?;
    let folder = peer("kubelet")?.parent().context("the peers have a folder")?.display().to_string();
    let _process = node.containerd(2)?;
    // STATUS decides: without a lease there is no pod, and no ADD that would fail.
    let env = node.host().path("/run/flannel/subnet.env");
    let text = fs::read_to_string(&env)?;
    fs::remove_file(&env)?;
    let kubelet = node.kubelet(&["--hostname-override=node"])?;
    let cri = format!("{folder}/cri");
    eventually(PATIENCE, || {
        let status = node.exec(&[&cri, SOCKET, "status"])?;
        ensure!(status.contains("NetworkReady false") && status.contains("subnet.env"), "{status}");
        Ok(())
    })?;
    let manifests = node.host().path("/run/manifests");
    eventually(PATIENCE, || {
        ensure!(manifests.exists(), "{}", kubelet.log());
        Ok(fs::write(manifests.join("pod.yaml"), include_str!("node/pod.yaml"))?)
    })?;
    fs::write(&env, text)?;
    eventually(PATIENCE * 2, || {
        ensure!(node.held()?.len() == 1, "{}", netns_harness::flannel::last_lines(&kubelet.log(), 20));
        Ok(())
    })?;
    node.fetch("127.0.0.1:18080").with_context(|| kubelet.log())?;
    fs::remove_file(manifests.join("pod.yaml"))?;
    eventually(PATIENCE * 2, || {
        ensure!(node.held()?.is_empty(), "{}", netns_harness::flannel::last_lines(&kubelet.log(), 20));
        Ok(())
    })?;
    node.is_clean()
}
