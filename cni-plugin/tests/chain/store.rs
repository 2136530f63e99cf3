//! One store of addresses for two programs: the reference host-local and ours, at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::host::peers;

/// At once, as a busy runtime.
const WORKERS: usize = 8;
/// Of each worker: an ADD and a DEL each.
const ROUNDS: usize = 125;

struct Store {
    folder: PathBuf,
    conf: String,
    /// Who has which address, by what the programs answered.
    held: Mutex<BTreeMap<String, String>>,
    calls: AtomicUsize,
}

impl Store {
    fn call(&self, ours: bool, verb: &str, container: &str) -> (bool, Value) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let program = if ours { Path::new(env!("CARGO_BIN_EXE_cni-plugin")).into() } else { reference() };
        let mut command = Command::new(program);
        command.arg0("host-local").env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", container), ("CNI_IFNAME", "eth0")]);
        command.envs([("CNI_NETNS", "/nowhere"), ("CNI_PATH", "/nowhere")]);
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(self.conf.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    fn worker(&self, n: usize) {
        for round in 0..ROUNDS {
            // Every order of the two comes up, and every fourth container stays a while.
            let (adds, deletes) = ((n + round).is_multiple_of(2), (n + round / 2).is_multiple_of(2));
            let container = format!("c{n}-{round}");
            let (well, result) = self.call(adds, "ADD", &container);
            assert!(well, "{result}");
            let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
            let before = self.held.lock().unwrap().insert(address.clone(), container.clone());
            assert_eq!(before, None, "{address} has two holders, {container} among them");
            self.held.lock().unwrap().remove(&address);
            let (well, answer) = self.call(deletes, "DEL", &container);
            assert!(well, "{answer}");
        }
    }
}

fn reference() -> PathBuf {
    peers().join("host-local")
}

#[test]
fn the_reference_host_local_and_ours_share_a_store_over_two_thousand_calls() {
    let folder = std::env::temp_dir().join(format!("selvage-store-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let conf = json!({ "cniVersion": "1.0.0", "name": "net", "type": "host-local", "ipam": {
        "type": "host-local", "subnet": "10.77.0.0/27",
        "dataDir": folder.join("networks"), "indexDir": folder.join("index") } });
    let store = Store { conf: conf.to_string(), folder, held: Mutex::default(), calls: AtomicUsize::new(0) };
    thread::scope(|scope| {
        (0..WORKERS).for_each(|n| {
            drop(scope.spawn({
                let store = &store;
                move || store.worker(n)
            }))
        })
    });
    assert_eq!(store.calls.load(Ordering::Relaxed), 2000);
    let mut names: Vec<_> = fs::read_dir(store.folder.join("networks/net"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["last_reserved_ip.0", "lock"]);
    let last = fs::read_to_string(store.folder.join("networks/net/last_reserved_ip.0")).unwrap();
    assert!(last.parse::<std::net::IpAddr>().is_ok(), "{last:?}");
    fs::remove_dir_all(&store.folder).unwrap();
}
