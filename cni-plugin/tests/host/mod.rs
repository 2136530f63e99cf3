//! A host for one test: namespaces and a folder of its own, in which the plugins are called.

#![allow(dead_code, reason = "each suite uses its part of it")]

pub(crate) mod namespace;

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use namespace::Namespace;
use serde_json::{Value, json};

/// A host.
pub(crate) struct Host {
    pub(crate) net: Namespace,
    client: Option<Namespace>,
    folder: PathBuf,
    /// What the plugins find in their environment beside the protocol's own.
    pub(crate) env: Vec<(String, String)>,
}

/// A container.
pub(crate) struct Pod {
    pub(crate) net: Namespace,
    pub(crate) id: String,
}

impl Pod {
    pub(crate) fn new(id: &str) -> Self {
        Self { net: Namespace::new(), id: id.to_owned() }
    }
}

/// Whose plugins a call runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Reference,
}

/// An answer of a plugin.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) well: bool,
    /// `null` when nothing was printed.
    pub(crate) document: Value,
}

impl Answer {
    /// The document of one that went well.
    pub(crate) fn ok(self) -> Value {
        assert!(self.well, "{}", self.document);
        self.document
    }

    /// The error code of one that went wrong.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.well, "{}", self.document);
        self.document["code"].as_u64().unwrap()
    }

    /// The sentence of one that went wrong.
    pub(crate) fn msg(&self) -> &str {
        assert!(!self.well, "{}", self.document);
        self.document["msg"].as_str().unwrap()
    }
}

/// The daemon's file: both families, and one with room for a single container.
pub(crate) const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fc00:42::/56\n\
                        FLANNEL_IPV6_SUBNET=fc00:42:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
pub(crate) const TINY: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/30\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

impl Host {
    /// With a client behind a link of its own: 192.0.2.1 and 2001:db8::1 here, .2 and ::2 there.
    pub(crate) fn new() -> Self {
        let client = Namespace::new();
        let mut host = Self::bare();
        host.link_client(&client);
        host.client = Some(client);
        host
    }

    /// With this file of the daemon, and no client.
    pub(crate) fn with_env(env: &str) -> Self {
        let host = Self::bare();
        fs::write(host.path("subnet.env"), env).unwrap();
        host
    }

    fn bare() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("selvage-plugin-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self { net: Namespace::new(), client: None, folder, env: vec![] }
    }

    pub(crate) fn client(&self) -> &Namespace {
        self.client.as_ref().expect("Host::new makes one with a client")
    }

    /// A file or folder of the host's own folder.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }

    /// The names in a folder of the host's own, sorted.
    fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else { return vec![] };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The reserved addresses of the network `cbr0`, sorted.
    pub(crate) fn reserved(&self) -> Vec<String> {
        let mut names = self.names("networks/cbr0");
        names.retain(|name| name != "lock" && !name.starts_with("last_reserved_ip."));
        names
    }

    /// The configurations that the flannel plugin stored, sorted.
    pub(crate) fn stored(&self) -> Vec<String> {
        self.names("state")
    }

    /// The usual configuration of the flannel plugin, with all files in this host's folder.
    pub(crate) fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "subnetFile": self.path("subnet.env"), "dataDir": self.path("state"),
            "subnetFileWait": 0, "ipam": { "dataDir": self.path("networks"), "indexDir": self.path("index") },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        })
    }

    /// Calls our flannel plugin for interface `eth0`.
    pub(crate) fn flannel(&self, verb: &str, container: &str, netns: &str, conf: &Value) -> Answer {
        self.flannel_with(verb, &[("CNI_CONTAINERID", container), ("CNI_NETNS", netns)], &conf.to_string())
    }

    /// Calls our flannel plugin with these variables and this input.
    pub(crate) fn flannel_with(&self, verb: &str, variables: &[(&str, &str)], input: &str) -> Answer {
        self.call_as("flannel", verb, variables, input)
    }

    /// Calls our plugin of this name for interface `eth0`, unless the variables name another.
    pub(crate) fn call_as(
        &self,
        plugin: &str,
        verb: &str,
        variables: &[(&str, &str)],
        input: &str,
    ) -> Answer {
        let variables = [&[("CNI_IFNAME", "eth0")], variables].concat();
        self.answer(self.command(Whose::Ours, plugin, verb, &variables), input)
    }

    fn link_client(&self, client: &Namespace) {
        self.net.tool(&format!("ip link add up0 type veth peer name eth0 netns {}", client.path()));
        for (net, link, last) in [(&self.net, "up0", 1), (client, "eth0", 2)] {
            net.tool("ip link set lo up");
            net.tool(&format!("ip link set {link} up"));
            net.tool(&format!("ip address add 192.0.2.{last}/24 dev {link}"));
            net.tool(&format!("ip address add 2001:db8::{last}/64 dev {link} nodad"));
        }
        client.tool("ip route add default via 192.0.2.1");
        client.tool("ip route add default via 2001:db8::1");
    }

    /// A bridge with addresses of both families.
    pub(crate) fn bridge(&self, network: &str) -> Value {
        let subnets = if network == "other" { ["10.88.2", "fc00:88:2:"] } else { ["10.88.1", "fc00:88:1:"] };
        let ranges =
            [format!("{}.0/24", subnets[0]), format!("{}:/64", subnets[1])].map(|s| json!([{ "subnet": s }]));
        json!({
            "type": "bridge", "bridge": if network == "other" { "cni1" } else { "cni0" }, "isDefaultGateway": true,
            "hairpinMode": true,
            "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.path("networks"),
                "indexDir": self.path("index") },
        })
    }

    /// Calls one plugin.
    pub(crate) fn call(&self, whose: Whose, verb: &str, pod: (&str, &str, &str), conf: &Value) -> Answer {
        self.call_text(whose, conf["type"].as_str().unwrap(), verb, pod, &conf.to_string())
    }

    /// Calls one plugin with this input.
    pub(crate) fn call_text(
        &self,
        whose: Whose,
        plugin: &str,
        verb: &str,
        pod: (&str, &str, &str),
        input: &str,
    ) -> Answer {
        let path = if whose == Whose::Reference { peers() } else { PathBuf::from("/nowhere") };
        let path = path.to_str().unwrap();
        let (container, netns, ifname) = pod;
        let variables = [
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", ifname),
            ("CNI_PATH", path),
        ];
        self.answer(self.command(whose, plugin, verb, &variables), input)
    }

    /// Runs it in the host's namespace with this input.
    fn answer(&self, mut command: Command, input: &str) -> Answer {
        let output = self.net.run(|| {
            let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            // It may answer without having read all.
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
            child.wait_with_output().unwrap()
        });
        assert!(matches!(output.status.code(), Some(0 | 1)), "{:?} {input:.2000}", output.status);
        let text = String::from_utf8(output.stdout).unwrap();
        let document = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Answer { well: output.status.success(), document }
    }

    /// A plugin to start in the host's namespace.
    pub(crate) fn command(
        &self,
        whose: Whose,
        plugin: &str,
        verb: &str,
        variables: &[(&str, &str)],
    ) -> Command {
        let mut command = match whose {
            Whose::Ours => Command::new(env!("CARGO_BIN_EXE_cni-plugin")),
            Whose::Reference => Command::new(peers().join(plugin)),
        };
        command
            .arg0(plugin)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(variables.iter().copied()).envs(self.env.iter().cloned());
        // A hostile configuration may name files relative to it.
        command.current_dir(&self.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// ADD of a chain, as a runtime does it; the last result, or the first failure.
    pub(crate) fn add(&self, whose: Whose, network: &str, pod: &Pod, plugins: &[Value]) -> Answer {
        let mut last = Answer { well: true, document: Value::Null };
        for plugin in plugins {
            let conf = complete(network, plugin, &last.document);
            last = self.call(whose, "ADD", (&pod.id, &pod.net.path(), "eth0"), &conf);
            if !last.well {
                break;
            }
        }
        last
    }

    /// DEL of a chain, last plugin first, each of which must succeed.
    pub(crate) fn del(&self, whose: Whose, network: &str, pod: &Pod, plugins: &[Value], result: &Value) {
        for plugin in plugins.iter().rev() {
            let conf = complete(network, plugin, result);
            let answer = self.call(whose, "DEL", (&pod.id, &pod.net.path(), "eth0"), &conf);
            assert!(answer.well, "{}", answer.document);
        }
    }

    /// CHECK of one plugin.
    pub(crate) fn check(
        &self,
        whose: Whose,
        network: &str,
        pod: &Pod,
        plugin: &Value,
        result: &Value,
    ) -> Answer {
        self.call(whose, "CHECK", (&pod.id, &pod.net.path(), "eth0"), &complete(network, plugin, result))
    }

    /// The rules of the host but for the tables themselves, as nft shows them.
    pub(crate) fn ruleset(&self) -> String {
        self.net.tool("nft list ruleset")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A plugin's part of a list as a runtime hands it over.
pub(crate) fn complete(network: &str, plugin: &Value, previous: &Value) -> Value {
    let mut conf = plugin.clone();
    conf["name"] = network.into();
    if conf["cniVersion"].is_null() {
        conf["cniVersion"] = "1.0.0".into();
    }
    if !previous.is_null() {
        conf["prevResult"] = previous.clone();
    }
    conf
}

/// The folder with the reference plugins.
pub(crate) fn peers() -> PathBuf {
    let folder = std::env::var_os("SELVAGE_PEERS").filter(|folder| !folder.is_empty());
    folder.expect("SELVAGE_PEERS names the folder that tests/peers/build prints").into()
}
