//! What peers know a backend of this host by, and what it is made from.

use serde::{Deserialize, Serialize};
use subnet_lease::{Family, Lease};

use crate::state::KernelState;
use crate::state::{IfName, Mac};

/// What peers know a backend of this host by. Chosen once, before any device is made, and kept from then on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// Peers need to know nothing.
    #[default]
    None,
    /// Ethernet addresses of tunnel devices, IPv4 and IPv6.
    Macs([Mac; 2]),
}

impl Identity {
    /// The tunnel device's Ethernet address of a family.
    pub fn mac(&self, family: Family) -> Option<Mac> {
        match self {
            Self::Macs(macs) => Some(macs[usize::from(family == Family::V6)]),
            Self::None => None,
        }
    }
}

/// What an identity is chosen from, the best first.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Our lease as the store shows it: peers go by it already.
    pub shown: Option<&'a Lease>,
    /// Our devices as an earlier run left them.
    pub devices: &'a Devices,
    /// Our lease as an earlier run remembered it.
    pub remembered: Option<&'a Lease>,
    /// Random numbers of this run, IPv4 and IPv6.
    pub random: [u64; 2],
}

/// Links of ours that were there before the first pass, with their Ethernet addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices(Vec<(IfName, Mac)>);

impl Devices {
    /// Those among these names that a dump has.
    pub fn of(have: &KernelState, names: &[IfName]) -> Self {
        Self(
            have.links()
                .filter(|link| names.contains(&link.name))
                .map(|link| (link.name, link.mac))
                .collect(),
        )
    }

    /// The Ethernet address of a link.
    pub fn mac(&self, name: IfName) -> Option<Mac> {
        self.0.iter().find(|(link, _)| *link == name).map(|(_, mac)| *mac)
    }
}
