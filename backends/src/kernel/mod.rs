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
    /// It hangs on a link that could not be made.
    #[error("skipped: link {0} is not there")]
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
    #[error("{path}: {}", .errno.desc())]
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
            Errno::EPERM | Errno::EACCES => Class::Fatal,
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::EROFS => {
                Class::Unsupported
            }
            Errno::EEXIST | Errno::EINVAL | Errno::EADDRINUSE | Errno::EADDRNOTAVAIL => Class::Conflict,
            _ => Class::Transient,
        }
    }
}

/// Taking away what is already gone is success.
#[cfg(any(feature = "kernel", feature = "fake"))]
pub(crate) fn benign(op: &Op, errno: Errno) -> bool {
    let gone =
        matches!(errno, Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ENXIO);
    matches!(op, Op::Delete(_)) && gone
}

/// The link whose failure takes this object with it. An address or a setting that failed does not.
#[cfg(any(feature = "kernel", feature = "fake"))]
pub(crate) fn link_made_by(object: &Object) -> Option<IfName> {
    match object {
        Object::Link(link) => Some(link.name),
        _ => None,
    }
}
