use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::StoreError;

/// Where the etcd is and how to be let in. The defaults are flannel's.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `http://HOST:PORT` or `https://…`, tried in turn.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// PEM file with our key; together with `cert_file`.
    pub key_file: Option<PathBuf>,
    /// PEM file with our certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the authority that signed the server's certificate; the system's ones where not given.
    pub ca_file: Option<PathBuf>,
    /// User name for etcd's own authentication; together with `password`.
    pub username: Option<String>,
    /// Password of that user.
    pub password: Option<String>,
    /// For how long leases are granted.
    pub ttl: Duration,
    /// How long before its end a lease is claimed again, by whoever calls; here only checked against `ttl`.
    pub renew_margin: Duration,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:4001".into(), "http://127.0.0.1:2379".into()],
            prefix: "/coreos.com/network".into(),
            key_file: None,
            cert_file: None,
            ca_file: None,
            username: None,
            password: None,
            ttl: Duration::from_secs(24 * 60 * 60),
            renew_margin: Duration::from_secs(60 * 60),
        }
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("key_file", &self.key_file)
            .field("cert_file", &self.cert_file)
            .field("ca_file", &self.ca_file)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("ttl", &self.ttl)
            .field("renew_margin", &self.renew_margin)
            .finish()
    }
}

impl EtcdConfig {
    /// Every setting that cannot work, with the flag it comes from.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.endpoints.is_empty() {
            return wrong("etcd-endpoints", "empty", "at least one http:// or https:// address");
        }
        for endpoint in &self.endpoints {
            if !usable(endpoint) {
                return wrong(
                    "etcd-endpoints",
                    endpoint,
                    "http://HOST:PORT or https://HOST:PORT, separated by commas",
                );
            }
        }
        if self.prefix.trim_matches('/').is_empty() {
            return wrong("etcd-prefix", &self.prefix, "a path such as /coreos.com/network");
        }
        self.check_together("etcd-keyfile", shown(&self.key_file), "etcd-certfile", shown(&self.cert_file))?;
        let password = self.password.as_ref().map(|_| "***".to_string());
        self.check_together("etcd-username", self.username.clone(), "etcd-password", password)?;
        for (flag, file) in [
            ("etcd-keyfile", &self.key_file),
            ("etcd-certfile", &self.cert_file),
            ("etcd-cafile", &self.ca_file),
        ] {
            file.as_deref().map_or(Ok(()), |path| read_pem(flag, path).map(|_| ()))?;
        }
        if self.renew_margin >= self.ttl {
            let minutes = self.renew_margin.as_secs() / 60;
            return wrong("subnet-lease-renew-margin", minutes, "fewer minutes than a lease has");
        }
        Ok(())
    }

    fn check_together(
        &self,
        a: &str,
        va: Option<String>,
        b: &str,
        vb: Option<String>,
    ) -> Result<(), StoreError> {
        match (va, vb) {
            (Some(value), None) => wrong(a, value, &format!("only together with {b}")),
            (None, Some(value)) => wrong(b, value, &format!("only together with {a}")),
            _ => Ok(()),
        }
    }
}

/// Reads a PEM file; the error names flag and file.
pub(super) fn read_pem(flag: &str, path: &Path) -> Result<Vec<u8>, StoreError> {
    match std::fs::read(path) {
        Ok(pem) if pem.windows(11).any(|part| part == b"-----BEGIN ") => Ok(pem),
        Ok(_) => wrong(flag, path.display(), "a file in PEM form, which this is not"),
        Err(e) => wrong(flag, path.display(), &format!("a readable file, which this is not ({e})")),
    }
}

fn shown(path: &Option<PathBuf>) -> Option<String> {
    path.as_ref().map(|path| path.display().to_string())
}

fn usable(endpoint: &str) -> bool {
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    let host = rest.unwrap_or(endpoint).trim_end_matches('/');
    let strange = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '?' | '#' | '@');
    !host.is_empty() && !host.starts_with(':') && !host.contains(strange)
}

fn wrong<T>(flag: &str, value: impl fmt::Display, allowed: &str) -> Result<T, StoreError> {
    Err(StoreError::Config(format!("{flag} is {value}: {allowed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut EtcdConfig)) -> String {
        let mut config = EtcdConfig::default();
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn each_wrong_setting_is_named_with_its_flag_and_value() {
        assert!(EtcdConfig::default().check().is_ok());
        assert!(error(|c| c.endpoints.clear()).starts_with("etcd-endpoints is empty:"));
        assert!(error(|c| c.endpoints = vec!["http://".into()]).starts_with("etcd-endpoints is http://:"));
        assert!(error(|c| c.endpoints = vec!["a b".into()]).starts_with("etcd-endpoints is a b:"));
        assert!(error(|c| c.prefix = "/".into()).starts_with("etcd-prefix is /:"));
        assert!(
            error(|c| c.key_file = Some("/k".into()))
                .contains("etcd-keyfile is /k: only together with etcd-certfile")
        );
        assert!(
            error(|c| c.username = Some("u".into()))
                .contains("etcd-username is u: only together with etcd-password")
        );
        assert!(
            error(|c| c.ca_file = Some("/nowhere".into()))
                .contains("etcd-cafile is /nowhere: a readable file")
        );
        assert!(
            error(|c| c.ca_file = Some("/dev/null".into()))
                .contains("etcd-cafile is /dev/null: a file in PEM form")
        );
        assert!(error(|c| c.renew_margin = c.ttl).starts_with("subnet-lease-renew-margin is 1440:"));
    }

    #[test]
    fn a_password_is_never_printed() {
        let config = EtcdConfig {
            username: Some("u".into()),
            password: Some("secret".into()),
            ..EtcdConfig::default()
        };
        assert!(!format!("{config:?}").contains("secret"));
        assert!(!error(|c| c.password = Some("secret".into())).contains("secret"));
    }
}
