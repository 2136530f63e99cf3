//! The control plane of a Kubernetes cluster on one host: etcd, kube-apiserver, and where Nodes are real, the programs that give
//! them podCIDRs and pods.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::{Family, Host, Process, Program, eventually};
use serde_json::Value;

use crate::case::peer;

/// A busy machine starts the API server in half a minute.
pub(super) const STARTS: Duration = Duration::from_secs(120);
const PORT: u16 = 6443;
/// The API server makes both for itself. The key signs tokens as well.
const CERTIFICATE: &str = "/run/certs/apiserver.crt";
const KEY: &str = "/run/certs/apiserver.key";
const KUBECONFIG: &str = "/run/kubeconfig";

pub(super) struct Control {
    host: Host,
    api: Process,
    family: Family,
    /// They end with it.
    _etcd: Process,
}

impl Control {
    /// An API server that answers. `nodes` are the names of the Nodes whose kubelets may sign in.
    pub(super) fn start(host: &Host, family: Family, nodes: &[&str]) -> Result<Self> {
        let kubelets =
            nodes.iter().map(|name| format!("{name},system:node:{name},{name},\"system:nodes\"\n"));
        let tokens: String = kubelets.collect();
        fs::write(host.path("/run/tokens.csv"), format!("admin,admin,admin,\"system:masters\"\n{tokens}"))?;
        let etcd = host.spawn(&etcd()?)?;
        let api = host.spawn(&api_server(host, family)?)?;
        let control = Self { host: host.clone(), api, family, _etcd: etcd };
        control.wait()?;
        control.admit(host)?;
        Ok(control)
    }

    /// What makes pods of a DaemonSet, gives each Node its podCIDRs, and each pod its Node.
    pub(super) fn manage(&self) -> Result<()> {
        let (pods, sizes) = match self.family {
            Family::Dual => (
                "10.244.0.0/16,fd44::/48",
                &["--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"][..],
            ),
            Family::V6 => ("fd44::/48", &["--node-cidr-mask-size-ipv6=64"][..]),
            Family::V4 => ("10.244.0.0/16", &["--node-cidr-mask-size-ipv4=24"][..]),
        };
        let common = [format!("--kubeconfig={KUBECONFIG}"), "--leader-elect=false".to_owned()];
        let manager = Program::new(peer("kube-controller-manager")?)
            .args(common.clone())
            .args([
                "--allocate-node-cidrs=true".to_owned(),
                format!("--cluster-cidr={pods}"),
                format!("--service-cluster-ip-range={}", services(self.family)),
                format!("--service-account-private-key-file={KEY}"),
                format!("--root-ca-file={CERTIFICATE}"),
            ])
            .args(sizes.iter().copied());
        self.host.spawn(&manager)?;
        self.host.spawn(&Program::new(peer("kube-scheduler")?).args(common))?;
        Ok(())
    }

    pub(super) fn kill(&self) {
        self.api.kill();
    }

    pub(super) fn restart(&mut self) -> Result<()> {
        self.api = self.host.spawn(&api_server(&self.host, self.family)?)?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        eventually(STARTS, || {
            let ready = self.call("GET", "/readyz", &Value::Null)?;
            ensure!(ready == "ok", "{ready}");
            Ok(())
        })
        .map(drop)
        .with_context(|| self.api.log())
    }

    pub(super) fn call(&self, method: &str, path: &str, body: &Value) -> Result<String> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let curl = Program::new("curl")
            .args(["-sS", "--max-time", "20", "-X", method, "-H", "Authorization: Bearer admin", "--cacert"])
            .arg(CERTIFICATE)
            .args(["-H".to_owned(), format!("Content-Type: {kind}")])
            .args(["--data-binary".to_owned(), "@-".to_owned(), format!("{}{path}", self.server()?)]);
        self.host.exec(&curl.stdin(body))
    }

    /// The answer to GET of an object that exists.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.call("GET", path, &Value::Null)?)?)
    }

    /// kubectl, with this as its standard input.
    pub(super) fn kubectl(&self, words: &[&str], input: &str) -> Result<String> {
        let kubectl =
            Program::new(peer("kubectl")?).args(["--kubeconfig", KUBECONFIG, "--cache-dir=/run/kubectl"]);
        self.host.exec(&kubectl.args(words.iter().copied()).stdin(input)).with_context(|| words.join(" "))
    }

    /// A host gets what its programs need to sign in as an administrator, and its kubelet as itself.
    pub(super) fn admit(&self, host: &Host) -> Result<()> {
        fs::copy(self.host.path(CERTIFICATE), host.path("/run/ca.crt"))?;
        fs::write(host.path(KUBECONFIG), self.kubeconfig("admin")?)?;
        Ok(fs::write(host.path("/run/kubelet-kubeconfig"), self.kubeconfig(host.name())?)?)
    }

    fn kubeconfig(&self, token: &str) -> Result<String> {
        let server = self.server()?;
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: '{server}', certificate-authority: ca.crt}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\n"
        ))
    }

    /// Where the API server is, by the address that its certificate has.
    fn server(&self) -> Result<String> {
        let address = address(&self.host, self.family)?;
        Ok(if address.is_ipv6() {
            format!("https://[{address}]:{PORT}")
        } else {
            format!("https://{address}:{PORT}")
        })
    }
}

fn address(host: &Host, family: Family) -> Result<std::net::IpAddr> {
    host.address(if family == Family::V6 { Family::V6 } else { Family::V4 })
}

/// Addresses of Services.
fn services(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.96.0.0/16",
        Family::V6 => "fd96::/112",
        Family::Dual => "10.96.0.0/16,fd96::/112",
    }
}

fn etcd() -> Result<Program> {
    let [client, own] = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"];
    Ok(Program::new(peer("etcd-3.6")?).named("etcd").args([
        "--data-dir=/var/lib/etcd".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={own}"),
        format!("--initial-advertise-peer-urls={own}"),
        format!("--initial-cluster=default={own}"),
    ]))
}

fn api_server(host: &Host, family: Family) -> Result<Program> {
    Ok(Program::new(peer("kube-apiserver")?).args([
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--cert-dir=/run/certs".to_owned(),
        "--token-auth-file=/run/tokens.csv".to_owned(),
        format!("--secure-port={PORT}"),
        format!("--service-account-key-file={KEY}"),
        format!("--service-account-signing-key-file={KEY}"),
        format!("--advertise-address={}", address(host, family)?),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=test".to_owned(),
        format!("--service-cluster-ip-range={}", services(family)),
        "--shutdown-delay-duration=0s".to_owned(),
    ]))
}
