//! What we write: our annotations and the condition, on our own Node and nowhere else.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::annotations::{Annotations, MANAGED, OVERWRITE};
use super::fault::{Answer, Fault};
use super::http::{Ask, Connection, PROTOBUF};
use super::listing::NODES;
use super::node::{Condition, Node, UNAVAILABLE};
use super::proto::object;
use super::table::cidrs;
use crate::admit::claim::Claim;
use crate::model::lease::{FiledBy, Lease, OwnLease};
use crate::model::net::{Family, Subnets, contains_net};
use crate::model::netconf::NetworkConfig;
use crate::store::pause::pause;
use crate::store::{DataPath, StoreError};

const PATCH: &str = "application/strategic-merge-patch+json";
/// A claim that waits for the Node to change looks again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// A data path that fails for so long makes the Node unavailable; a restart of the daemon does not.
const UNAVAILABLE_AFTER: Duration = Duration::from_secs(15);

/// Acquires, republishes, or finds that all is so already.
pub(super) async fn claim(shared: &Shared, claim: &Claim) -> Result<OwnLease, StoreError> {
    shared.claimed.send_replace(Some(claim.public));
    // The same would be found again: whoever asks once more waits for the Node to change.
    let refused = shared.refused().take();
    if let Some(refused) = refused {
        let mut own = shared.own.subscribe();
        let _ = timeout(LOOK_AGAIN, own.wait_for(|own| *own != refused)).await;
    }
    let seen = shared.own.borrow().clone();
    let claimed = attempt(shared, claim).await;
    if matches!(claimed, Err(Refused::Node(_))) {
        *shared.refused() = Some(seen);
    }
    claimed.map_err(|refused| match refused {
        Refused::Node(why) => StoreError::Failing(why),
        Refused::Other(fault) => {
            if let Fault::Answer(Answer { code: 401, .. }) = &fault {
                shared.dialer.forget_printed();
            }
            fault.into()
        }
    })
}

enum Refused {
    /// Our Node is not as it must be.
    Node(String),
    Other(Fault),
}

impl<T: Into<Fault>> From<T> for Refused {
    fn from(fault: T) -> Self {
        Self::Other(fault.into())
    }
}

async fn attempt(shared: &Shared, claim: &Claim) -> Result<OwnLease, Refused> {
    let name = shared.name();
    if name.is_empty() {
        return Err(Refused::Node("it is not known which Node is ours".to_owned()));
    }
    if let Some(rival) = shared.own.borrow().rival.clone() {
        return Err(Refused::Node(format!(
            "Node {name} has the podCIDR of Node {rival}, which is older; delete one of the two, and its kubelet registers it \
             again"
        )));
    }
    let mut connection = shared.dialer.connect().await?;
    let bytes = get(&mut connection, name).await?;
    let node = read(shared, &bytes).map_err(Fault::from)?;
    let subnets = node.subnets().map_err(|why| Refused::Node(format!("Node {name}: {why}")))?;
    let subnets = subnets.ok_or_else(|| Refused::Node(no_cidr(name, &claim.network)))?;
    fits(name, &subnets, &claim.network).map_err(Refused::Node)?;
    addresses(name, &node.annotations).map_err(Refused::Node)?;
    let wish = Annotations::wished(claim.public, &claim.attrs, &node.annotations);
    let condition = shared.condition.borrow().clone();
    let condition = condition.change(node.unavailable.as_ref());
    let differ = wish.differ(&node.annotations);
    if !differ.is_empty() || condition.is_some() {
        let annotations = differ.into_iter().map(|place| (shared.prefix.name(place), json!(wish.0[place])));
        let patch = patch(node.uid, annotations.collect(), condition);
        write(&mut connection, name, &patch).await?;
    }
    let lease = Lease {
        node: Some(name.to_owned()),
        epoch: node.created,
        filed_by: FiledBy::Node,
        ..Lease::new(subnets, claim.public, claim.attrs.clone())
    };
    Ok(OwnLease { lease, expires_in: None })
}

/// Our Node's bytes.
async fn get(connection: &mut Connection, name: &str) -> Result<Vec<u8>, Refused> {
    match connection.whole(Ask::get(&format!("{NODES}/{name}"))).await {
        Err(Fault::Answer(Answer { code: 404, .. })) => {
            Err(Refused::Node(format!("there is no Node {name} yet: its kubelet has not registered it")))
        }
        other => other.map_err(Refused::Other),
    }
}

fn read<'a>(shared: &Shared, bytes: &'a [u8]) -> Result<Node<'a>, StoreError> {
    let node = object(bytes).and_then(|(_, fields)| Node::read(fields, &shared.prefix));
    node.map_err(|_| StoreError::Unsupported("the API server's answer is not Kubernetes' protobuf".into()))
}

fn no_cidr(name: &str, network: &NetworkConfig) -> String {
    let networks: Vec<_> = network.pools().map(|pool| pool.network.to_string()).collect();
    format!(
        "Node {name} has no podCIDR: kube-controller-manager gives it one when it runs with --allocate-node-cidrs=true \
         --cluster-cidr={}",
        networks.join(",")
    )
}

/// The Node's subnets must be those of this network, before they are published.
fn fits(name: &str, subnets: &Subnets, network: &NetworkConfig) -> Result<(), String> {
    for pool in network.pools() {
        let (family, whole) = (pool.family(), pool.network);
        let Some(subnet) = subnets.family(family) else {
            return Err(format!(
                "Node {name} has no {family} podCIDR, only {}, and the network has {whole}: kube-controller-manager needs both \
                 families in --cluster-cidr",
                cidrs(subnets)
            ));
        };
        if !contains_net(whole, subnet) {
            return Err(format!("the podCIDR {subnet} of Node {name} is outside the network {whole}"));
        }
    }
    Ok(())
}

/// What is published in place of our addresses must be addresses.
fn addresses<T: AsRef<str>>(name: &str, annotations: &Annotations<T>) -> Result<(), String> {
    for (n, family) in Family::ALL.into_iter().enumerate() {
        let Some(text) = annotations.asked(OVERWRITE[n]) else { continue };
        let parsed: Option<IpAddr> = text.parse().ok();
        if parsed.is_none_or(|address| Family::of(&address) != family) {
            let which = ["public-ip-overwrite", "public-ipv6-overwrite"][n];
            return Err(format!(
                "the annotation {which} of Node {name} is {text:?}, not an {family} address"
            ));
        }
    }
    Ok(())
}

/// Names the Node's UID: one that was deleted and made again under this name is not written.
fn patch(uid: &str, annotations: Map<String, Value>, condition: Option<Value>) -> Vec<u8> {
    let mut patch = json!({"metadata": {"uid": uid}});
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = Value::Object(annotations);
    }
    if let Some(condition) = condition {
        patch["status"] = json!({"conditions": [condition]});
    }
    patch.to_string().into_bytes()
}

async fn write(connection: &mut Connection, name: &str, patch: &[u8]) -> Result<(), Fault> {
    let path = format!("{NODES}/{name}/status");
    let ask =
        Ask { method: Method::PATCH, path: &path, accept: PROTOBUF, body: Some((PATCH, patch.to_vec())) };
    match connection.whole(ask).await {
        // Which of the two it is depends on what the server looks at first.
        Err(Fault::Answer(Answer { code: 409 | 422, message, .. }))
            if message.contains("uid") || message.contains("UID") =>
        {
            Err(StoreError::Raced(format!("Node {name}")).into())
        }
        other => other.map(drop),
    }
}

/// Takes our mark from the Node, if it still says what the lease says.
pub(super) async fn release(shared: &Shared, lease: &Lease) -> Result<bool, StoreError> {
    if lease.node.as_deref() != Some(shared.name()) {
        return Ok(false);
    }
    let mut connection = shared.dialer.connect().await?;
    let bytes = match get(&mut connection, shared.name()).await {
        Ok(bytes) => bytes,
        Err(Refused::Node(_)) => return Ok(false),
        Err(Refused::Other(fault)) => return Err(fault.into()),
    };
    let node = read(shared, &bytes)?;
    if !node.annotations.is_managed() || node.subnets() != Ok(Some(lease.subnets)) {
        return Ok(false);
    }
    let gone = [(shared.prefix.name(MANAGED), Value::Null)].into_iter().collect();
    write(&mut connection, shared.name(), &patch(node.uid, gone, None)).await?;
    Ok(true)
}

impl DataPath {
    /// The condition to write, where the Node's is another.
    fn change<T: AsRef<str>>(&self, now: Option<&Condition<T>>) -> Option<Value> {
        let (status, reason, message) = match self {
            Self::Unknown => return None,
            Self::Works => ("False", "FlannelIsUp", "Flannel is running on this node"),
            Self::Fails(why) => ("True", "FlannelIsNotReady", why.as_str()),
        };
        if now.is_some_and(|now| now.status.as_ref() == status) {
            return None;
        }
        let time = timestamp();
        Some(json!({
            "type": UNAVAILABLE, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": time, "lastTransitionTime": time,
        }))
    }
}

/// Keeps the condition as the data path is. Never ends.
pub(super) async fn keep_condition(shared: &Shared) {
    let mut path = shared.path.subscribe();
    let mut own = shared.own.subscribe();
    let (mut failures, mut said) = (0, None);
    loop {
        let now = path.borrow_and_update().clone();
        if matches!(now, DataPath::Fails(_)) && *shared.condition.borrow() != now {
            // Until it works again, or until it has failed for a while.
            if let Ok(changed) = timeout(UNAVAILABLE_AFTER, path.changed()).await {
                if changed.is_err() {
                    return;
                }
                continue;
            }
        }
        shared.condition.send_replace(now);
        match put_condition(shared, &mut own).await {
            Ok(()) => (failures, said) = (0, None),
            Err(error) => {
                failures += 1;
                let sentence = error.to_string();
                if said.as_ref() != Some(&sentence) {
                    tracing::warn!("the Node's condition {UNAVAILABLE} is not written: {sentence}");
                }
                said = Some(sentence);
            }
        }
        let again = async {
            match failures {
                0 => std::future::pending().await,
                failures => sleep(pause(failures, shared.seed)).await,
            }
        };
        tokio::select! {
            changed = path.changed() => if changed.is_err() { return },
            changed = own.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

async fn put_condition(
    shared: &Shared,
    own: &mut watch::Receiver<super::own::Own>,
) -> Result<(), StoreError> {
    let node = own.borrow_and_update().node.clone();
    let Some(node) = node else { return Ok(()) };
    let wish = shared.condition.borrow().clone();
    let Some(condition) = wish.change(node.unavailable.as_ref()) else { return Ok(()) };
    let mut connection = shared.dialer.connect().await?;
    let patch = patch(&node.uid, Map::new(), Some(condition));
    write(&mut connection, shared.name(), &patch).await.map_err(StoreError::from)
}

/// The time now, as RFC 3339 has it, in UTC.
#[allow(
    clippy::disallowed_methods,
    reason = "the API server wants the time of the change; nothing here depends on it"
)]
pub(super) fn timestamp() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March: the leap day is the last one, and months have a rule.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let (month, day) =
        (if shifted < 10 { shifted + 3 } else { shifted - 9 }, day - (153 * shifted + 2) / 5 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_the_server_reads_it() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_796_029_583), "2026-11-30T09:06:23Z");
    }

    #[test]
    fn a_podcidr_that_does_not_fit_the_network_has_a_sentence() {
        let conf = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}"#;
        let (network, _) = NetworkConfig::parse(conf.as_bytes()).unwrap();
        let fit = |nets: &[&str]| {
            fits("a", &Subnets::of(nets.iter().map(|net| net.parse().unwrap())).unwrap(), &network)
        };
        assert_eq!(fit(&["10.244.3.0/24", "fc00:0:0:3::/64"]), Ok(()));
        let outside = "the podCIDR 10.9.0.0/24 of Node a is outside the network 10.244.0.0/16";
        assert_eq!(fit(&["10.9.0.0/24", "fc00:0:0:3::/64"]), Err(outside.to_owned()));
        let single = fit(&["10.244.3.0/24"]).unwrap_err();
        assert!(
            single
                .starts_with("Node a has no IPv6 podCIDR, only 10.244.3.0/24, and the network has fc00::/48")
        );
        assert!(no_cidr("a", &network).ends_with("--cluster-cidr=10.244.0.0/16,fc00::/48"));
    }

    #[test]
    fn the_condition_is_written_only_where_it_is_another() {
        let now = |status| Some(Condition { status, reason: "NoRouteCreated" });
        assert_eq!(DataPath::Unknown.change::<&str>(None), None);
        assert_eq!(DataPath::Works.change(now("False").as_ref()), None);
        let written = DataPath::Works.change(now("True").as_ref()).unwrap();
        assert_eq!(
            (written["status"].as_str(), written["reason"].as_str()),
            (Some("False"), Some("FlannelIsUp"))
        );
        let written = DataPath::Fails("no interface".into()).change::<&str>(None).unwrap();
        assert_eq!(
            (written["status"].as_str(), written["message"].as_str()),
            (Some("True"), Some("no interface"))
        );
    }
}
