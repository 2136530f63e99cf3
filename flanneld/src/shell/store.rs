//! The embedded store: `flanneld store` as a program of its own, and `flanneld --store=embedded` within the daemon of the
//! only host.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::local::processes::{self, Limits, RunError};
use clap::Parser;
use subnet_lease::kube::{self, KubeConfig, NodeName};
use subnet_lease::server::{Server, ServerConfig, ServerError, TlsFiles, check_file};
use subnet_lease::{Class, PublicAddrs, StoreConfig};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::cli;
use crate::config::{NodeConfig, loopback};
use crate::exit::{Exit, Failure};
use crate::shell::{block_on, log, publish, signals};

/// Time between two requests for the name of our Node. Ours.
const AGAIN: Duration = Duration::from_secs(1);

/// The embedded store: the etcd API (v3) on one file, in one process, without a quorum; for labs and small clusters.
#[derive(Debug, Parser)]
#[command(name = "flanneld store")]
struct Arguments {
    /// Directory of the store; made when missing.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Address to listen on; may be repeated.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:2379")]
    listen: Vec<SocketAddr>,
    /// Listen on addresses that other machines reach without asking clients for certificates: everyone may write.
    #[arg(long)]
    insecure: bool,
    /// Certificate for TLS (PEM); read again when it changes.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Private key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Authority of the clients' certificates (PEM): one without such a certificate is turned away.
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    trusted_ca_file: Option<PathBuf>,
    /// Read the file and end; for the store itself, which does so in a process of its own before it starts.
    #[arg(long, hide = true)]
    check: bool,
    /// More log.
    #[arg(short)]
    verbose: bool,
}

/// Runs the store until it is stopped.
pub(crate) fn run(arguments: &[String]) -> Result<Exit, Failure> {
    let words = std::iter::once("flanneld store").chain(arguments.iter().map(String::as_str));
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(error) => return Ok(cli::refuse(&error)),
    };
    log::start(i64::from(arguments.verbose));
    if arguments.check {
        check_file(&arguments.data_dir)?;
        return Ok(Exit::Done);
    }
    sound(&arguments.data_dir)?;
    let files = arguments.cert_file.zip(arguments.key_file);
    let tls = files.map(|(cert, key)| TlsFiles { cert, key, client_authority: arguments.trusted_ca_file });
    let Arguments { data_dir, listen, insecure, .. } = arguments;
    block_on(async {
        let server = Server::bind(ServerConfig { data_dir, listen, insecure, tls }).await?;
        publish::notify_ready();
        server.run(signals::stop()).await?;
        Ok(Exit::Done)
    })
}

/// How long reading the file may take; it holds 256 MiB at most.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// Has another process read the file first: on some damage the database library aborts, and that must end neither a daemon
/// nor the message that says why.
fn sound(data_dir: &Path) -> Result<(), Failure> {
    let Ok(program) = std::env::current_exe() else { return Ok(()) };
    let Some(dir) = data_dir.to_str() else { return Ok(()) };
    let limits = Limits { time: READ_WITHIN, output: 1 << 20 };
    let read = processes::run(&program, &["store", "--check", "--data-dir", dir], "", limits);
    match read.as_ref().err().and_then(damage) {
        Some(reason) => Err(ServerError::Damaged { path: data_dir.join("store.redb"), reason }.into()),
        None => Ok(()),
    }
}

/// What is wrong with the file, if the reader ended for that. Any other fault shows again, with a better message, at the start.
fn damage(error: &RunError) -> Option<String> {
    /// The exit code of a program whose panic does not abort it.
    const PANIC: i32 = 101;
    match error {
        RunError::Failed { code: None | Some(PANIC), words } => {
            Some(format!("it is damaged, the process that read it was ended by that ({words})"))
        }
        _ => None,
    }
}

/// The store within this process, until it is stopped.
pub(crate) struct Within {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Starts the store within the daemon, where the settings ask for it. One that ends is like an etcd that went away: logged,
/// and waited for until somebody starts us again.
pub(crate) async fn within(config: &NodeConfig) -> Result<Option<Within>, Failure> {
    let Some(data_dir) = config.embedded.clone() else { return Ok(None) };
    sound(&data_dir)?;
    let listen = config.store.endpoints().iter().filter_map(|endpoint| loopback(endpoint)).collect();
    let server = Server::bind(ServerConfig { data_dir, listen, insecure: false, tls: None }).await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        if let Err(why) = server.run(async { drop(stopped.await) }).await {
            error!("the embedded store ended: {why}");
        }
    });
    Ok(Some(Within { stop, task }))
}

impl Within {
    pub(crate) async fn stop(self) {
        // An error of either means that it has ended already.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// In Kubernetes: which Node is ours, and which addresses its annotations choose. Everything else needs the name, so it is
/// looked up until the API server answers; the addresses are not waited for, since without the API server a node uses
/// its memory.
pub(crate) fn ask_for_node(config: &mut NodeConfig) -> Result<(), Failure> {
    let StoreConfig::Kube(kube) = &mut config.store else { return Ok(()) };
    block_on(async {
        let name = find_node(kube).await?;
        config.core.node = Some(name.clone());
        kube.node = NodeName::Name(name);
        let chosen = kube::chosen_addresses(kube).await.unwrap_or_else(|error| {
            warn!("addresses that the Node's annotations choose are not known: {error}");
            PublicAddrs::default()
        });
        let public = &mut config.core.iface.public;
        *public = PublicAddrs { v4: chosen.v4.or(public.v4), v6: chosen.v6.or(public.v6) };
        Ok(())
    })
}

async fn find_node(config: &KubeConfig) -> Result<String, Failure> {
    let mut warned = None;
    loop {
        let error = match kube::find_node(config).await {
            Ok(name) => return Ok(name),
            Err(error) if error.class() == Class::Fatal => return Err(error.into()),
            Err(error) => error.to_string(),
        };
        if warned.as_ref() != Some(&error) {
            warn!("waiting for the name of this host's Node: {error}");
        }
        warned = Some(error);
        tokio::time::sleep(AGAIN).await;
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let exit = match error {
            ServerError::Exposed(_) | ServerError::NoAddress | ServerError::Certificate { .. } => {
                Exit::Invalid
            }
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_was_ended_by_the_file_is_damage_and_everything_else_is_not() {
        let failed = |code| RunError::Failed { code, words: "signal: 6 (SIGABRT)".to_owned() };
        for code in [None, Some(101)] {
            assert!(damage(&failed(code)).unwrap().contains("SIGABRT"));
        }
        assert_eq!(damage(&failed(Some(1))), None, "in use, say");
        assert_eq!(damage(&RunError::Time(READ_WITHIN)), None);
    }
}
