//! Odd entries in shared folders, odd files, odd values, odd hosts: named, or understood, and never the end of a network.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::host::{DUAL, Host, Namespace};

fn fifo(path: &Path) {
    mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
}

#[test]
fn an_odd_entry_in_the_store_counts_as_taken_and_stops_nobody() {
    let (host, pods) = (Host::with_env(DUAL), [Namespace::new(), Namespace::new()]);
    let folder = host.path("networks/cbr0");
    fs::create_dir_all(folder.join("10.244.1.2")).unwrap();
    fifo(&folder.join("10.244.1.3"));
    symlink("/proc/self/mem", folder.join("10.244.1.4")).unwrap();
    fs::create_dir(folder.join("last_reserved_ip.0")).unwrap();
    let odd = ["10.244.1.2", "10.244.1.3", "10.244.1.4"];
    let mut conf = host.conf();
    conf["cniVersion"] = "1.1.0".into();
    for (n, pod) in pods.iter().enumerate() {
        let answer = host.flannel("ADD", &format!("c{n}"), &pod.path(), &conf);
        assert!(answer.well, "{}", answer.document);
        assert_eq!(answer.document["ips"][0]["address"], format!("10.244.1.{}/24", n + 5));
    }
    assert!(host.flannel("STATUS", "", "", &conf).well);
    assert!(host.flannel("DEL", "c0", &pods[0].path(), &conf).well);
    conf["cni.dev/valid-attachments"] = json!([]);
    let answer = host.flannel_with("GC", &[("CNI_PATH", "/nowhere")], &conf.to_string());
    assert!(answer.well, "{}", answer.document);
    assert_eq!(host.reserved(), odd);
}

#[test]
fn what_is_stored_about_a_container_and_cannot_be_read_is_as_good_as_a_file_that_was_cut_short() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    for make in [fifo, |path: &Path| fs::create_dir(path).unwrap()] {
        assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
        let path = host.path("state/c1@eth0");
        fs::remove_file(&path).unwrap();
        make(&path);
        let answer = host.flannel("DEL", "c1", &pod.path(), &host.conf());
        assert!(answer.well, "{}", answer.document);
        assert_eq!((pod.links(), host.reserved()), (vec![], vec![]));
        let mut conf = host.conf();
        conf["cniVersion"] = "1.1.0".into();
        conf["cni.dev/valid-attachments"] = json!([]);
        let answer = host.flannel_with("GC", &[("CNI_PATH", "/nowhere")], &conf.to_string());
        assert!(answer.well, "{}", answer.document);
        fs::remove_dir_all(host.path("state")).unwrap();
    }
}

#[test]
fn a_link_in_the_place_of_a_temporary_file_is_not_followed() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    fs::create_dir_all(host.path("state")).unwrap();
    fs::create_dir_all(host.path("networks/cbr0")).unwrap();
    let target = host.path("target");
    fs::write(&target, "precious").unwrap();
    for name in ["state/.c1@eth0", "state/.c1", "networks/cbr0/last_reserved_ip.0"] {
        symlink(&target, host.path(name)).unwrap();
    }
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn a_file_of_the_configuration_that_is_a_fifo_or_a_device_is_refused_at_once() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    fifo(&host.path("fifo"));
    let fifo = host.path("fifo").to_str().unwrap().to_owned();
    for file in [&*fifo, "/dev/zero", "/dev/null"] {
        let mut conf = host.conf();
        conf["subnetFile"] = file.into();
        let answer = host.flannel("ADD", "c1", &pod.path(), &conf);
        assert!([5, 11].contains(&answer.code()) && answer.msg().contains(file), "{}", answer.document);
        conf = host.conf();
        conf["ipam"]["resolvConf"] = file.into();
        let answer = host.flannel("ADD", "c1", &pod.path(), &conf);
        assert!(answer.code() == 5 && answer.msg().contains(file), "{}", answer.document);
    }
    assert_eq!((host.net.links(), host.reserved(), host.stored()), (vec![], vec![], vec![]));
}

#[test]
fn an_ipam_that_manages_no_addresses_is_refused_and_a_delete_with_it_works() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    for kind in ["bridge", "flannel", "portmap", "loopback"] {
        let conf =
            json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": { "type": kind } });
        let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path())];
        let answer = host.call_as("bridge", "ADD", &variables, &conf.to_string());
        assert!(answer.code() == 7 && answer.msg().contains(kind), "{}", answer.document);
        assert!(host.call_as("bridge", "DEL", &variables, &conf.to_string()).well, "{kind}");
    }
    assert_eq!((host.net.links(), pod.links()), (vec![], vec![]));
}

#[test]
fn a_value_of_another_json_type_cannot_be_decoded_and_a_name_that_the_kernel_would_change_is_none() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let changes: [fn(&mut Value); 6] = [
        |conf| conf["cniVersion"] = 1.into(),
        |conf| conf["name"] = true.into(),
        |conf| conf["subnetFileWait"] = "1".into(),
        |conf| conf["delegate"]["mtu"] = "1400".into(),
        |conf| conf["delegate"]["isGateway"] = "yes".into(),
        |conf| conf["ipam"] = json!([]),
    ];
    for change in changes {
        let mut conf = host.conf();
        change(&mut conf);
        let answer = host.flannel("ADD", "c1", &pod.path(), &conf);
        assert_eq!(answer.code(), 6, "{}", answer.document);
    }
    let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path()), ("CNI_IFNAME", "eth%d")];
    assert_eq!(host.flannel_with("ADD", &variables, &host.conf().to_string()).code(), 4);
    let mut conf = host.conf();
    conf["delegate"]["bridge"] = "cni%d".into();
    assert_eq!(host.flannel("ADD", "c1", &pod.path(), &conf).code(), 7);
    assert_eq!((host.net.links(), host.reserved(), host.stored()), (vec![], vec![], vec![]));
}

#[test]
fn an_ethernet_address_is_understood_in_every_form_that_go_understands() {
    let host = Host::with_env(DUAL);
    for mac in ["02:00:5E:00:00:07", "02-00-5e-00-00-07", "0200.5e00.0007"] {
        let pod = Namespace::new();
        let mut conf = host.conf();
        conf["runtimeConfig"] = json!({ "mac": mac });
        let answer = host.flannel("ADD", "c1", &pod.path(), &conf);
        assert!(answer.well, "{}", answer.document);
        assert_eq!(answer.document["interfaces"][2]["mac"], "02:00:5e:00:00:07");
        assert!(host.flannel("DEL", "c1", &pod.path(), &conf).well);
    }
}

#[test]
fn a_host_where_ipv6_is_off_by_default_serves_a_network_of_both_families() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let off = |net: &Namespace| {
        net.run(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
    };
    off(&host.net);
    off(&pod);
    for _ in 0..2 {
        let answer = host.flannel("ADD", "c1", &pod.path(), &host.conf());
        assert!(answer.well, "{}", answer.document);
        assert_eq!(host.net.addresses(), ["10.244.1.1/24", "fc00:42:0:1::1/64"]);
        assert_eq!(pod.addresses().len(), 2);
        assert!(host.flannel("DEL", "c1", &pod.path(), &host.conf()).well);
        // Somebody takes it away from a bridge that is there.
        host.net.run(|| fs::write("/proc/sys/net/ipv6/conf/cni0/disable_ipv6", "1").unwrap());
    }
}

#[test]
fn two_equal_routes_of_a_configuration_are_one() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let mut conf = host.conf();
    let route = |dst: &str| json!({ "dst": dst });
    conf["ipam"]["routes"] =
        ["0.0.0.0/0", "0.0.0.0/0", "::/0", "10.244.0.0/16", "::/0"].map(route).to_vec().into();
    let answer = host.flannel("ADD", "c1", &pod.path(), &conf);
    assert!(answer.well, "{}", answer.document);
    assert_eq!(pod.routes().len(), 4, "{:?}", pod.routes());
    conf["prevResult"] = answer.document;
    assert!(host.flannel("CHECK", "c1", &pod.path(), &conf).well);
}

#[test]
fn a_bridge_whose_ethernet_address_the_kernel_took_away_gets_one_that_stays() {
    let (host, pods) = (Host::with_env(DUAL), [Namespace::new(), Namespace::new()]);
    host.net.tool("ip link add cni0 type bridge");
    host.net.tool("ip link set cni0 up");
    host.net.tool("ip address add 10.244.1.1/24 dev cni0");
    host.net.tool("ip link add port0 type veth peer name port1");
    host.net.tool("ip link set port0 master cni0");
    host.net.tool("ip link del port0");
    let mac = || {
        let shown: Value = serde_json::from_str(&host.net.tool("ip -j link show dev cni0")).unwrap();
        shown[0]["address"].clone()
    };
    assert_eq!(mac(), "00:00:00:00:00:00", "this kernel keeps it");
    let first = host.flannel("ADD", "c1", &pods[0].path(), &host.conf()).document;
    let pinned = mac();
    assert_eq!(first["interfaces"][0]["mac"], pinned);
    assert_ne!(pinned, "00:00:00:00:00:00");
    let second = host.flannel("ADD", "c2", &pods[1].path(), &host.conf()).document;
    assert!(host.flannel("DEL", "c1", &pods[0].path(), &host.conf()).well);
    assert_eq!((&second["interfaces"][0]["mac"], mac()), (&pinned, pinned.clone()));
}

/// Where other bridges of the host are, their packets would meet rules that nobody made for them.
#[test]
fn what_bridges_of_the_whole_host_do_is_left_alone() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let settings = || {
        let words = ["-c", "grep -s . /proc/sys/net/bridge/*; true"];
        host.net.run(|| Command::new("sh").args(words).output().unwrap().stdout)
    };
    let before = settings();
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    assert_eq!(String::from_utf8_lossy(&settings()), String::from_utf8_lossy(&before));
}
