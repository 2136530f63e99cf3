//! Nothing but a lease.

use super::{Kind, NoData};
use crate::format::json::{Fields, RawJson};
use crate::model::netconf::NetConfError;

/// A lease and nothing more; it has no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllocConfig;

impl Kind for AllocConfig {
    const NAME: &'static str = "alloc";
    // flannel leaves the field out; some others write it.
    const RECORD: &'static str = "";
    const ALIASES: &'static [&'static str] = &["alloc"];
    type Data = NoData;

    fn read(_: &mut Fields, _: &mut Vec<NetConfError>) -> Self {
        Self
    }

    fn data(&self, _: Option<&RawJson>) -> Result<Option<NoData>, String> {
        Ok(Some(NoData))
    }
}
