//! How many pod addresses of this node are held, as the CNI plugin records it beside its index of reservations, for
//! whoever watches. Pure.
//!
//! ```text
//!   /run/flannel/ipam/%2Fvar%2Flib%2Fcni%2Fnetworks%2Fcbr0/stamp ──▶ <time> <inode> <boot> 10.244.1.0/24=12/253 …
//! ```

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;

/// Where the plugin keeps its indexes, unless its configuration names another folder (`ipam.indexDir`).
pub const INDEXES: &str = "/run/flannel/ipam";
/// The name of the symbolic link in an index that holds the stamp.
pub const NAME: &str = "stamp";

/// The name of the index over a folder of reservations.
pub fn index_of(folder: &Path) -> String {
    folder.to_string_lossy().replace('%', "%25").replace('/', "%2F")
}

/// The folder of reservations that an index is over.
pub fn folder_of(index: &str) -> PathBuf {
    index.replace("%2F", "/").replace("%25", "%").into()
}

/// What a folder of reservations looked like when its index was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The folder's modification time, since the epoch.
    pub modified: Duration,
    /// The folder's inode.
    pub inode: u64,
    /// When this boot began, by the wall clock, in seconds since the epoch.
    pub boot: u64,
    /// The addresses that are held.
    pub usage: Usage,
}

impl Stamp {
    /// Reads `<seconds>.<nanoseconds> <inode> <boot> <subnet>=<used>/<size> …`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (seconds, nanoseconds) = words.next()?.split_once('.')?;
        let nanoseconds = nanoseconds.parse().ok().filter(|n| *n < 1_000_000_000)?;
        Some(Self {
            modified: Duration::new(seconds.parse().ok()?, nanoseconds),
            inode: words.next()?.parse().ok()?,
            boot: words.next()?.parse().ok()?,
            usage: Usage::parse(words)?,
        })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanoseconds) = (self.modified.as_secs(), self.modified.subsec_nanos());
        write!(f, "{seconds}.{nanoseconds:09} {} {}{}", self.inode, self.boot, self.usage)
    }
}

/// One entry for every subnet of the network's ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage(Vec<Part>);

/// A subnet: how many of its addresses are held, of how many that could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The subnet.
    pub subnet: IpNetwork,
    /// Addresses that are held.
    pub used: u64,
    /// Addresses that there are.
    pub size: u64,
}

impl Usage {
    /// Of these subnets with so many addresses each; what was counted before stays counted.
    pub fn over(self, subnets: impl IntoIterator<Item = (IpNetwork, u64)>) -> Self {
        let used = |subnet| self.0.iter().find(|part| part.subnet == subnet).map_or(0, |part| part.used);
        Self(subnets.into_iter().map(|(subnet, size)| Part { subnet, used: used(subnet), size }).collect())
    }

    /// Whether it counts these subnets.
    pub fn covers(&self, subnets: impl IntoIterator<Item = IpNetwork>) -> bool {
        subnets.into_iter().all(|subnet| self.0.iter().any(|part| part.subnet == subnet))
    }

    /// With these addresses held and no others.
    pub fn recount(mut self, held: impl IntoIterator<Item = IpAddr>) -> Self {
        self.0.iter_mut().for_each(|part| part.used = 0);
        self.taken(held)
    }

    /// With these addresses more.
    pub fn taken(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        ips.into_iter().for_each(|ip| self.change(ip, |used| used.saturating_add(1)));
        self
    }

    /// Without these addresses.
    pub fn freed(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        ips.into_iter().for_each(|ip| self.change(ip, |used| used.saturating_sub(1)));
        self
    }

    fn change(&mut self, ip: IpAddr, step: fn(u64) -> u64) {
        if let Some(part) = self.0.iter_mut().find(|part| part.subnet.contains(ip)) {
            part.used = step(part.used);
        }
    }

    /// The subnets.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
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

    #[test]
    fn a_stamp_reads_back_and_an_index_names_its_folder() {
        let usage = Usage::default().over(nets());
        let stamp = Stamp { modified: Duration::new(7, 8), inode: 9, boot: 10, usage };
        assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
        for bad in ["", "1.0", "1.1000000000 2 3", "1 2 3", "1.0 2 3 "] {
            assert_eq!(Stamp::parse(bad), None, "{bad}");
        }
        for folder in ["/var/lib/cni/networks/cbr0", "/a%2Fb/%"] {
            let index = index_of(Path::new(folder));
            assert!(!index.contains('/'));
            assert_eq!(folder_of(&index), Path::new(folder));
        }
    }
}
