//! `macspoofchk` of the bridge: what passes, what does not, and who takes the rules away.

use std::slice;

use serde_json::{Value, json};

use super::portmap::with;
use crate::host::{Host, Pod, Whose, complete};

const OTHER: &str = "02:00:00:00:00:99";

fn bridge(host: &Host, network: &str) -> Value {
    with(&host.bridge(network), json!({ "macspoofchk": true }))
}

/// Lines of the ruleset that name a container.
fn of(host: &Host, pod: &Pod) -> Vec<String> {
    host.ruleset().lines().filter(|line| line.contains(&pod.id)).map(str::to_owned).collect()
}

fn two() -> [Pod; 2] {
    ["first-pod", "second-pod"].map(Pod::new)
}

fn gc(host: &Host, network: &str, valid: &[&Pod]) {
    let list: Vec<_> = valid.iter().map(|pod| json!({ "containerID": pod.id, "ifname": "eth0" })).collect();
    let keys = json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": list });
    let conf = complete(network, &with(&bridge(host, network), keys), &Value::Null);
    host.call(Whose::Ours, "GC", ("", "", ""), &conf).ok();
}

#[test]
fn a_container_reaches_others_with_its_own_ethernet_address_and_nobody_with_another() {
    for (checked, whose) in [(false, Whose::Ours), (true, Whose::Ours), (true, Whose::Reference)] {
        let (host, pods) = (Host::new(), two());
        let conf = with(&host.bridge("net"), json!({ "macspoofchk": checked }));
        for pod in &pods {
            host.add(whose, "net", pod, slice::from_ref(&conf)).ok();
        }
        let servers = [(&pods[1].net, "10.88.1.3:80"), (host.client(), "192.0.2.2:80")]
            .map(|(net, target)| (net.listen(80), target));
        let own = pods[0].net.tool("ip -o link show eth0");
        let own = own.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned();
        for (mac, honest) in [(&*own, true), (OTHER, false), (&*own, true)] {
            pods[0].net.tool(&format!("ip link set eth0 address {mac}"));
            for (server, target) in &servers {
                if honest || !checked {
                    assert!(pods[0].net.reaches(target, server).is_some(), "{whose:?} {mac} {target}");
                } else {
                    assert!(pods[0].net.is_kept_from(target, server), "{whose:?} {mac} {target}");
                }
            }
        }
    }
}

#[test]
fn either_plugin_deletes_what_the_other_made_and_nobody_elses() {
    for (made_by, removed_by) in [(Whose::Ours, Whose::Reference), (Whose::Reference, Whose::Ours)] {
        let (host, pods) = (Host::new(), two());
        let conf = bridge(&host, "net");
        let results = pods.each_ref().map(|pod| host.add(made_by, "net", pod, slice::from_ref(&conf)).ok());
        let other = of(&host, &pods[1]);
        assert_eq!((of(&host, &pods[0]).len(), other.len()), (6, 6), "{}", host.ruleset());
        if removed_by == Whose::Ours {
            host.check(removed_by, "net", &pods[0], &conf, &results[0]).ok();
        }
        host.del(removed_by, "net", &pods[0], slice::from_ref(&conf), &results[0]);
        assert_eq!((of(&host, &pods[0]), of(&host, &pods[1])), (vec![], other), "{made_by:?}");
        host.del(removed_by, "net", &pods[1], slice::from_ref(&conf), &results[1]);
        assert!(!host.ruleset().contains("cni-br-iface"), "{made_by:?}\n{}", host.ruleset());
    }
}

#[test]
fn a_delete_takes_the_rules_also_when_nothing_else_is_left_of_the_container() {
    for whose in [Whose::Ours, Whose::Reference] {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        host.add(whose, "net", &pod, &[bridge(&host, "net")]).ok();
        pod.net.tool("ip link del eth0");
        // Nor is the key, in a configuration that was changed since.
        let conf = complete("net", &host.bridge("net"), &Value::Null);
        for netns in ["", "/run/netns/gone"] {
            host.call(Whose::Ours, "DEL", ("c1", netns, "eth0"), &conf).ok();
            assert_eq!(of(&host, &pod), [""; 0], "{whose:?}");
        }
    }
}

#[test]
fn a_delete_takes_the_rules_also_when_the_configuration_has_not_the_key_any_more() {
    let (host, pods) = (Host::new(), two());
    for pod in &pods {
        host.add(Whose::Ours, "net", pod, &[bridge(&host, "net")]).ok();
    }
    host.del(Whose::Ours, "net", &pods[0], &[host.bridge("net")], &Value::Null);
    assert_eq!((of(&host, &pods[0]).len(), of(&host, &pods[1]).len()), (0, 6), "{}", host.ruleset());
}

#[test]
fn a_check_finds_each_rule_that_is_gone_or_altered() {
    let chain = "cni-br-iface-c1-eth0";
    for (broken, named) in [
        ("flush chain bridge nat PREROUTING".to_owned(), "PREROUTING"),
        (format!("flush chain bridge nat {chain}"), "cni-br-iface-c1-eth0"),
        (format!("flush chain bridge nat {chain}-mac"), "cni-br-iface-c1-eth0-mac"),
        (
            format!(
                "flush chain bridge nat {chain}-mac\nadd rule bridge nat {chain}-mac ether saddr {OTHER} return\nadd rule bridge nat {chain}-mac drop"
            ),
            "cni-br-iface-c1-eth0-mac",
        ),
        ("delete table bridge nat".to_owned(), "PREROUTING"),
        ("flush chain bridge nat PREROUTING\ndelete chain bridge nat PREROUTING".to_owned(), "PREROUTING"),
    ] {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let conf = bridge(&host, "net");
        let result = host.add(Whose::Ours, "net", &pod, slice::from_ref(&conf)).ok();
        host.check(Whose::Ours, "net", &pod, &conf, &result).ok();
        let (well, text) = host.net.try_tool("nft -f -", &broken);
        assert!(well, "{text}");
        let lost = host.check(Whose::Ours, "net", &pod, &conf, &result);
        assert!(lost.code() == 101 && lost.msg().ends_with(named), "{broken} {}", lost.msg());
        host.del(Whose::Ours, "net", &pod, slice::from_ref(&conf), &result);
        assert_eq!(of(&host, &pod), [""; 0], "{broken}");
        host.add(Whose::Ours, "net", &pod, slice::from_ref(&conf)).ok();
        assert_eq!(of(&host, &pod).len(), 6, "{broken}");
    }
}

#[test]
fn a_collection_takes_the_rules_of_ports_that_are_gone_and_leaves_those_that_hold_somebody() {
    let (host, pods, stranger) = (Host::new(), two(), Pod::new("stranger"));
    let made_by = [Whose::Ours, Whose::Reference];
    for (pod, whose) in pods.iter().zip(made_by) {
        host.add(whose, "net", pod, &[bridge(&host, "net")]).ok();
    }
    host.add(Whose::Ours, "other", &stranger, &[bridge(&host, "other")]).ok();
    let before = host.ruleset();
    gc(&host, "net", &[&pods[0], &pods[1]]);
    assert_eq!(host.ruleset(), before);
    // A rule for a port that is another attachment's by now would drop what that one sends.
    let port = before.lines().find_map(|line| {
        let (name, to) = line.trim().strip_prefix("iifname \"")?.split_once('"')?;
        to.contains("first-pod").then(|| name.to_owned())
    });
    let stale = format!(
        "add chain bridge nat cni-br-iface-gone-eth0\nadd rule bridge nat PREROUTING iifname \"{}\" \
         jump cni-br-iface-gone-eth0 comment \"macspoofchk-gone-eth0\"\n\
         add rule bridge nat PREROUTING iifname \"nobody\" drop comment \"macspoofchk-foreign-eth0\"",
        port.unwrap()
    );
    assert!(host.net.try_tool("nft -f -", &stale).0);
    gc(&host, "net", &[&pods[0], &pods[1]]);
    let left = host.ruleset();
    assert!(!left.contains("gone-eth0") && left.contains("foreign-eth0"), "{left}");
    gc(&host, "net", &[&pods[1]]);
    assert_eq!((of(&host, &pods[0]).len(), of(&host, &pods[1]).len()), (0, 6), "{}", host.ruleset());
    gc(&host, "net", &[]);
    assert_eq!((of(&host, &pods[1]).len(), of(&host, &stranger).len()), (0, 6), "{}", host.ruleset());
}

#[test]
fn an_add_that_fails_leaves_no_rule() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    // A route through what is on no link is refused when the container is furnished.
    let ipam = json!({ "type": "host-local", "subnet": "10.88.1.0/24", "dataDir": host.path("networks"),
        "routes": [{ "dst": "10.9.0.0/16", "gw": "192.0.2.77" }] });
    let conf = with(&bridge(&host, "net"), json!({ "ipam": ipam }));
    assert_eq!(host.add(Whose::Ours, "net", &pod, slice::from_ref(&conf)).code(), 100);
    assert!(!host.ruleset().contains("cni-br-iface"), "{}", host.ruleset());
}

#[test]
fn the_longest_id_of_a_container_has_its_rules() {
    let (host, pod) = (Host::new(), Pod::new(&"c".repeat(220)));
    let conf = bridge(&host, "net");
    let result = host.add(Whose::Ours, "net", &pod, slice::from_ref(&conf)).ok();
    assert_eq!(of(&host, &pod).len(), 6);
    host.check(Whose::Ours, "net", &pod, &conf, &result).ok();
    host.del(Whose::Ours, "net", &pod, slice::from_ref(&conf), &result);
    assert_eq!(of(&host, &pod), [""; 0]);
}
