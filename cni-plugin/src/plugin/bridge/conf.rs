//! The configuration of the bridge plugin.

use std::time::Duration;

use backends::netlink::link::PortMode;
use backends::{IfName, Mac};

use super::removal::Removal;
use crate::contract::json::{Object, wrong};
use crate::contract::{Call, CniArgs, Code, Dns, Failure};
use crate::plugin::ipam::Source;

/// How containers of a network are joined on this host.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) name: IfName,
    /// The bridge has the subnets' gateway addresses.
    pub(crate) gateway: bool,
    /// Containers get a default route through them.
    pub(crate) default_route: bool,
    /// A wrong address of the bridge is replaced.
    pub(crate) force_address: bool,
    /// What leaves the network has the host's address.
    pub(crate) masquerade: bool,
    pub(crate) port: PortMode,
    pub(crate) promiscuous: bool,
    /// What a container sends with another Ethernet address than its own is lost.
    pub(crate) spoof_check: bool,
    /// An IPv6 address that another host has is found out, and refused.
    pub(crate) detect_duplicates: bool,
    /// The container's interface stays down; another program sets it up later.
    pub(crate) stay_down: bool,
    /// In bytes; 0 leaves the kernel's default.
    pub(crate) mtu: u32,
    /// Asked for the container's interface.
    pub(crate) mac: Option<Mac>,
    /// Replaces the DNS settings of address management.
    pub(crate) dns: Dns,
    pub(crate) source: Source,
}

/// A port is up within microseconds; the reference plugin gives up after 2.55 s.
pub(crate) const PORT_UP_WITHIN: Duration = Duration::from_secs(3);

/// The bridge's name when none is given.
const DEFAULT_NAME: &str = "cni0";

impl Bridge {
    /// Reads the configuration of a call.
    pub(crate) fn read(call: &Call) -> Result<Self, Failure> {
        let conf = &call.conf;
        refuse_unsupported(conf)?;
        Removal::read(conf)?;
        let flag = |key| Ok::<_, Failure>(conf.flag(key)?.unwrap_or(false));
        let default_route = flag("isDefaultGateway")?;
        let bridge = Self {
            name: name(conf)?,
            gateway: flag("isGateway")? || default_route,
            default_route,
            force_address: flag("forceAddress")?,
            masquerade: flag("ipMasq")?,
            port: PortMode { hairpin: flag("hairpinMode")?, isolated: flag("portIsolation")? },
            promiscuous: flag("promiscMode")?,
            spoof_check: flag("macspoofchk")?,
            detect_duplicates: flag("enabledad")?,
            stay_down: flag("disableContainerInterface")?,
            mtu: conf.number("mtu")?.unwrap_or(0),
            mac: mac(call, conf)?,
            dns: Dns::parse(conf.object("dns")?)?,
            source: Source::read(call)?,
        };
        bridge.check()?;
        Ok(bridge)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.port.hairpin && self.promiscuous {
            return Err(Failure::new(Code::Config, "hairpinMode and promiscMode exclude each other"));
        }
        if self.stay_down && !matches!(self.source, Source::None) {
            let msg = "disableContainerInterface is for a network without \"ipam\"";
            return Err(Failure::new(Code::Config, msg).details("an interface that is down has no routes"));
        }
        Ok(())
    }
}

/// The name of the bridge that a configuration is about.
pub(super) fn name(conf: &Object) -> Result<IfName, Failure> {
    let named = conf.parsed("bridge", "an interface name")?;
    named.map_or_else(|| DEFAULT_NAME.parse(), Ok).map_err(|_| wrong("bridge", "an interface name"))
}

/// What would change what the network means is refused, never ignored.
fn refuse_unsupported(conf: &Object) -> Result<(), Failure> {
    let refuse = |key: &str, why: &str| {
        Err(Failure::new(Code::Unsupported, format!("{key:?} is not supported by this plugin")).details(why))
    };
    for key in ["vlan", "vlanTrunk"] {
        let asked = match key {
            "vlan" => conf.number(key)?.unwrap_or(0) != 0,
            _ => !conf.list(key)?.is_empty(),
        };
        if asked {
            return refuse(key, "our bridges do not filter by VLAN; the reference bridge plugin has it");
        }
    }
    match conf.text("ipMasqBackend")? {
        None | Some("iptables" | "nftables") => Ok(()),
        Some(_) => Err(wrong("ipMasqBackend", "\"iptables\" or \"nftables\"")),
    }
}

/// The runtime's word counts more than the metadata's, and that more than the variable's.
fn mac(call: &Call, conf: &Object) -> Result<Option<Mac>, Failure> {
    let metadata = conf.object("args")?.map_or(Ok(None), |args| args.object("cni"))?;
    for place in [conf.object("runtimeConfig")?, metadata].into_iter().flatten() {
        if let Some(mac) = place.parsed("mac", "an Ethernet address")? {
            return Ok(Some(mac));
        }
    }
    Ok(CniArgs::parse(&call.args)?.mac)
}
