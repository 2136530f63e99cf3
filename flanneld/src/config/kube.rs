//! How Kubernetes is reached, and what is written there.

use subnet_lease::kube::{KubeConfig, NodeName};

use super::node::{ConfigReader, path};

/// Reads the `kube-…` settings, without opening the files that they name; none where the network is in etcd.
pub(super) fn read(read: &mut ConfigReader<'_>) -> Option<KubeConfig> {
    let wanted = read.bool("kube-subnet-mgr");
    let config = KubeConfig {
        api_url: read.optional("kube-api-url", |text| Ok(text.to_owned())),
        kubeconfig: read.optional("kubeconfig-file", path),
        node: node(read),
        annotation_prefix: read.one("kube-annotation-prefix", |text| Ok(text.to_owned())),
        net_conf: read.one("net-config-path", path),
        set_condition: read.bool("set-node-network-unavailable"),
        ..KubeConfig::default()
    };
    if wanted && matches!(&config.node, NodeName::Name(name) if name.is_empty()) {
        read.note("kube-subnet-mgr", "which Node is this? Set NODE_NAME, or POD_NAME and POD_NAMESPACE");
    }
    wanted.then_some(config)
}

/// NODE_NAME, as in flannel, else the node name of the pod's own record.
fn node(read: &mut ConfigReader<'_>) -> NodeName {
    let mut variable = |name| read.one(name, |text| Ok(text.to_owned()));
    let (node, name, namespace) = (variable("NODE_NAME"), variable("POD_NAME"), variable("POD_NAMESPACE"));
    match node.is_empty() && !name.is_empty() && !namespace.is_empty() {
        true => NodeName::Pod { namespace, name },
        false => NodeName::Name(node),
    }
}
