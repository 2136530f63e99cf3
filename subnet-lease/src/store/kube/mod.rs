//! Leases in Kubernetes: a Node's podCIDRs, and flannel's annotations on it.
//!
//! ```text
//!   Node    spec.podCIDRs            the subnets; kube-controller-manager gives them
//!           metadata.annotations     where the host is reached and how: ours to write, of our own Node alone
//!           status.conditions        NetworkUnavailable, as the data path is
//!
//!   claim:  read our Node ──▶ do its podCIDRs fit? ──▶ one PATCH with what differs, for this UID
//!   watch:  all Nodes as a stream (or in pages) ──▶ changes ──▶ table ──▶ events; a gap leads back to all Nodes
//! ```
//!
//! Nodes are read in place from Kubernetes' protobuf: what a heartbeat changes is skipped by its length. Credentials are read
//! anew for every connection. Two Nodes with one podCIDR: the older one holds it, and the other one is named.

mod annotations;
mod config;
mod events;
mod exec;
mod fault;
mod follow;
mod frames;
mod http;
mod kubeconfig;
mod listing;
mod node;
mod operating;
mod own;
mod proto;
mod publish;
mod table;
mod yaml;

use std::future::ready;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_core::stream::BoxStream;
use tokio::sync::watch;

pub use config::{KubeConfig, NodeName};

use crate::admit::claim::Claim;
use crate::model::lease::{Lease, OwnLease, PublicAddrs};
use crate::model::net::{Family, Subnets};
use crate::store::{
    Allocation, Answer, DataPath, Entry, Listed, Shown, Store, StoreError, StoreEvent, StoredConfig, Version,
};
use annotations::{NODE_PUBLIC, Prefix};
use http::{Ask, Dialer};
use node::Node;
use own::Own;
use proto::object;

/// The store in a Kubernetes cluster. Clones share what is known of our own Node.
#[derive(Clone, Debug)]
pub struct KubeStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dialer: Dialer,
    prefix: Prefix,
    name: String,
    /// Our Node as the watch shows it.
    own: watch::Sender<Own>,
    /// The addresses that we last asked to publish.
    claimed: watch::Sender<Option<PublicAddrs>>,
    /// The data path as it is, and as the Node's condition is to say it.
    path: watch::Sender<DataPath>,
    condition: watch::Sender<DataPath>,
    /// What an operator must know of this node.
    remarks: watch::Sender<Vec<String>>,
    /// Our Node as it was when a claim found something wrong with it.
    refused: Mutex<Option<Own>>,
    seed: u64,
}

impl KubeStore {
    /// Checks the configuration and returns at once; connections are made when needed. The Node must be given by name, see
    /// [`find_node`].
    pub fn connect(config: KubeConfig) -> Result<Self, StoreError> {
        let prefix = Prefix::new(&config.annotation_prefix)?;
        let name = match &config.node {
            NodeName::Name(name) if is_name(name) => name.clone(),
            NodeName::Name(name) => {
                return Err(StoreError::Config(format!("{name:?} is not the name of a Node")));
            }
            NodeName::Pod { name, .. } => {
                return Err(StoreError::Config(format!("it is not known on which Node the pod {name} runs")));
            }
        };
        let shared = Shared {
            dialer: Dialer::new(config)?,
            prefix,
            name,
            own: watch::Sender::default(),
            claimed: watch::Sender::default(),
            path: watch::Sender::default(),
            condition: watch::Sender::default(),
            remarks: watch::Sender::default(),
            refused: Mutex::new(None),
            seed: RandomState::new().hash_one(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

/// The name of our Node: as it is given, or of the Node on which our pod runs.
pub async fn find_node(config: &KubeConfig) -> Result<String, StoreError> {
    let (namespace, name) = match &config.node {
        NodeName::Name(name) => return Ok(name.clone()),
        NodeName::Pod { namespace, name } => (namespace, name),
    };
    if !is_name(namespace) || !is_name(name) {
        return Err(StoreError::Config(format!(
            "POD_NAME is {name:?} and POD_NAMESPACE {namespace:?}: not a pod"
        )));
    }
    let dialer = Dialer::new(config.clone())?;
    let mut connection = dialer.connect().await?;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let bytes = connection.whole(Ask::get(&path)).await.map_err(StoreError::from)?;
    let found = || {
        for field in object(&bytes).ok()?.1 {
            // PodSpec, nodeName.
            let (2, spec) = field.ok()? else { continue };
            let mut fields = spec.fields().ok()?.flatten();
            return fields.find_map(|(number, value)| (number == 10).then(|| value.text().ok())?);
        }
        None
    };
    let found = found().filter(|node| !node.is_empty()).map(str::to_owned);
    found.ok_or_else(|| StoreError::Failing(format!("the pod {namespace}/{name} is on no Node")))
}

/// The addresses that an operator chose for our Node, by its annotations `node-public-ip` and `node-public-ipv6`.
pub async fn chosen_addresses(config: &KubeConfig) -> Result<PublicAddrs, StoreError> {
    let prefix = Prefix::new(&config.annotation_prefix)?;
    let NodeName::Name(name) = &config.node else { return Ok(PublicAddrs::default()) };
    let mut connection = Dialer::new(config.clone())?.connect().await?;
    let bytes =
        connection.whole(Ask::get(&format!("{}/{name}", listing::NODES))).await.map_err(StoreError::from)?;
    let node = object(&bytes).and_then(|(_, fields)| Node::read(fields, &prefix));
    let node = node
        .map_err(|_| StoreError::Unsupported("the API server's answer is not Kubernetes' protobuf".into()))?;
    let mut public = PublicAddrs::default();
    for (n, family) in Family::ALL.into_iter().enumerate() {
        let Some(text) = node.annotations.asked(NODE_PUBLIC[n]) else { continue };
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) if family == Family::V4 => public.v4 = Some(address),
            Ok(IpAddr::V6(address)) if family == Family::V6 => public.v6 = Some(address),
            _ => {
                let what = ["node-public-ip", "node-public-ipv6"][n];
                return Err(StoreError::Failing(format!(
                    "the annotation {what} of Node {name} is {text:?}, not an {family} address"
                )));
            }
        }
    }
    Ok(public)
}

/// What Kubernetes allows as a name: it goes into a path as it is.
fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty() && text.len() <= 253 && text.chars().all(good) && !text.starts_with(['.', '-'])
}

impl Shared {
    fn name(&self) -> &str {
        &self.name
    }

    fn refused(&self) -> MutexGuard<'_, Option<Own>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for KubeStore {
    fn claim<'a>(&'a self, claim: &'a Claim) -> Answer<'a, OwnLease> {
        Box::pin(publish::claim(&self.shared, claim))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> Answer<'a, bool> {
        Box::pin(publish::release(&self.shared, lease))
    }

    fn watch(&self) -> BoxStream<'static, StoreEvent> {
        follow::follow(Arc::clone(&self.shared))
    }

    fn set_data_path(&self, path: DataPath) {
        self.shared.path.send_replace(path);
    }

    fn set_remarks(&self, remarks: &[String]) {
        self.shared.remarks.send_replace(remarks.to_vec());
    }

    fn name(&self) -> String {
        self.shared.dialer.config.annotation_prefix.clone()
    }

    fn allocation(&self) -> Allocation {
        Allocation::Assigned
    }

    fn get_config(&self) -> Answer<'_, Option<StoredConfig>> {
        Box::pin(ready(operating::config(&self.shared)))
    }

    fn put_config<'a>(&'a self, _json: &'a [u8], _seen: Option<&'a Version>) -> Answer<'a, Version> {
        Box::pin(ready(operating::config_is_a_file(&self.shared)))
    }

    fn list(&self) -> Answer<'_, Listed> {
        Box::pin(operating::list(&self.shared))
    }

    fn show<'a>(&'a self, subnets: &'a Subnets) -> Answer<'a, Option<Shown>> {
        Box::pin(operating::show(&self.shared, subnets))
    }

    fn reserve<'a>(&'a self, _lease: &'a Lease, _shown: Option<&'a Shown>) -> Answer<'a, ()> {
        Box::pin(ready(operating::assigned()))
    }

    fn unreserve<'a>(&'a self, _shown: &'a Shown) -> Answer<'a, ()> {
        Box::pin(ready(operating::assigned()))
    }

    fn end<'a>(&'a self, _shown: &'a Shown) -> Answer<'a, ()> {
        Box::pin(ready(operating::assigned()))
    }

    fn export(&self) -> Answer<'_, Vec<Entry>> {
        Box::pin(operating::export(&self.shared))
    }

    fn import<'a>(&'a self, _entries: &'a [Entry], _replace: bool) -> Answer<'a, ()> {
        Box::pin(ready(operating::assigned()))
    }
}
