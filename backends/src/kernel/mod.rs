//! The one seam to the operating system.
//!
//! The trait is synchronous: netlink answers within microseconds, and the shell gives the kernel a thread of its own,
//! so that a pass over fifty thousand peers delays no timer and no store.

#[cfg(feature = "fake")]
pub mod fake;
#[cfg(feature = "kernel")]
pub mod real;
mod touch;

pub use touch::{Touch, Who};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
#[cfg(any(feature = "kernel", feature = "fake"))]
use subnet_lease::Family;

use crate::netlink::NetlinkError;
use crate::plan::{Op, Owner};
use crate::rules::Firewall;
#[cfg(any(feature = "kernel", feature = "fake"))]
use crate::state::Object;
use crate::state::{Facts, IfName, KernelState};

/// What a kernel must be able to do.
pub trait Kernel {
    /// Everything that may be ours, in the kernel's form. Read anew each time: nothing is remembered.
    fn own(&mut self, owner: &Owner) -> Result<Own, KernelError>;

    /// What the host is.
    fn host(&mut self) -> Result<Facts, KernelError>;

    /// Performs the steps in order and returns one result for each. A failed step does not stop the others; steps that
    /// hang on a link that could not be made are skipped.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>>;
}

impl<K: Kernel + ?Sized> Kernel for &mut K {
    fn own(&mut self, owner: &Owner) -> Result<Own, KernelError> {
        (**self).own(owner)
    }

    fn host(&mut self) -> Result<Facts, KernelError> {
        (**self).host()
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        (**self).apply(ops)
    }
}

/// A dump of what may be ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// The objects.
    pub state: KernelState,
    /// A table changed while it was read: absence proves nothing, so nothing is deleted on such a dump.
    pub interrupted: bool,
    /// Messages of a kind that we read and that could not be read. What they told is missing above.
    pub unreadable: u64,
    /// What others filter here.
    pub firewall: Firewall,
}

/// A notification, reduced to what is to be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelEvent {
    /// Something that may be ours changed.
    Own,
    /// Something of the host changed as well: links, addresses, connected prefixes, default routes.
    Host,
    /// Notifications were lost: anything may have changed.
    Overrun,
}

/// Why a step was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum OpError {
    /// It hangs on a link that could not be made, or must not go before what could not be put in its place.
    #[error("skipped: link {0} is not as it should be")]
    Skipped(IfName),
    /// It is the old form of rules whose new form could not be put.
    #[error("skipped: the rules that take its place could not be put")]
    Kept,
    /// The kernel said no.
    #[error(transparent)]
    Failed(#[from] KernelError),
}

/// What the kernel answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum KernelError {
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A file under `/proc/sys` could not be written.
    #[error("{path}: {}{}", .errno.desc(), way_out(*.errno))]
    Sysctl {
        /// The file.
        path: String,
        /// Why.
        #[serde(with = "crate::netlink::errno")]
        errno: Errno,
    },
    /// A program of iptables did not do what it was to do.
    #[error("{program}: {said}")]
    Program {
        /// The program.
        program: String,
        /// Its words.
        said: String,
    },
}

/// What the caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelClass {
    /// Try again soon.
    Transient,
    /// Somebody else is in the way: tell the operator, try again slowly.
    Conflict,
    /// This kernel can't do it.
    Unsupported,
    /// We are not allowed to.
    Fatal,
}

impl KernelError {
    /// What to do about it.
    pub fn class(&self) -> KernelClass {
        let errno = match self {
            Self::Netlink(error) => error.errno(),
            Self::Sysctl { errno, .. } => *errno,
            Self::Program { .. } => return KernelClass::Transient,
        };
        match errno {
            // Read-only or masked in a container; everything else may work, and the setting may be right one day.
            Errno::EPERM | Errno::EACCES | Errno::EROFS if matches!(self, Self::Sysctl { .. }) => {
                KernelClass::Conflict
            }
            Errno::EPERM | Errno::EACCES => KernelClass::Fatal,
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::EROFS => {
                KernelClass::Unsupported
            }
            Errno::EEXIST | Errno::EINVAL | Errno::EADDRINUSE | Errno::EADDRNOTAVAIL => KernelClass::Conflict,
            _ => KernelClass::Transient,
        }
    }
}

fn way_out(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS | Errno::EACCES | Errno::EPERM => {
            "; set it on the host, or run the container with a writable /proc/sys"
        }
        _ => "",
    }
}

/// Taking away what is already gone is success.
#[cfg(any(feature = "kernel", feature = "fake"))]
pub(crate) fn benign(op: &Op, errno: Errno) -> bool {
    let gone =
        matches!(errno, Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ENXIO);
    matches!(op, Op::Delete(_)) && gone
}

/// What steps wait for that failed, by the link: those that hang on a missing one, and the removal of an address where the
/// one that takes its place could not be put. With its last address a link loses all its routes (law 3).
#[cfg(any(feature = "kernel", feature = "fake"))]
#[derive(Default)]
pub(crate) struct Failed {
    missing: Vec<IfName>,
    unaddressed: Vec<IfName>,
    /// Families whose rules could not be put: those that stand stay.
    unruled: Vec<Family>,
}

#[cfg(any(feature = "kernel", feature = "fake"))]
impl Failed {
    /// Why this step is left out, if it is.
    pub(crate) fn skips(&self, op: &Op) -> Option<OpError> {
        if let Op::Delete(object) = op
            && ruled(object).is_some_and(|family| self.unruled.contains(&family))
        {
            return Some(OpError::Kept);
        }
        let link = op.object().link()?;
        let last = matches!(op, Op::Delete(Object::Address(_))) && self.unaddressed.contains(&link);
        (last || self.missing.contains(&link)).then_some(OpError::Skipped(link))
    }

    pub(crate) fn note(&mut self, op: &Op) {
        self.missing.extend(link_made_by(op));
        if let Op::Put { want: Object::Address(address), .. } = op {
            self.unaddressed.push(address.link);
        }
        if let Op::Put { want, .. } = op {
            self.unruled.extend(ruled(want));
        }
    }
}

/// The family of rules.
#[cfg(any(feature = "kernel", feature = "fake"))]
fn ruled(object: &Object) -> Option<Family> {
    match object {
        Object::Table(table) => Some(table.family),
        Object::Iptables(rules) => Some(rules.family),
        _ => None,
    }
}

/// The link that is missing when this step fails; what hangs on it is skipped. One that is there and only could not be
/// changed, an address or a setting that failed hold back nothing.
#[cfg(any(feature = "kernel", feature = "fake"))]
fn link_made_by(op: &Op) -> Option<IfName> {
    match op {
        Op::Put { want: Object::Link(want), have: Some(Object::Link(have)) } if have.name == want.name => {
            None
        }
        Op::Put { want: Object::Link(want), .. } => Some(want.name),
        _ => None,
    }
}

#[cfg(all(test, any(feature = "kernel", feature = "fake")))]
mod tests {
    use super::*;
    use crate::rules::iptables::{Flavour, IptablesRules};
    use crate::rules::{RuleNames, RuleTable};

    #[test]
    fn old_rules_of_a_family_stay_when_its_new_ones_could_not_be_put() {
        let rules = |family| IptablesRules {
            flavour: Flavour::Nft,
            family,
            names: RuleNames::Flannel,
            chains: Vec::new(),
            jumps: Vec::new(),
        };
        let put = |family| Op::Put { want: Object::Iptables(Box::new(rules(family))), have: None };
        let table = |family| RuleTable { family, names: RuleNames::Flannel, chains: Vec::new(), flags: 0 };
        let delete = |family| Op::Delete(Object::Table(Box::new(table(family))));
        let mut failed = Failed::default();
        assert_eq!(failed.skips(&delete(Family::V4)), None);
        failed.note(&put(Family::V4));
        assert_eq!(failed.skips(&delete(Family::V4)), Some(OpError::Kept));
        assert_eq!(failed.skips(&delete(Family::V6)), None, "the other family has its new ones");
        assert_eq!(failed.skips(&put(Family::V4)), None);
    }
}
