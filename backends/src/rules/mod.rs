//! Masquerade and forward rules as data: one nf_tables table per enabled family, the same in the wish and in what the
//! kernel reports.
//!
//! ```text
//!   RuleInput ── rules() ──▶ RuleTable ── to_nft() ────────▶ text for `nft -f -`, for people
//!                               │  ▲
//!                               ▼  │                         kernel::real::nft
//!                          expressions of the kernel
//! ```
//!
//! The meaning is that of flannel's iptables rules. C is the cluster network, P the own lease's subnet:
//!
//! | chain `postrtg` (nat, postrouting) | why |
//! |---|---|
//! | mark 0x4000/0x4000: return | kube-proxy masquerades this one itself |
//! | P → C: return | pods see each other's addresses |
//! | C → P: return | the same, arriving |
//! | not C → P: return | who called a pod here stays visible |
//! | C → exempt network: return | the operator wants the pod's address seen there |
//! | C → not multicast: masquerade | nobody outside knows a way back to a pod |
//! | not C → C: masquerade | from this host to a pod elsewhere: the answer must come back through the tunnel |
//!
//! Chain `forward` (filter, forward) accepts what comes from C and what goes to C.

mod data;
mod firewall;
pub mod iptables;
mod names;
mod nft;
mod tunnel;

pub use data::{
    Chain, ChainKind, End, Hook, Match, Policy, Rule, RuleInput, RuleSettings, RuleTable, Verdict, rules,
};
use data::{forward, postrouting, without_host_bits};
pub use firewall::{
    Asked, Fate, Firewall, ForeignChain, Home, Renderer, Standing, choose as choose_renderer, standing,
};
pub use names::RuleNames;
pub use tunnel::TunnelDrop;

#[cfg(test)]
mod tests;
