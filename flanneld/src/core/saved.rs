//! The core as recordings hold it, so that one can begin in the middle of a run.
//!
//! [`Saved`] is a type of its own: its names are those in the files. A part of the core that changes writes and reads the
//! same names. Fields that are missing have a default, and fields that are not known are passed over, so that a recording of
//! an older or a newer program is read.

use std::sync::Arc;

use backends::{Backends, Devices, External, Facts, Identity, Mac};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subnet_lease::{NetworkConfig, PeerTable, SubnetEnv, Subnets};

use super::fights::Fights;
use super::host::HostSettings;
use super::membership::{Leases, Membership, Network, Vanished};
use super::memory::Memories;
use super::pace::Pace;
use super::pass::{Outcome, Pass, Phase};
use super::planes::Planes;
use super::publication::{ClaimState, Publication};
use super::rules::Rules;
use super::underlay::Underlay;
use super::{NodeCore, Readiness, Settings, Share, Tick, without_secrets};

/// Raised when a field changes its meaning. A field more or less is no new version.
const VERSION: u32 = 1;

/// A value to write, or one that was read; or none.
#[derive(Debug, Default)]
pub(super) enum Held<'a, T> {
    #[default]
    Nothing,
    Borrowed(&'a T),
    Owned(T),
}

impl<'a, T> Held<'a, T> {
    pub(super) fn of(value: &'a Option<T>) -> Self {
        value.as_ref().map_or(Self::Nothing, Self::Borrowed)
    }

    /// What was read.
    pub(super) fn take(&mut self) -> Option<T> {
        if let Self::Owned(value) = std::mem::replace(self, Self::Nothing) { Some(value) } else { None }
    }
}

impl<T: Serialize> Serialize for Held<'_, T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nothing => to.serialize_none(),
            Self::Borrowed(value) => to.serialize_some(value),
            Self::Owned(value) => to.serialize_some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Held<'_, T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.map_or(Self::Nothing, Self::Owned))
    }
}

/// Everything that a core knows.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, bound(deserialize = ""))]
pub(super) struct Saved<'a> {
    pub(super) version: u32,
    pub(super) settings: Held<'a, Settings>,
    // The underlay.
    pub(super) facts: Held<'a, Facts>,
    pub(super) host_stale: bool,
    pub(super) external: Held<'a, External>,
    pub(super) external_why: String,
    pub(super) external_problem: Option<String>,
    pub(super) unfit_since: Option<Tick>,
    // The membership.
    pub(super) network: Held<'a, Network>,
    pub(super) fault: Option<String>,
    pub(super) unapplied: Option<String>,
    /// Not in force, and not written: without its secrets it would be another configuration.
    #[serde(skip)]
    pub(super) collides: Option<Vec<u8>>,
    pub(super) others: Held<'a, Vec<Share>>,
    pub(super) leases: Held<'a, Leases>,
    pub(super) peers: Held<'a, PeerTable>,
    pub(super) vanished: Held<'a, Vanished>,
    pub(super) store_problem: Option<String>,
    pub(super) stale_since: Tick,
    pub(super) seen_refusals: Held<'a, Vec<(String, String)>>,
    // The publication.
    pub(super) remembered: Option<SubnetEnv>,
    pub(super) own: Option<Subnets>,
    /// The identity as recordings held it before there were several backends.
    #[serde(skip_serializing)]
    pub(super) macs: Option<[Mac; 2]>,
    pub(super) identities: Option<Vec<Identity>>,
    pub(super) devices: Option<Devices>,
    pub(super) claim: Held<'a, ClaimState>,
    // The pass.
    pub(super) phase: Held<'a, Phase>,
    pub(super) pace: Held<'a, Pace>,
    pub(super) passes: u64,
    pub(super) last: Held<'a, Outcome>,
    pub(super) fights: Held<'a, Fights>,
    // The rest.
    pub(super) memories: Held<'a, Memories>,
    pub(super) host_settings: Held<'a, HostSettings>,
    pub(super) planes: Held<'a, Planes>,
    pub(super) rules: Held<'a, Rules>,
    pub(super) ready: Held<'a, Readiness>,
    pub(super) shared: Held<'a, Share>,
    pub(super) ending: Option<String>,
}

impl NodeCore {
    /// What it was made from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reads a recorded core.
    pub fn restored(json: &str) -> serde_json::Result<Self> {
        let mut saved: Saved<'_> = serde_json::from_str(json)?;
        if saved.version > VERSION {
            let why = format!("its version is {}, and this program reads {VERSION}", saved.version);
            return Err(serde_json::Error::custom(why));
        }
        let settings = saved.settings.take().ok_or_else(|| serde_json::Error::missing_field("settings"))?;
        let saved = &mut saved;
        let mut membership = Membership::restore(saved);
        membership.hold_for(settings.vanish_hold);
        Ok(Self {
            underlay: Underlay::restore(saved),
            membership,
            publication: Publication::restore(saved),
            pass: Pass::restore(saved, settings.seed),
            memories: Memories::restore(saved),
            host_settings: saved.host_settings.take().unwrap_or_default(),
            planes: saved.planes.take().unwrap_or_default(),
            rules: saved.rules.take().unwrap_or_default(),
            ready: saved.ready.take().unwrap_or_default(),
            shared: saved.shared.take(),
            ending: saved.ending.take(),
            settings,
        })
    }
}

impl Serialize for NodeCore {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut saved = Saved {
            version: VERSION,
            settings: Held::Borrowed(&self.settings),
            host_settings: Held::Borrowed(&self.host_settings),
            planes: Held::Borrowed(&self.planes),
            rules: Held::Borrowed(&self.rules),
            ready: Held::Borrowed(&self.ready),
            shared: Held::of(&self.shared),
            ending: self.ending.clone(),
            ..Saved::default()
        };
        self.underlay.save(&mut saved);
        self.membership.save(&mut saved);
        self.publication.save(&mut saved);
        self.pass.save(&mut saved);
        self.memories.save(&mut saved);
        saved.serialize(to)
    }
}

/// As the net-conf it was read from, without secrets.
impl Serialize for Network {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&without_secrets(&self.written))
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
