//! Failures as the CNI specification has them: a code, a sentence, details.

use std::fmt;

use super::Version;
use crate::contract::json::{Object, object};

/// What kind of failure it is; its number decides what the runtime does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The configuration's version, or this verb in that version, is not supported.
    Version,
    /// A key of the configuration asks for what we do not do.
    Unsupported,
    /// A missing or bad environment variable.
    Environment,
    /// Standard input or a file could not be read or written.
    Io,
    /// Something is not in the form it should have.
    Decoding,
    /// The network configuration makes no sense.
    Config,
    /// The namespace is the host's own.
    Namespace,
    /// The runtime may try again later.
    TryAgain,
    /// STATUS: an ADD would fail.
    NotAvailable,
    /// STATUS: an ADD would fail, and containers that run may be affected.
    #[allow(dead_code)]
    Limited,
    /// The kernel refused.
    Kernel,
    /// CHECK found a difference.
    Check,
    /// The attachment exists already.
    Exists,
    /// The code that another plugin returned.
    Delegate(u32),
}

impl Code {
    /// The number in the document.
    fn number(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::Unsupported => 2,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::Config => 7,
            Self::Namespace => 8,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::Limited => 51,
            Self::Kernel => 100,
            Self::Check => 101,
            Self::Exists => 102,
            Self::Delegate(code) => code,
        }
    }
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    msg: String,
    details: String,
}

impl Failure {
    pub(crate) fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds the cause or the remedy.
    pub(crate) fn details(mut self, details: impl fmt::Display) -> Self {
        self.details = details.to_string();
        self
    }

    /// The same as an answer to STATUS: what would make an ADD fail makes the network unavailable.
    pub(crate) fn into_status(self) -> Self {
        let code = if self.code == Code::Limited { self.code } else { Code::NotAvailable };
        Self { code, ..self }
    }

    /// One failure for all that went wrong where one failure did not end the work.
    pub(crate) fn all(failures: impl IntoIterator<Item = Self>) -> Result<(), Self> {
        let mut failures = failures.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        Err(failures.fold(first, |all, more| Self { msg: format!("{}; {more}", all.msg), ..all }))
    }

    /// The document for standard output.
    pub(crate) fn document(&self, version: Version) -> Object {
        let mut error = object([
            ("cniVersion", version.as_str().into()),
            ("code", self.code.number().into()),
            ("msg", self.msg.as_str().into()),
        ]);
        if !self.details.is_empty() {
            error.set("details", self.details.as_str());
        }
        error
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, " ({})", self.details) }
    }
}

/// Names the step in which the kernel or the file system returned an error.
pub(crate) trait During<T> {
    fn during(self, code: Code, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, code: Code, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(code, format!("{}: {error}", what())))
    }
}
