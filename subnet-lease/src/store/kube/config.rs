use std::path::PathBuf;

/// Where the API server is, which Node is ours, and what is written there. The defaults are flannel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeConfig {
    /// `https://HOST:PORT`; in place of the kubeconfig's server.
    pub api_url: Option<String>,
    /// The kubeconfig. Without it and without `api_url` the pod's own credentials are used.
    pub kubeconfig: Option<PathBuf>,
    /// Folder of the pod's own credentials: `token` and `ca.crt`.
    pub service_account: PathBuf,
    /// Which Node is ours.
    pub node: NodeName,
    /// What the names of our annotations begin with.
    pub annotation_prefix: String,
    /// The file with the network's configuration.
    pub net_conf: PathBuf,
    /// Keep the Node's condition NetworkUnavailable.
    pub set_condition: bool,
}

/// How our Node is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeName {
    /// By its name.
    Name(String),
    /// It is the one on which this pod runs.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Default for KubeConfig {
    fn default() -> Self {
        Self {
            api_url: None,
            kubeconfig: None,
            service_account: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
            node: NodeName::Name(String::new()),
            annotation_prefix: "flannel.alpha.coreos.com".to_owned(),
            net_conf: "/etc/kube-flannel/net-conf.json".into(),
            set_condition: true,
        }
    }
}
