//! A host for one test: network namespaces without names, which go with their last file, a client behind a link of its
//! own, and a folder.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::{Value, json};

/// What takes longer than this on a loaded machine does not happen at all.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What is not to happen is waited for this long.
pub(crate) const NEVER: Duration = Duration::from_millis(700);

/// A network namespace.
pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one. Needs root: a thread cannot have a user namespace of its own.
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root, for network namespaces");
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        };
        thread::scope(|scope| scope.spawn(make).join().unwrap())
    }

    /// By which another process can open it while this one lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` in it; the processes that it starts are there as well.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Runs a program in it, which must end well; its output.
    pub(crate) fn tool(&self, line: &str) -> String {
        let (well, text) = self.try_tool(line, "");
        assert!(well, "{line}: {text}");
        text
    }

    /// Runs a program in it with this input; whether it ended well, and what it said.
    pub(crate) fn try_tool(&self, line: &str, input: &str) -> (bool, String) {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path);
        let output = self.run(|| {
            let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    }

    pub(crate) fn sysctl(&self, key: &str) -> String {
        self.run(|| fs::read_to_string(format!("/proc/sys/{key}")).unwrap().trim_end().to_owned())
    }

    /// A server of TCP on all addresses of both families.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        let listener = self.run(|| TcpListener::bind(("::", port)).unwrap());
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(SOON.as_secs().cast_signed()))
            .unwrap();
        listener
    }

    /// A socket of UDP that gives up after a while.
    pub(crate) fn udp(&self, address: &str) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(NEVER)).unwrap();
        socket
    }

    /// Who the server sees when this namespace connects; none when it does not get there.
    pub(crate) fn reaches(&self, target: &str, server: &TcpListener) -> Option<SocketAddr> {
        // On a machine whose neighbour table is full the kernel refuses for a moment; that table is all namespaces'.
        (0..5).find_map(|_| self.connects(target, server, SOON))
    }

    /// Whether a connection gets nowhere, or somewhere else.
    pub(crate) fn is_kept_from(&self, target: &str, server: &TcpListener) -> bool {
        self.connects(target, server, NEVER).is_none()
    }

    fn connects(&self, target: &str, server: &TcpListener, within: Duration) -> Option<SocketAddr> {
        let target: SocketAddr = target.parse().unwrap();
        let stream = self.run(|| TcpStream::connect_timeout(&target, within));
        let _stream = stream.inspect_err(|error| eprintln!("{target}: {error}")).ok()?;
        Some(server.accept().expect("what connected comes out here").1)
    }
}

/// A host with a client behind it: 192.0.2.1 and 2001:db8::1 here, .2 and ::2 there.
pub(crate) struct Host {
    pub(crate) net: Namespace,
    pub(crate) client: Namespace,
    pub(crate) folder: PathBuf,
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

impl Host {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("selvage-chain-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        let host = Self { net: Namespace::new(), client: Namespace::new(), folder, env: vec![] };
        host.link_client();
        host
    }

    fn link_client(&self) {
        self.net.tool(&format!("ip link add up0 type veth peer name eth0 netns {}", self.client.path()));
        for (net, link, last) in [(&self.net, "up0", 1), (&self.client, "eth0", 2)] {
            net.tool("ip link set lo up");
            net.tool(&format!("ip link set {link} up"));
            net.tool(&format!("ip address add 192.0.2.{last}/24 dev {link}"));
            net.tool(&format!("ip address add 2001:db8::{last}/64 dev {link} nodad"));
        }
        self.client.tool("ip route add default via 192.0.2.1");
        self.client.tool("ip route add default via 2001:db8::1");
    }

    /// A bridge with addresses of both families.
    pub(crate) fn bridge(&self, network: &str) -> Value {
        let subnets = if network == "other" { ["10.88.2", "fc00:88:2:"] } else { ["10.88.1", "fc00:88:1:"] };
        let ranges =
            [format!("{}.0/24", subnets[0]), format!("{}:/64", subnets[1])].map(|s| json!([{ "subnet": s }]));
        json!({
            "type": "bridge", "bridge": if network == "other" { "cni1" } else { "cni0" }, "isDefaultGateway": true,
            "hairpinMode": true,
            "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.folder.join("networks"),
                "indexDir": self.folder.join("index") },
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
        let mut command = self.command(whose, plugin, verb, pod);
        let output = self.net.run(|| {
            let mut child = command.spawn().unwrap_or_else(|error| panic!("{plugin}: {error}"));
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
    pub(crate) fn command(&self, whose: Whose, plugin: &str, verb: &str, pod: (&str, &str, &str)) -> Command {
        let mut command = match whose {
            Whose::Ours => Command::new(env!("CARGO_BIN_EXE_cni-plugin")),
            Whose::Reference => Command::new(peers().join(plugin)),
        };
        let (container, netns, ifname) = pod;
        command.arg0(plugin).env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", container);
        command
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", ifname)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let path = if whose == Whose::Reference { peers() } else { PathBuf::from("/nowhere") };
        command.env("CNI_PATH", path).envs(self.env.iter().cloned());
        // Where a hostile configuration may write.
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
