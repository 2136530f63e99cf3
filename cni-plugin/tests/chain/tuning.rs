//! Tuning: every key against the container's interface.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::portmap::with;
use crate::host::{Host, Pod, Whose, complete};

pub(crate) fn tuning(host: &Host, keys: Value) -> Value {
    with(&json!({ "type": "tuning", "dataDir": host.path("tuning") }), keys)
}

pub(crate) fn everything() -> Value {
    json!({
        "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_local_port_range": "2000 3000" },
        "mac": "02:11:22:33:44:55", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 77,
    })
}

/// What of the interface can be tuned.
pub(crate) fn state(pod: &Pod) -> String {
    let shown: Value = serde_json::from_str(&pod.net.tool("ip -d -j link show dev eth0")).unwrap();
    let link = &shown[0];
    let flags = link["flags"].to_string();
    format!(
        "{} mtu {} queue {} watchers {} allmulti {}",
        link["address"].as_str().unwrap(),
        link["mtu"],
        link["txqlen"],
        link["promiscuity"],
        flags.contains("ALLMULTI")
    )
}

#[test]
fn every_key_is_set_checked_and_set_back() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    let conf = tuning(&host, everything());
    let call = |verb: &str, previous: &Value| {
        host.call(Whose::Ours, verb, ("c1", &pod.net.path(), "eth0"), &complete("net", &conf, previous))
    };
    let result = call("ADD", &made).ok();
    assert_eq!(state(&pod), "02:11:22:33:44:55 mtu 1400 queue 77 watchers 1 allmulti true");
    assert_eq!(pod.net.sysctl("net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(pod.net.sysctl("net/ipv4/ip_local_port_range"), "2000\t3000");
    assert_eq!(result["interfaces"][2]["mac"], "02:11:22:33:44:55");
    call("CHECK", &result).ok();
    for change in ["mtu 1300", "address 02:00:00:00:00:09", "promisc off", "allmulticast off", "txqueuelen 5"]
    {
        pod.net.tool(&format!("ip link set dev eth0 {change}"));
        let answer = call("CHECK", &result);
        assert_eq!(answer.code(), 101, "{change}");
        assert!(call("ADD", &made).well, "{change}");
        call("CHECK", &result).ok();
    }
    pod.net.run(|| fs::write("/proc/sys/net/ipv4/conf/eth0/arp_filter", "0").unwrap());
    assert!(call("CHECK", &result).msg().contains("arp_filter"));
}

#[test]
fn a_delete_sets_the_interface_back_and_needs_none() {
    for gone in [false, true] {
        let (host, pod) = (Host::new(), Pod::new("c1"));
        let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
        let before = state(&pod);
        let conf = complete("net", &tuning(&host, everything()), &made);
        host.call(Whose::Ours, "ADD", ("c1", &pod.net.path(), "eth0"), &conf).ok();
        assert_eq!(fs::read_dir(host.path("tuning")).unwrap().count(), 1);
        if gone {
            pod.net.tool("ip link del eth0");
        }
        for netns in [pod.net.path().as_str(), ""] {
            host.call(Whose::Ours, "DEL", ("c1", netns, "eth0"), &conf).ok();
        }
        if !gone {
            assert_eq!(state(&pod), before);
        }
        assert_eq!(fs::read_dir(host.path("tuning")).unwrap().count(), 0);
    }
}

#[test]
fn the_runtimes_word_counts_more_than_the_configurations_and_the_metadatas_most() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    let mut keys = json!({ "mac": "02:00:00:00:00:01", "mtu": 1400 });
    for (more, expected) in [
        (json!({}), "02:00:00:00:00:01 mtu 1400"),
        (json!({ "runtimeConfig": { "mac": "02:00:00:00:00:02" } }), "02:00:00:00:00:02 mtu 1400"),
        (
            json!({ "args": { "cni": { "mac": "02:00:00:00:00:03", "mtu": 1300 } } }),
            "02:00:00:00:00:03 mtu 1300",
        ),
    ] {
        keys = with(&keys, more);
        let conf = complete("net", &tuning(&host, keys.clone()), &made);
        host.call(Whose::Ours, "ADD", ("c1", &pod.net.path(), "eth0"), &conf).ok();
        assert!(state(&pod).starts_with(expected), "{} {expected}", state(&pod));
    }
}

#[test]
fn an_odd_backup_is_not_waited_for_and_a_link_in_its_place_is_not_followed() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    let conf = complete("net", &tuning(&host, json!({ "mtu": 1400 })), &made);
    let call = |verb: &str| host.call(Whose::Ours, verb, ("c1", &pod.net.path(), "eth0"), &conf);
    fs::create_dir(host.path("tuning")).unwrap();
    let (backup, target) = (host.path("tuning/c1_eth0.json"), host.path("target"));
    fs::write(&target, "precious").unwrap();
    symlink(&target, &backup).unwrap();
    call("ADD").ok();
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    for make in [
        |path: &Path| fs::create_dir(path).unwrap(),
        |path: &Path| {
            mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
        },
    ] {
        fs::remove_file(&backup).unwrap();
        make(&backup);
        call("DEL").ok();
        let _ = fs::remove_dir(&backup);
        fs::write(&backup, "").unwrap();
    }
}

#[test]
fn what_is_no_sysctl_of_the_network_is_refused_and_so_are_doubles() {
    let (host, pod) = (Host::new(), Pod::new("c1"));
    let made = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
    let before = state(&pod);
    let ask = |text: String| {
        let conf = complete("net", &tuning(&host, json!({ "mtu": 1400 })), &made).to_string();
        let conf = format!("{},\"sysctl\":{text}}}", conf.strip_suffix('}').unwrap());
        host.call_text(Whose::Ours, "tuning", "ADD", ("c1", &pod.net.path(), "eth0"), &conf)
    };
    for (text, named) in [
        (r#"{"kernel.hostname":"x"}"#, "kernel.hostname"),
        (r#"{"net.ipv4.ip_forward":"1","net.ipv4.ip_forward":"0"}"#, "twice"),
        (r#"{"net.ipv4.ip_forward":1}"#, "ip_forward"),
        (r#"{"net.ipv4.no_such_thing":"1"}"#, "no_such_thing"),
    ] {
        let answer = ask(text.to_owned());
        assert!(answer.msg().contains(named), "{text} {}", answer.msg());
        assert_eq!(state(&pod), before, "{text}");
    }
    let none = complete("net", &tuning(&host, json!({ "mtu": 1400 })), &Value::Null);
    assert_eq!(host.call(Whose::Ours, "ADD", ("c1", &pod.net.path(), "eth0"), &none).code(), 7);
    let wrong = complete(
        "net",
        &tuning(&host, json!({ "mtu": 1400, "txQLen": 5, "mac": "ff:ff:ff:ff:ff:ff" })),
        &made,
    );
    assert!(host.call(Whose::Ours, "ADD", ("c1", &pod.net.path(), "eth0"), &wrong).msg().contains("mac"));
    assert_eq!(state(&pod), before, "set back");
}
