//! What single keys of the configuration change.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::host::{DUAL, Host, Namespace};

fn nft(host: &Host, words: &[&str]) -> String {
    let output = host.net.run(|| Command::new("nft").args(words).output().expect("nft"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn masquerade_is_one_rule_for_every_subnet_however_many_containers_and_is_repaired() {
    let (host, pods) = (Host::with_env(DUAL), [Namespace::new(), Namespace::new(), Namespace::new()]);
    let mut conf = host.conf();
    conf["delegate"]["ipMasq"] = true.into();
    let rules = || nft(&host, &["list", "ruleset"]).matches("masquerade comment").count();
    let mut result = Value::Null;
    for (n, pod) in pods[..2].iter().enumerate() {
        let answer = host.flannel("ADD", &format!("c{n}"), &pod.path(), &conf);
        assert!(answer.well, "{}", answer.document);
        result = answer.document;
        assert_eq!(rules(), 2, "{}", nft(&host, &["list", "ruleset"]));
    }
    let text = nft(&host, &["list", "table", "ip", "selvage-masquerade"]);
    for part in ["ip saddr 10.244.1.0/24", "ip daddr != 10.244.1.0/24", "224.0.0.0/4", "priority srcnat"] {
        assert!(text.contains(part), "{text}");
    }
    conf["prevResult"] = result;
    let check = || host.flannel("CHECK", "c1", &pods[1].path(), &conf);
    assert!(check().well, "{}", check().document);
    nft(&host, &["flush", "table", "ip6", "selvage-masquerade"]);
    assert!(check().code() == 101 && check().msg().contains("fc00:42:0:1::/64"), "{}", check().msg());
    nft(&host, &["flush", "ruleset"]);
    assert!(host.flannel("ADD", "c2", &pods[2].path(), &conf).well);
    assert_eq!(rules(), 2);
    assert!(check().well);
}

#[test]
fn a_daemon_that_does_not_masquerade_leaves_it_to_the_plugin() {
    let (host, pod) = (Host::with_env(&DUAL.replace("IPMASQ=true", "IPMASQ=false")), Namespace::new());
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    assert!(nft(&host, &["list", "ruleset"]).contains("masquerade comment"));
}

#[test]
fn isolated_ports_are_isolated_and_a_check_sees_when_they_are_not() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let mut conf = host.conf();
    conf["delegate"]["portIsolation"] = true.into();
    conf["prevResult"] = host.flannel("ADD", "c1", &pod.path(), &conf).document;
    let port = conf["prevResult"]["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert!(host.flannel("CHECK", "c1", &pod.path(), &conf).well);
    let set = host
        .net
        .run(|| Command::new("bridge").args(["link", "set", "dev", &port, "isolated", "off"]).status());
    assert!(set.unwrap().success());
    let answer = host.flannel("CHECK", "c1", &pod.path(), &conf);
    assert!(answer.code() == 101 && answer.msg().contains("portIsolation"), "{}", answer.msg());
}

#[test]
fn an_interface_that_is_to_stay_down_stays_down() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let conf =
        json!({ "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "disableContainerInterface": true });
    let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path())];
    let answer = host.call_as("bridge", "ADD", &variables, &conf.to_string());
    assert!(answer.well && answer.document.get("ips").is_none(), "{}", answer.document);
    assert!(!pod.is_up("eth0"));
    let with_ipam = json!({ "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge",
        "disableContainerInterface": true, "ipam": host.conf()["ipam"] });
    let mut with_ipam = with_ipam;
    with_ipam["ipam"]["type"] = "host-local".into();
    with_ipam["ipam"]["subnet"] = "10.244.1.0/24".into();
    assert_eq!(host.call_as("bridge", "ADD", &variables, &with_ipam.to_string()).code(), 7);
}

#[test]
fn an_address_that_another_host_has_is_found_out_where_that_is_asked_for() {
    let (host, pods) = (Host::with_env(DUAL), [Namespace::new(), Namespace::new()]);
    let mut conf = host.conf();
    conf["delegate"] = json!({ "isDefaultGateway": true, "enabledad": true });
    let answer = host.flannel("ADD", "c1", &pods[0].path(), &conf);
    assert!(answer.well, "{}", answer.document);
    // Somebody on the same bridge takes the next address by hand.
    pods[0].run(|| {
        let words = ["-6", "addr", "add", "fc00:42:0:1::3/64", "dev", "eth0", "nodad"];
        assert!(Command::new("ip").args(words).status().unwrap().success());
    });
    let answer = host.flannel("ADD", "c2", &pods[1].path(), &conf);
    assert!(answer.code() == 102 && answer.msg().contains("fc00:42:0:1::3"), "{}", answer.msg());
    assert_eq!((pods[1].links(), host.reserved().len()), (vec![], 2));
}

#[test]
fn an_add_waits_for_the_daemons_file_and_no_longer_than_the_configuration_allows() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let (file, later) = (host.path("run/subnet.env"), host.path("later.env"));
    fs::rename(host.path("subnet.env"), &later).unwrap();
    let mut conf = host.conf();
    (conf["subnetFile"], conf["subnetFileWait"]) = (file.to_str().unwrap().into(), 30_000.into());
    thread::scope(|scope| {
        let add = scope.spawn(|| host.flannel("ADD", "c1", &pod.path(), &conf));
        // Nothing shows that it waits. Whichever comes first, the answer is the same.
        fs::create_dir(host.path("run")).unwrap();
        fs::write(host.path("run/.new"), DUAL).unwrap();
        fs::rename(host.path("run/.new"), &file).unwrap();
        let answer = add.join().unwrap();
        assert!(answer.well, "{}", answer.document);
    });
    fs::remove_file(&file).unwrap();
    conf["subnetFileWait"] = 50.into();
    let answer = host.flannel("ADD", "c2", &pod.path(), &conf);
    assert_eq!(answer.code(), 11);
    assert!(answer.document["details"].as_str().unwrap().contains("flanneld"), "{}", answer.document);
    conf["subnetFileWait"] = 60_001.into();
    assert_eq!(host.flannel("ADD", "c2", &pod.path(), &conf).code(), 7);
}

/// A plugin in a folder for CNI_PATH: a script.
fn program(host: &Host, name: &str, text: &str) -> String {
    let folder = host.path("bin");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\necho \"$CNI_COMMAND\" >> {}\n{text}\n", host.path("log").display()))
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    folder.to_str().unwrap().to_owned()
}

fn log(host: &Host) -> String {
    fs::read_to_string(host.path("log")).unwrap_or_default().replace('\n', " ")
}

#[test]
fn an_ipam_that_we_do_not_have_is_run_as_the_specification_says() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let folder = program(
        &host,
        "my-ipam",
        r#"cat > /dev/null; [ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/24"}],"routes":[{"dst":"0.0.0.0/0"}]}'"#,
    );
    let conf = json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "isGateway": true, "ipam": { "type": "my-ipam" } });
    let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path()), ("CNI_PATH", &folder)];
    let answer = host.call_as("bridge", "ADD", &variables, &conf.to_string());
    assert!(answer.well, "{}", answer.document);
    assert_eq!(pod.addresses(), ["10.9.0.7/24"]);
    assert_eq!(host.net.addresses(), ["10.9.0.1/24"]);
    assert_eq!(pod.routes(), ["0.0.0.0/0 via 10.9.0.1"]);
    assert!(host.call_as("bridge", "DEL", &variables, &conf.to_string()).well);
    assert_eq!((log(&host).as_str(), pod.links()), ("ADD DEL ", vec![]));
}

#[test]
fn a_delegate_that_fails_is_deleted_and_its_words_are_passed_on() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let folder = program(
        &host,
        "my-net",
        r#"cat > /dev/null; [ "$CNI_COMMAND" != ADD ] || { echo '{"code":123,"msg":"no more","details":"of it"}'; exit 1; }"#,
    );
    let mut conf = host.conf();
    conf["delegate"] = json!({ "type": "my-net" });
    let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path()), ("CNI_PATH", &folder)];
    let answer = host.flannel_with("ADD", &variables, &conf.to_string());
    assert!(
        answer.code() == 123 && answer.msg().contains("my-net") && answer.msg().contains("no more"),
        "{}",
        answer.document
    );
    assert_eq!(answer.document["details"], "of it");
    assert_eq!(log(&host), "ADD DEL ");
    assert_eq!(host.stored(), [""; 0]);
}

#[test]
fn a_delegate_that_is_nowhere_or_prints_garbage_is_named() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let folder = program(&host, "noise", "echo noise");
    let mut conf = host.conf();
    for (kind, code) in [("ipvlan", 7), ("../x", 7), ("flannel", 7), ("noise", 6)] {
        conf["delegate"] = json!({ "type": kind });
        let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &*pod.path()), ("CNI_PATH", &folder)];
        let answer = host.flannel_with("ADD", &variables, &conf.to_string());
        assert!(answer.code() == code && answer.msg().contains(kind), "{kind} {}", answer.document);
        assert_eq!((host.net.links(), host.stored()), (vec![], vec![]));
    }
}
