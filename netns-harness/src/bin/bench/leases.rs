//! Leases of peers that do not exist, as they are in the store.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use netns_harness::Family;
use netns_harness::flannel::Backend;
use serde_json::{Value, json};

/// A key below flannel's prefix, and its value.
pub(crate) type Record = (String, String);

/// The number of addresses in 172.30.10.0 to 172.30.249.0, a little less than a family of peers. After the
/// last address the first one is used again.
const PEERS: usize = 60_000;

/// The leases from the `from`-th to before the `to`-th peer.
pub(crate) fn leases(backend: Backend, family: Family, from: usize, to: usize) -> Result<Vec<Record>> {
    (from..to).map(|n| lease(backend, family, u16::try_from(n % PEERS)?)).collect()
}

fn lease(backend: Backend, family: Family, n: u16) -> Result<Record> {
    let [high, low] = n.to_be_bytes();
    let (key, public): (_, IpAddr) = match family {
        Family::V6 => {
            let subnet = Ipv6Addr::new(0xfd42, 0, 0, 0x100 + n, 0, 0, 0, 0);
            let public = Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 1, n);
            (format!("subnets/0.0.0.0-0&{subnet}-64"), public.into())
        }
        _ => {
            let (third, fourth) = (u8::try_from(10 + n / 250)?, u8::try_from(n % 250 + 1)?);
            (format!("subnets/10.{}.{low}.0-24", 1 + high), Ipv4Addr::new(172, 30, third, fourth).into())
        }
    };
    Ok((key, record(backend, family, public, [2, 0x42, 0xac, 0x1e, high, low])))
}

/// Field by field in flannel's order.
fn record(backend: Backend, family: Family, public: IpAddr, mac: [u8; 6]) -> String {
    let (v4, v6) = match family {
        Family::V6 => (json!("0.0.0.0"), json!(public)),
        _ => (json!(public), Value::Null),
    };
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    let data = match (backend, family) {
        (Backend::HostGw, _) => String::new(),
        (Backend::Vxlan, Family::V6) => format!(r#","BackendV6Data":{data}"#),
        (Backend::Vxlan, _) => format!(r#","BackendData":{data}"#),
    };
    format!(r#"{{"PublicIP":{v4},"PublicIPv6":{v6},"BackendType":"{backend}"{data}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_flannels() {
        let [(key, value)] = &leases(Backend::Vxlan, Family::V4, 0, 1).unwrap()[..] else { panic!() };
        let public = "172.30.10.1".parse().unwrap();
        let flannels = netns_harness::flannel::vxlan_lease("10.1.0.0/24", public, "02:42:ac:1e:00:00");
        assert_eq!((key, value), (&flannels.0, &flannels.1));
    }
}
