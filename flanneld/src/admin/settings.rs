//! `flannelctl config`: the settings in force.

use serde_json::{Value, json};

use super::{Answer, Table};
use crate::config::RawConfig;

pub(super) fn run(raw: &RawConfig) -> Answer {
    let effective: Vec<_> =
        raw.effective().map(|(name, value, source)| [name.to_owned(), value, source.to_string()]).collect();
    let entry =
        |[name, value, source]: &[String; 3]| json!({ "name": name, "value": value, "source": source });
    Answer::new(effective.iter().map(entry).collect::<Vec<Value>>())
        .table(Table::new(&["SETTING", "VALUE", "SOURCE"], effective.iter().map(|row| row.to_vec())))
}
