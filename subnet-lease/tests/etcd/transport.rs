use std::fs;
use std::path::PathBuf;

use etcd_client::{Permission, PermissionType};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::{Class, Store, StoreError};
use tempfile::TempDir;

use crate::host::claim;
use crate::server::{Etcd, V4};

#[tokio::test]
async fn a_user_with_rights_on_the_prefix_alone_is_enough_and_a_wrong_password_is_told() {
    let etcd = Etcd::start();
    let mut admin = etcd.client().await;
    admin.user_add("root", "r00t", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.role_add("flannel").await.unwrap();
    let rights = |key: &str| Permission::new(PermissionType::Readwrite, key);
    admin.role_grant_permission("flannel", rights("/coreos.com/network/config")).await.unwrap();
    admin
        .role_grant_permission("flannel", rights("/coreos.com/network/subnets/").with_prefix())
        .await
        .unwrap();
    admin.user_add("flannel", "secret", None).await.unwrap();
    admin.user_grant_role("flannel", "flannel").await.unwrap();
    admin.auth_enable().await.unwrap();

    let login = |password: &str| EtcdConfig {
        username: Some("flannel".into()),
        password: Some(password.into()),
        ..etcd.config()
    };
    let store = EtcdStore::connect(login("secret")).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    for config in [login("wrong"), etcd.config()] {
        let error =
            EtcdStore::connect(config).unwrap().claim(&claim(V4, &["192.168.0.1"])).await.unwrap_err();
        assert!(matches!(error, StoreError::Denied(_)) && error.class() == Class::Transient, "{error}");
    }
}

/// An authority, and what it signed for a server and for a client.
struct Authority(TempDir);

impl Authority {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("subnet-lease-tls-").tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = Self(dir);
        authority.write("ca.pem", &params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["127.0.0.1".to_string()]).unwrap();
            authority.write(&format!("{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
            authority.write(&format!("{name}-key.pem"), &key.serialize_pem());
        }
        authority
    }

    fn write(&self, name: &str, pem: &str) {
        fs::write(self.file(name), pem).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn arguments(&self, client_certificates: bool) -> Vec<String> {
        let path = |name: &str| self.file(name).display().to_string();
        let mut arguments =
            vec!["--cert-file".into(), path("server.pem"), "--key-file".into(), path("server-key.pem")];
        if client_certificates {
            arguments.extend(["--client-cert-auth".into(), "--trusted-ca-file".into(), path("ca.pem")]);
        }
        arguments
    }
}

#[tokio::test]
async fn an_authority_alone_is_enough_for_tls_and_an_unknown_one_is_refused() {
    let authority = Authority::new();
    let etcd = Etcd::start_with(&authority.arguments(false));
    let trusting = EtcdConfig { ca_file: Some(authority.file("ca.pem")), ..etcd.config() };
    let store = EtcdStore::connect(trusting).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    let error = etcd.store().get_config().await.unwrap_err();
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn a_server_that_asks_for_certificates_is_shown_ours() {
    let authority = Authority::new();
    let etcd = Etcd::start_with(&authority.arguments(true));
    let anonymous = EtcdConfig { ca_file: Some(authority.file("ca.pem")), ..etcd.config() };
    let known = EtcdConfig {
        cert_file: Some(authority.file("client.pem")),
        key_file: Some(authority.file("client-key.pem")),
        ..anonymous.clone()
    };
    EtcdStore::connect(known).unwrap().put_config(V4.as_bytes(), None).await.unwrap();
    let error = EtcdStore::connect(anonymous).unwrap().get_config().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
}
