//! The configuration of the bridge plugin.

use std::time::Duration;

use backends::{IfName, Mac};

use crate::cni::{Call, CniArgs, Code, Dns, Failure};
use crate::ipam::Ipam;
use crate::json::{Object, wrong};

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
    pub(crate) hairpin: bool,
    pub(crate) promiscuous: bool,
    /// In bytes; 0 leaves the kernel's default.
    pub(crate) mtu: u32,
    /// Asked for the container's interface.
    pub(crate) mac: Option<Mac>,
    /// Replaces what address management says.
    pub(crate) dns: Dns,
    /// None makes a network of frames alone.
    pub(crate) ipam: Option<Ipam>,
}

/// A port is up within microseconds; the reference plugin gives up after 2.55 s.
pub(crate) const PORT_UP_WITHIN: Duration = Duration::from_secs(3);

impl Bridge {
    /// Reads a configuration: the call's own, or the one made for a delegate.
    pub(crate) fn read(call: &Call, conf: &Object) -> Result<Self, Failure> {
        refuse_unsupported(conf)?;
        let flag = |key| Ok::<_, Failure>(conf.flag(key)?.unwrap_or(false));
        let default_route = flag("isDefaultGateway")?;
        let bridge = Self {
            name: conf
                .parsed("bridge", "an interface name")?
                .map_or_else(|| "cni0".parse(), Ok)
                .map_err(|_| wrong("bridge", "an interface name"))?,
            gateway: flag("isGateway")? || default_route,
            default_route,
            force_address: flag("forceAddress")?,
            hairpin: flag("hairpinMode")?,
            promiscuous: flag("promiscMode")?,
            mtu: conf.number("mtu")?.unwrap_or(0),
            mac: mac(call, conf)?,
            dns: Dns::parse(conf.object("dns")?)?,
            ipam: Ipam::read(call, conf)?,
        };
        if bridge.hairpin && bridge.promiscuous {
            return Err(Failure::new(Code::Config, "hairpinMode and promiscMode exclude each other"));
        }
        Ok(bridge)
    }
}

/// What would change what the network means is refused, never ignored.
fn refuse_unsupported(conf: &Object) -> Result<(), Failure> {
    let refuse = |key: &str, why: &str| {
        Err(Failure::new(Code::Unsupported, format!("{key:?} is not supported yet by this plugin"))
            .details(why))
    };
    if conf.flag("ipMasq")?.unwrap_or(false) {
        return refuse("ipMasq", "start the network daemon with --ip-masq, or say \"ipMasq\": false");
    }
    for key in ["macspoofchk", "enabledad", "portIsolation", "disableContainerInterface"] {
        if conf.flag(key)?.unwrap_or(false) {
            return refuse(key, "");
        }
    }
    if conf.number("vlan")?.unwrap_or(0) != 0 || !conf.list("vlanTrunk")?.is_empty() {
        return refuse("vlan", "neither is vlanTrunk");
    }
    Ok(())
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
