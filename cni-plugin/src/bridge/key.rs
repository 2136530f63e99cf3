//! How a link of ours is found again without its container: its name and its alias say whose it is.

use backends::IfName;
use backends::netlink::Socket;
use backends::netlink::link::{CONTAINER_ALIAS, LinkView, get_link};
use nix::errno::Errno;

use crate::cni::{Call, Code, During, Failure, Key};

/// The longest alias that the kernel takes, in bytes.
const LONGEST_ALIAS: usize = 255;

/// The host's end of an attachment: `veth` and eight hex digits, as runtimes and tools know it, that follow from the
/// attachment. Two may share one; the alias tells them apart.
pub(super) fn host_name(call: &Call) -> IfName {
    let hash = fold(alias(call).as_bytes());
    let [a, b, c, d, ..] = hash.to_be_bytes();
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
        format!("{CONTAINER_ALIAS}{:016x}", fold(whole.as_bytes()))
    }
}

/// The attachment that an alias of this network names.
pub(super) fn attachment(network: &str, alias: &str) -> Option<Key> {
    let (container, ifname) = alias.strip_prefix(&prefix(network))?.split_once(' ')?;
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

/// The index of the host's end of an attachment that we made, where it is.
pub(super) fn find(host: &mut Socket, call: &Call) -> Result<Option<u32>, Failure> {
    let (name, wanted) = (host_name(call), alias(call));
    let found = host.get(&mut get_link(name), |message| {
        let link = LinkView::parse(&message).ok()?;
        (link.kind == "veth" && link.alias == Some(&*wanted)).then_some(link.index)
    });
    match found {
        Err(error) if error.errno() == Errno::ENODEV => Ok(None),
        other => other.during(Code::Kernel, || format!("cannot read {name}")),
    }
}

/// FNV-1a: spreads texts that differ anywhere.
pub(super) fn fold(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
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
        assert_eq!(any_attachment("cni cbr1 c1 eth0"), attachment("cbr1", "cni cbr1 c1 eth0"));
        assert_eq!(any_attachment("cni 0123456789abcdef"), None);
    }
}
