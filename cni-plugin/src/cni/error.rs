//! Failures as the CNI specification has them: a code, a sentence, details.

use std::fmt;

use super::Version;
use crate::json::{Object, object};

/// What went wrong, and who does what next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The configuration's version, or this verb in that version, is not supported.
    Version = 1,
    /// A key of the configuration asks for what we do not do.
    Unsupported = 2,
    /// No container ID; nothing to clean up.
    Container = 3,
    /// A missing or bad environment variable.
    Environment = 4,
    /// Standard input or a file could not be read or written.
    Io = 5,
    /// Something is not in the form it should have.
    Decoding = 6,
    /// The network configuration makes no sense.
    Config = 7,
    /// The namespace is the host's own.
    Namespace = 8,
    /// It may go right later.
    TryAgain = 11,
    /// STATUS: an ADD would fail.
    NotAvailable = 50,
    /// STATUS: an ADD would fail, and containers that run may be affected.
    #[allow(dead_code)]
    Limited = 51,
    /// The kernel refused.
    Kernel = 100,
    /// CHECK found a difference.
    Check = 101,
    /// The attachment exists already.
    Exists = 102,
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

    /// Adds what lies behind it.
    pub(crate) fn details(mut self, details: impl fmt::Display) -> Self {
        self.details = details.to_string();
        self
    }

    /// The same as an answer to STATUS: whatever would fail an ADD makes the network not available.
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
            ("code", (self.code as u32).into()),
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

/// Names what was done when the kernel or the file system refused.
pub(crate) trait During<T> {
    fn during(self, code: Code, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, code: Code, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(code, format!("{}: {error}", what())))
    }
}
