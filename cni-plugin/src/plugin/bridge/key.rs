//! How a link of ours is found again without its container: its name and its alias name its attachment.

use backends::IfName;
use backends::local::hash::Fnv64;
use backends::netlink::Socket;
use backends::netlink::link::{CONTAINER_ALIAS, LinkView, get_link, get_link_at};
use nix::errno::Errno;

use crate::contract::{Call, Code, During, Failure, Key};

/// What follows in the alias of a link for which there are rules of `macspoofchk`.
const CHECKED: &str = " macspoofchk";
/// The kernel takes 255 bytes as an alias.
const LONGEST_ALIAS: usize = 255 - CHECKED.len();

/// The host's end of an attachment that we made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostEnd {
    pub(super) index: u32,
    /// There may be rules of `macspoofchk` for it.
    pub(super) checked: bool,
}

/// The host's end of an attachment: `veth` and eight hex digits, as runtimes and tools know it, that follow from the
/// attachment. Two attachments may have the same name; the alias distinguishes them.
pub(super) fn host_name(call: &Call) -> IfName {
    let [a, b, c, d, ..] = Fnv64::of(alias(call).as_bytes()).value().to_be_bytes();
    named([a, b, c, d])
}

/// `veth` and these four bytes.
pub(super) fn named([a, b, c, d]: [u8; 4]) -> IfName {
    IfName::from_kernel(format!("veth{a:02x}{b:02x}{c:02x}{d:02x}").as_bytes())
}

/// `cni <network> <container> <interface>`; of names longer than an alias, their hash.
pub(super) fn alias(call: &Call) -> String {
    let whole = format!("{}{} {}", prefix(&call.network), call.container, call.ifname);
    if whole.len() <= LONGEST_ALIAS {
        whole
    } else {
        format!("{CONTAINER_ALIAS}{}", Fnv64::of(whole.as_bytes()))
    }
}

/// The alias of a link for which there are rules of `macspoofchk`.
pub(super) fn checked_alias(call: &Call) -> String {
    alias(call) + CHECKED
}

/// The attachment that an alias of this network names.
pub(super) fn attachment(network: &str, alias: &str) -> Option<Key> {
    let (container, rest) = alias.strip_prefix(&prefix(network))?.split_once(' ')?;
    let ifname = rest.strip_suffix(CHECKED).unwrap_or(rest);
    Some((container.to_owned(), ifname.to_owned()))
}

/// The attachment that an alias names, whatever its network.
pub(super) fn any_attachment(alias: &str) -> Option<Key> {
    let network = alias.strip_prefix(CONTAINER_ALIAS)?.split_once(' ')?.0;
    attachment(network, alias)
}

fn prefix(network: &str) -> String {
    format!("{CONTAINER_ALIAS}{network} ")
}

/// The host's end of an attachment that we made, where it is.
pub(super) fn find(host: &mut Socket, call: &Call) -> Result<Option<HostEnd>, Failure> {
    let (name, wanted) = (host_name(call), alias(call));
    let found = host.get(&mut get_link(name), |message| {
        let link = LinkView::parse(&message).ok()?;
        let checked = checked(link.alias?, &wanted)?;
        (link.kind == "veth").then_some(HostEnd { index: link.index, checked })
    });
    match found {
        Err(error) if error.errno() == Errno::ENODEV => Ok(None),
        other => other.during(Code::Kernel, || format!("cannot read {name}")),
    }
}

/// Whether the alias is this attachment's, and then whether there may be rules of `macspoofchk`.
fn checked(alias: &str, wanted: &str) -> Option<bool> {
    match alias.strip_prefix(wanted)? {
        "" => Some(false),
        CHECKED => Some(true),
        _ => None,
    }
}

/// Whether the host's end of a container's interface (`inside`) is marked as another attachment's. Only a link of the host
/// whose other end has that index is the host's end.
pub(super) fn is_anothers(host: &mut Socket, end: u32, inside: u32, call: &Call) -> bool {
    let wanted = alias(call);
    let found = host.get(&mut get_link_at(end), |message| {
        let link = LinkView::parse(&message).ok()?;
        let is_end = link.is_containers() && link.peer == inside;
        Some(is_end && checked(link.alias?, &wanted).is_none())
    });
    matches!(found, Ok(Some(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_names_its_attachment_and_no_other_networks() {
        let key = ("c1".to_owned(), "eth0".to_owned());
        assert_eq!(attachment("cbr0", "cni cbr0 c1 eth0"), Some(key));
        for other in ["cni cbr1 c1 eth0", "cni cbr0 c1", "cbr0 c1 eth0", "", "cni 0123456789abcdef"] {
            assert_eq!(attachment("cbr0", other), None, "{other}");
        }
        // An interface can be called like that.
        for (alias, ifname) in [
            ("cni cbr0 c1 eth0 macspoofchk", "eth0"),
            ("cni cbr0 c1 macspoofchk", "macspoofchk"),
            ("cni cbr0 c1 macspoofchk macspoofchk", "macspoofchk"),
        ] {
            assert_eq!(attachment("cbr0", alias), Some(("c1".to_owned(), ifname.to_owned())), "{alias}");
        }
        assert_eq!(any_attachment("cni cbr1 c1 eth0"), attachment("cbr1", "cni cbr1 c1 eth0"));
        assert_eq!(any_attachment("cni 0123456789abcdef"), None);
    }
}
