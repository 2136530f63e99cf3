//! What a killed server still knows.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use etcd_client::{Client, GetOptions, PutOptions};
use subnet_lease::server::Server;

use super::fixture::{Store, config, runtime};

/// Says to this test program, started once more by itself, where to serve.
const DIR: &str = "SERVE_IN";

/// Says before the address that the server took.
const MARK: &str = "serving on http://";

#[test]
#[ignore = "the server's process in the tests below, which kill it"]
fn a_server_in_a_process_of_its_own() {
    let dir = std::env::var_os(DIR).expect("started by another test");
    runtime().block_on(async {
        let server = Server::bind(config(Path::new(&dir))).await.unwrap();
        println!("{MARK}{}", server.addrs()[0]);
        server.run(std::future::pending()).await.unwrap();
    });
}

/// How often it is killed; `KILL_ROUNDS` says otherwise.
const ROUNDS: usize = 20;

struct Process {
    child: Child,
    endpoint: String,
}

impl Process {
    fn start(dir: &Path) -> Self {
        let me = std::env::current_exe().unwrap();
        let mut child = Command::new(me)
            .args(["--ignored", "--exact", "--nocapture", "restart::a_server_in_a_process_of_its_own"])
            .env(DIR, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let endpoint = loop {
            let line = lines.next().expect("the server starts").unwrap();
            if let Some((_, addr)) = line.split_once(MARK) {
                break format!("http://{addr}");
            }
        };
        Self { child, endpoint }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn no_acknowledged_write_is_lost_when_the_server_is_killed_in_the_middle_of_writing() {
    let dir = tempfile::tempdir().unwrap();
    let rounds = std::env::var("KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    for round in 1..=rounds.unwrap_or(ROUNDS) {
        let mut process = Process::start(dir.path());
        let acknowledged = runtime().block_on(async {
            let client = Client::connect([&process.endpoint], None).await.unwrap();
            let writers: Vec<_> = (0..8).map(|n| tokio::spawn(write_until_dead(client.clone(), n))).collect();
            let mut watch = client.clone();
            let mut stream = {
                let stream = watch.watch("7/", Some(etcd_client::WatchOptions::new().with_prefix()));
                stream.await.unwrap()
            };
            let mut seen = 0;
            // At another moment each time.
            while seen < round * 37 % 101 {
                seen += stream.message().await.unwrap().unwrap().events().len();
            }
            process.kill();
            let mut acknowledged = Vec::new();
            for writer in writers {
                acknowledged.push(writer.await.unwrap());
            }
            acknowledged
        });
        let store = Store::again(dir.path());
        runtime().block_on(async {
            let mut client = store.client().await;
            for (writer, (last, revision)) in acknowledged.into_iter().enumerate() {
                let found = client.get(format!("{writer}/key"), None).await.unwrap();
                let kv = &found.kvs()[0];
                let kept: u64 = kv.value_str().unwrap().parse().unwrap();
                // One more may have become durable without its answer getting through.
                assert!(
                    kept == last || kept == last + 1,
                    "writer {writer}: {kept} kept, {last} acknowledged"
                );
                assert!(kv.mod_revision() >= revision);
            }
        });
    }
}

/// Counts up in one key; returns the last number that was acknowledged, with its revision.
async fn write_until_dead(mut client: Client, writer: usize) -> (u64, i64) {
    let (mut last, mut revision) = (0, 0);
    loop {
        match client.put(format!("{writer}/key"), (last + 1).to_string(), None).await {
            Ok(put) => (last, revision) = (last + 1, put.header().unwrap().revision()),
            Err(_) => return (last, revision),
        }
    }
}

#[test]
fn revisions_leases_history_and_identity_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let before = Store::on(dir.path()).unwrap();
    let identity = runtime().block_on(async {
        let mut client = before.client().await;
        client.lease_grant(100, Some(etcd_client::LeaseGrantOptions::new().with_id(5))).await.unwrap();
        client.put("a", "1", Some(PutOptions::new().with_lease(5))).await.unwrap();
        client.put("a", "2", Some(PutOptions::new().with_ignore_lease())).await.unwrap();
        client.put("b", "1", None).await.unwrap();
        client.delete("b", None).await.unwrap();
        let header = client.compact(3, None).await.unwrap().take_header().unwrap();
        (header.cluster_id(), header.member_id())
    });
    drop(before);

    let after = Store::again(dir.path());
    runtime().block_on(async {
        let mut client = after.client().await;
        let now = client.get("a", None).await.unwrap();
        let header = now.header().unwrap();
        assert_eq!((header.cluster_id(), header.member_id()), identity);
        assert_eq!(header.revision(), 5);
        let kv = &now.kvs()[0];
        assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()), (2, 3, 2, 5));
        assert_eq!(client.get("b", Some(GetOptions::new().with_revision(4))).await.unwrap().count(), 1);
        assert!(client.get("a", Some(GetOptions::new().with_revision(2))).await.is_err());
        assert_eq!(client.put("c", "1", None).await.unwrap().header().unwrap().revision(), 6);
        assert!(client.lease_time_to_live(5, None).await.unwrap().ttl() >= 98);
        client.lease_revoke(5).await.unwrap();
        assert_eq!(client.get("a", None).await.unwrap().count(), 0);
    });
}
