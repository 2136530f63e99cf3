//! The product as command lines: the store, the daemon, its control program and the CNI plugin.
//!
//! Any flannel-compatible daemon works: only its flags are used here.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::host::Host;
use crate::pod::Cni;
use crate::process::{Process, Program};
use crate::topology::{Family, UPLINK, eventually};

/// flannel's default prefix of keys.
pub const PREFIX: &str = "/coreos.com/network";

/// The file in which a daemon publishes its subnet on its host.
pub const SUBNET_ENV: &str = "/run/flannel/subnet.env";

const PATIENCE: Duration = Duration::from_secs(10);

/// Where the programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Products {
    /// The daemon, which is also the embedded store.
    pub flanneld: PathBuf,
    /// The control program. If the file does not exist, the daemon is called by that name.
    pub flannelctl: PathBuf,
    /// The CNI plugin `flannel`.
    pub cni: PathBuf,
    /// The capabilities of a daemon, as [`Program::bounded`] takes them; all where this is none.
    pub capabilities: Option<String>,
}

impl Products {
    /// All programs of one directory.
    ///
    /// # Errors
    /// Names the first program that is missing.
    pub fn in_dir(dir: &Path) -> Result<Self> {
        let products = Self {
            flanneld: dir.join("flanneld"),
            flannelctl: dir.join("flannelctl"),
            cni: dir.join("flannel"),
            capabilities: None,
        };
        for program in [&products.flanneld, &products.cni] {
            if !program.exists() {
                bail!(
                    "{}: no such file; `tests/build release` builds it and prints its directory",
                    program.display()
                );
            }
        }
        Ok(products)
    }

    /// The programs of `$SELVAGE_BIN`, else those beside the running one.
    pub fn find() -> Result<Self> {
        let dir = match std::env::var_os("SELVAGE_BIN") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::current_exe()?.parent().context("this program has no directory")?.to_owned(),
        };
        Self::in_dir(&dir)
    }

    /// The control program with the endpoint of `store`.
    pub fn control(&self, store: &Store) -> Program {
        let program = if self.flannelctl.exists() { &self.flannelctl } else { &self.flanneld };
        Program::new(program).called("flannelctl").arg(format!("--etcd-endpoints={}", store.endpoint()))
    }

    /// The control program with the flags of the daemon of that host.
    pub fn control_on_host(&self, store: &Store) -> Program {
        self.control(store).args(node_flags())
    }

    /// A daemon for one of our hosts, with flags that every flannel has.
    pub fn daemon(&self, store: &Store) -> Program {
        let daemon = Program::new(&self.flanneld).args(daemon_flags(store));
        match &self.capabilities {
            Some(names) => daemon.bounded(names),
            None => daemon,
        }
    }

    /// The CNI plugin with flannel's usual configuration.
    pub fn cni(&self) -> Cni {
        Cni::flannel(&self.cni)
    }
}

/// The flags of a daemon that uses `store`.
pub(crate) fn daemon_flags(store: &Store) -> Vec<String> {
    std::iter::once(format!("--etcd-endpoints={}", store.endpoint())).chain(node_flags()).collect()
}

fn node_flags() -> [String; 3] {
    [format!("--subnet-file={SUBNET_ENV}"), format!("--iface={UPLINK}"), "--ip-masq".to_owned()]
}

/// The program that keeps the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreKind {
    /// The product's own.
    #[default]
    Embedded,
    /// etcd, from PATH.
    Etcd,
}

/// How packets travel between hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// In UDP, through a device per family.
    #[default]
    Vxlan,
    /// Plain routes through the peers' underlay addresses.
    HostGw,
}

impl Backend {
    /// The link that carries one family's traffic to other hosts; `family` is not [`Family::Dual`].
    pub fn link(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::HostGw, _) => UPLINK,
            (Self::Vxlan, Family::V6) => "flannel-v6.1",
            (Self::Vxlan, _) => "flannel.1",
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
        })
    }
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Embedded, Self::Etcd];
        all.into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not embedded or etcd"))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        })
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Vxlan, Self::HostGw];
        all.into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not vxlan or host-gw"))
    }
}

/// A running store.
#[derive(Debug)]
pub struct Store {
    host: Host,
    address: SocketAddr,
    program: Program,
    process: Process,
}

impl Store {
    /// Starts a store on `host` and waits until it accepts connections.
    pub fn start(host: &Host, kind: StoreKind, products: &Products) -> Result<Self> {
        let ip = host.addresses().first().context("the store's host has no address")?.ip();
        let address = SocketAddr::new(ip, 2379);
        let program = match kind {
            StoreKind::Embedded => embedded(products, address),
            StoreKind::Etcd => etcd(address),
        };
        let process = host.spawn(&program)?;
        let store = Self { host: host.clone(), address, program, process };
        store.wait()?;
        Ok(store)
    }

    /// The URL for clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The process, for signals and its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Starts it again on its data.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = self.host.spawn(&self.program)?;
        self.wait()
    }

    /// Sets the cluster's net-conf with the product's control program.
    pub fn set_network(&self, products: &Products, conf: &Value) -> Result<()> {
        fs::write(self.host.path("/run/net-conf.json"), conf.to_string())?;
        let program = products.control(self).args(["network", "set", "/run/net-conf.json"]);
        // On a busy machine the first request to a new etcd may time out.
        eventually(3 * PATIENCE, || self.host.exec(&program).map(drop)).map(drop)
    }

    /// Writes keys below [`PREFIX`] with etcdctl, which works with every store; many keys in one transaction.
    pub fn put(&self, pairs: &[(String, String)]) -> Result<()> {
        let puts = pairs.iter().map(|(key, value)| format!("put {} {}\n", quoted_key(key), quoted(value)));
        self.transact(&puts.collect::<Vec<_>>())
    }

    /// Deletes keys below [`PREFIX`] in the same way.
    pub fn delete(&self, keys: &[String]) -> Result<()> {
        self.transact(&keys.iter().map(|key| format!("del {}\n", quoted_key(key))).collect::<Vec<_>>())
    }

    fn transact(&self, lines: &[String]) -> Result<()> {
        // etcd refuses more than 128 operations a transaction.
        for chunk in lines.chunks(100) {
            // A transaction for etcdctl: no conditions, the operations, no alternative.
            let script = format!("\n{}\n\n", chunk.concat());
            eventually(PATIENCE, || self.etcdctl(&["txn"], &script).map(drop))?;
        }
        Ok(())
    }

    /// All keys and values below [`PREFIX`]/`below`, read with etcdctl.
    pub fn list(&self, below: &str) -> Result<BTreeMap<String, String>> {
        let text = self.etcdctl(&["get", "--prefix", &format!("{PREFIX}/{below}")], "")?;
        let lines: Vec<&str> = text.lines().collect();
        Ok(lines.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect())
    }

    fn etcdctl(&self, args: &[&str], stdin: &str) -> Result<String> {
        let program =
            Program::new("etcdctl").env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoint()));
        self.host.exec(&program.args(args).stdin(stdin))
    }

    fn wait(&self) -> Result<()> {
        let log_end = || last_lines(&self.process.log(), 8);
        let connect = || {
            self.host.space().run(|| TcpStream::connect_timeout(&self.address, PATIENCE))?.map_err(Into::into)
        };
        let answer = eventually(PATIENCE, || match self.process.status() {
            Some(_) => Ok(()),
            None => connect().map(drop),
        });
        if let Some(status) = self.process.status() {
            bail!("the store ended: {status}\n{}", log_end());
        }
        answer.map(drop).with_context(|| format!("the store does not answer\n{}", log_end()))
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn quoted_key(key: &str) -> String {
    quoted(&format!("{PREFIX}/{key}"))
}

fn embedded(products: &Products, listen: SocketAddr) -> Program {
    let args = ["store".to_owned(), "--data-dir=/var/lib/selvage".to_owned(), format!("--listen={listen}")];
    Program::new(&products.flanneld).named("store").args(args).arg("--insecure")
}

fn etcd(listen: SocketAddr) -> Program {
    let loopback = if listen.is_ipv6() { "[::1]" } else { "127.0.0.1" };
    Program::new("etcd").args([
        "--name=store".to_owned(),
        "--data-dir=/var/lib/etcd".to_owned(),
        "--logger=zap".to_owned(),
        "--log-level=error".to_owned(),
        format!("--listen-client-urls=http://{listen}"),
        format!("--advertise-client-urls=http://{listen}"),
        format!("--listen-peer-urls=http://{loopback}:2380"),
        format!("--initial-advertise-peer-urls=http://{loopback}:2380"),
        format!("--initial-cluster=store=http://{loopback}:2380"),
    ])
}

/// A net-conf for this many hosts: 10.42.0.0/16 with 254 subnets, else 10.64.0.0/10 with 16,382; fd42::/48.
pub fn net_conf(hosts: usize, backend: Backend, family: Family) -> Value {
    let mut conf = Map::new();
    let network = if hosts > 250 { "10.64.0.0/10" } else { "10.42.0.0/16" };
    conf.insert("EnableIPv4".into(), json!(family != Family::V6));
    conf.insert("EnableIPv6".into(), json!(family != Family::V4));
    // Every fresh host has nf_tables; iptables is a package of its own.
    conf.insert("EnableNFTables".into(), json!(true));
    if family != Family::V6 {
        conf.insert("Network".into(), json!(network));
        conf.insert("SubnetLen".into(), json!(24));
    }
    if family != Family::V4 {
        conf.insert("IPv6Network".into(), json!("fd42::/48"));
        conf.insert("IPv6SubnetLen".into(), json!(64));
    }
    conf.insert("Backend".into(), json!({"Type": backend.to_string()}));
    Value::Object(conf)
}

/// The content of [`SUBNET_ENV`] on a host; `None` while there is no such file.
pub fn subnet_env(host: &Host) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(host.path(SUBNET_ENV)).ok()?;
    Some(
        text.lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.into(), value.into()))
            .collect(),
    )
}

/// Waits until the daemon has written [`SUBNET_ENV`], and returns how long that took. If the daemon ends
/// first, the error has the end of its log.
pub fn wait_for_subnet(host: &Host, daemon: &Process, patience: Duration) -> Result<Duration> {
    let took = eventually(patience, || {
        if host.path(SUBNET_ENV).exists() || daemon.status().is_some() {
            Ok(())
        } else {
            bail!("no {SUBNET_ENV}")
        }
    });
    if let Some(status) = daemon.status() {
        bail!("{} on {} ended: {status}\n{}", daemon.name(), host.name(), last_lines(&daemon.log(), 8));
    }
    took.with_context(|| format!("{} on {}\n{}", daemon.name(), host.name(), last_lines(&daemon.log(), 8)))
}

/// The record of a lease, byte for byte as flannel's vxlan backend writes it (without a TTL), for peers that
/// do not exist: the key below [`PREFIX`], and the value.
pub fn vxlan_lease(subnet: &str, public: IpAddr, mac: &str) -> (String, String) {
    let value = format!(
        "{{\"PublicIP\":\"{public}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
         \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}}}"
    );
    (format!("subnets/{}", subnet.replace('/', "-")), value)
}

/// The end of a log, for messages.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written_and_others_refused_by_name() {
        assert_eq!("host-gw".parse(), Ok(Backend::HostGw));
        assert_eq!("etcd".parse(), Ok(StoreKind::Etcd));
        assert_eq!("vxlam".parse::<Backend>(), Err("\"vxlam\" is not vxlan or host-gw".to_owned()));
    }

    #[test]
    fn a_lease_record_is_flannels() {
        let (key, value) = vxlan_lease("10.5.52.0/24", "192.168.64.3".parse().unwrap(), "c6:d2:32:6f:8f:44");
        assert_eq!(key, "subnets/10.5.52.0-24");
        let expected = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
        assert_eq!(value, expected);
    }

    #[test]
    fn a_large_cluster_gets_a_larger_network() {
        assert_eq!(net_conf(3, Backend::Vxlan, Family::V4)["Network"], "10.42.0.0/16");
        assert_eq!(net_conf(1_000, Backend::Vxlan, Family::V4)["Network"], "10.64.0.0/10");
        assert_eq!(net_conf(3, Backend::Vxlan, Family::V6).get("Network"), None);
    }
}
