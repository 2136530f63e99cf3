use std::net::SocketAddr;
use std::path::PathBuf;

use subnet_lease::server::{Server, ServerConfig};
use subnet_lease::{BackendAttrs, Claim, NetworkConfig};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::config::{Environment, RawConfig};
use crate::core::{Status, StatusRequest};
use crate::serve::socket::{self, SocketState};
use crate::shell::block_on;

/// An embedded store on loopback, in a thread; stopped and removed at the end.
struct Embedded {
    address: SocketAddr,
    directory: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Embedded {
    fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("selvage-admin-{}-{name}", std::process::id()));
        let (sender, receiver) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let config = ServerConfig {
            data_dir: directory.clone(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            insecure: false,
            tls: None,
        };
        let serve = async move {
            let server = Server::bind(config).await.unwrap();
            sender.send(server.addrs()[0]).unwrap();
            server.run(async { _ = stopped.await }).await.unwrap();
            Ok(())
        };
        let thread = std::thread::spawn(move || block_on(serve).unwrap());
        Self { address: receiver.recv().unwrap(), directory, stop: Some(stop), thread: Some(thread) }
    }

    fn run(&self, arguments: &str) -> (Result<Exit, Failure>, String) {
        flannelctl(&format!("{arguments} --etcd-endpoints=http://{}", self.address))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn flannelctl(arguments: &str) -> (Result<Exit, Failure>, String) {
    with(arguments, &Environment::new())
}

fn with(arguments: &str, environment: &Environment) -> (Result<Exit, Failure>, String) {
    let arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
    let around = Surroundings { environment, unit_file: Path::new("/nowhere/flanneld"), width: None };
    let mut out = Vec::new();
    let ended = run(&arguments, &around, &mut out);
    (ended, String::from_utf8(out).unwrap())
}

#[test]
fn a_network_is_checked_then_written_then_shown() {
    let store = Embedded::start("network");
    let (ended, _) = store.run("network show");
    let none = "/coreos.com/network/config: there is none; flannelctl network set FILE writes one";
    assert_eq!(ended, Err(Failure::new(Exit::Failed, none)));

    let file = store.directory.join("net-conf.json");
    std::fs::write(&file, r#"{"Network": "10.5.0.0/33"}"#).unwrap();
    let (ended, _) = store.run(&format!("network set {}", file.display()));
    assert_eq!(ended.unwrap_err().exit, Exit::Invalid);
    assert_eq!(store.run("network show").0.unwrap_err().exit, Exit::Failed, "nothing was written");

    // No host of anybody who runs this has addresses for benchmarks (RFC 2544).
    let json = r#"{"Network": "198.18.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    std::fs::write(&file, format!("{json}\n")).unwrap();
    let (ended, printed) = store.run(&format!("network set {}", file.display()));
    assert_eq!(ended, Ok(Exit::Done));
    assert!(printed.starts_with("/coreos.com/network/config: written (revision "), "{printed}");
    assert!(printed.ends_with("room for 255 hosts, backend vxlan\n"), "{printed}");
    assert_eq!(store.run("network show"), (Ok(Exit::Done), format!("{json}\n")));
    let (_, printed) = store.run(&format!("network set {}", file.display()));
    assert!(printed.starts_with("/coreos.com/network/config: unchanged\n"), "{printed}");
}

#[test]
fn leases_are_listed_as_the_store_has_them() {
    let store = Embedded::start("lease");
    assert_eq!(store.run("lease list"), (Ok(Exit::Done), "no leases\n".to_owned()));
    let (network, _) =
        NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#).unwrap();
    let claim = Claim {
        avoid: Vec::new(),
        public: ["192.168.0.7".parse::<std::net::IpAddr>().unwrap()].into_iter().collect(),
        attrs: BackendAttrs::plain("host-gw"),
        previous: "10.5.7.0-24".parse().ok(),
        network: network.into(),
        node: Some("node-7".to_owned()),
    };
    let given = Given { name: "etcd-endpoints", value: format!("http://{}", store.address) };
    let raw = RawConfig::gather(&[given], &Environment::new());
    let client = subnet_lease::open(&NodeConfig::understand(&raw, "h").unwrap().store).unwrap();
    block_on(async { Ok(client.claim(&claim).await?) }).unwrap();
    let (ended, printed) = store.run("lease list");
    assert_eq!(ended, Ok(Exit::Done));
    let words: Vec<_> = printed.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(words[..4], ["10.5.7.0/24", "192.168.0.7", "node-7", "host-gw"], "{printed}");
    let (_, printed) = store.run("lease list --output json");
    let listed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(listed["leases"][0]["node"], "node-7");
    for word in ["node-7", "192.168.0.7", "10.5.7.9", "10.5.7.0/24"] {
        let (ended, printed) = store.run(&format!("lease show {word}"));
        assert!(ended == Ok(Exit::Done) && printed.contains("host-gw"), "{word}: {printed}");
    }
    let (ended, _) = store.run("lease show node-8");
    assert!(ended.unwrap_err().message.starts_with("node-8: no lease has this node"));
    let (ended, printed) = store.run("lease release node-7 --force -o json");
    let released: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((ended, &released["done"]), (Ok(Exit::Done), &"released".into()));
}

#[test]
fn a_store_that_is_not_there_has_its_own_exit_code() {
    let store = Embedded::start("gone");
    let address = store.address;
    drop(store);
    let (ended, printed) = flannelctl(&format!("lease list --etcd-endpoints=http://{address}"));
    assert_eq!((ended.unwrap_err().exit, printed.as_str()), (Exit::Store, ""));
}

#[test]
fn config_shows_what_a_daemon_with_the_same_flags_and_variables_would_use() {
    let environment = [("FLANNELD_ETCD_PASSWORD", "hunter2"), ("FLANNELD_ETCD_USERNAME", "root")];
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (ended, printed) = with("config --iface eth1 --iface=eth0 --ip-masq --healthz-port -1", &environment);
    assert_eq!(ended, Ok(Exit::Done));
    let line = |name: &str| {
        let line = printed.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("iface"), "eth1, eth0 flag");
    assert_eq!(line("ip-masq"), "true flag");
    assert_eq!(line("healthz-port"), "-1 flag");
    assert_eq!(line("etcd-password"), "*** FLANNELD_ETCD_PASSWORD");
    assert_eq!(line("etcd-prefix"), "/coreos.com/network default");
    let (_, printed) = with("config -o json --etcd-prefix=/a", &environment);
    let listed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let prefix = serde_json::json!({ "name": "etcd-prefix", "value": "/a", "source": "flag" });
    assert!(listed.as_array().unwrap().contains(&prefix), "{printed}");
}

#[test]
fn an_unknown_word_a_missing_verb_and_a_wrong_setting_have_the_daemon_s_codes() {
    assert_eq!(flannelctl("bogus").0, Ok(Exit::Word));
    assert_eq!(flannelctl("lease bogus").0, Ok(Exit::Word));
    assert_eq!(flannelctl("").0, Ok(Exit::Invalid));
    assert_eq!(flannelctl("config --bogus").0, Ok(Exit::Invalid));
    assert_eq!(flannelctl("config --help").0, Ok(Exit::Done));
    assert_eq!(flannelctl("config --healthz-port=x").0.unwrap_err().exit, Exit::Invalid);
    assert_eq!(flannelctl("config --kube-subnet-mgr").0.unwrap_err().exit, Exit::Invalid);
    assert_eq!(flannelctl("network check /nowhere").0.unwrap_err().exit, Exit::Invalid);
}

/// Answers questions about a network's node in a thread, until the sender is dropped.
fn daemon(config: &NodeConfig, status: &Status) -> oneshot::Sender<()> {
    let (config, status) = (config.clone(), status.clone());
    let (sender, receiver) = std::sync::mpsc::channel();
    let (stop, mut stopped) = oneshot::channel::<()>();
    let serve = async move {
        let SocketState::Ours(listener) = socket::take(&config.daemons, &config.core.network).await else {
            panic!("{:?} is taken", config.daemons)
        };
        let (asks, mut asked) = mpsc::channel::<StatusRequest>(1);
        tokio::spawn(socket::serve(listener, asks));
        sender.send(()).unwrap();
        loop {
            tokio::select! {
                Some(asker) = asked.recv() => asker.answer.send(status.clone()).unwrap(),
                _ = &mut stopped => return Ok(()),
            }
        }
    };
    std::thread::spawn(move || block_on(serve).unwrap());
    receiver.recv().unwrap();
    stop
}

/// A node whose daemons' folder and subnet file are a test's own.
fn node() -> (tempfile::TempDir, NodeConfig) {
    let outer = tempfile::tempdir().unwrap();
    let raw = RawConfig::gather(&[], &Environment::new());
    let (daemons, subnet_file) = (outer.path().join("daemons"), outer.path().join("subnet.env"));
    std::fs::create_dir(&daemons).unwrap();
    std::fs::set_permissions(&daemons, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let config = NodeConfig { daemons, subnet_file, ..NodeConfig::understand(&raw, "h").unwrap() };
    (outer, config)
}

#[test]
fn status_is_what_the_daemon_of_this_network_says_and_so_is_the_exit_code() {
    let (_outer, config) = node();
    let ask = || status::run(&status::Arguments { wait: None }, &config);
    let refused = ask().unwrap_err();
    assert_eq!(refused.exit, Exit::NotReady);
    assert!(refused.message.starts_with("no flanneld of network /coreos.com/network runs here"), "{refused}");
    let red = Status { reasons: vec!["waiting for a lease".to_owned()], ..Status::default() };
    let _daemon = daemon(&config, &red);
    let (answer, ended) = ask().unwrap();
    assert_eq!(ended, Exit::NotReady);
    let printed = answer.print(Form::Text, None);
    assert!(printed.contains("waiting for a lease"), "{printed}");
    assert_eq!(serde_json::from_str::<Status>(&answer.print(Form::Json, None)).unwrap(), red);
}

#[test]
fn status_waits_until_the_node_is_ready() {
    let (_outer, config) = node();
    let asked = status::run(&status::Arguments { wait: Some(0) }, &config);
    assert_eq!(asked.unwrap_err().exit, Exit::NotReady);
    let later = std::thread::spawn({
        let config = config.clone();
        move || status::run(&status::Arguments { wait: Some(60) }, &config)
    });
    let _daemon = daemon(&config, &Status { ready: true, ..Status::default() });
    let (answer, ended) = later.join().unwrap().unwrap();
    let printed = answer.print(Form::Text, None);
    let first: Vec<_> = printed.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!((ended, &first[..]), (Exit::Done, &["READY", "yes"][..]), "{printed}");
}

#[test]
fn cleanup_is_refused_beside_a_daemon_that_runs() {
    let (_outer, config) = node();
    let _daemon = daemon(&config, &Status::default());
    let Failure { exit, message } = cleanup::run(&cleanup::Arguments::default(), &config).unwrap_err();
    assert_eq!(exit, Exit::Rival);
    assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
}

/// Every word of the help is whole at any width, and every verb has its two forms.
#[test]
fn the_help_of_every_verb_wraps_between_words() {
    fn words(command: &mut clap::Command, width: usize) -> Vec<String> {
        let mut copy = command.clone().term_width(width);
        let text = copy.render_long_help().to_string();
        let mut all: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        for verb in command.get_subcommands_mut() {
            all.extend(words(verb, width));
        }
        all
    }
    let wide = words(&mut command(), 1000);
    for width in [60, 80, 100] {
        assert_eq!(words(&mut command(), width), wide, "{width}");
    }
    let text = command().term_width(80).render_long_help().to_string();
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn the_verbs_and_flags_fit_together() {
    command().debug_assert();
}
