//! Labs that stay: a keeper process holds the cluster; other processes find it by name and enter its hosts.
//!
//! ```text
//!   lab up ──▶ keeper ── holds ──▶ namespaces, daemons, pods
//!                │ writes                    ▲
//!                ▼                           │ setns
//!   selvage-NAME/lab.json ◀── reads ── lab exec, lab shell
//! ```

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::enter::is_rootless;
use crate::rundir::{LAB_FILE, PREFIX, alive, base, named};
use crate::topology::eventually;

/// What other processes need to know of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lab {
    /// Its name.
    pub name: String,
    /// The keeper's process id.
    pub pid: i32,
    /// True when its root is an ordinary user of the machine.
    pub rootless: bool,
    /// A short description.
    pub about: String,
    /// Hosts and pods.
    pub places: Vec<Place>,
    /// The environment of commands inside: the product's programs, and the flags of the lab's daemons.
    env: Vec<(String, String)>,
}

/// A host or a pod of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// `h0`, or `h0-pod`.
    pub name: String,
    /// Its addresses, for people.
    pub addresses: Vec<String>,
    net: PathBuf,
    mounts: PathBuf,
    hostname: PathBuf,
}

impl Lab {
    /// Describes a cluster of this process.
    pub fn of(cluster: &Cluster, name: &str) -> Self {
        let spec = cluster.spec();
        let hosts = cluster.net.hosts().iter().chain([cluster.net.store()]);
        let hosts = hosts.map(|host| Place {
            name: host.name().to_owned(),
            addresses: host.addresses().iter().map(|address| address.ip().to_string()).collect(),
            net: host.space().file(),
            mounts: host.mounts_file(),
            hostname: host.hostname_file(),
        });
        let pods = cluster.pods.iter().map(|pod| Place {
            name: pod.name().to_owned(),
            addresses: pod.addresses().iter().map(|address| address.ip().to_string()).collect(),
            net: pod.space().file(),
            mounts: pod.host().mounts_file(),
            hostname: pod.host().hostname_file(),
        });
        Self {
            name: name.to_owned(),
            pid: Pid::this().as_raw(),
            rootless: is_rootless(),
            about: format!("{} hosts, {}, {} store, {}", spec.hosts, spec.backend, spec.store, spec.family),
            places: hosts.chain(pods).collect(),
            env: cluster.environment(),
        }
    }

    /// Writes the description to the place that [`Lab::find`] reads. From then on the lab is up.
    pub fn publish(&self) -> Result<()> {
        let path = named(&self.name).join(LAB_FILE);
        fs::write(path.with_extension("new"), serde_json::to_string(self)?)?;
        Ok(fs::rename(path.with_extension("new"), path)?)
    }

    /// All labs of this user that are up, by name.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(base()).into_iter().flatten().flatten();
        let mut labs: Vec<Self> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
            .filter_map(|entry| Self::read(&entry.path()))
            .collect();
        labs.sort_by(|one, other| one.name.cmp(&other.name));
        labs
    }

    /// The lab of that name; without a name, the only one.
    pub fn find(name: Option<&str>) -> Result<Self> {
        let mut labs = Self::all();
        if let Some(name) = name {
            labs.retain(|lab| lab.name == name);
        }
        match (labs.pop(), labs.pop(), name) {
            (Some(lab), None, _) => Ok(lab),
            (None, _, Some(name)) => bail!("no lab is named {name:?}; `lab list` shows the labs that are up"),
            (None, _, None) => bail!("no lab is up; `lab up` makes one"),
            (Some(_), Some(_), _) => bail!("several labs are up; name one of those that `lab list` shows"),
        }
    }

    /// Ends it, and waits until everything of it is gone.
    pub fn down(&self) -> Result<()> {
        let dir = named(&self.name);
        if alive(&dir) {
            kill(Pid::from_raw(self.pid), Signal::SIGTERM)
                .with_context(|| format!("cannot end the keeper of {}", self.name))?;
        }
        let gone = || if dir.exists() { bail!("{} still exists", dir.display()) } else { Ok(()) };
        eventually(Duration::from_secs(30), gone).map(drop)
    }

    /// Replaces this process by `command` inside a host or pod; returns only on an error. Call it before any
    /// thread exists.
    pub fn exec(&self, place: &str, command: &[String]) -> Result<()> {
        let found = self.places.iter().find(|other| other.name == place);
        let found = found
            .with_context(|| format!("{} has no {place:?}; it has {}", self.name, self.place_names()))?;
        let (program, args) = command.split_first().context("no command to run")?;
        let here = std::env::current_dir();
        let open = |path: &Path| File::open(path).with_context(|| format!("the lab {} is gone", self.name));
        // All files are opened before the first namespace is entered, because paths differ inside.
        let user = open(Path::new(&format!("/proc/{}/ns/user", self.pid)))?;
        let spaces = [&found.net, &found.hostname, &found.mounts].map(|path| open(path));
        if self.rootless && !geteuid().is_root() {
            setns(user, CloneFlags::CLONE_NEWUSER).context("cannot enter the lab's user namespace")?;
        }
        for space in spaces {
            setns(space?, CloneFlags::empty()).with_context(|| format!("cannot enter {place}"))?;
        }
        if let Ok(here) = here {
            let _ = std::env::set_current_dir(here);
        }
        let error = Command::new(program).args(args).envs(self.env.clone()).env("LAB_HOST", place).exec();
        Err(error).with_context(|| format!("cannot run {program}"))
    }

    fn place_names(&self) -> String {
        self.places.iter().map(|place| place.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// A description counts only while its keeper holds the lock, and only if this user wrote it.
    fn read(dir: &Path) -> Option<Self> {
        let file = dir.join(LAB_FILE);
        let own = fs::metadata(&file).is_ok_and(|meta| meta.uid() == geteuid().as_raw());
        let text = fs::read_to_string(file).ok().filter(|_| own && alive(dir))?;
        serde_json::from_str(&text).ok()
    }
}
