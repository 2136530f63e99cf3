use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One of the two address families. Code loops over [`Family::ALL`] instead of being written twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first as in every file and record.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(addr: &IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of an address in bits: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::V4 => 0,
            Self::V6 => 1,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The subnets of one host: one IPv4 subnet, one IPv6 subnet, or both. The identity of a lease.
///
/// Host bits are always clear and no length is 0. Written and parsed as flannel's etcd key: `10.5.52.0-24`,
/// `10.5.52.0-24&fc00:0:0:1::-64`, and `0.0.0.0-0&fc00:0:0:1::-64` where there is no IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnets {
    v4: Option<Ipv4Network>,
    v6: Option<Ipv6Network>,
}

impl Subnets {
    /// `None` when there is neither, or when a length is 0 (flannel's mark for "no subnet").
    pub fn new(v4: Option<Ipv4Network>, v6: Option<Ipv6Network>) -> Option<Self> {
        let empty = v4.is_none() && v6.is_none();
        if empty || v4.is_some_and(|n| n.prefix() == 0) || v6.is_some_and(|n| n.prefix() == 0) {
            return None;
        }
        let v4 = v4.and_then(|n| Ipv4Network::new(n.network(), n.prefix()).ok());
        let v6 = v6.and_then(|n| Ipv6Network::new(n.network(), n.prefix()).ok());
        Some(Self { v4, v6 })
    }

    /// From at most one network per family; of several the last one counts.
    pub fn of(networks: impl IntoIterator<Item = IpNetwork>) -> Option<Self> {
        let (mut v4, mut v6) = (None, None);
        for network in networks {
            match network {
                IpNetwork::V4(net) => v4 = Some(net),
                IpNetwork::V6(net) => v6 = Some(net),
            }
        }
        Self::new(v4, v6)
    }

    /// The subnet of one family.
    pub fn family(&self, family: Family) -> Option<IpNetwork> {
        match family {
            Family::V4 => self.v4.map(IpNetwork::V4),
            Family::V6 => self.v6.map(IpNetwork::V6),
        }
    }

    /// The subnets there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let all = *self;
        Family::ALL.into_iter().filter_map(move |family| all.family(family))
    }

    /// Whether any address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.iter().any(|mine| other.iter().any(|theirs| overlap(mine, theirs)))
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.v4 {
            Some(net) => write!(f, "{}-{}", net.network(), net.prefix())?,
            None => f.write_str("0.0.0.0-0")?,
        }
        match self.v6 {
            Some(net) => write!(f, "&{}-{}", net.network(), net.prefix()),
            None => Ok(()),
        }
    }
}

/// Why a text is not the key of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Neither `ADDRESS-LENGTH` nor `ADDRESS-LENGTH&ADDRESS-LENGTH`.
    #[error("the key is not ADDRESS-LENGTH or ADDRESS-LENGTH&ADDRESS-LENGTH")]
    Shape,
    /// The same subnet has another, canonical spelling; believing both would make one lease two.
    #[error("the key is spelled unlike flannel's {0}")]
    Spelling(String),
}

impl FromStr for Subnets {
    type Err = KeyError;

    /// Parses flannel's key form, the whole text and only the spelling flannel itself writes: lengths up to /31 and
    /// /127, no host bits.
    fn from_str(key: &str) -> Result<Self, KeyError> {
        let (v4, v6) = match key.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (key, None),
        };
        let v4 = match v4 {
            "0.0.0.0-0" => None,
            text => Some(parse_part::<Ipv4Addr>(text).ok_or(KeyError::Shape)?),
        };
        let v6 = match v6 {
            None => None,
            Some(text) => Some(parse_part::<Ipv6Addr>(text).ok_or(KeyError::Shape)?),
        };
        let v4 = v4.map(|(addr, len)| Ipv4Network::new(addr, len)).transpose();
        let v6 = v6.map(|(addr, len)| Ipv6Network::new(addr, len)).transpose();
        let (Ok(v4), Ok(v6)) = (v4, v6) else { return Err(KeyError::Shape) };
        // flannel's own parser knows neither /32 nor /128.
        if v4.is_some_and(|n| n.prefix() > 31) || v6.is_some_and(|n| n.prefix() > 127) {
            return Err(KeyError::Shape);
        }
        let subnets = Self::new(v4, v6).ok_or(KeyError::Shape)?;
        let spelling = subnets.to_string();
        if spelling == key { Ok(subnets) } else { Err(KeyError::Spelling(spelling)) }
    }
}

impl TryFrom<String> for Subnets {
    type Error = KeyError;

    fn try_from(key: String) -> Result<Self, KeyError> {
        key.parse()
    }
}

impl From<Subnets> for String {
    fn from(subnets: Subnets) -> Self {
        subnets.to_string()
    }
}

fn parse_part<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (addr, len) = text.split_once('-')?;
    Some((addr.parse().ok()?, len.parse().ok()?))
}

/// Whether `inner` lies wholly inside `outer` (equal counts; families never mix).
pub fn contains_net(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.ip())
}

/// Whether two networks share an address. Prefixes nest or are disjoint, so one contains the other or neither.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    contains_net(a, b) || contains_net(b, a)
}

/// First and last address as numbers. Computed in 128 bits for both families, hence no wrap at 255.255.255.255.
pub(crate) fn span(net: IpNetwork) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

pub(crate) fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(u32::from(addr)),
        IpAddr::V6(addr) => u128::from(addr),
    }
}

/// The address of a number; `None` beyond the family's last address.
pub(crate) fn address(family: Family, number: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => u32::try_from(number).ok().map(|n| IpAddr::V4(Ipv4Addr::from(n))),
        Family::V6 => Some(IpAddr::V6(Ipv6Addr::from(number))),
    }
}

/// How many addresses a subnet of this length has. A length of 0 is not a subnet, so 128 bits suffice.
pub(crate) fn step(family: Family, len: u8) -> u128 {
    1 << family.bits().saturating_sub(len).min(127)
}

/// Reads `ADDRESS/LENGTH` and nothing looser: no bare address, no dotted mask. Host bits are kept.
pub fn parse_network(text: &str) -> Option<IpNetwork> {
    let (addr, len) = text.split_once('/')?;
    let digits = !len.is_empty() && len.bytes().all(|b| b.is_ascii_digit());
    IpNetwork::new(addr.parse().ok()?, len.parse().ok().filter(|_| digits)?).ok()
}

/// Clears the host bits.
pub(crate) fn masked(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_spelled_as_flannel_spells_them() {
        for key in [
            "10.5.52.0-24",
            "10.5.52.0-24&fc00:0:0:1::-64",
            "0.0.0.0-0&fc00:0:0:1::-64",
            "255.255.255.128-31",
            "10.0.0.0-30&2001:cafe:42:ff::-127",
        ] {
            let subnets: Subnets = key.parse().unwrap();
            assert_eq!(subnets.to_string(), key);
        }
    }

    #[test]
    fn a_key_that_is_not_exactly_flannels_is_refused() {
        for key in [
            "",
            "10.5.52.0",
            "10.5.52.0/24",
            "x10.5.52.0-24",
            "10.5.52.0-24 ",
            "10.5.52.0-32",
            "10.5.52.0-0",
            "0.0.0.0-0",
            "10.5.52.1-24",
            "10.5.52.0-024",
            "10.5.52.0-+24",
            "10.5.52.0-24&",
            "10.5.52.0-24&10.6.0.0-24",
            "10.5.52.0-24&FC00:0:0:1::-64",
            "10.5.52.0-24&fc00:0:0:1::-128",
            "10.5.52.0-24&fc00:0:0:1:0:0:0:0-64",
            "fc00:0:0:1::-64",
            "10.5.52.0-24&fc00::-64&fc00::-64",
        ] {
            assert!(key.parse::<Subnets>().is_err(), "{key:?} was accepted");
        }
    }

    #[test]
    fn subnets_overlap_when_one_family_does() {
        let key = |text: &str| text.parse::<Subnets>().unwrap();
        assert!(key("10.5.0.0-16").overlaps(&key("10.5.52.0-24")));
        assert!(key("10.5.1.0-24&fc00:0:0:1::-64").overlaps(&key("10.5.2.0-24&fc00:0:0:1::-64")));
        assert!(!key("10.5.1.0-24&fc00:0:0:1::-64").overlaps(&key("10.5.2.0-24&fc00:0:0:2::-64")));
    }

    #[test]
    fn nothing_is_lost_at_the_last_address() {
        let last: IpNetwork = "255.255.255.0/24".parse().unwrap();
        assert_eq!(span(last), (0xffff_ff00, 0xffff_ffff));
        assert_eq!(address(Family::V4, span(last).1 + 1), None);
    }

    proptest! {
        #[test]
        fn any_text_as_a_key_is_accepted_or_refused_without_a_panic(key in "\\PC{0,60}") {
            if let Ok(subnets) = key.parse::<Subnets>() {
                prop_assert_eq!(subnets.to_string(), key);
            }
        }

        #[test]
        fn every_subnet_survives_its_key(a: u32, la in 1u8..=31, b: u128, lb in 1u8..=127) {
            let v4 = Ipv4Network::new(a.into(), la).ok();
            let v6 = Ipv6Network::new(b.into(), lb).ok();
            let subnets = Subnets::new(v4, v6).unwrap();
            prop_assert_eq!(subnets.to_string().parse(), Ok(subnets));
        }
    }
}
