//! Wrong bytes from the store, the operator and the disk.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use backends::{Backends, External, Facts, Identity, LocalNode, Mac};
use subnet_lease::{
    Family, Lease, NetworkConfig, NetworkId, PeerTable, PublicAddrs, SubnetEnv, Subnets, VxlanData,
};

use super::Target;

const RECORDS: [&str; 6] = [
    "10.244.7.0-24\n{\"PublicIP\":\"172.16.0.7\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}}",
    "10.244.7.0-24&fd00:244:0:7::-64\n{\"PublicIP\":\"172.16.0.7\",\"PublicIPv6\":\"fd00:172::7\",\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:07\"},\"BackendV6Data\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:07\"},\"Node\":\"n7\"}",
    "0.0.0.0-0&fd00:244:0:8::-64\n{\"PublicIP\":\"0.0.0.0\",\"PublicIPv6\":\"fd00:172::8\",\"BackendType\":\"host-gw\"}",
    "10.244.9.0-24\n{\"PublicIP\":\"172.16.0.9\",\"PublicIPv6\":null}",
    "10.244.10.0-24\n{\"publicip\":\"172.16.0.10\",\"BackendType\":\"\",\"x\":[1,{\"y\":\"\\u0000\\\"\"}],\"zeta\":1e400}",
    "255.255.255.128-31\n{}",
];
const JSON: [&str; 22] = [
    "null",
    "true",
    "-1",
    "1e999",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "PublicIP",
    "Node",
    "\u{fffd}",
    "10.244.0.0-16",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "[[[[[[[[[[[[[[[[",
    "0x1p4",
    "&",
];

/// Keys and values of leases, separated by a newline.
pub fn records() -> Target {
    let seeds = RECORDS.map(|record| record.as_bytes().to_vec()).to_vec();
    Target { name: "record", cases: 600_000, seeds, words: &JSON, read: record }
}

fn record(bytes: &[u8]) {
    let Some((key, value)) = split(bytes) else { return };
    match Lease::from_record(&key, value) {
        Ok(lease) => {
            assert_eq!(lease.subnets.to_string(), key, "a key has one spelling");
            let again = Lease::from_record(&key, &lease.to_record());
            assert_eq!(again.as_ref(), Ok(&lease), "what was read can be written");
            for data in Family::ALL.into_iter().filter_map(|family| lease.attrs.family(family)) {
                if let Ok(vxlan) = VxlanData::from_json(data) {
                    assert_eq!(VxlanData::from_json(&vxlan.to_json()), Ok(vxlan));
                }
            }
        }
        Err(error) => assert!(error.to_string().len() < 600, "{error}"),
    }
}

fn split(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    Some((String::from_utf8(bytes[..end].to_vec()).ok()?, &bytes[end + 1..]))
}

const NET_CONFS: [&str; 4] = [
    r#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.1.0","SubnetMax":"10.244.250.0","Backend":{"Type":"vxlan","VNI":1,"Port":8472,"MTU":1450,"GBP":true,"Learning":false,"DirectRouting":true}}"#,
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00:244:0:1::","IPv6SubnetMax":"fd00:244:0:ffff::","EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#,
    r#"{"Network":"255.255.255.0/24","Backend":{"Type":"alloc"}}"#,
    r#"{"EnableIPv6":true,"Network":"0.0.0.0/1","IPv6Network":"8000::/1","Backend":{"Type":"udp"},"Unknown":{"a":1}}"#,
];
const CONF_WORDS: [&str; 24] = [
    "/0",
    "/1",
    "/30",
    "/31",
    "/32",
    "/62",
    "/63",
    "/64",
    "/126",
    "/127",
    "/128",
    "0",
    "null",
    "true",
    "\"",
    "{",
    "}",
    ",",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "::",
    "255.255.255.255",
    "18446744073709551616",
    "-1",
    "\\ud800",
];

/// The net-conf.
pub fn net_confs() -> Target {
    let seeds = NET_CONFS.map(|conf| conf.as_bytes().to_vec()).to_vec();
    Target { name: "net-conf", cases: 400_000, seeds, words: &CONF_WORDS, read: net_conf }
}

fn net_conf(bytes: &[u8]) {
    match NetworkConfig::parse(bytes) {
        Ok((config, warnings)) => {
            assert!(config.pools().count() > 0 && config.room() > 0, "{config:?}");
            for pool in config.pools() {
                let inside = |addr| pool.network.contains(addr);
                assert!(pool.min <= pool.max && inside(pool.min) && inside(pool.max), "{pool:?}");
                assert!(pool.subnet_len > pool.network.prefix(), "{pool:?}");
            }
            assert!(warnings.iter().all(|warning| warning.len() < 1000), "{warnings:?}");
        }
        Err(errors) => {
            assert!(!errors.is_empty() && errors.iter().all(|e| e.to_string().len() < 1000), "{errors:?}");
        }
    }
}

/// subnet.env.
pub fn subnet_envs() -> Target {
    let dual = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let odd = "# by hand\nexport FLANNEL_NETWORK=\"10.244.0.0/16\"\nFLANNEL_SUBNET='10.244.3.1/24'\r\nFLANNEL_MTU=0\nFLANNEL_IPMASQ=maybe";
    let seeds = [dual, odd].map(|text| text.as_bytes().to_vec()).to_vec();
    let words = &[
        "=",
        "\n",
        "\0",
        "'",
        "\"",
        "/0",
        "/32",
        "/128",
        "export ",
        "FLANNEL_",
        ",",
        "4294967296",
        "::ffff:1.2.3.4",
    ];
    Target { name: "subnet-env", cases: 150_000, seeds, words, read: subnet_env }
}

fn subnet_env(bytes: &[u8]) {
    match SubnetEnv::parse(&String::from_utf8_lossy(bytes)) {
        Ok(env) => {
            assert_eq!(SubnetEnv::parse(&env.text()).ok(), Some(env), "what was read can be written");
            let _ = env.leased();
        }
        Err(error) => assert!(error.to_string().len() < 600, "{error}"),
    }
}

/// Admission. Five bytes make a lease of few subnets, addresses and devices, so that leases collide often.
pub fn admission() -> Target {
    let seeds = (0..16u8).map(|n| (0..60).map(|i: u8| i.wrapping_mul(n).wrapping_add(n)).collect()).collect();
    Target { name: "admission", cases: 25_000, seeds, words: &[], read: admit }
}

const KEYS: [&str; 16] = [
    "10.244.1.0-24",
    "10.244.2.0-24",
    "10.244.3.0-24",
    "10.244.2.0-25",
    "10.244.0.0-16",
    "10.9.0.0-24",
    "10.244.2.0-24&fd00:244:0:2::-64",
    "10.244.3.0-24&fd00:244:0:2::-64",
    "10.244.4.0-24&fd00:244:0:4::-64",
    "0.0.0.0-0&fd00:244:0:2::-64",
    "0.0.0.0-0&fd00:244:0:5::-64",
    "0.0.0.0-0&fd00:244::-48",
    "10.244.5.0-24&fd01::-64",
    "10.244.255.0-24",
    "10.244.0.0-24",
    "128.0.0.0-1",
];
const V4: [&str; 8] = [
    "172.16.0.1",
    "172.16.0.2",
    "172.16.0.3",
    "10.244.2.9",
    "127.0.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "0.0.0.0",
];
const V6: [&str; 8] = [
    "null",
    "\"fd00:172::1\"",
    "\"fd00:172::2\"",
    "\"::1\"",
    "\"ff02::1\"",
    "\"::ffff:1.2.3.4\"",
    "\"fe80::1\"",
    "\"fd00:244:0:2::9\"",
];
const DATA: [&str; 8] = [
    r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#,
    r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#,
    r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}"#,
    r#"{"VNI":2,"VtepMAC":"02:00:00:00:00:04"}"#,
    r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
    r#"{"VNI":1}"#,
    "[]",
    "null",
];

fn lease([key, v4, v6, data, epoch]: &[u8; 5]) -> Option<Lease> {
    let pick = |list: &[&'static str], n: u8| list[usize::from(n) % list.len()];
    let kind = if epoch & 0xf0 == 0xf0 { "host-gw" } else { "vxlan" };
    let record = format!(
        r#"{{"PublicIP":"{}","PublicIPv6":{},"BackendType":"{kind}","BackendData":{},"BackendV6Data":{}}}"#,
        pick(&V4, *v4),
        pick(&V6, *v6),
        pick(&DATA, *data),
        pick(&DATA, data >> 4),
    );
    let lease = Lease::from_record(pick(&KEYS, *key), record.as_bytes()).ok()?;
    Some(Lease { epoch: u64::from(epoch & 7), ..lease })
}

fn admit(bytes: &[u8]) {
    // Each key has one lease.
    let mut leases: Vec<Lease> = Vec::new();
    for lease in bytes.as_chunks().0.iter().take(24).filter_map(lease) {
        if leases.iter().all(|other| other.subnets != lease.subnets) {
            leases.push(lease);
        }
    }
    let node = node();
    let public = node.external.public;
    let table = |leases: Vec<Lease>| {
        PeerTable::from_snapshot(&node.network, Some(&node.subnets), public, leases, Vec::new())
    };
    let verdicts = |table: &PeerTable| {
        (format!("{:?}", table.peers().collect::<Vec<_>>()), table.refused().collect::<Vec<_>>())
    };
    let at_once = table(leases.clone());
    let mut one_by_one = table(Vec::new());
    for lease in leases.iter().rev() {
        one_by_one.upsert(lease.clone());
        one_by_one.len();
    }
    let mut with_doubts = table(leases.clone());
    for lease in leases.iter().step_by(2) {
        with_doubts.remove(&lease.subnets);
        with_doubts.len();
    }
    for lease in &leases {
        with_doubts.upsert(lease.clone());
    }
    assert_eq!(verdicts(&at_once), verdicts(&one_by_one), "the order of arrival decides nothing");
    assert_eq!(verdicts(&at_once), verdicts(&with_doubts), "what was there for a while decides nothing");
    for peer in at_once.peers() {
        assert!(
            !peer.key().overlaps(&node.subnets)
                || peer.subnets().all(|s| node.subnets.iter().all(|own| !subnet_lease::overlap(own, s)))
        );
    }
    let wish = Backends::of(&node.network.backend).desired(node, &at_once, &Facts::default());
    assert!(wish.objects.len() <= 16 + 8 * leases.len());
}

fn node() -> &'static LocalNode {
    static NODE: OnceLock<LocalNode> = OnceLock::new();
    NODE.get_or_init(|| {
        let conf = br#"{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;
        let network = Arc::new(NetworkConfig::parse(conf).map(|(config, _)| config).unwrap_or_else(|e| panic!("{e:?}")));
        let local = PublicAddrs { v4: Some(Ipv4Addr::new(172, 16, 0, 1)), v6: Some(Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, 1)) };
        let link = "eth0".parse().unwrap_or_default();
        let external = External { link, index: 2, mtu: 1500, local, public: local };
        let subnets = KEYS[0].parse::<Subnets>().unwrap_or_else(|e| panic!("{e}"));
        let identities = vec![Identity::Macs([Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 6, 1])])];
        LocalNode { id: NetworkId::default(), network, external, subnets, identities, tx_checksum: None }
    })
}
