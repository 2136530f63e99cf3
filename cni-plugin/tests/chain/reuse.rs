//! An address that another container had a moment ago.

use serde_json::json;

use super::portmap::with;
use crate::host::{Host, Pod, Whose};

/// More than a loaded machine needs.
const LOOKS: usize = 2000;

/// Whoever remembers the one before would send to an Ethernet address that nobody has, until the neighbour is asked after.
#[test]
fn neighbours_that_remember_the_former_holder_of_an_address_are_notified_of_the_new_one() {
    let (host, other, pod) = (Host::new(), Pod::new("c1"), Pod::new("c2"));
    // One that does not follow from the address, so that nobody can have remembered the right one.
    let bridge = with(&host.bridge("net"), json!({ "args": { "cni": { "mac": "02:00:00:00:00:07" } } }));
    host.add(Whose::Ours, "net", &other, &[host.bridge("net")]).ok();
    let places = [(&host.net, "cni0"), (&other.net, "eth0")];
    let addresses = ["10.88.1.3", "fc00:88:1::3"];
    for (net, link) in places {
        for address in addresses {
            net.tool(&format!("ip neigh replace {address} lladdr 02:00:00:00:00:99 nud stale dev {link}"));
        }
    }
    let result = host.add(Whose::Ours, "net", &pod, &[bridge]).ok();
    let got: Vec<_> = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].to_string()).collect();
    assert_eq!(got, ["\"10.88.1.3/24\"", "\"fc00:88:1::3/64\""]);
    for (net, link) in places {
        for address in addresses {
            // Nobody sends anything here: what is learnt is what was announced.
            let known = || net.tool(&format!("ip neigh show {address} dev {link}"));
            // Looking takes a millisecond or two.
            let _ = (0..LOOKS).any(|_| known().contains("02:00:00:00:00:07"));
            assert!(known().contains("02:00:00:00:00:07"), "{address} on {link}: {}", known());
        }
    }
}
