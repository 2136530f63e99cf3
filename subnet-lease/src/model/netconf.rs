use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::attrs::{AllocConfig, BackendConfig};
use crate::format::json::Fields;
use crate::model::net::{
    Family, Subnets, address, contains_net, masked, number, overlap, parse_network, span, step,
};
use crate::model::pool::NetworkPool;

/// No net-conf is larger (bytes); etcd's own limit for a value is 1.5 MiB.
const LARGEST: usize = 1 << 20;

/// What is wrong with one field of a net-conf.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field} is {value}: {allowed}")]
pub struct NetConfError {
    /// The field, as the documentation spells it.
    pub field: String,
    /// Its value as written, shortened; `missing` where there is none.
    pub value: String,
    /// What may stand there, or what to do instead.
    pub allowed: String,
}

/// The parts of a net-conf that exist once per family, as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyFile {
    /// `EnableIPv4`, `EnableIPv6`.
    pub enable: Option<bool>,
    /// `Network`, `IPv6Network`.
    pub network: Option<IpNetwork>,
    /// `SubnetLen`, `IPv6SubnetLen`.
    pub subnet_len: Option<u64>,
    /// `SubnetMin`, `IPv6SubnetMin`.
    pub min: Option<IpAddr>,
    /// `SubnetMax`, `IPv6SubnetMax`.
    pub max: Option<IpAddr>,
}

/// A net-conf as written: fields read, nothing filled in, nothing checked against another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetConfFile {
    /// IPv4, IPv6.
    pub families: [FamilyFile; 2],
    /// `EnableNFTables`.
    pub enable_nftables: Option<bool>,
    /// `MTU`, which flannel does not have.
    pub mtu: Option<u32>,
    /// `Backend`, where it could be understood.
    pub backend: Option<BackendConfig>,
    /// Keys that mean nothing to us (`Backend.` in front where they stand there).
    pub unknown: Vec<String>,
}

/// A net-conf as meant: every default filled in, and only states that can work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    pools: [Option<NetworkPool>; 2],
    /// Rules by nf_tables rather than iptables, where that is said.
    pub enable_nftables: Option<bool>,
    /// What the paths between the hosts carry (bytes), where an interface's own MTU promises more. The backend's own key
    /// comes before it.
    pub mtu: Option<u32>,
    /// How hosts are joined.
    pub backend: BackendConfig,
}

impl NetworkConfig {
    /// Reads a net-conf by flannel's rules: keys without regard to case, the last of several wins, unknown ones are only
    /// warned about. Errors come all at once.
    pub fn parse(json: &[u8]) -> Result<(Self, Vec<String>), Vec<NetConfError>> {
        let mut errors = Vec::new();
        let Some(file) = NetConfFile::read(json, &mut errors) else { return Err(errors) };
        let pools = Family::ALL.map(|family| file.pool(family, &mut errors));
        if errors.is_empty() && pools.iter().all(Option::is_none) {
            errors.push(fault("EnableIPv4", "false", "needs EnableIPv6 to be true, or nothing is enabled"));
        }
        file.check_mtu(&mut errors);
        let Some(mut backend) = file.backend.filter(|_| errors.is_empty()) else { return Err(errors) };
        backend.set_mtu(backend.mtu().or(file.mtu));
        let warnings = file.unknown.iter().map(|key| format!("{key} is not known and ignored")).collect();
        Ok((Self { pools, enable_nftables: file.enable_nftables, mtu: file.mtu, backend }, warnings))
    }

    /// Whether subnets are exactly what this network gives out, in exactly its families.
    pub fn leases(&self, subnets: &Subnets) -> bool {
        Family::ALL.into_iter().all(|family| match (self.network(family), subnets.family(family)) {
            (Some(pool), Some(subnet)) => pool.index(subnet).is_some(),
            (None, None) => true,
            _ => false,
        })
    }

    /// Whether everything that a cluster does by this configuration stays as it is when the other one takes its place:
    /// only the networks differ, and hold what they held.
    pub fn grows_into(&self, other: &Self) -> bool {
        let settings = |config: &Self| (config.backend.clone(), config.enable_nftables, config.mtu);
        let same = settings(self) == settings(other);
        let grows = |family: Family| match (self.network(family), other.network(family)) {
            (Some(old), Some(new)) => {
                old.subnet_len == new.subnet_len && contains_net(new.network, old.network)
            }
            (None, None) => true,
            _ => false,
        };
        same && Family::ALL.into_iter().all(grows)
    }

    /// Stands in until the configuration is known.
    pub(crate) fn none() -> Self {
        Self {
            pools: [None; 2],
            enable_nftables: None,
            mtu: None,
            backend: BackendConfig::Alloc(AllocConfig),
        }
    }

    /// What one family has to lease; `None` where it is not enabled.
    pub fn network(&self, family: Family) -> Option<NetworkPool> {
        self.pools[family.index()]
    }

    /// The enabled families' pools, IPv4 first.
    pub fn pools(&self) -> impl Iterator<Item = NetworkPool> + use<> {
        self.pools.into_iter().flatten()
    }

    /// How many hosts find a lease: the room of the smaller family.
    pub fn room(&self) -> u128 {
        self.pools().map(|pool| pool.room()).min().unwrap_or(0)
    }
}

impl NetConfFile {
    /// `None` when it is not even a JSON object.
    fn read(json: &[u8], errors: &mut Vec<NetConfError>) -> Option<Self> {
        if json.len() > LARGEST {
            errors.push(fault("net-conf", format!("{} bytes", json.len()), "at most 1 MiB"));
            return None;
        }
        let mut fields: Fields = match serde_json::from_slice(json) {
            Ok(fields) => fields,
            Err(e) => {
                errors.push(fault("net-conf", e, "must be a JSON object"));
                return None;
            }
        };
        let mut file = Self::default();
        for family in Family::ALL {
            file.families[family.index()] = FamilyFile::read(family, &mut fields, errors);
        }
        file.enable_nftables = boolean(&mut fields, "", "EnableNFTables", errors);
        file.mtu = mtu(&mut fields, "", errors);
        let (backend, strange) = BackendConfig::read(fields.take("Backend"), errors);
        file.backend = backend;
        file.unknown = fields.rest().into_iter().map(|(key, _)| quoted(&key)).chain(strange).collect();
        Some(file)
    }

    /// Pods must have room in what the tunnel leaves.
    fn check_mtu(&self, errors: &mut Vec<NetConfError>) {
        let Some(backend) = &self.backend else { return };
        let six = self.families[Family::V6.index()].enable == Some(true);
        let (pods, head) = backend.least_mtu(six);
        let least = pods + head;
        for (name, mtu) in [("Backend.MTU", backend.mtu()), ("MTU", self.mtu)] {
            if let Some(mtu) = mtu.filter(|mtu| *mtu < least) {
                let why = if six {
                    format!(" (with IPv6: {pods} for pods, {head} of tunnel)")
                } else {
                    String::new()
                };
                errors.push(fault(name, mtu, format!("0 or {least} to 65535{why}")));
            }
        }
    }

    fn pool(&self, family: Family, errors: &mut Vec<NetConfError>) -> Option<NetworkPool> {
        let (file, names) = (&self.families[family.index()], names(family));
        if !file.enable.unwrap_or(family == Family::V4) {
            return None;
        }
        let Some(network) = file.network else {
            if !errors.iter().any(|e| e.field == names.network) {
                errors.push(fault(
                    names.network,
                    "missing",
                    format!("required while {} is true", names.enable),
                ));
            }
            return None;
        };
        if let Some((range, what)) = reserved(network) {
            let allowed = format!("no network that has addresses of {range} in it ({what})");
            errors.push(fault(names.network, network, allowed));
            return None;
        }
        let subnet_len = file.subnet_len(family, network, errors)?;
        file.range(family, network, subnet_len, errors)
    }
}

impl FamilyFile {
    fn read(family: Family, fields: &mut Fields, errors: &mut Vec<NetConfError>) -> Self {
        let names = names(family);
        Self {
            enable: boolean(fields, "", names.enable, errors),
            network: cidr(fields, names.network, family, errors),
            subnet_len: integer(fields, "", names.len, u64::from(family.bits()), errors)
                .filter(|len| *len > 0),
            min: addr(fields, names.min, family, errors),
            max: addr(fields, names.max, family, errors),
        }
    }

    /// flannel's rule: at least four subnets in a network and four addresses in a subnet; /24 and /64 where they fit.
    fn subnet_len(&self, family: Family, network: IpNetwork, errors: &mut Vec<NetConfError>) -> Option<u8> {
        let names = names(family);
        let (least, most) = (network.prefix() + 2, family.bits() - 2);
        if least > most {
            errors.push(fault(names.network, network, format!("a length of at most /{}", most - 2)));
            return None;
        }
        let usual = if family == Family::V4 { 24 } else { 64 };
        let len = self.subnet_len.and_then(|len| u8::try_from(len).ok()).unwrap_or_else(|| usual.max(least));
        if (least..=most).contains(&len) {
            return Some(len);
        }
        errors.push(fault(names.len, len, format!("{least} to {most} in {network}")));
        None
    }

    fn range(
        &self,
        family: Family,
        network: IpNetwork,
        len: u8,
        errors: &mut Vec<NetConfError>,
    ) -> Option<NetworkPool> {
        let names = names(family);
        let (first, last) = span(network);
        let step = step(family, len);
        let mut bound = |name: &str, given: Option<IpAddr>, default: u128| match given {
            None => address(family, default),
            Some(addr) if !contains_net(network, addr.into()) => {
                errors.push(fault(name, addr, format!("an address inside {network}")));
                None
            }
            Some(addr) if !number(addr).is_multiple_of(step) => {
                errors.push(fault(name, addr, format!("the first address of a /{len}")));
                None
            }
            Some(addr) => Some(addr),
        };
        // The first subnet is left out by default, as flannel does: its network address is that of the network.
        let min = bound(names.min, self.min, first + step);
        let max = bound(names.max, self.max, last - (step - 1));
        let (min, max) = (min?, max?);
        if min > max {
            errors.push(fault(names.min, min, format!("not above {}, which is {max}", names.max)));
            return None;
        }
        Some(NetworkPool { network, subnet_len: len, min, max })
    }
}

/// Ranges that hosts need for themselves, or that no host routes.
const RESERVED: [(&str, &str); 8] = [
    ("0.0.0.0/8", "this host"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, and broadcast"),
    ("::1/128", "loopback"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

fn reserved(network: IpNetwork) -> Option<(&'static str, &'static str)> {
    let overlaps = |range: &str| parse_network(range).is_some_and(|range| overlap(range, network));
    RESERVED.into_iter().find(|(range, _)| overlaps(range))
}

struct Names {
    enable: &'static str,
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
}

fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            enable: "EnableIPv4",
            network: "Network",
            len: "SubnetLen",
            min: "SubnetMin",
            max: "SubnetMax",
        },
        Family::V6 => Names {
            enable: "EnableIPv6",
            network: "IPv6Network",
            len: "IPv6SubnetLen",
            min: "IPv6SubnetMin",
            max: "IPv6SubnetMax",
        },
    }
}

pub(crate) fn fault(field: &str, value: impl ToString, allowed: impl Into<String>) -> NetConfError {
    NetConfError { field: field.into(), value: shorten(&value.to_string()), allowed: allowed.into() }
}

pub(crate) fn boolean(
    fields: &mut Fields,
    at: &str,
    name: &str,
    errors: &mut Vec<NetConfError>,
) -> Option<bool> {
    typed(fields, at, name, "true or false", errors)
}

pub(crate) fn integer(
    fields: &mut Fields,
    at: &str,
    name: &str,
    most: u64,
    errors: &mut Vec<NetConfError>,
) -> Option<u64> {
    let allowed = format!("a whole number from 0 to {most}");
    let number = typed::<u64>(fields, at, name, &allowed, errors)?;
    if number <= most {
        return Some(number);
    }
    errors.push(fault(&format!("{at}{name}"), number, allowed));
    None
}

/// An MTU in bytes; 0 counts as not written.
pub(crate) fn mtu(fields: &mut Fields, at: &str, errors: &mut Vec<NetConfError>) -> Option<u32> {
    let number = integer(fields, at, "MTU", u64::from(u16::MAX), errors)?;
    u32::try_from(number).ok().filter(|mtu| *mtu > 0)
}

/// A field of a JSON type; null counts as not written, as in Go.
fn typed<T: for<'de> Deserialize<'de>>(
    fields: &mut Fields,
    at: &str,
    name: &str,
    allowed: &str,
    errors: &mut Vec<NetConfError>,
) -> Option<T> {
    let raw = fields.take(name)?;
    serde_json::from_str::<Option<T>>(raw.get()).unwrap_or_else(|_| {
        errors.push(fault(&format!("{at}{name}"), raw.get(), allowed));
        None
    })
}

fn cidr(
    fields: &mut Fields,
    name: &str,
    family: Family,
    errors: &mut Vec<NetConfError>,
) -> Option<IpNetwork> {
    let raw = fields.take(name)?;
    match text(raw).as_deref().and_then(parse_network).map(masked) {
        // The zero network is flannel's "not set".
        Some(net) if Family::of(&net.ip()) == family => {
            (net.prefix() > 0 || !net.ip().is_unspecified()).then_some(net)
        }
        _ => {
            errors.push(fault(name, raw.get(), format!("an {family} network as \"ADDRESS/LENGTH\"")));
            None
        }
    }
}

fn addr(fields: &mut Fields, name: &str, family: Family, errors: &mut Vec<NetConfError>) -> Option<IpAddr> {
    let raw = fields.take(name).filter(|raw| raw.get() != "null")?;
    match text(raw).as_deref().map(str::parse::<IpAddr>) {
        Some(Ok(addr)) if Family::of(&addr) == family => (!addr.is_unspecified()).then_some(addr),
        _ => {
            errors.push(fault(name, raw.get(), format!("an {family} address in quotes")));
            None
        }
    }
}

pub(crate) fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

pub(crate) fn quoted(key: &str) -> String {
    format!("{:?}", shorten(key))
}

/// Outside text in a sentence of ours: at most 80 characters of it.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests;
