//! `flannelctl`, the program for people: the same binary by another name, because a Go flanneld ignores words after its
//! flags and would simply start. It reads store and kernel itself, so it needs no running daemon.
//!
//! Every flag and variable of the daemon is understood, from the daemon's own table: what `config` and `plan` show is
//! what a daemon would do that was started the same way.

mod cleanup;
mod cni;
mod events;
mod host_setup;
mod lease;
mod network;
mod plan;
mod replay;
mod settings;
mod status;
mod store;

use std::io::{self, Write};

use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::cli::{self, Flag, Given, Kind};
use crate::config::{Environment, NodeConfig, RawConfig, environment};
use crate::daemon::{RELEASE, host_name, refuse};
use crate::exit::{Exit, Failure};

/// Looks after a cluster's network and its leases.
#[derive(Debug, Parser)]
#[command(name = "flannelctl", version = RELEASE, subcommand_required = true, arg_required_else_help = true, after_help = MORE)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const MORE: &str = "Every other flag of flanneld, and every FLANNELD_ variable, is understood as well, so that `plan` and\n\
    `config` see what the daemon would see. Exit codes: 0 done, 1 failed, 2 a setting or net-conf is\n\
    wrong, 3 not available, 4 unknown word, 5 not allowed, 7 store not reachable, 9 node not ready.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// The cluster's network configuration (net-conf).
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Network(network::Verb),
    /// Leases: which host has which subnets.
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Lease(lease::Verb),
    /// Move a cluster's configuration and leases between stores.
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Store(store::Verb),
    /// Print how the daemon on this host is: ready or why not, its subnets and underlay, what is refused or fought over.
    Status(Output),
    /// Print what a daemon's next pass would change on this host, as lines for a shell, and change nothing.
    Plan(Output),
    /// Take away what a stopped daemon left in the kernel, and subnet.env.
    Cleanup(cleanup::Arguments),
    /// Tell systemd-networkd, NetworkManager and the kernel's start what belongs to flanneld: files in their folders.
    HostSetup(host_setup::Arguments),
    /// Print what the daemon on this host heard and did, as it recorded it.
    Events(events::Arguments),
    /// Run recorded inputs through the core of this program, and say what it decides differently.
    Replay(replay::Arguments),
    /// The CNI plugin and its configuration, for a container runtime.
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Cni(cni::Verb),
    /// Print the settings in force, and where each comes from.
    Config(Output),
}

/// How to print a list.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Output {
    /// A table for people, or JSON for programs.
    #[arg(long, value_enum, default_value = "table")]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

/// Runs `flannelctl` with these arguments.
pub fn main(arguments: &[String]) -> Result<Exit, Failure> {
    run(arguments, &environment(), &mut io::stdout().lock())
}

fn run(arguments: &[String], environment: &Environment, out: &mut dyn Write) -> Result<Exit, Failure> {
    let words = std::iter::once("flannelctl").chain(arguments.iter().map(String::as_str));
    let parsed = command().try_get_matches_from(words);
    let parsed =
        parsed.and_then(|matches| Arguments::from_arg_matches(&matches).map(|a| (a.verb, given(&matches))));
    let (verb, given) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return Ok(refuse(&error)),
    };
    let raw = RawConfig::gather(&given, environment);
    let config = NodeConfig::understand(&raw, &host_name())?;
    for notice in raw.notices() {
        eprintln!("flannelctl: {notice}");
    }
    let mut exit = Exit::Done;
    let said = match verb {
        Verb::Network(verb) => network::run(&verb, config)?,
        Verb::Lease(verb) => lease::run(verb, config)?,
        Verb::Store(verb) => store::run(&verb, config)?,
        Verb::Status(output) => {
            let (said, found) = status::run(output, &config)?;
            exit = found;
            said
        }
        Verb::Plan(output) => plan::run(output, &config)?,
        Verb::Cleanup(arguments) => cleanup::run(&arguments, &config)?,
        Verb::HostSetup(arguments) => host_setup::run(&arguments)?,
        Verb::Events(arguments) => events::run(&arguments, &config, out).map(|()| String::new())?,
        Verb::Replay(arguments) => replay::run(&arguments, out).map(|()| String::new())?,
        Verb::Cni(verb) => cni::run(verb, &config)?,
        Verb::Config(output) => settings::run(&raw, output.output)?,
    };
    match out.write_all(said.as_bytes()).and_then(|()| out.flush()) {
        // `flannelctl … | head` is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("can't write: {error}")))
        }
        _ => Ok(exit),
    }
}

/// The verbs with the daemon's flags; those of the store are shown, the others only understood.
fn command() -> clap::Command {
    let flags = cli::rows().filter(|flag| !flag.is_variable_only() && flag.name != "version");
    Arguments::command().args(flags.map(argument))
}

fn argument(flag: &Flag) -> Arg {
    let argument = Arg::new(flag.name)
        .long(flag.name)
        .help(flag.help)
        .help_heading("Store")
        .hide(!flag.name.starts_with("etcd-"))
        .global(true)
        .action(if flag.kind == Kind::List { ArgAction::Append } else { ArgAction::Set });
    match flag.kind {
        Kind::Bool => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::Int => argument.value_name("NUMBER").allow_hyphen_values(true),
        Kind::Text | Kind::List => argument.value_name("TEXT").allow_hyphen_values(true),
    }
}

fn given(matches: &ArgMatches) -> Vec<Given> {
    let names =
        cli::rows().map(|flag| flag.name).filter(|name| matches.try_contains_id(name).unwrap_or(false));
    let values = |name| matches.get_many::<String>(name).into_iter().flatten();
    names.flat_map(|name| values(name).map(move |value| Given { name, value: value.clone() })).collect()
}

/// A table of columns, within a hundred characters.
fn table(heading: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    const WIDTH: u16 = 100;
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_width(WIDTH);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic).set_header(heading);
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| format!("{}\n", line.trim_end().strip_prefix(' ').unwrap_or_default())).collect()
}

fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests;
