//! The kinds of links that we make. A kind is one file here, one variant of [`LinkKind`] and one row of [`ROWS`]: its own
//! comparison, its text for `ip`, what it sends to the kernel and how it is read are in that file.

mod vxlan;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
pub use vxlan::Vxlan;

#[cfg(feature = "kernel")]
use super::Feature;
use super::Link;
use crate::netlink::Attrs;
use crate::netlink::link::LinkView;

/// The kind of a link with its own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LinkKind {
    /// A VXLAN tunnel end.
    Vxlan(Vxlan),
}

/// What is known of a kind without a link.
pub(crate) struct Row {
    /// The kernel's word for it, which is that of `ip link … type`.
    pub(crate) word: &'static str,
    /// What the kernel must have for it.
    #[cfg(feature = "kernel")]
    pub(crate) feature: Feature,
    read: fn(Attrs<'_>) -> LinkKind,
}

/// Every kind.
pub(crate) const ROWS: [Row; 1] = [vxlan::ROW];

/// What a kind says of a link.
pub(super) trait Kind {
    /// The kernel's word for it.
    fn word(&self) -> &'static str;

    /// The settings that the kernel refuses to change in place.
    fn fixed(&self) -> Vec<u64>;

    /// Whether the kernel refuses two links with the same fixed settings.
    fn is_exclusive(&self) -> bool;

    /// What of this another link needs too, so that only one of them works: in words.
    fn taken_from(&self, other: &LinkKind) -> Option<String>;

    /// Index of the link that it lies over and goes with; 0 = none.
    fn over(&self) -> u32;

    /// Source of its outer packets.
    fn local(&self) -> Option<IpAddr>;

    /// The UDP port on which it receives from other hosts.
    fn udp_port(&self) -> Option<u16>;

    /// Bytes that it adds to a packet.
    fn overhead(&self) -> u32;

    /// The settings that can change in place, with their values, in a fixed order.
    fn settings(&self) -> Vec<(&'static str, String)>;

    /// The words after `type` in `ip link add`; `name` gives the name of the link with an index.
    fn write_new(&self, f: &mut fmt::Formatter<'_>, name: &dyn Fn(u32) -> String) -> fmt::Result;

    /// The words after `type` in `ip link set`.
    fn write_change(&self, f: &mut fmt::Formatter<'_>, name: &dyn Fn(u32) -> String) -> fmt::Result;

    /// The attributes of a message that creates such a link, or of one that changes it.
    #[cfg(feature = "kernel")]
    fn attributes(
        &self,
        new: bool,
    ) -> (rtnetlink::packet_route::link::InfoKind, rtnetlink::packet_route::link::InfoData);
}

impl LinkKind {
    /// The kind and settings of a link that the kernel reports; none of a kind that we never make.
    pub fn read(view: &LinkView<'_>) -> Option<Self> {
        ROWS.iter().find(|row| row.word == view.kind).map(|row| (row.read)(view.data.clone()))
    }

    /// The kernel's words for all kinds.
    pub fn words() -> impl Iterator<Item = &'static str> {
        ROWS.iter().map(|row| row.word)
    }

    /// The UDP port on which it receives from other hosts.
    pub fn udp_port(&self) -> Option<u16> {
        self.kind().udp_port()
    }

    /// Whether the kernel's word for a link's kind is that of one of ours.
    pub fn is_word(word: &str) -> bool {
        ROWS.iter().any(|row| row.word == word)
    }

    /// The kernel's word for it.
    pub fn word(&self) -> &'static str {
        self.kind().word()
    }

    /// What this link holds that another one needs too, in words.
    pub(crate) fn taken_from(&self, other: &Self) -> Option<String> {
        self.kind().taken_from(other)
    }

    /// Index of the link that it lies over and goes with; 0 = none.
    pub fn over(&self) -> u32 {
        self.kind().over()
    }

    /// Source of its outer packets.
    pub fn local(&self) -> Option<IpAddr> {
        self.kind().local()
    }

    /// Bytes that it adds to a packet.
    pub fn overhead(&self) -> u32 {
        self.kind().overhead()
    }

    /// The settings in which this differs from the wanted kind and that can change in place, with the values here.
    pub fn differences(&self, want: &Self) -> Vec<(&'static str, String)> {
        let wanted = want.kind().settings();
        self.kind().settings().into_iter().filter(|setting| !wanted.contains(setting)).collect()
    }

    pub(crate) fn write_new(&self, f: &mut fmt::Formatter<'_>, name: &dyn Fn(u32) -> String) -> fmt::Result {
        write!(f, " type {}", self.word())?;
        self.kind().write_new(f, name)
    }

    pub(crate) fn write_change(
        &self,
        f: &mut fmt::Formatter<'_>,
        name: &dyn Fn(u32) -> String,
    ) -> fmt::Result {
        write!(f, " type {}", self.word())?;
        self.kind().write_change(f, name)
    }

    #[cfg(feature = "kernel")]
    pub(crate) fn attributes(
        &self,
        new: bool,
    ) -> (rtnetlink::packet_route::link::InfoKind, rtnetlink::packet_route::link::InfoData) {
        self.kind().attributes(new)
    }

    fn kind(&self) -> &dyn Kind {
        match self {
            Self::Vxlan(vxlan) => vxlan,
        }
    }
}

impl Link {
    /// Whether this can become `want` without being made anew (law 8). MTU, MAC, alias and the settings that are not fixed
    /// change in place.
    pub fn can_become(&self, want: &Self) -> bool {
        let (have, want) = (self.kind.kind(), want.kind.kind());
        have.word() == want.word() && have.fixed() == want.fixed()
    }

    /// Whether the kernel refuses to have both (law 8).
    pub fn clashes_with(&self, other: &Self) -> bool {
        self.name != other.name && self.kind.kind().is_exclusive() && self.can_become(other)
    }
}
