//! The value of a lease in etcd: flannel's JSON, byte for byte.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::value::RawValue;
use thiserror::Error;

use crate::format::json::{Fields, RawJson};
use crate::model::lease::{BackendAttrs, Lease, PublicAddrs};
use crate::model::net::{KeyError, Subnets};
use crate::model::netconf::shorten;

/// No record is larger (bytes). flannel's have about 250; the rest is somebody's extension, or an attack.
const LARGEST: usize = 64 << 10;

/// Why a key and value of the store are not a lease.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The key does not name subnets.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The value is too large to look at.
    #[error("the record has {0} bytes, at most 65536 are read")]
    Size(usize),
    /// The value is not a JSON object.
    #[error("the record is not a JSON object: {0}")]
    Json(String),
    /// A field has a value it cannot have.
    #[error("the record's {field} is {value}, not {allowed}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value, shortened.
        value: String,
        /// What may stand there.
        allowed: &'static str,
    },
}

impl Lease {
    /// The record: compact, flannel's fields in flannel's order (`PublicIP` and `PublicIPv6` always, the rest where there is
    /// something), then `Node` and `Backends`, then what others had added.
    pub fn to_record(&self) -> Vec<u8> {
        let mut json = format!("{{\"PublicIP\":\"{}\"", self.public.v4.unwrap_or(Ipv4Addr::UNSPECIFIED));
        let mut field = |name: &str, value: &str| json.extend([",", &quote(name), ":", value]);
        match self.public.v6 {
            Some(addr) => field("PublicIPv6", &format!("\"{addr}\"")),
            None => field("PublicIPv6", "null"),
        }
        if !self.attrs.kind.is_empty() {
            field("BackendType", &quote(&self.attrs.kind));
        }
        for (name, data) in [("BackendData", &self.attrs.v4), ("BackendV6Data", &self.attrs.v6)] {
            if let Some(data) = data {
                field(name, data.as_str());
            }
        }
        if let Some(node) = &self.node {
            field("Node", &quote(node));
        }
        if !self.attrs.others.is_empty() {
            field(BACKENDS, &others_text(&self.attrs.others));
        }
        for (name, value) in &self.extra {
            field(name, value.as_str());
        }
        json.push('}');
        json.into_bytes()
    }

    /// Reads a record. `key` is the last part of the store's key (`10.5.52.0-24`). Everything flannel writes is
    /// accepted; `ttl` and `epoch` are not in the record and stay empty.
    pub fn from_record(key: &str, value: &[u8]) -> Result<Self, RecordError> {
        let subnets: Subnets = key.parse()?;
        if value.len() > LARGEST {
            return Err(RecordError::Size(value.len()));
        }
        let mut fields: Fields =
            serde_json::from_slice(value).map_err(|e| RecordError::Json(e.to_string()))?;
        let v4 = parsed::<Ipv4Addr>(&mut fields, "PublicIP", "an IPv4 address")?;
        let v6 = parsed::<Ipv6Addr>(&mut fields, "PublicIPv6", "an IPv6 address or null")?;
        let public =
            PublicAddrs { v4: v4.filter(|a| !a.is_unspecified()), v6: v6.filter(|a| !a.is_unspecified()) };
        let attrs = BackendAttrs {
            kind: parsed(&mut fields, "BackendType", "a string")?.unwrap_or_default(),
            v4: written(&mut fields, "BackendData").map(RawJson::from),
            v6: written(&mut fields, "BackendV6Data").map(RawJson::from),
            others: others(&mut fields),
        };
        let node = parsed(&mut fields, "Node", "a string")?;
        let extra = fields.rest().into_iter().map(|(name, value)| (name, RawJson::from(value))).collect();
        Ok(Self { node, extra, ..Self::new(subnets, public, attrs) })
    }
}

/// The field of [`BackendAttrs::others`]: `{"wireguard":[{…},null]}`, data per family by kind.
const BACKENDS: &str = "Backends";
/// A host runs no more backends at once than this. Ours.
const OTHERS_MOST: usize = 8;

/// A field that is not as we write it is somebody else's: the record is read without it.
fn others(fields: &mut Fields) -> BTreeMap<String, [Option<RawJson>; 2]> {
    let raw = fields.take(BACKENDS);
    let Some(Ok(kinds)) = raw.map(|raw| serde_json::from_str::<Fields>(raw.get())) else {
        return BTreeMap::new();
    };
    let read = |(kind, raw): (String, &RawValue)| {
        let data: [Option<&RawValue>; 2] = serde_json::from_str(raw.get()).ok()?;
        Some((kind, data.map(|data| data.map(RawJson::from))))
    };
    kinds.rest().into_iter().filter_map(read).take(OTHERS_MOST).collect()
}

fn others_text(others: &BTreeMap<String, [Option<RawJson>; 2]>) -> String {
    let json = |data: &Option<RawJson>| data.as_ref().map_or("null", RawJson::as_str).to_owned();
    let kind = |(kind, [v4, v6]): (&String, &[Option<RawJson>; 2])| {
        format!("{}:[{},{}]", quote(kind), json(v4), json(v6))
    };
    let kinds: Vec<String> = others.iter().map(kind).collect();
    format!("{{{}}}", kinds.join(","))
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn written<'a>(fields: &mut Fields<'a>, name: &str) -> Option<&'a RawValue> {
    fields.take(name).filter(|raw| raw.get() != "null")
}

fn parsed<T: std::str::FromStr>(
    fields: &mut Fields,
    field: &'static str,
    allowed: &'static str,
) -> Result<Option<T>, RecordError> {
    let Some(raw) = written(fields, field) else { return Ok(None) };
    let text = serde_json::from_str::<String>(raw.get()).ok();
    let wrong = || RecordError::Field { field, value: shorten(raw.get()), allowed };
    text.and_then(|text| text.parse().ok()).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attrs::VxlanData;

    const MAC: [u8; 6] = [0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44];

    fn lease(key: &str, v4: &str, v6: Option<&str>, attrs: BackendAttrs) -> Lease {
        let public = PublicAddrs { v4: v4.parse().ok(), v6: v6.map(|a| a.parse().unwrap()) };
        Lease::new(key.parse().unwrap(), public, attrs)
    }

    #[test]
    fn records_are_flannels_byte_for_byte() {
        let data = Some(VxlanData { vni: 1, mac: MAC });
        let cases = [
            (
                lease("10.5.52.0-24", "192.168.64.3", None, BackendAttrs::vxlan(data, None)),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            (
                lease(
                    "10.5.52.0-24&fc00:0:0:1::-64",
                    "192.168.64.3",
                    Some("fd00::3"),
                    BackendAttrs::vxlan(data, data),
                ),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            (
                lease("10.5.52.0-24", "192.168.64.3", None, BackendAttrs::plain("host-gw")),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#,
            ),
            (
                lease("10.5.52.0-24", "192.168.64.3", None, BackendAttrs::plain("")),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#,
            ),
            (
                lease("0.0.0.0-0&fc00:0:0:1::-64", "", Some("fd00::3"), BackendAttrs::plain("host-gw")),
                r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::3","BackendType":"host-gw"}"#,
            ),
        ];
        for (lease, record) in cases {
            assert_eq!(String::from_utf8(lease.to_record()).unwrap(), record);
            assert_eq!(Lease::from_record(&lease.subnets.to_string(), record.as_bytes()), Ok(lease));
        }
    }

    #[test]
    fn what_others_added_to_a_record_is_kept() {
        let record = br#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"ipip","Node":"a \"b\"","zeta":[1, 2],"Alpha":{"x": 1}}"#;
        let lease = Lease::from_record("10.5.52.0-24", record).unwrap();
        assert_eq!(lease.node.as_deref(), Some("a \"b\""));
        assert_eq!(
            String::from_utf8(lease.to_record()).unwrap(),
            r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"ipip","Node":"a \"b\"","Alpha":{"x":1},"zeta":[1,2]}"#
        );
    }

    #[test]
    fn data_of_kinds_that_nobody_here_uses_is_kept_and_written_again() {
        let record = r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"host-gw","Node":"n","Backends":{"ipip":[null,null],"wireguard":[{"PublicKey":"k="},null]}}"#;
        let lease = Lease::from_record("10.5.52.0-24", record.as_bytes()).unwrap();
        assert_eq!(lease.attrs.kinds().collect::<Vec<_>>(), ["host-gw", "ipip", "wireguard"]);
        let [v4, v6] = lease.attrs.of(|kind| kind == "wireguard").unwrap();
        assert_eq!((v4.map(RawJson::as_str), v6), (Some(r#"{"PublicKey":"k="}"#), None));
        assert_eq!(String::from_utf8(lease.to_record()).unwrap(), record);
        for odd in ["7", "[]", r#"{"ipip":1}"#, r#"{"ipip":[1]}"#] {
            let record = format!(r#"{{"PublicIP":"10.0.0.1","BackendType":"vxlan","Backends":{odd}}}"#);
            let lease = Lease::from_record("10.5.52.0-24", record.as_bytes()).unwrap();
            assert_eq!(lease.attrs, BackendAttrs::plain("vxlan"), "{odd}");
        }
    }

    #[test]
    fn a_record_written_by_hand_with_other_case_and_gaps_is_read() {
        let record = br#" { "publicip" : "10.0.0.1" , "backendTYPE":"vxlan", "BackendData": null } "#;
        let lease = Lease::from_record("10.5.52.0-24", record).unwrap();
        assert_eq!((lease.public.v4, lease.public.v6), (Some(Ipv4Addr::new(10, 0, 0, 1)), None));
        assert_eq!(lease.attrs, BackendAttrs::plain("vxlan"));
    }

    #[test]
    fn each_wrong_record_gets_a_sentence_that_names_the_fault() {
        let long = vec![b' '; LARGEST + 1];
        let cases: [(&str, &[u8], &str); 6] = [
            ("junk", b"{}", "the key is not"),
            ("10.5.52.0-24", b"", "not a JSON object"),
            ("10.5.52.0-24", b"[]", "not a JSON object"),
            ("10.5.52.0-24", br#"{"PublicIP":7}"#, "PublicIP is 7, not an IPv4 address"),
            (
                "10.5.52.0-24",
                br#"{"PublicIPv6":"10.0.0.1"}"#,
                "PublicIPv6 is \"10.0.0.1\", not an IPv6 address",
            ),
            ("10.5.52.0-24", &long, "65537 bytes"),
        ];
        for (key, value, sentence) in cases {
            let error = Lease::from_record(key, value).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_as_a_record_are_accepted_or_refused_without_a_panic(value: Vec<u8>) {
            let _ = Lease::from_record("10.5.52.0-24", &value);
        }

        #[test]
        fn any_json_like_record_that_is_read_survives_being_written(
            value in r#"\{("(PublicIP|publicIPv6|BackendData|Node|x)":("1.2.3.4"|null|\{"a": [1 ,"\\\\" ]\}|"é"),){0,4}"z":1\}"#
        ) {
            if let Ok(lease) = Lease::from_record("10.5.52.0-24", value.as_bytes()) {
                prop_assert_eq!(Lease::from_record("10.5.52.0-24", &lease.to_record()), Ok(lease));
            }
        }
    }
}
