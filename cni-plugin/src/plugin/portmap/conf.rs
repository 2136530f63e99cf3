//! The configuration of the portmap plugin.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use subnet_lease::Family;

use crate::contract::json::{Json, Object, mistyped, wrong};
use crate::contract::{Attachment, Call, Code, Failure};
use crate::plugin::chained;

/// What the plugin is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortMap {
    pub(crate) backend: Backend,
    pub(crate) mappings: Vec<Mapping>,
    /// Connections that a container makes to itself, and those from the host's loopback, come from an address of the host.
    pub(crate) snat: bool,
    /// All connections do.
    pub(crate) masquerade_all: bool,
    /// The packet mark by which iptables knows what to masquerade.
    pub(crate) mark: u32,
    /// A chain of another program that sets that mark.
    pub(crate) mark_chain: Option<String>,
    /// Further conditions for IPv4 and for IPv6, in the words of the backend.
    pub(crate) conditions: [Vec<String>; 2],
}

/// Who translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Nftables,
    Iptables,
}

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mapping {
    pub(crate) protocol: Protocol,
    /// Only at this address of the host.
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl PortMap {
    pub(crate) fn read(call: &Call) -> Result<Self, Failure> {
        let conf = &call.conf;
        let mark_chain = conf.text("externalSetMarkChain")?.map(str::to_owned);
        let bit = conf.number("markMasqBit")?;
        if bit.is_some() && mark_chain.is_some() {
            return Err(Failure::new(
                Code::Config,
                "externalSetMarkChain and markMasqBit exclude each other",
            ));
        }
        let bit = bit.unwrap_or(MARK_BIT);
        if bit > 31 {
            return Err(wrong("markMasqBit", "at most 31"));
        }
        if mark_chain.as_deref().is_some_and(|chain| !is_chain(chain)) {
            return Err(wrong("externalSetMarkChain", "the name of a chain"));
        }
        let conditions = [words(conf, "conditionsV4")?, words(conf, "conditionsV6")?];
        let runtime = conf.object("runtimeConfig")?;
        let mappings = runtime.map_or(Ok(vec![]), |runtime| runtime.objects("portMappings"))?;
        Ok(Self {
            backend: backend(conf, mark_chain.is_some(), &conditions)?,
            mappings: mappings.into_iter().map(Mapping::read).collect::<Result<_, _>>()?,
            snat: conf.flag("snat")?.unwrap_or(true),
            masquerade_all: conf.flag("masqAll")?.unwrap_or(false),
            mark: 1 << bit,
            mark_chain,
            conditions,
        })
    }

    pub(crate) fn conditions(&self, family: Family) -> &[String] {
        &self.conditions[usize::from(family == Family::V6)]
    }

    /// The mappings that are of use to a family. An address that stands for all is no condition; one of the other
    /// family excludes this one.
    pub(crate) fn of(&self, family: Family) -> impl Iterator<Item = Mapping> {
        let fits = move |m: &&Mapping| m.host_ip.is_none_or(|ip| Family::of(&ip) == family);
        self.mappings
            .iter()
            .filter(fits)
            .map(|m| Mapping { host_ip: m.host_ip.filter(|ip| !ip.is_unspecified()), ..*m })
    }
}

/// The container's address of each family that it has.
pub(crate) fn addresses(call: &Call, result: &Attachment) -> Vec<(Family, IpNetwork)> {
    let find = |family| chained::pod_address(result, call.ifname, family).map(|net| (family, net));
    Family::ALL.into_iter().filter_map(find).collect()
}

impl Mapping {
    fn read(from: &Object) -> Result<Self, Failure> {
        let port = |key| {
            let number = from.number(key)?.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
            number.ok_or_else(|| wrong(key, "a port from 1 to 65535"))
        };
        let protocol = from.text("protocol")?.unwrap_or_default();
        let host_ip = from.address("hostIP")?.map(chained::canonical);
        Ok(Self {
            protocol: Protocol::parse(protocol)?,
            host_ip,
            host_port: port("hostPort")?,
            container_port: port("containerPort")?,
        })
    }
}

impl Protocol {
    fn parse(text: &str) -> Result<Self, Failure> {
        let found =
            [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|p| p.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| wrong("protocol", "tcp, udp or sctp").details(text))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// The backend that is asked for, or else the one whose words the configuration uses. Options of the other one are an
/// error, as in the reference plugin, since nothing would act on them.
fn backend(conf: &Object, mark_chain: bool, conditions: &[Vec<String>; 2]) -> Result<Backend, Failure> {
    let of_iptables = |words: &&Vec<String>| words[0].starts_with(['-', '!']);
    let given: Vec<_> = conditions.iter().filter(|words| !words.is_empty()).collect();
    let iptables = mark_chain || given.iter().any(of_iptables);
    let nftables = given.iter().any(|words| !of_iptables(words));
    let asked = match conf.text("backend")? {
        None if iptables => Backend::Iptables,
        None | Some("nftables") => Backend::Nftables,
        Some("iptables") => Backend::Iptables,
        Some(other) => return Err(wrong("backend", "nftables or iptables").details(other)),
    };
    if (asked == Backend::Nftables && iptables) || (asked == Backend::Iptables && nftables) {
        let msg = "externalSetMarkChain, conditionsV4 or conditionsV6 are in the words of the other backend";
        return Err(Failure::new(Code::Config, msg).details("see \"backend\""));
    }
    Ok(asked)
}

/// A list of texts, each of one or more words; a first text that is empty means none.
fn words(conf: &Object, key: &str) -> Result<Vec<String>, Failure> {
    let list: Vec<String> = conf
        .list(key)?
        .iter()
        .map(|v| if let Json::Text(t) = v { Ok(t.clone()) } else { Err(mistyped(key, "a list of texts")) })
        .collect::<Result<_, _>>()?;
    if list.first().is_none_or(String::is_empty) {
        return Ok(vec![]);
    }
    if list.iter().any(|word| word.contains(['\n', '\0'])) {
        return Err(wrong(key, "words on one line"));
    }
    Ok(list)
}

/// What can stand as a chain's name in a line for iptables-restore.
fn is_chain(name: &str) -> bool {
    name.len() < 29
        && !name.starts_with(['-', '!'])
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// Kubernetes uses 14 and 15, Calico 20 and up.
const MARK_BIT: u32 = 13;
