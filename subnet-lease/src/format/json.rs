use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::value::RawValue;
use thiserror::Error;

/// A JSON value kept as the text it was, without white space between its parts.
///
/// Text, not a tree: what another program wrote goes back byte for byte, keys in their order, and ten thousand of
/// them stay small.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawJson(Box<str>);

/// A text was not one JSON value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not JSON: {0}")]
pub struct NotJson(String);

impl RawJson {
    /// Checks that `text` is one JSON value, and removes the white space around its parts.
    pub fn new(text: &str) -> Result<Self, NotJson> {
        let raw: &RawValue = serde_json::from_str(text).map_err(|e| NotJson(e.to_string()))?;
        Ok(Self::from(raw))
    }

    /// Text that the caller built and knows to be compact JSON.
    pub(crate) fn trusted(json: String) -> Self {
        Self(json.into())
    }

    /// The compact text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&RawValue> for RawJson {
    fn from(raw: &RawValue) -> Self {
        Self(compact(raw.get()).into())
    }
}

impl fmt::Display for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// As a text that holds the JSON: what others wrote must not become part of what is around it.
impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn compact(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    json.chars()
        .filter(|c| {
            let keep = quoted || !c.is_ascii_whitespace();
            match c {
                '"' if !escaped => quoted = !quoted,
                _ => {}
            }
            escaped = quoted && *c == '\\' && !escaped;
            keep
        })
        .collect()
}

/// The members of a JSON object as written: in order, doubles and unknown keys included. Go matches keys without
/// regard to case and lets the last of several win; so does [`Fields::take`].
#[derive(Debug)]
pub(crate) struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Removes every member of this name and returns the last one; a null only where there is nothing else.
    pub(crate) fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let mut found = None;
        self.0.retain(|(key, value)| {
            let hit = key.eq_ignore_ascii_case(name);
            if hit && (value.get() != "null" || found.is_none()) {
                found = Some(*value);
            }
            !hit
        });
        found
    }

    /// What nobody took.
    pub(crate) fn rest(self) -> Vec<(String, &'a RawValue)> {
        self.0
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_goes_except_inside_strings() {
        let raw = RawJson::new(" { \"a\" : [ 1 , \"x \\\" y\\\\\" , \" \" ] }\n").unwrap();
        assert_eq!(raw.as_str(), r#"{"a":[1,"x \" y\\"," "]}"#);
    }

    #[test]
    fn the_last_of_several_keys_wins_whatever_its_case() {
        let mut fields: Fields = serde_json::from_str(r#"{"vni":1,"VNI":2,"Vni":null,"x":3}"#).unwrap();
        assert_eq!(fields.take("VNI").unwrap().get(), "2");
        assert_eq!(fields.rest().len(), 1);
    }
}
