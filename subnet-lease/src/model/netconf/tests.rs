use proptest::prelude::*;

use super::*;
use crate::attrs::VxlanConfig;

fn with(fields: &str) -> Vec<u8> {
    format!(r#"{{{fields},"Backend":{{"Type":"vxlan"}}}}"#).into_bytes()
}

fn parse(fields: &str) -> NetworkConfig {
    NetworkConfig::parse(&with(fields)).unwrap().0
}

fn errors(json: &[u8]) -> Vec<String> {
    NetworkConfig::parse(json).unwrap_err().iter().map(ToString::to_string).collect()
}

fn pool(config: &NetworkConfig, family: Family) -> (u8, String, String) {
    let pool = config.network(family).unwrap();
    (pool.subnet_len, pool.min.to_string(), pool.max.to_string())
}

#[test]
fn lengths_and_ranges_default_as_flannels_do() {
    for (network, len, min, max) in [
        ("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
        ("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
        ("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
        ("10.0.0.0/28", 30, "10.0.0.4", "10.0.0.12"),
        ("10.5.77.1/16", 24, "10.5.1.0", "10.5.255.0"),
        ("223.255.0.0/16", 24, "223.255.1.0", "223.255.255.0"),
    ] {
        let config = parse(&format!(r#""Network":"{network}""#));
        assert_eq!(pool(&config, Family::V4), (len, min.into(), max.into()), "{network}");
        assert_eq!(config.network(Family::V6), None);
    }
    for (network, len, min, max) in [
        ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ("fc00::/63", 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"),
        ("fc00::/124", 126, "fc00::4", "fc00::c"),
    ] {
        let config = parse(&format!(r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{network}""#));
        assert_eq!(pool(&config, Family::V6), (len, min.into(), max.into()), "{network}");
    }
}

#[test]
fn a_dual_network_has_the_room_of_its_smaller_family() {
    let config = parse(r#""Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/56""#);
    assert_eq!(config.room(), 255);
}

#[test]
fn zero_stands_for_not_set_as_in_flannel() {
    let config = parse(
        r#""Network":"10.5.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":null,"IPv6SubnetMin":"::""#,
    );
    assert_eq!(config, parse(r#""Network":"10.5.0.0/16""#));
    assert_eq!(errors(&with(r#""Network":"0.0.0.0/0""#)).len(), 1);
}

#[test]
fn keys_match_in_any_case_the_last_one_wins_and_strange_ones_are_named() {
    let json = br#"{"network":"10.1.0.0/16","NETWORK":"10.2.0.0/16","Mta":1,"x y":{},"backend":{"TYPE":"VXLAN","vni":5,"directROUTING":true,"MacPrefix":"0e"}}"#;
    let (config, warnings) = NetworkConfig::parse(json).unwrap();
    assert_eq!(config.network(Family::V4).unwrap().network.to_string(), "10.2.0.0/16");
    assert!(matches!(
        config.backend,
        BackendConfig::Vxlan(VxlanConfig { vni: 5, direct_routing: true, port: 0, mtu: None, .. })
    ));
    let keys = ["\"Mta\"", "\"x y\"", "Backend.\"MacPrefix\""];
    assert_eq!(warnings, keys.map(|key| format!("{key} is not known and ignored")));
}

#[test]
fn every_wrong_field_is_reported_at_once_with_its_value_and_what_is_allowed() {
    let json =
        br#"{"EnableIPv6":true,"EnableIPv4":1,"Network":"10.5.0.0","SubnetLen":"24","SubnetMax":"x","EnableNFTables":"yes",
        "Backend":{"Type":"vxlan","VNI":16777216,"Port":-1,"GBP":0,"MTU":20}}"#;
    let expected = [
        "EnableIPv4 is 1: true or false",
        "Network is \"10.5.0.0\": an IPv4 network as \"ADDRESS/LENGTH\"",
        "SubnetLen is \"24\": a whole number from 0 to 32",
        "SubnetMax is \"x\": an IPv4 address in quotes",
        "EnableNFTables is \"yes\": true or false",
        "Backend.VNI is 16777216: a whole number from 0 to 16777215",
        "Backend.Port is -1: a whole number from 0 to 65535",
        "Backend.GBP is 0: true or false",
        "IPv6Network is missing: required while EnableIPv6 is true",
        "Backend.MTU is 20: 0 or 1350 to 65535 (with IPv6: 1280 for pods, 70 of tunnel)",
    ];
    assert_eq!(errors(json), expected);
}

#[test]
fn each_rule_between_fields_has_its_own_sentence() {
    for (fields, sentence) in [
        (r#""SubnetLen":24"#, "Network is missing: required while EnableIPv4 is true"),
        (r#""Network":"10.5.0.0/29""#, "Network is 10.5.0.0/29: a length of at most /28"),
        (r#""Network":"10.5.0.0/16","SubnetLen":31"#, "SubnetLen is 31: 18 to 30 in 10.5.0.0/16"),
        (r#""Network":"10.5.0.0/16","SubnetLen":17"#, "SubnetLen is 17: 18 to 30 in 10.5.0.0/16"),
        (
            r#""Network":"10.5.0.0/16","SubnetMin":"10.6.0.0""#,
            "SubnetMin is 10.6.0.0: an address inside 10.5.0.0/16",
        ),
        (
            r#""Network":"10.5.0.0/16","SubnetMax":"10.5.7.1""#,
            "SubnetMax is 10.5.7.1: the first address of a /24",
        ),
        (
            r#""Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0""#,
            "SubnetMin is 10.5.9.0: not above SubnetMax, which is 10.5.8.0",
        ),
        (r#""EnableIPv4":false"#, "EnableIPv4 is false: needs EnableIPv6 to be true, or nothing is enabled"),
        (
            r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/125""#,
            "IPv6Network is fc00::/125: a length of at most /124",
        ),
        (
            r#""Network":"10.5.0.0/16","IPv6Network":"10.5.0.0/16""#,
            "IPv6Network is \"10.5.0.0/16\": an IPv6 network as \"ADDRESS/LENGTH\"",
        ),
        (r#""Network":null"#, "Network is null: an IPv4 network as \"ADDRESS/LENGTH\""),
        (r#""Network":"""#, "Network is \"\": an IPv4 network as \"ADDRESS/LENGTH\""),
    ] {
        assert_eq!(errors(&with(fields)), [sentence]);
    }
}

#[test]
fn a_backend_that_we_lack_is_named_with_the_way_out() {
    for (backend, sentence) in [
        ("", "Backend is missing: flannel takes that for \"udp\", which is not supported yet"),
        (r#","Backend":null"#, "Backend is null: must be a JSON object"),
        (r#","Backend":{}"#, "Backend.Type is missing: write"),
        (
            r#","Backend":{"Type":"WireGuard"}"#,
            "Backend.Type is \"WireGuard\": this backend is not supported yet",
        ),
        (r#","Backend":{"Type":"gce"}"#, "Backend.Type is \"gce\": flannel removed this backend"),
        (r#","Backend":{"Type":"vxlam"}"#, "Backend.Type is \"vxlam\": write {\"Type\": \"vxlan\"}"),
    ] {
        let found = errors(format!(r#"{{"Network":"10.5.0.0/16"{backend}}}"#).as_bytes());
        assert!(found.len() == 1 && found[0].starts_with(sentence), "{found:?}");
    }
}

#[test]
fn what_is_not_a_json_object_or_far_too_large_is_refused() {
    for json in ["", "null", "[]", "{", r#"{"Network":"10.5.0.0/16"} x"#] {
        assert!(errors(json.as_bytes())[0].starts_with("net-conf is "), "{json}");
    }
    assert_eq!(errors(&vec![b' '; LARGEST + 1]), ["net-conf is 1048577 bytes: at most 1 MiB"]);
}

proptest! {
    #[test]
    fn any_bytes_are_a_net_conf_or_errors_without_a_panic(json: Vec<u8>) {
        let _ = NetworkConfig::parse(&json);
    }

    #[test]
    fn whatever_the_numbers_a_net_conf_that_is_taken_can_be_leased_from(
        a: u32, la in 0u8..=32, len in 0u64..=40, min: u32, b: u128, lb in 0u8..=128, len6 in 0u64..=130, max: u128
    ) {
        let (v4, v6) = (std::net::Ipv4Addr::from(a), std::net::Ipv6Addr::from(b));
        let (min, max) = (std::net::Ipv4Addr::from(min), std::net::Ipv6Addr::from(max));
        let json = with(&format!(
            r#""Network":"{v4}/{la}","SubnetLen":{len},"SubnetMin":"{min}","EnableIPv6":true,"IPv6Network":"{v6}/{lb}","IPv6SubnetLen":{len6},"IPv6SubnetMax":"{max}""#
        ));
        if let Ok((config, _)) = NetworkConfig::parse(&json) {
            for pool in config.pools() {
                for index in [0, pool.room() / 2, pool.room() - 1] {
                    let subnet = pool.at(index).unwrap();
                    prop_assert!(contains_net(pool.network, subnet));
                    prop_assert_eq!(pool.index(subnet), Some(index));
                }
            }
        }
    }
}

#[test]
fn one_mtu_counts_for_every_backend_and_the_backends_own_before_it() {
    let vxlan = |text: &str| match NetworkConfig::parse(text.as_bytes()).unwrap().0 {
        NetworkConfig { backend: BackendConfig::Vxlan(VxlanConfig { mtu, .. }), .. } => mtu,
        NetworkConfig { mtu, .. } => mtu,
    };
    for (global, backend, expected) in [
        ("", r#""Type":"vxlan""#, None),
        (r#""MTU":1400,"#, r#""Type":"vxlan""#, Some(1400)),
        (r#""MTU":1400,"#, r#""Type":"vxlan","MTU":1300"#, Some(1300)),
        (r#""MTU":1400,"#, r#""Type":"vxlan","MTU":0"#, Some(1400)),
        (r#""mtu":0,"#, r#""Type":"vxlan","MTU":1300"#, Some(1300)),
        (r#""MTU":1400,"#, r#""Type":"host-gw""#, Some(1400)),
        (r#""MTU":1400,"#, r#""Type":"alloc""#, Some(1400)),
    ] {
        let text = format!(r#"{{{global}"Network":"10.5.0.0/16","Backend":{{{backend}}}}}"#);
        assert_eq!(vxlan(&text), expected, "{text}");
    }
}

#[test]
fn an_mtu_that_leaves_pods_too_little_is_refused_by_its_key() {
    for (families, global, backend, expected) in [
        ("", 625, r#""Type":"vxlan""#, "MTU is 625: 0 or 626 to 65535"),
        ("", 575, r#""Type":"host-gw""#, "MTU is 575: 0 or 576 to 65535"),
        (
            r#""EnableIPv6":true,"IPv6Network":"fd00::/48","#,
            0,
            r#""Type":"vxlan","MTU":1349"#,
            "Backend.MTU is 1349: 0 or 1350 to 65535 (with IPv6: 1280 for pods, 70 of tunnel)",
        ),
        ("", 70_000, r#""Type":"vxlan""#, "MTU is 70000: a whole number from 0 to 65535"),
    ] {
        let text = format!(r#"{{{families}"MTU":{global},"Network":"10.5.0.0/16","Backend":{{{backend}}}}}"#);
        assert_eq!(errors(text.as_bytes()), [expected], "{text}");
    }
}

#[test]
fn a_network_with_addresses_in_it_that_hosts_need_for_themselves_is_refused_by_name() {
    for (network, range) in [
        ("127.0.0.0/16", "127.0.0.0/8"),
        ("0.1.0.0/16", "0.0.0.0/8"),
        ("169.254.0.0/16", "169.254.0.0/16"),
        ("224.5.0.0/16", "224.0.0.0/4"),
        ("240.0.0.0/8", "240.0.0.0/4"),
        ("128.0.0.0/1", "169.254.0.0/16"),
    ] {
        let json = with(&format!(r#""Network":"{network}""#));
        let error = NetworkConfig::parse(&json).unwrap_err()[0].to_string();
        assert!(error.contains(range) && error.starts_with("Network is"), "{network}: {error}");
    }
    for (network, range) in
        [("fe80::/32", "fe80::/10"), ("ff05::/48", "ff00::/8"), ("8000::/1", "fe80::/10"), ("::/64", "::1")]
    {
        let fields = format!(r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{network}""#);
        let error = NetworkConfig::parse(&with(&fields)).unwrap_err()[0].to_string();
        assert!(error.contains(range), "{network}: {error}");
    }
}
