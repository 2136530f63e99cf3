//! A host and its containers as the kernel and the file system show them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use netns_harness::{Host, Namespace, Program, Sandbox};
use serde_json::Value;

use crate::facts::flatten;

/// What is asked of every namespace, in this order; each answer ends with a line of its own.
const SCRIPT: &str = "
ip -j -d addr show; echo; echo ===
ip -j -d route show table all; echo; echo ===
tc -j -d qdisc show; echo; echo ===
for link in $(tc qdisc show | sed -n 's/^qdisc ingress.* dev \\([^ ]*\\).*/\\1/p'); do
  tc filter show dev $link parent ffff: | grep -E 'mirred|match' | sed \"s/^/$link /\"
done; echo ===
rules=$(nft -s list ruleset); echo \"$rules\"; echo ===
case $rules in *'table ip '*) iptables-save;; esac
case $rules in *'table ip6 '*) ip6tables-save;; esac; echo ===
";

/// Settings that plugins change, of the whole namespace and of each link.
const SETTINGS: [&str; 3] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "core/somaxconn"];
const LINK_SETTINGS: [&str; 9] = [
    "ipv4/conf/*/arp_notify",
    "ipv4/conf/*/route_localnet",
    "ipv4/conf/*/rp_filter",
    "ipv6/conf/*/disable_ipv6",
    "ipv6/conf/*/accept_ra",
    "ipv6/conf/*/accept_dad",
    "ipv6/conf/*/enhanced_dad",
    "ipv6/conf/*/keep_addr_on_down",
    "ipv6/conf/*/ndisc_notify",
];

/// Folders of a host in which plugins keep files.
const FOLDERS: [&str; 2] = ["/var/lib/cni", "/run"];
/// What in there is not theirs: namespaces, the daemon's file, and the lock of iptables.
const NOT_THEIRS: [&str; 3] = ["/run/netns", "/run/flannel", "/run/xtables.lock"];

pub(crate) fn take(host: &Host, sandboxes: &BTreeMap<String, Sandbox>) -> Result<Vec<String>> {
    let mut facts = namespace("host", host, host.space(), "")?;
    for (name, sandbox) in sandboxes {
        facts.extend(namespace(name, host, sandbox.space(), &sandbox.path())?);
    }
    for folder in FOLDERS {
        files(&host.path(folder), folder, &mut facts)?;
    }
    Ok(facts)
}

fn namespace(name: &str, host: &Host, space: &Namespace, path: &str) -> Result<Vec<String>> {
    let program = match path {
        "" => Program::new("sh").args(["-c", SCRIPT]),
        path => Program::new("nsenter").arg(format!("--net={path}")).args(["sh", "-c", SCRIPT]),
    };
    let output = host.exec(&program)?;
    let answers: Vec<&str> = output.split("===\n").collect();
    let [addresses, routes, qdiscs, filters, nft, iptables, _] = answers[..] else {
        anyhow::bail!("{} answers instead of 7: {output}", answers.len());
    };
    let addresses: Vec<Value> = serde_json::from_str(addresses).context("ip addr")?;
    let mut facts: Vec<String> = addresses.iter().flat_map(link).collect();
    facts.extend(all(routes)?.iter().filter(|route| !is_automatic(route)).map(|route| line("route", route)));
    let chosen = |qdisc: &&Value| qdisc["kind"] != "noqueue";
    facts.extend(all(qdiscs)?.iter().filter(chosen).map(|qdisc| line("qdisc", qdisc)));
    facts.extend(filters.lines().map(|filter| format!("filter {}", words(filter))));
    facts.extend(nftables(nft));
    facts
        .extend(iptables.lines().filter(|line| line.starts_with('-')).map(|rule| format!("iptables {rule}")));
    let names: Vec<&str> = addresses.iter().filter_map(|link| link["ifname"].as_str()).collect();
    facts.extend(space.run(|| settings(&names))?);
    Ok(facts.into_iter().map(|fact| format!("{name}: {fact}")).collect())
}

/// The lists of several answers behind each other.
fn all(text: &str) -> Result<Vec<Value>> {
    let lists = serde_json::Deserializer::from_str(text).into_iter::<Vec<Value>>();
    Ok(lists.collect::<Result<Vec<_>, _>>().with_context(|| text.to_owned())?.concat())
}

/// A link: one fact an attribute, so that a difference names it.
fn link(link: &Value) -> Vec<String> {
    let name = link["ifname"].as_str().unwrap_or_default();
    let mut facts = Vec::new();
    for key in ["mtu", "promiscuity", "group", "txqlen", "master"] {
        facts.extend(flatten(key, &link[key]));
    }
    // Whether there is a carrier follows from the ports, and may lag behind them.
    let flags = link["flags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    facts.extend(
        flags
            .filter(|flag| !["NO-CARRIER", "LOWER_UP", "M-DOWN"].contains(flag))
            .map(|flag| format!("flag {flag}")),
    );
    let info = &link["linkinfo"];
    facts.extend(flatten("kind", &info["info_kind"]));
    facts.extend(flatten("vlan_filtering", &info["info_data"]["vlan_filtering"]));
    for key in ["hairpin", "isolated", "learning", "state"] {
        facts.extend(flatten(key, &info["info_slave_data"][key]));
    }
    let own = |address: &&Value| address["scope"] != "link";
    for address in link["addr_info"].as_array().into_iter().flatten().filter(own) {
        let mut address = address.clone();
        // A question of when it is looked at.
        address["tentative"] = Value::Null;
        for lifetime in ["valid_life_time", "preferred_life_time"] {
            if address[lifetime] == 4_294_967_295_u64 {
                address[lifetime] = "forever".into();
            }
        }
        facts.push(line("address", &address));
    }
    facts.into_iter().map(|fact| format!("link {name} {fact}")).collect()
}

/// The kernel's own: what follows from addresses, multicast and carriers, now or a little later.
fn is_automatic(route: &Value) -> bool {
    let dst = route["dst"].as_str().unwrap_or_default();
    route["table"] == "local" || route["protocol"] == "kernel" || dst.starts_with("ff00:")
}

fn line(what: &str, value: &Value) -> String {
    let mut value = value.clone();
    value["flags"] = Value::Null;
    let mut parts = flatten("", &value);
    // Numbers that the kernel draws.
    parts.retain(|part| !part.starts_with(".handle") && !part.starts_with(".refcnt"));
    format!("{what} {}", parts.join(" ").replace(" = ", " "))
}

/// The rules of tables that iptables does not show itself, each with table and chain.
fn nftables(text: &str) -> Vec<String> {
    let mut facts = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line == "}" {
            open.pop();
        } else if let Some(head) = line.strip_suffix(" {") {
            open.push(head);
        } else {
            facts.push(format!("nft {} {line}", open.join(" ")));
        }
    }
    let of_iptables = ["nat", "filter", "mangle", "raw", "security"];
    let is_theirs = |fact: &String| {
        let mut words = fact.split_whitespace().skip(2);
        matches!(words.next(), Some("ip" | "ip6")) && words.next().is_some_and(|t| of_iptables.contains(&t))
    };
    facts.retain(|fact| !is_theirs(fact));
    facts
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn settings(links: &[&str]) -> Vec<String> {
    let read = |key: &str| {
        let value = fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap_or_else(|_| "none".into());
        format!("setting {key} {}", value.trim())
    };
    let of_link = |name: &str| LINK_SETTINGS.map(|key| read(&key.replace('*', name)));
    SETTINGS.map(read).into_iter().chain(links.iter().flat_map(|name| of_link(name))).collect()
}

/// Every file below `folder`, which plugins call `shown`: mode, and what is in it.
fn files(folder: &Path, shown: &str, facts: &mut Vec<String>) -> Result<()> {
    if NOT_THEIRS.contains(&shown) || !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let shown = format!("{shown}/{}", entry.file_name().to_string_lossy());
        let meta = entry.metadata()?;
        if NOT_THEIRS.contains(&shown.as_str()) {
            continue;
        }
        facts.push(format!("file {shown} mode {:o}", meta.permissions().mode() & 0o7777));
        if meta.is_dir() {
            files(&entry.path(), &shown, facts)?;
        } else if meta.is_file() {
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
            match serde_json::from_str::<Value>(&text) {
                Ok(document @ Value::Object(_)) => {
                    facts.extend(flatten(&format!("file {shown} "), &document))
                }
                _ => facts.push(format!("file {shown} holds {text:?}")),
            }
        }
    }
    Ok(())
}
