//! The one place that makes a store from its configuration.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "etcd")]
use super::etcd::{EtcdConfig, EtcdStore};
#[cfg(feature = "kube")]
use super::kube::{KubeConfig, KubeStore};
use super::{MemoryStore, Store, StoreError};
use crate::model::lease::NetworkId;

/// Which store, and how it is reached.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// An etcd, or the embedded store.
    #[cfg(feature = "etcd")]
    Etcd(EtcdConfig),
    /// A Kubernetes cluster.
    #[cfg(feature = "kube")]
    Kube(KubeConfig),
    /// In this process, for tests.
    Memory(MemoryStore),
}

/// Checks the configuration and returns at once; connections are made when needed.
pub fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match config {
        #[cfg(feature = "etcd")]
        StoreConfig::Etcd(config) => Arc::new(EtcdStore::connect(config.clone())?),
        #[cfg(feature = "kube")]
        StoreConfig::Kube(config) => Arc::new(KubeStore::connect(config.clone())?),
        StoreConfig::Memory(store) => Arc::new(store.clone()),
    })
}

impl StoreConfig {
    /// How long before its end a lease is renewed.
    pub fn renew_margin(&self) -> Duration {
        match self {
            #[cfg(feature = "etcd")]
            Self::Etcd(config) => config.renew_margin,
            // Nothing ends there.
            #[cfg(feature = "kube")]
            Self::Kube(_) => Duration::ZERO,
            Self::Memory(_) => Duration::from_secs(60 * 60),
        }
    }

    /// Where it is reached, as URLs; none where it is in this process.
    pub fn endpoints(&self) -> &[String] {
        match self {
            #[cfg(feature = "etcd")]
            Self::Etcd(config) => &config.endpoints,
            #[cfg(feature = "kube")]
            Self::Kube(_) => &[],
            Self::Memory(_) => &[],
        }
    }

    /// The endpoints that are addresses and no names.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let host = |url: &String| {
            let (_, rest) = url.split_once("://")?;
            let (host, _) = rest.trim_end_matches('/').rsplit_once(':')?;
            host.trim_matches(['[', ']']).parse().ok()
        };
        self.endpoints().iter().filter_map(host).collect()
    }

    /// By what links, sockets and files of this host know the network. The text is on users' kernels: that of an etcd
    /// network is its prefix, and stays so.
    pub fn network_id(&self) -> NetworkId {
        match self {
            #[cfg(feature = "etcd")]
            Self::Etcd(config) => NetworkId::new(&*config.prefix),
            #[cfg(feature = "kube")]
            Self::Kube(config) => NetworkId::new(format!("kubernetes/{}", config.annotation_prefix)),
            Self::Memory(_) => NetworkId::default(),
        }
    }
}
