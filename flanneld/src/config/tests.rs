use std::path::Path;
use std::time::Duration;

use subnet_lease::StoreConfig;
use subnet_lease::etcd::EtcdConfig;
use subnet_lease::kube::NodeName;

use super::*;
use crate::cli::{self, Command};

fn etcd(config: &NodeConfig) -> &EtcdConfig {
    match &config.store {
        StoreConfig::Etcd(etcd) => etcd,
        other => panic!("{other:?}"),
    }
}

fn gather(flags: &str, variables: &[(&str, &str)]) -> RawConfig {
    let arguments: Vec<_> = flags.split_whitespace().map(str::to_owned).collect();
    let Ok(Command::Run(given)) = cli::parse(&arguments) else { panic!("{flags}") };
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    RawConfig::gather(&given, &environment)
}

fn config(flags: &str, variables: &[(&str, &str)]) -> Result<NodeConfig, ConfigErrors> {
    NodeConfig::understand(&gather(flags, variables), "node-1")
}

fn errors(flags: &str, variables: &[(&str, &str)]) -> String {
    config(flags, variables).unwrap_err().to_string()
}

/// A settings file that goes away with the test.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("selvage-config-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn flag(&self) -> String {
        format!("--config={}", self.0.display())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn with_nothing_said_every_setting_is_flannel_s_default() {
    let config = config("", &[]).unwrap();
    assert_eq!(etcd(&config).endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(
        (etcd(&config).prefix.as_str(), config.core.network.as_str()),
        ("/coreos.com/network", "/coreos.com/network")
    );
    assert_eq!(
        (etcd(&config).renew_margin, config.core.iptables_resync),
        (Duration::from_secs(3600), Duration::from_secs(5))
    );
    let rules = &config.core.rules;
    assert_eq!((rules.masquerade, rules.fully_random, rules.forward_rules), (false, true, true));
    assert_eq!((config.core.blackhole_route, config.health, config.verbosity), (false, None, 0));
    assert_eq!(config.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(config.state_dir.to_str(), Some("/var/lib/flannel"));
    assert_eq!(config.record_file.as_deref().and_then(Path::to_str), Some("/run/flannel/events"));
    assert_eq!(config.core.node.as_deref(), Some("node-1"));
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let file = File::new(
        "order",
        r#"{"etcd-prefix": "/file", "node-id": "file", "iptables-resync": 9, "ip-masq": true}"#,
    );
    let variables = [("FLANNELD_ETCD_PREFIX", "/variable"), ("FLANNELD_NODE_ID", "variable")];
    let raw = gather(&format!("{} --etcd-prefix=/flag", file.flag()), &variables);
    let sources: Vec<_> = raw.effective().filter(|(.., source)| *source != Source::Default).collect();
    let expected = [
        ("etcd-prefix", "/flag".to_owned(), Source::Flag),
        ("node-id", "variable".to_owned(), Source::Variable("FLANNELD_NODE_ID".to_owned())),
        ("ip-masq", "true".to_owned(), Source::File(file.0.clone())),
        ("iptables-resync", "9".to_owned(), Source::File(file.0.clone())),
        ("config", file.0.display().to_string(), Source::Flag),
    ];
    assert_eq!(sources, expected);
    assert_eq!(NodeConfig::understand(&raw, "h").unwrap().core.iptables_resync, Duration::from_secs(9));
}

#[test]
fn an_empty_variable_is_as_good_as_none_and_an_empty_flag_is_not() {
    assert_eq!(config("", &[("FLANNELD_HEALTHZ_PORT", "")]).unwrap().health, None);
    assert_eq!(
        errors("--etcd-prefix=", &[]),
        "--etcd-prefix=\"\": not a key (1 to 200 bytes between slashes, UTF-8)"
    );
}

#[test]
fn every_wrong_setting_is_reported_at_once_each_with_its_source() {
    let file = File::new("wrong", r#"{"ip-masq": "maybe", "iptables-resync": 0}"#);
    let flags = format!(
        "{} --public-ip=fd00::1 --subnet-lease-renew-margin=1440 --iface-regex=[ --iface=a/b",
        file.flag()
    );
    let message = errors(&flags, &[("FLANNELD_HEALTHZ_PORT", "x"), ("FLANNELD_ETCD_KEYFILE", "/k")]);
    let place = file.0.display();
    let expected = [
        "--subnet-lease-renew-margin=\"1440\": not less than a lease lasts (--subnet-lease-ttl: 1440 minutes)".to_owned(),
        "FLANNELD_ETCD_KEYFILE=\"/k\": needs --etcd-certfile as well".to_owned(),
        "--iface=\"a/b\": neither an IP address nor an interface name".to_owned(),
        "--iface-regex=\"[\": not a regular expression: ".to_owned(),
        "--public-ip=\"fd00::1\": an IPv6 address, which is --public-ipv6".to_owned(),
        format!("{place}: \"ip-masq\": \"maybe\": neither true nor false"),
        format!("{place}: \"iptables-resync\": \"0\": not a number of seconds (1 to 86400)"),
        "FLANNELD_HEALTHZ_PORT=\"x\": not a port (0 to 65535)".to_owned(),
    ];
    let lines: Vec<_> = message.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{message}");
    for (line, expected) in lines.iter().zip(&expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
}

#[test]
fn an_address_or_expression_that_can_never_serve_is_one_sentence_each_all_at_once() {
    let message = errors(
        "--iface=127.0.0.1 --iface=:: --iface=a-name-longer-than-any --iface-regex=eth(0 --iface-regex=^eth \
         --iface-can-reach=224.0.0.1 --public-ip=255.255.255.255 --public-ipv6=::ffff:10.0.0.1 \
         --tunnel-checksum=maybe --iface-wait=-1",
        &[],
    );
    let expected = [
        "--iface=\"127.0.0.1\": not an address that other hosts reach",
        "--iface=\"::\": not an address that other hosts reach",
        "--iface=\"a-name-longer-than-any\": neither an IP address nor an interface name",
        "--iface-regex=\"eth(0\": not a regular expression: ",
        "--iface-can-reach=\"224.0.0.1\": a multicast address, which no other host reaches",
        "--public-ip=\"255.255.255.255\": the broadcast address, which no other host reaches",
        "--public-ipv6=\"::ffff:10.0.0.1\": an IPv4 address in IPv6 clothes, which no other host reaches",
        "--iface-wait=\"-1\": not a number of seconds (0 to 86400)",
        "--tunnel-checksum=\"maybe\": neither auto, on nor off",
    ];
    let lines: Vec<_> = message.lines().collect();
    for (line, expected) in lines.iter().zip(&expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    assert_eq!(lines.len(), expected.len(), "{message}");
}

#[test]
fn a_settings_file_that_is_missing_broken_or_has_unknown_keys_is_named() {
    assert!(
        errors("--config=/nowhere", &[]).starts_with("--config=\"/nowhere\": can't be read: No such file")
    );
    for (text, expected) in [
        ("{", "not JSON: "),
        ("[]", "not a JSON object of settings"),
        (r#"{"bogus": 1}"#, "\"bogus\": there is no such setting"),
        (r#"{"NODE_NAME": "a"}"#, "\"NODE_NAME\": there is no such setting"),
        (r#"{"etcd-prefix": ["/a"]}"#, "\"etcd-prefix\": not a text, number, true or false"),
        (r#"{"iface": [{}]}"#, "\"iface\": not a text, number, true or false"),
    ] {
        let file = File::new("broken", text);
        let message = errors(&file.flag(), &[]);
        assert!(message.contains(expected), "{text}: {message}");
    }
    let file = File::new("list", r#"{"iface": ["eth1", "10.0.0.1"]}"#);
    assert_eq!(config(&file.flag(), &[]).unwrap().core.iface.names.len(), 2);
}

#[test]
fn kubernetes_is_the_store_where_that_is_asked_and_the_node_is_known() {
    let pod = [("POD_NAME", "flannel-x"), ("POD_NAMESPACE", "kube-flannel")];
    let kube = |flags, variables: &[(&str, &str)]| match config(flags, variables).unwrap().store {
        StoreConfig::Kube(kube) => Some(kube),
        _ => None,
    };
    assert_eq!(kube("", &pod), None);
    let stock = kube("--kube-subnet-mgr --ip-masq", &pod).unwrap();
    let node = NodeName::Pod { namespace: "kube-flannel".into(), name: "flannel-x".into() };
    assert_eq!((&stock.node, stock.kubeconfig, stock.set_condition), (&node, None, true));
    assert_eq!(stock.net_conf.to_str(), Some("/etc/kube-flannel/net-conf.json"));
    let named = [pod[0], pod[1], ("NODE_NAME", "a")];
    let flags = "--kube-subnet-mgr --kubeconfig-file=/k --kube-api-url=http://a:1 --set-node-network-unavailable=false";
    let named = kube(flags, &named).unwrap();
    assert_eq!((named.node, named.set_condition), (NodeName::Name("a".into()), false));
    assert_eq!(named.api_url.as_deref(), Some("http://a:1"));
    let nameless = errors("--kube-subnet-mgr", &[("POD_NAME", "flannel-x")]);
    assert!(
        nameless.ends_with("which Node is this? Set NODE_NAME, or POD_NAME and POD_NAMESPACE"),
        "{nameless}"
    );
}

#[test]
fn what_has_no_effect_is_accepted_with_a_notice_and_so_is_an_unknown_variable() {
    let raw = gather("--vmodule=a=1", &[("FLANNELD_IFCAE", "eth0"), ("FLANNELD_PORT", "tcp://10.0.0.1:80")]);
    let expected = [
        "FLANNELD_IFCAE: there is no such setting; ignored",
        "--vmodule=\"a=1\": no effect: use RUST_LOG=module=level instead",
    ];
    assert_eq!(raw.notices(), expected);
    let manifest = [("EVENT_QUEUE_DEPTH", "5000"), ("CONT_WHEN_CACHE_NOT_READY", "false"), ("POD_NAME", "a")];
    assert!(gather("", &manifest).notices().is_empty());
}

#[test]
fn a_password_is_never_shown() {
    let raw = gather("--etcd-username=u", &[("FLANNELD_ETCD_PASSWORD", "hunter2")]);
    let shown: Vec<_> = raw.effective().map(|(name, value, _)| format!("{name}={value}")).collect();
    assert!(shown.contains(&"etcd-password=***".to_owned()), "{shown:?}");
    assert_eq!(etcd(&NodeConfig::understand(&raw, "h").unwrap()).password.as_deref(), Some("hunter2"));
    let refused = errors("", &[("FLANNELD_ETCD_PASSWORD", "hunter2")]);
    assert_eq!(refused, "FLANNELD_ETCD_PASSWORD=\"***\": needs --etcd-username as well");
    let refused = errors("--etcd-endpoints=http://a:1,http://root:hunter2@b:1", &[]);
    assert!(refused.contains("no place in an address") && !refused.contains("hunter2"), "{refused}");
    let config = config("--etcd-username=u --etcd-password=hunter2", &[]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"), "debug output");
}

#[test]
fn the_health_server_listens_on_both_families_unless_an_address_is_said() {
    let health = |flags| config(flags, &[]).unwrap().health.map(|address| address.to_string());
    assert_eq!(health("--healthz-port=8081").as_deref(), Some("[::]:8081"));
    assert_eq!(health("--healthz-port=0x1f91 --healthz-ip=127.0.0.1").as_deref(), Some("127.0.0.1:8081"));
    assert_eq!((health("--healthz-port=0"), health("--healthz-port=-1")), (None, None));
    assert_eq!(errors("--healthz-port=65536", &[]), "--healthz-port=\"65536\": not a port (0 to 65535)");
}

#[test]
fn the_node_s_name_is_the_flag_else_node_name_else_the_host_name() {
    let variables = [("NODE_NAME", "kube")];
    assert_eq!(config("--node-id=mine", &variables).unwrap().core.node.as_deref(), Some("mine"));
    assert_eq!(config("", &variables).unwrap().core.node.as_deref(), Some("kube"));
    let nameless = NodeConfig::understand(&RawConfig::default(), "").unwrap_err().to_string();
    assert!(nameless.starts_with("host name \"\": not a node name"), "{nameless}");
}

#[test]
fn the_store_within_the_daemon_listens_where_this_host_alone_reaches_it() {
    let own = config("--store=embedded", &[]).unwrap();
    assert_eq!(own.embedded.as_deref(), Some(Path::new("/var/lib/flannel/store")));
    assert_eq!(etcd(&own).endpoints, ["http://127.0.0.1:2379"]);
    let parsed = config("--store=embedded --store-dir=/x --etcd-endpoints=http://[::1]:4001", &[]).unwrap();
    assert_eq!(parsed.embedded.as_deref(), Some(Path::new("/x")));
    assert_eq!(etcd(&parsed).endpoints, ["http://[::1]:4001"]);
    assert_eq!(config("--store-dir=/x", &[]).unwrap().embedded, None);
    let message = errors("--store=embedded --etcd-endpoints=http://10.0.0.1:2379", &[]);
    assert!(message.contains("with --store=embedded http://127.0.0.1:PORT"), "{message}");
    assert!(errors("--store=redis", &[]).contains("not etcd or embedded"));
}

#[test]
fn a_lease_lasts_as_long_as_is_said_and_is_renewed_before_its_end() {
    let config = config("--subnet-lease-ttl=30 --subnet-lease-renew-margin=10", &[]).unwrap();
    assert_eq!((etcd(&config).ttl.as_secs(), etcd(&config).renew_margin.as_secs()), (1800, 600));
    assert!(errors("--subnet-lease-ttl=60", &[]).contains("not less than a lease lasts"));
    assert_eq!(etcd(&self::config("", &[]).unwrap()).ttl.as_secs(), 86_400);
}

#[test]
fn networks_that_see_pods_come_as_lists_and_one_by_one_and_rules_are_made_by_a_known_program() {
    let flags =
        "--no-masq-cidrs=192.0.2.0/24,2001:db8::/32 --no-masq-cidrs=198.51.100.7 --traffic-rules=iptables";
    let config = config(flags, &[]).unwrap();
    let nets: Vec<_> = config.core.rules.no_masquerade.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"]);
    assert_eq!(config.core.rules.program, backends::rules::Asked::Iptables);

    let message = errors("--no-masq-cidrs=192.0.2.0/33 --traffic-rules=ipchains", &[]);
    assert!(message.contains("\"192.0.2.0/33\" is not a network"), "{message}");
    assert!(message.contains("not auto, nftables, iptables, iptables-nft or iptables-legacy"), "{message}");
    let many: Vec<_> = (0..257).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let message = errors(&format!("--no-masq-cidrs={}", many.join(",")), &[]);
    assert!(message.contains("more than 256 networks"), "{message}");
}
