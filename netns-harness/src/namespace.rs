//! Network namespaces: made, named, entered by threads.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::live;
use crate::rundir::RunDir;
use crate::topology::eventually;
use crate::wire::Netlink;

const NONE: Option<&str> = None;

/// A network namespace with a name. It is gone when dropped, unless a process inside still runs.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    net: File,
    run: Arc<RunDir>,
}

impl Namespace {
    /// Makes a namespace whose loopback is up, and a file for it in the run's directory.
    pub fn create(run: &Arc<RunDir>, name: &str) -> Result<Self> {
        let file = run.inner().join("net").join(name);
        let net = within(&[run.mounts()], || -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::create_new(&file)?;
            mount(Some("/proc/thread-self/ns/net"), &file, NONE, MsFlags::MS_BIND, NONE)?;
            File::open("/proc/thread-self/ns/net")
        })?
        .with_context(|| format!("cannot make the network namespace {name}"))?;
        let space = Self { name: name.to_owned(), net, run: run.clone() };
        live::add_space(&space.net);
        space.netlink()?.set_up("lo")?;
        Ok(space)
    }

    /// The namespace of a process, made by somebody else. It may not have the name of another one of the run.
    pub fn of_process(run: &Arc<RunDir>, name: &str, pid: u32) -> Result<Self> {
        let net = File::open(format!("/proc/{pid}/ns/net"))
            .with_context(|| format!("cannot open the network namespace of the process {pid}"))?;
        Ok(Self { name: name.to_owned(), net, run: run.clone() })
    }

    /// Its name within the run.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `f` on a thread inside this namespace and returns its result. A panic inside is passed on.
    /// Sockets that `f` makes stay in the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        within(&[&self.net], f).with_context(|| format!("cannot enter the network namespace {}", self.name))
    }

    /// A routing socket inside this namespace.
    pub fn netlink(&self) -> Result<Netlink> {
        self.run(Netlink::open)?
    }

    /// Writes a file below /proc/sys/net, such as `ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| fs::write(&path, value))?.with_context(|| format!("cannot write {value} to {path}"))
    }

    /// Adds an address and waits until it is usable. An IPv6 address without duplicate detection joins its
    /// multicast group from a work queue of the kernel; a neighbour solicitation before that is repeated only
    /// after a second.
    pub fn add_address(&self, link: &str, address: IpNetwork) -> Result<()> {
        self.netlink()?.add_address(link, address)?;
        let IpAddr::V6(ip) = address.ip() else { return Ok(()) };
        // The solicited-node group of RFC 4291, as the kernel prints it.
        let [.., a, b, c] = ip.octets();
        let group = format!("ff0200000000000000000001ff{a:02x}{b:02x}{c:02x}");
        self.run(|| {
            eventually(Duration::from_secs(10), || {
                let groups = fs::read_to_string("/proc/thread-self/net/igmp6")?;
                let mut lines = groups.lines().map(str::split_whitespace);
                let joined = lines.any(|mut line| line.nth(1) == Some(link) && line.next() == Some(&group));
                if joined { Ok(()) } else { bail!("{address} on {link} has not joined its multicast group") }
            })
        })?
        .map(drop)
    }

    /// A file for `nsenter --net=FILE`, as long as this process lives.
    pub fn file(&self) -> PathBuf {
        self.run.path_for_others("net").join(&self.name)
    }

    pub(crate) fn fd(&self) -> &File {
        &self.net
    }

    pub(crate) fn run_dir(&self) -> &Arc<RunDir> {
        &self.run
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        live::remove_space(&self.net);
        let file = self.run.inner().join("net").join(&self.name);
        let _ = within(&[self.run.mounts()], || {
            let _ = umount2(&file, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(&file);
        });
    }
}

/// Runs `f` on a new thread that has entered `spaces`. The thread has its own root and working directory: the
/// kernel requires that for a mount namespace.
pub(crate) fn within<T: Send>(spaces: &[&File], f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let body = || -> io::Result<T> {
        unshare(CloneFlags::CLONE_FS)?;
        for space in spaces {
            setns(space, CloneFlags::empty())?;
        }
        Ok(f())
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

/// The link by which other processes can open one of our descriptors.
pub(crate) fn fd_for_others(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}
