//! Port maps in nf_tables.

use std::net::UdpSocket;
use std::thread;

use serde_json::{Value, json};

use crate::host::{Host, Pod, Whose, complete};

pub(crate) fn mapping(protocol: &str, host: u16, container: u16) -> Value {
    json!({ "hostPort": host, "containerPort": container, "protocol": protocol })
}

pub(crate) fn portmap(mappings: &[Value]) -> Value {
    json!({ "type": "portmap", "runtimeConfig": { "portMappings": mappings } })
}

/// A plugin's configuration with further keys.
pub(crate) fn with(conf: &Value, more: Value) -> Value {
    let mut conf = conf.clone();
    for (key, value) in more.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

pub(crate) const TARGETS: [&str; 2] = ["192.0.2.1:8080", "[2001:db8::1]:8080"];

/// One container with port 8080 of the host on its port 80, and the chain that made it.
fn one(host: &Host, more: Value) -> (Pod, Vec<Value>, Value) {
    let pod = Pod::new("c1");
    let chain = vec![host.bridge("net"), with(&portmap(&[mapping("tcp", 8080, 80)]), more)];
    let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
    (pod, chain, result)
}

#[test]
fn a_host_port_leads_to_the_container_in_both_families_when_add_returns() {
    let host = Host::new();
    let (pod, chain, result) = one(&host, json!({}));
    let server = pod.net.listen(80);
    for (target, source) in TARGETS.into_iter().zip(["::ffff:192.0.2.2", "2001:db8::2"]) {
        let seen =
            host.client().reaches(target, &server).unwrap_or_else(|| panic!("{target}\n{}", host.ruleset()));
        assert_eq!(seen.ip().to_string(), source, "the container sees who it is");
    }
    host.del(Whose::Ours, "net", &pod, &chain, &result);
    assert!(!host.ruleset().contains("c1"), "{}", host.ruleset());
    for target in TARGETS {
        assert!(host.client().is_kept_from(target, &server), "{target}");
    }
}

#[test]
fn the_result_is_handed_on_as_it_came_in_every_version() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let old = json!({ "cniVersion": version, "ip4": { "ip": "10.88.1.7/24", "gateway": "10.88.1.1" }, "dns": {} });
        let new = json!({ "cniVersion": version, "ips": [{ "version": "4", "address": "10.88.1.7/24" }], "dns": {} });
        let before = if version < "0.3" { old } else { new };
        let mut conf = portmap(&[mapping("tcp", 8080, 80)]);
        conf["cniVersion"] = version.into();
        let conf = complete("net", &conf, &before);
        let mut after = host.call(Whose::Ours, "ADD", ("c1", &pod.net.path(), "eth0"), &conf).ok();
        if version >= "1" {
            after["dns"] = json!({});
            after["ips"][0]["version"] = "4".into();
        }
        assert_eq!(after, before);
        assert!(host.ruleset().contains("10.88.1.7"), "{version}: {}", host.ruleset());
    }
}

#[test]
fn a_container_reaches_itself_and_its_neighbours_reach_it_by_way_of_the_host() {
    let host = Host::new();
    let (pod, ..) = one(&host, json!({}));
    let neighbour = Pod::new("c2");
    host.add(Whose::Ours, "net", &neighbour, &[host.bridge("net")]).ok();
    let server = pod.net.listen(80);
    for who in [&pod.net, &neighbour.net] {
        for (target, bridge) in TARGETS.into_iter().zip(["::ffff:10.88.1.1", "fc00:88:1::1"]) {
            let seen = who.reaches(target, &server).unwrap_or_else(|| panic!("{target}\n{}", host.ruleset()));
            assert_eq!(seen.ip().to_string(), bridge, "{target}");
        }
    }
}

#[test]
fn the_host_reaches_it_by_its_loopback_and_by_its_own_address() {
    let host = Host::new();
    let (pod, ..) = one(&host, json!({}));
    let server = pod.net.listen(80);
    for target in ["127.0.0.1:8080", "127.0.0.9:8080", TARGETS[0], TARGETS[1]] {
        assert!(host.net.reaches(target, &server).is_some(), "{target}\n{}", host.ruleset());
    }
    assert_eq!(host.net.sysctl("net/ipv4/conf/cni0/route_localnet"), "1");
}

#[test]
fn without_snat_nothing_is_masqueraded_and_with_masqall_everything_is() {
    let host = Host::new();
    let (pod, ..) = one(&host, json!({ "snat": false }));
    let server = pod.net.listen(80);
    assert_eq!(host.client().reaches(TARGETS[0], &server).unwrap().ip().to_string(), "::ffff:192.0.2.2");
    assert!(host.net.is_kept_from("127.0.0.1:8080", &server));
    assert_eq!(host.net.sysctl("net/ipv4/conf/cni0/route_localnet"), "0");
    let host = Host::new();
    let (pod, ..) = one(&host, json!({ "masqAll": true }));
    let server = pod.net.listen(80);
    for (target, bridge) in TARGETS.into_iter().zip(["::ffff:10.88.1.1", "fc00:88:1::1"]) {
        assert_eq!(host.client().reaches(target, &server).unwrap().ip().to_string(), bridge, "{target}");
    }
}

#[test]
fn a_host_ip_limits_a_port_to_that_address_and_to_its_family() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    host.net.tool("ip address add 192.0.2.9/24 dev up0");
    let at = |port: u16, ip: &str| with(&mapping("tcp", port, 80), json!({ "hostIP": ip }));
    let mappings = [
        at(8080, "192.0.2.9"),
        at(8081, "2001:db8::1"),
        at(8082, "0.0.0.0"),
        at(8083, "::"),
        at(8084, "127.0.0.1"),
    ];
    let chain = [host.bridge("net"), portmap(&mappings)];
    host.add(Whose::Ours, "net", &pod, &chain).ok();
    let server = pod.net.listen(80);
    for (target, expected) in [
        ("192.0.2.9:8080", true),
        ("192.0.2.1:8080", false),
        ("[2001:db8::1]:8080", false),
        ("[2001:db8::1]:8081", true),
        ("192.0.2.1:8081", false),
        ("192.0.2.1:8082", true),
        ("[2001:db8::1]:8082", false),
        ("[2001:db8::1]:8083", true),
        ("192.0.2.1:8084", false),
    ] {
        let got = if expected {
            host.client().reaches(target, &server).is_some()
        } else {
            !host.client().is_kept_from(target, &server)
        };
        assert_eq!(got, expected, "{target}\n{}", host.ruleset());
    }
    assert!(host.net.reaches("127.0.0.1:8084", &server).is_some());
}

/// The container's answer to the client's next datagram, if there is one.
pub(crate) fn asks(client: &UdpSocket, servers: &[(&UdpSocket, &str)]) -> Option<String> {
    client.send(b"?").unwrap();
    let heard = servers.iter().find_map(|(server, name)| {
        let from = server.recv_from(&mut [0; 8]).ok()?.1;
        Some((server, from, name))
    });
    let (server, from, name) = heard?;
    server.send_to(name.as_bytes(), from).unwrap();
    let mut buffer = [0; 8];
    let len = client.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

#[test]
fn a_flow_of_udp_goes_to_the_new_container_with_its_next_packet() {
    for (bind, target) in [("0.0.0.0:0", TARGETS[0]), ("[::]:0", TARGETS[1])] {
        let host = Host::new();
        let pods = [Pod::new("c1"), Pod::new("c2")];
        let chain = [host.bridge("net"), portmap(&[mapping("udp", 8080, 53)])];
        let servers = [pods[0].net.udp("[::]:53"), pods[1].net.udp("[::]:53")];
        let both = [(&servers[0], "one"), (&servers[1], "two")];
        let client = host.client().udp(bind);
        client.connect(target).unwrap();
        let _ = client.send(b"before there is a forward, and remembered as such");
        let first = host.add(Whose::Ours, "net", &pods[0], &chain).ok();
        // The host answered that nobody listens.
        let _ = client.send(b"");
        let _ = client.recv(&mut [0; 8]);
        while servers[0].recv(&mut [0; 64]).is_ok() {}
        assert_eq!(asks(&client, &both).as_deref(), Some("one"), "{target}");
        host.del(Whose::Ours, "net", &pods[0], &chain, &first);
        host.add(Whose::Ours, "net", &pods[1], &chain).ok();
        assert_eq!(asks(&client, &both).as_deref(), Some("two"), "{target}");
    }
}

#[test]
fn a_delete_forgets_its_flows_of_udp_and_no_others() {
    let (host, pod, other) = (Host::new(), Pod::new("c1"), Pod::new("c2"));
    let chains = [8080, 8081].map(|port| [host.bridge("net"), portmap(&[mapping("udp", port, 53)])]);
    let result = host.add(Whose::Ours, "net", &pod, &chains[0]).ok();
    host.add(Whose::Ours, "net", &other, &chains[1]).ok();
    let servers = [pod.net.udp("[::]:53"), other.net.udp("[::]:53")];
    let clients = ["192.0.2.1:8080", "192.0.2.1:8081"].map(|target| {
        let client = host.client().udp("0.0.0.0:0");
        client.connect(target).unwrap();
        client
    });
    let both = [(&servers[0], "one"), (&servers[1], "two")];
    assert_eq!(asks(&clients[0], &both).as_deref(), Some("one"));
    assert_eq!(asks(&clients[1], &both).as_deref(), Some("two"));
    host.del(Whose::Ours, "net", &pod, &chains[0], &result);
    assert_eq!(asks(&clients[0], &both), None, "it goes nowhere");
    assert_eq!(asks(&clients[1], &both).as_deref(), Some("two"));
}

#[test]
fn a_table_that_somebody_emptied_is_named_by_check_and_made_anew_by_the_next_add() {
    for flush in [
        "nft flush ruleset",
        "nft flush table ip selvage_portmap",
        "nft flush chain ip selvage_portmap output",
    ] {
        let host = Host::new();
        let (pod, chain, result) = one(&host, json!({}));
        let check = || host.check(Whose::Ours, "net", &pod, &chain[1], &result);
        check().ok();
        let whole = host.ruleset();
        host.net.tool(flush);
        assert!(check().code() == 101 && check().msg().contains("lost a rule"), "{flush}: {}", check().msg());
        let other = Pod::new("c2");
        let second = [host.bridge("net"), portmap(&[mapping("tcp", 9090, 90)])];
        let second_result = host.add(Whose::Ours, "net", &other, &second).ok();
        let server = other.net.listen(90);
        assert!(host.client().reaches("192.0.2.1:9090", &server).is_some(), "{flush}\n{}", host.ruleset());
        host.check(Whose::Ours, "net", &other, &second[1], &second_result).ok();
        host.del(Whose::Ours, "net", &other, &second, &second_result);
        host.del(Whose::Ours, "net", &pod, &chain, &result);
        host.add(Whose::Ours, "net", &pod, &chain[1..]).msg();
        let rules = |text: &str| {
            text.lines().filter(|line| line.contains("masquerade") || line.contains("dnat")).count()
        };
        assert_eq!(rules(&host.ruleset()), rules(&whole), "{flush}: each rule once\n{}", host.ruleset());
    }
}

#[test]
fn a_forward_that_is_gone_or_anothers_is_named_by_check() {
    let host = Host::new();
    let (pod, chain, result) = one(&host, json!({}));
    let check = || host.check(Whose::Ours, "net", &pod, &chain[1], &result);
    host.net.tool("nft delete element ip6 selvage_portmap ports { tcp . 8080 }");
    assert!(check().code() == 101 && check().msg().contains("host port 8080"), "{}", check().msg());
    let other = Pod::new("c2");
    host.add(Whose::Ours, "net", &other, &chain).ok();
    assert!(check().msg().contains("belongs to net/c2/eth0"), "{}", check().msg());
    let none = host.call(
        Whose::Ours,
        "CHECK",
        ("c1", &pod.net.path(), "eth0"),
        &complete("net", &chain[1], &Value::Null),
    );
    assert_eq!(none.code(), 7);
}

#[test]
fn the_last_to_ask_for_a_port_gets_it_and_keeps_it_when_the_first_ends() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
    let chain = [host.bridge("net"), portmap(&[mapping("tcp", 8080, 80)])];
    let results = pods.each_ref().map(|pod| host.add(Whose::Ours, "net", pod, &chain).ok());
    let server = pods[1].net.listen(80);
    assert!(host.client().reaches(TARGETS[0], &server).is_some(), "{}", host.ruleset());
    host.del(Whose::Ours, "net", &pods[0], &chain, &results[0]);
    assert!(host.client().reaches(TARGETS[0], &server).is_some(), "{}", host.ruleset());
    assert!(!host.ruleset().contains("net/c1/"), "{}", host.ruleset());
}

#[test]
fn what_an_add_made_is_found_by_its_name_alone() {
    for kind in ["another configuration", "no namespace", "a senseless result", "nothing at all"] {
        let host = Host::new();
        let (pod, chain, result) = one(&host, json!({}));
        let (mut conf, mut netns) = (complete("net", &chain[1], &result), pod.net.path());
        match kind {
            "another configuration" => {
                conf["runtimeConfig"]["portMappings"] = json!([mapping("udp", 1, 1)]);
                conf["snat"] = false.into();
                conf["conditionsV4"] = json!(["-d", "192.0.2.1"]);
            }
            "no namespace" => netns = String::new(),
            "a senseless result" => conf["prevResult"] = json!({ "ips": "many" }),
            _ => conf = complete("net", &json!({ "type": "portmap" }), &Value::Null),
        }
        for _ in 0..2 {
            assert!(host.call(Whose::Ours, "DEL", (&pod.id, &netns, "eth0"), &conf).well, "{kind}");
            assert!(!host.ruleset().contains("net/c1/"), "{kind}: {}", host.ruleset());
        }
    }
}

#[test]
fn interfaces_and_networks_of_one_container_keep_apart() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let call = |verb: &str, network: &str, ifname: &str, port: u16, conf: &Value| {
        let mut conf =
            complete(network, conf, &json!({ "ips": [{ "address": format!("10.88.1.{port}/24") }] }));
        conf["runtimeConfig"] = json!({ "portMappings": [mapping("tcp", 8000 + port, 80)] });
        assert!(host.call(Whose::Ours, verb, (&pod.id, &pod.net.path(), ifname), &conf).well);
    };
    let conf = json!({ "type": "portmap" });
    call("ADD", "net", "eth0", 2, &conf);
    call("ADD", "net", "eth1", 3, &conf);
    call("ADD", "other", "eth0", 4, &conf);
    call("DEL", "net", "eth0", 2, &conf);
    let ruleset = host.ruleset();
    assert!(!ruleset.contains("8002") && ruleset.contains("8003") && ruleset.contains("8004"), "{ruleset}");
}

#[test]
fn a_collection_removes_what_is_no_valid_attachment_of_its_network() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2"), Pod::new("c3")]);
    for (n, (pod, network)) in pods.iter().zip(["net", "net", "other"]).enumerate() {
        let port = 8080 + u16::try_from(n).unwrap();
        host.add(Whose::Ours, network, pod, &[host.bridge(network), portmap(&[mapping("tcp", port, 80)])])
            .ok();
    }
    let mut conf = complete("net", &json!({ "type": "portmap", "cniVersion": "1.1.0" }), &Value::Null);
    let call = |conf: &Value| host.call(Whose::Ours, "GC", ("", "", ""), conf);
    assert_eq!(call(&conf).code(), 7, "no list is not an empty one");
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "c2", "ifname": "eth0" }]);
    assert!(call(&conf).well);
    let ruleset = host.ruleset();
    assert!(
        !ruleset.contains("net/c1/") && ruleset.contains("net/c2/") && ruleset.contains("other/c3/"),
        "{ruleset}"
    );
}

#[test]
fn conditions_in_nft_words_hold_for_the_containers_that_have_them() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
    let conditions = json!({ "conditionsV4": ["ip", "saddr", "!=", "192.0.2.2"], "conditionsV6": ["ip6 saddr 2001:db8::/64"] });
    let chains = [
        [host.bridge("net"), with(&portmap(&[mapping("tcp", 8080, 80)]), conditions)],
        [host.bridge("net"), portmap(&[mapping("tcp", 8081, 80)])],
    ];
    let results = [0, 1].map(|n| host.add(Whose::Ours, "net", &pods[n], &chains[n]).ok());
    let servers = pods.each_ref().map(|pod| pod.net.listen(80));
    assert!(host.client().is_kept_from("192.0.2.1:8080", &servers[0]));
    assert!(host.client().reaches("[2001:db8::1]:8080", &servers[0]).is_some(), "{}", host.ruleset());
    assert!(host.net.reaches("192.0.2.1:8080", &servers[0]).is_some());
    assert!(host.client().reaches("192.0.2.1:8081", &servers[1]).is_some());
    host.check(Whose::Ours, "net", &pods[0], &chains[0][1], &results[0]).ok();
    for (n, pod) in pods.iter().enumerate() {
        host.del(Whose::Ours, "net", pod, &chains[n], &results[n]);
    }
    assert!(!host.ruleset().contains("/eth0"), "{}", host.ruleset());
}

#[test]
fn a_condition_with_a_set_holds_for_each_of_its_values() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let conditions =
        |text: &str| with(&portmap(&[mapping("tcp", 8080, 80)]), json!({ "conditionsV4": [text] }));
    for (text, reached) in [
        ("ip saddr { 198.51.100.0/24, 192.0.2.2 }", true),
        ("ip saddr {198.51.100.0/24,203.0.113.1}", false),
        ("ip saddr != { 198.51.100.0/24, 192.0.2.2 }", false),
        ("ip saddr != { 198.51.100.0/24, 203.0.113.1 }", true),
    ] {
        let chain = [host.bridge("net"), conditions(text)];
        let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
        let server = pod.net.listen(80);
        if reached {
            assert!(host.client().reaches("192.0.2.1:8080", &server).is_some(), "{text} {}", host.ruleset());
        } else {
            assert!(host.client().is_kept_from("192.0.2.1:8080", &server), "{text} {}", host.ruleset());
        }
        host.check(Whose::Ours, "net", &pod, &chain[1], &result).ok();
        host.del(Whose::Ours, "net", &pod, &chain, &result);
    }
}

#[test]
fn the_result_may_name_links_that_are_no_ethernet_links() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    let mut before = made;
    before["interfaces"][2]["mac"] = "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:1b:b6:f1".into();
    let conf = complete("net", &portmap(&[mapping("tcp", 8080, 80)]), &before);
    let result = host.call(Whose::Ours, "ADD", ("c1", &pod.net.path(), "eth0"), &conf).ok();
    assert_eq!(result["interfaces"], before["interfaces"]);
}

#[test]
fn a_thousand_ports_come_and_go_at_once() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let mappings: Vec<_> = (1..=1000).map(|n| mapping("tcp", 20_000 + n, n)).collect();
    let chain = [host.bridge("net"), portmap(&mappings)];
    let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
    let server = pod.net.listen(777);
    assert!(host.client().reaches("192.0.2.1:20777", &server).is_some());
    host.check(Whose::Ours, "net", &pod, &chain[1], &result).ok();
    host.del(Whose::Ours, "net", &pod, &chain, &result);
    assert!(!host.ruleset().contains("net/c1/"));
}

#[test]
fn containers_that_start_and_end_together_share_one_table_and_disturb_nobody() {
    let host = Host::new();
    let pods: Vec<_> = (0..8).map(|n| Pod::new(&format!("c{n}"))).collect();
    let run = |n: usize| {
        let port = 8080 + u16::try_from(n).unwrap();
        let chain = [host.bridge("net"), portmap(&[mapping("tcp", port, 80), mapping("udp", port, 53)])];
        for _ in 0..3 {
            let result = host.add(Whose::Ours, "net", &pods[n], &chain).ok();
            host.check(Whose::Ours, "net", &pods[n], &chain[1], &result).ok();
            host.del(Whose::Ours, "net", &pods[n], &chain, &result);
        }
    };
    thread::scope(|scope| (0..pods.len()).for_each(|n| drop(scope.spawn(move || run(n)))));
    let ruleset = host.ruleset();
    assert!(!ruleset.contains("/eth0"), "{ruleset}");
    assert_eq!(ruleset.matches("jump hostports").count(), 4, "{ruleset}");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_name_and_nothing_is_made() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let before = json!({ "ips": [{ "address": "10.88.1.2/24" }] });
    for (more, code, named) in [
        (json!({ "runtimeConfig": { "portMappings": [mapping("tcp", 0, 80)] } }), 7, "hostPort"),
        (json!({ "runtimeConfig": { "portMappings": [mapping("tcp", 80, 0)] } }), 7, "containerPort"),
        (json!({ "runtimeConfig": { "portMappings": [mapping("icmp", 80, 80)] } }), 7, "protocol"),
        (
            json!({ "runtimeConfig": { "portMappings": [with(&mapping("tcp", 80, 80), json!({ "hostIP": "here" }))] } }),
            7,
            "hostIP",
        ),
        (json!({ "runtimeConfig": { "portMappings": "80" } }), 6, "portMappings"),
        (json!({ "markMasqBit": 32 }), 7, "markMasqBit"),
        (json!({ "markMasqBit": 3, "externalSetMarkChain": "X" }), 7, "exclude"),
        (json!({ "backend": "pf" }), 7, "backend"),
        (json!({ "backend": "nftables", "externalSetMarkChain": "X" }), 7, "other backend"),
        (json!({ "conditionsV4": ["ct", "state", "new"] }), 2, "ct state new"),
        (json!({ "prevResult": null }), 7, "prevResult"),
    ] {
        let conf = with(&complete("net", &portmap(&[mapping("tcp", 8080, 80)]), &before), more.clone());
        let answer = host.call(Whose::Ours, "ADD", (&pod.id, &pod.net.path(), "eth0"), &conf);
        assert_eq!(answer.code(), code, "{more} {}", answer.document);
        assert!(answer.document.to_string().contains(named), "{more} {}", answer.document);
    }
    assert_eq!(host.ruleset(), "", "nothing is made");
    let none = complete("net", &json!({ "type": "portmap" }), &before);
    assert!(host.call(Whose::Ours, "ADD", (&pod.id, &pod.net.path(), "eth0"), &none).well);
    assert_eq!(host.ruleset(), "", "without ports neither");
}

#[test]
fn containerds_spelling_of_the_keys_maps_ports_too() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let spelt = json!({ "HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" });
    let chain =
        [host.bridge("net"), json!({ "type": "portmap", "RuntimeConfig": { "PortMappings": [spelt] } })];
    host.add(Whose::Ours, "net", &pod, &chain).ok();
    let server = pod.net.listen(80);
    assert!(host.client().reaches(TARGETS[0], &server).is_some());
}

#[test]
fn status_says_whether_port_maps_could_be_made() {
    let host = Host::new();
    let conf = complete("net", &json!({ "type": "portmap", "cniVersion": "1.1.0" }), &Value::Null);
    assert!(host.call(Whose::Ours, "STATUS", ("", "", ""), &conf).well);
    let wrong = with(&conf, json!({ "backend": "pf" }));
    assert_eq!(host.call(Whose::Ours, "STATUS", ("", "", ""), &wrong).code(), 50);
}
