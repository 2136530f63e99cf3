//! Plain routes between hosts on one wire.

use super::{Kind, NoData};
use crate::format::json::{Fields, RawJson};
use crate::model::netconf::NetConfError;

/// Plain routes; it has no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostGwConfig;

impl Kind for HostGwConfig {
    const NAME: &'static str = "host-gw";
    type Data = NoData;

    fn read(_: &mut Fields, _: &mut Vec<NetConfError>) -> Self {
        Self
    }

    fn data(&self, _: Option<&RawJson>) -> Result<Option<NoData>, String> {
        Ok(Some(NoData))
    }
}
