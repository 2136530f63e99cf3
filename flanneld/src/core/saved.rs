//! The core written down and read back, so that a recording can begin in the middle of a run. Everything derives; here is
//! what does not derive by itself.

use std::sync::Arc;

use backends::Backends;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subnet_lease::NetworkConfig;

use super::gate::Network;
use super::{NodeCore, Settings};
use crate::recorder;

impl NodeCore {
    /// What it was made from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reads what was written down. The peers get their network back here: it may hold what nobody should read, so it is
    /// kept only once, and without that.
    pub fn restored(json: &str) -> serde_json::Result<Self> {
        let mut core: Self = serde_json::from_str(json)?;
        if let (Some(network), Some(peers)) = (&core.network, &mut core.peers) {
            peers.set_network(&network.config);
        }
        Ok(core)
    }
}

/// As the net-conf it was read from, without secrets.
impl Serialize for Network {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&recorder::without_secrets(&self.written))
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let written = String::deserialize(from)?.into_bytes();
        let parsed = NetworkConfig::parse(&written);
        let (config, _) = parsed.map_err(|_| D::Error::custom("the recorded net-conf is not usable"))?;
        let backends = Backends::of(&config.backend);
        Ok(Self { config: Arc::new(config), backends, written })
    }
}

/// A shared value as the value.
pub(super) mod shared {
    use super::*;

    pub(crate) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
        (**value).serialize(to)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

/// Expressions as their texts.
pub(crate) mod regexes {
    use regex_lite::Regex;

    use super::*;

    pub(crate) fn serialize<S: Serializer>(regexes: &[Regex], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(regexes.iter().map(Regex::as_str))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Regex>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| Regex::new(text).map_err(D::Error::custom)).collect()
    }
}
