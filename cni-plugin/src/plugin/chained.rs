//! What all chained plugins need: the result of the plugins before them, and the owner of each object that they make.

use std::net::IpAddr;

use backends::IfName;
use ipnetwork::IpNetwork;
use subnet_lease::Family;

use crate::contract::{Attachment, Call, Code, Failure};
use crate::sys::hash;

/// The result of the plugins before, without which there is nothing to add to.
pub(crate) fn previous(call: &Call) -> Result<Attachment, Failure> {
    let missing = || {
        Failure::new(Code::Config, "no \"prevResult\": this plugin goes behind one that makes the interface")
    };
    call.previous()?.ok_or_else(missing)
}

/// The container's first address of a family. Addresses of interfaces that are another's, or the host's, do not count.
pub(crate) fn pod_address(result: &Attachment, ifname: IfName, family: Family) -> Option<IpNetwork> {
    let of_pod = |n: usize| {
        result.interfaces.get(n).is_none_or(|link| link.name == ifname && !link.sandbox.is_empty())
    };
    let mut ips = result.ips.iter().filter(|ip| Family::of(&ip.net.ip()) == family);
    ips.find(|ip| ip.interface.is_none_or(of_pod)).map(|ip| ip.net)
}

/// The owner of a kernel object: `network/container/interface`, which is its comment.
pub(crate) fn owner(network: &str, container: &str, ifname: &str) -> String {
    format!("{}{}/{ifname}", owner_network(network), short(container, CONTAINER))
}

/// What the owners of a network begin with.
pub(crate) fn owner_network(network: &str) -> String {
    format!("{}/", short(network, NETWORK))
}

/// The text, or a name made from it where it is too long for a comment.
fn short(text: &str, most: usize) -> String {
    if text.len() <= most { text.to_owned() } else { hash::name("~", text, most) }
}

/// A comment holds 254 characters: 80 and 150, two slashes, and an interface's name of 15.
const NETWORK: usize = 80;
const CONTAINER: usize = 150;

/// An IPv4 address in IPv6 form is the IPv4 address.
pub(crate) fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::json::Object;

    fn address(result: &str, family: Family) -> Option<String> {
        let result = Attachment::parse(&Object::parse("the test", result.as_bytes()).unwrap()).unwrap();
        pod_address(&result, "eth0".parse().unwrap(), family).map(|net| net.to_string())
    }

    #[test]
    fn the_containers_address_is_the_first_of_its_own_interface() {
        let links =
            r#""interfaces":[{"name":"cni0"},{"name":"eth1","sandbox":"/x"},{"name":"eth0","sandbox":"/x"}]"#;
        let ips = r#""ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.2/24","interface":1},
            {"address":"10.0.0.3/24","interface":2},{"address":"10.0.0.4/24","interface":2},{"address":"fc00::3/64","interface":2}]"#;
        let result = format!("{{{links},{ips}}}");
        assert_eq!(address(&result, Family::V4).as_deref(), Some("10.0.0.3/24"));
        assert_eq!(address(&result, Family::V6).as_deref(), Some("fc00::3/64"));
        let bare = r#"{"ips":[{"address":"10.0.0.9/24"}]}"#;
        assert_eq!(address(bare, Family::V4).as_deref(), Some("10.0.0.9/24"));
        assert_eq!(address(bare, Family::V6), None);
        let beyond = r#"{"ips":[{"address":"10.0.0.9/24","interface":7}]}"#;
        assert_eq!(address(beyond, Family::V4).as_deref(), Some("10.0.0.9/24"));
    }

    #[test]
    fn an_owner_fits_into_a_comment_and_two_are_never_the_same() {
        let long = "x".repeat(300);
        let names =
            [owner("n", "c1", "eth0"), owner(&long, &long, "fifteen-bytes-x"), owner(&long, "c1", "eth0")];
        assert_eq!(names[0], "n/c1/eth0");
        assert!(names.iter().all(|name| name.len() <= 254));
        assert_ne!(owner(&long, "c", "e"), owner(&format!("{long}y"), "c", "e"));
        assert!(owner("n", "c1", "eth0").starts_with(&owner_network("n")));
        assert!(!owner("n2", "c1", "eth0").starts_with(&owner_network("n")));
    }
}
