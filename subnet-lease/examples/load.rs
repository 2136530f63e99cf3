//! What the embedded store bears: durable writes, watches that all hear of a change, a million revisions.
//!
//!     cargo run --release -p subnet-lease --features etcd,server --example load

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "it measures, and prints what it measured"
)]

use std::time::{Duration, Instant};

use etcd_client::{Client, Error, Txn, TxnOp};
use subnet_lease::server::{Server, ServerConfig};

/// Hosts of a large cluster that write at once.
const WRITERS: usize = 64;
const PUTS: usize = 500;
const WATCHERS: usize = 1000;
/// Clients that share the watchers, as connections.
const CONNECTIONS: usize = 100;
const REVISIONS: usize = 1_000_000;
const VALUE: usize = 200;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Outcome<()> {
    let dir = std::env::temp_dir().join(format!("selvage-load-{}", std::process::id()));
    let config = ServerConfig {
        data_dir: dir.clone(),
        listen: vec!["127.0.0.1:0".parse()?],
        insecure: false,
        tls: None,
    };
    let server = Server::bind(config).await?;
    let endpoint = format!("http://{}", server.addrs()[0]);
    let serving = tokio::spawn(server.run(std::future::pending()));
    let outcome = measure(&endpoint).await;
    serving.abort();
    let size =
        std::fs::read_dir(&dir)?.flatten().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum::<u64>();
    println!("file: {} MiB", size >> 20);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

async fn measure(endpoint: &str) -> Outcome<()> {
    let began = Instant::now();
    let writers = (0..WRITERS).map(|n| tokio::spawn(write(endpoint.to_owned(), n)));
    for writer in writers.collect::<Vec<_>>() {
        writer.await??;
    }
    let per_second = (WRITERS * PUTS) as f64 / began.elapsed().as_secs_f64();
    println!("durable puts, {WRITERS} clients: {per_second:.0} a second");
    fan_out(endpoint).await?;
    history(endpoint).await
}

async fn write(endpoint: String, writer: usize) -> Result<(), Error> {
    let mut client = Client::connect([endpoint], None).await?;
    for n in 0..PUTS {
        client.put(format!("/load/{writer}/{}", n % 10), vec![b'x'; VALUE], None).await?;
    }
    Ok(())
}

async fn fan_out(endpoint: &str) -> Outcome<()> {
    let mut watchers = Vec::new();
    for n in 0..CONNECTIONS {
        let mut client = Client::connect([endpoint], None).await?;
        for _ in 0..WATCHERS / CONNECTIONS {
            let mut stream = client.watch("/told", None).await?;
            let keep = client.clone();
            watchers.push(tokio::spawn(async move {
                while stream.message().await?.is_some_and(|message| message.events().is_empty()) {}
                drop(keep);
                Ok::<_, Error>(n)
            }));
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    Client::connect([endpoint], None).await?.put("/told", "x", None).await?;
    for watcher in watchers {
        watcher.await??;
    }
    println!("{WATCHERS} watches told of one change within {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

async fn history(endpoint: &str) -> Outcome<()> {
    let before = resident()?;
    let mut client = Client::connect([endpoint], None).await?;
    for step in 0..REVISIONS / 100 {
        // Each transaction is one revision, so each key gets its own: a hundred at once, in flight together.
        let puts = (0..100).map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let put = TxnOp::put(format!("/history/{n}"), vec![b'x'; VALUE], None);
                client.txn(Txn::new().and_then([put])).await
            })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await??;
        }
        if step % 2500 == 2499 {
            println!("after {} revisions: {} MiB resident", (step + 1) * 100, resident()? >> 20);
        }
    }
    let revision = client.get("/history/1", None).await?.header().map_or(0, |header| header.revision());
    println!("revision {revision}; the million cost {} KiB", resident()?.saturating_sub(before) >> 10);
    Ok(())
}

/// Resident memory of this process, server and clients together, in bytes.
fn resident() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
