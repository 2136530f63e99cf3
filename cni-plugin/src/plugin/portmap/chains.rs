//! Port maps in iptables: the reference plugin's chains, name for name, so that either binary takes away what the other
//! one made.

use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::conf::{Mapping, PortMap, Protocol};
use super::reference::{DNAT, chain, container};
use crate::contract::{Call, Code, Failure};
use crate::sys::iptables::{Plan, Saved, SavedRule, Table, has_legacy};

const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
const TO_HOST: [&str; 6] = ["-m", "addrtype", "--dst-type", "LOCAL", "-j", DNAT];
const MARK_NOTE: &str = "CNI portfwd masquerade mark";
const MASQUERADE_NOTE: &str = "CNI portfwd requiring masquerade";
/// Ports that one rule can name.
const PORTS: usize = 15;

/// The rules of one container in one family, as words.
struct Chain {
    name: String,
    rules: Vec<Vec<String>>,
    entries: Vec<Vec<String>>,
}

fn nat(family: Family) -> Table {
    Table { family, name: "nat", legacy: false }
}

/// Makes what is missing, and the container's chain anew.
pub(super) fn add(call: &Call, conf: &PortMap, addresses: &[(Family, IpNetwork)]) -> Result<(), Failure> {
    for (family, pod) in addresses {
        let chain = Chain::new(call, conf, *family, *pod);
        nat(*family).change(|saved| plan(conf, &chain, saved))?;
    }
    Ok(())
}

fn plan(conf: &PortMap, chain: &Chain, saved: &Saved) -> Plan {
    let mut plan = Plan::default();
    let mark = format!("{0:#x}/{0:#x}", conf.mark);
    if conf.snat && conf.mark_chain.is_none() {
        plan.chain(saved, SET_MARK);
        plan.chain(saved, MASQUERADE);
        let set = ["-m", "comment", "--comment", MARK_NOTE, "-j", "MARK", "--set-xmark", &mark];
        plan.rule(saved, SET_MARK, &set, false);
        plan.rule(saved, MASQUERADE, &["-m", "mark", "--mark", &mark, "-j", "MASQUERADE"], false);
        // Before all that masquerades for containers in general.
        plan.rule(
            saved,
            "POSTROUTING",
            &["-m", "comment", "--comment", MASQUERADE_NOTE, "-j", MASQUERADE],
            true,
        );
    }
    plan.chain(saved, DNAT);
    ["PREROUTING", "OUTPUT"].into_iter().for_each(|hook| plan.rule(saved, hook, &TO_HOST, false));
    // What an ADD left that was cut short.
    let stale = saved.rules(DNAT).filter(|rule| rule.after("-j") == Some(&chain.name));
    stale.for_each(|rule| plan.delete(rule));
    plan.empty_chain(saved, &chain.name);
    let lines = [(&*chain.name, &chain.rules), (DNAT, &chain.entries)];
    for (name, rules) in lines {
        for rule in rules {
            plan.add(name, &rule.iter().map(String::as_str).collect::<Vec<_>>(), false);
        }
    }
    plan
}

impl Chain {
    fn new(call: &Call, conf: &PortMap, family: Family, pod: IpNetwork) -> Self {
        let name = chain("CNI-DN-", &call.network, &call.container);
        let rules = conf.of(family).flat_map(|mapping| translate(conf, &mapping, family, pod)).collect();
        Self { entries: entries(call, conf, family, &name), name, rules }
    }
}

/// The rules of a mapping: mark what must be masqueraded, then translate.
fn translate(conf: &PortMap, mapping: &Mapping, family: Family, pod: IpNetwork) -> Vec<Vec<String>> {
    let Mapping { protocol, host_port, container_port, .. } = *mapping;
    let protocol = protocol.name();
    let rule = |source: Option<String>, end: &[&str]| {
        let mut words = source.map(|net| vec!["-s".to_owned(), net]).unwrap_or_default();
        words.extend(
            mapping
                .host_ip
                .map(|ip| ["-d".to_owned(), IpNetwork::from(ip).to_string()])
                .into_iter()
                .flatten(),
        );
        let port = host_port.to_string();
        let middle = ["-p", protocol, "-m", protocol, "--dport", &port];
        words.extend(middle.iter().chain(end).map(|word| (*word).to_owned()));
        words
    };
    let mark = ["-j", conf.mark_chain.as_deref().unwrap_or(SET_MARK)];
    let mut rules = Vec::new();
    if conf.snat && conf.masquerade_all {
        rules.push(rule(None, &mark));
    } else if conf.snat {
        let subnet = IpNetwork::new(pod.network(), pod.prefix()).unwrap_or(pod);
        rules.push(rule(Some(subnet.to_string()), &mark));
        if family == Family::V4 {
            rules.push(rule(Some("127.0.0.1/32".to_owned()), &mark));
        }
    }
    let to = std::net::SocketAddr::new(pod.ip(), container_port).to_string();
    rules.push(rule(None, &["-j", "DNAT", "--to-destination", &to]));
    rules
}

/// The rules that lead to the container's chain: every protocol's ports, some at a time.
fn entries(call: &Call, conf: &PortMap, family: Family, chain: &str) -> Vec<Vec<String>> {
    let note = note(&call.network, &call.container);
    let mut entries = Vec::new();
    for protocol in [Protocol::Sctp, Protocol::Tcp, Protocol::Udp] {
        let ports: Vec<_> = conf
            .mappings
            .iter()
            .filter(|m| m.protocol == protocol)
            .map(|m| m.host_port.to_string())
            .collect();
        for some in ports.chunks(PORTS) {
            let ports = some.join(",");
            let start = [
                "-p",
                protocol.name(),
                "-m",
                "comment",
                "--comment",
                &note,
                "-m",
                "multiport",
                "--dports",
                &ports,
            ];
            let conditions = conf.conditions(family).iter().map(String::as_str);
            let words = start.into_iter().chain(conditions).chain(["-j", chain]);
            entries.push(words.map(str::to_owned).collect());
        }
    }
    entries
}

/// The comment by which a container's rules are known; iptables allows 255 characters.
fn note(network: &str, container: &str) -> String {
    let note = format!("dnat name: \"{network}\" id: \"{container}\"");
    if note.len() <= 255 { note } else { format!("{}...", &note[..253]) }
}

/// Whether the chain is as it was made, and is reached.
pub(super) fn check(call: &Call, conf: &PortMap, addresses: &[(Family, IpNetwork)]) -> Result<(), Failure> {
    for (family, pod) in addresses {
        let saved = nat(*family).read()?;
        let chain = Chain::new(call, conf, *family, *pod);
        let missing =
            |what: String| Err(Failure::new(Code::Check, format!("table nat of {family} has lost {what}")));
        if !saved.has_chain(&chain.name) {
            return missing(format!("the chain {} of the port maps", chain.name));
        }
        for rule in &chain.rules {
            if !saved.has(&chain.name, &rule.iter().map(String::as_str).collect::<Vec<_>>()) {
                return missing(format!("a rule of {}: {}", chain.name, rule.join(" ")));
            }
        }
        // Conditions are printed in the program's own words.
        if saved.rules(DNAT).filter(|rule| rule.after("-j") == Some(&chain.name)).count()
            < chain.entries.len()
        {
            return missing(format!("a rule of {DNAT} that leads to {}", chain.name));
        }
        if let Some(hook) = ["PREROUTING", "OUTPUT"].into_iter().find(|hook| !saved.has(hook, &TO_HOST)) {
            return missing(format!("the rule of {hook} that leads to {DNAT}"));
        }
    }
    Ok(())
}

/// Removes a container's chain from tables of the old kernel interface, where there are any.
pub(super) fn remove_legacy(call: &Call) -> Result<(), Failure> {
    let chain = chain("CNI-DN-", &call.network, &call.container);
    for family in Family::ALL.into_iter().filter(|family| has_legacy(*family, "nat")) {
        let table = Table { legacy: true, ..nat(family) };
        table.change(|saved| {
            let mut plan = Plan::default();
            plan.delete_chain(saved, &chain, DNAT);
            plan
        })?;
    }
    Ok(())
}

/// Removes the chains of containers of a network that are not valid any more from tables of the old kernel interface,
/// where there are any.
pub(super) fn collect_legacy(network: &str, valid: &dyn Fn(&str) -> bool) -> Result<(), Failure> {
    for family in Family::ALL.into_iter().filter(|family| has_legacy(*family, "nat")) {
        let table = Table { legacy: true, ..nat(family) };
        table.change(|saved| {
            let stale = |rule: &SavedRule| {
                let id = container(network, rule.after("--comment")?)?;
                (!valid(id)).then(|| rule.after("-j").map(str::to_owned))?
            };
            let mut chains: Vec<_> = saved.rules(DNAT).filter_map(stale).collect();
            chains.dedup();
            let mut plan = Plan::default();
            chains.iter().for_each(|chain| plan.delete_chain(saved, chain, DNAT));
            plan
        })?;
    }
    Ok(())
}
