//! A node on which container runtimes run unmodified: a host with its own process ids, cgroups, /etc and
//! /opt. When its first process ends, everything on it ends.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netns_harness::{Host, Net, Process, Program, Topology, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::case::{peer, products};

/// The scripts of the node.
const FOLDER: &str = "/run/node";
pub(crate) const SOCKET: &str = "/run/containerd.sock";
pub(crate) const IMAGE: &str = "/run/node/image.tar";
/// The root of the image, for clients without images.
pub(crate) const ROOT: &str = "/run/node/root";
const PATIENCE: Duration = Duration::from_secs(30);
const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const FILES: [(&str, &str); 8] = [
    ("init.sh", include_str!("init.sh")),
    ("image.sh", include_str!("image.sh")),
    ("containerd-1.toml", include_str!("containerd-1.toml")),
    ("containerd-2.toml", include_str!("containerd-2.toml")),
    ("kubelet.sh", include_str!("kubelet.sh")),
    ("kubelet.yaml", include_str!("kubelet.yaml")),
    ("containers.conf", include_str!("containers.conf")),
    ("storage.conf", include_str!("storage.conf")),
];

pub(crate) struct Node {
    host: Host,
    /// The first process, with the machine's process id.
    pid: String,
    /// The network of a node that is alone.
    _net: Option<Net>,
}

impl Node {
    /// A node whose runtimes find this network, and on which flannel has the subnet 10.244.1.0/24.
    pub(crate) fn start(network: &Value) -> Result<Self> {
        let net = Net::build(Topology::flat(1))?;
        let host = &net.host(0).clone();
        fs::create_dir_all(host.path("/run/flannel"))?;
        fs::write(host.path("/run/flannel/subnet.env"), SUBNET_ENV)?;
        fs::create_dir_all(host.path(FOLDER))?;
        fs::write(host.path(FOLDER).join("network.conflist"), network.to_string())?;
        let mut node = Self::on(host)?;
        node._net = Some(net);
        Ok(node)
    }

    /// This host as a node. Without a network in [`FOLDER`] it has no CNI plugin and no configuration.
    pub(crate) fn on(host: &Host) -> Result<Self> {
        let host = host.clone();
        fs::create_dir_all(host.path(FOLDER))?;
        for (name, text) in FILES {
            fs::write(host.path(FOLDER).join(name), text)?;
        }
        fs::write(host.path(FOLDER).join("cgroups"), cgroups()?)?;
        host.exec(&Program::new("sh").args(["/run/node/image.sh", FOLDER]))?;
        let ours = products()?.cni.parent().context("the plugin has a folder")?.canonicalize()?;
        let theirs = peer("bridge")?.parent().context("the peers have a folder")?.canonicalize()?;
        let flags =
            ["-C", "-m", "-p", "-u", "-i", "-f", "--kill-child", "--mount-proc", "sh", "/run/node/init.sh"];
        let init = Program::new("unshare").args(flags).arg(ours).arg(theirs).arg(FOLDER).named("node");
        let init = host.spawn(&init)?;
        eventually(PATIENCE, || {
            if init.status().is_none() && !host.path(FOLDER).join("ready").exists() {
                bail!("the node does not come up: {}", init.log());
            }
            Ok(())
        })?;
        ensure!(init.status().is_none(), "the node ended: {}", init.log());
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.pid()))?;
        let pid = children.split_whitespace().next().context("the node has a first process")?.to_owned();
        Ok(Self { host, pid, _net: None })
    }

    /// The containerd of tests/peers (2) or Debian's (1), with the image of [`IMAGE`], on [`SOCKET`].
    pub(crate) fn containerd(&self, version: u8) -> Result<Process> {
        let (path, ctr) = if version == 1 {
            ("/usr/bin".to_owned(), "ctr".to_owned())
        } else {
            let folder = peer("ctr")?.parent().context("the peers have a folder")?.display().to_string();
            (folder.clone(), format!("{folder}/ctr"))
        };
        let (path, conf) = (
            format!("PATH={path}:/usr/sbin:/usr/bin:/sbin:/bin"),
            format!("{FOLDER}/containerd-{version}.toml"),
        );
        let process = self.spawn("containerd", &[&path, "containerd", "-c", &conf])?;
        eventually(PATIENCE, || self.import(&ctr, version, IMAGE).with_context(|| process.log()))?;
        Ok(process)
    }

    /// A kubelet with more flags.
    pub(crate) fn kubelet(&self, flags: &[&str]) -> Result<Process> {
        let kubelet = peer("kubelet")?.display().to_string();
        let cgroup = format!("node-{}", self.pid);
        self.spawn("kubelet", &[&["sh", "/run/node/kubelet.sh", &kubelet, FOLDER, &cgroup], flags].concat())
    }

    /// Makes an image known to containerd.
    pub(crate) fn import(&self, ctr: &str, version: u8, image: &str) -> Result<()> {
        let import = ["-a", SOCKET, "-n", "k8s.io", "images", "import", "--snapshotter", "native"];
        let local: &[&str] = if version == 1 { &[] } else { &["--local"] };
        self.exec(&[&[ctr], &import[..], local, &[image]].concat()).map(drop)
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Whether a process, by the machine's process id, runs on the node.
    pub(crate) fn has(&self, pid: u32) -> bool {
        let parent = |pid: &String| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            Some(status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned())
        };
        std::iter::successors(Some(pid.to_string()), parent).any(|pid| pid == self.pid)
    }

    /// A program on the node, with variables before its words, as for `env`.
    fn program(&self, words: &[&str]) -> Program {
        let enter = ["-t", &self.pid, "-m", "-p", "-u", "-i", "-C", "--", "env"];
        Program::new("nsenter").args(enter).args(words.iter().copied())
    }

    /// Runs a program to its end, and returns what it printed.
    pub(crate) fn exec(&self, words: &[&str]) -> Result<String> {
        self.host.exec(&self.program(words)).with_context(|| words.join(" "))
    }

    /// Starts a program that keeps running.
    pub(crate) fn spawn(&self, name: &str, words: &[&str]) -> Result<Process> {
        self.host.spawn(&self.program(words).named(name))
    }

    /// A container's namespace that no plugin has connected yet; returns its path on the node.
    pub(crate) fn sandbox(&self, name: &str) -> Result<String> {
        self.exec(&["ip", "netns", "add", name])?;
        Ok(format!("/run/netns/{name}"))
    }

    /// Fetches the page of the web server in the image from the node.
    pub(crate) fn fetch(&self, address: &str) -> Result<()> {
        let at: SocketAddr = address.parse()?;
        eventually(PATIENCE, || {
            let page = self.host.run(|| page(at))??;
            ensure!(page.ends_with("\r\n\r\nhello\n"), "{address} says {page:?}");
            Ok(())
        })
        .map(drop)
    }

    /// Addresses that are held in the network.
    pub(crate) fn held(&self) -> Result<Vec<String>> {
        let Ok(entries) = fs::read_dir(self.host.path("/var/lib/cni/networks/cbr0")) else {
            return Ok(vec![]);
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: Vec<String> = names.collect::<Result<_>>()?;
        Ok(names.into_iter().filter(|name| name.starts_with("10.")).collect())
    }

    /// Checks that nothing of an attachment is left: addresses, links, port maps, files, zombies.
    pub(crate) fn is_clean(&self) -> Result<()> {
        eventually(PATIENCE, || {
            let held = self.held()?;
            ensure!(held.is_empty(), "addresses are still held: {held:?}");
            let links = self.exec(&["ip", "-o", "link", "show"])?;
            let of_pod = |line: &&str| line.contains(": veth") || line.contains(": bwp");
            let links: Vec<&str> = links.lines().filter(of_pod).collect();
            ensure!(links.is_empty(), "links are left: {links:?}");
            let rules = self.exec(&["nft", "list", "ruleset"])?;
            // Objects that are made once for the whole subnet stay.
            let of_pod = |line: &&str| {
                line.replace("10.244.1.0/24", "").contains("10.244.1.") || line.contains("1808")
            };
            let of_pods: Vec<&str> = rules.lines().filter(of_pod).collect();
            ensure!(of_pods.is_empty(), "rules are left: {of_pods:?}");
            let state = self.host.path("/var/lib/cni/flannel");
            let stored = fs::read_dir(&state).map_or(0, Iterator::count);
            ensure!(stored == 0, "{stored} files are left in {}", state.display());
            let dead = self.exec(&["ps", "-eo", "stat=,comm="])?;
            let ours = ["flannel", "bridge", "host-local", "portmap", "loopback", "cni-"];
            let dead: Vec<&str> = (dead.lines().filter(|line| line.starts_with('Z')))
                .filter(|line| ours.iter().any(|name| line.contains(name)))
                .collect();
            ensure!(dead.is_empty(), "dead processes that nobody reaps: {dead:?}");
            Ok(())
        })
        .map(drop)
    }
}

/// Everything on the node ends with its first process; then its cgroups are empty and go as well.
impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid.parse() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = eventually(PATIENCE, || {
            for line in cgroups()?.lines() {
                let hierarchy = line.split_whitespace().nth(1).context("a mount has a place")?;
                remove(&Path::new(hierarchy).join(format!("node-{}", self.pid)))?;
            }
            Ok(())
        });
    }
}

/// Removes a cgroup with those below it.
fn remove(cgroup: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(cgroup)?)
}

/// What the web server answers there.
pub(crate) fn page(at: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The machine's cgroup hierarchies, as lines of /proc/mounts, to mount on the node, whose /sys is another
/// one.
fn cgroups() -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let is_one = |line: &&str| matches!(line.split_whitespace().nth(2), Some("cgroup" | "cgroup2"));
    Ok(mounts.lines().filter(is_one).map(|line| format!("{line}\n")).collect())
}
