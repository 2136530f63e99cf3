//! The CNI plugin: one program, and the name under which it is called says what it does.
//!
//! ```text
//!   argv[0]    ──▶ Plugin ─┐
//!   CNI_…      ──▶ Verb  ──┼──▶ one JSON document on standard output, exit status 0 or 1
//!   stdin      ──▶ conf  ──┘
//!
//!   flannel ──▶ bridge ──▶ ipam (host-local)         each usable under its own name, all in this process
//! ```
//!
//! - Nothing but that one document is ever on standard output; for people there is standard error.
//! - ADD undoes what it did when it fails. DEL succeeds when what it removes is not there.
//! - No other program is run, and nothing waits without a bound.

mod bridge;
mod cni;
mod flannel;
mod ipam;
mod json;
mod netns;
mod random;
#[cfg(test)]
mod scratch;
mod small_file;
mod sysctl;

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use cni::{Attachment, Call, Code, Failure, Verb, Version};
use json::{Json, Object, object};

/// What the program does under a name.
struct Plugin {
    name: &'static str,
    /// The reference plugin whose behaviour it matches.
    level: &'static str,
    add: fn(&Call) -> Result<Attachment, Failure>,
    del: fn(&Call) -> Result<(), Failure>,
    check: fn(&Call) -> Result<(), Failure>,
    status: fn(&Call) -> Result<(), Failure>,
}

const PLUGINS: [Plugin; 3] = [
    Plugin {
        name: "flannel",
        level: "v1.9.1",
        add: flannel::add,
        del: flannel::del,
        check: flannel::check,
        status: flannel::status,
    },
    Plugin {
        name: "bridge",
        level: "v1.9.1",
        add: |call| bridge::add(call, &call.conf),
        del: |call| bridge::del(call, &call.conf),
        check: |call| bridge::check(call, &call.conf),
        status: |call| bridge::status(call, &call.conf),
    },
    Plugin {
        name: "host-local",
        level: "v1.9.1",
        add: ipam::add,
        del: ipam::del,
        check: ipam::check,
        status: ipam::status,
    },
];

fn main() -> ExitCode {
    let program = env::args_os().next().unwrap_or_default().to_string_lossy().into_owned();
    let name = program.rsplit('/').next().unwrap_or_default();
    if name == bridge::FINISHER {
        return exit(bridge::finish(&env::args().nth(1).unwrap_or_default()));
    }
    let plugin = PLUGINS.iter().find(|plugin| plugin.name == name);
    let Some(command) = variable("CNI_COMMAND").filter(|command| !command.is_empty()) else {
        about(plugin);
        return exit(true);
    };
    match answer(plugin, name, &command) {
        Ok(document) => exit(document.is_none_or(|document| print(&document))),
        Err((failure, version)) => {
            print(&failure.document(version));
            exit(false)
        }
    }
}

/// The document of a call, or its failure with the version to report it in.
fn answer(plugin: Option<&Plugin>, name: &str, command: &str) -> Result<Option<Object>, (Failure, Version)> {
    let early = |failure| (failure, Version::NEWEST);
    let plugin = plugin.ok_or_else(|| early(unknown(name)))?;
    let verb = Verb::parse(command).map_err(early)?;
    if verb == Verb::Version {
        return Ok(Some(versions()));
    }
    let call = Call::read(verb, variable, &mut io::stdin().lock()).map_err(early)?;
    run(plugin, &call).map_err(|failure| (failure, call.version))
}

fn run(plugin: &Plugin, call: &Call) -> Result<Option<Object>, Failure> {
    match call.verb {
        Verb::Add => (plugin.add)(call)?.document(call.version).map(Some),
        Verb::Del => (plugin.del)(call).map(|()| None),
        Verb::Check => (plugin.check)(call).map(|()| None),
        Verb::Status => (plugin.status)(call).map(|()| None).map_err(Failure::into_status),
        Verb::Gc => Err(Failure::new(Code::Environment, "CNI_COMMAND GC is not supported yet")
            .details("nothing was removed; a DEL of each attachment removes all that is its own")),
        Verb::Version => Ok(Some(versions())),
    }
}

/// The same for every configuration, which therefore is not waited for.
fn versions() -> Object {
    let all: Vec<Json> = Version::ALL.into_iter().map(|version| version.as_str().into()).collect();
    object([("cniVersion", Version::NEWEST.as_str().into()), ("supportedVersions", all.into())])
}

/// For people, and for schedulers that read the first version in it.
fn about(plugin: Option<&Plugin>) {
    let own = env!("CARGO_PKG_VERSION");
    match plugin {
        Some(Plugin { name, level, .. }) => eprintln!("CNI {name} plugin {level} (selvage {own})"),
        None => eprintln!("CNI plugins {} (selvage {own}): call it by one of these names", names()),
    }
    eprintln!("CNI protocol versions supported: {}", Version::list());
}

fn unknown(name: &str) -> Failure {
    Failure::new(Code::Environment, format!("there is no plugin {name:?} in this program"))
        .details(format!("it is called by one of the names {}", names()))
}

fn names() -> String {
    PLUGINS.map(|plugin| plugin.name).join(", ")
}

/// Environment variables of other encodings cannot be valid ones of ours.
fn variable(name: &str) -> Option<String> {
    env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn print(document: &Object) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{document}").and_then(|()| out.flush()).is_ok()
}

fn exit(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
