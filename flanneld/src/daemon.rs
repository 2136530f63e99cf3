//! The daemon's start: from the command line to the running shell. And that of the embedded store, `flanneld store`.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use nix::unistd::gethostname;
use subnet_lease::StoreError;
use subnet_lease::etcd::EtcdStore;
use subnet_lease::server::{Server, ServerConfig, ServerError};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::cli::{self, Command, Given};
use crate::config::{NodeConfig, RawConfig, Source, environment};
use crate::exit::{Exit, Failure};
use crate::node::Readiness;
use crate::run::{Shell, run};
use crate::{http, log, publish, signals};

/// The version, and what it takes the place of.
pub const RELEASE: &str = concat!(env!("CARGO_PKG_VERSION"), " (selvage, compatible with flannel 0.28)");

/// Does what the command line says. Help and version go to standard error, as flannel's do.
pub fn main(arguments: &[String]) -> Result<Exit, Failure> {
    match cli::parse(arguments)? {
        Command::Help => eprint!("{}", cli::usage()),
        Command::Version => eprintln!("flanneld {RELEASE}"),
        Command::Store(arguments) => return store(&arguments),
        Command::Run(given) => return daemon(&given),
    }
    Ok(Exit::Done)
}

fn daemon(given: &[Given]) -> Result<Exit, Failure> {
    let raw = RawConfig::gather(given, &environment());
    let config = NodeConfig::understand(&raw, &host_name())?;
    log::start(config.verbosity);
    tell(&raw);
    let store = EtcdStore::connect(config.etcd.clone())?;
    let (tell, readiness) = watch::channel(Readiness::default());
    let shell = Shell {
        settings: config.settings(seed()),
        store: Arc::new(store),
        subnet_file: config.subnet_file,
        readiness: tell,
    };
    block_on(async {
        if let Some(address) = config.health {
            tokio::spawn(http::serve(http::bind(address)?, readiness));
        }
        Ok(run(shell).await)
    })
}

/// The settings that somebody made, once, and what is odd about them.
fn tell(raw: &RawConfig) {
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

/// A number that differs from run to run and from host to host; the standard library seeds its hash tables with such.
pub(crate) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Runs a future on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Failed, format!("can't start: {error}")))?.block_on(future)
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match error {
            StoreError::Unreachable(_) | StoreError::Denied(_) => Exit::Store,
            StoreError::Raced(_) | StoreError::Full(..) => Exit::Failed,
            StoreError::Unsupported(_) => Exit::Unsupported,
            StoreError::Config(_) => Exit::Invalid,
        };
        Self::new(exit, error)
    }
}

/// The embedded store: the etcd API (v3) on one file, in one process, without a quorum; for labs and small clusters.
#[derive(Debug, Parser)]
#[command(name = "flanneld store")]
struct StoreArguments {
    /// Directory of the store; made when missing.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Address to listen on; may be repeated.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:2379")]
    listen: Vec<SocketAddr>,
    /// Listen on addresses that other machines reach, though every client is believed.
    #[arg(long)]
    insecure: bool,
    /// More log.
    #[arg(short)]
    verbose: bool,
}

fn store(arguments: &[String]) -> Result<Exit, Failure> {
    let words = std::iter::once("flanneld store").chain(arguments.iter().map(String::as_str));
    let StoreArguments { data_dir, listen, insecure, verbose } = match StoreArguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(error) => return Ok(refuse(&error)),
    };
    log::start(i64::from(verbose));
    let refused = |error: ServerError| {
        let exit = if matches!(error, ServerError::Exposed(_) | ServerError::NoAddress) {
            Exit::Invalid
        } else {
            Exit::Failed
        };
        Failure::new(exit, error)
    };
    block_on(async {
        let server = Server::bind(ServerConfig { data_dir, listen, insecure }).await.map_err(refused)?;
        publish::notify_ready();
        server.run(signals::stop()).await.map_err(refused)?;
        Ok(Exit::Done)
    })
}

/// Lets clap say what is wrong with a command line, or what was asked for; and which code that is.
pub(crate) fn refuse(error: &clap::Error) -> Exit {
    // Where nobody reads, there is nobody to tell.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        ErrorKind::InvalidSubcommand => Exit::Word,
        _ => Exit::Invalid,
    }
}
