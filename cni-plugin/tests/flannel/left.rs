//! What is left behind, and who takes it away: GC, DEL without a namespace, an earlier boot, killed calls.

use std::fs::{self, DirBuilder, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use backends::local::daemon::{DAEMONS, USUAL_NETWORK, file_of};
use backends::netlink::link::delete_link;
use backends::netlink::{Batch, Socket};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::host::{Answer, DUAL, Host, Namespace, TINY};

/// With addresses that no other test has: what any namespace of the machine has is in use.
fn alone(env: &str, n: u8) -> Host {
    Host::with_env(
        &env.replace("10.244.1.", &format!("10.244.{n}."))
            .replace("fc00:42:0:1:", &format!("fc00:42:0:{n}:")),
    )
}

fn gc(host: &Host, valid: &[&str]) -> Answer {
    let mut conf = host.conf();
    conf["cniVersion"] = "1.1.0".into();
    let list: Vec<_> = valid.iter().map(|c| json!({ "containerID": c, "ifname": "eth0" })).collect();
    conf["cni.dev/valid-attachments"] = list.into();
    host.flannel_with("GC", &[("CNI_PATH", "/nowhere")], &conf.to_string())
}

#[test]
fn a_collection_removes_links_leases_and_files_of_what_is_not_valid_and_nothing_else() {
    let (host, pods) = (alone(DUAL, 101), [Namespace::new(), Namespace::new(), Namespace::new()]);
    for (n, pod) in pods.iter().enumerate() {
        assert!(host.flannel("ADD", &format!("c{n}"), &pod.path(), &host.conf()).well);
    }
    let answer = gc(&host, &["c1"]);
    assert!(answer.well, "{}", answer.document);
    assert_eq!((pods[0].links().len(), pods[1].links().len(), pods[2].links().len()), (0, 1, 0));
    assert_eq!((host.reserved().len(), host.stored()), (2, vec!["c1".to_owned(), "c1@eth0".to_owned()]));
    let answer = gc(&host, &[]);
    assert!(answer.well, "{}", answer.document);
    assert_eq!((pods[1].links(), host.reserved(), host.stored()), (vec![], vec![], vec![]));
}

#[test]
fn a_collection_without_a_list_is_refused_and_removes_nothing() {
    let (host, pod) = (alone(DUAL, 102), Namespace::new());
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    let mut conf = host.conf();
    conf["cniVersion"] = "1.1.0".into();
    let answer = host.flannel_with("GC", &[("CNI_PATH", "/nowhere")], &conf.to_string());
    assert!(answer.code() == 7 && answer.msg().contains("valid-attachments"), "{}", answer.msg());
    assert_eq!((pod.links().len(), host.reserved().len()), (1, 2));
}

#[test]
fn a_collection_takes_what_a_go_plugin_made_and_frees_no_address_that_a_namespace_has() {
    let (host, pod) = (alone(DUAL, 103), Namespace::new());
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    // As the Go plugins leave it: no alias, no file with the interface's name.
    let port = host.net.links()[1].split(' ').next().unwrap().to_owned();
    let ip = |words: &[&str]| assert!(Command::new("ip").args(words).status().unwrap().success());
    host.net.run(|| ip(&["link", "set", &port, "alias", ""]));
    fs::remove_file(host.path("state/c1@eth0")).unwrap();
    assert!(gc(&host, &[]).well);
    assert_eq!((pod.links(), host.reserved()), (vec![], vec![]));

    // An address that is reserved for nobody valid, on a link that is not of this bridge.
    fs::write(host.path("networks/cbr0/10.244.103.77"), "c9\r\neth0").unwrap();
    let (host_end, pod_path) = ("stranger", pod.path());
    host.net
        .run(|| ip(&["link", "add", host_end, "type", "veth", "peer", "name", "eth9", "netns", &pod_path]));
    pod.run(|| ip(&["addr", "add", "10.244.103.77/24", "dev", "eth9"]));
    let answer = gc(&host, &[]);
    assert!(answer.msg().contains("10.244.103.77") && answer.msg().contains("namespace"), "{}", answer.msg());
    assert_eq!(host.reserved(), ["10.244.103.77"]);
    pod.run(|| ip(&["addr", "del", "10.244.103.77/24", "dev", "eth9"]));
    assert!(gc(&host, &[]).well);
    assert_eq!(host.reserved(), [""; 0]);
}

#[test]
fn a_delete_without_a_namespace_takes_the_link_away_as_well() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    for netns in ["", "/run/netns/gone"] {
        assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
        assert!(host.flannel("DEL", "c1", netns, &host.conf()).well);
        assert_eq!((pod.links(), host.net.links().len(), host.reserved()), (vec![], 1, vec![]), "{netns}");
    }
}

#[test]
fn a_full_subnet_of_an_earlier_boot_serves_again() {
    let (host, pod) = (alone(TINY, 104), Namespace::new());
    let folder = host.path("networks/cbr0");
    fs::create_dir_all(&folder).unwrap();
    let file = File::create(folder.join("10.244.104.2")).unwrap();
    fs::write(folder.join("10.244.104.2"), "old\r\neth0").unwrap();
    let mut status = host.conf();
    status["cniVersion"] = "1.1.0".into();
    assert_eq!(host.flannel("STATUS", "", "", &status).code(), 50, "of this boot");
    assert_eq!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).code(), 11);
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    assert!(host.flannel("STATUS", "", "", &status).well);
    let answer = host.flannel("ADD", "c1", &pod.path(), &host.conf());
    assert!(answer.well && answer.document["ips"][0]["address"] == "10.244.104.2/30", "{}", answer.document);
}

#[test]
fn an_empty_reservation_is_no_reservation_to_any_verb() {
    let (host, pod) = (Host::with_env(TINY), Namespace::new());
    let folder = host.path("networks/cbr0");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("10.244.1.2"), "").unwrap();
    let mut status = host.conf();
    status["cniVersion"] = "1.1.0".into();
    assert!(host.flannel("STATUS", "", "", &status).well);
    assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
    assert!(host.flannel("DEL", "c1", &pod.path(), &host.conf()).well);
    assert_eq!(host.reserved(), [""; 0]);
}

#[test]
fn a_bridge_without_containers_takes_the_new_subnets_address_and_one_that_is_down_comes_up() {
    let (host, pods) = (Host::with_env(DUAL), [Namespace::new(), Namespace::new()]);
    assert!(host.flannel("ADD", "c1", &pods[0].path(), &host.conf()).well);
    assert!(host.flannel("DEL", "c1", &pods[0].path(), &host.conf()).well);
    fs::write(host.path("subnet.env"), DUAL.replace("10.244.1.1", "10.244.2.1")).unwrap();
    host.net.run(|| {
        assert!(Command::new("ip").args(["link", "set", "cni0", "down"]).status().unwrap().success())
    });
    let answer = host.flannel("ADD", "c2", &pods[1].path(), &host.conf());
    assert!(answer.well, "{}", answer.document);
    assert_eq!(host.net.addresses(), ["10.244.2.1/24", "fc00:42:0:1::1/64"]);
    assert!(host.net.is_up("cni0"));
}

#[test]
fn a_check_finds_each_thing_that_is_removed_or_altered() {
    let ip =
        |words: &[&str]| assert!(Command::new("ip").args(words).status().unwrap().success(), "{words:?}");
    type Break<'a> = (&'a str, bool, &'a [&'a str]);
    let breaks: [Break<'_>; 9] = [
        ("lost its address 10.244.1.2/24", true, &["addr", "del", "10.244.1.2/24", "dev", "eth0"]),
        ("lost its address fc00:42:0:1::2/64", true, &["addr", "del", "fc00:42:0:1::2/64", "dev", "eth0"]),
        ("lost its route to 10.244.0.0/16", true, &["route", "del", "10.244.0.0/16"]),
        ("lost its route to ::/0", true, &["-6", "route", "del", "default"]),
        ("another Ethernet address", true, &["link", "set", "eth0", "address", "02:00:00:00:00:99"]),
        ("is down", true, &["link", "set", "eth0", "down"]),
        ("no port of bridge", false, &["link", "set", "PORT", "nomaster"]),
        ("lost its address 10.244.1.1/24", false, &["addr", "del", "10.244.1.1/24", "dev", "cni0"]),
        ("bridge cni0 is down", false, &["link", "set", "cni0", "down"]),
    ];
    for (named, in_pod, words) in breaks {
        let (host, pod) = (Host::with_env(DUAL), Namespace::new());
        let mut conf = host.conf();
        conf["prevResult"] = host.flannel("ADD", "c1", &pod.path(), &conf).document;
        let port = conf["prevResult"]["interfaces"][1]["name"].as_str().unwrap().to_owned();
        let words: Vec<_> = words.iter().map(|word| if *word == "PORT" { &*port } else { word }).collect();
        // What chained plugins do: the host end's Ethernet address, a further address, a further route.
        host.net.run(|| ip(&["link", "set", &port, "address", "02:00:00:00:00:98"]));
        pod.run(|| ip(&["addr", "add", "192.0.2.7/32", "dev", "eth0"]));
        pod.run(|| ip(&["route", "add", "192.0.2.0/24", "dev", "eth0"]));
        let answer = host.flannel("CHECK", "c1", &pod.path(), &conf);
        assert!(answer.well, "{named} {}", answer.document);
        (if in_pod { &pod } else { &host.net }).run(|| ip(&words));
        let answer = host.flannel("CHECK", "c1", &pod.path(), &conf);
        assert!(answer.code() == 101 && answer.msg().contains(named), "{named} {}", answer.msg());
    }
}

#[test]
fn a_check_finds_a_bridge_that_is_not_promiscuous_any_more() {
    let (host, pod) = (Host::with_env(DUAL), Namespace::new());
    let mut conf = host.conf();
    conf["delegate"] = json!({ "promiscMode": true });
    conf["prevResult"] = host.flannel("ADD", "c1", &pod.path(), &conf).document;
    assert!(host.flannel("CHECK", "c1", &pod.path(), &conf).well);
    let off = ["link", "set", "cni0", "promisc", "off"];
    host.net.run(|| assert!(Command::new("ip").args(off).status().unwrap().success()));
    let answer = host.flannel("CHECK", "c1", &pod.path(), &conf);
    assert!(answer.code() == 101 && answer.msg().contains("promiscuous"), "{}", answer.msg());
}

#[test]
fn thirty_two_first_containers_share_one_bridge_one_rule_and_no_address() {
    let rounds = std::env::var("SELVAGE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let pods: Vec<_> = (0..32).map(|_| Namespace::new()).collect();
    for _ in 0..rounds {
        let host = Host::with_env(&DUAL.replace("IPMASQ=true", "IPMASQ=false"));
        let call = |n: usize, verb: &str| {
            let answer = host.flannel(verb, &format!("c{n}"), &pods[n].path(), &host.conf());
            assert!(answer.well, "{}", answer.document);
        };
        thread::scope(|scope| (0..32).for_each(|n| drop(scope.spawn(move || call(n, "ADD")))));
        assert_eq!(host.net.addresses(), ["10.244.1.1/24", "fc00:42:0:1::1/64"]);
        assert_eq!((host.net.links().len(), host.reserved().len()), (33, 64));
        let rules = host.net.run(|| Command::new("nft").args(["list", "ruleset"]).output().unwrap());
        assert_eq!(String::from_utf8_lossy(&rules.stdout).matches("masquerade comment").count(), 2);
        thread::scope(|scope| (0..32).for_each(|n| drop(scope.spawn(move || call(n, "DEL")))));
        assert_eq!((host.net.links().len(), host.reserved().len()), (1, 0));
    }
}

#[test]
fn garbage_in_any_file_or_result_is_one_document_and_never_more() {
    let host = Host::with_env(DUAL);
    let garbage: [&[u8]; 6] = [b"", b"\0\0\0", b"{", b"\xff\xfe", b"[[[[", &[b'a'; 9000]];
    for bytes in garbage {
        let pod = Namespace::new();
        for netns in [pod.path(), String::new()] {
            let answer = host.flannel("ADD", "c1", &pod.path(), &host.conf());
            assert!(answer.well, "{}", answer.document);
            for name in host.stored() {
                fs::write(host.path("state").join(name), bytes).unwrap();
            }
            fs::write(host.path("networks/cbr0/last_reserved_ip.0"), bytes).unwrap();
            fs::write(host.path("networks/cbr0/10.244.1.200"), bytes).unwrap();
            let mut conf = host.conf();
            conf["prevResult"] = json!({ "ips": String::from_utf8_lossy(bytes) });
            let answer = host.flannel("DEL", "c1", &netns, &conf);
            assert!(answer.well && answer.document == Value::Null, "{}", answer.document);
            assert_eq!((pod.links(), host.stored()), (vec![], vec![]));
            let _ = fs::remove_file(host.path("networks/cbr0/10.244.1.200"));
            assert_eq!(host.reserved(), [""; 0]);
        }
        fs::write(host.path("subnet.env"), bytes).unwrap();
        let mut conf = host.conf();
        conf["subnetFileWait"] = 1.into();
        assert_eq!(host.flannel("ADD", "c1", &pod.path(), &conf).code(), 11);
        fs::write(host.path("subnet.env"), DUAL).unwrap();
    }
}

/// A `/run` for this thread and its processes alone.
fn own_run() {
    unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root, for mount namespaces");
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
}

/// A daemon in the host's namespace that is asked once, answers with this, and deletes what it took.
fn daemon(host: &Host, answer: &'static [u8]) -> thread::JoinHandle<String> {
    let listener = host.net.run(|| {
        let folder = Path::new(DAEMONS);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).unwrap();
        let socket = file_of(folder, USUAL_NETWORK).unwrap().with_extension("sock");
        // The kernel may give the number of a namespace that is gone to the next one.
        let _ = fs::remove_file(&socket);
        UnixListener::bind(socket).unwrap()
    });
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = String::new();
        BufReader::new(&stream).read_line(&mut asked).unwrap();
        stream.write_all(answer).unwrap();
        asked
    })
}

#[test]
fn a_daemon_is_asked_to_delete_the_link_and_one_that_will_not_or_does_not_is_not_waited_for() {
    own_run();
    for (answer, deletes) in [(&b"+\n"[..], true), (b"+\n", false), (b"-\n", false), (b"", false)] {
        let (host, pod) = (Host::with_env(DUAL), Namespace::new());
        assert!(host.flannel("ADD", "c1", &pod.path(), &host.conf()).well);
        let daemon = daemon(&host, answer);
        thread::scope(|scope| {
            let call = scope.spawn(|| host.flannel("DEL", "c1", &pod.path(), &host.conf()));
            let asked = daemon.join().unwrap();
            let index: u32 = asked.strip_prefix("unlink ").unwrap().trim_end().parse().unwrap();
            if deletes {
                host.net.run(|| {
                    let mut batch = Batch::new();
                    delete_link(&mut batch, index);
                    let _ = Socket::route().unwrap().request(&mut batch);
                });
            }
            assert!(call.join().unwrap().well, "{answer:?}");
        });
        assert_eq!((pod.links(), host.net.links().len(), host.reserved()), (vec![], 1, vec![]), "{answer:?}");
    }
}

#[test]
fn as_long_as_there_is_no_subnet_status_says_what_the_daemon_waits_for() {
    let host = Host::with_env(DUAL);
    fs::remove_file(host.path("subnet.env")).unwrap();
    let mut conf = host.conf();
    conf["cniVersion"] = "1.1.0".into();
    let text = |host: &Host| {
        let answer = host.flannel("STATUS", "", "", &conf);
        (answer.code(), answer.document["details"].as_str().unwrap().to_owned())
    };
    let (code, details) = text(&host);
    assert!(code == 50 && details.contains("is it running"), "{details}");
    let daemon =
        daemon(&host, b"{\"ready\":false,\"reasons\":[\"the store at 192.0.2.9 does not answer\"]}\n");
    let (code, details) = text(&host);
    assert_eq!((code, &*details), (50, "flanneld says: the store at 192.0.2.9 does not answer"));
    assert_eq!(daemon.join().unwrap(), "status\n");
}
