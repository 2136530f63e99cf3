//! How full the pods' addresses of this node are, as the CNI plugin notes it beside its index of reservations.
//!
//! ```text
//!   /run/flannel/ipam/%2Fvar%2Flib%2Fcni%2Fnetworks%2Fcbr0/stamp ─▶ <time> <inode> <boot> 10.244.1.0/24=12/253 …
//! ```

use std::fs;
use std::path::Path;

pub use backends::local::pool_stamp::INDEXES;
use backends::local::pool_stamp::{self, Stamp};

/// Where the plugin's stores are, usually.
const STORES: &str = "/var/lib/cni/networks";
/// From this percentage on there is a warning.
const WARNING: u64 = 80;
/// Networks that are looked at; a node has one or two.
const MOST: usize = 64;

/// One subnet of a network of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The plugin's name of the network.
    pub network: String,
    /// As text: it is only shown.
    pub subnet: String,
    /// Addresses that are held.
    pub used: u64,
    /// Addresses that there are.
    pub size: u64,
}

impl Pool {
    /// A warning where few or none are left.
    pub fn warning(&self) -> Option<&'static str> {
        match self.is_short() {
            _ if self.used >= self.size => Some("none is left"),
            short => short.then_some("few are left"),
        }
    }

    fn is_short(&self) -> bool {
        u128::from(self.used) * 100 >= u128::from(self.size) * u128::from(WARNING)
    }
}

/// The pools of this node; none before the plugin's first call.
pub fn read(indexes: &Path) -> Vec<Pool> {
    let Ok(entries) = fs::read_dir(indexes) else { return vec![] };
    let mut pools = Vec::new();
    for entry in entries.flatten().take(MOST) {
        let folder = pool_stamp::folder_of(&entry.file_name().to_string_lossy());
        let network = folder.file_name().unwrap_or_default().to_string_lossy();
        // A stamp of a store that is gone is ignored. A process that sees none of the host's stores uses all stamps.
        if !folder.exists() && Path::new(STORES).exists() {
            continue;
        }
        let stamp = fs::read_link(entry.path().join(pool_stamp::NAME));
        let stamp = stamp.ok().and_then(|text| Stamp::parse(&text.to_string_lossy()));
        let parts = stamp.iter().flat_map(|stamp| stamp.usage.parts()).filter(|part| part.size > 0);
        pools.extend(parts.map(|part| Pool {
            network: network.to_string(),
            subnet: part.subnet.to_string(),
            used: part.used,
            size: part.size,
        }));
    }
    pools.sort_by(|a, b| (&a.network, &a.subnet).cmp(&(&b.network, &b.subnet)));
    pools
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_the_plugin_noted_is_read_and_garbage_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        // Both name folders that are there, wherever this runs.
        let stamps = [
            ("%2Fproc%2Fnet", "1.000000000 7 1 10.244.1.0/24=203/253 fc00::/64=3/18446744073709551615"),
            ("%2Fproc%2Fself", "1.0 7 1 10.9.0.0/24=x/253 10.8.0.0/30=1/0 ="),
        ];
        for (name, stamp) in stamps {
            fs::create_dir(folder.path().join(name)).unwrap();
            symlink(stamp, folder.path().join(name).join("stamp")).unwrap();
        }
        fs::write(folder.path().join("file"), "").unwrap();
        let pools = read(folder.path());
        let shown: Vec<_> = pools.iter().map(|p| (&*p.network, &*p.subnet, p.used, p.warning())).collect();
        let few = Some("few are left");
        assert_eq!(shown, [("net", "10.244.1.0/24", 203, few), ("net", "fc00::/64", 3, None)]);
        let all = Pool { used: 5, size: 5, ..pools[0].clone() };
        assert_eq!(all.warning(), Some("none is left"));
        assert_eq!(read(Path::new("/nowhere")), []);
    }
}
