//! How full the ranges of a network are, for whoever watches: `range=used/size` for each. Pure.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// One entry for every subnet of the network's ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Usage(Vec<Part>);

/// A subnet: how many of its addresses are held, of how many that could be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    subnet: IpNetwork,
    used: u64,
    size: u64,
}

impl Usage {
    /// Of these subnets with so many addresses each; what was counted before stays counted.
    pub(crate) fn over(self, subnets: impl IntoIterator<Item = (IpNetwork, u64)>) -> Self {
        let used = |subnet| self.0.iter().find(|part| part.subnet == subnet).map_or(0, |part| part.used);
        Self(subnets.into_iter().map(|(subnet, size)| Part { subnet, used: used(subnet), size }).collect())
    }

    /// Whether it tells of these subnets.
    pub(crate) fn covers(&self, subnets: impl IntoIterator<Item = IpNetwork>) -> bool {
        subnets.into_iter().all(|subnet| self.0.iter().any(|part| part.subnet == subnet))
    }

    /// With these addresses held and no others.
    pub(crate) fn recount(mut self, held: impl IntoIterator<Item = IpAddr>) -> Self {
        self.0.iter_mut().for_each(|part| part.used = 0);
        self.taken(held)
    }

    /// With these addresses more.
    pub(crate) fn taken(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        ips.into_iter().for_each(|ip| self.change(ip, |used| used.saturating_add(1)));
        self
    }

    /// Without these addresses.
    pub(crate) fn freed(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        ips.into_iter().for_each(|ip| self.change(ip, |used| used.saturating_sub(1)));
        self
    }

    fn change(&mut self, ip: IpAddr, step: fn(u64) -> u64) {
        if let Some(part) = self.0.iter_mut().find(|part| part.subnet.contains(ip)) {
            part.used = step(part.used);
        }
    }

    pub(crate) fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let part = |word: &str| {
            let (subnet, count) = word.split_once('=')?;
            let (used, size) = count.split_once('/')?;
            Some(Part { subnet: subnet.parse().ok()?, used: used.parse().ok()?, size: size.parse().ok()? })
        };
        words.map(part).collect::<Option<_>>().map(Self)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Part { subnet, used, size }| write!(f, " {subnet}={used}/{size}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets() -> [(IpNetwork, u64); 2] {
        [("10.1.2.0/24".parse().unwrap(), 253), ("fc00::/64".parse().unwrap(), u64::MAX)]
    }

    #[test]
    fn what_is_taken_and_freed_counts_in_its_subnet_and_reads_back() {
        let ips = ["10.1.2.3", "10.1.2.4", "fc00::3", "10.9.9.9"].map(|ip| ip.parse().unwrap());
        let usage = Usage::default().over(nets()).taken(ips).freed([ips[0]]);
        let text = usage.to_string();
        assert_eq!(text, format!(" 10.1.2.0/24=1/253 fc00::/64=1/{}", u64::MAX));
        assert_eq!(Usage::parse(text.split(' ').skip(1)), Some(usage.clone()));
        assert_eq!(usage.clone().over(nets()), usage, "the same ranges keep their count");
        assert_eq!(usage.recount([]).to_string(), format!(" 10.1.2.0/24=0/253 fc00::/64=0/{}", u64::MAX));
    }

    #[test]
    fn garbage_is_no_usage() {
        for bad in ["x", "10.1.2.0/24", "10.1.2.0/24=1", "10.1.2.0/24=-1/2", ""] {
            assert_eq!(Usage::parse([bad].into_iter()), None, "{bad}");
        }
        assert_eq!(Usage::parse(std::iter::empty()), Some(Usage::default()));
    }
}
