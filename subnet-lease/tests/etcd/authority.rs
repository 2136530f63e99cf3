use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use subnet_lease::etcd::EtcdConfig;
use tempfile::TempDir;

/// An authority, and what it signed for a server and for a client.
pub(crate) struct Authority(TempDir);

impl Authority {
    pub(crate) fn new() -> Self {
        Self::certifying("127.0.0.1", (2020, 2090))
    }

    /// Whose server certificate is for this name, and good between these years.
    pub(crate) fn certifying(server: &str, years: (i32, i32)) -> Self {
        let authority = Self(tempfile::Builder::new().prefix("subnet-lease-tls-").tempdir().unwrap());
        authority.issue(server, years);
        authority
    }

    /// A new authority, and new certificates, in the same files.
    pub(crate) fn issue(&self, server: &str, years: (i32, i32)) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        self.write("ca.pem", &params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        for (name, subject) in [("server", server), ("client", "127.0.0.1")] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![subject.to_string()]).unwrap();
            if name == "server" {
                params.not_before = date_time_ymd(years.0, 1, 1);
                params.not_after = date_time_ymd(years.1, 1, 1);
            }
            self.write(&format!("{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
            self.write(&format!("{name}-key.pem"), &key.serialize_pem());
        }
    }

    fn write(&self, name: &str, pem: &str) {
        fs::write(self.file(name), pem).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn arguments(&self, client_certificates: bool) -> Vec<String> {
        let path = |name: &str| self.file(name).display().to_string();
        let mut arguments =
            vec!["--cert-file".into(), path("server.pem"), "--key-file".into(), path("server-key.pem")];
        if client_certificates {
            arguments.extend(["--client-cert-auth".into(), "--trusted-ca-file".into(), path("ca.pem")]);
        }
        arguments
    }

    /// Trusts this authority, and shows no certificate.
    pub(crate) fn trusted(&self, endpoint: String) -> EtcdConfig {
        EtcdConfig { endpoints: vec![endpoint], ca_file: Some(self.file("ca.pem")), ..EtcdConfig::default() }
    }

    /// Trusts this authority, and shows its certificate.
    pub(crate) fn known(&self, endpoint: String) -> EtcdConfig {
        let (cert, key) = (self.file("client.pem"), self.file("client-key.pem"));
        EtcdConfig { cert_file: Some(cert), key_file: Some(key), ..self.trusted(endpoint) }
    }
}
