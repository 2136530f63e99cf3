//! The contract with the runtime: environment and standard input come in, one JSON document goes out.
//!
//! ```text
//!   CNI_COMMAND, CNI_…   ─┐
//!   configuration (stdin) ├─▶ Call ──▶ a plugin's verb ──▶ Attachment, version list, or Failure ──▶ one document
//!                         ┘
//! ```

mod args;
mod attachment;
mod call;
mod error;
pub(crate) mod json;
mod version;

pub(crate) use args::{CniArgs, address};
pub(crate) use attachment::{Address, Attachment, Device, Dns, Interface, Route};
#[cfg(test)]
pub(crate) use call::LONGEST_NAME;
pub(crate) use call::{Call, Key, Verb, is_name};
pub(crate) use error::{Code, During, Failure};
pub(crate) use version::Version;
