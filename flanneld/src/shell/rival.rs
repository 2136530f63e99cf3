//! Programs that may be at work on the same kernel objects as we: a Go flannel on the host or in a pod, the one that is built
//! into k3s, or one of ours that sees another `/run`. Ours with the same `/run` are found by their
//! [lock](crate::serve::socket).
//!
//! A process counts when it is root's (or our own user's), runs in our network namespace, and its executable is
//!
//! - a `flanneld` with our etcd prefix, or with leases in Kubernetes. A network in Kubernetes has no name to compare, and its
//!   devices have the names of ours, so it counts.
//! - a k3s without a flag or configuration that turns its flannel off.
//!
//! The kernel shows the executable and the environment of a process only to readers with all its capabilities. The shipped unit
//! has few, so it can't read those of a root's process with more. Then the name in the command line counts as its executable,
//! and the message says that this is in doubt.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use subnet_lease::NetworkId;
use tokio::io::unix::AsyncFd;

use crate::cli::{self, Command, Given};
use crate::config::{Environment, RawConfig, clean_prefix};

/// How much of a file in /proc is read, in bytes, and how many arguments: any user can put anything there. Ours; flannel's own
/// command lines are far below.
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
    /// Its executable can't be read: it may be another program of that name.
    pub(crate) in_doubt: bool,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} (pid {pid})", self.what),
            None => write!(f, "{} (its pid can't be seen from here)", self.what),
        }
    }
}

/// The file that a process executes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Executable {
    /// Its name.
    Known(String),
    /// We may not know.
    Hidden,
}

/// What is read of a process.
#[derive(Debug)]
struct Process {
    executable: Executable,
    arguments: Vec<String>,
    environment: Environment,
    /// Of a k3s: whether its agent has a configuration for flannel; none where no agent was ever.
    agent_has_flannel: Option<bool>,
}

/// The first program that conflicts with a daemon of this network; `daemons` is our folder of locks.
pub(crate) fn find(network: &NetworkId, daemons: &Path) -> Option<Rival> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // A child that is about to execute another program looks like its parent. The parent is named.
    pids.sort_unstable();
    pids.into_iter().find_map(|pid| look(pid, network, daemons))
}

/// The settings of a daemon that runs, and what is wrong with its settings file. The kernel decides whether we may read them.
pub(crate) fn settings(pid: u32) -> io::Result<(RawConfig, Option<String>)> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let file = dir.join("environ");
    // A refusal is an error here; what is read below is then empty.
    bounded(&file)?;
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let process = Process::without_environment(&dir).ok_or_else(gone)?.with_environment(&dir);
    let given = flags(process.arguments.get(1..).unwrap_or_default()).unwrap_or_default();
    let (raw, wrong) = RawConfig::gather_of_process(&given, &process.environment);
    Ok((raw, (!wrong.is_empty()).then(|| wrong.join("; "))))
}

impl Rival {
    /// A daemon of ours, which holds the lock.
    pub(crate) fn of_ours(pid: Option<u32>, network: &NetworkId) -> Self {
        let what = format!("flanneld of network {network}");
        let stop = pid.map_or_else(
            || "where it was started".to_owned(),
            |pid| way_to_stop(false, pid, Path::new(&format!("/proc/{pid}"))),
        );
        Self { pid, what, stop, in_doubt: false }
    }

    /// Completes when it has ended. The caller must look again, since its number may be another process's by then.
    pub(crate) async fn gone(&self, network: &NetworkId, daemons: &Path) -> io::Result<()> {
        let Some(pid) = self.pid else { return Ok(()) };
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        let process = match pidfd_open(number, PidfdFlags::NONBLOCK) {
            Ok(process) => pollable(process)?,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // It ended, and its number went to another, before we held it.
        if look(pid, network, daemons).is_none() {
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

fn look(pid: u32, network: &NetworkId, daemons: &Path) -> Option<Rival> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    if pid == std::process::id() || !is_of_root_or_us(&dir) || !shares_our_network(&dir) {
        return None;
    }
    // Another one of this very program that sees our folder holds its lock, or is about to find ours.
    let inside = dir.join("root").join(daemons.strip_prefix("/").unwrap_or(daemons));
    if same(&dir.join("exe"), Path::new("/proc/self/exe")) && same(&inside, daemons) {
        return None;
    }
    let process = Process::read(&dir)?;
    let what = process.rivals(network)?;
    let in_doubt = process.executable == Executable::Hidden;
    Some(Rival { pid: Some(pid), stop: way_to_stop(process.is_k3s(), pid, &dir), what, in_doubt })
}

/// Whether both are there and the same file.
fn same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

/// By the effective user in our user namespace: root of another one is an ordinary user here.
fn is_of_root_or_us(dir: &Path) -> bool {
    let status = bounded(&dir.join("status")).unwrap_or_default();
    let user =
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok());
    user.is_some_and(|user: u32| user == 0 || user == geteuid().as_raw())
}

/// Each network namespace has files of its own below `net`, which any process may compare. `ns/net` needs more rights.
fn shares_our_network(dir: &Path) -> bool {
    same(&dir.join("net/dev"), Path::new("/proc/thread-self/net/dev"))
}

impl Process {
    /// None for a zombie and for a thread of the kernel, which have no command line, and for other programs.
    fn read(dir: &Path) -> Option<Self> {
        let process = Self::without_environment(dir)?;
        if process.is_flanneld() {
            return Some(process.with_environment(dir));
        }
        if !process.is_k3s() {
            return None;
        }
        // Where its files can't be seen they are most likely the same as ours.
        let root = dir.join("root");
        let root = if root.join("proc").exists() { root } else { PathBuf::from("/") };
        let agent = root.join("var/lib/rancher/k3s/agent");
        let agent_has_flannel = agent.exists().then(|| agent.join("etc/flannel/net-conf.json").exists());
        Some(Self { agent_has_flannel, ..process })
    }

    /// None where there is no such process any more, and for a thread of the kernel, which has no executable.
    fn without_environment(dir: &Path) -> Option<Self> {
        let executable = match fs::read_link(dir.join("exe")) {
            Ok(path) => Executable::Known(base(&path.to_string_lossy()).to_owned()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Executable::Hidden,
            Err(_) => return None,
        };
        let mut arguments = words(&dir.join("cmdline"));
        arguments.truncate(ARGUMENTS_MAX);
        Some(Self { executable, arguments, environment: Environment::new(), agent_has_flannel: None })
    }

    fn with_environment(self, dir: &Path) -> Self {
        let entry =
            |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let environment = words(&dir.join("environ")).into_iter().filter_map(entry).collect();
        Self { environment, ..self }
    }

    /// Whether the executable has a name that fits, or what can't be read was called by one.
    fn is_called(&self, fits: impl Fn(&str) -> bool) -> bool {
        let Some(first) = self.arguments.first() else { return false };
        let called = first.split_whitespace().next().map(base).unwrap_or_default();
        match &self.executable {
            Executable::Known(name) => fits(name),
            Executable::Hidden => fits(called),
        }
    }

    /// A script of that name is none; nor is our own program as flannelctl.
    fn is_flanneld(&self) -> bool {
        let control = self.arguments.first().is_some_and(|first| base(first) == "flannelctl");
        !control && self.is_called(|name| name == "flanneld" || name.starts_with("flanneld-"))
    }

    /// k3s replaces its command line by the program and one word, to hide secrets.
    fn is_k3s(&self) -> bool {
        let mut words = self.arguments.iter().flat_map(|word| word.split_whitespace());
        let called = words.next().map(base).unwrap_or_default();
        let role = words.next().unwrap_or_default();
        let serves = matches!(role, "server" | "agent") || matches!(called, "k3s-server" | "k3s-agent");
        serves && self.is_called(|name| matches!(name, "k3s" | "k3s-server" | "k3s-agent"))
    }

    /// What it is, if it conflicts with a daemon of this network.
    fn rivals(&self, network: &NetworkId) -> Option<String> {
        if self.is_flanneld() { self.flanneld(network) } else { self.k3s() }
    }

    fn flanneld(&self, network: &NetworkId) -> Option<String> {
        let given = flags(self.arguments.get(1..).unwrap_or_default())?;
        let raw = RawConfig::gather_without_file(&given, &self.environment);
        // flannel has no settings file: this is one of ours, whose network is known from its socket only.
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
}

fn way_to_stop(is_k3s: bool, pid: u32, dir: &Path) -> String {
    let groups = bounded(&dir.join("cgroup")).unwrap_or_default();
    let group = groups.lines().next_back().unwrap_or_default();
    let plain = |unit: &&str| unit.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@:".contains(c));
    let unit = group.rsplit('/').next().filter(|unit| unit.ends_with(".service")).filter(plain);
    match unit {
        _ if is_k3s => "start k3s with --flannel-backend=none".to_owned(),
        _ if group.contains("kubepods") => "delete the DaemonSet that its pod belongs to".to_owned(),
        Some(unit) => format!("systemctl stop {unit}"),
        None => format!("kill {pid}"),
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

    /// A process whose executable has the name by which it was called.
    fn process(line: &str, variables: &[(&str, &str)]) -> Process {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let executable = Executable::Known(base(&arguments[0]).to_owned());
        let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Process { executable, arguments, environment, agent_has_flannel: None }
    }

    fn executing(name: &str, line: &str) -> Process {
        Process { executable: Executable::Known(name.to_owned()), ..process(line, &[]) }
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
    }

    #[test]
    fn the_executable_decides_and_where_it_is_hidden_the_name() {
        assert!(
            !executing("sleep", "flanneld --ip-masq").is_flanneld(),
            "any user's process can be called so"
        );
        assert!(!executing("sh", "/bin/sh /bin/flanneld").is_flanneld(), "a script");
        assert!(executing("flanneld", "network").is_flanneld(), "renamed");
        assert!(!executing("flanneld", "flannelctl status").is_flanneld());
        assert!(!executing("sleep", "k3s-server infinity").is_k3s());
        let hidden = |line| Process { executable: Executable::Hidden, ..process(line, &[]) };
        assert!(hidden("/opt/bin/flanneld --ip-masq").is_flanneld());
        assert!(hidden("/usr/local/bin/k3s server").is_k3s());
        assert!(!hidden("vi flanneld").is_flanneld());
        assert!(!Process { arguments: Vec::new(), ..hidden("flanneld") }.is_flanneld(), "a zombie");
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
            ..executing("k3s", "k3s")
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
