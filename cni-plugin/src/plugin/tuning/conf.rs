//! The configuration of the tuning plugin.

use std::path::PathBuf;

use backends::Mac;

use super::allowed;
use crate::contract::json::{Json, Object, mistyped};
use crate::contract::{Call, CniArgs, Code, Failure};

/// What is to be set in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tuning {
    pub(super) folder: PathBuf,
    /// Files under `/proc/sys/net` and their values.
    pub(super) sysctls: Vec<(String, String)>,
    pub(super) mac: Option<Mac>,
    pub(super) promiscuous: bool,
    /// Bytes; 0 leaves it.
    pub(super) mtu: u32,
    pub(super) all_multicast: Option<bool>,
    /// Packets.
    pub(super) queue: Option<u32>,
}

const FOLDER: &str = "/run/cni/tuning";

impl Tuning {
    /// `args.cni` counts more than the runtime, that more than `CNI_ARGS`, and that more than the configuration.
    pub(super) fn read(call: &Call) -> Result<Self, Failure> {
        let conf = &call.conf;
        let args = conf.object("args")?.map_or(Ok(None), |args| args.object("cni"))?;
        let runtime = conf.object("runtimeConfig")?;
        let places = [Some(conf), args].into_iter().flatten();
        let mac = |from: &Object| from.parsed("mac", "an Ethernet address");
        let mut read = Self {
            folder: conf.text("dataDir")?.unwrap_or(FOLDER).into(),
            sysctls: Vec::new(),
            mac: mac(conf)?,
            promiscuous: false,
            mtu: 0,
            all_multicast: None,
            queue: None,
        };
        read.mac = CniArgs::parse(&call.args)?.mac.or(read.mac);
        read.mac = runtime.map_or(Ok(None), mac)?.or(read.mac);
        read.mac = args.map_or(Ok(None), mac)?.or(read.mac);
        for place in places {
            for (key, value) in sysctls(place)? {
                read.sysctls.retain(|(other, _)| *other != key);
                read.sysctls.push((key, value));
            }
            read.promiscuous = place.flag("promisc")?.unwrap_or(read.promiscuous);
            read.mtu = place.number("mtu")?.unwrap_or(read.mtu);
            read.all_multicast = place.flag("allmulti")?.or(read.all_multicast);
            read.queue = place.number("txQLen")?.or(read.queue);
        }
        Ok(read)
    }

    /// Whether something of the link is to be changed.
    pub(super) fn changes_link(&self) -> bool {
        self.mac.is_some()
            || self.promiscuous
            || self.mtu != 0
            || self.all_multicast.is_some()
            || self.queue.is_some()
    }

    /// The sysctls as files for an interface; all of them are of the network, and allowed by the host's list.
    pub(super) fn files(&self, ifname: &str) -> Result<Vec<(String, &str)>, Failure> {
        let names: Vec<_> = self.sysctls.iter().map(|(key, _)| key.as_str()).collect();
        allowed::all(&names)?;
        self.sysctls.iter().map(|(key, value)| Ok((file(key, ifname)?, value.as_str()))).collect()
    }
}

/// The sysctls in the order they are given; each only once.
fn sysctls(from: &Object) -> Result<Vec<(String, String)>, Failure> {
    let Some(object) = from.object("sysctl")? else { return Ok(vec![]) };
    let mut all: Vec<(String, String)> = Vec::new();
    for (key, value) in object.entries() {
        let Json::Text(value) = value else {
            return Err(mistyped(key, "a text, as all values of \"sysctl\""));
        };
        if all.iter().any(|(other, _)| other == key) {
            return Err(Failure::new(Code::Config, format!("{key:?} is in \"sysctl\" twice")));
        }
        all.push((key.to_owned(), value.clone()));
    }
    Ok(all)
}

/// The file of a sysctl: dots are slashes, and the first `IFNAME` is the interface.
fn file(key: &str, ifname: &str) -> Result<String, Failure> {
    let path = key.replace('.', "/").replacen("IFNAME", ifname, 1);
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    // Dots became slashes, so a part of two dots comes from the interface alone, which cannot be named so.
    if parts.len() < 2 || parts[0] != "net" || parts.contains(&"..") || path.contains('\0') {
        return Err(Failure::new(Code::Config, format!("{key:?} is no sysctl of the network")));
    }
    Ok(format!("/proc/sys/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_is_a_file_of_the_network_and_of_nothing_else() {
        let file = |key| file(key, "eth0.100").ok();
        assert_eq!(
            file("net.ipv4.conf.IFNAME.arp_filter").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.100/arp_filter")
        );
        assert_eq!(file("net/core/somaxconn").as_deref(), Some("/proc/sys/net/core/somaxconn"));
        for bad in ["kernel.hostname", "net", "", "net.", "nets.core.somaxconn", "vm.net.x"] {
            assert_eq!(file(bad), None, "{bad}");
        }
        // Each dot is a slash: nothing climbs.
        assert_eq!(file("net.../../kernel/hostname").as_deref(), Some("/proc/sys/net/kernel/hostname"));
    }
}
