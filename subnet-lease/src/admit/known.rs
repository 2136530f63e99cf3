//! A lease of the table, reduced to what matters.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::IpNetwork;
use crate::attrs::{BackendConfig, PeerData};
use crate::model::lease::{FiledBy, Lease, PublicAddrs};
use crate::model::net::{Family, Subnets};
use crate::model::netconf::{NetworkConfig, quoted};

/// Another host whose lease was admitted, reduced to the families in which it can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer<'a> {
    known: &'a Known,
    usable: [bool; 2],
}

impl<'a> Peer<'a> {
    pub(super) fn new(known: &'a Known, usable: [bool; 2]) -> Option<Self> {
        usable.contains(&true).then_some(Self { known, usable })
    }

    /// Its lease's identity, families that we do not use included.
    pub fn key(&self) -> Subnets {
        self.known.key
    }

    /// Its subnet in one family, where we can reach it in that family.
    pub fn subnet(&self, family: Family) -> Option<IpNetwork> {
        if self.usable[family.index()] { self.known.key.family(family) } else { None }
    }

    /// Its subnets that we can reach, IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> + use<'a> {
        let peer = *self;
        Family::ALL.into_iter().filter_map(move |family| peer.subnet(family))
    }

    /// Where packets for its subnet of this family go.
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        if self.usable[family.index()] { self.known.public.family(family) } else { None }
    }

    /// What its backend published for this family.
    pub fn data(&self, family: Family) -> Option<&'a PeerData> {
        if self.usable[family.index()] { self.known.data[family.index()].as_ref() } else { None }
    }
}

/// A lease as far as it matters, with what was wrong with its data already (before any rule was applied).
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) key: Subnets,
    pub(super) public: PublicAddrs,
    pub(super) data: [Option<PeerData>; 2],
    pub(super) epoch: u64,
    /// The holder's name.
    pub(super) node: Option<Box<str>>,
    /// What is wrong with it, by family; rare.
    pub(super) flaws: Option<Box<[Option<Box<str>>; 2]>>,
    #[serde(default)]
    pub(super) filed_by: FiledBy,
    /// An operator keeps the subnets for a host that has not claimed them yet: no peer, and nothing is wrong with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) reserved: bool,
    /// The store shows it no more, and it is kept for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) vanished: bool,
}

impl Known {
    /// Admission asks the kind of the network's backend.
    pub(super) fn read(lease: &Lease, backend: &BackendConfig) -> Self {
        let (mut flaws, mut data) = ([None, None], [None, None]);
        match lease.attrs.of(|kind| backend.is_named(kind)) {
            Some(published) => {
                for (place, json) in published.into_iter().enumerate() {
                    match backend.data(json) {
                        Ok(read) => data[place] = read,
                        Err(reason) => flaws[place] = Some(reason.into()),
                    }
                }
            }
            None => {
                let theirs: Vec<String> = lease.attrs.kinds().map(shown).collect();
                let ours = shown(backend.record_name());
                let reason = format!("its backend is {}, this network's {ours}", theirs.join(" and "));
                flaws = [Some(reason.as_str().into()), Some(reason.into())];
            }
        }
        Self {
            reserved: lease.is_unclaimed(),
            key: lease.subnets,
            public: lease.public,
            data,
            epoch: lease.epoch,
            node: lease.node.as_deref().map(Into::into),
            flaws: flaws.iter().any(Option::is_some).then(|| Box::new(flaws)),
            filed_by: lease.filed_by,
            vanished: false,
        }
    }

    /// The lease again, in the backend of its network.
    pub(super) fn lease(&self, network: &NetworkConfig) -> Lease {
        let attrs = network.backend.attrs([self.data[0].as_ref(), self.data[1].as_ref()]);
        let lease = Lease::new(self.key, self.public, attrs);
        let node = self.node.as_deref().map(Into::into);
        Lease { node, epoch: self.epoch, filed_by: self.filed_by, ..lease }
    }

    /// Whether nobody wants to read why it is no peer.
    pub(super) fn is_silent(&self) -> bool {
        self.vanished || self.reserved
    }

    /// Both families, as far as the lease has them.
    pub(super) fn whole(&self) -> [bool; 2] {
        Family::ALL.map(|family| self.key.family(family).is_some())
    }
}

fn shown(record_name: &str) -> String {
    if record_name.is_empty() { "none (alloc or udp)".to_owned() } else { quoted(record_name) }
}
