//! A Node as far as it matters here, read in place: nothing is kept or copied of what a heartbeat changes.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::annotations::{Annotations, Prefix};
use super::proto::{Broken, Fields, Value};
use crate::model::lease::{FiledBy, Lease};
use crate::model::net::{Subnets, masked, parse_network};

/// Marks the bookmark that ends a streamed list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";
/// The condition that network plugins keep.
pub(super) const UNAVAILABLE: &str = "NetworkUnavailable";

/// A Node, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
    pub(super) version: &'a str,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) annotations: Annotations<&'a str>,
    pub(super) unavailable: Option<Condition<&'a str>>,
    pub(super) ends_list: bool,
    pub(super) cidrs: [Option<&'a str>; 2],
    /// More than two, which no cluster has.
    pub(super) crowded: bool,
    /// The field that came before there were several.
    pub(super) cidr: &'a str,
}

/// The Node's condition NetworkUnavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition<T> {
    pub(super) status: T,
    pub(super) reason: T,
}

/// What a Node means to its peers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing: no flannel runs there, or it has no podCIDR yet.
    Nothing,
    Lease(Lease),
    /// A lease, and something of it is wrong: its subnets, where they can be read, and the reason.
    Unreadable(Option<Subnets>, String),
}

impl<'a> Node<'a> {
    pub(super) fn read(message: Fields<'a>, prefix: &Prefix) -> Result<Self, Broken> {
        let mut node = Self::default();
        for field in message {
            match field? {
                (1, meta) => node.read_meta(meta.fields()?, prefix)?,
                (2, spec) => node.read_spec(spec.fields()?)?,
                (3, status) => node.read_status(status.fields()?)?,
                _ => {}
            }
        }
        Ok(node)
    }

    fn read_meta(&mut self, meta: Fields<'a>, prefix: &Prefix) -> Result<(), Broken> {
        for field in meta {
            match field? {
                (1, name) => self.name = name.text()?,
                (5, uid) => self.uid = uid.text()?,
                (6, version) => self.version = version.text()?,
                (8, time) => self.created = seconds(time)?,
                (12, entry) => self.read_annotation(entry.fields()?, prefix)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_annotation(&mut self, entry: Fields<'a>, prefix: &Prefix) -> Result<(), Broken> {
        let (mut name, mut value) = ("", "");
        for field in entry {
            match field? {
                (1, text) => name = text.text()?,
                (2, text) => value = text.text()?,
                _ => {}
            }
        }
        if let Some(place) = prefix.place(name) {
            self.annotations.0[place] = Some(value);
        }
        self.ends_list |= name == LIST_ENDS;
        Ok(())
    }

    fn read_spec(&mut self, spec: Fields<'a>) -> Result<(), Broken> {
        let mut all = 0;
        for field in spec {
            match field? {
                (1, text) => self.cidr = text.text()?,
                (7, text) => {
                    match self.cidrs.get_mut(all) {
                        Some(place) => *place = Some(text.text()?),
                        None => self.crowded = true,
                    }
                    all += 1;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_status(&mut self, status: Fields<'a>) -> Result<(), Broken> {
        for field in status {
            let (4, condition) = field? else { continue };
            let (mut kind, mut found) = ("", Condition { status: "", reason: "" });
            for field in condition.fields()? {
                match field? {
                    (1, text) => kind = text.text()?,
                    (2, text) => found.status = text.text()?,
                    (5, text) => found.reason = text.text()?,
                    _ => {}
                }
            }
            if kind == UNAVAILABLE {
                self.unavailable = Some(found);
            }
        }
        Ok(())
    }

    /// Of everything that decides what the Node means to others and to itself; a heartbeat leaves it as it was.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.uid, self.created, self.cidr, self.cidrs, self.crowded).hash(&mut hasher);
        self.annotations.hash(&mut hasher);
        hasher.finish()
    }

    /// The podCIDRs; none where the Node has none yet. The error is a sentence.
    pub(super) fn subnets(&self) -> Result<Option<Subnets>, String> {
        let first = Some(self.cidr).filter(|text| !text.is_empty());
        let cidrs = if self.cidrs[0].is_some() { self.cidrs } else { [first, None] };
        if self.crowded {
            return Err("it has more than two podCIDRs".to_owned());
        }
        let mut nets = Vec::with_capacity(2);
        for text in cidrs.into_iter().flatten() {
            nets.push(
                parse_network(text)
                    .map(masked)
                    .ok_or_else(|| format!("its podCIDR {text:?} is not a network"))?,
            );
        }
        if let [a, b] = nets[..]
            && a.is_ipv4() == b.is_ipv4()
        {
            return Err(format!("its podCIDRs {a} and {b} are of one family"));
        }
        if nets.is_empty() {
            return Ok(None);
        }
        Subnets::of(nets).map(Some).ok_or_else(|| "a podCIDR of it has the length 0".to_owned())
    }

    pub(super) fn reading(&self) -> Reading {
        if !self.annotations.is_managed() {
            return Reading::Nothing;
        }
        let named = |why: String| format!("node {}: {why}", self.name);
        let subnets = match self.subnets() {
            Ok(None) => return Reading::Nothing,
            Ok(Some(subnets)) => subnets,
            Err(why) => return Reading::Unreadable(None, named(why)),
        };
        match self.annotations.read() {
            Ok((public, attrs)) => Reading::Lease(Lease {
                node: Some(self.name.to_owned()),
                epoch: self.created,
                filed_by: FiledBy::Node,
                ..Lease::new(subnets, public, attrs)
            }),
            Err(why) => Reading::Unreadable(Some(subnets), named(why)),
        }
    }
}

/// The seconds of a `Time`.
fn seconds(time: Value<'_>) -> Result<u64, Broken> {
    for field in time.fields()? {
        if let (1, seconds) = field? {
            return seconds.number();
        }
    }
    Ok(0)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::proto::object;
    use super::super::proto::tests::{field, whole};
    use super::*;

    pub(crate) fn prefix() -> Prefix {
        Prefix::new("flannel.alpha.coreos.com").unwrap()
    }

    /// The bytes of a Node.
    pub(crate) fn bytes(name: &str, cidrs: &[&str], annotations: &[(&str, &str)]) -> Vec<u8> {
        let mut meta =
            [field(1, name), field(5, format!("uid-of-{name}")), field(6, "7"), field(8, [8, 100])].concat();
        for (key, value) in annotations {
            let key = format!("flannel.alpha.coreos.com/{key}");
            meta.extend(field(12, [field(1, key), field(2, value)].concat()));
        }
        meta.extend(field(12, [field(1, "other"), field(2, "x")].concat()));
        let mut spec = cidrs.first().map(|first| field(1, first)).unwrap_or_default();
        spec.extend(cidrs.iter().flat_map(|cidr| field(7, cidr)));
        let condition = [field(1, UNAVAILABLE), field(2, "True"), field(5, "NoRouteCreated")].concat();
        let status = [field(4, [field(1, "Ready"), field(2, "True")].concat()), field(4, condition)].concat();
        whole("Node", &[field(1, meta), field(2, spec), field(3, status)].concat())
    }

    fn read(bytes: &[u8]) -> Node<'_> {
        Node::read(object(bytes).unwrap().1, &prefix()).unwrap()
    }

    const GOOD: &[(&str, &str)] = &[
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("backend-data", "null"),
        ("public-ip", "10.0.0.1"),
    ];

    #[test]
    fn a_node_is_read_as_a_lease() {
        let bytes = bytes("a", &["10.244.3.0/24", "fc00:0:0:3::/64"], GOOD);
        let node = read(&bytes);
        assert_eq!((node.name, node.uid, node.version, node.created), ("a", "uid-of-a", "7", 100));
        assert_eq!(node.unavailable, Some(Condition { status: "True", reason: "NoRouteCreated" }));
        let Reading::Lease(lease) = node.reading() else { panic!("{:?}", node.reading()) };
        assert_eq!(lease.subnets.to_string(), "10.244.3.0-24&fc00:0:0:3::-64");
        assert_eq!((lease.public.to_string().as_str(), lease.attrs.kind.as_str()), ("10.0.0.1", "host-gw"));
        assert_eq!((lease.node.as_deref(), lease.epoch, lease.attrs.v4), (Some("a"), 100, None));
    }

    #[test]
    fn a_node_without_flannel_or_podcidr_means_nothing() {
        assert_eq!(read(&bytes("a", &["10.244.3.0/24"], &GOOD[1..])).reading(), Reading::Nothing);
        assert_eq!(read(&bytes("a", &[], GOOD)).reading(), Reading::Nothing);
    }

    #[test]
    fn each_wrong_node_gets_a_sentence_with_its_name() {
        let said = |cidrs: &[&str], annotations: &[(&str, &str)]| match read(&bytes("a", cidrs, annotations))
            .reading()
        {
            Reading::Unreadable(_, said) => said,
            other => panic!("{other:?}"),
        };
        assert_eq!(said(&["10.244.3.0"], GOOD), "node a: its podCIDR \"10.244.3.0\" is not a network");
        let one = said(&["10.244.3.0/24", "10.244.4.0/24"], GOOD);
        assert_eq!(one, "node a: its podCIDRs 10.244.3.0/24 and 10.244.4.0/24 are of one family");
        assert_eq!(said(&["0.0.0.0/0"], GOOD), "node a: a podCIDR of it has the length 0");
        assert_eq!(
            said(&["10.1.0.0/24", "fc00::/64", "fc01::/64"], GOOD),
            "node a: it has more than two podCIDRs"
        );
        let broken = [GOOD, &[("public-ip", "x")]].concat();
        assert_eq!(said(&["10.244.3.0/24"], &broken), "node a: its public-ip is \"x\", not an IPv4 address");
    }

    #[test]
    fn the_digest_follows_what_matters_and_nothing_else() {
        let digest = |cidr: &str, annotations: &[(&str, &str)]| {
            let bytes = bytes("a", &[cidr], annotations);
            read(&bytes).digest()
        };
        let before = digest("10.244.3.0/24", GOOD);
        let mut heartbeat = bytes("a", &["10.244.3.0/24"], GOOD);
        // The version of the object, which every change moves.
        let at = heartbeat.windows(3).position(|w| w == [6 << 3 | 2, 1, b'7']).unwrap();
        heartbeat[at + 2] = b'8';
        assert_eq!(read(&heartbeat).version, "8");
        assert_eq!(read(&heartbeat).digest(), before);
        assert_ne!(digest("10.244.4.0/24", GOOD), before);
        assert_ne!(digest("10.244.3.0/24", &GOOD[..3]), before);
    }

    proptest! {
        #[test]
        fn a_damaged_node_is_read_or_refused_without_a_panic(at: prop::sample::Index, byte: u8, end: prop::sample::Index) {
            let mut damaged = bytes("a", &["10.244.3.0/24", "fc00:0:0:3::/64"], GOOD);
            let place = at.index(damaged.len());
            damaged[place] = byte;
            damaged.truncate(end.index(damaged.len()) + 1);
            if let Ok((_, fields)) = object(&damaged)
                && let Ok(node) = Node::read(fields, &prefix())
            {
                let _ = (node.reading(), node.digest());
            }
        }
    }
}
