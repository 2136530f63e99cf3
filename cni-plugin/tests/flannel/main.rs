//! The flannel plugin as a program, in network namespaces of its own. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic to fail")]

#[path = "../host/mod.rs"]
mod host;

mod keys;
mod killed;
mod left;
mod odd;

use std::fs;
use std::thread;

use host::{DUAL, Host, Namespace, TINY};
use serde_json::{Value, json};

#[test]
fn an_add_gives_the_container_addresses_routes_and_a_port_of_the_bridge() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let answer = host.flannel("ADD", "c1", &pod.path(), &host.conf());
    assert!(answer.well, "{}", answer.document);
    assert_eq!(pod.links(), ["eth0 1430"]);
    assert_eq!(pod.addresses(), ["10.244.1.2/24", "fc00:42:0:1::2/64"]);
    let routes = ["0.0.0.0/0 via 10.244.1.1", "10.244.0.0/16 via 10.244.1.1"];
    let routes6 = ["::/0 via fc00:42:0:1::1", "fc00:42::/56 via fc00:42:0:1::1"];
    assert_eq!(pod.routes(), [&routes[..], &routes6[..]].concat());
    assert_eq!(host.net.addresses(), ["10.244.1.1/24", "fc00:42:0:1::1/64"]);
    assert_eq!(host.reserved(), ["10.244.1.2", "fc00:42:0:1::2"]);
    assert_eq!(host.stored(), ["c1", "c1@eth0"]);
    let forwards = |key: &str| host.net.run(|| fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap());
    assert_eq!([forwards("ipv4/ip_forward"), forwards("ipv6/conf/all/forwarding")], ["1\n", "1\n"]);
}

#[test]
fn the_result_lists_bridge_host_end_and_container_in_this_order() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let document = host.flannel("ADD", "c1", &pod.path(), &host.conf()).document;
    let names: Vec<_> =
        document["interfaces"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
    assert_eq!([names[0], names[2]], ["cni0", "eth0"]);
    let hex = names[1].strip_prefix("veth").unwrap();
    assert!(hex.len() == 8 && hex.chars().all(|c| c.is_ascii_hexdigit()), "{hex}");
    assert_eq!(host.net.links(), ["cni0 1430".to_owned(), format!("{} 1430", names[1])]);
    assert_eq!(document["interfaces"][2]["sandbox"], pod.path());
    assert!(document["ips"].as_array().unwrap().iter().all(|ip| ip["interface"] == 2), "{document}");
}

#[test]
fn a_result_has_the_form_of_the_configurations_version() {
    for (version, key) in [
        ("", "/ip4/ip"),
        ("0.1.0", "/ip4/ip"),
        ("0.2.0", "/ip6/gateway"),
        ("0.3.0", "/ips/0/version"),
        ("0.3.1", "/ips/1/version"),
        ("0.4.0", "/dns"),
        ("1.0.0", "/ips/0/address"),
        ("1.1.0", "/interfaces/2/mtu"),
    ] {
        let (host, pod) = (Host::with_env(DUAL), Namespace::new());
        let mut conf = host.conf();
        conf["cniVersion"] = version.into();
        let answer = host.flannel("ADD", "c1", &pod.path(), &conf);
        assert!(answer.well && answer.document.pointer(key).is_some(), "{version} {}", answer.document);
        let has_mtu = answer.document.pointer("/interfaces/2/mtu").is_some();
        assert_eq!(has_mtu, version == "1.1.0", "{version} {}", answer.document);
        assert_eq!(answer.document["cniVersion"], if version.is_empty() { "0.1.0" } else { version });
        assert!(host.flannel("DEL", "c1", &pod.path(), &conf).well, "{version}");
    }
}

#[test]
fn a_delete_takes_everything_away_and_may_come_again_and_without_an_add() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    assert!(host.flannel("DEL", "c1", &pod.path(), &host.conf()).well);
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    for _ in 0..2 {
        let answer = host.flannel("DEL", "c1", &pod.path(), &host.conf());
        assert!(answer.well && answer.document == Value::Null, "{}", answer.document);
        assert_eq!(pod.links(), [""; 0]);
        assert_eq!(host.net.links().len(), 1, "the bridge stays");
        assert_eq!((host.reserved(), host.stored()), (vec![], vec![]));
    }
}

#[test]
fn a_delete_without_a_namespace_or_the_daemons_file_frees_the_addresses() {
    let host = Host::with_env(DUAL);
    for netns in ["", "/run/netns/gone", "/etc/hostname", &host.net.path()] {
        fs::write(host.path("subnet.env"), DUAL).unwrap();
        let pod = Namespace::new();
        assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
        fs::remove_file(host.path("subnet.env")).unwrap();
        let answer = host.flannel("DEL", "c1", netns, &host.conf());
        assert!(answer.well, "{netns} {}", answer.document);
        assert_eq!((host.reserved(), host.stored()), (vec![], vec![]), "{netns}");
    }
}

#[test]
fn a_stored_configuration_cut_short_still_frees_the_addresses() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    for cut in ["", "{\"cniVersion\":\"1.0"] {
        assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
        for name in host.stored() {
            fs::write(host.path("state").join(name), cut).unwrap();
        }
        assert!(host.flannel("DEL", "c1", &pod.path(), &host.conf()).well, "{cut}");
        assert_eq!((host.reserved(), host.stored(), pod.links()), (vec![], vec![], vec![]));
    }
}

#[test]
fn the_hosts_own_namespace_is_refused_before_anything_is_made() {
    let host = Host::with_env(DUAL);
    assert_eq!(host.flannel("ADD", "c1", &host.net.path(), &host.conf()).code(), 8);
    assert_eq!((host.net.links(), host.reserved(), host.stored()), (vec![], vec![], vec![]));
}

#[test]
fn an_add_before_the_daemon_has_a_lease_says_try_again_and_names_the_file() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    fs::rename(host.path("subnet.env"), host.path("subnet.env.lost")).unwrap();
    let answer = host.flannel("ADD", "c1", &pod.path(), &host.conf());
    assert_eq!(answer.code(), 11);
    assert!(answer.msg().contains("lost the lease"), "{}", answer.msg());
    fs::remove_file(host.path("subnet.env.lost")).unwrap();
    let answer = host.flannel("ADD", "c1", &pod.path(), &host.conf());
    assert_eq!(answer.code(), 11);
    assert!(answer.msg().contains("subnet.env") && answer.msg().contains("flanneld"), "{}", answer.msg());
    assert_eq!((host.net.links(), host.stored()), (vec![], vec![]));
}

#[test]
fn an_add_that_fails_leaves_nothing_and_what_was_there_stays() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    let before = (host.net.links(), host.reserved(), host.stored());
    let taken = host.flannel("ADD", "c2", &pod.path(), &host.conf());
    assert!(taken.code() == 102 && taken.msg().contains("eth0 exists"), "{}", taken.msg());
    let twice = host.flannel("ADD", "c1", &pod.path(), &host.conf());
    assert!(twice.code() == 102 && twice.msg().contains("holds"), "{}", twice.msg());
    assert_eq!((host.net.links(), host.reserved(), host.stored()), before);
    assert!(host.flannel("DEL", "c1", &pod.path(), &host.conf()).well);
    assert_eq!((host.reserved(), host.stored(), pod.links()), (vec![], vec![], vec![]));
}

#[test]
fn an_add_that_fails_keeps_what_a_go_plugin_stored_for_the_container() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    fs::remove_file(host.path("state/c1@eth0")).unwrap();
    assert_eq!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).code(), 102);
    assert_eq!(host.stored(), ["c1"]);
    assert!(host.flannel("DEL", "c1", &pod.path(), &host.conf()).well);
    assert_eq!((host.reserved(), host.stored(), pod.links()), (vec![], vec![], vec![]));
}

#[test]
fn an_exhausted_subnet_says_so_and_serves_again_after_a_delete() {
    let (host, pods) = (Host::with_env(TINY), [Namespace::new(), Namespace::new()]);
    assert!(host.flannel("ADD", "c1", &pods[0].path(), &host.conf()).well);
    let answer = host.flannel("ADD", "c2", &pods[1].path(), &host.conf());
    assert_eq!(answer.code(), 11);
    assert!(answer.msg().contains("no address is free in 10.244.1.0/30"), "{}", answer.msg());
    let mut status = host.conf();
    status["cniVersion"] = "1.1.0".into();
    assert_eq!(host.flannel("STATUS", "", "", &status).code(), 50);
    assert_eq!((host.reserved().len(), pods[1].links()), (1, vec![]));
    assert!(host.flannel("DEL", "c1", &pods[0].path(), &host.conf()).well);
    assert!(host.flannel("STATUS", "", "", &status).well);
    assert!(host.flannel("ADD", "c2", &pods[1].path(), &host.conf()).well);
}

#[test]
fn two_interfaces_of_a_container_live_and_die_apart() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let call = |verb, ifname| {
        let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path()), ("CNI_IFNAME", ifname)];
        host.flannel_with(verb, &variables, &host.conf().to_string())
    };
    assert!(call("ADD", "eth0").well && call("ADD", "eth1").well);
    assert_eq!(pod.links(), ["eth0 1430", "eth1 1430"]);
    assert!(call("DEL", "eth0").well);
    assert_eq!((pod.links(), host.reserved().len()), (vec!["eth1 1430".to_owned()], 2));
    assert!(call("DEL", "eth1").well);
    assert_eq!((pod.links(), host.reserved(), host.stored()), (vec![], vec![], vec![]));
}

#[test]
fn containers_that_start_together_on_an_empty_host_share_one_bridge_and_no_address() {
    let pods: Vec<_> = (0..8).map(|_| Namespace::new()).collect();
    for _ in 0..4 {
        let host = Host::with_env(DUAL);
        let call = |n: usize, verb: &str| {
            let answer = host.flannel(verb, &format!("c{n}"), &pods[n].path(), &host.conf());
            assert!(answer.well, "{}", answer.document);
        };
        thread::scope(|scope| (0..pods.len()).for_each(|n| drop(scope.spawn(move || call(n, "ADD")))));
        assert_eq!(host.net.addresses(), ["10.244.1.1/24", "fc00:42:0:1::1/64"]);
        assert_eq!((host.net.links().len(), host.reserved().len()), (9, 16));
        thread::scope(|scope| (0..pods.len()).for_each(|n| drop(scope.spawn(move || call(n, "DEL")))));
        assert_eq!((host.net.links().len(), host.reserved().len()), (1, 0));
    }
}

#[test]
fn the_same_attachment_deleted_by_many_at_once_is_no_error() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let answer = host.flannel("DEL", "c1", &pod.path(), &host.conf());
                assert!(answer.well, "{}", answer.document);
            });
        }
    });
    assert_eq!((pod.links(), host.reserved(), host.stored()), (vec![], vec![], vec![]));
}

#[test]
fn a_requested_address_is_given_and_one_that_cannot_be_is_refused() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let ask = |args: &str| {
        let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path()), ("CNI_ARGS", args)];
        host.flannel_with("ADD", &variables, &host.conf().to_string())
    };
    assert_eq!(ask("IP=10.244.1.1").code(), 7, "the gateway");
    assert_eq!(ask("IP=10.9.9.9").code(), 7, "outside");
    assert!(ask("IgnoreUnknown=1;X=y;IP=10.244.1.77").well);
    assert!(pod.addresses().contains(&"10.244.1.77/24".to_owned()));
    let (other, mut conf) = (Namespace::new(), host.conf());
    conf["RuntimeConfig"] = json!({ "IPs": ["fc00:42:0:1::77/64"], "Mac": "02:00:00:00:00:07" });
    let answer = host.flannel("ADD", "c2", &other.path(), &conf);
    assert_eq!(answer.document["interfaces"][2]["mac"], "02:00:00:00:00:07", "{}", answer.document);
    assert!(other.addresses().contains(&"fc00:42:0:1::77/64".to_owned()));
    assert_eq!(host.flannel("ADD", "c3", &Namespace::new().path(), &conf).code(), 11, "held");
}

#[test]
fn a_check_finds_what_is_gone() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let mut conf = host.conf();
    conf["prevResult"] = host.flannel("ADD", "c1", &pod.path(), &conf).document;
    let check = || host.flannel("CHECK", "c1", &pod.path(), &conf);
    assert!(check().well, "{}", check().document);
    fs::remove_file(host.path("networks/cbr0/10.244.1.2")).unwrap();
    assert!(check().code() == 101 && check().msg().contains("reserved"), "{}", check().msg());
    fs::write(host.path("networks/cbr0/10.244.1.2"), "c1\r\neth0").unwrap();
    let mut other = conf.clone();
    other["prevResult"]["routes"][0]["dst"] = "10.99.0.0/16".into();
    let answer = host.flannel("CHECK", "c1", &pod.path(), &other);
    assert!(answer.code() == 101 && answer.msg().contains("10.99.0.0/16"), "{}", answer.msg());
    other = conf.clone();
    other["prevResult"]["ips"][1]["address"] = "fc00:42:0:1::99/64".into();
    assert!(host.flannel("CHECK", "c1", &pod.path(), &other).msg().contains("::99/64"));
    other["prevResult"] = Value::Null;
    assert_eq!(host.flannel("CHECK", "c1", &pod.path(), &other).code(), 7);
    assert!(host.flannel("DEL", "c1", &pod.path(), &conf).well);
    assert_eq!(check().code(), 101);
}

#[test]
fn a_bridge_with_another_subnets_address_is_named_and_replaced_only_on_request() {
    let (host, pods) = (Host::with_env(DUAL), [Namespace::new(), Namespace::new()]);
    assert!(host.flannel("ADD", "c1", &pods[0].path(), &host.conf()).well);
    fs::write(host.path("subnet.env"), DUAL.replace("10.244.1.1", "10.244.2.1")).unwrap();
    let answer = host.flannel("ADD", "c2", &pods[1].path(), &host.conf());
    assert!(answer.code() == 7 && answer.msg().contains("10.244.1.1/24"), "{}", answer.msg());
    assert_eq!((pods[1].links(), host.reserved().len()), (vec![], 2));
    let mut conf = host.conf();
    conf["delegate"]["forceAddress"] = true.into();
    assert!(host.flannel("ADD", "c2", &pods[1].path(), &conf).well);
    assert_eq!(host.net.addresses(), ["10.244.2.1/24", "fc00:42:0:1::1/64"]);
}

#[test]
fn what_is_not_supported_is_refused_and_never_ignored() {
    for (delegate, named) in
        [(json!({ "vlan": 7 }), "vlan"), (json!({ "vlanTrunk": [{ "id": 7 }] }), "vlanTrunk")]
    {
        let (host, pod) = (Host::with_env(DUAL), Namespace::new());
        let mut conf = host.conf();
        conf["delegate"] = delegate;
        let answer = host.flannel("ADD", "c1", &pod.path(), &conf);
        assert!(answer.code() == 2 && answer.msg().contains(named), "{}", answer.document);
        assert_eq!((host.net.links(), host.reserved(), host.stored()), (vec![], vec![], vec![]));
    }
}

#[test]
fn whatever_comes_in_one_document_goes_out() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path())];
    for (input, code) in
        [("", 6), ("[]", 6), ("{\"cniVersion\":1}", 6), ("{\"cniVersion\":\"9.9.9\"}", 1), ("{}", 7)]
    {
        let answer = host.flannel_with("ADD", &variables, input);
        assert_eq!(answer.code(), code, "{input} {}", answer.document);
        assert!(answer.document["cniVersion"].is_string());
    }
    assert_eq!(host.flannel_with("ADD", &variables[1..], &host.conf().to_string()).code(), 4);
    assert_eq!(host.flannel_with("JUMP", &[], "").msg(), "unknown CNI_COMMAND: JUMP");
    let versions = host.flannel_with("VERSION", &[], "").document;
    assert_eq!(versions["supportedVersions"].as_array().unwrap().len(), 7);
    let mut conf = host.conf();
    conf["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": { "a": "x".repeat(1 << 20) } });
    assert!(host.flannel("ADD", "c1", &pod.path(), &conf).well);
    assert!(host.flannel("DEL", "c1", &pod.path(), &conf).well);
    assert_eq!((pod.links(), host.reserved()), (vec![], vec![]));
}
