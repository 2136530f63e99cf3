//! What a netlink request can answer.

use std::io;

use nix::errno::Errno;

/// A failed netlink request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused, with its own words where it has some (extended ACK).
    #[error("{}{}", .errno.desc(), .text.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        /// The error number.
        errno: Errno,
        /// The kernel's sentence.
        text: Option<String>,
    },
    /// The answer was lost: the receive buffer was full, or no answer came in time. The request may have been done.
    #[error("the kernel's answer was lost ({0})")]
    Unknown(Errno),
    /// The socket could not be made or used.
    #[error("netlink socket: {0}")]
    Socket(Errno),
}

impl NetlinkError {
    /// The error number behind it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. } | Self::Unknown(errno) | Self::Socket(errno) => *errno,
        }
    }

    pub(crate) fn refused(code: i32, text: Option<String>) -> Self {
        Self::Refused { errno: Errno::from_raw(code.saturating_abs()), text }
    }
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self::Socket(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}
