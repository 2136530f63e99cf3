//! What an operator sees with `flannelctl`, and what is not his to change here.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Shared, follow, listing};
use crate::model::lease::Lease;
use crate::model::net::Subnets;
use crate::store::{Entry, Listed, Shown, StoreError, StoredConfig, Version};

/// The network's configuration.
pub(super) fn config(shared: &Shared) -> Result<Option<StoredConfig>, StoreError> {
    let path = &shared.dialer.config.net_conf;
    if !path.exists() {
        return Ok(None);
    }
    let json = follow::read_config(path).map_err(StoreError::Failing)?;
    let mut hasher = DefaultHasher::new();
    json.hash(&mut hasher);
    Ok(Some(StoredConfig { json, version: Version(format!("{:016x}", hasher.finish())) }))
}

pub(super) async fn list(shared: &Shared) -> Result<Listed, StoreError> {
    let mut connection = shared.dialer.connect().await?;
    let listed = listing::paged(shared, &mut connection).await?;
    let (_, leases, unreadable) = listed.listing.finish();
    Ok(Listed { leases: leases.into_iter().map(|lease| (lease, None)).collect(), unreadable })
}

pub(super) async fn show(shared: &Shared, subnets: &Subnets) -> Result<Option<Shown>, StoreError> {
    let all = list(shared).await?.leases.into_iter().map(|(lease, _)| lease);
    let shown = |lease: Lease| Shown {
        record: lease.to_record(),
        time: None,
        version: Version(lease.epoch.to_string()),
        lease,
    };
    Ok(all.into_iter().find(|lease| lease.subnets == *subnets).map(shown))
}

pub(super) async fn export(shared: &Shared) -> Result<Vec<Entry>, StoreError> {
    let config =
        config(shared)?.map(|stored| Entry { key: "config".to_owned(), value: stored.json, ttl: None });
    let lease = |(lease, _): (Lease, _)| Entry {
        key: format!("subnets/{}", lease.subnets),
        value: lease.to_record(),
        ttl: None,
    };
    Ok(config.into_iter().chain(list(shared).await?.leases.into_iter().map(lease)).collect())
}

/// What Kubernetes decides.
pub(super) fn assigned<T>() -> Result<T, StoreError> {
    let why = "Kubernetes assigns subnets, as podCIDRs of its Nodes: they end with their Node (kubectl delete node)";
    Err(StoreError::Unsupported(why.to_owned()))
}

pub(super) fn config_is_a_file<T>(shared: &Shared) -> Result<T, StoreError> {
    let path = shared.dialer.config.net_conf.display();
    Err(StoreError::Unsupported(format!(
        "in Kubernetes the network's configuration is the file {path}, from a ConfigMap (kubectl edit configmap \
         kube-flannel-cfg)"
    )))
}
