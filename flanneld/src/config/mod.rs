//! The daemon's settings: as written ([`RawConfig`]) and as meant ([`NodeConfig`]).
//!
//! ```text
//!   default < file (--config) < variable < flag ─▶ RawConfig ─▶ NodeConfig, or every error at once
//! ```

mod etcd;
mod files;
mod kube;
mod node;
mod raw;

use std::fmt;

pub(crate) use etcd::prefix as clean_prefix;
pub use files::SettingsFiles;
pub(crate) use files::UNIT_FILE;
pub use node::NodeConfig;
pub(crate) use node::loopback;
pub(crate) use raw::environment_file;
pub use raw::{Environment, RawConfig, Setting, Source, environment};

use crate::exit::{Exit, Failure};

/// One setting that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    exit: Exit,
    setting: String,
    why: String,
}

impl ConfigError {
    fn new(exit: Exit, setting: String, why: String) -> Self {
        Self { exit, setting, why }
    }

    fn invalid(setting: String, why: String) -> Self {
        Self::new(Exit::Invalid, setting, why)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.why)
    }
}

/// Everything that is wrong with the settings, one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// The value, unless something is wrong.
    fn or<T>(errors: Vec<ConfigError>, value: T) -> Result<T, Self> {
        if errors.is_empty() { Ok(value) } else { Err(Self(errors)) }
    }
}

impl From<ConfigErrors> for Failure {
    /// Not *unsupported* unless that is all that is wrong.
    fn from(errors: ConfigErrors) -> Self {
        let unsupported = errors.0.iter().all(|error| error.exit == Exit::Unsupported);
        Self::new(if unsupported { Exit::Unsupported } else { Exit::Invalid }, errors)
    }
}

fn lines(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
