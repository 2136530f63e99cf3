//! What a lease, its subnets and a network are.

pub(crate) mod lease;
pub(crate) mod net;
pub(crate) mod netconf;
pub(crate) mod pool;
