use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use subnet_lease::{BackendAttrs, BoxStream, Claim, Lease, NetworkConfig, StoreEvent, Subnets, VxlanData};

/// Far above what anything here takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The claim of a vxlan host with these addresses.
pub(crate) fn claim(network: &str, public: &[&str]) -> Claim {
    let (network, _) = NetworkConfig::parse(network.as_bytes()).unwrap();
    let addrs: Vec<IpAddr> = public.iter().map(|addr| addr.parse().unwrap()).collect();
    let data = |v4: bool| {
        let addr = addrs.iter().find(|addr| addr.is_ipv4() == v4)?;
        let last = match addr {
            IpAddr::V4(addr) => addr.octets()[3],
            IpAddr::V6(addr) => addr.octets()[15],
        };
        Some(VxlanData { vni: 1, mac: [2, 0, 0, 0, 0, last] })
    };
    Claim {
        avoid: Vec::new(),
        attrs: BackendAttrs::vxlan(data(true), data(false)),
        public: addrs.iter().copied().collect(),
        previous: None,
        network: Arc::new(network),
        node: None,
    }
}

pub(crate) fn key(text: &str) -> Subnets {
    text.parse().unwrap()
}

pub(crate) async fn next(watch: &mut BoxStream<'static, StoreEvent>) -> StoreEvent {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("an event in time").expect("a watch never ends")
}

/// The next event that `pick` takes; others are passed over.
pub(crate) async fn until<T>(
    watch: &mut BoxStream<'static, StoreEvent>,
    mut pick: impl FnMut(StoreEvent) -> Option<T>,
) -> T {
    loop {
        if let Some(found) = pick(next(watch).await) {
            return found;
        }
    }
}

pub(crate) async fn snapshot(
    watch: &mut BoxStream<'static, StoreEvent>,
) -> (Vec<Lease>, Vec<(String, String)>) {
    until(watch, |event| match event {
        StoreEvent::Snapshot { leases, unreadable, .. } => Some((leases, unreadable)),
        _ => None,
    })
    .await
}

pub(crate) async fn stale(watch: &mut BoxStream<'static, StoreEvent>) -> String {
    until(watch, |event| match event {
        StoreEvent::Stale(reason) => Some(reason),
        _ => None,
    })
    .await
}
