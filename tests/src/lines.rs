//! Lines of an operator, applied to a fake kernel: the lines that plans print (without rules), and a few
//! more. The inverse of printing a `Plan`.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use backends::kernel::fake::{Namespace, RoutePlace};
use backends::{
    Fdb, IfName, Link, LinkKind, Mac, Neigh, Object, Route, RouteKind, Sysctl, Vxlan, default_metric,
};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use subnet_lease::Family;

/// Why a line was not applied.
#[derive(Debug, PartialEq, Eq)]
pub enum LineError {
    /// The line is not understood.
    Unknown(String),
    /// The kernel refused.
    Refused(String, Errno),
}

/// Applies a line.
///
/// # Errors
/// The line, when it is not understood or is refused.
pub fn type_line(net: &mut Namespace, line: &str) -> Result<(), LineError> {
    let words: Vec<&str> = line.split_whitespace().filter(|w| *w != "-6").collect();
    let done = act(net, &words).ok_or_else(|| LineError::Unknown(line.to_owned()))?;
    done.map_err(|errno| LineError::Refused(line.to_owned(), errno))
}

type Done = Result<(), Errno>;

fn act(net: &mut Namespace, words: &[&str]) -> Option<Done> {
    match words {
        ["echo", value, ">", path] => {
            let (link, name) = setting(path)?;
            Some(net.put_sysctl(link, name, value.parse().ok()?))
        }
        ["ethtool", "-K", link, "tx-checksum-ip-generic", word] => {
            Some(net.put_sysctl(link.parse().ok()?, Sysctl::TxChecksum, i32::from(*word == "on")))
        }
        ["ip", "link", "add", name, rest @ ..] => add_link(net, name.parse().ok()?, rest),
        ["ip", "link", "delete", name] => Some(net.delete_link(name.parse().ok()?)),
        ["ip", "link", "set", name, rest @ ..] => set_link(net, name.parse().ok()?, rest),
        ["ip", "address", verb, to, "dev", link, ..] => {
            let (link, to): (IfName, IpNetwork) = (link.parse().ok()?, to.parse().ok()?);
            Some(match *verb {
                "delete" => net.delete_address(link, to),
                _ if words.ends_with(&["scope", "link"]) => net.put_narrow_address(link, to),
                _ => net.put_address(link, to),
            })
        }
        ["ip", "neigh", verb, address, rest @ ..] => {
            let (link, mac) = (after(rest, "dev")?, after(rest, "lladdr").unwrap_or_default());
            let neigh = Neigh { link, address: address.parse().ok()?, mac };
            Some(if *verb == "delete" { net.delete_neighbour(&neigh) } else { net.put_neighbour(&neigh) })
        }
        ["bridge", "fdb", verb, mac, rest @ ..] => {
            let odd = rest.contains(&"port") || rest.contains(&"vni") || !rest.contains(&"dst");
            let dst = after(rest, "dst").unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let fdb = Fdb { link: after(rest, "dev")?, mac: mac.parse().ok()?, dst, diverted: odd };
            Some(match *verb {
                "delete" => net.delete_fdb(&fdb),
                "append" => net.append_fdb(&fdb),
                _ => net.put_fdb(&fdb, rest.contains(&"self")),
            })
        }
        ["ip", "route", verb, rest @ ..] => {
            let route = route(rest)?;
            let place = match *verb {
                "replace" => RoutePlace::Replace,
                "add" => RoutePlace::Alone,
                "prepend" => RoutePlace::First,
                "append" => RoutePlace::Last,
                "delete" => return Some(net.delete_route(&route)),
                _ => return None,
            };
            Some(net.put_route(&route, place))
        }
        _ => None,
    }
}

/// The link and the setting of a file. A setting of the whole host has an empty link.
fn setting(path: &str) -> Option<(IfName, Sysctl)> {
    let host = IfName::default();
    match path.strip_prefix("/proc/sys/net/")?.split('/').collect::<Vec<_>>()[..] {
        ["ipv4", "ip_forward"] => Some((host, Sysctl::HostForward(Family::V4))),
        ["ipv6", "conf", "all", "forwarding"] => Some((host, Sysctl::HostForward(Family::V6))),
        ["ipv4", "conf", link, "forwarding"] => Some((link.parse().ok()?, Sysctl::Forward)),
        ["ipv4", "conf", link, "rp_filter"] => Some((link.parse().ok()?, Sysctl::ReturnPath)),
        ["ipv6", "conf", link, "disable_ipv6"] => Some((link.parse().ok()?, Sysctl::NoIpv6)),
        ["ipv6", "conf", link, "accept_ra"] => Some((link.parse().ok()?, Sysctl::AcceptRa)),
        _ => None,
    }
}

/// The value of the word after `word`.
fn after<T: FromStr>(words: &[&str], word: &str) -> Option<T> {
    let at = words.iter().position(|w| *w == word)?;
    words.get(at + 1)?.parse().ok()
}

/// Plans print an underlay as its index.
fn parent(words: &[&str]) -> Option<u32> {
    after::<String>(words, "dev")?.strip_prefix("if")?.parse().ok()
}

fn add_link(net: &mut Namespace, name: IfName, words: &[&str]) -> Option<Done> {
    let mac = after(words, "address").unwrap_or(Mac([2, 0, 0, 0, 0, 0xff]));
    let mtu = after(words, "mtu").unwrap_or(1500);
    if !words.contains(&"vxlan") {
        return Some(net.add_link(name, mtu, mac).map(|_| ()));
    }
    let kind = LinkKind::Vxlan(Vxlan {
        vni: after(words, "id")?,
        port: after(words, "dstport").unwrap_or(8472),
        local: after(words, "local"),
        parent: parent(words).unwrap_or(0),
        learning: !words.contains(&"nolearning"),
        gbp: words.contains(&"gbp"),
    });
    let tag = after(words, "alias").unwrap_or_default();
    Some(net.put_link(&Link { name, kind, mtu, mac, tag, master: 0 }, None))
}

fn set_link(net: &mut Namespace, name: IfName, words: &[&str]) -> Option<Done> {
    match words {
        ["up"] => return Some(net.set_up(name, true)),
        ["down"] => return Some(net.set_up(name, false)),
        ["master", bridge] => return Some(net.set_master(name, Some(bridge.parse().ok()?))),
        ["nomaster"] => return Some(net.set_master(name, None)),
        ["name", to] => return Some(net.rename_link(name, to.parse().ok()?)),
        _ => {}
    }
    let tunnel = net.everything().into_iter().find_map(|o| match o {
        Object::Link(link) if link.name == name => Some(link),
        _ => None,
    });
    let Some(have) = tunnel else { return Some(net.set_mtu(name, after(words, "mtu")?)) };
    let LinkKind::Vxlan(mut vxlan) = have.kind;
    vxlan.local = after(words, "local").or(vxlan.local);
    vxlan.parent = parent(words).unwrap_or(vxlan.parent);
    vxlan.learning = if words.contains(&"type") { words.contains(&"learning") } else { vxlan.learning };
    let want = Link {
        kind: LinkKind::Vxlan(vxlan),
        mtu: after(words, "mtu").unwrap_or(have.mtu),
        mac: after(words, "address").unwrap_or(have.mac),
        tag: after(words, "alias").unwrap_or_else(|| have.tag.clone()),
        master: if words.contains(&"nomaster") { 0 } else { have.master },
        ..(*have).clone()
    };
    Some(net.put_link(&want, Some(&have)))
}

fn route(words: &[&str]) -> Option<Route> {
    let (kind, words) = match words {
        ["blackhole", rest @ ..] => (RouteKind::Blackhole, rest),
        ["unreachable", rest @ ..] => (RouteKind::Other(7), rest),
        ["prohibit", rest @ ..] => (RouteKind::Other(8), rest),
        words if words.iter().any(|w| ["mtu", "src", "nhid"].contains(w)) => (RouteKind::Special, words),
        _ => (RouteKind::Unicast, words),
    };
    let dst: IpNetwork = words.first()?.parse().ok()?;
    Some(Route {
        dst,
        metric: after(words, "metric").unwrap_or_else(|| default_metric(&dst)),
        kind,
        via: after(words, "via"),
        link: after(words, "dev"),
        onlink: words.contains(&"onlink"),
        scope: after(words, "scope").unwrap_or(0),
        protocol: after(words, "proto").unwrap_or(3),
    })
}
