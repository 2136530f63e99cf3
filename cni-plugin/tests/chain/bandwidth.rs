//! Limits of bandwidth: what the kernel has, and what passes.

#![allow(clippy::disallowed_methods, reason = "a rate is bytes by time")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::portmap::with;
use crate::host::namespace::SOON;
use crate::host::{Host, Namespace, Pod, Whose, complete};

pub(crate) fn bandwidth(limits: Value) -> Value {
    with(&json!({ "type": "bandwidth" }), limits)
}

/// 8 Mbit/s each way.
pub(crate) fn both() -> Value {
    json!({ "ingressRate": 8_000_000, "ingressBurst": 160_000, "egressRate": 8_000_000, "egressBurst": 160_000 })
}

/// How long 1.5 MB take from one to the other.
fn takes(from: &Namespace, to: &Namespace, target: &str) -> Duration {
    let listener = to.listen(9000);
    let address: SocketAddr = target.parse().unwrap();
    let mut sender = from.run(|| TcpStream::connect_timeout(&address, SOON)).unwrap();
    let mut receiver = listener.accept().unwrap().0;
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || sender.write_all(&vec![7; BYTES]).unwrap());
        let mut received = vec![0; BYTES];
        receiver.read_exact(&mut received).unwrap();
    });
    began.elapsed()
}

const BYTES: usize = 1_500_000;
/// At a million bytes per second, less the burst and what is on the way.
const LIMITED: Duration = Duration::from_millis(1200);

/// The queueing disciplines of the host but for those that every link has.
pub(crate) fn qdiscs(host: &Host) -> Vec<String> {
    let all = host.net.tool("tc qdisc show");
    let ours = all.lines().filter(|line| line.contains("tbf") || line.contains("ingress"));
    // Names of links differ from one host to the next.
    let mut lines: Vec<_> = ours
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let at = words.iter().position(|word| *word == "dev").unwrap();
            let kind = words[at + 1].chars().take(3).collect::<String>();
            [&words[..at], &[kind.as_str()], &words[at + 2..]].concat().join(" ")
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn both_directions_pass_at_their_rate() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let free = takes(host.client(), &host.net, "192.0.2.1:9000");
    let chain = [host.bridge("net"), bandwidth(both())];
    let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
    let ifb = &result["interfaces"][3];
    assert!(ifb["name"].as_str().unwrap().starts_with("bwp") && ifb["sandbox"].is_null(), "{result}");
    let inward = takes(host.client(), &pod.net, "10.88.1.2:9000");
    let outward = takes(&pod.net, host.client(), "192.0.2.2:9000");
    assert!(inward > LIMITED && outward > LIMITED, "{inward:?} {outward:?}, and {free:?} without a limit");
    host.check(Whose::Ours, "net", &pod, &chain[1], &result).ok();
    host.del(Whose::Ours, "net", &pod, &chain, &result);
    assert_eq!(qdiscs(&host), [""; 0]);
    assert!(!host.net.tool("ip link").contains("bwp"));
}

#[test]
fn one_direction_alone_is_limited_alone_and_none_changes_nothing() {
    for (limits, expected) in [
        (json!({ "ingressRate": 8_000_000, "ingressBurst": 80_000 }), 1),
        (json!({ "runtimeConfig": { "Bandwidth": { "EgressRate": 8_000_000, "EgressBurst": 80_000 } } }), 2),
        (json!({ "ingressRate": 0, "runtimeConfig": { "bandwidth": both() } }), 0),
        (json!({}), 0),
    ] {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let chain = [host.bridge("net"), bandwidth(limits.clone())];
        let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
        assert_eq!(qdiscs(&host).len(), expected, "{limits} {:?}", qdiscs(&host));
        host.check(Whose::Ours, "net", &pod, &chain[1], &result).ok();
        host.del(Whose::Ours, "net", &pod, &chain, &result);
    }
}

#[test]
fn the_burst_that_containerd_always_sends_is_that_burst() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let limits = json!({ "ingressRate": 1_000_000, "ingressBurst": 4_294_967_295u64 });
    let chain = [host.bridge("net"), bandwidth(limits)];
    let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
    let shown = host.net.tool("tc -d -j qdisc show");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let tbf = shown.as_array().unwrap().iter().find(|q| q["kind"] == "tbf").unwrap();
    assert_eq!(tbf["options"]["rate"], 125_000, "{tbf}");
    // The whole burst goes at once: twice as fast as the rate alone would have it, at least.
    assert!(takes(host.client(), &pod.net, "10.88.1.2:9000") < Duration::from_secs(6));
    host.check(Whose::Ours, "net", &pod, &chain[1], &result).ok();
}

#[test]
fn a_limit_that_is_gone_or_another_is_named_by_check() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let chain = [host.bridge("net"), bandwidth(both())];
    let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    let ifb = result["interfaces"][3]["name"].as_str().unwrap();
    let check = || host.check(Whose::Ours, "net", &pod, &chain[1], &result);
    host.net.tool(&format!("tc qdisc replace dev {veth} root tbf rate 1mbit burst 20kb latency 25ms"));
    assert!(check().code() == 101 && check().msg().contains("another rate"), "{}", check().msg());
    host.net.tool(&format!("tc qdisc del dev {veth} root"));
    assert!(check().msg().contains("is gone"), "{}", check().msg());
    let chain_again = [bandwidth(json!({ "egressRate": 8_000_000, "egressBurst": 160_000 }))];
    let check = || host.check(Whose::Ours, "net", &pod, &chain_again[0], &result);
    check().ok();
    for gone in ["filter", "qdisc"] {
        host.net.tool(&format!("tc {gone} del dev {veth} ingress"));
        assert!(check().msg().contains("not limited"), "{gone} {}", check().msg());
    }
    host.net.tool(&format!("ip link del {ifb}"));
    assert!(check().msg().contains(ifb), "{}", check().msg());
}

#[test]
fn interfaces_of_one_container_have_limits_of_their_own() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let call = |verb: &str, ifname: &str, plugin: &Value, before: &Value| {
        host.call(Whose::Ours, verb, ("c1", &pod.net.path(), ifname), &complete("net", plugin, before)).ok()
    };
    let mut results = Vec::new();
    for ifname in ["eth0", "eth1"] {
        let made = call("ADD", ifname, &host.bridge("net"), &Value::Null);
        results.push(call("ADD", ifname, &bandwidth(both()), &made));
    }
    assert_eq!(host.net.tool("ip link").matches("bwp").count(), 2);
    call("DEL", "eth0", &bandwidth(both()), &results[0]);
    call("CHECK", "eth1", &bandwidth(both()), &results[1]);
    assert_eq!(host.net.tool("ip link").matches("bwp").count(), 1);
    call("DEL", "eth1", &bandwidth(both()), &Value::Null);
    assert!(!host.net.tool("ip link").contains("bwp"));
}

#[test]
fn a_collection_removes_devices_of_its_network_that_are_not_valid() {
    let (host, pods) = (Host::new(), [Pod::new("c1"), Pod::new("c2")]);
    for pod in &pods {
        host.add(Whose::Ours, "net", pod, &[host.bridge("net"), bandwidth(both())]).ok();
    }
    let gc = |network: &str, valid: Value| {
        let mut conf =
            complete(network, &json!({ "type": "bandwidth", "cniVersion": "1.1.0" }), &Value::Null);
        conf["cni.dev/valid-attachments"] = valid;
        host.call(Whose::Ours, "GC", ("", "", ""), &conf).ok()
    };
    gc("other", json!([]));
    assert_eq!(host.net.tool("ip link").matches("bwp").count(), 2);
    gc("net", json!([{ "containerID": "c2", "ifname": "eth0" }]));
    assert!(
        host.net.tool("ip link").contains("net/c2/eth0") && !host.net.tool("ip link").contains("net/c1/eth0")
    );
}

#[test]
fn a_limit_for_some_addresses_only_is_refused_and_never_made_one_for_all() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    let call = |verb: &str, plugin: &Value| {
        host.call(Whose::Ours, verb, ("c1", &pod.net.path(), "eth0"), &complete("net", plugin, &made))
    };
    for key in ["shapedSubnets", "unshapedSubnets"] {
        let some = with(&both(), json!({ key: ["10.0.0.0/8"] }));
        for plugin in
            [bandwidth(some.clone()), json!({ "type": "bandwidth", "runtimeConfig": { "bandwidth": some } })]
        {
            let answer = call("ADD", &plugin);
            assert!(answer.code() == 2 && answer.msg().contains(key), "{}", answer.document);
            assert!(call("DEL", &plugin).well);
        }
        assert!(call("ADD", &bandwidth(with(&both(), json!({ key: [] })))).well, "none is no condition");
        assert!(call("DEL", &bandwidth(both())).well);
        let veth = made["interfaces"][1]["name"].as_str().unwrap();
        host.net.tool(&format!("tc qdisc del dev {veth} root"));
        host.net.tool(&format!("tc qdisc del dev {veth} ingress"));
    }
}

#[test]
fn an_add_that_fails_leaves_no_limit_behind() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    let veth = made["interfaces"][1]["name"].as_str().unwrap();
    let call = |previous: &Value| {
        host.call(
            Whose::Ours,
            "ADD",
            ("c1", &pod.net.path(), "eth0"),
            &complete("net", &bandwidth(both()), previous),
        )
    };
    let mut other = made.clone();
    other["interfaces"][1]["name"] = "vethother".into();
    assert!(call(&other).msg().contains("no other end"));
    host.net.tool(&format!("tc qdisc add dev {veth} ingress"));
    assert!(call(&made).msg().contains(veth));
    assert!(!host.net.tool("ip link").contains("bwp") && qdiscs(&host).is_empty(), "{:?}", qdiscs(&host));
    assert!(call(&Value::Null).code() == 7);
}
