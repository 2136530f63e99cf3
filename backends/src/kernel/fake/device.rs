//! A link of the kernel in memory, with all that hangs on it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::state::{IfName, Link, LinkKind, Mac, Sysctl};

/// A link with all that hangs on it.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) name: IfName,
    /// None for links that are not tunnels.
    pub(super) kind: Option<LinkKind>,
    pub(super) loopback: bool,
    pub(super) mtu: u32,
    pub(super) mac: Mac,
    pub(super) tag: String,
    pub(super) up: bool,
    /// Index of its bridge; 0 = none.
    pub(super) master: u32,
    pub(super) accept_ra: i32,
    pub(super) forward: i32,
    /// Other settings, where they differ from what a new device has.
    pub(super) settings: BTreeMap<Sysctl, i32>,
    pub(super) addresses: Vec<IpNetwork>,
    /// Those of them that are no source of packets to elsewhere.
    pub(super) narrow: Vec<IpNetwork>,
    /// Other ends, and whether they are diverted.
    pub(super) fdb: BTreeMap<Mac, Vec<(IpAddr, bool)>>,
    pub(super) neighbours: BTreeMap<IpAddr, Mac>,
}

impl Device {
    pub(super) fn new(mac: Mac) -> Self {
        Self {
            name: IfName::default(),
            kind: None,
            loopback: false,
            mtu: 1500,
            mac,
            tag: String::new(),
            up: false,
            master: 0,
            accept_ra: 1,
            forward: 0,
            settings: BTreeMap::new(),
            addresses: Vec::new(),
            narrow: Vec::new(),
            fdb: BTreeMap::new(),
            neighbours: BTreeMap::new(),
        }
    }

    /// What a setting reads as; a new device has its checksums made by the hardware, and nothing else set.
    pub(super) fn set(&self, name: Sysctl) -> i32 {
        let new = i32::from(name == Sysctl::TxChecksum);
        name.read(self.settings.get(&name).copied().unwrap_or(new), 0)
    }

    pub(super) fn link(&self) -> Option<Link> {
        let (name, kind, tag) = (self.name, self.kind?, self.tag.clone());
        Some(Link { name, kind, mtu: self.mtu, mac: self.mac, tag, master: self.master })
    }

    /// Law 17.
    pub(super) fn change_mac(&mut self, mac: Mac) {
        if std::mem::replace(&mut self.mac, mac) != mac {
            self.neighbours.clear();
        }
    }
}
