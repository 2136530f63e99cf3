//! Ranges of addresses, and the order in which they are tried. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use crate::contract::json::Object;
use crate::contract::{Code, Failure};

/// Addresses of one subnet that may be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) subnet: IpNetwork,
    /// First and last address, both included.
    first: IpAddr,
    last: IpAddr,
    /// Never handed out.
    pub(crate) gateway: IpAddr,
}

/// Ranges of one family; a container gets one address of every set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

impl Range {
    /// Reads `subnet`, `rangeStart`, `rangeEnd` and `gateway`; none when there is no `subnet`.
    pub(crate) fn parse(from: &Object) -> Result<Option<Self>, Failure> {
        let Some(subnet) = from.network("subnet", "a network as 10.244.1.0/24")? else {
            return Ok(None);
        };
        let subnet = canonical(subnet)?;
        let network = bits(subnet.network());
        let limit =
            |key, default| from.address(key).map(|ip| ip.map_or(default, |ip: IpAddr| ip.to_canonical()));
        // The last address of an IPv4 subnet is its broadcast address.
        let end = bits(subnet.broadcast()) - u128::from(subnet.is_ipv4());
        let range = Self {
            subnet,
            first: limit("rangeStart", address(network + 1, subnet.is_ipv4()))?,
            last: limit("rangeEnd", address(end, subnet.is_ipv4()))?,
            gateway: limit("gateway", address(network + 1, subnet.is_ipv4()))?,
        };
        range.check()?;
        Ok(Some(range))
    }

    fn check(&self) -> Result<(), Failure> {
        for (key, ip) in [("rangeStart", self.first), ("rangeEnd", self.last), ("gateway", self.gateway)] {
            if !self.subnet.contains(ip) {
                return Err(wrong(format!("{key} {ip} is outside of {}", self.subnet)));
            }
        }
        if bits(self.first) > bits(self.last) {
            return Err(wrong(format!("rangeStart {} is after rangeEnd {}", self.first, self.last)));
        }
        Ok(())
    }

    /// Whether it may hand this address out, its gateway apart.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.subnet.is_ipv4() && self.bits().contains(&bits(ip))
    }

    fn bits(&self) -> RangeInclusive<u128> {
        bits(self.first)..=bits(self.last)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4()
            && (self.contains(other.first) || other.contains(self.first))
    }
}

impl RangeSet {
    /// Ranges of one family that do not overlap.
    pub(crate) fn new(ranges: Vec<Range>) -> Result<Self, Failure> {
        let Some(first) = ranges.first() else { return Err(wrong("a range set is empty".into())) };
        for (n, range) in ranges.iter().enumerate() {
            if range.subnet.is_ipv4() != first.subnet.is_ipv4() {
                return Err(wrong(format!("{} and {} are in one range set", first.subnet, range.subnet)));
            }
            if let Some(other) = ranges[..n].iter().find(|other| other.overlaps(range)) {
                return Err(wrong(format!("ranges of {} and {} overlap", other.subnet, range.subnet)));
            }
        }
        Ok(Self(ranges))
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.0.first().is_some_and(|range| range.subnet.is_ipv4())
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|r| r.overlaps(range)))
    }

    /// The range that holds this address.
    pub(crate) fn find(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Every address once, gateways apart: beginning after the one handed out last, round to that one itself.
    pub(crate) fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let begin = last.and_then(|ip| Some((self.0.iter().position(|range| range.contains(ip))?, bits(ip))));
        let mut parts = Vec::with_capacity(self.0.len() + 1);
        match begin {
            None => parts.extend(self.0.iter().map(|range| (range, range.bits()))),
            Some((n, at)) => {
                let (before, rest) = self.0.split_at(n);
                let whole = |range| -> (_, RangeInclusive<u128>) { (range, Range::bits(range)) };
                let range = &rest[0];
                parts.extend(at.checked_add(1).map(|next| (range, next..=bits(range.last))));
                parts.extend(rest[1..].iter().chain(before).map(whole));
                parts.push((range, bits(range.first)..=at));
            }
        }
        parts
            .into_iter()
            .flat_map(|(range, part)| part.map(move |b| (address(b, range.subnet.is_ipv4()), range)))
            .filter(|(ip, range)| *ip != range.gateway)
    }

    /// Its subnets, each with how many addresses it hands out.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (IpNetwork, u64)> {
        self.0.iter().map(|range| {
            let all = bits(range.last) - bits(range.first);
            let gateway = range.contains(range.gateway);
            (range.subnet, u64::try_from(all).unwrap_or(u64::MAX).saturating_add(u64::from(!gateway)))
        })
    }

    /// The subnets for a sentence.
    pub(crate) fn name(&self) -> String {
        self.0.iter().map(|range| range.subnet.to_string()).collect::<Vec<_>>().join(", ")
    }
}

fn canonical(subnet: IpNetwork) -> Result<IpNetwork, Failure> {
    let smallest = if subnet.is_ipv4() { 30 } else { 126 };
    if subnet.prefix() > smallest {
        return Err(wrong(format!("subnet {subnet} is too small to hand out addresses of")));
    }
    if subnet.ip() != subnet.network() {
        let network = subnet.network();
        return Err(wrong(format!("subnet {subnet} has host bits set; its network address is {network}")));
    }
    Ok(subnet)
}

fn wrong(msg: String) -> Failure {
    Failure::new(Code::Config, format!("ipam: {msg}"))
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address of these bits; bits that an IPv4 address has no room for do not occur, since they come from one.
fn address(bits: u128, v4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if v4 => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Result<Range, Failure> {
        Range::parse(&Object::parse("the test", text.as_bytes()).unwrap()).map(Option::unwrap)
    }

    fn set(ranges: &[&str]) -> RangeSet {
        RangeSet::new(ranges.iter().map(|r| range(r).unwrap()).collect()).unwrap()
    }

    fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.after(last.map(|ip| ip.parse().unwrap())).map(|(ip, _)| ip.to_string()).collect()
    }

    #[test]
    fn a_subnet_alone_yields_all_but_network_gateway_and_broadcast() {
        assert_eq!(order(&set(&[r#"{"subnet":"10.1.2.0/29"}"#]), None).len(), 5);
        assert_eq!(order(&set(&[r#"{"subnet":"10.1.2.0/30"}"#]), None), ["10.1.2.2"]);
        assert_eq!(order(&set(&[r#"{"subnet":"fc00::/126"}"#]), None), ["fc00::2", "fc00::3"]);
    }

    #[test]
    fn the_search_begins_after_the_last_address_and_ends_with_it() {
        let set = set(&[
            r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.3","rangeEnd":"10.1.2.5","gateway":"10.1.2.4"}"#,
            r#"{"subnet":"10.1.3.0/24","rangeStart":"10.1.3.8","rangeEnd":"10.1.3.9"}"#,
        ]);
        assert_eq!(order(&set, None), ["10.1.2.3", "10.1.2.5", "10.1.3.8", "10.1.3.9"]);
        assert_eq!(order(&set, Some("10.1.3.8")), ["10.1.3.9", "10.1.2.3", "10.1.2.5", "10.1.3.8"]);
        assert_eq!(order(&set, Some("10.1.3.9")), ["10.1.2.3", "10.1.2.5", "10.1.3.8", "10.1.3.9"]);
        assert_eq!(order(&set, Some("10.9.9.9")).len(), 4, "an address of elsewhere is no beginning");
    }

    #[test]
    fn the_end_of_the_address_space_does_not_overflow() {
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let high = set(&[r#"{"subnet":"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"}"#]);
        assert_eq!(order(&high, Some(last)).last().unwrap(), last);
        let all = set(&[r#"{"subnet":"0.0.0.0/0"}"#]);
        assert_eq!(all.after(None).next().unwrap().0.to_string(), "0.0.0.2");
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for bad in [
            r#"{"subnet":"10.1.2.1/24"}"#,
            r#"{"subnet":"10.1.2.0/31"}"#,
            r#"{"subnet":"10.1.2.0"}"#,
            r#"{"subnet":"fc00::/127"}"#,
            r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.3.1"}"#,
            r#"{"subnet":"10.1.2.0/24","rangeEnd":"fc00::1"}"#,
            r#"{"subnet":"10.1.2.0/24","rangeStart":"10.1.2.9","rangeEnd":"10.1.2.8"}"#,
            r#"{"subnet":"10.1.2.0/24","gateway":"x"}"#,
            r#"{"subnet":"10.1.2.0/24","gateway":"10.1.3.1"}"#,
            r#"{"subnet":"10.1.2.0/24","gateway":"fc00::1"}"#,
        ] {
            assert_eq!(range(bad).unwrap_err().code, Code::Config, "{bad}");
        }
        let four = range(r#"{"subnet":"10.1.2.0/24"}"#).unwrap();
        let six = range(r#"{"subnet":"fc00::/64"}"#).unwrap();
        assert!(RangeSet::new(vec![four.clone(), six]).is_err());
        assert!(RangeSet::new(vec![four.clone(), four]).is_err());
        assert!(RangeSet::new(vec![]).is_err());
    }
}
