//! The firewall of a host that forwards nothing by itself.

use std::fs;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::portmap::with;
use crate::host::{Host, Pod, Whose, complete};

pub(crate) fn firewall(host: &Host, keys: Value) -> Value {
    let conf = json!({ "type": "firewall", "backend": "iptables", "dataDir": host.path("firewall") });
    with(&conf, keys)
}

/// The rules of a family, as they would be added.
pub(crate) fn rules(host: &Host, program: &str) -> Vec<String> {
    host.net.tool(program).lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
}

fn drop_forwarded(host: &Host) {
    host.net.tool("iptables -P FORWARD DROP");
    host.net.tool("ip6tables -P FORWARD DROP");
}

#[test]
fn under_a_host_that_drops_a_container_reaches_out_and_is_answered() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
    drop_forwarded(&host);
    let chain = [host.bridge("net"), firewall(&host, json!({}))];
    let result = host.add(Whose::Ours, "net", &pods[0], &chain).ok();
    host.add(Whose::Ours, "net", &pods[1], &chain[..1]).ok();
    let server = host.client().listen(80);
    for target in ["192.0.2.2:80", "[2001:db8::2]:80"] {
        assert!(pods[0].net.reaches(target, &server).is_some(), "{target}");
        assert!(pods[1].net.is_kept_from(target, &server), "{target}");
    }
    assert!(host.client().is_kept_from("10.88.1.2:80", &pods[0].net.listen(80)));
    host.check(Whose::Ours, "net", &pods[0], &chain[1], &result).ok();
    host.del(Whose::Ours, "net", &pods[0], &chain[1..], &result);
    assert!(pods[0].net.is_kept_from("192.0.2.2:80", &server));
}

#[test]
fn a_policy_keeps_the_containers_of_other_bridges_away() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
    let chain = |network: &str, policy: &str| {
        [host.bridge(network), firewall(&host, json!({ "ingressPolicy": policy }))]
    };
    let one = host.add(Whose::Ours, "net", &pods[0], &chain("net", "open")).ok();
    host.add(Whose::Ours, "other", &pods[1], &chain("other", "open")).ok();
    let server = pods[0].net.listen(80);
    let targets = ["10.88.1.2:80", "[fc00:88:1::2]:80"];
    for target in targets {
        assert!(pods[1].net.reaches(target, &server).is_some(), "{target}");
    }
    for network in ["net", "other"] {
        let pod = Pod::new(&format!("{network}2"));
        host.add(Whose::Ours, network, &pod, &chain(network, "same-bridge")).ok();
    }
    for target in targets {
        assert!(pods[1].net.is_kept_from(target, &server), "{target}");
        assert!(host.client().reaches(target, &server).is_some(), "{target}");
    }
    host.check(Whose::Ours, "net", &pods[0], &chain("net", "same-bridge")[1], &one).ok();
    host.net.tool("iptables -F CNI-ISOLATION-STAGE-2");
    let lost = host.check(Whose::Ours, "net", &pods[0], &chain("net", "same-bridge")[1], &one);
    assert!(lost.code() == 101 && lost.msg().contains("STAGE-2"), "{}", lost.msg());
}

#[test]
fn every_policy_makes_the_reference_plugins_rules_in_its_order() {
    for keys in [
        json!({}),
        json!({ "ingressPolicy": "same-bridge" }),
        json!({ "ingressPolicy": "isolated" }),
        json!({ "iptablesAdminChainName": "MY-ADMIN" }),
    ] {
        let made = [Whose::Ours, Whose::Reference].map(|whose| {
            let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
            for pod in &pods {
                let before = host.add(Whose::Ours, "net", pod, &[host.bridge("net")]).ok();
                let conf = complete("net", &firewall(&host, keys.clone()), &before);
                host.call(whose, "ADD", (&pod.id, &pod.net.path(), "eth0"), &conf).ok();
            }
            [rules(&host, "iptables-save"), rules(&host, "ip6tables-save")]
        });
        assert_eq!(made[0], made[1], "{keys}");
        assert!(made[0][0].len() >= 6);
    }
}

#[test]
fn a_delete_without_a_result_removes_its_rules_and_not_those_of_who_has_the_address_now() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let before = rules(&host, "iptables-save");
    assert_eq!(before, [""; 0]);
    let result = host.add(Whose::Ours, "net", &pod, &[host.bridge("net"), firewall(&host, json!({}))]).ok();
    let call = |verb: &str, id: &str, previous: &Value| {
        let conf = complete("net", &firewall(&host, json!({})), previous);
        host.call(Whose::Ours, verb, (id, "", "eth0"), &conf).ok()
    };
    let of_pod = || rules(&host, "iptables-save").iter().filter(|line| line.contains("10.88.1.2")).count();
    assert_eq!(of_pod(), 2);
    call("DEL", "c1", &Value::Null);
    assert_eq!(of_pod(), 0);
    call("DEL", "c1", &Value::Null);
    // The address goes to another container before the first one's late DEL.
    let add = |id: &str| {
        let conf = complete("net", &firewall(&host, json!({})), &result);
        host.call(Whose::Ours, "ADD", (id, &pod.net.path(), "eth0"), &conf).ok()
    };
    add("c1");
    add("c2");
    call("DEL", "c1", &result);
    assert_eq!(of_pod(), 2);
    call("DEL", "c2", &Value::Null);
    assert_eq!(of_pod(), 0);
}

#[test]
fn a_collection_removes_the_rules_of_what_is_not_valid() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
    for pod in &pods {
        host.add(Whose::Ours, "net", pod, &[host.bridge("net"), firewall(&host, json!({}))]).ok();
    }
    let mut conf = complete("net", &firewall(&host, json!({ "cniVersion": "1.1.0" })), &Value::Null);
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "c2", "ifname": "eth0" }]);
    host.call(Whose::Ours, "GC", ("", "", ""), &conf).ok();
    let all = rules(&host, "iptables-save").join("\n");
    assert!(!all.contains("10.88.1.2/32") && all.contains("10.88.1.3/32"), "{all}");
    assert!(host.call(Whose::Ours, "STATUS", ("", "", ""), &conf).well);
}

#[test]
fn records_that_cannot_be_written_or_read_stop_nobody() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    fs::write(host.path("file"), "").unwrap();
    fs::create_dir_all(host.path("firewall/10.88.1.2")).unwrap();
    mkfifo(&host.path("firewall/fc00:88:1::2"), Mode::from_bits_truncate(0o600)).unwrap();
    for folder in ["firewall", "file/firewall"] {
        let chain = [host.bridge("net"), firewall(&host, json!({ "dataDir": host.path(folder) }))];
        let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
        let address = result["ips"][0]["address"].as_str().unwrap().replace("/24", "/32");
        assert!(rules(&host, "iptables-save").join("\n").contains(&address), "{folder}");
        host.del(Whose::Ours, "net", &pod, &chain, &result);
        assert!(!rules(&host, "iptables-save").join("\n").contains(&address), "{folder}");
        let mut conf = complete("net", &chain[1], &Value::Null);
        (conf["cniVersion"], conf["cni.dev/valid-attachments"]) = ("1.1.0".into(), json!([]));
        host.call(Whose::Ours, "GC", ("", "", ""), &conf).ok();
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_makes_no_rule() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let before = json!({ "ips": [{ "address": "10.88.1.2/24" }] });
    for (keys, named) in [
        (json!({ "backend": "pf" }), "backend"),
        (json!({ "ingressPolicy": "closed" }), "ingressPolicy"),
        (json!({ "ingressPolicy": "same-bridge" }), "names no bridge"),
        (json!({ "iptablesAdminChainName": "-j X" }), "iptablesAdminChainName"),
        (json!({ "prevResult": 1 }), "prevResult"),
    ] {
        let conf = with(&complete("net", &firewall(&host, json!({})), &before), keys.clone());
        let answer = host.call(Whose::Ours, "ADD", ("c1", &pod.net.path(), "eth0"), &conf);
        assert!(
            [6, 7].contains(&answer.code()) && answer.msg().contains(named),
            "{keys} {}",
            answer.document
        );
    }
    assert_eq!(rules(&host, "iptables-save"), [""; 0]);
}
