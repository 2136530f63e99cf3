//! The firewall through firewalld: a real bus, and behind it something that answers as firewalld does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use super::firewall::rules;
use super::portmap::with;
use crate::host::namespace::SOON;
use crate::host::{Host, Pod, Whose, complete};

/// A bus of its own; with it goes what is connected.
struct Bus(Child);

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

type Sources = Arc<Mutex<BTreeSet<(String, String)>>>;

/// A host with a bus and firewalld on it; the sources of its zones.
fn with_firewalld() -> (Host, Bus, Sources) {
    let (mut host, bus, address) = with_bus();
    let sources = Sources::default();
    let mut service = Service::connect(&address, sources.clone());
    thread::spawn(move || while service.serve().is_some() {});
    host.env.push(("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), format!("unix:path={address}")));
    (host, bus, sources)
}

fn with_bus() -> (Host, Bus, String) {
    let host = Host::new();
    let (socket, conf) = (host.path("bus"), host.path("bus.conf"));
    let text = format!(
        "<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow send_destination=\"*\"/><allow own=\"*\"/><allow receive_sender=\"*\"/>\
         </policy></busconfig>",
        socket.display()
    );
    fs::write(&conf, text).unwrap();
    let mut daemon = Command::new("dbus-daemon");
    daemon.arg(format!("--config-file={}", conf.display())).args(["--nofork", "--print-address"]);
    let mut child = daemon.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("dbus-daemon");
    // It prints its address when it can be connected to.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    (host, Bus(child), socket.display().to_string())
}

/// What answers as firewalld.
struct Service {
    stream: UnixStream,
    sources: Sources,
}

impl Service {
    fn connect(address: &str, sources: Sources) -> Self {
        let mut service = Self { stream: UnixStream::connect(address).unwrap(), sources };
        service.stream.set_read_timeout(Some(SOON)).unwrap();
        let user: String = nix::unistd::geteuid().to_string().bytes().map(|b| format!("{b:02x}")).collect();
        service.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes()).unwrap();
        let mut line = [0; 1];
        while line != *b"\n" {
            service.stream.read_exact(&mut line).unwrap();
        }
        service.stream.write_all(b"BEGIN\r\n").unwrap();
        service.ask(1, "Hello", "", &[]);
        let mut name = string("org.fedoraproject.FirewallD1");
        name.resize(name.len().next_multiple_of(4), 0);
        name.extend(0u32.to_le_bytes());
        service.ask(2, "RequestName", "su", &name);
        // From here on it waits for as long as the test takes.
        service.stream.set_read_timeout(None).unwrap();
        service
    }

    fn ask(&mut self, serial: u32, member: &str, signature: &str, body: &[u8]) {
        let bus = "org.freedesktop.DBus";
        let fields = [(1, "o", "/org/freedesktop/DBus"), (6, "s", bus), (2, "s", bus), (3, "s", member)];
        self.stream.write_all(&message(1, serial, &fields, None, signature, body)).unwrap();
        // The answer, and what else the bus has to say before it.
        while self.receive().expect("the bus answers").answers != Some(serial) {}
    }

    /// Answers one call; none when the bus is gone.
    fn serve(&mut self) -> Option<()> {
        let call = self.receive()?;
        if call.kind != 1 {
            return Some(());
        }
        let zone = text(&call.body, 0);
        let at = (4 + zone.len() + 1).next_multiple_of(4);
        let key = (zone.clone(), text(&call.body, at));
        let mut sources = self.sources.lock().unwrap();
        let answer = match call.member.as_str() {
            "addSource" => sources.insert(key).then(|| ("s", string(&zone))).ok_or("ZONE_ALREADY_SET"),
            "removeSource" => sources.remove(&key).then(|| ("s", string(&zone))).ok_or("UNKNOWN_SOURCE"),
            "querySource" => Ok(("b", u32::from(sources.contains(&key)).to_le_bytes().to_vec())),
            _ => Err("UNKNOWN_METHOD"),
        };
        drop(sources);
        let to = [(6, "s", call.sender.as_str())];
        let bytes = match answer {
            Ok((signature, body)) => message(2, 9, &to, Some(call.serial), signature, &body),
            Err(name) => {
                let error = [to[0], (4, "s", "org.fedoraproject.FirewallD1.Exception")];
                message(3, 9, &error, Some(call.serial), "s", &string(name))
            }
        };
        self.stream.write_all(&bytes).ok()
    }

    fn receive(&mut self) -> Option<Message> {
        let mut start = [0; 16];
        self.stream.read_exact(&mut start).ok()?;
        let number = |at: usize| u32::from_le_bytes(start[at..at + 4].try_into().unwrap());
        let (body, fields) = (number(4) as usize, number(12) as usize);
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.stream.read_exact(&mut rest).ok()?;
        let (header, body) = rest.split_at(fields.next_multiple_of(8));
        let mut got =
            Message { kind: start[1], serial: number(8), body: body.to_vec(), ..Message::default() };
        let mut at = 0;
        while at < fields {
            let (code, kind) = (header[at], header[at + 2]);
            at += 4;
            match kind {
                b'u' => {
                    got.answers = (code == 5)
                        .then(|| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()))
                        .or(got.answers);
                    at += 4;
                }
                b'g' => at += usize::from(header[at]) + 2,
                _ => {
                    let value = text(header, at);
                    at += 4 + value.len() + 1;
                    match code {
                        3 => got.member = value,
                        7 => got.sender = value,
                        _ => {}
                    }
                }
            }
            at = at.next_multiple_of(8);
        }
        Some(got)
    }
}

#[derive(Default)]
struct Message {
    kind: u8,
    serial: u32,
    answers: Option<u32>,
    member: String,
    sender: String,
    body: Vec<u8>,
}

fn message(
    kind: u8,
    serial: u32,
    fields: &[(u8, &str, &str)],
    answers: Option<u32>,
    signature: &str,
    body: &[u8],
) -> Vec<u8> {
    let mut header = Vec::new();
    for (code, of, value) in fields {
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([*code, 1, of.as_bytes()[0], 0]);
        header.extend(string(value));
    }
    if let Some(answers) = answers {
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([5, 1, b'u', 0]);
        header.extend(answers.to_le_bytes());
    }
    if !signature.is_empty() {
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap()]);
        header.extend(signature.bytes());
        header.push(0);
    }
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
    let mut bytes =
        [&[b'l', kind, 0, 1][..], &size(body), &serial.to_le_bytes(), &size(&header), &header].concat();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes(), &[0]].concat()
}

fn text(bytes: &[u8], at: usize) -> String {
    let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    String::from_utf8(bytes[at + 4..at + 4 + len].to_vec()).unwrap()
}

fn conf(host: &Host, keys: Value) -> Value {
    with(&json!({ "type": "firewall", "dataDir": host.path("firewall") }), keys)
}

fn names(sources: &Sources) -> Vec<String> {
    sources.lock().unwrap().iter().map(|(zone, source)| format!("{zone} {source}")).collect()
}

#[test]
fn where_firewalld_runs_the_addresses_are_sources_of_its_zone_whichever_binary_is_called() {
    let both = [Whose::Ours, Whose::Reference];
    for (made_by, removed_by) in both.iter().flat_map(|one| both.map(|other| (*one, other))) {
        for (keys, zone) in
            [(json!({}), "trusted"), (json!({ "backend": "firewalld", "firewalldZone": "pods" }), "pods")]
        {
            let ((host, _bus, sources), pod) = (with_firewalld(), Pod::new("c1"));
            let before = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
            let conf = complete("net", &conf(&host, keys), &before);
            let call =
                |whose, verb: &str| host.call(whose, verb, ("c1", &pod.net.path(), "eth0"), &conf).ok();
            call(made_by, "ADD");
            call(made_by, "ADD");
            assert_eq!(
                names(&sources),
                [format!("{zone} 10.88.1.2/32"), format!("{zone} fc00:88:1::2/128")],
                "{made_by:?}"
            );
            assert_eq!(rules(&host, "iptables-save"), [""; 0], "{made_by:?}");
            call(removed_by, "CHECK");
            call(removed_by, "DEL");
            call(removed_by, "DEL");
            assert_eq!(names(&sources), [""; 0], "{removed_by:?}");
        }
    }
}

#[test]
fn what_let_an_address_pass_is_taken_away_whatever_the_host_and_the_configuration_have_become() {
    let ((mut host, _bus, sources), pods) = (with_firewalld(), [Pod::new("c1"), Pod::new("c2")]);
    let zone = conf(&host, json!({ "firewalldZone": "pods" }));
    let result = host.add(Whose::Ours, "net", &pods[0], &[host.bridge("net"), zone]).ok();
    assert_eq!(names(&sources).len(), 2);
    host.del(Whose::Ours, "net", &pods[0], &[conf(&host, json!({ "backend": "iptables" }))], &result);
    assert_eq!(names(&sources), [""; 0]);
    let with_bus = std::mem::take(&mut host.env);
    host.env.push(("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), "unix:path=/nowhere".to_owned()));
    let plain = conf(&host, json!({}));
    let result = host.add(Whose::Ours, "net", &pods[1], &[host.bridge("net"), plain.clone()]).ok();
    let all = |host: &Host| ["iptables-save", "ip6tables-save"].map(|program| rules(host, program)).concat();
    let of_address = |rule: &String| rule.contains("10.88.1.") || rule.contains("fc00:88:1:");
    assert_eq!(all(&host).iter().filter(|rule| of_address(rule)).count(), 4);
    host.env = with_bus;
    host.del(Whose::Ours, "net", &pods[1], &[plain], &result);
    assert_eq!(all(&host).iter().filter(|rule| of_address(rule)).count(), 0, "{:#?}", all(&host));
}

#[test]
fn a_delete_without_the_firewalld_that_had_the_addresses_is_no_error() {
    let ((mut host, _bus, sources), pod) = (with_firewalld(), Pod::new("c1"));
    let plain = conf(&host, json!({}));
    let result = host.add(Whose::Ours, "net", &pod, &[host.bridge("net"), plain.clone()]).ok();
    assert_eq!(names(&sources).len(), 2);
    host.env = vec![("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), "unix:path=/nowhere".to_owned())];
    host.del(Whose::Ours, "net", &pod, &[plain], &result);
    assert!(!host.path("firewall/10.88.1.2").exists());
}

#[test]
fn beside_firewalld_iptables_keeps_the_policy_and_nothing_else_as_the_reference_plugin_has_it() {
    for policy in ["same-bridge", "isolated"] {
        let made = [Whose::Ours, Whose::Reference].map(|whose| {
            let ((host, _bus, sources), pod) = (with_firewalld(), Pod::new("c1"));
            let before = host.add(Whose::Ours, "net", &pod, &[host.bridge("net")]).ok();
            let conf = complete("net", &conf(&host, json!({ "ingressPolicy": policy })), &before);
            let call = |whose, verb: &str| host.call(whose, verb, ("c1", &pod.net.path(), "eth0"), &conf);
            call(whose, "ADD").ok();
            let rules = ["iptables-save", "ip6tables-save"].map(|program| rules(&host, program));
            assert_eq!(names(&sources).len(), 2);
            call(Whose::Ours, "CHECK").ok();
            host.net.tool("iptables -F CNI-ISOLATION-STAGE-2");
            let lost = call(Whose::Ours, "CHECK");
            assert!(lost.code() == 101 && lost.msg().contains("STAGE-2"), "{}", lost.msg());
            call(Whose::Ours, "DEL").ok();
            assert_eq!(names(&sources), [""; 0]);
            rules
        });
        assert_eq!(made[0], made[1], "{policy}");
        assert!(!made[0][0].is_empty() && !made[0].concat().join("\n").contains("10.88.1.2"), "{made:?}");
    }
}

#[test]
fn a_source_that_is_gone_is_named_by_check_and_a_bus_without_firewalld_means_iptables() {
    let ((host, _bus, sources), pod) = (with_firewalld(), Pod::new("c1"));
    let chain = [host.bridge("net"), conf(&host, json!({}))];
    let result = host.add(Whose::Ours, "net", &pod, &chain).ok();
    sources.lock().unwrap().remove(&("trusted".to_owned(), "10.88.1.2/32".to_owned()));
    let check = host.check(Whose::Ours, "net", &pod, &chain[1], &result);
    assert!(check.code() == 101 && check.msg().contains("10.88.1.2/32"), "{}", check.msg());
    let (mut host, _bus, address) = with_bus();
    host.env.push(("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), format!("unix:path={address}")));
    let pod = Pod::new("c1");
    host.add(Whose::Ours, "net", &pod, &[host.bridge("net"), conf(&host, json!({}))]).ok();
    assert!(!rules(&host, "iptables-save").is_empty());
    let asked = conf(&host, json!({ "backend": "firewalld" }));
    let refused = host.add(Whose::Ours, "net", &Pod::new("c2"), &[host.bridge("net"), asked]);
    assert!(refused.msg().contains("firewalld"), "{}", refused.msg());
}
