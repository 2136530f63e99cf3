//! Peers that do not exist.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use netns_harness::flannel::Backend as Kind;
use serde_json::json;
use subnet_lease::{BackendAttrs, Family, Lease, Subnets, VxlanData};

/// A net-conf with room for 65,000 hosts.
pub(crate) fn network(kind: Kind, family: Family) -> String {
    let four = family == Family::V4;
    let mut conf = json!({"EnableIPv4": four, "EnableIPv6": !four, "Backend": {"Type": kind.to_string()}});
    if four {
        (conf["Network"], conf["SubnetLen"]) = (json!("10.0.0.0/8"), json!(24));
    } else {
        (conf["IPv6Network"], conf["IPv6SubnetLen"]) = (json!("fd42::/40"), json!(64));
    }
    conf.to_string()
}

/// The `n`-th subnet after the first one.
pub(crate) fn subnets(family: Family, n: u16) -> Result<Subnets> {
    let [high, low] = n.to_be_bytes();
    let key = match family {
        Family::V4 => format!("10.{}.{low}.0-24", high + 1),
        Family::V6 => format!("0.0.0.0-0&{}-64", Ipv6Addr::new(0xfd42, 0, 0, n + 1, 0, 0, 0, 0)),
    };
    Ok(key.parse()?)
}

/// A peer on the underlay's own segment: 172.30.0.0/16 or fd30::/64.
pub(crate) fn lease(kind: Kind, family: Family, n: u16) -> Result<Lease> {
    let [high, low] = (n + 1_000).to_be_bytes();
    let public: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(172, 30, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 1, n).into(),
    };
    let data = Some(VxlanData { vni: 1, mac: [2, 0, 0, 1, high, low] });
    let attrs = match (kind, family) {
        (Kind::HostGw, _) => BackendAttrs::plain("host-gw"),
        (Kind::Vxlan, Family::V4) => BackendAttrs::vxlan(data, None),
        (Kind::Vxlan, Family::V6) => BackendAttrs::vxlan(None, data),
    };
    Ok(Lease::new(subnets(family, n)?, [public].into_iter().collect(), attrs))
}
