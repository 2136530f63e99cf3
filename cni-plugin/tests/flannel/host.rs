//! A host for one test: network namespaces without names, which go with their last file, and a folder.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use backends::netlink::link::{AddressView, IFF_UP, LinkView, dump_addresses, dump_links};
use backends::netlink::route::{RouteView, dump_routes};
use backends::netlink::{AF_INET, AF_INET6, Socket};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

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

    /// Its links as `name mtu`, in the order of their making, the loopback apart.
    pub(crate) fn links(&self) -> Vec<String> {
        self.run(|| {
            let mut links = Vec::new();
            let mut socket = Socket::route().unwrap();
            let read = |message: backends::netlink::RawMessage<'_>| {
                links.extend(LinkView::parse(&message).map(|l| format!("{} {}", l.name, l.mtu)));
            };
            socket.dump(&mut dump_links(None), read).unwrap();
            links.retain(|link| !link.starts_with("lo "));
            links
        })
    }

    /// Whether a link is set up.
    pub(crate) fn is_up(&self, name: &str) -> bool {
        self.run(|| {
            let mut up = false;
            let mut socket = Socket::route().unwrap();
            let read = |message: backends::netlink::RawMessage<'_>| {
                up |=
                    LinkView::parse(&message).is_ok_and(|l| l.name.as_str() == name && l.flags & IFF_UP != 0);
            };
            socket.dump(&mut dump_links(None), read).unwrap();
            up
        })
    }

    /// Addresses that are not of the link alone, sorted.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.run(|| {
            let mut found = Vec::new();
            let mut socket = Socket::route().unwrap();
            socket
                .dump(&mut dump_addresses(0), |message| {
                    let view =
                        AddressView::parse(&message).ok().filter(|a| !a.net.to_string().starts_with("fe80"));
                    found.extend(view.map(|a| a.net.to_string()));
                })
                .unwrap();
            found.sort();
            found
        })
    }

    /// Routes through a gateway as `destination via gateway`, sorted.
    pub(crate) fn routes(&self) -> Vec<String> {
        self.run(|| {
            let mut found = Vec::new();
            let mut socket = Socket::route().unwrap();
            for family in [AF_INET, AF_INET6] {
                let read = |message: backends::netlink::RawMessage<'_>| {
                    RouteView::parse(&message, |r| {
                        found.extend(r.gateway.map(|via| format!("{} via {via}", r.dst)))
                    })
                    .unwrap();
                };
                socket.dump(&mut dump_routes(family), read).unwrap();
            }
            found.sort();
            found
        })
    }
}

/// A host with the daemon's file.
pub(crate) struct Host {
    pub(crate) net: Namespace,
    folder: PathBuf,
}

/// An answer of the plugin.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) well: bool,
    /// `null` when nothing was printed.
    pub(crate) document: Value,
}

impl Answer {
    /// The error code of one that went wrong.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.well, "{}", self.document);
        self.document["code"].as_u64().unwrap()
    }

    /// The sentence of one that went wrong.
    pub(crate) fn msg(&self) -> &str {
        self.document["msg"].as_str().unwrap()
    }
}

pub(crate) const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fc00:42::/56\n\
                        FLANNEL_IPV6_SUBNET=fc00:42:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
pub(crate) const TINY: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/30\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

impl Host {
    /// With this subnet.env.
    pub(crate) fn new(env: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("selvage-flannel-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("subnet.env"), env).unwrap();
        Self { net: Namespace::new(), folder }
    }

    /// The usual configuration, with all files in this host's folder.
    pub(crate) fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "subnetFile": self.folder.join("subnet.env"), "dataDir": self.folder.join("state"),
            "subnetFileWait": 0, "ipam": { "dataDir": self.folder.join("networks"), "indexDir": self.folder.join("index") },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The reserved addresses, sorted.
    pub(crate) fn reserved(&self) -> Vec<String> {
        let mut names = names(&self.path("networks/cbr0"));
        names.retain(|name| name != "lock" && !name.starts_with("last_reserved_ip."));
        names
    }

    /// The stored configurations, sorted.
    pub(crate) fn stored(&self) -> Vec<String> {
        names(&self.path("state"))
    }

    /// Calls the plugin for interface `eth0`.
    pub(crate) fn call(&self, verb: &str, container: &str, netns: &str, conf: &Value) -> Answer {
        self.call_with(verb, &[("CNI_CONTAINERID", container), ("CNI_NETNS", netns)], &conf.to_string())
    }

    /// Calls it with these variables and this input.
    pub(crate) fn call_with(&self, verb: &str, variables: &[(&str, &str)], input: &str) -> Answer {
        self.call_as("flannel", verb, variables, input)
    }

    /// The plugin of this name with these variables, ready to be started.
    pub(crate) fn command(&self, name: &str, verb: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cni-plugin"));
        command.arg0(name).env_clear().envs([("CNI_COMMAND", verb), ("CNI_IFNAME", "eth0")]);
        command.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// Calls the plugin of this name.
    pub(crate) fn call_as(&self, name: &str, verb: &str, variables: &[(&str, &str)], input: &str) -> Answer {
        let mut command = self.command(name, verb, variables);
        let output = self.net.run(|| {
            let mut child = command.spawn().unwrap();
            // It may answer without having read all.
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
            child.wait_with_output().unwrap()
        });
        let text = String::from_utf8(output.stdout).unwrap();
        let document = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Answer { well: output.status.success(), document }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
