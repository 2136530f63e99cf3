//! Other plugins: those of this program are called; others are run by the rules of the specification.
//!
//! ```text
//!   delegate.type, ipam.type ──▶ a row of our table ──▶ called in this process
//!                            └─▶ a file of CNI_PATH ──▶ run: configuration on stdin, one document on stdout
//! ```

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use backends::local::processes::{self, Ended, Limits};

use crate::contract::json::Object;
use crate::contract::{Attachment, Call, Code, During, Failure, Verb};
use crate::plugin::Plugin;

/// A runtime waits two minutes for the whole call; a result has a few kilobytes.
const LIMITS: Limits = Limits { time: Duration::from_secs(120), output: 4 << 20 };

/// ADD. One that fails is followed by the DEL that the specification asks for.
pub(crate) fn add(call: &Call, kind: &str) -> Result<Attachment, Failure> {
    match ours(kind) {
        Some(plugin) => (plugin.add)(call),
        None => {
            let result = execute(call, kind, Verb::Add).and_then(|document| {
                let missing = || Failure::new(Code::Decoding, format!("plugin {kind} printed no result"));
                Attachment::parse(&document.ok_or_else(missing)?)
            });
            result.inspect_err(|_| drop(execute(call, kind, Verb::Del)))
        }
    }
}

/// Any verb that has no result.
pub(crate) fn run(call: &Call, kind: &str, verb: Verb) -> Result<(), Failure> {
    let Some(plugin) = ours(kind) else { return execute(call, kind, verb).map(drop) };
    match verb {
        Verb::Add | Verb::Version => Ok(()),
        Verb::Del => (plugin.del)(call),
        Verb::Check => (plugin.check)(call),
        Verb::Status => (plugin.status)(call),
        Verb::Gc => (plugin.gc)(call),
    }
}

/// Whether this program has the plugin.
pub(crate) fn is_ours(kind: &str) -> bool {
    ours(kind).is_some()
}

fn ours(kind: &str) -> Option<&'static Plugin> {
    crate::PLUGINS.iter().find(|plugin| plugin.name == kind)
}

/// Runs the program; its document, if it printed one. It has our environment, and our standard error.
fn execute(call: &Call, kind: &str, verb: Verb) -> Result<Option<Object>, Failure> {
    let path = find(&call.path, kind)?;
    let mut command = Command::new(&path);
    command.env("CNI_COMMAND", verb.as_str());
    let ended = processes::exchange(&mut command, &call.conf.to_string(), LIMITS);
    let Ended { status, printed: output, .. } =
        ended.during(Code::Io, || format!("plugin {}", path.display()))?;
    let text = String::from_utf8_lossy(&output);
    if !status.success() {
        return Err(failure(kind, verb, &text, status));
    }
    let blank = text.trim().is_empty() || verb != Verb::Add;
    if blank { Ok(None) } else { Object::parse(&format!("the result of plugin {kind}"), &output).map(Some) }
}

/// The failure that it printed, under its name; of one that printed none, how it ended.
fn failure(kind: &str, verb: Verb, text: &str, status: ExitStatus) -> Failure {
    let verb = verb.as_str();
    let Ok(document) = Object::parse("", text.as_bytes()) else {
        return Failure::new(Code::Delegate(100), format!("{verb} of plugin {kind} failed: {status}"));
    };
    let code = document.number("code").ok().flatten().unwrap_or(100);
    let word = |key| document.text(key).ok().flatten().unwrap_or_default();
    Failure::new(Code::Delegate(code), format!("{verb} of plugin {kind} failed: {}", word("msg")))
        .details(word("details"))
}

/// The first executable file of that name in the folders of CNI_PATH.
fn find(path: &str, kind: &str) -> Result<PathBuf, Failure> {
    if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
        return Err(Failure::new(Code::Config, format!("{kind:?} is no name of a plugin")));
    }
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let folders = path.split(':').filter(|folder| !folder.is_empty());
    let mut candidates = folders.map(|folder| Path::new(folder).join(kind));
    candidates.find(|path| is_program(path)).ok_or_else(|| {
        Failure::new(Code::Config, format!("there is no plugin {kind:?} in the folders of CNI_PATH"))
            .details(format!("CNI_PATH is {path:?}; this program has {}", crate::names()))
    })
}
