//! The laws of the kernel that this daemon relies on, and those of them that are a question about one route.
//!
//! Each is a test that runs against the fake and against the real kernel in a fresh network namespace. Where they
//! differ the fake is wrong.

use nix::errno::Errno;

use super::namespace::Namespace;
use crate::netlink::link::RT_SCOPE_LINK;
use crate::state::Route;

/// The laws by number; the tests carry these numbers.
pub const LAWS: [(u8, &str); 26] = [
    (
        1,
        "an object on a missing link: ENODEV; on a link that is down a route is refused (ENETDOWN), a neighbour or FDB entry is not",
    ),
    (
        2,
        "an onlink route in a namespace that never had an IPv4 address: EINVAL; an IPv6 one whose gateway another device's route covers: EINVAL",
    ),
    (3, "deleting the last IPv4 address of a link flushes its IPv4 routes and neighbours"),
    (
        4,
        "link down flushes routes, permanent neighbours and IPv6 addresses, keeps FDB and IPv4 addresses; link up restores only connected IPv4 prefixes",
    ),
    (5, "deleting a link deletes all that hangs on it, and the tunnels that lie over it"),
    (6, "replace takes over the same prefix and metric whatever the protocol"),
    (7, "IPv6 metric 0 reads back as 1024"),
    (
        8,
        "a second vxlan link of the same outer family with the same VNI and port: EEXIST; MTU, MAC, alias, learning, local address change in place",
    ),
    (9, "an FDB entry of a vxlan link needs the `self` flag, else EOPNOTSUPP"),
    (
        10,
        "delete of a missing route: ESRCH; of a missing neighbour or FDB entry: ENOENT; of a missing address: EADDRNOTAVAIL; of a forwarding entry by another end: success, and nothing is done",
    ),
    (11, "a dump while the table changes may be flagged interrupted"),
    (12, "a full receive buffer loses notifications, and one error reports that"),
    (
        13,
        "every direct change is notified, our own included; that routes go with a link or an address is not",
    ),
    (14, "routes that differ only in scope are one to replace, and two to delete"),
    (15, "an error inside a batch does not stop the batch; results come in order"),
    (16, "an nf_tables accept ends only its own base chain; a drop in any base chain of the hook is final"),
    (17, "a new MAC flushes the link's neighbours, permanent ones too, without a message for each"),
    (18, "replacing an IPv4 route by the twin of one that stands behind it: EEXIST"),
    (
        19,
        "an onlink or IPv6 gateway that is an address of this host: EINVAL; one that is not on a connected network: ENETUNREACH (IPv4), EHOSTUNREACH (IPv6)",
    ),
    (20, "an IPv4 delete without metric takes the first route that fits, whatever its metric"),
    (
        21,
        "a change of forwarding is notified; ip_forward sets that of every link; IPv6 forwarding that is turned on takes away the advertised default routes of links whose accept_ra is not 2",
    ),
    (
        22,
        "a forwarding entry over another port or VNI is replaced in place, one to a next hop object is not, without an error; by its destination neither can be deleted; only the address of everybody takes a second destination",
    ),
    (23, "a link that is up can get another name (since 6.2), and loses nothing with the old one"),
    (24, "an address keeps its scope when it is replaced"),
    (
        25,
        "an IPv4 route with a next hop object can't be deleted by its gateway, one with several ways only by the first; without gateway and link both can",
    ),
    (
        26,
        "a device's checksum offload is switched by ethtool and notified as a change of the link; a link with disable_ipv6 takes no IPv6 address (EACCES)",
    ),
];

/// Whether the kernel takes this route (laws 1, 2, 19).
pub(super) fn check_route(net: &Namespace, route: &Route) -> Result<(), Errno> {
    if !route.kind.sends_on() {
        return Ok(());
    }
    let Some(name) = route.link else { return Err(Errno::ENODEV) };
    let (index, device) = net.device(name).ok_or(Errno::ENODEV)?;
    if !device.up {
        return Err(Errno::ENETDOWN);
    }
    let Some(via) = route.via else { return Ok(()) };
    if net.holds(via) && (route.onlink || via.is_ipv6()) {
        return Err(Errno::EINVAL);
    }
    match (route.onlink, via.is_ipv4()) {
        (true, true) if !net.had_v4 || route.scope >= RT_SCOPE_LINK => Err(Errno::EINVAL),
        (true, true) => Ok(()),
        (true, false) => match net.routes.covering(via) {
            Some((dst, out)) if dst.prefix() > 0 && out != index && out != 0 => Err(Errno::EINVAL),
            _ => Ok(()),
        },
        (false, four) if net.routes.connected(via, index) => {
            if four && route.scope >= RT_SCOPE_LINK {
                Err(Errno::EINVAL)
            } else {
                Ok(())
            }
        }
        (false, true) => Err(Errno::ENETUNREACH),
        (false, false) => Err(Errno::EHOSTUNREACH),
    }
}
