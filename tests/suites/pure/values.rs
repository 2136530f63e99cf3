//! Values as people and other programs write them: we read each as Go does, since their writers know it from there.

use std::net::IpAddr;

use backends::Mac;
use flanneld::cli::{Given, parse_bool, parse_int};
use flanneld::config::{Environment, NodeConfig, RawConfig};
use flanneld::recorder::text;

/// What Go makes of them. `tests/peers/values` wrote the last column, and a case of the namespace suite lets it do so again.
const GO: &str = include_str!("../../golden/go-values.tsv");

/// Where we differ on purpose.
const DIFFERENT: &[(&str, &str, Option<&str>, &str)] = &[
    (
        "network",
        "::ffff:10.0.0.0/104",
        Some("::ffff:10.0.0.0/104"),
        "no network of pods; refused where it is used",
    ),
    ("mac", "020000000001", None, "only the newest Go takes one without separators"),
    ("duration", "1d", Some("86400000000000"), "people ask for the events of days"),
    ("server", "http://10.0.0.1", None, "etcd has no usual port"),
];

fn ours(kind: &str, value: &str) -> Option<String> {
    match kind {
        "address" => value.parse::<IpAddr>().ok().map(|address| address.to_canonical().to_string()),
        "network" => subnet_lease::parse_network(value).map(|network| network.to_string()),
        "boolean" => parse_bool(value).map(|is| is.to_string()),
        "integer" => parse_int(value).map(|number| number.to_string()),
        "mac" => value.parse::<Mac>().ok().map(|mac| mac.to_string()),
        "duration" => text::span(value).map(|span| span.as_nanos().to_string()),
        "server" => {
            let given = [Given { name: "etcd-endpoints", value: value.to_owned() }];
            let config = NodeConfig::understand(&RawConfig::gather(&given, &Environment::new()), "host");
            config.ok().map(|config| config.store.endpoints().join(","))
        }
        kind => panic!("{kind} is no kind of value"),
    }
}

#[test]
fn every_value_is_read_as_go_reads_it() {
    let lines = GO.lines().filter(|line| !line.starts_with('#'));
    let (mut wrong, mut count) = (Vec::new(), 0);
    for line in lines {
        let [kind, quoted, go] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        let value: String = serde_json::from_str(quoted).unwrap();
        let found = ours(kind, &value);
        let different = DIFFERENT.iter().find(|(of, what, ..)| *of == kind && *what == value);
        let go = Some(go).filter(|go| *go != "error");
        let expected = match different {
            Some((.., expected, why)) => {
                assert_ne!(*expected, go, "{quoted} is no difference: {why}");
                *expected
            }
            None => go,
        };
        if found.as_deref() != expected {
            wrong.push(format!("{kind} {quoted}: expected {expected:?}, got {found:?}"));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 150, "only {count}");
}
