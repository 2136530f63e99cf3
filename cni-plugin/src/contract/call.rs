//! One call of the runtime: the verb, its variables, its configuration.

use std::collections::BTreeSet;
use std::io::Read;

use backends::IfName;

use super::{Attachment, Code, During, Failure, Version};
use crate::contract::json::{Object, wrong};

/// What the runtime asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
}

impl Verb {
    const ALL: [Self; 6] = [Self::Add, Self::Check, Self::Del, Self::Gc, Self::Status, Self::Version];

    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        // Runtimes match on this sentence.
        let unknown = || Failure::new(Code::Environment, format!("unknown CNI_COMMAND: {text}"));
        Self::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or_else(unknown)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The first version of the specification that has it.
    fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// The variables that it needs. Others are ignored: libraries fill them with `dummy`.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc => &["CNI_PATH"],
            Self::Status | Self::Version => &[],
        }
    }
}

/// A call whose variables and configuration are of the right form.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    pub(crate) version: Version,
    /// The configuration as given.
    pub(crate) conf: Object,
    /// Name of the network.
    pub(crate) network: String,
    /// `CNI_CONTAINERID`; empty for GC and STATUS.
    pub(crate) container: String,
    /// `CNI_IFNAME`; empty for GC and STATUS.
    pub(crate) ifname: IfName,
    /// `CNI_NETNS`, empty when a DEL has none.
    pub(crate) netns: String,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be our own.
    pub(crate) own_allowed: bool,
    /// `CNI_ARGS` as given.
    pub(crate) args: String,
    /// `CNI_PATH` as given: where other plugins are.
    #[allow(dead_code, reason = "for delegates")]
    pub(crate) path: String,
}

/// One attachment: a container ID and an interface name.
pub(crate) type Key = (String, String);

impl Call {
    /// Checks the variables that the verb uses, then reads the configuration to its end.
    pub(crate) fn read(
        verb: Verb,
        variable: impl Fn(&str) -> Option<String>,
        input: &mut impl Read,
    ) -> Result<Self, Failure> {
        let value = |name: &str| variable(name).unwrap_or_default();
        let missing: Vec<_> = verb.required().iter().filter(|name| value(name).is_empty()).copied().collect();
        if !missing.is_empty() {
            let names = missing.join(", ");
            let msg = format!("CNI_COMMAND {} needs the variables {names}", verb.as_str());
            return Err(Failure::new(Code::Environment, msg));
        }
        let (container, ifname) = match verb {
            Verb::Add | Verb::Check | Verb::Del => (value("CNI_CONTAINERID"), value("CNI_IFNAME")),
            _ => (String::new(), String::new()),
        };
        let ifname = interface(&container, &ifname)?;
        let mut bytes = Vec::with_capacity(ROOM);
        let read = input.take(LARGEST + 1).read_to_end(&mut bytes);
        read.during(Code::Io, || "cannot read standard input".into())?;
        if bytes.len() as u64 > LARGEST {
            let msg = "the network configuration on standard input is larger than 4 MiB";
            return Err(Failure::new(Code::Decoding, msg));
        }
        let conf = Object::parse("the network configuration on standard input", &bytes)?;
        let version = Version::of(&conf)?;
        if version < verb.since() {
            let text = version.as_str();
            let msg = format!("CNI_COMMAND {} does not exist in cniVersion {text}", verb.as_str());
            return Err(Failure::new(Code::Version, msg));
        }
        let network = network_name(&conf)?;
        let own_allowed = matches!(value("CNI_NETNS_OVERRIDE").to_uppercase().as_str(), "1" | "TRUE");
        let (netns, args, path) = (value("CNI_NETNS"), value("CNI_ARGS"), value("CNI_PATH"));
        Ok(Self { verb, version, conf, network, container, ifname, netns, own_allowed, args, path })
    }

    /// The same call with another configuration: one made for a delegate, or a stored one.
    pub(crate) fn with(&self, conf: Object) -> Result<Self, Failure> {
        let (version, network) = (Version::of(&conf)?, network_name(&conf)?);
        Ok(Self { version, network, conf, ..self.clone() })
    }

    /// What the plugins before made: `prevResult`. A chained plugin's ADD needs it. A DEL may have none, and treats one
    /// that it cannot parse as none.
    pub(crate) fn previous(&self) -> Result<Option<Attachment>, Failure> {
        match self.conf.object("prevResult").and_then(|found| found.map(Attachment::parse).transpose()) {
            Err(_) if self.verb == Verb::Del => Ok(None),
            other => other,
        }
    }

    /// The attachments that GC keeps. A GC without the list is refused: it would remove everything.
    pub(crate) fn valid(&self) -> Result<BTreeSet<Key>, Failure> {
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some(key) = keys.into_iter().find(|key| self.conf.get(key).is_some()) else {
            let msg = format!("GC needs \"{}\": the attachments that are still in use", keys[0]);
            return Err(Failure::new(Code::Config, msg).details("an empty list removes all of the network"));
        };
        let missing = || wrong(key, "a list of objects with \"containerID\" and \"ifname\"");
        let read = |entry: &Object| {
            let text = |name| entry.text(name)?.map(str::to_owned).ok_or_else(missing);
            Ok((text("containerID")?, text("ifname")?))
        };
        self.conf.objects(key)?.into_iter().map(read).collect()
    }
}

/// Bytes that hold most configurations, so that they are read at once; some have hundreds of kilobytes.
const ROOM: usize = 16 * 1024;
/// The largest configuration that is read (bytes).
const LARGEST: u64 = 4 << 20;

fn interface(container: &str, ifname: &str) -> Result<IfName, Failure> {
    if container.is_empty() {
        return Ok(IfName::default());
    }
    if !is_name(container) {
        let msg =
            format!("CNI_CONTAINERID {container:?}: a letter or digit, then letters, digits, `_`, `.`, `-`");
        return Err(Failure::new(Code::Environment, msg));
    }
    ifname.parse().map_err(|error| Failure::new(Code::Environment, "CNI_IFNAME is no name").details(error))
}

fn network_name(conf: &Object) -> Result<String, Failure> {
    match conf.text("name")? {
        Some(name) if is_name(name) => Ok(name.to_owned()),
        Some(name) => Err(Failure::new(Code::Config, format!("{name:?} is no name for a network"))
            .details("a letter or digit, then letters, digits, `_`, `.`, `-`")),
        None => Err(Failure::new(Code::Config, "the network configuration has no \"name\"")),
    }
}

/// A file name has at most 255 bytes, and an interface's name and a few signs go with it.
pub(crate) const LONGEST_NAME: usize = 220;

/// The specification's rule for container IDs and network names; both become file names.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= LONGEST_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"{"cniVersion":"1.0.0","name":"cbr0","type":"flannel"}"#;

    fn read(verb: Verb, variables: &[(&str, &str)], conf: &str) -> Result<Call, Code> {
        let find = |name: &str| variables.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        Call::read(verb, find, &mut conf.as_bytes()).map_err(|f| f.code)
    }

    const FULL: [(&str, &str); 3] =
        [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/run/netns/x"), ("CNI_IFNAME", "eth0")];

    #[test]
    fn every_missing_variable_is_named_in_one_message() {
        let failure = Call::read(Verb::Add, |_| None, &mut CONF.as_bytes()).unwrap_err();
        assert_eq!(failure.code, Code::Environment);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(failure.to_string().contains(name), "{failure}");
        }
    }

    #[test]
    fn a_delete_needs_no_namespace() {
        assert_eq!(read(Verb::Del, &[FULL[0], FULL[2]], CONF).unwrap().netns, "");
        assert_eq!(read(Verb::Add, &[FULL[0], FULL[2]], CONF).unwrap_err(), Code::Environment);
    }

    #[test]
    fn variables_that_a_verb_does_not_use_are_not_looked_at() {
        let dummies =
            [("CNI_CONTAINERID", "../.."), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "a/b"), ("CNI_PATH", "x")];
        let conf = CONF.replace("1.0.0", "1.1.0");
        assert!(read(Verb::Status, &dummies, &conf).is_ok());
        assert!(read(Verb::Gc, &dummies, &conf).is_ok());
    }

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for bad in ["..", "../x", ".hidden", "a/b", "a b", "-x"] {
            let variables = [("CNI_CONTAINERID", bad), FULL[1], FULL[2]];
            assert_eq!(read(Verb::Add, &variables, CONF).unwrap_err(), Code::Environment, "{bad}");
            let conf = CONF.replace("cbr0", bad);
            assert_eq!(read(Verb::Add, &FULL, &conf).unwrap_err(), Code::Config, "{bad}");
        }
        for bad in [".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx", "eth%d"] {
            let variables = [FULL[0], FULL[1], ("CNI_IFNAME", bad)];
            assert_eq!(read(Verb::Add, &variables, CONF).unwrap_err(), Code::Environment, "{bad}");
        }
        assert_eq!(read(Verb::Add, &[FULL[1], FULL[2]], CONF).unwrap_err(), Code::Environment);
        let empty = [("CNI_CONTAINERID", ""), FULL[1], FULL[2]];
        assert_eq!(read(Verb::Del, &empty, CONF).unwrap_err(), Code::Environment);
        assert_eq!(read(Verb::Add, &FULL, r#"{"cniVersion":"1.0.0"}"#).unwrap_err(), Code::Config);
    }

    #[test]
    fn a_collection_without_a_list_is_refused_and_an_empty_list_is_one() {
        let valid = |more: &str| {
            let conf = CONF.replace("1.0.0", "1.1.0").replace('}', more);
            read(Verb::Gc, &[("CNI_PATH", "x")], &conf).unwrap().valid().map_err(|f| f.code)
        };
        assert_eq!(valid("}"), Err(Code::Config));
        assert_eq!(valid(r#","cni.dev/valid-attachments":null}"#), Err(Code::Config));
        assert_eq!(valid(r#","cni.dev/valid-attachments":[{"containerID":"c1"}]}"#), Err(Code::Config));
        assert_eq!(valid(r#","cni.dev/valid-attachments":[]}"#), Ok(BTreeSet::new()));
        let one = BTreeSet::from([("c1".to_owned(), "eth0".to_owned())]);
        for key in ["valid-attachments", "attachments"] {
            let list = format!(r#","cni.dev/{key}":[{{"containerID":"c1","ifname":"eth0"}}]}}"#);
            assert_eq!(valid(&list), Ok(one.clone()), "{key}");
        }
    }

    #[test]
    fn a_previous_result_that_makes_no_sense_is_none_to_a_delete_and_a_failure_to_others() {
        let conf = CONF.replace('}', r#","prevResult":{"ips":[{"address":7}]}}"#);
        assert_eq!(read(Verb::Del, &[FULL[0], FULL[2]], &conf).unwrap().previous(), Ok(None));
        assert!(read(Verb::Add, &FULL, &conf).unwrap().previous().is_err());
    }

    #[test]
    fn an_input_without_an_end_is_refused() {
        let find = |name: &str| FULL.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let failure = Call::read(Verb::Add, find, &mut std::io::repeat(b' ')).unwrap_err();
        assert_eq!(failure.code, Code::Decoding);
        assert!(failure.to_string().contains("4 MiB"), "{failure}");
    }

    #[test]
    fn verbs_of_later_versions_are_refused_in_earlier_ones() {
        assert_eq!(read(Verb::Check, &FULL, &CONF.replace("1.0.0", "0.3.1")).unwrap_err(), Code::Version);
        assert_eq!(read(Verb::Status, &FULL, CONF).unwrap_err(), Code::Version);
        assert!(read(Verb::Check, &FULL, CONF).is_ok());
    }
}
