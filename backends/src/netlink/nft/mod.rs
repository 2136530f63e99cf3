//! nf_tables over netlink: what a message is made of, and nothing of what our tables are for. The daemon's tables
//! (`kernel::real::nft`) and the plugin's are its users.
//!
//! ```text
//!   table, chains, rules, sets, elements ──▶ Change ──▶ one transaction: all of it or nothing
//!   ChainView, RuleView, Element         ◀── Reader, and notifications
//! ```
//!
//! An element is not deleted but made to expire, which it does with the kernel's next tick (4 ms at most with 250 of them
//! a second): when something is deleted, the kernel waits 8 to 20 ms for its own readers, and the process that closes its
//! socket next, and all others that want to change rules, wait with it. Kernels before 6.12 cannot do that; there it is
//! deleted.

mod change;
mod expression;
mod message;
mod read;
mod set;

pub use change::{BaseChain, Change};
pub use expression::{
    End, Expr, FULLY_RANDOM, Field, META_FAMILY, NETWORK, TRANSPORT, Verdict, mask_length, network_at,
};
pub use message::{FORWARD, INPUT, NF_ACCEPT, NF_DROP, OUTPUT, POSTROUTING, PREROUTING, TableFamily};
pub use read::{
    ChainView, Reader, RuleView, dump_chains, generation_program, get_table, is_deleted_table, rules,
    table_flags, table_of,
};
pub use set::{Element, Kind, Set};

/// A rule: where it stands and what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: String,
    /// Its comment, for people; empty for none.
    pub note: String,
    /// What it does.
    pub exprs: Vec<Expr>,
    /// Before the others of its chain, not behind them.
    pub first: bool,
}
