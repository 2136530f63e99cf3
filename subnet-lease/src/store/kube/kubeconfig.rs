//! How the API server is reached and how it knows us: from a kubeconfig, or from what a pod is given.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::config::KubeConfig;
use super::yaml;

/// The server, and the credentials as they are now.
#[derive(Clone, Debug, Default)]
pub(super) struct Access {
    pub(super) server: Server,
    /// PEM of the authority that signed the server's certificate; the system's ones where there is none.
    pub(super) authority: Option<Vec<u8>>,
    /// The name that the server's certificate is to have, where it is not the host's.
    pub(super) server_name: Option<String>,
    /// PEM of our certificate and of its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) token: Option<String>,
    /// A program that yields the credentials.
    pub(super) exec: Option<Exec>,
}

/// Where the server listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// What all paths begin with; no slash at its end.
    pub(super) path: String,
}

/// A credential plugin.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Exec {
    pub(super) api_version: String,
    pub(super) command: String,
    #[serde(default)]
    pub(super) args: Option<Vec<String>>,
    #[serde(default)]
    pub(super) env: Option<Vec<Variable>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Variable {
    pub(super) name: String,
    #[serde(default)]
    pub(super) value: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    current_context: Option<String>,
    clusters: Option<Vec<Named<ClusterEntry>>>,
    users: Option<Vec<Named<UserEntry>>>,
    contexts: Option<Vec<Named<ContextEntry>>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(flatten)]
    entry: T,
}

#[derive(Deserialize)]
struct ClusterEntry {
    cluster: Cluster,
}

#[derive(Deserialize)]
struct UserEntry {
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize)]
struct ContextEntry {
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<Exec>,
    username: Option<String>,
    auth_provider: Option<serde_json::Value>,
}

impl Access {
    /// Reads files and variables anew; the error is a sentence that names what is wrong.
    pub(super) fn read(config: &KubeConfig) -> Result<Self, String> {
        match (&config.kubeconfig, &config.api_url) {
            (Some(path), url) => {
                let access = Self::from_file(path, url.as_deref());
                access.map_err(|why| format!("kubeconfig-file {}: {why}", path.display()))
            }
            (None, Some(url)) => {
                let server = Server::parse(url).map_err(|why| format!("kube-api-url is {url}: {why}"))?;
                Ok(Self { server, ..Self::default() })
            }
            (None, None) => Self::of_pod(&config.service_account),
        }
    }

    fn of_pod(folder: &Path) -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (Some(host), Some(port)) =
            (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"))
        else {
            return Err("no API server is named: this is not a pod (no KUBERNETES_SERVICE_HOST); give \
                        --kubeconfig-file or --kube-api-url"
                .to_owned());
        };
        let port = port.parse().map_err(|_| format!("KUBERNETES_SERVICE_PORT is {port:?}, not a port"))?;
        Ok(Self {
            server: Server { tls: true, host, port, path: String::new() },
            authority: Some(file(&folder.join("ca.crt"))?),
            token: Some(token(&folder.join("token"))?),
            ..Self::default()
        })
    }

    fn from_file(path: &Path, url: Option<&str>) -> Result<Self, String> {
        let text =
            String::from_utf8(read(path).map_err(|error| error.to_string())?).map_err(|_| "not UTF-8")?;
        let tree = yaml::read(&text).map_err(|why| format!("not YAML: {why}"))?;
        let file: File = serde_json::from_value(tree).map_err(|error| error.to_string())?;
        let (cluster, user) = file.current()?;
        // Relative paths count from the kubeconfig.
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        let server = url.or(cluster.server.as_deref()).ok_or("its cluster has no server")?;
        let mut access = Self { server: Server::parse(server)?, ..Self::default() };
        access.take_cluster(cluster, folder)?;
        access.take_user(user, folder)?;
        Ok(access)
    }

    fn take_cluster(&mut self, cluster: Cluster, folder: &Path) -> Result<(), String> {
        if cluster.insecure_skip_tls_verify == Some(true) && self.server.tls {
            return Err(
                "insecure-skip-tls-verify: a server that nobody verifies could redirect all pods; give \
                        certificate-authority"
                    .to_owned(),
            );
        }
        if cluster.proxy_url.is_some() {
            return Err("proxy-url: the API server is not reached through a proxy".to_owned());
        }
        self.authority = material(
            "certificate-authority",
            cluster.certificate_authority_data,
            cluster.certificate_authority,
            folder,
        )?;
        self.server_name = cluster.tls_server_name;
        Ok(())
    }

    fn take_user(&mut self, user: User, folder: &Path) -> Result<(), String> {
        if user.username.is_some() {
            return Err("username: no API server since Kubernetes 1.19 takes a password".to_owned());
        }
        if user.auth_provider.is_some() {
            return Err("auth-provider: replaced by exec since Kubernetes 1.26".to_owned());
        }
        let cert =
            material("client-certificate", user.client_certificate_data, user.client_certificate, folder)?;
        let key = material("client-key", user.client_key_data, user.client_key, folder)?;
        self.identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err("client-certificate: only together with client-key".to_owned()),
            (None, Some(_)) => return Err("client-key: only together with client-certificate".to_owned()),
        };
        self.token = match (user.token_file, user.token) {
            (Some(path), _) => Some(token(&folder.join(path))?),
            (None, text) => text.filter(|text| !text.is_empty()),
        };
        self.exec = user.exec;
        Ok(())
    }
}

impl File {
    fn current(self) -> Result<(Cluster, User), String> {
        let context =
            self.current_context.filter(|name| !name.is_empty()).ok_or("it has no current-context")?;
        let Context { cluster, user } = named(self.contexts, "context", &context)?.context;
        let cluster = named(self.clusters, "cluster", &cluster)?.cluster;
        let user = match user.filter(|name| !name.is_empty()) {
            Some(name) => named(self.users, "user", &name)?.user.unwrap_or_default(),
            None => User::default(),
        };
        Ok((cluster, user))
    }
}

fn named<T>(all: Option<Vec<Named<T>>>, what: &str, name: &str) -> Result<T, String> {
    let found = all.into_iter().flatten().find(|entry| entry.name == name);
    found.map(|entry| entry.entry).ok_or_else(|| format!("it has no {what} {name:?}"))
}

impl Server {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (tls, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, _)) => return Err(format!("{scheme}:// is neither https:// nor http://")),
            // As in Go's client.
            None => (false, url),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let strange = |c: char| c.is_whitespace() || c.is_control() || "@?#\\".contains(c);
        if authority.contains(strange) || path.contains(strange) || !url.is_ascii() {
            return Err("not https://HOST:PORT".to_owned());
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some(""))),
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, Some("")),
            },
        };
        let port = match port {
            Some("") => Some(if tls { 443 } else { 80 }),
            port => port.and_then(|port| port.parse().ok()).filter(|port| *port > 0),
        };
        match port {
            Some(port)
                if !host.is_empty()
                    && !host.contains(['[', ']'])
                    && (authority.starts_with('[') || !host.contains(':')) =>
            {
                let path = if path.is_empty() { String::new() } else { format!("/{path}") };
                Ok(Self { tls, host: host.to_owned(), port, path })
            }
            _ => Err("not https://HOST:PORT".to_owned()),
        }
    }
}

/// No file of credentials is larger, in bytes.
const LARGEST: u64 = 1 << 20;

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(std::io::Error::other("larger than 1 MiB"));
    }
    Ok(bytes)
}

fn file(path: &Path) -> Result<Vec<u8>, String> {
    read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn token(path: &Path) -> Result<String, String> {
    let text = String::from_utf8(file(path)?).ok().map(|text| text.trim().to_owned());
    let text = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
    text.ok_or_else(|| format!("{}: not a token", path.display()))
}

/// What stands in the kubeconfig in base64, or in a file that it names.
fn material(
    what: &str,
    data: Option<String>,
    path: Option<PathBuf>,
    folder: &Path,
) -> Result<Option<Vec<u8>>, String> {
    match (data.filter(|data| !data.is_empty()), path.filter(|path| !path.as_os_str().is_empty())) {
        (Some(data), _) => {
            let plain: String = data.split_whitespace().collect();
            STANDARD.decode(plain).map(Some).map_err(|_| format!("{what}-data is not base64"))
        }
        (None, Some(path)) => file(&folder.join(path)).map(Some).map_err(|why| format!("{what} {why}")),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(url: &str) -> Result<(bool, String, u16, String), String> {
        Server::parse(url).map(|s| (s.tls, s.host, s.port, s.path))
    }

    #[test]
    fn a_server_is_a_scheme_a_host_a_port_and_a_path() {
        assert_eq!(server("https://a"), Ok((true, "a".into(), 443, String::new())));
        assert_eq!(server("HTTPS://a"), Ok((true, "a".into(), 443, String::new())));
        assert_eq!(server("http://10.0.0.1:8080/"), Ok((false, "10.0.0.1".into(), 8080, String::new())));
        assert_eq!(server("https://[fd00::1]:6443"), Ok((true, "fd00::1".into(), 6443, String::new())));
        assert_eq!(server("https://a.b/k8s/c-1"), Ok((true, "a.b".into(), 443, "/k8s/c-1".into())));
        for wrong in [
            "",
            "https://",
            "https://a:x",
            "https://a:0",
            "ftp://a",
            "https://a b",
            "https://u@a",
            "https://[::1",
        ] {
            assert!(server(wrong).is_err(), "{wrong}: {:?}", server(wrong));
        }
    }

    fn kubeconfig(user: &str, cluster: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: {{cluster: k, user: u}}\n\
             clusters:\n- name: k\n  cluster: {{server: 'https://10.0.0.1:6443', {cluster}}}\n\
             users:\n- name: u\n  user: {{{user}}}\n"
        )
    }

    fn access(folder: &Path, text: &str) -> Result<Access, String> {
        let path = folder.join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        Access::read(&KubeConfig { kubeconfig: Some(path), ..KubeConfig::default() })
    }

    #[test]
    fn credentials_stand_in_the_kubeconfig_or_in_files_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "secret\n").unwrap();
        let from_file =
            access(folder.path(), &kubeconfig("tokenFile: token", "certificate-authority-data: Q0E="));
        let from_file = from_file.unwrap();
        assert_eq!(
            (from_file.token.as_deref(), from_file.authority.as_deref()),
            (Some("secret"), Some(&b"CA"[..]))
        );
        let pair = access(
            folder.path(),
            &kubeconfig("client-certificate-data: QQ==, client-key-data: Qg==", "x: y"),
        );
        assert_eq!(pair.unwrap().identity, Some((b"A".to_vec(), b"B".to_vec())));
        let exec =
            "exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, args: [eks], env: null}";
        let exec = access(folder.path(), &kubeconfig(exec, "x: y")).unwrap().exec.unwrap();
        assert_eq!((exec.command.as_str(), exec.args), ("aws", Some(vec!["eks".to_owned()])));
    }

    #[test]
    fn each_fault_of_a_kubeconfig_is_one_sentence_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let said = |user: &str, cluster: &str| access(folder.path(), &kubeconfig(user, cluster)).unwrap_err();
        for (sentence, fault) in [
            (said("client-certificate: gone.pem, client-key: gone.pem", "x: y"), "gone.pem: No such file"),
            (said("client-key-data: Qg==", "x: y"), "client-key: only together with client-certificate"),
            (said("token: a", "certificate-authority-data: '%'"), "certificate-authority-data is not base64"),
            (
                said("token: a", "insecure-skip-tls-verify: true"),
                "insecure-skip-tls-verify: a server that nobody",
            ),
            (said("username: a", "x: y"), "username: no API server"),
            (access(folder.path(), "a: [").unwrap_err(), "not YAML"),
            (access(folder.path(), "current-context: x").unwrap_err(), "it has no context \"x\""),
            (access(folder.path(), "{}").unwrap_err(), "it has no current-context"),
        ] {
            assert!(sentence.starts_with("kubeconfig-file /") && sentence.contains(fault), "{sentence}");
        }
    }

    proptest! {
        #[test]
        fn any_url_is_taken_or_refused_without_a_panic(text in "(https?://)?[a-z\\[\\]:/@0-9.]{0,20}") {
            let _ = Server::parse(&text);
        }
    }
}
