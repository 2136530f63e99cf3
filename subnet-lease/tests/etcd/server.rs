use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use etcd_client::{Client, PutOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use subnet_lease::Store as _;
use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use tempfile::TempDir;

pub(crate) const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;

/// An etcd process; killed and forgotten on drop.
pub(crate) struct Etcd {
    process: Child,
    dir: TempDir,
    member: Member,
}

/// How a member is started, and started again.
#[derive(Clone)]
struct Member {
    name: String,
    /// For clients, and for its peers.
    ports: [u16; 2],
    /// Names and addresses of all members.
    cluster: String,
    arguments: Vec<String>,
}

impl Etcd {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With TLS where the arguments for it are among those given.
    pub(crate) fn start_with(tls: &[String]) -> Self {
        // A free port may be taken by another test before etcd has it; then the next pair is tried.
        (0..5).find_map(|_| Self::try_start(tls)).expect("an etcd (package etcd-server) that starts")
    }

    fn try_start(tls: &[String]) -> Option<Self> {
        let ports = [free_port(), free_port()];
        let cluster = format!("default=http://127.0.0.1:{}", ports[1]);
        // The shortest lease etcd grants follows from the election: with this it is one second. Members that must agree
        // keep the default, which is five times as long, since on a busy machine they would do nothing but elect.
        let mut arguments: Vec<String> =
            ["--heartbeat-interval", "20", "--election-timeout", "200"].map(Into::into).to_vec();
        arguments.extend_from_slice(tls);
        Self::run(Member { name: "default".into(), ports, cluster, arguments })
    }

    /// Returns when it serves clients; `None` if it ends instead.
    fn run(member: Member) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("subnet-lease-etcd-").tempdir().unwrap();
        let process = member.spawn(&dir)?;
        Some(Self { process, dir, member })
    }

    pub(crate) fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }

    /// Stops answering, without a word to anybody, until it goes on.
    pub(crate) fn pause(&self, pause: bool) {
        let signal = if pause { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }

    /// The same etcd again: same port, same data.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    fn start_again(&mut self) {
        self.process = self.member.spawn(&self.dir).expect("etcd starts again");
    }

    pub(crate) fn start_if_stopped(&mut self) {
        if self.process.try_wait().unwrap().is_some() {
            self.start_again();
        }
    }

    /// Another etcd at the same address, with nothing in it.
    pub(crate) fn replace_by_empty(&mut self) {
        self.stop();
        self.dir = tempfile::Builder::new().prefix("subnet-lease-etcd-").tempdir().unwrap();
        self.start_again();
    }

    pub(crate) fn port(&self) -> u16 {
        self.member.ports[0]
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.member.scheme(), self.port())
    }

    pub(crate) fn config(&self) -> EtcdConfig {
        EtcdConfig { endpoints: vec![self.endpoint()], ..EtcdConfig::default() }
    }

    pub(crate) fn store(&self) -> EtcdStore {
        EtcdStore::connect(self.config()).unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.endpoint()], None).await.unwrap()
    }

    /// A store with this net-conf in it.
    pub(crate) async fn with_network(json: &str) -> (Self, EtcdStore) {
        let etcd = Self::start();
        let store = etcd.store();
        store.put_config(json.as_bytes(), None).await.unwrap();
        (etcd, store)
    }

    pub(crate) async fn put(&self, name: &str, value: impl Into<Vec<u8>>, options: Option<PutOptions>) {
        self.client().await.put(key(name), value, options).await.unwrap();
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.client().await.delete(key(name), None).await.unwrap();
    }

    /// Value, etcd lease, create and modification revision.
    pub(crate) async fn read(&self, name: &str) -> Option<(String, i64, i64, i64)> {
        let answer = self.client().await.get(key(name), None).await.unwrap();
        let kv = answer.kvs().first()?;
        let value = kv.value_str().unwrap().to_string();
        Some((value, kv.lease(), kv.create_revision(), kv.mod_revision()))
    }
}

/// Three members.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Etcd>,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        (0..5).find_map(|_| Self::try_start()).expect("three members that start")
    }

    fn try_start() -> Option<Self> {
        let ports: Vec<[u16; 2]> = (0..3).map(|_| [free_port(), free_port()]).collect();
        let names = ports.iter().enumerate().map(|(n, p)| format!("m{n}=http://127.0.0.1:{}", p[1]));
        let cluster = names.collect::<Vec<_>>().join(",");
        let members = ports.into_iter().enumerate().map(|(n, ports)| Member {
            name: format!("m{n}"),
            ports,
            cluster: cluster.clone(),
            arguments: Vec::new(),
        });
        // A member serves once there is a quorum: all must be started before any is waited for.
        let starts: Vec<_> = members.map(|member| thread::spawn(move || Etcd::run(member))).collect();
        let members = starts.into_iter().map(|start| start.join().unwrap()).collect::<Option<_>>()?;
        Some(Self { members })
    }

    pub(crate) fn config(&self) -> EtcdConfig {
        let endpoints = self.members.iter().map(Etcd::endpoint).collect();
        EtcdConfig { endpoints, ..EtcdConfig::default() }
    }

    /// Takes a member out of the cluster, and puts one with a new name of its own and nothing in it in its place.
    pub(crate) async fn replace(&mut self, n: usize) {
        let mut by = self.members[(n + 1) % 3].client().await;
        let mut old = self.members[n].client().await;
        let id = old.status().await.unwrap().header().unwrap().member_id();
        again_unless("not found", async || by.member_remove(id).await.map(drop)).await;
        let member = &mut self.members[n];
        member.stop();
        // Refused until the others have known each other for a while.
        let peer = format!("http://127.0.0.1:{}", member.member.ports[1]);
        again_unless("exists", async || by.member_add([peer.clone()], None).await.map(drop)).await;
        member.member.arguments = ["--initial-cluster-state", "existing"].map(Into::into).to_vec();
        member.replace_by_empty();
    }

    /// The place of the leader in the list.
    pub(crate) async fn leader(&self) -> usize {
        let mut client = self.members[0].client().await;
        let leader = client.status().await.unwrap().leader();
        for (n, member) in self.members.iter().enumerate() {
            if member.client().await.status().await.unwrap().header().unwrap().member_id() == leader {
                return n;
            }
        }
        panic!("no member is the leader");
    }
}

/// A change of the members may be done and have an error, or nothing, for an answer: the leader that it removes is the one
/// that gives it. Then a second try says that there is nothing to do.
async fn again_unless(done: &str, mut change: impl AsyncFnMut() -> Result<(), etcd_client::Error>) {
    loop {
        match tokio::time::timeout(Duration::from_secs(8), change()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) if error.to_string().contains(done) => return,
            Ok(Err(error)) => eprintln!("not yet: {error}"),
            Err(_) => eprintln!("not yet: no answer"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn key(name: &str) -> String {
    format!("/coreos.com/network/subnets/{name}")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The etcd under test: the distribution's, or another version's.
fn program() -> OsString {
    std::env::var_os("SELVAGE_ETCD").unwrap_or_else(|| "etcd".into())
}

impl Member {
    fn scheme(&self) -> &'static str {
        if self.arguments.iter().any(|word| word == "--cert-file") { "https" } else { "http" }
    }

    fn spawn(&self, dir: &TempDir) -> Option<Child> {
        let client = format!("{}://127.0.0.1:{}", self.scheme(), self.ports[0]);
        let peer = format!("http://127.0.0.1:{}", self.ports[1]);
        let mut command = Command::new(program());
        command.arg("--name").arg(&self.name).arg("--data-dir").arg(dir.path());
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &self.cluster]);
        // It is killed, the machine is not: nothing is lost, and a slow disk makes no test wait.
        command.arg("--unsafe-no-fsync").args(&self.arguments);
        serving(&mut command)
    }
}

fn serving(command: &mut Command) -> Option<Child> {
    let mut process =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
    let mut lines = BufReader::new(process.stderr.take()?).lines().map_while(Result::ok);
    let serves =
        lines.any(|line| line.contains("serving client traffic") || line.contains("client requests on"));
    if !serves {
        let _ = process.wait();
        return None;
    }
    thread::spawn(move || lines.for_each(drop));
    Some(process)
}
