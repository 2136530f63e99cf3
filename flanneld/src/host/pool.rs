//! How full the pods' addresses of this node are, as the CNI plugin notes it beside its index of reservations.
//!
//! ```text
//!   /run/flannel/ipam/%2Fvar%2Flib%2Fcni%2Fnetworks%2Fcbr0/stamp ─▶ <time> <inode> <boot> 10.244.1.0/24=12/253 …
//! ```

use std::fs;
use std::path::Path;

/// Where the plugin keeps its indexes, unless its configuration says otherwise (`ipam.indexDir`).
pub const INDEXES: &str = "/run/flannel/ipam";
/// Where the plugin's stores are, usually.
const STORES: &str = "/var/lib/cni/networks";
/// From so many hundredths on it is time to do something.
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
    /// Whether few are left.
    pub fn is_short(&self) -> bool {
        u128::from(self.used) * 100 >= u128::from(self.size) * u128::from(WARNING)
    }
}

/// The pools of this node; none before the plugin's first call.
pub fn read(indexes: &Path) -> Vec<Pool> {
    let Ok(entries) = fs::read_dir(indexes) else { return vec![] };
    let mut pools = Vec::new();
    for entry in entries.flatten().take(MOST) {
        let name = entry.file_name().to_string_lossy().replace("%2F", "/").replace("%25", "%");
        let network = name.rsplit('/').next().unwrap_or_default();
        // Of a store that is gone. Whoever sees none of the host's stores believes them all.
        if !Path::new(&name).exists() && Path::new(STORES).exists() {
            continue;
        }
        let Ok(stamp) = fs::read_link(entry.path().join("stamp")) else { continue };
        pools.extend(stamp.to_string_lossy().split(' ').skip(3).filter_map(|part| parse(network, part)));
    }
    pools.sort_by(|a, b| (&a.network, &a.subnet).cmp(&(&b.network, &b.subnet)));
    pools
}

fn parse(network: &str, part: &str) -> Option<Pool> {
    let (subnet, count) = part.split_once('=')?;
    let (used, size) = count.split_once('/')?;
    Some(Pool {
        network: network.to_owned(),
        subnet: subnet.to_owned(),
        used: used.parse().ok()?,
        size: size.parse().ok().filter(|size| *size > 0)?,
    })
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
        let shown: Vec<_> = pools.iter().map(|p| (&*p.network, &*p.subnet, p.used, p.is_short())).collect();
        assert_eq!(shown, [("net", "10.244.1.0/24", 203, true), ("net", "fc00::/64", 3, false)]);
        assert_eq!(read(Path::new("/nowhere")), []);
    }
}
