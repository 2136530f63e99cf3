//! `flannelctl cni mtu`: sets the MTU of running pods to that of new ones. The daemon does not do so by itself: a program in a
//! pod may have measured its path, and a lower MTU breaks what is on its way.
//!
//! ```text
//!   subnet.env ─▶ MTU      links with our plugin's alias ─▶ number of the pod's namespace ─▶ its file ─▶ both ends
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use backends::IfName;
use backends::local::mounts;
use backends::netlink::link::{self, LinkView, dump_links, get_link_at};
use backends::netlink::netns::{namespace_number, read_namespace_number};
use backends::netlink::{Batch, NetlinkError, Socket};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use subnet_lease::SubnetEnv;

use crate::admin::Answer;
use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub(in crate::admin) struct Mtu {
    /// Print what would be done. Nothing is changed.
    #[arg(long)]
    dry_run: bool,
}

/// A pod's link, as its end on the host reports it.
struct Pod {
    name: IfName,
    index: u32,
    mtu: u32,
    alias: String,
    inner: u32,
    namespace: Option<u32>,
}

/// The network namespace of a pod, and the file by which it is entered.
struct PodNamespace {
    path: PathBuf,
    file: File,
}

pub(super) fn run(arguments: &Mtu, config: &NodeConfig) -> Result<Answer, Failure> {
    let env = SubnetEnv::read(&config.subnet_file).map_err(|error| Failure::new(Exit::NotReady, error))?;
    let denied = |error: NetlinkError| Failure::new(Exit::Permission, error);
    let mut socket = Socket::route().map_err(denied)?;
    let pods = pods(&mut socket).map_err(denied)?;
    let namespaces = namespaces(&mut socket);
    let (mut commands, mut failed) = (String::new(), String::new());
    for pod in &pods {
        let namespace = pod.namespace.and_then(|number| namespaces.get(&number));
        let done = match namespace {
            Some(namespace) => change(&mut socket, pod, namespace, env.mtu, arguments.dry_run),
            None => Err("its namespace is not found on this host".to_owned()),
        };
        match done {
            Ok(lines) => commands.push_str(&lines),
            Err(why) => writeln!(failed, "{} ({}): {why}", pod.name, pod.alias).unwrap_or_default(),
        }
    }
    if !failed.is_empty() {
        return Err(Failure::new(Exit::Failed, commands + failed.trim_end()));
    }
    let steps: Vec<_> = commands.lines().collect();
    let answer = Answer::new(json!({ "mtu": env.mtu, "dry_run": arguments.dry_run, "steps": steps }));
    Ok(answer.text(if commands.is_empty() {
        format!("every pod has the MTU {}\n", env.mtu)
    } else {
        commands
    }))
}

fn pods(socket: &mut Socket) -> Result<Vec<Pod>, NetlinkError> {
    let mut pods = Vec::new();
    socket.dump(&mut dump_links(Some("veth")), |message| {
        let Ok(link) = LinkView::parse(&message) else { return };
        let Some(alias) = link.alias.filter(|_| link.is_containers()) else { return };
        let (name, index, mtu) = (link.name, link.index, link.mtu);
        pods.push(Pod {
            name,
            index,
            mtu,
            alias: alias.to_owned(),
            inner: link.peer,
            namespace: link.peer_namespace,
        });
    })?;
    Ok(pods)
}

/// Network namespaces by the number that they have in ours: those that somebody mounted, and those that processes are in.
fn namespaces(socket: &mut Socket) -> BTreeMap<u32, PodNamespace> {
    let mounted = mounts::network_namespaces().unwrap_or_default();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.map(|entry| entry.path().join("ns/net"));
    let (mut seen, mut namespaces) = (HashSet::new(), BTreeMap::new());
    for path in mounted.into_iter().chain(processes) {
        let Ok(file) = File::open(&path) else { continue };
        if !file.metadata().is_ok_and(|meta| seen.insert((meta.dev(), meta.ino()))) {
            continue;
        }
        let number =
            socket.get(&mut namespace_number(file.as_fd()), |message| read_namespace_number(&message));
        if let Ok(Some(number)) = number {
            namespaces.insert(number, PodNamespace { path, file });
        }
    }
    namespaces
}

/// A word as a shell takes it.
fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "/._-:+@%".contains(c);
    if word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")).into() }
}

/// Changes both ends, first the end inside. Returns the commands that do the same; none where nothing is to be done.
fn change(
    socket: &mut Socket,
    pod: &Pod,
    namespace: &PodNamespace,
    mtu: u32,
    dry_run: bool,
) -> Result<String, String> {
    let inner = inside(namespace, |socket| {
        socket.get(&mut get_link_at(pod.inner), |message| {
            let link = LinkView::parse(&message).ok()?;
            (link.peer == pod.index).then_some((link.name, link.mtu))
        })
    })?;
    let (inner, now) = inner.ok_or("the link inside is no end of it")?;
    let mut commands = String::new();
    if now != mtu {
        let at = namespace.path.to_string_lossy();
        writeln!(commands, "nsenter --net={} ip link set {inner} mtu {mtu}  # {}", quoted(&at), pod.alias)
            .unwrap_or_default();
        if !dry_run {
            inside(namespace, |socket| socket.request(&mut to(pod.inner, mtu)))?;
        }
    }
    if pod.mtu != mtu {
        writeln!(commands, "ip link set {} mtu {mtu}", pod.name).unwrap_or_default();
        if !dry_run {
            socket.request(&mut to(pod.index, mtu)).map_err(|error| error.to_string())?;
        }
    }
    Ok(commands)
}

fn to(index: u32, mtu: u32) -> Batch {
    let mut batch = Batch::new();
    link::mtu(link::change(&mut batch, index, 0, 0), mtu);
    batch
}

/// Works with a socket of the namespace. A thread of its own enters it, because a thread that enters must also come back.
fn inside<T: Send>(
    namespace: &PodNamespace,
    work: impl FnOnce(&mut Socket) -> Result<T, NetlinkError> + Send,
) -> Result<T, String> {
    let work = || {
        setns(&namespace.file, CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
        let mut socket = Socket::route().map_err(|error| error.to_string())?;
        work(&mut socket).map_err(|error| error.to_string())
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|_| Err("a thread ended".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_to_a_shell() {
        assert_eq!(quoted("/run/netns/cni-1"), "/run/netns/cni-1");
        assert_eq!(quoted("/a b"), "'/a b'");
        assert_eq!(quoted("/it's $HOME"), r"'/it'\''s $HOME'");
    }
}
