//! Programs that may be at work on the same kernel objects as we: a Go flannel on the host or in a pod, or the one that
//! is built into k3s. Ours are found by their [socket](crate::serve::socket).
//!
//! A process counts when it runs in our network namespace and is
//!
//! - a `flanneld` with our etcd prefix, or with leases in Kubernetes. That one's network has no name to compare, and its
//!   devices are called as ours are: in doubt it is one.
//! - a k3s that does not say that it runs no flannel.
//!
//! What can't be read is left out: a process of a hidden namespace can't be found.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use subnet_lease::NetworkId;
use tokio::io::unix::AsyncFd;

use crate::cli::{self, Command, Given};
use crate::config::{Environment, RawConfig, clean_prefix};

/// How much is read of a file in /proc, in bytes, and how many arguments are looked at: whoever runs a process chooses
/// what is in there. Ours; flannel's own command lines are far below.
const READ_MAX: u64 = 64 << 10;
const ARGUMENTS_MAX: usize = 256;

/// A program that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rival {
    /// Its process id; none when it runs in a process namespace that we don't see.
    pub(crate) pid: Option<u32>,
    /// What it is, in words.
    pub(crate) what: String,
    /// How an operator ends it.
    pub(crate) stop: String,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} (pid {pid})", self.what),
            None => write!(f, "{} (its pid can't be seen from here)", self.what),
        }
    }
}

/// What is read of a process.
#[derive(Debug, Default)]
struct Process {
    /// The name of what was executed, cut at 15 bytes.
    comm: String,
    /// The file's name, where it may be read.
    exe: String,
    arguments: Vec<String>,
    environment: Environment,
    /// Of a k3s: whether its agent has a configuration for flannel; none where no agent was ever.
    agent_has_flannel: Option<bool>,
}

/// The first program that is in the way of a daemon of this network.
pub(crate) fn find(network: &NetworkId) -> Option<Rival> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // A child that is about to become another program looks like its parent, which is the one to name.
    pids.sort_unstable();
    pids.into_iter().find_map(|pid| look(pid, network))
}

/// The settings of a daemon that runs, and what is wrong with its settings file. The kernel decides whether we may read them.
pub(crate) fn settings(pid: u32) -> io::Result<(RawConfig, Option<String>)> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let file = dir.join("environ");
    // A refusal is an error here; what is read below is then empty.
    bounded(&file)?;
    let process = Process::without_environment(&dir).with_environment(&dir);
    let given = flags(process.arguments.get(1..).unwrap_or_default()).unwrap_or_default();
    let (raw, wrong) = RawConfig::gather_of_process(&given, &process.environment);
    Ok((raw, (!wrong.is_empty()).then(|| wrong.join("; "))))
}

impl Rival {
    /// A daemon of ours, which holds the socket.
    pub(crate) fn of_ours(pid: Option<u32>, network: &NetworkId) -> Self {
        let what = format!("flanneld of network {network}");
        let Some(number) = pid else { return Self { pid, what, stop: "where it was started".to_owned() } };
        Self {
            pid,
            what,
            stop: Process::default().way_to_stop(number, Path::new(&format!("/proc/{number}"))),
        }
    }

    /// Completes when it has ended; what it is then must be looked at again, since its number may be another's.
    pub(crate) async fn gone(&self, network: &NetworkId) -> io::Result<()> {
        let Some(pid) = self.pid else { return Ok(()) };
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let process = match pidfd_open(number, PidfdFlags::NONBLOCK) {
            Ok(process) => pollable(process)?,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // It ended, and its number went to another, before we held it.
        if look(pid, network).is_none() {
            return Ok(());
        }
        process.readable().await.map(drop)
    }
}

#[allow(
    deprecated,
    reason = "its successor is unsafe; the descriptor is the process's own for as long as both live"
)]
fn pollable(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(process)
}

fn look(pid: u32, network: &NetworkId) -> Option<Rival> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let same = |file: &str, ours: &str| {
        let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        identity(&dir.join(file)).is_some_and(|theirs| Some(theirs) == identity(Path::new(ours)))
    };
    // Another one of this very program answers at the socket, or is about to find ours.
    if pid == std::process::id()
        || !same("ns/net", "/proc/thread-self/ns/net")
        || same("exe", "/proc/self/exe")
    {
        return None;
    }
    let process = Process::read(&dir)?;
    let what = process.rivals(network)?;
    Some(Rival { pid: Some(pid), stop: process.way_to_stop(pid, &dir), what })
}

impl Process {
    /// None for a zombie and for a thread of the kernel, which have no command line, and for programs of other names.
    fn read(dir: &Path) -> Option<Self> {
        let process = Self::without_environment(dir);
        if process.is_flanneld() {
            return Some(process.with_environment(dir));
        }
        if !process.is_k3s() {
            return None;
        }
        let agent = dir.join("root/var/lib/rancher/k3s/agent");
        let agent_has_flannel = agent.exists().then(|| agent.join("etc/flannel/net-conf.json").exists());
        Some(Self { agent_has_flannel, ..process })
    }

    fn without_environment(dir: &Path) -> Self {
        let mut arguments = words(&dir.join("cmdline"));
        arguments.truncate(ARGUMENTS_MAX);
        Self {
            comm: bounded(&dir.join("comm")).unwrap_or_default().trim_end().to_owned(),
            arguments,
            exe: fs::read_link(dir.join("exe"))
                .map(|path| base(&path.to_string_lossy()).to_owned())
                .unwrap_or_default(),
            ..Self::default()
        }
    }

    fn with_environment(self, dir: &Path) -> Self {
        let entry =
            |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = words(&dir.join("environ")).into_iter().filter_map(entry).collect();
        Self { environment, ..self }
    }

    /// By the name it was called, or by its file's. A script of that name is none; nor is flannelctl.
    fn is_flanneld(&self) -> bool {
        let is = |name: &str| name == "flanneld" || name.starts_with("flanneld-");
        let called = self.arguments.first().map(|first| base(first));
        called.is_some_and(|called| is(called) || is(&self.comm) && is(&self.exe))
    }

    /// k3s rewrites its command line to the program and one word, so that nobody reads secrets there.
    fn is_k3s(&self) -> bool {
        let mut words = self.arguments.iter().flat_map(|word| word.split_whitespace());
        let called = words.next().map(base);
        let role = words.next();
        matches!(called, Some("k3s-server" | "k3s-agent"))
            || called == Some("k3s") && matches!(role, Some("server" | "agent"))
    }

    /// What it is, if it is in the way of a daemon of this network.
    fn rivals(&self, network: &NetworkId) -> Option<String> {
        if self.is_flanneld() { self.flanneld(network) } else { self.k3s() }
    }

    fn flanneld(&self, network: &NetworkId) -> Option<String> {
        let given = flags(self.arguments.get(1..).unwrap_or_default())?;
        let raw = RawConfig::gather_without_file(&given, &self.environment);
        // flannel has no settings file: this is one of ours, whose network only its socket tells.
        if !raw.one("config").is_empty() {
            return None;
        }
        if cli::parse_bool(raw.one("kube-subnet-mgr")) == Some(true) {
            return Some("flanneld with leases in Kubernetes".to_owned());
        }
        let prefix = clean_prefix(raw.one("etcd-prefix")).ok()?;
        (prefix == network.as_str()).then(|| format!("flanneld of network {prefix}"))
    }

    fn k3s(&self) -> Option<String> {
        let none = ["--flannel-backend=none", "-flannel-backend=none", "--no-flannel"];
        let mut pairs = self.arguments.windows(2);
        let says_none = self.arguments.iter().any(|word| none.contains(&word.as_str()))
            || pairs.any(|pair| pair[0].trim_start_matches('-') == "flannel-backend" && pair[1] == "none");
        let runs = !says_none && self.agent_has_flannel.unwrap_or(true);
        runs.then(|| "k3s with its own flannel".to_owned())
    }

    fn way_to_stop(&self, pid: u32, dir: &Path) -> String {
        let groups = bounded(&dir.join("cgroup")).unwrap_or_default();
        let group = groups.lines().next_back().unwrap_or_default();
        let plain = |unit: &&str| unit.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@:".contains(c));
        let unit = group.rsplit('/').next().filter(|unit| unit.ends_with(".service")).filter(plain);
        match unit {
            _ if self.is_k3s() => "start k3s with --flannel-backend=none".to_owned(),
            _ if group.contains("kubepods") => "delete the DaemonSet that its pod belongs to".to_owned(),
            Some(unit) => format!("systemctl stop {unit}"),
            None => format!("kill {pid}"),
        }
    }
}

/// The flags of a command line up to where flannel stops reading; none when this is no daemon, or will not be one.
fn flags(arguments: &[String]) -> Option<Vec<Given>> {
    let read = |end: usize| cli::parse(&arguments[..end]).ok();
    match (0..=arguments.len()).rev().find_map(read)? {
        Command::Run(given) => Some(given),
        Command::Help | Command::Version | Command::Store(_) => None,
    }
}

/// The last part of a path; a file that was replaced is marked as deleted.
fn base(path: &str) -> &str {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

/// A file of words that end with NUL.
fn words(file: &Path) -> Vec<String> {
    let text = bounded(file).unwrap_or_default();
    let text = text.trim_end_matches('\0');
    if text.is_empty() { Vec::new() } else { text.split('\0').map(str::to_owned).collect() }
}

fn bounded(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(file)?.take(READ_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(line: &str, variables: &[(&str, &str)]) -> Process {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let comm = base(&arguments[0]).to_owned();
        let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Process { exe: comm.clone(), comm, arguments, environment, agent_has_flannel: None }
    }

    fn rivals(line: &str, variables: &[(&str, &str)]) -> bool {
        let process = process(line, variables);
        (process.is_flanneld() || process.is_k3s())
            && process.rivals(&NetworkId::new("/coreos.com/network")).is_some()
    }

    #[test]
    fn a_flanneld_of_the_same_prefix_is_in_the_way_however_it_was_said() {
        for line in [
            "/opt/bin/flanneld",
            "flanneld --iface eth1 --ip-masq",
            "/usr/bin/flanneld-amd64 -etcd-prefix /coreos.com/network/",
            "flanneld --etcd-prefix=/coreos.com//network",
            "flanneld --ip-masq false --etcd-prefix=/b",
        ] {
            assert!(rivals(line, &[]), "{line}");
        }
        assert!(!rivals("flanneld -etcd-prefix /b", &[]));
        assert!(!rivals("flanneld", &[("FLANNELD_ETCD_PREFIX", "/b")]));
        assert!(rivals("flanneld --etcd-prefix /coreos.com/network", &[("FLANNELD_ETCD_PREFIX", "/b")]));
    }

    #[test]
    fn a_flanneld_of_kubernetes_is_in_the_way_whatever_its_prefix() {
        assert!(rivals("/opt/bin/flanneld --ip-masq --kube-subnet-mgr --etcd-prefix=/b", &[]));
        assert!(rivals("/opt/bin/flanneld --etcd-prefix=/b", &[("FLANNELD_KUBE_SUBNET_MGR", "true")]));
        assert!(!rivals("/opt/bin/flanneld --kube-subnet-mgr=false --etcd-prefix=/b", &[]));
    }

    #[test]
    fn programs_that_are_no_daemon_are_not_in_the_way() {
        for line in [
            "flannelctl status",
            "flanneld store --data-dir /x",
            "flanneld --version",
            "flanneld --help",
            "/bin/sh /usr/local/bin/flanneld",
            "vi flanneld",
            "flanneld --config=/etc/selvage.json",
        ] {
            assert!(!rivals(line, &[]), "{line}");
        }
        let script = Process { comm: "flanneld".to_owned(), ..process("/bin/sh /bin/flanneld", &[]) };
        let renamed =
            Process { comm: "flanneld".to_owned(), exe: "flanneld".to_owned(), ..process("network", &[]) };
        assert!(!script.is_flanneld() && renamed.is_flanneld());
        assert!(!Process { comm: "flanneld".to_owned(), ..Process::default() }.is_flanneld(), "a zombie");
    }

    #[test]
    fn k3s_is_in_the_way_unless_its_flannel_is_known_to_be_off() {
        for line in [
            "/usr/local/bin/k3s server",
            "k3s agent --server x",
            "/x/k3s-server",
            "k3s server --flannel-backend vxlan",
        ] {
            assert!(rivals(line, &[]), "{line}");
        }
        for line in
            ["k3s server --flannel-backend=none", "k3s server --flannel-backend none", "k3s kubectl get pods"]
        {
            assert!(!rivals(line, &[]), "{line}");
        }
        // The command line as k3s rewrites it: one word with blanks.
        let titled = |agent_has_flannel| Process {
            arguments: vec!["/usr/local/bin/k3s server".to_owned()],
            agent_has_flannel,
            ..Process::default()
        };
        let network = NetworkId::new("/coreos.com/network");
        for (has, rivals) in [(None, true), (Some(true), true), (Some(false), false)] {
            assert_eq!(titled(has).is_k3s() && titled(has).rivals(&network).is_some(), rivals, "{has:?}");
        }
    }

    #[test]
    fn an_endless_command_line_is_cut() {
        let endless = vec!["--iface".to_owned(); ARGUMENTS_MAX];
        assert!(flags(&endless).is_some());
    }
}
