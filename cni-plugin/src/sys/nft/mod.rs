//! nf_tables of the plugin's own tables, over netlink.
//!
//! ```text
//!   Table { sets, chains, rules } ──▶ Change ──▶ one transaction: all of it or nothing
//!                                       ▲
//!   Elements (key, value, owner) ───────┘  ◀── elements of a set, rules of a table, generation
//! ```
//!
//! - Rules are few and the same for every attachment; what an attachment adds are elements of sets and maps.
//! - An element carries the name of its owner as comment, which `nft list` shows; it is taken away by that name alone.
//! - An element is not deleted but made to expire, which it does with the kernel's next tick (4 ms at most with 250 of
//!   them a second): when something is deleted, the kernel waits 8 to 20 ms for its own readers, and lets the process
//!   that closes its socket next wait with it, and all others that want to change rules meanwhile. Kernels before 6.12
//!   cannot do that; there it is deleted.

mod change;
mod encode;
mod expr;
mod read;

pub(crate) use change::{Change, Kind, Set};
pub(crate) use encode::{TableFamily, comment_text};
pub(crate) use expr::{End, Expr, Field};
pub(crate) use read::{Element, Reader, RuleView};

/// A rule: where it stands and what it does. The note is its comment, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) chain: String,
    pub(crate) note: String,
    pub(crate) exprs: Vec<Expr>,
    /// Before the others of its chain, not behind them.
    pub(crate) first: bool,
}

/// `NFNL_SUBSYS_NFTABLES`, in the high half of each message type.
const SUBSYSTEM: u16 = 10 << 8;
const NEWTABLE: u16 = SUBSYSTEM;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const DELCHAIN: u16 = SUBSYSTEM | 5;
const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const GETSET: u16 = SUBSYSTEM | 10;
const NEWELEMENT: u16 = SUBSYSTEM | 12;
const GETELEMENT: u16 = SUBSYSTEM | 13;
const DELELEMENT: u16 = SUBSYSTEM | 14;
const NEWGENERATION: u16 = SUBSYSTEM | 15;
const GETGENERATION: u16 = SUBSYSTEM | 16;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const APPEND: u16 = 0x800;

/// Attributes of elements, beneath their list.
mod element {
    pub(super) const LIST_TABLE: u16 = 1;
    pub(super) const LIST_SET: u16 = 2;
    pub(super) const LIST_ELEMENTS: u16 = 3;
    pub(super) const KEY: u16 = 1;
    pub(super) const DATA: u16 = 2;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const EXPIRATION: u16 = 5;
    pub(super) const COMMENT: u16 = 6;
}

/// Attributes of rules.
mod rule {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const HANDLE: u16 = 3;
    pub(super) const EXPRESSIONS: u16 = 4;
    pub(super) const COMMENT: u16 = 7;
}

/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;
/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;
