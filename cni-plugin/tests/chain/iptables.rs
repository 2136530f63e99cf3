//! Port maps by the backend `iptables`.

use serde_json::{Value, json};

use super::firewall::rules;
use super::portmap::{TARGETS, asks, mapping, portmap, with};
use crate::host::{Host, Pod, Whose, complete};

pub(crate) fn iptables(mappings: &[Value], keys: Value) -> Value {
    with(&with(&portmap(mappings), json!({ "backend": "iptables" })), keys)
}

fn sorted(mut rules: Vec<String>) -> Vec<String> {
    rules.sort();
    rules
}

#[test]
fn a_host_port_leads_to_the_container_from_everywhere() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let chain = [host.bridge("net"), iptables(&[mapping("tcp", 8080, 80)], json!({}))];
    let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
    let server = pod.net.listen(80);
    for target in TARGETS {
        assert!(host.client().reaches(target, &server).is_some(), "{target}");
        assert!(pod.net.reaches(target, &server).is_some(), "{target} from itself");
    }
    assert!(host.net.reaches("127.0.0.1:8080", &server).is_some());
    host.check(Whose::Ours, "net", &pod, &chain[1], &result).ok();
    host.net.tool("iptables -t nat -F CNI-HOSTPORT-DNAT");
    let lost = host.check(Whose::Ours, "net", &pod, &chain[1], &result);
    assert!(lost.code() == 101 && lost.msg().contains("CNI-HOSTPORT-DNAT"), "{}", lost.msg());
    host.del(Whose::Ours, "net", &pod, &chain, &result);
    assert!(!rules(&host, "iptables-save").join("\n").contains("CNI-DN-"));
    for target in TARGETS {
        assert!(host.client().is_kept_from(target, &server), "{target}");
    }
}

#[test]
fn every_key_makes_the_rules_that_the_reference_plugin_makes() {
    let many: Vec<_> = (1..=20).map(|n| mapping("tcp", 9000 + n, n)).collect();
    let mixed = [
        mapping("tcp", 8080, 80),
        with(&mapping("udp", 8081, 81), json!({ "hostIP": "192.0.2.1" })),
        with(&mapping("tcp", 8082, 82), json!({ "hostIP": "2001:db8::1" })),
        with(&mapping("sctp", 8083, 83), json!({ "hostIP": "0.0.0.0" })),
    ];
    for (mappings, keys) in [
        (&mixed[..], json!({})),
        (&mixed[..], json!({ "snat": false })),
        (&mixed[..], json!({ "masqAll": true })),
        (&mixed[..], json!({ "markMasqBit": 0 })),
        (&mixed[..], json!({ "externalSetMarkChain": "MY-MARK" })),
        (
            &mixed[..],
            json!({ "conditionsV4": ["!", "-s", "192.0.2.7"], "conditionsV6": ["!", "-s", "2001:db8::7"] }),
        ),
        (&many[..], json!({})),
    ] {
        let made = [Whose::Ours, Whose::Reference].map(|whose| {
            let (host, pod) = (Host::new(), Pod::new("c1"));
            for table in ["iptables", "ip6tables"] {
                host.net.tool(&format!("{table} -t nat -N MY-MARK"));
            }
            let before = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
            let conf = complete("net", &iptables(mappings, keys.clone()), &before);
            for _ in 0..2 {
                host.call(whose, "ADD", ("c1", &pod.net.path(), "eth0"), &conf).ok();
            }
            [sorted(rules(&host, "iptables-save")), sorted(rules(&host, "ip6tables-save"))]
        });
        assert_eq!(made[0], made[1], "{keys}");
        assert!(made[0][0].len() >= 8);
    }
}

#[test]
fn iptables_words_choose_it_without_being_asked() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let conf =
        with(&portmap(&[mapping("tcp", 8080, 80)]), json!({ "conditionsV4": ["!", "-s", "192.0.2.2"] }));
    host.add(Whose::Ours, "net", &pod, &[host.bridge("net"), conf]).ok();
    let server = pod.net.listen(80);
    assert!(host.client().is_kept_from(TARGETS[0], &server));
    assert!(host.client().reaches(TARGETS[1], &server).is_some());
    assert!(!host.ruleset().contains("selvage_portmap"));
}

#[test]
fn a_flow_of_udp_goes_to_the_new_container_with_its_next_packet() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
    let chain = [host.bridge("net"), iptables(&[mapping("udp", 8080, 53)], json!({}))];
    let servers = [pods[0].net.udp("[::]:53"), pods[1].net.udp("[::]:53")];
    let both = [(&servers[0], "one"), (&servers[1], "two")];
    let client = host.client().udp("0.0.0.0:0");
    client.connect(TARGETS[0]).unwrap();
    let first = host.add(Whose::Ours, "net", &pods[0], &chain).ok();
    assert_eq!(asks(&client, &both).as_deref(), Some("one"));
    host.del(Whose::Ours, "net", &pods[0], &chain, &first);
    host.add(Whose::Ours, "net", &pods[1], &chain).ok();
    assert_eq!(asks(&client, &both).as_deref(), Some("two"));
}

#[test]
fn a_collection_removes_the_chains_of_what_is_not_valid() {
    // Whoever made them, and whatever ours makes by now.
    for (made_by, backend) in
        [(Whose::Ours, "iptables"), (Whose::Reference, "iptables"), (Whose::Reference, "nftables")]
    {
        let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2"), Pod::new("stranger")]);
        for (n, pod) in pods.iter().enumerate() {
            let port = 8080 + u16::try_from(n).unwrap();
            let network = if n == 2 { "other" } else { "net" };
            let before = host.add(Whose::Ours, network, pod, &[host.bridge(network)]).ok();
            let conf = complete(network, &iptables(&[mapping("tcp", port, 80)], json!({})), &before);
            host.call(made_by, "ADD", (&pod.id, &pod.net.path(), "eth0"), &conf).ok();
        }
        let keys = json!({ "cniVersion": "1.1.0", "backend": backend });
        let mut conf = complete("net", &iptables(&[], keys), &Value::Null);
        conf["cni.dev/valid-attachments"] = json!([{ "containerID": "c2", "ifname": "eth0" }]);
        host.call(Whose::Ours, "GC", ("", "", ""), &conf).ok();
        let all =
            ["iptables-save", "ip6tables-save"].map(|program| rules(&host, program)).concat().join("\n");
        assert!(!all.contains("8080") && all.contains("8081") && all.contains("8082"), "{made_by:?} {all}");
    }
}

#[test]
fn containers_that_start_together_share_the_chains() {
    let host = Host::new();
    let pods: Vec<_> = (0..4).map(|n| Pod::new(&format!("c{n}"))).collect();
    std::thread::scope(|scope| {
        for (n, pod) in pods.iter().enumerate() {
            let host = &host;
            scope.spawn(move || {
                let port = 8080 + u16::try_from(n).unwrap();
                let chain = [host.bridge("net"), iptables(&[mapping("tcp", port, 80)], json!({}))];
                let result = host.add(Whose::Ours, "net", pod, &chain).ok();
                host.check(Whose::Ours, "net", pod, &chain[1], &result).ok();
            });
        }
    });
    let all = rules(&host, "iptables-save");
    let entries = all.iter().filter(|line| line.starts_with("-A CNI-HOSTPORT-DNAT")).count();
    assert_eq!(entries, 4, "{all:#?}");
}
