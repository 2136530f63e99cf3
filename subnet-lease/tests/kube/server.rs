use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use subnet_lease::kube::{KubeConfig, KubeStore, NodeName};
use tempfile::TempDir;

pub(crate) const V4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// How long a server may take to start: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
const MOMENT: Duration = Duration::from_millis(50);

/// An API server with its etcd; killed and forgotten on drop.
pub(crate) struct Cluster {
    api: Child,
    etcd: Child,
    ports: [u16; 3],
    pub(crate) dir: TempDir,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("subnet-lease-kube-").tempdir().unwrap();
        let ports = [free_port(), free_port(), free_port()];
        let mut tokens = String::from("admin,admin,admin,\"system:masters\"\n");
        for name in ["a", "b", "c"] {
            tokens += &format!("flannel-{name},system:serviceaccount:kube-flannel:flannel-{name},{name},\n");
        }
        std::fs::write(dir.path().join("tokens.csv"), tokens).unwrap();
        let etcd = etcd(dir.path(), [ports[0], ports[1]]);
        let api = api_server(dir.path(), ports[0], ports[2]);
        let mut cluster = Self { api, etcd, ports, dir };
        cluster.wait();
        cluster
    }

    fn wait(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.try_call("admin", "GET", "/readyz", "", "").is_none_or(|answer| answer != "ok") {
            let ended = self.api.try_wait().unwrap().is_some();
            assert!(
                !ended && Instant::now() < end,
                "{}",
                std::fs::read_to_string(self.dir.path().join("api.log")).unwrap()
            );
            std::thread::sleep(MOMENT);
        }
    }

    /// Kills the API server and starts it again, on the same etcd.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.api = api_server(self.dir.path(), self.ports[0], self.ports[2]);
        self.wait();
    }

    pub(crate) fn stop(&mut self) {
        self.api.kill().unwrap();
        self.api.wait().unwrap();
    }

    /// The store of a host, with this token.
    pub(crate) fn store_of(&self, node: &str, token: &str, net_conf: &str) -> KubeStore {
        KubeStore::connect(self.config(node, token, net_conf)).unwrap()
    }

    pub(crate) fn config(&self, node: &str, token: &str, net_conf: &str) -> KubeConfig {
        let path = self.dir.path().join(format!("net-conf-{node}.json"));
        std::fs::write(&path, net_conf).unwrap();
        KubeConfig {
            kubeconfig: Some(self.kubeconfig(token)),
            node: NodeName::Name(node.to_owned()),
            net_conf: path,
            ..KubeConfig::default()
        }
    }

    fn kubeconfig(&self, token: &str) -> PathBuf {
        let path = self.dir.path().join(format!("kubeconfig-{token}"));
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://127.0.0.1:{}', certificate-authority: certs/apiserver.crt}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\n",
            self.ports[2]
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Asks the API server as an administrator; the answer is JSON.
    pub(crate) fn call(&self, method: &str, path: &str, body: Value) -> Value {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.try_call("admin", method, path, kind, &body).unwrap();
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    fn try_call(&self, token: &str, method: &str, path: &str, kind: &str, body: &str) -> Option<String> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "10", "-X", method, "--cacert"]);
        command.arg(self.dir.path().join("certs/apiserver.crt"));
        command.args([
            "-H",
            &format!("Authorization: Bearer {token}"),
            "-H",
            &format!("Content-Type: {kind}"),
        ]);
        command.args(["--data-binary", body]).arg(format!("https://127.0.0.1:{}{path}", self.ports[2]));
        let output = command.stdin(Stdio::null()).output().expect("curl");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A Node as kubelet and controller-manager leave it.
    pub(crate) fn add_node(&self, name: &str, cidrs: &[&str]) -> Value {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        });
        self.call("POST", "/api/v1/nodes", node)
    }

    pub(crate) fn node(&self, name: &str) -> Value {
        self.call("GET", &format!("/api/v1/nodes/{name}"), Value::Null)
    }

    pub(crate) fn delete_node(&self, name: &str) {
        self.call("DELETE", &format!("/api/v1/nodes/{name}"), Value::Null);
    }

    /// Sets annotations of ours; null takes one away.
    pub(crate) fn annotate(&self, name: &str, annotations: &[(&str, Value)]) {
        let named =
            annotations.iter().map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), value.clone()));
        let all: serde_json::Map<_, _> = named.collect();
        self.call("PATCH", &format!("/api/v1/nodes/{name}"), json!({"metadata": {"annotations": all}}));
    }

    /// The ClusterRole that flannel's manifest has, for everybody in its namespace.
    pub(crate) fn grant(&self, rules: Value) {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "flannel"}, "rules": rules});
        self.call("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", role);
        let subjects: Vec<Value> = ["a", "b", "c"]
            .iter()
            .map(|name| json!({"kind": "ServiceAccount", "namespace": "kube-flannel", "name": format!("flannel-{name}")}))
            .collect();
        let group = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "flannel"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel"},
            "subjects": subjects,
        });
        self.call("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", group);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in [&mut self.api, &mut self.etcd] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

pub(crate) fn stock_rules() -> Value {
    json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ])
}

fn etcd(dir: &Path, [client, peer]: [u16; 2]) -> Child {
    let program = std::env::var_os("SELVAGE_ETCD")
        .unwrap_or_else(|| peer_program("etcd-3.6").unwrap_or_else(|| "etcd".into()));
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"]);
    quiet(&mut command, &dir.join("etcd.log"))
}

fn api_server(dir: &Path, etcd: u16, port: u16) -> Child {
    let program =
        peer_program("kube-apiserver").expect("SELVAGE_PEERS with a kube-apiserver: tests/peers/build");
    let file = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(program);
    command.args([
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        format!("--cert-dir={}", file("certs")),
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--secure-port={port}"),
        // The server makes this one for itself; it signs tokens as well.
        format!("--service-account-key-file={}", file("certs/apiserver.key")),
        format!("--service-account-signing-key-file={}", file("certs/apiserver.key")),
    ]);
    command.args([
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        "--authorization-mode=Node,RBAC",
        "--service-account-issuer=test",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--shutdown-delay-duration=0s",
    ]);
    quiet(&mut command, &dir.join("api.log"))
}

fn quiet(command: &mut Command, log: &Path) -> Child {
    let log = std::fs::File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

fn peer_program(name: &str) -> Option<OsString> {
    let path = Path::new(&std::env::var_os("SELVAGE_PEERS")?).join(name);
    path.exists().then(|| path.into_os_string())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
