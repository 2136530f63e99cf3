//! `flannelctl cni`: installs the CNI plugin and its configuration where a runtime looks for them, and removes them; sets the
//! MTU of running pods.
//!
//! ```text
//!   <bin>/selvage-cni                  the program             temporary file, sync, rename: a call meanwhile runs
//!   <bin>/flannel, …  ─▶ selvage-cni   one link for each name  the old program or the new one, whole
//!   <conf>/10-flannel.conflist         last: from now on the runtime uses it
//! ```
//!
//! A foreign `flannel` or conflist that ours replaces stays beside as `….before-selvage`, and comes back with
//! `uninstall`. A foreign program of another name is left alone, and named.

mod mtu;
mod runtime;
mod writer;

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::json;

use self::mtu::Mtu;
use self::runtime::{Folders, Runtime};
use self::writer::Writer;
use super::Answer;
use crate::config::NodeConfig;
use crate::exit::{Exit, Failure};
use crate::host::conflists::{CONFLIST, before};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Install the plugin and its configuration for a runtime; again to update them.
    Install(Install),
    /// Remove what `install` put there, and restore what was there before.
    Uninstall(Uninstall),
    /// Set the MTU of running pods to that of new ones.
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
    /// Print what would be done. Nothing is changed.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Uninstall {
    #[command(flatten)]
    target: Target,
    /// Print what would be done. Nothing is changed.
    #[arg(long)]
    dry_run: bool,
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
/// The name that is ours: a foreign program of this name is replaced and kept beside it.
const OWN: &str = "flannel";
/// Further names of the program, where no foreign program has them.
const OTHERS: [&str; 7] = ["bridge", "host-local", "portmap", "bandwidth", "firewall", "loopback", "tuning"];
const SHIPPED: &str = include_str!("../../../dist/10-flannel.conflist");

pub(super) fn run(verb: Verb, config: &NodeConfig) -> Result<Answer, Failure> {
    match verb {
        Verb::Install(arguments) => install(&arguments),
        Verb::Uninstall(Uninstall { target, dry_run }) => uninstall(&target.folders(), dry_run),
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

/// What was done to each path, or would be.
#[derive(Default)]
struct Steps(Vec<(PathBuf, &'static str)>);

impl Steps {
    fn note(&mut self, path: PathBuf, done: io::Result<Option<&'static str>>) -> Result<(), Failure> {
        let what = done.map_err(|error| Failure::of(&path, &error))?;
        self.0.extend(what.map(|what| (path, what)));
        Ok(())
    }

    /// The same lines for a dry run and a real one.
    fn answer(&self, dry_run: bool, warning: &str, nothing: &str) -> Answer {
        let json =
            |(path, what): &(PathBuf, &str)| json!({ "path": path.display().to_string(), "done": what });
        let steps: Vec<_> = self.0.iter().map(json).collect();
        let mut text: String =
            self.0.iter().map(|(path, what)| format!("{}: {what}\n", path.display())).collect();
        text.push_str(warning);
        if text.is_empty() {
            text = format!("{nothing}\n");
        }
        Answer::new(json!({ "dry_run": dry_run, "steps": steps, "warning": warning.trim_end() })).text(text)
    }
}

fn install(arguments: &Install) -> Result<Answer, Failure> {
    let (folders, dry_run) = (arguments.target.folders(), arguments.dry_run);
    let plugin = arguments.plugin.clone().map_or_else(beside_us, Ok)?;
    let program = read(&plugin)?;
    let conflist = arguments.conflist.as_deref().map_or_else(|| Ok(SHIPPED.as_bytes().to_vec()), read)?;
    check(&conflist)?;
    for folder in [&folders.bin, &folders.conf].into_iter().filter(|_| !dry_run) {
        fs::create_dir_all(folder).map_err(|error| Failure::of(folder, &error))?;
    }
    let mut steps = Steps::default();
    // What is there before the first time is somebody else's; later it is ours.
    let first = fs::read_link(folders.bin.join(OWN)).map_or(true, |to| to != Path::new(PROGRAM));
    let writer = Writer { dry_run };
    let path = folders.bin.join(PROGRAM);
    let done = writer.put_file(&path, &program, 0o755, false);
    steps.note(path, done)?;
    for name in std::iter::once(&OWN).chain(&OTHERS) {
        let path = folders.bin.join(name);
        let done = writer.put_link(&path, PROGRAM, *name == OWN);
        steps.note(path, done)?;
    }
    let path = folders.conf.join(CONFLIST);
    let done = writer.put_file(&path, &conflist, 0o644, first);
    steps.note(path, done)?;
    let warning = match arguments.target.runtime.takes_first() {
        true => before(&folders.conf).map(|warning| format!("warning: {warning}\n")).unwrap_or_default(),
        false => String::new(),
    };
    Ok(steps.answer(dry_run, &warning, "everything is in place already"))
}

fn uninstall(folders: &Folders, dry_run: bool) -> Result<Answer, Failure> {
    let (mut steps, writer) = (Steps::default(), Writer { dry_run });
    // The configuration first: no call is made for a program that is not there any more.
    let mut paths = vec![(folders.conf.join(CONFLIST), true)];
    paths.extend(std::iter::once(&OWN).chain(&OTHERS).map(|name| (folders.bin.join(name), false)));
    paths.push((folders.bin.join(PROGRAM), true));
    for (path, is_file) in paths {
        let done = writer.take_away(&path, if is_file { None } else { Some(PROGRAM) });
        steps.note(path, done)?;
    }
    Ok(steps.answer(dry_run, "", "nothing of ours is there"))
}

/// Checks for a list of plugins with a name. The plugin checks the rest.
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
    let bytes = fs::read(path).map_err(|error| Failure::of(path, &error))?;
    if bytes.is_empty() {
        return Err(Failure::new(Exit::Failed, format!("{} is empty", path.display())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
