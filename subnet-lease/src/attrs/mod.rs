pub(crate) mod vxlan;

use serde_json::value::RawValue;

use crate::format::json::Fields;
use crate::model::netconf::{NetConfError, boolean, fault, integer, mtu, quoted, text};

/// The `Backend` object of a net-conf, as meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendConfig {
    /// Tunnels over UDP.
    Vxlan {
        /// VXLAN network identifier, 24 bits.
        vni: u32,
        /// UDP port; 0 = the kernel's default, 8472.
        port: u16,
        /// MTU of the underlay in bytes, instead of the external interface's.
        mtu: Option<u32>,
        /// Group-based policy extension.
        gbp: bool,
        /// Whether the device learns addresses from traffic.
        learning: bool,
        /// Plain routes to peers on a connected network.
        direct_routing: bool,
    },
    /// Plain routes; all hosts on one network.
    HostGw,
    /// A lease and nothing more.
    Alloc,
}

const VNI_MOST: u64 = (1 << 24) - 1;
const WAY_OUT: &str = "write {\"Type\": \"vxlan\"}, \"host-gw\" or \"alloc\"";

impl BackendConfig {
    /// The `BackendType` this backend's leases carry; empty for `alloc`, as flannel writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vxlan { .. } => "vxlan",
            Self::HostGw => "host-gw",
            Self::Alloc => "",
        }
    }

    /// What `Backend.MTU` says, for backends that have the key.
    pub(crate) fn mtu(&self) -> Option<u32> {
        if let Self::Vxlan { mtu, .. } = self { *mtu } else { None }
    }

    pub(crate) fn set_mtu(&mut self, to: Option<u32>) {
        if let Self::Vxlan { mtu, .. } = self {
            *mtu = to;
        }
    }

    /// The least that pods need, and the tunnel's head (bytes).
    pub(crate) fn least_mtu(&self, six: bool) -> (u32, u32) {
        let tunnel = matches!(self, Self::Vxlan { .. });
        let head = match six {
            _ if !tunnel => 0,
            false => 50,
            true => 70,
        };
        (if six { SMALLEST_V6 } else { SMALLEST_V4 }, head)
    }

    /// The backend, and the keys that mean nothing to it.
    pub(crate) fn read(
        raw: Option<&RawValue>,
        errors: &mut Vec<NetConfError>,
    ) -> (Option<Self>, Vec<String>) {
        let Some(raw) = raw else {
            let allowed = format!("flannel takes that for \"udp\", which is not supported yet; {WAY_OUT}");
            errors.push(fault("Backend", "missing", allowed));
            return (None, Vec::new());
        };
        let Ok(mut fields) = serde_json::from_str::<Fields>(raw.get()) else {
            errors.push(fault("Backend", raw.get(), format!("must be a JSON object; {WAY_OUT}")));
            return (None, Vec::new());
        };
        let written = fields.take("Type");
        let kind = written.and_then(text).map(|kind| kind.to_lowercase());
        let backend = match kind.as_deref() {
            Some("vxlan") => Some(Self::read_vxlan(&mut fields, errors)),
            Some("host-gw") => Some(Self::HostGw),
            Some("alloc") => Some(Self::Alloc),
            other => {
                errors.push(fault("Backend.Type", written.map_or("missing", RawValue::get), not_ours(other)));
                return (None, Vec::new());
            }
        };
        (backend, fields.rest().into_iter().map(|(key, _)| format!("Backend.{}", quoted(&key))).collect())
    }

    fn read_vxlan(fields: &mut Fields, errors: &mut Vec<NetConfError>) -> Self {
        let mut number = |name, most| integer(fields, "Backend.", name, most, errors);
        let vni = number("VNI", VNI_MOST).and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
        let port = number("Port", u64::from(u16::MAX)).and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
        let mtu = mtu(fields, "Backend.", errors);
        let mut flag = |name| boolean(fields, "Backend.", name, errors).unwrap_or(false);
        let (gbp, learning) = (flag("GBP"), flag("Learning"));
        Self::Vxlan { vni, port, mtu, gbp, learning, direct_routing: flag("DirectRouting") }
    }
}

/// What every IPv4 host must accept in one packet, in bytes (RFC 791).
const SMALLEST_V4: u32 = 576;
/// What IPv6 wants of every link, in bytes (RFC 8200).
const SMALLEST_V6: u32 = 1280;

fn not_ours(kind: Option<&str>) -> String {
    match kind {
        Some("udp" | "wireguard" | "ipip" | "ipsec" | "extension" | "tencent-vpc") => {
            format!("this backend is not supported yet; {WAY_OUT}")
        }
        Some("aws-vpc" | "gce" | "ali-vpc") => format!("flannel removed this backend; {WAY_OUT}"),
        _ => WAY_OUT.to_string(),
    }
}
