//! `flannelctl`, the program for people: the same binary by another name, because a Go flanneld ignores words after its
//! flags and would simply start. It reads store and kernel itself, so most verbs need no running daemon.
//!
//! Every flag and variable of the daemon is understood, from the daemon's own table. On a node, what is not given here is what
//! the daemon of that node runs with: `config` and `plan` show what that daemon sees.

mod answer;
mod cleanup;
mod cni;
mod doctor;
mod events;
mod explain;
mod host_setup;
mod lease;
mod network;
mod plan;
mod replay;
mod settings;
mod shell;
mod status;
mod store;
mod surroundings;
mod table;

use std::io::{self, Write};
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::answer::{Answer, Form, clean};
use self::surroundings::Surroundings;
use self::table::Table;
use crate::cli::{self, Flag, Given, Kind};
use crate::config::{NodeConfig, UNIT_FILE, environment};
use crate::daemon::{RELEASE, host_name};
use crate::exit::{Exit, Failure};

/// Looks after a cluster's network and its leases.
#[derive(Debug, Parser)]
#[command(
    name = "flannelctl",
    version = RELEASE,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = MORE,
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Text for people, or JSON for programs.
    #[arg(short, long, value_enum, value_name = "FORM", default_value = "text", global = true)]
    output: Form,
}

const MORE: &str = "On a node, the settings of the running flanneld are used; without one, those of /etc/default/flanneld. Every flag \
    of flanneld and every FLANNELD_ variable overrides them here.\n\n\
    Exit codes: 0 done, 1 failed, 2 a setting or net-conf is wrong, 3 not available, 4 unknown word, 5 not allowed, 7 store not \
    reachable, 8 a flanneld runs, 9 node not ready.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// The cluster's network configuration (net-conf).
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Network(network::Verb),
    /// Leases: which host has which subnets.
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Lease(lease::Verb),
    /// Copy a cluster's configuration and leases between stores.
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Store(store::Verb),
    /// Print how the daemon on this host is: ready or why not, its lease, subnets, underlay and peers, and what is wrong.
    Status(status::Arguments),
    /// Print the peers that are used, and the leases that are refused with the reasons.
    Peers(status::Peers),
    /// Print the causes of trouble that the daemon knows, most likely first, each with the command that mends it.
    Doctor,
    /// Explain the way of packets to an address: lease, route, neighbour, FDB, rules, pod; the first wrong step is marked.
    Explain(explain::Arguments),
    /// Print what the daemon's next pass would change on this host, as lines for a shell. Nothing is changed.
    Plan,
    /// Remove what a stopped daemon left in the kernel, and subnet.env.
    Cleanup(cleanup::Arguments),
    /// Write files that keep systemd-networkd, NetworkManager and the boot process from changing what belongs to flanneld.
    HostSetup(host_setup::Arguments),
    /// Print what the daemon on this host received and did, from its recorded file.
    Events(events::Arguments),
    /// Run a recorded file through this version of the program, and print what it decides differently.
    Replay(replay::Arguments),
    /// The CNI plugin and its configuration, for a container runtime.
    #[command(subcommand, subcommand_required = true, arg_required_else_help = true)]
    Cni(cni::Verb),
    /// Print the settings in force, and where each comes from.
    Config,
    /// Print the completions of a shell: flannelctl completions bash > /etc/bash_completion.d/flannelctl
    Completions(shell::Completions),
    /// Write the manual pages of flannelctl into a folder.
    Man(shell::Man),
}

impl Verb {
    /// Whether it is about this node or its store, so that the settings of the node's daemon count.
    fn is_about_this_node(&self) -> bool {
        match self {
            Self::HostSetup(_) | Self::Replay(_) | Self::Completions(_) | Self::Man(_) => false,
            Self::Cni(verb) => matches!(verb, cni::Verb::Mtu(_)),
            _ => true,
        }
    }

    /// Whether it prints whose settings it uses. The others have that in their answers, or use the network's name alone.
    fn says_whose_settings(&self) -> bool {
        !matches!(self, Self::Config | Self::Status(_) | Self::Peers(_) | Self::Doctor)
    }
}

/// Runs `flannelctl` with these arguments.
pub fn main(arguments: &[String]) -> Result<Exit, Failure> {
    let around = Surroundings {
        environment: &environment(),
        unit_file: Path::new(UNIT_FILE),
        width: cli::terminal_width(io::stdout()),
    };
    run(arguments, &around, &mut io::stdout().lock())
}

fn run(arguments: &[String], around: &Surroundings<'_>, out: &mut dyn Write) -> Result<Exit, Failure> {
    let words = std::iter::once("flannelctl").chain(arguments.iter().map(String::as_str));
    let parsed = command().try_get_matches_from(words);
    let parsed =
        parsed.and_then(|matches| Arguments::from_arg_matches(&matches).map(|a| (a, given(&matches))));
    let (Arguments { verb, output }, given) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return Ok(cli::refuse(&error)),
    };
    let (raw, places) = match verb.is_about_this_node() {
        true => surroundings::on_node(&given, around),
        false => (surroundings::alone(&given, around), Vec::new()),
    };
    let config = NodeConfig::understand(&raw, &host_name())?;
    let places = places.iter().filter(|_| verb.says_whose_settings());
    for notice in raw.notices().iter().chain(places) {
        eprintln!("flannelctl: {notice}");
    }
    let mut exit = Exit::Done;
    let answer = match verb {
        Verb::Network(verb) => network::run(&verb, &config)?,
        Verb::Lease(verb) => lease::run(verb, config)?,
        Verb::Store(verb) => store::run(&verb, config)?,
        Verb::Status(arguments) => {
            let (answer, found) = status::run(&arguments, &config)?;
            exit = found;
            answer
        }
        Verb::Doctor => {
            let (answer, found) = doctor::run(&config)?;
            exit = found;
            answer
        }
        Verb::Plan => plan::run(&config)?,
        Verb::Explain(arguments) => explain::run(&arguments, &config)?,
        Verb::Cleanup(arguments) => cleanup::run(&arguments, &config)?,
        Verb::HostSetup(arguments) => host_setup::run(&arguments)?,
        // These print as they read: what they read may be long, or have no end.
        Verb::Peers(arguments) => {
            return status::peers(&arguments, output, around.width, &config, out).map(|()| exit);
        }
        Verb::Events(arguments) => return events::run(&arguments, output, &config, out).map(|()| exit),
        Verb::Replay(arguments) => return replay::run(&arguments, output, out).map(|()| exit),
        Verb::Cni(verb) => cni::run(verb, &config)?,
        Verb::Config => settings::run(&raw),
        Verb::Completions(arguments) => shell::completions(&arguments),
        Verb::Man(arguments) => shell::man(&arguments)?,
    };
    let text = answer.print(output, around.width);
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
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

#[cfg(test)]
mod tests;
