use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::net::{Family, Subnets, address, number, parse_network};
use crate::model::netconf::{NetworkConfig, shorten};

/// No subnet.env is larger (bytes); flannel's have about 200.
const LARGEST: u64 = 16 << 10;

/// The file that names the lease to the CNI plugin and to the next start of the daemon: `/run/flannel/subnet.env`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubnetEnv {
    networks: [Option<IpNetwork>; 2],
    subnets: [Option<IpNetwork>; 2],
    /// MTU for pods in bytes.
    pub mtu: u32,
    /// Whether the daemon masquerades; the CNI plugin then does not.
    pub ipmasq: bool,
}

/// Why a subnet.env could not be read.
#[derive(Debug, Error)]
pub enum SubnetEnvError {
    /// The file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line has a value that it cannot have.
    #[error("{key} is {value:?}: {allowed}")]
    Line {
        /// The key.
        key: &'static str,
        /// The value, shortened.
        value: String,
        /// What may stand there.
        allowed: &'static str,
    },
    /// A line is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Nobody writes so much.
    #[error("larger than 16 KiB")]
    Size,
}

impl SubnetEnv {
    /// What to say about a lease: each enabled family's network, and the first host address of our subnet.
    pub fn new(network: &NetworkConfig, leased: &Subnets, mtu: u32, ipmasq: bool) -> Self {
        let networks = Family::ALL.map(|family| network.network(family).map(|pool| pool.network));
        let subnets = Family::ALL.map(|family| {
            let subnet = leased.family(family).filter(|_| network.network(family).is_some())?;
            first_host(subnet)
        });
        Self { networks, subnets, mtu, ipmasq }
    }

    /// The whole network of one family.
    pub fn network(&self, family: Family) -> Option<IpNetwork> {
        self.networks[family.index()]
    }

    /// The address of this host's bridge (`.1`) with the length of its subnet.
    pub fn subnet(&self, family: Family) -> Option<IpNetwork> {
        self.subnets[family.index()]
    }

    /// What was leased: the subnets without their host bits.
    pub fn leased(&self) -> Option<Subnets> {
        Subnets::of(self.subnets.into_iter().flatten())
    }

    /// Reads and parses a file.
    pub fn read(path: &Path) -> Result<Self, SubnetEnvError> {
        let failed = |source| SubnetEnvError::Io { path: path.into(), source };
        let mut text = String::with_capacity(512);
        File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text)).map_err(failed)?;
        if text.len() as u64 > LARGEST { Err(SubnetEnvError::Size) } else { Self::parse(&text) }
    }

    /// Parses leniently, as [`SubnetEnvLines`]. A list of several networks for one key, as old flannels wrote, is an
    /// error, and so is a family with one of its two lines.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        let SubnetEnvLines { networks, subnets, mtu, ipmasq } = SubnetEnvLines::parse(text)?;
        let mut one = [None; 2];
        for (family, all) in networks.iter().enumerate() {
            match all.as_slice() {
                [] => {}
                [network] => one[family] = Some(*network),
                [_, ..] => {
                    let list = all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                    let allowed = "one network; lists ended with the old multi-network flannel";
                    return Err(line(NETWORK[family], &list, allowed));
                }
            }
            match (one[family], subnets[family]) {
                (Some(_), None) => return Err(SubnetEnvError::Missing(SUBNET[family])),
                (None, Some(_)) => return Err(SubnetEnvError::Missing(NETWORK[family])),
                _ => {}
            }
        }
        if one == [None; 2] {
            return Err(SubnetEnvError::Missing(NETWORK[0]));
        }
        let mtu = mtu.ok_or(SubnetEnvError::Missing(MTU))?;
        Ok(Self { networks: one, subnets, mtu, ipmasq: ipmasq.ok_or(SubnetEnvError::Missing(IPMASQ))? })
    }

    /// The file's text: flannel's lines in flannel's order.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut push = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key}={value}");
        };
        for family in Family::ALL.map(Family::index) {
            if let (Some(network), Some(subnet)) = (self.networks[family], self.subnets[family]) {
                push(NETWORK[family], &network);
                push(SUBNET[family], &subnet);
            }
        }
        push(MTU, &self.mtu);
        push(IPMASQ, &self.ipmasq);
        text
    }
}

impl TryFrom<String> for SubnetEnv {
    type Error = SubnetEnvError;

    fn try_from(text: String) -> Result<Self, SubnetEnvError> {
        Self::parse(&text)
    }
}

impl From<SubnetEnv> for String {
    fn from(env: SubnetEnv) -> Self {
        env.text()
    }
}

/// The lines of a subnet.env as they are, complete or not: for a reader that takes also what older flannels wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetEnvLines {
    /// The networks of IPv4 and of IPv6, none twice. The multi-network flannels wrote lists.
    pub networks: [Vec<IpNetwork>; 2],
    /// The subnet of IPv4 and of IPv6: the address of the bridge with the subnet's length.
    pub subnets: [Option<IpNetwork>; 2],
    /// MTU for pods in bytes.
    pub mtu: Option<u32>,
    /// Whether the daemon masquerades.
    pub ipmasq: Option<bool>,
}

impl SubnetEnvLines {
    /// Reads the lines in any order. Unknown keys and comments are skipped, quotes and `export` are allowed, the last of
    /// several lines counts.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        let mut lines = Self::default();
        for (key, value) in text.lines().filter_map(assignment) {
            match key {
                "FLANNEL_NETWORK" => lines.networks[0] = list(NETWORK[0], value, Family::V4)?,
                "FLANNEL_SUBNET" => lines.subnets[0] = Some(cidr(SUBNET[0], value, Family::V4)?),
                "FLANNEL_IPV6_NETWORK" => lines.networks[1] = list(NETWORK[1], value, Family::V6)?,
                "FLANNEL_IPV6_SUBNET" => lines.subnets[1] = Some(cidr(SUBNET[1], value, Family::V6)?),
                "FLANNEL_MTU" => {
                    lines.mtu = Some(value.parse().map_err(|_| line(MTU, value, "a number of bytes"))?)
                }
                "FLANNEL_IPMASQ" => lines.ipmasq = Some(value == "true"),
                _ => {}
            }
        }
        Ok(lines)
    }
}

const NETWORK: [&str; 2] = ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"];
const SUBNET: [&str; 2] = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"];
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

fn first_host(subnet: IpNetwork) -> Option<IpNetwork> {
    let first = address(Family::of(&subnet.ip()), number(subnet.network()) + 1)?;
    IpNetwork::new(first, subnet.prefix()).ok()
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let (key, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
    Some((key.trim(), value.trim().trim_matches(['"', '\''])))
}

fn list(key: &'static str, value: &str, family: Family) -> Result<Vec<IpNetwork>, SubnetEnvError> {
    let mut all = Vec::new();
    for part in value.split(',') {
        let network = cidr(key, part.trim(), family)?;
        if !all.contains(&network) {
            all.push(network);
        }
    }
    Ok(all)
}

fn cidr(key: &'static str, value: &str, family: Family) -> Result<IpNetwork, SubnetEnvError> {
    let network = parse_network(value).filter(|net| Family::of(&net.ip()) == family && net.prefix() > 0);
    network.ok_or_else(|| match family {
        Family::V4 => line(key, value, "an IPv4 ADDRESS/LENGTH"),
        Family::V6 => line(key, value, "an IPv6 ADDRESS/LENGTH"),
    })
}

fn line(key: &'static str, value: &str, allowed: &'static str) -> SubnetEnvError {
    SubnetEnvError::Line { key, value: shorten(value), allowed }
}

#[cfg(test)]
mod tests;
