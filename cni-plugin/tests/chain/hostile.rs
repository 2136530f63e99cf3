//! Killed at any moment, and given anything: nothing stays behind, and there is one document or none.

#![allow(clippy::disallowed_methods, reason = "moments to kill at are times")]

use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use super::bandwidth::{bandwidth, both, qdiscs};
use super::firewall::{firewall, rules};
use super::iptables::iptables;
use super::portmap::{mapping, portmap};
use super::tuning::{everything, tuning};
use crate::host::{Host, Pod, Whose, complete};

fn plugins(host: &Host) -> Vec<Value> {
    let ports = [mapping("tcp", 8080, 80), mapping("udp", 8081, 81)];
    vec![
        portmap(&ports),
        iptables(&ports, json!({})),
        bandwidth(both()),
        firewall(host, json!({ "ingressPolicy": "isolated" })),
        tuning(host, everything()),
    ]
}

/// All that an attachment can leave on the host; tables and chains of everybody apart.
fn left(host: &Host) -> Vec<String> {
    let mut lines = [rules(host, "iptables-save"), rules(host, "ip6tables-save"), qdiscs(host)].concat();
    lines.retain(|line| {
        line.contains("10.88.1.")
            || line.contains("fc00:88:1:")
            || line.contains("CNI-DN-")
            || line.contains("tbf")
    });
    lines.extend(host.net.tool("ip -o link").lines().filter(|line| line.contains("bwp")).map(str::to_owned));
    lines.extend(host.ruleset().lines().filter(|line| line.contains("/c1/")).map(str::to_owned));
    for folder in ["firewall", "tuning"] {
        let files = fs::read_dir(host.path(folder)).into_iter().flatten();
        lines.extend(files.map(|file| file.unwrap().path().display().to_string()));
    }
    lines
}

#[test]
fn killed_at_any_moment_of_an_add_a_delete_leaves_nothing() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let attachment = ("c1", &*pod.net.path(), "eth0");
    let bridge = [host.bridge("net")];
    for plugin in plugins(&host) {
        // The slow ones run programs.
        let (step, steps) = if plugin["backend"] == "iptables" { (4, 8) } else { (1, 24) };
        for moment in 0..steps {
            let made = host.add(Whose::Ours, "net", &pod, &bridge).ok();
            let kind = plugin["type"].as_str().unwrap();
            let (container, netns, ifname) = attachment;
            let variables = [("CNI_CONTAINERID", container), ("CNI_NETNS", netns), ("CNI_IFNAME", ifname)];
            let mut command = host.command(Whose::Ours, kind, "ADD", &variables);
            let input = complete("net", &plugin, &made);
            host.net.run(|| {
                let mut child = command.spawn().unwrap();
                let _ = child.stdin.take().unwrap().write_all(input.to_string().as_bytes());
                thread::sleep(Duration::from_micros(step * 250 * moment));
                let _ = child.kill();
                child.wait().unwrap();
            });
            // Whatever the result was, the runtime does not have it.
            host.del(Whose::Ours, "net", &pod, &[bridge[0].clone(), plugin.clone()], &Value::Null);
            assert_eq!(left(&host), [""; 0], "{plugin} at {moment}");
        }
    }
}

/// The same text with something about it changed.
fn altered(text: &str, dice: &mut Rng) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=dice.usize(..3) {
        let at = dice.usize(..bytes.len().max(1));
        match dice.usize(..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, u8::try_from(dice.usize(..256)).unwrap()),
            2 if at < bytes.len() => bytes[at] ^= 1 << dice.usize(..8),
            _ => bytes = replaced(&bytes, dice),
        }
    }
    bytes
}

/// One value of a document replaced by one of another form.
fn replaced(bytes: &[u8], dice: &mut Rng) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(bytes) else { return bytes.to_vec() };
    let odd = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(18_446_744_073_709_551_615u64),
        json!(""),
        json!("\u{0}"),
        json!("x".repeat(5000)),
        json!([]),
        json!([[[]]]),
        json!({}),
        json!(true),
        json!("10.0.0.0/33"),
        json!("::1/128"),
    ];
    let mut place = &mut document;
    loop {
        let size = place
            .as_object()
            .map(serde_json::Map::len)
            .or_else(|| place.as_array().map(Vec::len))
            .unwrap_or(0);
        if size == 0 || dice.usize(..4) == 0 {
            break;
        }
        let n = dice.usize(..size);
        place = match place {
            Value::Object(object) => object.values_mut().nth(n).unwrap(),
            Value::Array(list) => &mut list[n],
            _ => break,
        };
    }
    *place = odd[dice.usize(..odd.len())].clone();
    document.to_string().into_bytes()
}

#[test]
fn whatever_comes_in_one_document_goes_out_and_a_delete_leaves_nothing() {
    let seed = 0x5e1a_a6e0_0000_0001 ^ u64::from(std::process::id());
    println!("seed {seed:#x}");
    let mut dice = Rng::with_seed(seed);
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    let attachment = ("c1", &*pod.net.path(), "eth0");
    let loopback = json!({ "type": "loopback" });
    for plugin in plugins(&host).into_iter().chain([loopback]) {
        let kind = plugin["type"].as_str().unwrap();
        let mut valid = complete("net", &plugin, &made);
        valid["cniVersion"] = "1.1.0".into();
        valid["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
        let rounds = if plugin["backend"] == "iptables" { 25 } else { 60 };
        for _ in 0..rounds {
            let input = altered(&valid.to_string(), &mut dice);
            let verb = ["ADD", "ADD", "DEL", "CHECK", "GC", "STATUS"][dice.usize(..6)];
            let text = String::from_utf8_lossy(&input);
            // The call itself sees to it that there is at most one document, and no crash.
            let answer = host.call_text(Whose::Ours, kind, verb, attachment, &text);
            if !answer.well {
                assert!(
                    answer.document["code"].is_u64() && answer.document["msg"].is_string(),
                    "{}",
                    answer.document
                );
            }
        }
        host.call(Whose::Ours, "DEL", attachment, &complete("net", &plugin, &made)).ok();
    }
}
