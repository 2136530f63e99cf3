//! What the plugins do with this host: kernel objects, files, programs and the daemon. No plugin is known here.

pub(crate) mod alive;
pub(crate) mod daemon;
pub(crate) mod hash;
pub(crate) mod iptables;
pub(crate) mod netns;
pub(crate) mod random;
#[cfg(test)]
pub(crate) mod scratch;
pub(crate) mod small_file;
pub(crate) mod sysctl;
