//! The annotations on a Node: flannel's names and values, byte for byte.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::format::json::RawJson;
use crate::model::lease::{BackendAttrs, PublicAddrs};
use crate::store::StoreError;

/// No value is read that is larger, in bytes. flannel's have less than 100.
const LARGEST: usize = 64 << 10;

/// What follows the prefix.
const SUFFIXES: [&str; 10] = [
    "kube-subnet-manager",
    "backend-type",
    "backend-data",
    "backend-v6-data",
    "public-ip",
    "public-ipv6",
    "public-ip-overwrite",
    "public-ipv6-overwrite",
    "node-public-ip",
    "node-public-ipv6",
];
pub(super) const MANAGED: usize = 0;
const TYPE: usize = 1;
const DATA: [usize; 2] = [2, 3];
pub(super) const PUBLIC: [usize; 2] = [4, 5];
pub(super) const OVERWRITE: [usize; 2] = [6, 7];
pub(super) const NODE_PUBLIC: [usize; 2] = [8, 9];
/// The first so many are ours to write.
const WRITTEN: usize = 6;

/// What the names begin with, its last character `/` or `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(String);

/// The values that one Node has, by the place of their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Annotations<T>(pub(super) [Option<T>; SUFFIXES.len()]);

impl Prefix {
    /// Checks a prefix as flannel does: at most one `/`; none means that one follows.
    pub(super) fn new(text: &str) -> Result<Self, StoreError> {
        let wrong = |why: &str| Err(StoreError::Config(format!("kube-annotation-prefix is {text:?}: {why}")));
        let mut whole = text.to_owned();
        if !whole.contains('/') {
            whole.push('/');
        }
        if !whole.ends_with(['/', '-']) {
            whole.push('-');
        }
        let Some((domain, name)) = whole.split_once('/') else { return wrong("no name") };
        let part = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        let begins = |text: &str| text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let is_domain = domain.len() <= 200
            && domain.split('.').all(begins)
            && part(domain)
            && !domain.contains(|c: char| c == '_' || c.is_ascii_uppercase())
            && domain.ends_with(|c: char| c.is_ascii_alphanumeric());
        if !is_domain {
            return wrong("a DNS name, which may be followed by / and the beginning of a name");
        }
        if name.contains('/') || !part(name) || name.len() > 40 || !(name.is_empty() || begins(name)) {
            return wrong("after the / only letters, digits, '-', '.' and '_' may stand");
        }
        Ok(Self(whole))
    }

    /// The place of a name.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        let suffix = name.strip_prefix(&self.0)?;
        SUFFIXES.iter().position(|known| *known == suffix)
    }

    pub(super) fn name(&self, place: usize) -> String {
        format!("{}{}", self.0, SUFFIXES[place])
    }
}

impl<T: AsRef<str>> Annotations<T> {
    fn get(&self, place: usize) -> Option<&str> {
        self.0[place].as_ref().map(AsRef::as_ref)
    }

    pub(super) fn is_managed(&self) -> bool {
        self.get(MANAGED) == Some("true")
    }

    pub(super) fn owned(&self) -> Annotations<Box<str>> {
        Annotations(std::array::from_fn(|place| self.get(place).map(Into::into)))
    }

    /// Where the Node is reached, and how its backend is.
    pub(super) fn read(&self) -> Result<(PublicAddrs, BackendAttrs), String> {
        if let Some(place) = (0..WRITTEN).find(|place| self.get(*place).is_some_and(|v| v.len() > LARGEST)) {
            return Err(format!("its {} has more than {LARGEST} bytes", SUFFIXES[place]));
        }
        let v4: Option<Ipv4Addr> = self.address(PUBLIC[0], "an IPv4 address")?;
        let v6: Option<Ipv6Addr> = self.address(PUBLIC[1], "an IPv6 address")?;
        let attrs = BackendAttrs {
            kind: self.get(TYPE).unwrap_or_default().to_owned(),
            v4: self.data(DATA[0])?,
            v6: self.data(DATA[1])?,
            ..BackendAttrs::default()
        };
        let public =
            PublicAddrs { v4: v4.filter(|a| !a.is_unspecified()), v6: v6.filter(|a| !a.is_unspecified()) };
        Ok((public, attrs))
    }

    /// An address that an operator wrote in place of the one that the daemon would choose.
    pub(super) fn asked(&self, place: usize) -> Option<&str> {
        self.get(place).filter(|text| !text.is_empty())
    }

    fn address<A: std::str::FromStr>(&self, place: usize, what: &str) -> Result<Option<A>, String> {
        let Some(text) = self.asked(place) else { return Ok(None) };
        let wrong = || format!("its {} is {}, not {what}", SUFFIXES[place], shown(text));
        text.parse().map(Some).map_err(|_| wrong())
    }

    fn data(&self, place: usize) -> Result<Option<RawJson>, String> {
        let Some(text) = self.asked(place).filter(|text| *text != "null") else { return Ok(None) };
        let json = RawJson::new(text);
        json.map(Some).map_err(|_| format!("its {} is {}, not JSON", SUFFIXES[place], shown(text)))
    }
}

impl Annotations<Box<str>> {
    /// What flannel writes for such a host. An address that an operator overwrites is written as he has it.
    pub(super) fn wished<T: AsRef<str>>(
        public: PublicAddrs,
        attrs: &BackendAttrs,
        now: &Annotations<T>,
    ) -> Self {
        let mut wish = Self::default();
        let mut set = |place: usize, text: &str| wish.0[place] = Some(text.into());
        set(MANAGED, "true");
        set(TYPE, &attrs.kind);
        // Without an IPv4 device vxlan writes nothing of IPv4; the others then write an address of zeros.
        let tunnel = attrs.kind == "vxlan";
        let addresses = [
            public.v4.map(|a| a.to_string()).or_else(|| (!tunnel).then(|| "0.0.0.0".to_owned())),
            public.v6.map(|a| a.to_string()),
        ];
        for (n, data) in [&attrs.v4, &attrs.v6].into_iter().enumerate() {
            let Some(address) = addresses[n].as_deref().filter(|_| !tunnel || data.is_some()) else {
                continue;
            };
            set(PUBLIC[n], now.asked(OVERWRITE[n]).unwrap_or(address));
            set(DATA[n], data.as_ref().map_or("null", RawJson::as_str));
        }
        wish
    }

    /// The places that differ from what the Node has, among those that are ours to write.
    pub(super) fn differ<T: AsRef<str>>(&self, now: &Annotations<T>) -> Vec<usize> {
        (0..WRITTEN).filter(|place| self.get(*place) != now.get(*place)).collect()
    }
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attrs::VxlanData;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations<String> {
        let prefix = Prefix::new("flannel.alpha.coreos.com").unwrap();
        let mut all = Annotations::default();
        for (suffix, value) in pairs {
            let place = prefix.place(&format!("flannel.alpha.coreos.com/{suffix}")).unwrap();
            all.0[place] = Some((*value).to_owned());
        }
        all
    }

    #[test]
    fn a_prefix_is_completed_as_flannel_does() {
        let name = |text| Prefix::new(text).map(|prefix| prefix.name(MANAGED));
        assert_eq!(name("flannel.alpha.coreos.com").unwrap(), "flannel.alpha.coreos.com/kube-subnet-manager");
        assert_eq!(name("a.b/net").unwrap(), "a.b/net-kube-subnet-manager");
        assert_eq!(name("a.b/net-").unwrap(), "a.b/net-kube-subnet-manager");
        assert_eq!(name("a.b/").unwrap(), "a.b/kube-subnet-manager");
        for wrong in ["", "/", "a/b/c", "a b", "-a/b", "a/ü", "a..b", "A.b"] {
            let said = name(wrong).unwrap_err().to_string();
            assert!(said.starts_with("kube-annotation-prefix is "), "{wrong}: {said}");
        }
    }

    #[test]
    fn what_is_written_is_flannels_byte_for_byte() {
        let data = VxlanData { vni: 1, mac: [0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44] };
        let public: PublicAddrs =
            ["192.168.64.3".parse().unwrap(), "fd00::3".parse().unwrap()].into_iter().collect();
        let wish = |attrs: &BackendAttrs, now: &Annotations<String>| {
            Annotations::wished(public, attrs, now).0.map(|value| value.map(String::from))
        };
        let none = annotations(&[]);
        let json = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;
        let vxlan = annotations(&[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", json),
            ("public-ip", "192.168.64.3"),
        ]);
        assert_eq!(wish(&BackendAttrs::vxlan(Some(data), None), &none), vxlan.0);
        let host_gw = annotations(&[
            ("kube-subnet-manager", "true"),
            ("backend-type", "host-gw"),
            ("backend-data", "null"),
            ("public-ip", "203.0.113.9"),
            ("backend-v6-data", "null"),
            ("public-ipv6", "fd00::3"),
        ]);
        let overwritten =
            annotations(&[("public-ip-overwrite", "203.0.113.9"), ("public-ipv6-overwrite", "")]);
        assert_eq!(wish(&BackendAttrs::plain("host-gw"), &overwritten), host_gw.0);
        let only_v6 = PublicAddrs { v4: None, ..public };
        let written = Annotations::wished(only_v6, &BackendAttrs::plain("host-gw"), &none);
        assert_eq!(written.get(PUBLIC[0]), Some("0.0.0.0"));
        let written = Annotations::wished(only_v6, &BackendAttrs::vxlan(None, Some(data)), &none);
        assert_eq!((written.get(PUBLIC[0]), written.get(DATA[1])), (None, Some(json)));
    }

    #[test]
    fn what_was_written_is_read_again_and_differs_in_nothing() {
        let data = VxlanData { vni: 1, mac: [2, 0, 0, 0, 0, 1] };
        let attrs = BackendAttrs::vxlan(Some(data), Some(data));
        let public: PublicAddrs =
            ["10.0.0.1".parse().unwrap(), "fd00::3".parse().unwrap()].into_iter().collect();
        let written = Annotations::wished(public, &attrs, &annotations(&[]));
        assert_eq!(written.read(), Ok((public, attrs)));
        assert!(written.is_managed() && written.differ(&written).is_empty());
        assert_eq!(written.differ(&annotations(&[("kube-subnet-manager", "true")])).len(), 5);
    }

    #[test]
    fn each_wrong_value_is_named() {
        let error = |pairs| annotations(pairs).read().unwrap_err();
        assert_eq!(error(&[("public-ip", "x")]), "its public-ip is \"x\", not an IPv4 address");
        assert_eq!(
            error(&[("public-ipv6", "10.0.0.1")]),
            "its public-ipv6 is \"10.0.0.1\", not an IPv6 address"
        );
        assert_eq!(error(&[("backend-data", "{")]), "its backend-data is \"{\", not JSON");
        let long = "x".repeat(LARGEST + 1);
        assert_eq!(error(&[("backend-type", &long)]), "its backend-type has more than 65536 bytes");
    }

    proptest! {
        #[test]
        fn any_values_are_read_or_refused_without_a_panic(values: [Option<String>; 10]) {
            let _ = Annotations(values).read();
        }

        #[test]
        fn any_prefix_is_taken_or_refused_without_a_panic(text: String) {
            let _ = Prefix::new(&text);
        }
    }
}
