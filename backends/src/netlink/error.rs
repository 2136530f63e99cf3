//! Errors of netlink requests.

use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// A failed netlink request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NetlinkError {
    /// The kernel refused, with an error text where it sent one (extended acknowledgement).
    #[error("{}{}", .errno.desc(), .text.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        /// The error number.
        #[serde(with = "errno")]
        errno: Errno,
        /// The kernel's error text.
        text: Option<String>,
    },
    /// The answer was lost: the receive buffer was full, or no answer came in time. The request may have been done.
    #[error("the kernel's answer was lost ({0})")]
    Unknown(#[serde(with = "errno")] Errno),
    /// The socket could not be made or used.
    #[error("netlink socket: {0}")]
    Socket(#[serde(with = "errno")] Errno),
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

/// Why a reader gets nothing out of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is about something else.
    #[error("the message is about something else")]
    Other,
    /// It is of that kind, but cut short, or lacks an attribute that all of its kind have.
    #[error("the message cannot be read")]
    Broken,
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self::Socket(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

/// An error number as a number, for serde.
pub(crate) mod errno {
    use nix::errno::Errno;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
    pub(crate) fn serialize<S: Serializer>(errno: &Errno, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i32(*errno as i32)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Errno, D::Error> {
        i32::deserialize(from).map(Errno::from_raw)
    }
}
