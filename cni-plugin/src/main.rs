//! The CNI plugin: one program. The name under which it is called selects the plugin.
//!
//! ```text
//!   argv[0]    ──▶ Plugin ─┐
//!   CNI_…      ──▶ Verb  ──┼──▶ one JSON document on standard output, exit status 0 or 1
//!   stdin      ──▶ conf  ──┘
//!
//!   flannel ──▶ bridge ──▶ ipam (host-local)         each usable under its own name, all in this process
//! ```
//!
//! - Standard output gets nothing but that one document; text for people goes to standard error.
//! - ADD undoes what it did when it fails. DEL succeeds when what it removes is not there.
//! - Nothing waits without a bound, standard input apart.
//! - Other programs are run for three reasons: a configuration names a plugin that this program does not have, a
//!   configuration needs iptables, or a DEL leaves the wait for the kernel to a child (this program under another name).
//!   The first two have limits of time and output.
#![cfg_attr(not(test), no_main)]

mod contract;
#[cfg(not(test))]
mod entry;
mod plugin;
mod sys;

use std::env;
use std::io::{self, Write};

use contract::Version;
use contract::json::Object;
use plugin::{Plugin, REFERENCE, bandwidth, bridge, firewall, flannel, ipam, loopback, portmap, tuning};

/// Every name by which the program is called.
const PLUGINS: &[Plugin] = &[
    flannel::PLUGIN, //
    bridge::PLUGIN,
    ipam::PLUGIN,
    loopback::PLUGIN,
    portmap::PLUGIN,
    bandwidth::PLUGIN,
    firewall::PLUGIN,
    tuning::PLUGIN,
];

/// The whole of a call by this name, with its first argument; whether it went well.
#[cfg_attr(test, allow(dead_code, reason = "called by `entry`"))]
fn run(program: &str, argument: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    if name == bridge::FINISHER {
        return bridge::finish(argument);
    }
    let plugin = PLUGINS.iter().find(|plugin| plugin.name == name);
    let Some(command) = variable("CNI_COMMAND").filter(|command| !command.is_empty()) else {
        about(plugin);
        return true;
    };
    let answer = match plugin {
        Some(plugin) => plugin::answer(plugin, &command, variable),
        None => Err((plugin::unknown(name, &names()), Version::NEWEST)),
    };
    match answer {
        Ok(document) => document.is_none_or(|document| print(&document)),
        Err((failure, version)) => {
            print(&failure.document(version));
            false
        }
    }
}

/// For people, and for schedulers that read the first version in it.
fn about(plugin: Option<&Plugin>) {
    let own = env!("CARGO_PKG_VERSION");
    match plugin {
        Some(Plugin { name, .. }) => eprintln!("CNI {name} plugin {REFERENCE} (selvage {own})"),
        None => eprintln!("CNI plugins {} (selvage {own}): call it by one of these names", names()),
    }
    eprintln!("CNI protocol versions supported: {}", Version::list());
}

fn names() -> String {
    PLUGINS.iter().map(|plugin| plugin.name).collect::<Vec<_>>().join(", ")
}

/// Environment variables of other encodings cannot be valid ones of ours.
fn variable(name: &str) -> Option<String> {
    env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn print(document: &Object) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{document}").and_then(|()| out.flush()).is_ok()
}
