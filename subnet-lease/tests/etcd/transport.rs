use std::fs;

use etcd_client::{Permission, PermissionType};
use subnet_lease::etcd::{EtcdConfig, EtcdStore};
use subnet_lease::{Class, Store, StoreError, StoreEvent};
use tokio::net::TcpListener;

use crate::authority::Authority;
use crate::host::{claim, snapshot, until};
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
    admin.user_add("stranger", "secret", None).await.unwrap();
    admin.auth_enable().await.unwrap();

    let login = |password: &str| EtcdConfig {
        username: Some("flannel".into()),
        password: Some(password.into()),
        ..etcd.config()
    };
    let store = EtcdStore::connect(login("secret")).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    let stranger = EtcdConfig { username: Some("stranger".into()), ..login("secret") };
    let error = EtcdStore::connect(stranger).unwrap().get_config().await.unwrap_err();
    let named = "no role of user \"stranger\" may read and write /coreos.com/network/config";
    assert!(error.to_string().contains(named), "{error}");
    for config in [login("wrong"), etcd.config()] {
        let error =
            EtcdStore::connect(config).unwrap().claim(&claim(V4, &["192.168.0.1"])).await.unwrap_err();
        assert!(matches!(error, StoreError::Denied(_)) && error.class() == Class::Transient, "{error}");
    }
}

/// The sentence on why this server is not trusted.
async fn mistrust(config: EtcdConfig) -> String {
    let error = EtcdStore::connect(config).unwrap().get_config().await.unwrap_err();
    assert!(matches!(error, StoreError::Untrusted(_)) && error.class() == Class::Transient, "{error}");
    error.to_string()
}

#[tokio::test]
async fn an_authority_alone_is_enough_for_tls_and_an_unknown_one_is_refused() {
    let authority = Authority::new();
    let etcd = Etcd::start_with(&authority.arguments(false));
    let store = EtcdStore::connect(authority.trusted(etcd.endpoint())).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    let sentence = mistrust(etcd.config()).await;
    assert!(
        sentence.contains("an authority that this host does not know; etcd-cafile names one"),
        "{sentence}"
    );
    let stranger = Authority::new();
    let config = EtcdConfig { ca_file: Some(stranger.file("ca.pem")), ..etcd.config() };
    let sentence = mistrust(config).await;
    assert!(sentence.contains("an authority that is not in etcd-cafile"), "{sentence}");
}

#[tokio::test]
async fn a_key_that_does_not_belong_to_its_certificate_is_said_to_be_that() {
    let (authority, other) = (Authority::new(), Authority::new());
    let etcd = Etcd::start_with(&authority.arguments(true));
    let config =
        EtcdConfig { key_file: Some(other.file("client-key.pem")), ..authority.known(etcd.endpoint()) };
    let sentence = mistrust(config).await;
    assert!(
        sentence.contains("etcd-keyfile does not belong to the certificate in etcd-certfile"),
        "{sentence}"
    );
}

#[tokio::test]
async fn a_name_without_an_address_is_said_at_once() {
    // Too long for a name: no name server is asked.
    let endpoints = vec![format!("http://{}:2379", "x".repeat(64))];
    let store = EtcdStore::connect(EtcdConfig { endpoints, ..EtcdConfig::default() }).unwrap();
    let begin = tokio::time::Instant::now();
    let error = store.get_config().await.unwrap_err();
    assert!(error.to_string().contains("its name has no address"), "{error}");
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_certificate_for_another_name_and_one_that_has_expired_are_said_to_be_that() {
    for (server, years, expected) in [
        ("10.0.0.5", (2020, 2090), "its certificate is not valid for that name"),
        ("127.0.0.1", (2020, 2021), "its certificate has expired"),
        ("127.0.0.1", (2089, 2090), "its certificate is not valid yet"),
    ] {
        let authority = Authority::certifying(server, years);
        let etcd = Etcd::start_with(&authority.arguments(false));
        let sentence = mistrust(authority.trusted(etcd.endpoint())).await;
        assert!(sentence.contains(expected) && sentence.contains(&etcd.endpoint()), "{sentence}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_certificates_is_shown_ours() {
    let authority = Authority::new();
    let etcd = Etcd::start_with(&authority.arguments(true));
    let anonymous = authority.trusted(etcd.endpoint());
    EtcdStore::connect(authority.known(etcd.endpoint()))
        .unwrap()
        .put_config(V4.as_bytes(), None)
        .await
        .unwrap();
    let error = EtcdStore::connect(anonymous).unwrap().get_config().await.unwrap_err();
    assert!(error.to_string().contains("a certificate of this client (etcd-certfile"), "{error}");
}

#[tokio::test]
async fn certificates_and_a_password_work_together() {
    let authority = Authority::new();
    let etcd = Etcd::start_with(&authority.arguments(true));
    let (username, password) = (Some("root".into()), Some("r00t".into()));
    let config = EtcdConfig { username, password, ..authority.known(etcd.endpoint()) };
    let tls = etcd_client::TlsOptions::new()
        .ca_certificate(etcd_client::Certificate::from_pem(fs::read(authority.file("ca.pem")).unwrap()))
        .identity(etcd_client::Identity::from_pem(
            fs::read(authority.file("client.pem")).unwrap(),
            fs::read(authority.file("client-key.pem")).unwrap(),
        ));
    let options = etcd_client::ConnectOptions::new().with_tls(tls);
    let mut admin = etcd_client::Client::connect([etcd.endpoint()], Some(options)).await.unwrap();
    admin.user_add("root", "r00t", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.auth_enable().await.unwrap();
    EtcdStore::connect(config.clone()).unwrap().put_config(V4.as_bytes(), None).await.unwrap();
    let wrong = EtcdConfig { password: Some("guess".into()), ..config };
    let error = EtcdStore::connect(wrong).unwrap().get_config().await.unwrap_err();
    assert!(matches!(error, StoreError::Denied(_)), "{error}");
}

#[tokio::test]
async fn tls_to_a_server_without_it_and_the_reverse_are_told() {
    let authority = Authority::new();
    let plain = Etcd::start();
    let endpoints = vec![plain.endpoint().replace("http://", "https://")];
    let config = EtcdConfig { endpoints, ..authority.trusted(plain.endpoint()) };
    // What etcd answers may be overtaken by the reset of the connection, hence no exact words.
    let error = EtcdStore::connect(config).unwrap().get_config().await.unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");

    let secure = Etcd::start_with(&authority.arguments(false));
    let endpoints = vec![secure.endpoint().replace("https://", "http://")];
    let error = EtcdStore::connect(EtcdConfig { endpoints, ..EtcdConfig::default() }).unwrap();
    let error = error.get_config().await.unwrap_err();
    assert!(error.to_string().contains("https://"), "{error}");
}

#[tokio::test]
async fn a_server_that_resets_the_handshake_may_not_speak_tls() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let store = EtcdStore::connect(authority.trusted(endpoint)).unwrap();
    let resets = async {
        loop {
            // Closed with something unread: the kernel sends a reset.
            let (stream, _) = listener.accept().await.unwrap();
            let _ = stream.peek(&mut [0]).await;
        }
    };
    let error = tokio::select! {
        read = store.get_config() => read.unwrap_err(),
        () = resets => unreachable!("it resets for ever"),
    };
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn certificates_that_were_replaced_are_read_again() {
    let authority = Authority::new();
    let mut etcd = Etcd::start_with(&authority.arguments(true));
    let store = EtcdStore::connect(authority.known(etcd.endpoint())).unwrap();
    store.put_config(V4.as_bytes(), None).await.unwrap();
    let mut watch = store.watch();
    snapshot(&mut watch).await;
    authority.issue("127.0.0.1", (2020, 2090));
    etcd.restart();
    let own = store.claim(&claim(V4, &["192.168.0.1"])).await.unwrap();
    let is = |event| matches!(event, StoreEvent::Upsert(l) if l.subnets == own.lease.subnets).then_some(());
    until(&mut watch, is).await;
}
