//! `flannelctl cni`: puts the CNI plugin and its configuration where a runtime looks for them, and takes them away; gives
//! pods that run another MTU.
//!
//! ```text
//!   <bin>/selvage-cni                  the program            temporary file, sync, rename: whoever runs it meanwhile
//!   <bin>/flannel, …  ─▶ selvage-cni   one link for each name  runs the old one or the new one, whole
//!   <conf>/10-flannel.conflist         last: from now on the runtime uses it
//! ```
//!
//! A foreign `flannel` or conflist that ours replaces stays beside as `….before-selvage`, and comes back with
//! `uninstall`. A foreign program of another name is left alone, and named.

mod mtu;
mod place;
mod runtime;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use self::mtu::Mtu;
use self::place::{put_file, put_link, take_away};
use self::runtime::{Folders, Runtime};
use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Install the plugin and its configuration for a runtime; again to update them.
    Install(Install),
    /// Take away what `install` put there, and bring back what was there before.
    Uninstall(Target),
    /// Give the pods that run the MTU that new ones get.
    Mtu(Mtu),
}

#[derive(Debug, clap::Args)]
pub(super) struct Install {
    #[command(flatten)]
    target: Target,
    /// The program to install; otherwise `cni-plugin` beside this one.
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// The configuration to install; otherwise the one that comes with this program.
    #[arg(long, value_name = "FILE")]
    conflist: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// Whose folders to use.
    #[arg(long = "for", value_enum, value_name = "RUNTIME")]
    runtime: Runtime,
    /// Another folder for the programs.
    #[arg(long, value_name = "FOLDER")]
    bin_dir: Option<PathBuf>,
    /// Another folder for the configuration.
    #[arg(long, value_name = "FOLDER")]
    conf_dir: Option<PathBuf>,
    /// Folders are below this one: of a host that is mounted there, or of an image.
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    root: PathBuf,
}

/// The program itself; the names are links to it.
const PROGRAM: &str = "selvage-cni";
/// The name that is ours whatever stands there. The daemon's configuration asks for it.
const OWN: &str = "flannel";
/// Names under which the program serves as well, where nobody else has them.
const OTHERS: [&str; 7] = ["bridge", "host-local", "portmap", "bandwidth", "firewall", "loopback", "tuning"];
const CONFLIST: &str = "10-flannel.conflist";
const SHIPPED: &str = include_str!("../../../dist/10-flannel.conflist");

pub(super) fn run(verb: Verb, config: &NodeConfig) -> Result<String, Failure> {
    match verb {
        Verb::Install(arguments) => install(&arguments),
        Verb::Uninstall(target) => uninstall(&target.folders()),
        Verb::Mtu(arguments) => mtu::run(&arguments, config),
    }
}

impl Target {
    fn folders(&self) -> Folders {
        let mut folders = self.runtime.folders(&self.root);
        let below = |folder: &PathBuf| self.root.join(folder.strip_prefix("/").unwrap_or(folder));
        if let Some(bin) = &self.bin_dir {
            folders.bin = below(bin);
        }
        if let Some(conf) = &self.conf_dir {
            folders.conf = below(conf);
        }
        folders
    }
}

fn install(arguments: &Install) -> Result<String, Failure> {
    let folders = arguments.target.folders();
    let plugin = arguments.plugin.clone().map_or_else(beside_us, Ok)?;
    let program = read(&plugin)?;
    let conflist = arguments.conflist.as_deref().map_or_else(|| Ok(SHIPPED.as_bytes().to_vec()), read)?;
    check(&conflist)?;
    let mut said = String::new();
    for folder in [&folders.bin, &folders.conf] {
        fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    }
    let mut note = |path: &Path, done: io::Result<Option<&str>>| match done {
        Ok(Some(what)) => writeln!(said, "{}: {what}", path.display()).map_err(|e| failed(path, &e)),
        Ok(None) => Ok(()),
        Err(error) => Err(failed(path, &error)),
    };
    // What is there before the first time is somebody else's; later it is ours.
    let first = fs::read_link(folders.bin.join(OWN)).map_or(true, |to| to != Path::new(PROGRAM));
    let path = folders.bin.join(PROGRAM);
    note(&path, put_file(&path, &program, 0o755, false))?;
    let path = folders.bin.join(OWN);
    note(&path, put_link(&path, PROGRAM, true))?;
    for name in OTHERS {
        let path = folders.bin.join(name);
        note(&path, put_link(&path, PROGRAM, false))?;
    }
    let path = folders.conf.join(CONFLIST);
    note(&path, put_file(&path, &conflist, 0o644, first))?;
    said.push_str(&rivals(&folders.conf, arguments.target.runtime));
    Ok(if said.is_empty() { "everything is in place already\n".to_owned() } else { said })
}

fn uninstall(folders: &Folders) -> Result<String, Failure> {
    let mut said = String::new();
    // The configuration first: no call is made for a program that is not there any more.
    let mut paths = vec![(folders.conf.join(CONFLIST), true)];
    paths.extend([OWN].iter().chain(&OTHERS).map(|name| (folders.bin.join(name), false)));
    paths.push((folders.bin.join(PROGRAM), true));
    for (path, is_file) in paths {
        let done = take_away(&path, if is_file { None } else { Some(PROGRAM) });
        if let Some(what) = done.map_err(|error| failed(&path, &error))? {
            let _ = writeln!(said, "{}: {what}", path.display());
        }
    }
    Ok(if said.is_empty() { "nothing of ours is there\n".to_owned() } else { said })
}

/// Configurations that a runtime which takes the first by name would take before ours.
fn rivals(conf: &Path, runtime: Runtime) -> String {
    let Ok(entries) = fs::read_dir(conf) else { return String::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_conf = |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let mut first: Vec<_> = names.filter(is_conf).filter(|name| name.as_str() < CONFLIST).collect();
    first.sort();
    if first.is_empty() || !runtime.takes_first() {
        return String::new();
    }
    let (list, folder) = (first.join(", "), conf.display());
    format!(
        "warning: in {folder} {list} comes before {CONFLIST}, and the runtime takes the first: ours is not used\n"
    )
}

/// A list of plugins with a name; more is the plugin's to say.
fn check(conflist: &[u8]) -> Result<(), Failure> {
    let json: serde_json::Value = serde_json::from_slice(conflist)
        .map_err(|error| Failure::new(Exit::Invalid, format!("the configuration is no JSON: {error}")))?;
    if json["name"].is_string() && json["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty()) {
        return Ok(());
    }
    Err(Failure::new(Exit::Invalid, "the configuration has no \"name\" or no list \"plugins\""))
}

fn beside_us() -> Result<PathBuf, Failure> {
    let us = std::env::current_exe().map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(us.with_file_name("cni-plugin"))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = fs::read(path).map_err(|error| failed(path, &error))?;
    if bytes.is_empty() {
        return Err(Failure::new(Exit::Failed, format!("{} is empty", path.display())));
    }
    Ok(bytes)
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
