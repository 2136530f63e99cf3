//! Rules that decide: which subnets a host gets, and which peers are admitted.

pub(crate) mod book;
pub(crate) mod claim;
mod judge;
pub(crate) mod known;
pub(crate) mod peers;
