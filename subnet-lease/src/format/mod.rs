//! Texts that other programs read or write: records, `subnet.env`, JSON.

pub(crate) mod json;
pub(crate) mod record;
pub(crate) mod subnet_env;
