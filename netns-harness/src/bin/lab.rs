//! Labs that stay until they are taken down: hosts in network namespaces, with daemons and pods.
#![allow(clippy::disallowed_methods, reason = "a lab waits for other programs")]

use std::fs::File;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use netns_harness::caps::{Caps, Need};
use netns_harness::flannel::{Backend, Products, StoreKind};
use netns_harness::{Cluster, Family, Lab, Screen, Spec, SpecFile, enter, rundir};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

/// Makes and keeps clusters of virtual hosts on this machine.
#[derive(Debug, Parser)]
#[command(name = "lab")]
struct Flags {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a lab that stays
    Up(Wanted),
    /// Shows the labs that are up, with their hosts and pods
    List,
    /// Runs a command on a host (h0) or in a pod (h0-pod)
    Exec {
        /// The host or pod; LAB/HOST when several labs are up
        host: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Opens a shell on a host or in a pod
    Shell {
        /// The host or pod; LAB/HOST when several labs are up
        host: String,
    },
    /// Ends a lab and everything in it
    Down {
        /// Which one; not needed when only one is up
        name: Option<String>,
    },
    /// Holds a lab; started by `up`
    #[command(hide = true)]
    Keep(Wanted),
}

#[derive(Debug, Args)]
struct Wanted {
    /// A JSON file with any of: hosts, backend, store, family, network (keys of net-conf)
    file: Option<String>,
    /// How many virtual hosts
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "N")]
    hosts: Option<u16>,
    /// How packets travel between hosts: vxlan or host-gw
    #[arg(long)]
    backend: Option<Backend>,
    /// Where leases are kept: embedded or etcd
    #[arg(long)]
    store: Option<StoreKind>,
    /// Address families: v4, v6 or dual
    #[arg(long)]
    family: Option<Family>,
    /// The lab's name
    #[arg(long, default_value = "lab")]
    name: String,
}

impl Wanted {
    /// Defaults, then the file, then flags.
    fn spec(&self) -> Result<Spec> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(plain) {
            bail!("--name={:?}: 1 to 32 letters, digits and hyphens", self.name);
        }
        let file = self.file.as_deref().map(SpecFile::read).transpose()?.unwrap_or_default();
        let spec = file.spec()?;
        Ok(Spec {
            hosts: self.hosts.map_or(spec.hosts, usize::from),
            backend: self.backend.unwrap_or(spec.backend),
            store: self.store.unwrap_or(spec.store),
            family: self.family.unwrap_or(spec.family),
            network: spec.network,
            flags: spec.flags,
            name: Some(self.name.clone()),
        })
    }
}

fn main() -> ExitCode {
    let screen = Screen::new();
    let done = match Flags::parse().verb {
        // The keeper has already printed the error.
        Verb::Up(wanted) => match up(&wanted) {
            Ok(false) => return ExitCode::FAILURE,
            is_up => is_up.map(drop),
        },
        Verb::List => list(screen),
        Verb::Exec { host, command } => exec(&host, &command),
        Verb::Shell { host } => {
            exec(&host, &[std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned())])
        }
        Verb::Down { name } => Lab::find(name.as_deref()).and_then(|lab| lab.down()),
        Verb::Keep(wanted) => keep(&wanted, screen),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.say(&format!("lab: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts the keeper and waits until its lab is up; false when the keeper ended instead.
fn up(wanted: &Wanted) -> Result<bool> {
    wanted.spec()?;
    let mut args = std::env::args_os().skip(1);
    args.find(|arg| arg == "up");
    let mut keeper = Command::new(std::env::current_exe()?).arg("keep").args(args).spawn()?;
    loop {
        if keeper.try_wait()?.is_some() {
            return Ok(false);
        }
        if Lab::all().iter().any(|lab| u32::try_from(lab.pid) == Ok(keeper.id())) {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn keep(wanted: &Wanted, screen: Screen) -> Result<()> {
    let spec = wanted.spec()?;
    let products = Products::find()?;
    enter()?;
    let cluster = screen.step(&format!("lab {}: {} hosts", wanted.name, spec.hosts), || {
        Caps::probe().require(&[Need::Namespaces, Need::Sysctl, Need::Veth, Need::Bridge, Need::NfTables])?;
        Cluster::up(&spec, &products)
    })?;
    let lab = Lab::of(&cluster, &wanted.name);
    describe(&lab, screen);
    screen.say("");
    screen.say("lab exec h0-pod -- ping ADDRESS    lab shell h0    lab list    lab down");
    detach(&wanted.name)?;
    lab.publish()?;
    // `down` ends this process by a signal.
    loop {
        thread::park();
    }
}

/// Leaves the terminal. Later output goes to a file beside the lab's description.
fn detach(name: &str) -> Result<()> {
    let log = File::create(rundir::named(name).join(rundir::LAB_LOG))?;
    setsid().context("cannot leave the terminal")?;
    dup2_stdin(File::open("/dev/null")?)?;
    dup2_stdout(&log)?;
    dup2_stderr(&log)?;
    Ok(())
}

fn list(screen: Screen) -> Result<()> {
    let labs = Lab::all();
    if labs.is_empty() {
        screen.say("no lab is up");
    }
    for lab in labs {
        describe(&lab, screen);
    }
    Ok(())
}

fn describe(lab: &Lab, screen: Screen) {
    let user = if lab.rootless { ", rootless" } else { "" };
    screen.say(&format!("{}  {}{user}, keeper {}", screen.strong(&lab.name), lab.about, lab.pid));
    for place in &lab.places {
        screen.say(&format!("  {:12} {}", place.name, place.addresses.join(" ")));
    }
}

fn exec(host: &str, command: &[String]) -> Result<()> {
    let (lab, host) = match host.split_once('/') {
        Some((lab, host)) => (Some(lab), host),
        None => (None, host),
    };
    Lab::find(lab)?.exec(host, command)
}
