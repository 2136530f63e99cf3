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

use crate::facts::Facts;
use crate::name::IfName;
use crate::netlink::NetlinkError;
use crate::owner::Owner;
use crate::plan::Op;
use crate::state::KernelState;
#[cfg(any(feature = "kernel", feature = "fake"))]
use crate::state::Object;

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
    /// The kernel could not be asked at all.
    #[error("{0}")]
    Unavailable(String),
}

/// What the caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
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
    pub fn class(&self) -> Class {
        let errno = match self {
            Self::Netlink(error) => error.errno(),
            Self::Sysctl { errno, .. } => *errno,
            Self::Unavailable(_) => return Class::Transient,
        };
        match errno {
            // Read-only or masked in a container; everything else may work, and the setting may be right one day.
            Errno::EPERM | Errno::EACCES | Errno::EROFS if matches!(self, Self::Sysctl { .. }) => {
                Class::Conflict
            }
            Errno::EPERM | Errno::EACCES => Class::Fatal,
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::EROFS => {
                Class::Unsupported
            }
            Errno::EEXIST | Errno::EINVAL | Errno::EADDRINUSE | Errno::EADDRNOTAVAIL => Class::Conflict,
            _ => Class::Transient,
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
}

#[cfg(any(feature = "kernel", feature = "fake"))]
impl Failed {
    /// The link for whose sake this step is left out.
    pub(crate) fn skips(&self, op: &Op) -> Option<IfName> {
        let link = op.object().link()?;
        let last = matches!(op, Op::Delete(Object::Address(_))) && self.unaddressed.contains(&link);
        (last || self.missing.contains(&link)).then_some(link)
    }

    pub(crate) fn note(&mut self, op: &Op) {
        self.missing.extend(link_made_by(op));
        if let Op::Put { want: Object::Address(address), .. } = op {
            self.unaddressed.push(address.link);
        }
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
