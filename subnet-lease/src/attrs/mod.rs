//! Kinds of backends, as far as the cluster's configuration and the leases know them: a file per kind, a row in the table.
//!
//! ```text
//!   net-conf  "Backend": {"Type": NAME, …}  ──▶ BackendConfig     settings of the kind
//!   record    "BackendType": RECORD,        ──▶ Kind::data        what a wish needs of a peer, per family
//!             "BackendData", "BackendV6Data"
//! ```
//!
//! Everything else asks the kind: admission its data and the id that may exist only once, net-conf its overhead.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::format::json::{Fields, RawJson};
use crate::model::lease::BackendAttrs;
use crate::model::net::Family;
use crate::model::netconf::{NetConfError, fault, quoted, text};

mod alloc;
mod host_gw;
mod vxlan;

pub use alloc::AllocConfig;
pub use host_gw::HostGwConfig;
pub use vxlan::{VtepMac, VxlanConfig, VxlanData};

/// A kind of backend; the value holds its settings from the net-conf.
pub(crate) trait Kind: Sized + Clone + Debug + Eq {
    /// `Backend.Type` in a net-conf.
    const NAME: &'static str;
    /// `BackendType` in records.
    const RECORD: &'static str = Self::NAME;
    /// What else records have for it.
    const ALIASES: &'static [&'static str] = &[];
    /// What the id that may exist only once is called in a sentence.
    const ID: &'static str = "id";

    /// What is kept of a peer for one family. Ten thousand peers have it twice: it should be small.
    type Data: Clone + Debug + Eq + Serialize + for<'de> Deserialize<'de>;

    /// The settings in the `Backend` object of a net-conf. What is wrong is added to `errors`.
    fn read(fields: &mut Fields, errors: &mut Vec<NetConfError>) -> Self;

    /// What a peer publishes for one family. `None` where it does not serve the family; an error says what is wrong.
    fn data(&self, json: Option<&RawJson>) -> Result<Option<Self::Data>, String>;

    /// The data as a record has it.
    fn to_json(&self, data: &Self::Data) -> Option<RawJson> {
        let _ = data;
        None
    }

    /// The id in the data that only one host may have.
    fn id(data: &Self::Data) -> Option<&[u8]> {
        let _ = data;
        None
    }

    /// Bytes that the backend adds to a packet sent to an address of this family.
    fn overhead(&self, family: Family) -> u32 {
        let _ = family;
        0
    }

    /// `Backend.MTU`, for kinds that have the key.
    fn mtu(&self) -> Option<u32> {
        None
    }

    /// Sets what `mtu` returns, for kinds that have the key.
    fn set_mtu(&mut self, mtu: Option<u32>) {
        let _ = mtu;
    }
}

/// The data of kinds that publish none: such a peer serves every family it has an address for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoData;

/// Defines the enums over all kinds, and the calls that go to the one at hand.
macro_rules! kinds {
    ($($kind:ident($config:ty, $data:ty),)*) => {
        /// The `Backend` object of a net-conf, as meant.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the types say it")]
        pub enum BackendConfig {
            $($kind($config),)*
        }

        /// What is kept of a peer for one family.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "the types say it")]
        pub enum PeerData {
            $($kind($data),)*
        }

        /// `Backend.Type` of every kind.
        const NAMES: &[&str] = &[$(<$config as Kind>::NAME),*];

        impl BackendConfig {
            fn named(kind: &str, fields: &mut Fields, errors: &mut Vec<NetConfError>) -> Option<Self> {
                $(if kind == <$config as Kind>::NAME {
                    return Some(Self::$kind(<$config as Kind>::read(fields, errors)));
                })*
                None
            }

            /// `Backend.Type` in a net-conf.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$kind(_) => <$config as Kind>::NAME,)* }
            }

            /// `BackendType` in records; empty for `alloc`, as flannel writes it.
            pub fn record_name(&self) -> &'static str {
                match self { $(Self::$kind(_) => <$config as Kind>::RECORD,)* }
            }

            fn aliases(&self) -> &'static [&'static str] {
                match self { $(Self::$kind(_) => <$config as Kind>::ALIASES,)* }
            }

            /// What the id that may exist only once is called.
            pub(crate) fn id_name(&self) -> &'static str {
                match self { $(Self::$kind(_) => <$config as Kind>::ID,)* }
            }

            /// What a peer publishes for one family; see [`Kind::data`].
            pub(crate) fn data(&self, json: Option<&RawJson>) -> Result<Option<PeerData>, String> {
                match self { $(Self::$kind(kind) => Ok(kind.data(json)?.map(PeerData::$kind)),)* }
            }

            fn to_json(&self, data: &PeerData) -> Option<RawJson> {
                match (self, data) {
                    $((Self::$kind(kind), PeerData::$kind(data)) => kind.to_json(data),)*
                    _ => None,
                }
            }

            /// Bytes that the backend adds to a packet sent to an address of this family.
            pub fn overhead(&self, family: Family) -> u32 {
                match self { $(Self::$kind(kind) => kind.overhead(family),)* }
            }

            /// `Backend.MTU`, for kinds that have the key.
            pub(crate) fn mtu(&self) -> Option<u32> {
                match self { $(Self::$kind(kind) => kind.mtu(),)* }
            }

            pub(crate) fn set_mtu(&mut self, mtu: Option<u32>) {
                match self { $(Self::$kind(kind) => kind.set_mtu(mtu),)* }
            }
        }

        impl PeerData {
            /// The id that only one host may have.
            pub(crate) fn id(&self) -> Option<&[u8]> {
                match self { $(Self::$kind(data) => <$config as Kind>::id(data),)* }
            }
        }
    };
}

// The table: one row a kind.
kinds! {
    Vxlan(VxlanConfig, VtepMac),
    HostGw(HostGwConfig, NoData),
    Alloc(AllocConfig, NoData),
}

impl BackendConfig {
    /// Reads the `Backend` object. Returns the keys that mean nothing to the kind as well.
    pub(crate) fn read(
        raw: Option<&RawValue>,
        errors: &mut Vec<NetConfError>,
    ) -> (Option<Self>, Vec<String>) {
        let Some(raw) = raw else {
            let allowed =
                format!("flannel takes that for \"udp\", which is not supported yet; {}", way_out());
            errors.push(fault("Backend", "missing", allowed));
            return (None, Vec::new());
        };
        let Ok(mut fields) = serde_json::from_str::<Fields>(raw.get()) else {
            errors.push(fault("Backend", raw.get(), format!("must be a JSON object; {}", way_out())));
            return (None, Vec::new());
        };
        let written = fields.take("Type");
        let kind = written.and_then(text).map(|kind| kind.to_lowercase());
        let Some(backend) = kind.as_deref().and_then(|kind| Self::named(kind, &mut fields, errors)) else {
            let value = written.map_or("missing", RawValue::get);
            errors.push(fault("Backend.Type", value, unsupported(kind.as_deref())));
            return (None, Vec::new());
        };
        let unknown = fields.rest().into_iter().map(|(key, _)| format!("Backend.{}", quoted(&key)));
        (Some(backend), unknown.collect())
    }

    /// Whether a `BackendType` of a record names this kind.
    pub(crate) fn is_named(&self, record_name: &str) -> bool {
        record_name == self.record_name() || self.aliases().contains(&record_name)
    }

    /// The attributes that a host with this data publishes.
    pub fn attrs(&self, [v4, v6]: [Option<&PeerData>; 2]) -> BackendAttrs {
        let json = |data: Option<&PeerData>| data.and_then(|data| self.to_json(data));
        BackendAttrs { v4: json(v4), v6: json(v6), ..BackendAttrs::plain(self.record_name()) }
    }

    /// The least that pods need, and what the tunnel adds (bytes).
    pub(crate) fn least_mtu(&self, six: bool) -> (u32, u32) {
        let (family, pods) = if six { (Family::V6, SMALLEST_V6) } else { (Family::V4, SMALLEST_V4) };
        (pods, self.overhead(family))
    }
}

/// What every IPv4 host must accept in one packet, in bytes (RFC 791).
const SMALLEST_V4: u32 = 576;
/// What IPv6 wants of every link, in bytes (RFC 8200).
const SMALLEST_V6: u32 = 1280;

fn way_out() -> String {
    let mut text = String::new();
    for (place, name) in NAMES.iter().enumerate() {
        text += &match place {
            0 => format!("write {{\"Type\": \"{name}\"}}"),
            _ if place + 1 == NAMES.len() => format!(" or \"{name}\""),
            _ => format!(", \"{name}\""),
        };
    }
    text
}

fn unsupported(kind: Option<&str>) -> String {
    match kind {
        Some("udp" | "wireguard" | "ipip" | "ipsec" | "extension" | "tencent-vpc") => {
            format!("this backend is not supported yet; {}", way_out())
        }
        Some("aws-vpc" | "gce" | "ali-vpc") => format!("flannel removed this backend; {}", way_out()),
        _ => way_out(),
    }
}
