//! A node changes to this plugin, and back, with containers running: what one binary made the other one takes away.

use std::os::unix::fs::symlink;
use std::{fs, slice};

use serde_json::{Value, json};

use super::bandwidth::{bandwidth, both, qdiscs};
use super::firewall::{firewall, rules};
use super::iptables::iptables;
use super::portmap::{mapping, portmap, with};
use super::tuning::{everything, state, tuning};
use crate::host::{Host, Namespace, Pod, Whose, complete};

const BOTH_WAYS: [(Whose, Whose); 2] = [(Whose::Ours, Whose::Reference), (Whose::Reference, Whose::Ours)];

/// Everything of the host that an attachment may change, names of links apart.
fn snapshot(host: &Host) -> Vec<String> {
    let mut lines = [rules(host, "iptables-save"), rules(host, "ip6tables-save"), qdiscs(host)].concat();
    let links = host.net.tool("ip -o link");
    lines.extend(links.lines().filter(|line| line.contains("bwp")).map(str::to_owned));
    let ours = host.ruleset();
    lines.extend(ours.lines().filter(|line| line.contains("c1")).map(str::to_owned));
    // What leads into chains that are everybody's stays, as it does with the reference plugins alone.
    lines.retain(|line| !line.contains("-j CNI-") && !line.contains("-A CNI-HOSTPORT"));
    lines
}

fn exchanged(
    host: &Host,
    pod: &Pod,
    conf: &Value,
    made_by: Whose,
    removed_by: Whose,
) -> (usize, Vec<String>) {
    let before = host.add(Whose::Ours, "net", pod, &[host.bridge("net")]).ok();
    let call = |whose, verb: &str, previous: &Value| {
        host.call(whose, verb, ("c1", &pod.net.path(), "eth0"), &complete("net", conf, previous)).ok()
    };
    let result = call(made_by, "ADD", &before);
    let made = snapshot(host).len();
    call(removed_by, "CHECK", &result);
    call(removed_by, "DEL", &result);
    (made, snapshot(host))
}

#[test]
fn port_maps_in_iptables() {
    for (made_by, removed_by) in BOTH_WAYS {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let conf = iptables(&[mapping("tcp", 8080, 80), mapping("udp", 8081, 81)], json!({}));
        let (made, left) = exchanged(&host, &pod, &conf, made_by, removed_by);
        assert!(made > 0);
        assert_eq!(left, [""; 0], "{made_by:?}");
        assert!(!host.net.tool("iptables-save").contains("CNI-DN-"), "{made_by:?}");
    }
}

#[test]
fn port_maps_of_either_of_its_backends_are_ours_to_delete_whatever_ours_is() {
    for keys in [json!({ "backend": "iptables" }), json!({ "backend": "nftables" })] {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let before = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
        let conf = complete("net", &portmap(&[mapping("tcp", 8080, 80)]), &before);
        let call = |whose, verb: &str, conf: &Value| {
            host.call(whose, verb, ("c1", &pod.net.path(), "eth0"), conf).ok()
        };
        call(Whose::Reference, "ADD", &with(&conf, keys.clone()));
        let server = pod.net.listen(80);
        assert!(host.client().reaches("192.0.2.1:8080", &server).is_some(), "{keys}");
        call(Whose::Ours, "DEL", &conf);
        assert!(host.client().is_kept_from("192.0.2.1:8080", &server), "{keys}\n{}", host.ruleset());
        let left = host.ruleset();
        assert!(!left.contains("10.88.1.2") && !left.contains("CNI-DN-"), "{keys}\n{left}");
    }
}

#[test]
fn a_port_map_that_the_reference_plugin_forgot_of_ours_never_stands_in_the_way_of_its_own() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
    let conf = portmap(&[mapping("tcp", 8080, 80)]);
    host.add(Whose::Ours, "net", &pods[0], &[host.bridge("net"), conf.clone()]).ok();
    for backend in ["iptables", "nftables"] {
        let before = host.add(Whose::Ours, "net", &pods[1], &[host.bridge("net")]).ok();
        let theirs = complete("net", &with(&conf, json!({ "backend": backend })), &before);
        let call =
            |verb: &str| host.call(Whose::Reference, verb, ("c2", &pods[1].net.path(), "eth0"), &theirs).ok();
        call("ADD");
        let server = pods[1].net.listen(80);
        assert!(host.client().reaches("192.0.2.1:8080", &server).is_some(), "{backend}\n{}", host.ruleset());
        call("DEL");
        host.del(Whose::Ours, "net", &pods[1], &[host.bridge("net")], &before);
    }
}

#[test]
fn limits_of_bandwidth() {
    for (made_by, removed_by) in BOTH_WAYS {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let before = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
        let conf = bandwidth(both());
        let call = |whose, verb: &str, previous: &Value| {
            host.call(whose, verb, ("c1", &pod.net.path(), "eth0"), &complete("net", &conf, previous)).ok()
        };
        let result = call(made_by, "ADD", &before);
        assert_eq!(qdiscs(&host).len(), 3, "{made_by:?} {:?}", qdiscs(&host));
        call(removed_by, "CHECK", &result);
        call(removed_by, "DEL", &result);
        assert!(!host.net.tool("ip link").contains("bwp"), "{made_by:?}");
    }
}

#[test]
fn limits_of_bandwidth_are_the_same_numbers() {
    for limits in [
        both(),
        json!({ "ingressRate": 12_345_678, "ingressBurst": 999_999, "egressRate": 100_000, "egressBurst": 8_000_000 }),
        json!({ "ingressRate": 40_000_000_000u64, "ingressBurst": 80_000_000 }),
        json!({ "egressRate": 1_000_000_000, "egressBurst": 4_294_967_295u64 }),
    ] {
        let made = [Whose::Ours, Whose::Reference].map(|whose| {
            let (host, pod) = (Host::new(), Pod::new("c1"));
            let before = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
            let conf = complete("net", &bandwidth(limits.clone()), &before);
            host.call(whose, "ADD", ("c1", &pod.net.path(), "eth0"), &conf).ok();
            qdiscs(&host)
        });
        assert_eq!(made[0], made[1], "{limits}");
    }
}

#[test]
fn the_firewalls_rules() {
    for (made_by, removed_by) in BOTH_WAYS {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let conf = firewall(&host, json!({}));
        let (made, left) = exchanged(&host, &pod, &conf, made_by, removed_by);
        assert_eq!((made, left), (4, vec![]), "{made_by:?}");
    }
}

#[test]
fn what_was_tuned() {
    for (made_by, removed_by) in BOTH_WAYS {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let before = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
        let (was, conf) = (state(&pod), tuning(&host, with(&everything(), json!({ "sysctl": {} }))));
        let call = |whose, verb: &str, previous: &Value| {
            host.call(whose, verb, ("c1", &pod.net.path(), "eth0"), &complete("net", &conf, previous)).ok()
        };
        let result = call(made_by, "ADD", &before);
        assert_ne!(state(&pod), was);
        call(removed_by, "CHECK", &result);
        call(removed_by, "DEL", &result);
        assert_eq!(state(&pod), was, "{made_by:?}");
        assert_eq!(fs::read_dir(host.path("tuning")).unwrap().count(), 0, "{made_by:?}");
    }
}

#[test]
fn a_loopback() {
    for (made_by, removed_by) in BOTH_WAYS {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let conf = complete("lo", &json!({ "type": "loopback" }), &Value::Null);
        let call = |whose, verb: &str| host.call(whose, verb, ("c1", &pod.net.path(), "eth0"), &conf).ok();
        let results = [made_by, removed_by].map(|whose| call(whose, "ADD"));
        assert_eq!(results[0], results[1]);
        call(removed_by, "CHECK");
        call(removed_by, "DEL");
    }
}

/// A `PATH` whose `iptables` is that of the old kernel interface.
fn old_iptables(host: &Host) -> String {
    let folder = host.path("old");
    fs::create_dir(&folder).unwrap();
    for family in ["iptables", "ip6tables"] {
        for program in ["", "-save", "-restore"] {
            let old = format!("/usr/sbin/{family}-legacy{program}");
            symlink(old, folder.join(format!("{family}{program}"))).unwrap();
        }
    }
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display())
}

#[test]
fn port_maps_in_tables_of_the_old_kernel_interface_are_ours_to_delete_and_to_collect() {
    let (mut host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2"), Pod::new("c3")]);
    let conf = |n: u16| iptables(&[mapping("tcp", 8081 + n, 80)], json!({}));
    let befores = pods.each_ref().map(|pod| host.add(Whose::Ours, "net", pod, &[host.bridge("net")]).ok());
    host.env.push(("PATH".to_owned(), old_iptables(&host)));
    for (n, pod) in pods.iter().enumerate() {
        let conf = complete("net", &conf(n.try_into().unwrap()), &befores[n]);
        host.call(Whose::Reference, "ADD", (&pod.id, &pod.net.path(), "eth0"), &conf).ok();
    }
    host.env.clear();
    let ports = |host: &Host| {
        let all =
            ["iptables-legacy-save", "ip6tables-legacy-save"].map(|program| rules(host, program)).concat();
        ["8081", "8082", "8083"].map(|port| all.iter().filter(|rule| rule.contains(port)).count())
    };
    let [first, second, third] = ports(&host);
    assert!(first > 0 && second > 0 && third > 0);
    host.del(Whose::Ours, "net", &pods[0], &[portmap(&[])], &Value::Null);
    assert_eq!(ports(&host), [0, second, third]);
    let valid = json!([{ "containerID": "c3", "ifname": "eth0" }]);
    let keys = json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid });
    host.call(Whose::Ours, "GC", ("", "", ""), &complete("net", &with(&portmap(&[]), keys), &Value::Null))
        .ok();
    assert_eq!(ports(&host), [0, 0, third]);
}

/// The reference plugin's ways to masquerade, the third with tables of the old kernel interface.
fn masquerading(host: &Host) -> [Value; 3] {
    [
        json!({ "ipMasqBackend": "iptables" }),
        json!({ "ipMasqBackend": "nftables" }),
        json!({ "ipMasqBackend": "iptables", "PATH": old_iptables(host) }),
    ]
}

/// Two containers that the reference plugin masquerades in this way, with their configuration and results.
fn masqueraded(host: &mut Host, keys: &Value) -> ([Pod; 2], Value, [Value; 2]) {
    let pods = ["first-pod", "second-pod"].map(Pod::new);
    let mut bridge = with(&with(&host.bridge("net"), json!({ "ipMasq": true })), keys.clone());
    let old = bridge.as_object_mut().unwrap().remove("PATH");
    host.env.extend(old.map(|path| ("PATH".to_owned(), path.as_str().unwrap().to_owned())));
    let made =
        pods.each_ref().map(|pod| host.add(Whose::Reference, "net", pod, slice::from_ref(&bridge)).ok());
    host.env.clear();
    assert_eq!(host.net.tool("iptables-legacy-save").contains(&pods[0].id), keys["PATH"].is_string());
    (pods, bridge, made)
}

/// All rules, also those that only iptables shows in full.
fn all_rules(host: &Host) -> String {
    let programs = ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"];
    programs.map(|program| host.net.tool(program)).concat() + &host.ruleset()
}

fn rules_of(host: &Host, pod: &Pod) -> usize {
    all_rules(host).lines().filter(|line| line.contains(&pod.id)).count()
}

#[test]
fn masquerade_of_each_of_its_backends_is_ours_to_delete() {
    for n in 0..3 {
        let mut host = Host::new();
        let keys = &masquerading(&host)[n];
        let (pods, bridge, results) = masqueraded(&mut host, keys);
        let other = rules_of(&host, &pods[1]);
        assert!(rules_of(&host, &pods[0]) > 0 && other > 0, "{keys}\n{}", all_rules(&host));
        // Whether a result is known, the namespace still there, or ipMasq still asked for, is all the same.
        let plain = host.bridge("net");
        let gone = Pod { net: Namespace::new(), id: pods[0].id.clone() };
        host.del(Whose::Ours, "net", &gone, &[plain], &Value::Null);
        assert_eq!((rules_of(&host, &pods[0]), rules_of(&host, &pods[1])), (0, other), "{keys}");
        host.del(Whose::Ours, "net", &pods[1], slice::from_ref(&bridge), &results[1]);
        let left = all_rules(&host);
        assert!(!left.contains("10.88.1.") && !left.contains(":CNI-"), "{keys}\n{left}");
    }
}

#[test]
fn masquerade_of_each_of_its_backends_is_collected_with_what_is_not_valid_any_more() {
    for n in 0..3 {
        let mut host = Host::new();
        let keys = &masquerading(&host)[n];
        let (pods, bridge, _) = masqueraded(&mut host, keys);
        let stranger = Pod::new("stranger");
        let elsewhere =
            with(&host.bridge("other"), json!({ "ipMasq": true, "ipMasqBackend": keys["ipMasqBackend"] }));
        host.add(Whose::Reference, "other", &stranger, &[elsewhere]).ok();
        let counts = |host: &Host| [&pods[0], &pods[1], &stranger].map(|pod| rules_of(host, pod));
        let [first, second, others] = counts(&host);
        assert!(first > 0 && second > 0 && others > 0, "{keys}\n{}", all_rules(&host));
        let gc = |valid: &[&Pod]| {
            let list: Vec<_> =
                valid.iter().map(|pod| json!({ "containerID": pod.id, "ifname": "eth0" })).collect();
            let keys = json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": list });
            host.call(Whose::Ours, "GC", ("", "", ""), &complete("net", &with(&bridge, keys), &Value::Null))
                .ok();
        };
        gc(&[&pods[0], &pods[1]]);
        assert_eq!(counts(&host), [first, second, others], "{keys}");
        gc(&[&pods[1]]);
        assert_eq!(counts(&host), [0, second, others], "{keys}\n{}", all_rules(&host));
        gc(&[]);
        assert_eq!(counts(&host), [0, 0, others], "{keys}\n{}", all_rules(&host));
    }
}
