//! The embedded store under hostile clients: how much its memory grows, and how long honest clients wait.

mod attacks;
mod client;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use netns_harness::Screen;
use netns_harness::flannel::Products;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use self::attacks::{ALL, Attack};
use self::client::{Client, PUT, RANGE, WINDOW, get, put};
use self::server::Server;
use crate::figures::Figures;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// How long the attack lasts
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(2..=86_400), value_name = "SECONDS")]
    seconds: u32,
    /// Hostile clients
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000), value_name = "N")]
    clients: u16,
    /// Each kind of attack alone, on a store of its own, instead of all at once
    #[arg(long)]
    each: bool,
    /// JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

/// Clients that write and read a key of their own, and how often.
const HONEST: usize = 10;
const PAUSE: Duration = Duration::from_millis(50);
/// Keys in the store before the attack: the leases of a large cluster.
const KEYS: usize = 5_000;
/// Targets: MiB and ms.
const GROWTH: f64 = 256.0;
const WAIT: f64 = 50.0;

pub(crate) fn measure(products: &Products, flags: &Flags, screen: Screen) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let time = Duration::from_secs(flags.seconds.into());
    let mut figures = Figures::default();
    let clients = usize::from(flags.clients);
    let runs: Vec<(String, Vec<Attack>)> = if flags.each {
        ALL.iter().map(|(attack, name)| ((*name).to_owned(), vec![*attack])).collect()
    } else {
        vec![(format!("{clients} hostile clients"), ALL.iter().map(|(attack, _)| *attack).collect())]
    };
    for (name, attacks) in runs {
        let outcome = runtime.block_on(run(products, &attacks, clients, time))?;
        figures.add(&format!("{name}: growth"), "MiB", GROWTH, outcome.growth);
        figures.add(&format!("{name}: honest p99"), "ms", WAIT, outcome.wait(0.99));
        if !flags.each {
            figures.add("honest p50", "ms", None, outcome.wait(0.5));
            figures.add("longest wait of an honest client", "ms", None, outcome.wait(1.0));
            figures.add("requests of honest clients", "", None, outcome.waits.len() as f64);
            figures.add("requests of honest clients that were tried again", "", None, outcome.again as f64);
            figures.add("rounds of attacks", "", None, outcome.rounds as f64);
            figures.add("resident memory before", "MiB", None, outcome.before);
        }
    }
    let lines = if flags.json { figures.lines(&products.flanneld) } else { figures.table(None) };
    lines.iter().for_each(|line| screen.say(line));
    Ok(figures.reached())
}

struct Outcome {
    before: f64,
    growth: f64,
    /// How long honest clients waited, in ms, in order.
    waits: Vec<f64>,
    again: usize,
    rounds: usize,
}

impl Outcome {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length is an index"
    )]
    fn wait(&self, share: f64) -> f64 {
        let last = self.waits.len().saturating_sub(1);
        self.waits.get((last as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    }
}

async fn run(products: &Products, attacks: &[Attack], clients: usize, time: Duration) -> Result<Outcome> {
    let mut server = Server::start(&products.flanneld, &[])?;
    let to = server.addr;
    fill(to).await?;
    let before = server.memory("VmRSS")?;
    let rounds = Arc::new(AtomicUsize::new(0));
    let hostile = Hostile::start(attacks, to, clients, rounds.clone());
    let end = Instant::now() + time;
    let mut honest: JoinSet<Result<(Vec<f64>, usize)>> = (0..HONEST).map(|n| work(to, n, end)).collect();
    let (mut waits, mut again, mut growth) = (Vec::new(), 0, 0.0_f64);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ensure!(server.ended()?.is_none(), "the store ended");
        growth = growth.max(server.memory("VmRSS")? - before);
    }
    while let Some(done) = honest.join_next().await {
        let (of_one, tried) = done??;
        waits.extend(of_one);
        again += tried;
    }
    drop(hostile);
    ensure!(server.ended()?.is_none(), "the store ended");
    waits.sort_by(f64::total_cmp);
    Ok(Outcome { before, growth, waits, again, rounds: rounds.load(Ordering::Relaxed) })
}

/// Hostile clients in a thread of their own, so that honest clients never wait for what these do on this side.
struct Hostile {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Hostile {
    fn start(attacks: &[Attack], to: SocketAddr, clients: usize, rounds: Arc<AtomicUsize>) -> Self {
        let attacks = attacks.to_vec();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            runtime.block_on(async {
                let all: JoinSet<()> =
                    (0..clients).map(|n| attack(attacks.clone(), to, n, rounds.clone())).collect();
                let _ = stopped.await;
                drop(all);
            });
        };
        Self { stop: Some(stop), thread: Some(thread::spawn(run)) }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes the keys that are there before the attack.
async fn fill(to: SocketAddr) -> Result<()> {
    let mut client = Client::connect(to, WINDOW).await?;
    let mut answers = Vec::new();
    for n in 0..KEYS {
        answers
            .push(client.send(PUT, &put(&format!("/coreos.com/network/subnets/{n}"), &[b'v'; 300])).await?);
        if answers.len() == 100 {
            for answer in answers.drain(..) {
                answer.await?;
            }
        }
    }
    Ok(())
}

async fn attack(attacks: Vec<Attack>, to: SocketAddr, who: usize, rounds: Arc<AtomicUsize>) {
    for n in who.. {
        // The server may end it at any point.
        if attacks[n % attacks.len()].run(to, who).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes and reads a key; how long each took until it was done, and how often it was tried again.
async fn work(to: SocketAddr, who: usize, end: Instant) -> Result<(Vec<f64>, usize)> {
    let (mut client, mut waits, mut again) = (None, Vec::new(), 0);
    let key = format!("honest/{who}");
    while Instant::now() < end {
        for (path, message) in [(PUT, put(&key, &[b'v'; 300])), (RANGE, get(&key))] {
            let began = Instant::now();
            while once(&mut client, to, path, &message).await.is_err() {
                again += 1;
                ensure!(began.elapsed() < Duration::from_secs(30), "an honest client got no answer for 30 s");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            waits.push(began.elapsed().as_secs_f64() * 1000.0);
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok((waits, again))
}

/// Asks over the connection there is, or over a new one.
async fn once(client: &mut Option<Client>, to: SocketAddr, path: &str, message: &[u8]) -> Result<usize> {
    let mut connected = match client.take() {
        Some(connected) => connected,
        None => Client::connect(to, WINDOW).await?,
    };
    let answer = connected.ask(path, message).await;
    // A refusal leaves the connection as it is.
    if answer.as_ref().is_ok() || answer.as_ref().is_err_and(|error| error.to_string().starts_with("refused"))
    {
        *client = Some(connected);
    }
    answer
}
