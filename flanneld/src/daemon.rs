//! The daemon's start: from the command line to the running shell. And that of the embedded store, `flanneld store`.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use backends::local::random;
use backends::rules::RuleNames;
use nix::unistd::gethostname;
use subnet_lease::StoreError;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::cli::{self, Command, Given};
use crate::config::{NodeConfig, RawConfig, SettingsFiles, Source, UNIT_FILE, environment};
use crate::core::{Arbiter, Readiness, Status, StatusRequest};
use crate::exit::{Exit, Failure};
use crate::serve::http;
use crate::serve::socket::{self, SocketState};
use crate::shell::rival::{self, Rival};
use crate::shell::run::{Host, Shell, run_all};
use crate::shell::{block_on, log, signals, store};

/// Between two looks at a daemon that does not let us wait. Ours.
const AGAIN: Duration = Duration::from_millis(100);

/// The version, and what it takes the place of.
pub const RELEASE: &str = concat!(env!("CARGO_PKG_VERSION"), " (selvage, compatible with flannel 0.28)");

/// Runs the command line. Help and version go to standard error, as flannel's do.
pub fn main(arguments: &[String]) -> Result<Exit, Failure> {
    match cli::parse(arguments)? {
        Command::Help => eprint!("{}", cli::usage(cli::terminal_width(io::stderr()))),
        Command::Version => eprintln!("flanneld {RELEASE}"),
        Command::Store(arguments) => return store::run(&arguments),
        Command::Run(given) => return daemon(&given),
    }
    Ok(Exit::Done)
}

fn daemon(given: &[Given]) -> Result<Exit, Failure> {
    networks(&[given])
}

/// A daemon of several networks, each with its settings. What is the host's is as the first has it: log, health server. No
/// flag asks for more than one yet.
pub fn networks(given: &[&[Given]]) -> Result<Exit, Failure> {
    let raws: Vec<_> = given.iter().map(|given| RawConfig::gather(given, &environment())).collect();
    let configs = raws.iter().map(|raw| NodeConfig::understand(raw, &host_name()));
    let mut configs: Vec<_> = configs.collect::<Result<_, _>>()?;
    let Some(verbosity) = configs.first().map(|config| config.verbosity) else { return Ok(Exit::Done) };
    log::start(verbosity);
    raws.iter().for_each(log_settings);
    configs.iter_mut().try_for_each(store::ask_for_node)?;
    name_rules(&mut configs);
    let first = &configs[0];
    let (sender, readiness) = watch::channel(Readiness::default());
    let host = Host { arbiter: Arbiter::default(), readiness: sender, notified: false };
    let host = Rc::new(RefCell::new(host));
    block_on(async {
        let (mut shells, mut for_metrics) = (Vec::new(), None);
        for (config, given) in configs.iter().zip(given) {
            let (asks, mut status) = mpsc::channel(1);
            for_metrics.get_or_insert_with(|| asks.clone());
            tokio::select! {
                alone = alone(config, asks, &mut status) => alone?,
                () = signals::stop(), if config.takeover => return Ok(Exit::Done),
            }
            let files = SettingsFiles::at_start(given, &environment(), Path::new(UNIT_FILE));
            shells.push(shell(config, files, host.clone(), status)?);
        }
        if let Some((address, asks)) = first.health.zip(for_metrics) {
            if address.ip().is_unspecified() {
                info!(
                    "the health server listens on every address, as flannel's does; --healthz-ip=127.0.0.1 keeps it to this host"
                );
            }
            tokio::spawn(http::serve(http::bind(address)?, readiness, asks));
        }
        let within = store::within(first).await?;
        let exit = run_all(shells).await;
        // After the shells, which may have leases to give back.
        if let Some(within) = within {
            within.stop().await;
        }
        Ok(exit)
    })
}

/// The first network has flannel's names, which nodes of one network have. The others' names follow from their ids, so that
/// no two keep undoing each other's rules.
fn name_rules(configs: &mut [NodeConfig]) {
    for config in configs.iter_mut().skip(1) {
        config.core.rule_names = RuleNames::of(&config.core.network);
    }
}

fn shell(
    config: &NodeConfig,
    files: SettingsFiles,
    host: Rc<RefCell<Host>>,
    status: mpsc::Receiver<StatusRequest>,
) -> Result<Shell, Failure> {
    Ok(Shell {
        settings: config.settings(seed()),
        store: subnet_lease::open(&config.store)?,
        subnet_file: config.subnet_file.clone(),
        state_dir: config.state_dir.clone(),
        release_on_exit: config.release_on_exit,
        record_file: config.record_file.clone(),
        settings_files: Arc::new(files),
        host,
        status,
    })
}

/// Makes sure that nobody else is at work for this network in this network namespace, before anything is written; with
/// `--takeover`, as soon as that is so. What they made in the kernel stays, and is adopted.
async fn alone(
    config: &NodeConfig,
    asks: mpsc::Sender<StatusRequest>,
    asked: &mut mpsc::Receiver<StatusRequest>,
) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::new(Exit::Failed, format!("can't find out whether another runs: {error}"))
    };
    let network = &config.core.network;
    let mut waited = false;
    loop {
        match socket::take(&config.daemons, network).await {
            SocketState::Ours(listener) => break drop(tokio::spawn(socket::serve(listener, asks))),
            SocketState::Blocked(why) => break warn!("no status socket: {why}"),
            SocketState::Held(holder) => {
                let rival = Rival::of_ours(holder.pid, network);
                if !config.takeover {
                    return Err(in_the_way(&rival));
                }
                match waited {
                    // It has too many that wait for it.
                    true => tokio::time::sleep(AGAIN).await,
                    false => info!("waiting for {rival} to end"),
                }
                waited = true;
                holder.gone().await;
            }
        }
    }
    while let Some(rival) = rival::find(network, &config.daemons) {
        if !config.takeover {
            return Err(in_the_way(&rival));
        }
        let waiting = format!("waiting for {rival} to end");
        info!("{waiting}");
        let mut gone = std::pin::pin!(rival.gone(network, &config.daemons));
        loop {
            tokio::select! {
                gone = &mut gone => break gone.map_err(failed)?,
                Some(asker) = asked.recv() => {
                    drop(asker.answer.send(Status { reasons: vec![waiting.clone()], ..Status::default() }));
                }
            }
        }
    }
    Ok(())
}

fn in_the_way(rival: &Rival) -> Failure {
    let Rival { stop, in_doubt, .. } = rival;
    let is = match in_doubt {
        true => "may be at work on this host (its executable can't be read without its capabilities)",
        false => "is at work on this host",
    };
    let ways = format!(
        "stop it first ({stop}), or start with --takeover, which waits for its end and goes on in its place"
    );
    Failure::new(Exit::Rival, format!("{rival} {is}: {ways}"))
}

/// Logs the settings that somebody made, and what is odd about them.
fn log_settings(raw: &RawConfig) {
    let made = raw.effective().filter(|(.., source)| *source != Source::Default);
    let made: Vec<_> = made.map(|(name, value, source)| format!("{name}={value:?} ({source})")).collect();
    info!(
        "flanneld {RELEASE}; settings: {}",
        if made.is_empty() { "all default".to_owned() } else { made.join(", ") }
    );
    for notice in raw.notices() {
        warn!("{notice}");
    }
}

/// The name of this host, for a node that has no other.
pub fn host_name() -> String {
    gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A number that differs from run to run and from host to host.
pub(crate) fn seed() -> u64 {
    random::number()
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match error {
            StoreError::Unreachable(_)
            | StoreError::Untrusted(_)
            | StoreError::Failing(_)
            | StoreError::Denied(_) => Exit::Store,
            StoreError::Raced(_) | StoreError::Full(..) => Exit::Failed,
            StoreError::Unsupported(_) => Exit::Unsupported,
            StoreError::Config(_) => Exit::Invalid,
        };
        Self::new(exit, error)
    }
}
