//! JSON as the runtimes' decoder for Go reads it: keys match without regard to case (containerd writes `HostPort` where
//! others write `hostPort`), the last of duplicate keys counts, and `null` says nothing. An empty text is the same as an
//! absent key.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::Number;
use subnet_lease::{IpNetwork, parse_network};

use crate::contract::{Code, Failure};

/// Any JSON value.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Json {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Self>),
    Object(Object),
}

/// A JSON object in the order it was written.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Object(Vec<(String, Json)>);

impl Object {
    /// Parses a document that must be an object; `what` names it in the failure.
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, Failure> {
        match serde_json::from_slice(bytes) {
            Ok(Json::Object(object)) => Ok(object),
            Ok(_) => Err(Failure::new(Code::Decoding, format!("{what} is not a JSON object"))),
            Err(error) => Err(Failure::new(Code::Decoding, format!("{what} is not JSON")).details(error)),
        }
    }

    /// The last value of a key that is not `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        let is_it = |(k, value): &&(String, Json)| k.eq_ignore_ascii_case(key) && *value != Json::Null;
        self.0.iter().rev().find(is_it).map(|(_, value)| value)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, Failure> {
        let text =
            self.typed(key, "a text", |v| if let Json::Text(t) = v { Some(t.as_str()) } else { None })?;
        Ok(text.filter(|t| !t.is_empty()))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Failure> {
        self.typed(key, "true or false", |v| if let Json::Bool(b) = v { Some(*b) } else { None })
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u32>, Failure> {
        let whole = |n: &Number| n.as_u64().and_then(|n| u32::try_from(n).ok());
        self.typed(key, "a whole number", |v| if let Json::Number(n) = v { whole(n) } else { None })
    }

    pub(crate) fn list(&self, key: &str) -> Result<&[Json], Failure> {
        let list =
            self.typed(key, "a list", |v| if let Json::List(l) = v { Some(l.as_slice()) } else { None })?;
        Ok(list.unwrap_or_default())
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<&Self>, Failure> {
        self.typed(key, "an object", Json::as_object)
    }

    /// The objects of a list.
    pub(crate) fn objects(&self, key: &str) -> Result<Vec<&Self>, Failure> {
        self.list(key)?
            .iter()
            .map(|v| v.as_object().ok_or_else(|| mistyped(key, "a list of objects")))
            .collect()
    }

    /// The texts of a list.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, Failure> {
        self.list(key)?
            .iter()
            .map(
                |v| if let Json::Text(t) = v { Ok(t.clone()) } else { Err(mistyped(key, "a list of texts")) },
            )
            .collect()
    }

    /// An address.
    pub(crate) fn address(&self, key: &str) -> Result<Option<IpAddr>, Failure> {
        self.parsed(key, "an IP address")
    }

    /// An address and a prefix length: neither alone, and no netmask.
    pub(crate) fn network(&self, key: &str, what: &str) -> Result<Option<IpNetwork>, Failure> {
        self.text(key)?.map(|t| parse_network(t).ok_or_else(|| wrong(key, what).details(t))).transpose()
    }

    /// A text in the form of a type of its own; `what` names that form.
    pub(crate) fn parsed<T: FromStr>(&self, key: &str, what: &str) -> Result<Option<T>, Failure> {
        self.text(key)?.map(|t| t.parse().map_err(|_| wrong(key, what).details(t))).transpose()
    }

    /// Every key as it is written, with its value, duplicates included.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Replaces the value of a key, whatever the case it is written in.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Json>) {
        self.0.retain(|(k, _)| !k.eq_ignore_ascii_case(key));
        self.0.push((key.to_owned(), value.into()));
    }

    /// Sets a key that has no value.
    pub(crate) fn set_default(&mut self, key: &str, value: impl Into<Json>) {
        if self.get(key).is_none() {
            self.set(key, value);
        }
    }

    /// The same with keys in alphabetical order at every level.
    pub(crate) fn sorted(mut self) -> Self {
        self.0.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.0.iter_mut().for_each(|(_, value)| value.sort());
        self
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        self.get(key).map(|value| read(value).ok_or_else(|| mistyped(key, what))).transpose()
    }
}

/// A value that the key cannot have.
pub(crate) fn wrong(key: &str, what: &str) -> Failure {
    must_be(Code::Config, key, what)
}

/// A value of another JSON type: the configuration cannot be decoded.
pub(crate) fn mistyped(key: &str, what: &str) -> Failure {
    must_be(Code::Decoding, key, what)
}

fn must_be(code: Code, key: &str, what: &str) -> Failure {
    Failure::new(code, format!("{key:?} in the network configuration must be {what}"))
}

/// An object with these keys.
pub(crate) fn object<const N: usize>(entries: [(&str, Json); N]) -> Object {
    Object(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

impl Json {
    pub(crate) fn as_object(&self) -> Option<&Object> {
        if let Self::Object(object) = self { Some(object) } else { None }
    }

    fn sort(&mut self) {
        match self {
            Self::List(list) => list.iter_mut().for_each(Self::sort),
            Self::Object(object) => *object = std::mem::take(object).sorted(),
            _ => {}
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl From<bool> for Json {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<u32> for Json {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Json {
    fn from(number: usize) -> Self {
        Self::Number(number.into())
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Object> for Json {
    fn from(object: Object) -> Self {
        Self::Object(object)
    }
}

impl<T: Into<Self>> From<Vec<T>> for Json {
    fn from(list: Vec<T>) -> Self {
        Self::List(list.into_iter().map(T::into).collect())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(flag) => serializer.serialize_bool(*flag),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(list) => serializer.collect_seq(list),
            Self::Object(object) => object.serialize(serializer),
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Json, E> {
        Number::from_f64(number).map(Json::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(Object(entries)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Object {
        Object::parse("the test", text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_match_without_regard_to_case_at_every_level() {
        let conf = parse(r#"{"RuntimeConfig":{"PortMappings":[{"HostPort":80}]}}"#);
        let runtime = conf.object("runtimeConfig").unwrap().unwrap();
        assert_eq!(runtime.objects("portMappings").unwrap()[0].number("hostPort").unwrap(), Some(80));
    }

    #[test]
    fn the_last_of_duplicate_keys_wins_and_null_says_nothing() {
        let conf = parse(r#"{"mtu":1,"MTU":2,"name":"a","Name":null,"type":null,"dns":""}"#);
        assert_eq!(conf.number("mtu").unwrap(), Some(2));
        assert_eq!(conf.text("name").unwrap(), Some("a"));
        assert_eq!(conf.text("type").unwrap(), None);
        assert_eq!(conf.text("dns").unwrap(), None);
    }

    #[test]
    fn a_value_of_the_wrong_form_is_named() {
        let conf = parse(r#"{"mtu":"1450","isGateway":1,"mac":-1}"#);
        assert!(conf.number("mtu").unwrap_err().to_string().contains("\"mtu\""));
        assert_eq!(conf.flag("isGateway").unwrap_err().code, Code::Decoding);
        assert!(conf.number("mac").is_err());
    }

    #[test]
    fn setting_a_key_replaces_every_spelling_of_it() {
        let mut conf = parse(r#"{"MTU":1,"mtu":2,"b":{"z":1,"a":2}}"#);
        conf.set("mtu", 3u32);
        assert_eq!(conf.sorted().to_string(), r#"{"b":{"a":2,"z":1},"mtu":3}"#);
    }

    #[test]
    fn what_is_no_object_or_nests_too_deep_is_refused_and_never_a_crash() {
        for bad in ["", "[]", "null", "{", "{}x", "\u{0}", &"[".repeat(100_000), &"{\"a\":".repeat(100_000)] {
            assert!(Object::parse("the test", bad.as_bytes()).is_err(), "{bad:.20}");
        }
        assert!(Object::parse("the test", b"{\"a\":\"\xff\"}").is_err());
    }
}
