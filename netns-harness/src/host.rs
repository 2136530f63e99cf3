//! A virtual host: a network namespace with a name and with its own /run, /var/lib and /sys, in which
//! programs run.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{chdir, sethostname};

use crate::enter::is_rootless;
use crate::namespace::{Namespace, fd_for_others, within};
use crate::process::{Process, Program, output};
use crate::rundir::RunDir;
use crate::topology::Family;
use crate::wire::Netlink;

const NONE: Option<&str> = None;

/// A virtual host. Clones are the same host. When the last clone is dropped, the host and every process in it
/// end.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    space: Namespace,
    net: Arc<File>,
    mounts: Arc<File>,
    hostname: Arc<File>,
    addresses: Mutex<Vec<IpNetwork>>,
    processes: Mutex<Vec<Process>>,
}

impl Host {
    /// Makes a host without a wire.
    pub(crate) fn create(run: &Arc<RunDir>, name: &str) -> Result<Self> {
        let space = Namespace::create(run, name)?;
        for dir in ["run", "lib"] {
            fs::create_dir_all(run.path(name).join(dir))?;
        }
        let (mounts, hostname) =
            within(&[run.mounts(), space.fd()], || Ok((own_mounts(run, name)?, own_name(name)?)))
                .and_then(|made: io::Result<_>| made)
                .with_context(|| format!("cannot give {name} a /run and a name of its own"))?;
        Ok(Self(Arc::new(Inner {
            net: Arc::new(space.fd().try_clone()?),
            space,
            mounts: Arc::new(mounts),
            hostname: Arc::new(hostname),
            addresses: Mutex::default(),
            processes: Mutex::default(),
        })))
    }

    /// Its name within the run.
    pub fn name(&self) -> &str {
        self.0.space.name()
    }

    /// Its network namespace.
    pub fn space(&self) -> &Namespace {
        &self.0.space
    }

    /// Its addresses on the underlay, with their prefix lengths.
    pub fn addresses(&self) -> Vec<IpNetwork> {
        lock(&self.0.addresses).clone()
    }

    /// Its first underlay address of a family; the IPv4 address for [`Family::Dual`].
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let fits = |address: &&IpNetwork| address.is_ipv6() == (family == Family::V6);
        let addresses = lock(&self.0.addresses);
        let found = addresses.iter().find(fits).map(IpNetwork::ip);
        found.with_context(|| format!("{} has no address of family {family}", self.name()))
    }

    /// Adds an address to `link` and counts it as an underlay address.
    pub fn add_address(&self, link: &str, address: IpNetwork) -> Result<()> {
        self.space().add_address(link, address)?;
        lock(&self.0.addresses).push(address);
        Ok(())
    }

    /// Deletes an underlay address.
    pub fn delete_address(&self, link: &str, address: IpNetwork) -> Result<()> {
        self.netlink()?.delete_address(link, address)?;
        lock(&self.0.addresses).retain(|other| *other != address);
        Ok(())
    }

    /// Runs `f` on a thread that sees this host's network and files.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        within(&[&self.0.mounts, &self.0.net, &self.0.hostname], f)
            .with_context(|| format!("cannot enter {}", self.name()))
    }

    /// A routing socket on this host.
    pub fn netlink(&self) -> Result<Netlink> {
        self.0.space.netlink()
    }

    /// Sets a link down.
    pub fn link_down(&self, link: &str) -> Result<()> {
        self.netlink()?.set_down(link)
    }

    /// Sets a link up again.
    pub fn link_up(&self, link: &str) -> Result<()> {
        self.netlink()?.set_up(link)
    }

    /// The path, outside the host, of a file that the host has below /run or /var/lib.
    ///
    /// # Panics
    /// When `file` is anywhere else: the host shares all other files with the machine.
    pub fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        let file = file.as_ref();
        let below =
            |root: &str, dir: &str| file.strip_prefix(root).ok().map(|rest| Path::new(dir).join(rest));
        let Some(inside) = below("/run", "run").or_else(|| below("/var/lib", "lib")) else {
            panic!("{}: a host has only /run and /var/lib of its own", file.display());
        };
        self.0.space.run_dir().path(self.name()).join(inside)
    }

    /// Starts a program on this host. Its output goes to the log that [`Process::log`] reads. It runs until
    /// it is stopped or the host is dropped.
    pub fn spawn(&self, program: &Program) -> Result<Process> {
        let log = self.0.space.run_dir().path(self.name()).join(format!("{}.log", program.name()));
        let process =
            Process::spawn(program, self.spaces(), log).with_context(|| format!("on {}", self.name()))?;
        let mut processes = lock(&self.0.processes);
        processes.retain(|process| process.status().is_none());
        processes.push(process.clone());
        Ok(process)
    }

    /// Runs a program on this host to its end; any exit status is accepted.
    pub fn output(&self, program: &Program) -> Result<Output> {
        output(program, self.spaces()).with_context(|| format!("on {}", self.name()))
    }

    /// Runs a program on this host and returns its standard output. Another exit status than 0 is an error
    /// that quotes the output.
    pub fn exec(&self, program: &Program) -> Result<String> {
        let output = self.output(program)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            let message = text(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
            let message: Vec<&str> = message.trim().lines().take(12).collect();
            bail!("{} on {}: {}: {}", program.name(), self.name(), output.status, message.join("\n"));
        }
        Ok(text(&output.stdout))
    }

    /// The command that opens a shell on this host while this process lives.
    pub fn enter_command(&self) -> String {
        let pid = std::process::id();
        let user = if is_rootless() { format!("-t {pid} -U --preserve-credentials ") } else { String::new() };
        let [net, mounts, name] = [self.0.space.file(), self.mounts_file(), self.hostname_file()];
        format!("nsenter {user}-n{} -m{} -u{}", net.display(), mounts.display(), name.display())
    }

    /// The mount namespace, as other processes can open it.
    pub fn mounts_file(&self) -> PathBuf {
        fd_for_others(&self.0.mounts)
    }

    /// The namespace of the host's name, as other processes can open it.
    pub fn hostname_file(&self) -> PathBuf {
        fd_for_others(&self.0.hostname)
    }

    pub(crate) fn processes(&self) -> Vec<Process> {
        lock(&self.0.processes).clone()
    }

    /// Mounts `space` on this host under /run/netns, where container runtimes keep namespaces; returns that
    /// path.
    pub(crate) fn show_namespace(&self, space: &Namespace) -> Result<PathBuf> {
        let path = Path::new("/run/netns").join(space.name());
        let from = format!("/proc/self/fd/{}", space.fd().as_raw_fd());
        self.run(|| -> io::Result<()> {
            fs::create_dir_all("/run/netns")?;
            File::create(&path)?;
            Ok(mount(Some(from.as_str()), &path, NONE, MsFlags::MS_BIND, NONE)?)
        })?
        .with_context(|| format!("cannot show {} on {}", space.name(), self.name()))?;
        Ok(path)
    }

    /// Undoes [`Host::show_namespace`].
    pub(crate) fn hide_namespace(&self, path: &Path) -> Result<()> {
        self.run(|| {
            let _ = umount2(path, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(path);
        })
    }

    fn spaces(&self) -> Vec<Arc<File>> {
        vec![self.0.mounts.clone(), self.0.net.clone(), self.0.hostname.clone()]
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        end_all(&lock(&self.processes));
    }
}

/// Kills processes all at once, then waits for each.
pub(crate) fn end_all(processes: &[Process]) {
    for process in processes {
        process.signal(Signal::SIGKILL);
    }
    for process in processes {
        process.kill();
    }
}

/// The calling thread's new mount namespace: the machine's files, but /run, /var/lib and /sys are this host's.
fn own_mounts(run: &RunDir, name: &str) -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // The run's directory may be below /run itself: enter it before /run is covered.
    chdir(run.inner())?;
    for (own, place) in [("run", "/run"), ("lib", "/var/lib")] {
        mount(Some(&Path::new(name).join(own)), place, NONE, MsFlags::MS_BIND, NONE)?;
    }
    // Some containers refuse this. Then /sys shows the machine's links, which only people read.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), flags, NONE);
    // This directory holds the files of all other namespaces, which would live as long as this host.
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    File::open("/proc/thread-self/ns/mnt")
}

/// The calling thread's new host name, which is the default name of a node.
fn own_name(name: &str) -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWUTS)?;
    sethostname(name)?;
    File::open("/proc/thread-self/ns/uts")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
