//! `flannelctl config`: the settings in force.

use serde_json::{Value, json};

use super::Form;
use crate::config::RawConfig;
use crate::exit::Failure;

pub(super) fn run(raw: &RawConfig, form: Form) -> Result<String, Failure> {
    let effective = raw.effective();
    Ok(match form {
        Form::Json => {
            let entry = |(name, value, source): (_, _, crate::config::Source)| json!({ "name": name, "value": value, "source": source.to_string() });
            super::json(&Value::Array(effective.map(entry).collect()))
        }
        Form::Table => {
            let row = |(name, value, source): (&str, String, crate::config::Source)| {
                vec![name.to_owned(), value, source.to_string()]
            };
            super::table(&["SETTING", "VALUE", "SOURCE"], effective.map(row))
        }
    })
}
