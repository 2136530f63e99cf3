//! A whole cluster: a net, a store, and on every host a daemon and a pod.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::flannel::{Backend, Products, Store, StoreKind, daemon_flags, net_conf, wait_for_subnet};
use crate::pod::Pod;
use crate::process::{Process, Program};
use crate::topology::{Family, Net, Topology, eventually};

/// The description of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Number of hosts.
    pub hosts: usize,
    /// How packets travel between them.
    pub backend: Backend,
    /// Which program keeps the leases.
    pub store: StoreKind,
    /// Families of pods and underlay alike.
    pub family: Family,
    /// Keys that replace those of the net-conf.
    pub network: Map<String, Value>,
    /// More flags for every daemon.
    pub flags: Vec<String>,
    /// The run's name, when it has one.
    pub name: Option<String>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            hosts: 3,
            backend: Backend::default(),
            store: StoreKind::default(),
            family: Family::default(),
            network: Map::new(),
            flags: Vec::new(),
            name: None,
        }
    }
}

impl Spec {
    /// The cluster's net-conf.
    pub fn net_conf(&self) -> Value {
        let mut conf = net_conf(self.hosts, self.backend, self.family);
        if let Some(conf) = conf.as_object_mut() {
            conf.extend(self.network.clone());
        }
        conf
    }
}

/// A cluster as a file describes it. Missing keys come from flags or defaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    hosts: Option<usize>,
    backend: Option<String>,
    store: Option<String>,
    family: Option<String>,
    #[serde(default)]
    network: Map<String, Value>,
}

impl SpecFile {
    /// Reads a file; an error names the file and the fault.
    pub fn read(path: &str) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
        serde_json::from_str(&text).with_context(|| path.to_owned())
    }

    /// The spec that the file describes.
    pub fn spec(self) -> Result<Spec> {
        let default = Spec::default();
        Ok(Spec {
            hosts: self.hosts.unwrap_or(default.hosts),
            backend: word("backend", self.backend)?,
            store: word("store", self.store)?,
            family: word("family", self.family)?,
            network: self.network,
            flags: Vec::new(),
            name: None,
        })
    }
}

fn word<T: std::str::FromStr<Err = String> + Default>(key: &str, text: Option<String>) -> Result<T> {
    match text.map(|text| text.parse()) {
        None => Ok(T::default()),
        Some(Ok(value)) => Ok(value),
        Some(Err(reason)) => bail!("{key}: {reason}"),
    }
}

/// A running cluster. Dropping it ends it.
#[derive(Debug)]
pub struct Cluster {
    /// One pod a host, in the hosts' order.
    pub pods: Vec<Pod>,
    /// One daemon per host, in the order of the hosts.
    pub daemons: Vec<Process>,
    /// The store with the leases.
    pub store: Store,
    /// The hosts.
    pub net: Net,
    spec: Spec,
    products: Products,
}

impl Cluster {
    /// Hosts, wires and the store with its net-conf; no daemon yet.
    pub fn prepare(spec: &Spec, products: &Products) -> Result<Self> {
        let mut topology = Topology::flat(spec.hosts).family(spec.family);
        if let Some(name) = &spec.name {
            topology = topology.named(name);
        }
        let net = Net::build(topology)?;
        let store = Store::start(net.store(), spec.store, products)?;
        Ok(Self {
            pods: Vec::new(),
            daemons: Vec::new(),
            store,
            net,
            spec: spec.clone(),
            products: products.clone(),
        })
    }

    /// Builds the whole cluster and waits until its pods reach each other.
    pub fn up(spec: &Spec, products: &Products) -> Result<Self> {
        let mut cluster = Self::prepare(spec, products)?;
        cluster.set_network()?;
        cluster.start_daemons()?;
        cluster.add_pods()?;
        cluster.wait_for_pings(Duration::from_secs(20))?;
        Ok(cluster)
    }

    /// Its description.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The environment in which `flannelctl` on a host finds the store, and has the settings of the daemons.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let programs = self.products.flanneld.parent().unwrap_or_else(|| Path::new("/usr/bin"));
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        let flags = daemon_flags(&self.store).into_iter().chain(self.spec.flags.clone());
        flags
            .map(|flag| variable(&flag))
            .chain([("PATH".to_owned(), format!("{}:{path}", programs.display()))])
            .collect()
    }

    /// Writes the net-conf into the store.
    pub fn set_network(&self) -> Result<()> {
        self.store.set_network(&self.products, &self.spec.net_conf())
    }

    /// Starts a daemon on every host that has none, all at once, and waits for their subnets.
    pub fn start_daemons(&mut self) -> Result<()> {
        let first = self.daemons.len();
        for host in &self.net.hosts()[first..] {
            self.daemons.push(host.spawn(&self.daemon())?);
        }
        for (host, daemon) in self.net.hosts().iter().zip(&self.daemons).skip(first) {
            wait_for_subnet(host, daemon, Duration::from_secs(20))?;
        }
        Ok(())
    }

    /// Makes a pod on every host that has none.
    pub fn add_pods(&mut self) -> Result<()> {
        for host in &self.net.hosts()[self.pods.len()..] {
            let pod = Pod::add(host, "pod", &self.products.cni())?;
            // Two hosts with one subnet would each answer pings to its own pod.
            let double = self.pods.iter().find(|other| shares_address(other, &pod));
            if let Some(other) = double {
                bail!("{} and {} have the same address", other.name(), pod.name());
            }
            self.pods.push(pod);
        }
        Ok(())
    }

    /// One more host, with daemon and pod.
    pub fn join(&mut self) -> Result<&Pod> {
        self.net.add_host()?;
        self.start_daemons()?;
        self.add_pods()?;
        self.pods.last().context("the cluster has no pod")
    }

    /// Sets the flags of daemons that start from now on.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.spec.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// Starts a host's daemon again, as a supervisor would.
    pub fn restart_daemon(&mut self, number: usize) -> Result<()> {
        self.daemons[number].kill();
        self.daemons[number] = self.net.host(number).spawn(&self.daemon())?;
        Ok(())
    }

    /// The daemon with the flags of flannel's own manifest.
    fn daemon(&self) -> Program {
        self.products.daemon(&self.store).args(self.spec.flags.clone())
    }

    /// Waits until every pod reaches every other in every family.
    pub fn wait_for_pings(&self, patience: Duration) -> Result<Duration> {
        eventually(patience, || self.pings(Duration::from_millis(100)).map(drop))
    }

    /// Every pod pings every other in every family: (from, to, round trip).
    pub fn pings(&self, patience: Duration) -> Result<Vec<(usize, usize, Duration)>> {
        let mut all = Vec::new();
        for (from, pod) in self.pods.iter().enumerate() {
            for (to, other) in self.pods.iter().enumerate().filter(|(to, _)| *to != from) {
                for family in self.spec.family.each() {
                    all.push((from, to, pod.ping(other, *family, patience)?));
                }
            }
        }
        Ok(all)
    }
}

/// The variable of a flag: `--ip-masq` is `FLANNELD_IP_MASQ=true`.
fn variable(flag: &str) -> (String, String) {
    let (name, value) = flag.split_once('=').unwrap_or((flag, "true"));
    let name = name.trim_start_matches('-').replace('-', "_").to_uppercase();
    (format!("FLANNELD_{name}"), value.to_owned())
}

fn shares_address(one: &Pod, other: &Pod) -> bool {
    one.addresses().iter().any(|address| other.addresses().contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_the_flags_say() {
        let file: SpecFile = serde_json::from_str(
            r#"{"hosts": 5, "backend": "host-gw", "network": {"Network": "10.9.0.0/16"}}"#,
        )
        .unwrap();
        let spec = file.spec().unwrap();
        assert_eq!((spec.hosts, spec.backend, spec.store), (5, Backend::HostGw, StoreKind::Embedded));
        assert_eq!(spec.net_conf()["Network"], "10.9.0.0/16");
        assert_eq!(spec.net_conf()["Backend"]["Type"], "host-gw");
    }

    #[test]
    fn a_flag_is_given_to_programs_inside_a_lab_as_a_variable() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(variable("--ip-masq"), pair("FLANNELD_IP_MASQ", "true"));
        assert_eq!(
            variable("--etcd-endpoints=http://[fd30::1]:2379"),
            pair("FLANNELD_ETCD_ENDPOINTS", "http://[fd30::1]:2379")
        );
    }

    #[test]
    fn a_wrong_word_in_a_file_is_refused_by_its_key() {
        let file: SpecFile = serde_json::from_str(r#"{"store": "redis"}"#).unwrap();
        assert_eq!(file.spec().unwrap_err().to_string(), "store: \"redis\" is not embedded or etcd");
        assert!(serde_json::from_str::<SpecFile>(r#"{"host": 5}"#).is_err());
    }
}
