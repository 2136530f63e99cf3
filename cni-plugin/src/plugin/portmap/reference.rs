//! What the reference plugin made for a container, with either of its backends: our DEL removes it as well, so that a node
//! can change to this plugin while containers run.
//!
//! Its rules name only the container, neither network nor interface. So both plugins remove all rules of a container.

use std::collections::BTreeSet;

use backends::netlink::nft::{Change, Reader, RuleView};
use backends::netlink::{NetlinkError, Socket};
use nix::errno::Errno;
use subnet_lease::Family;

use crate::contract::{Code, During, Failure};
use crate::sys::hash;
use crate::sys::iptables::Turn;

/// The table of its backend `nftables`.
const TABLE: &str = "cni_hostport";
/// Its chains that have rules of containers.
const CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];
/// The table of its backend `iptables`, as nf_tables has it.
const NAT: &str = "nat";
/// The chain that leads to those of containers.
pub(super) const DNAT: &str = "CNI-HOSTPORT-DNAT";
/// Prefixes of a container's chains there, each with the chain that jumps to it.
const ENTRIES: [(&str, &str); 2] = [("CNI-DN-", DNAT), ("CNI-SN-", "CNI-HOSTPORT-SNAT")];
/// Longest name of a chain of iptables.
const NAME: usize = 28;

/// The name of a container's chain.
pub(super) fn chain(prefix: &str, network: &str, container: &str) -> String {
    hash::name(prefix, &format!("{network}{container}"), NAME)
}

/// Removes a container's rules of the backend `nftables`; no rules are no error.
pub(super) fn remove_rules(socket: &mut Socket, container: &str) -> Result<(), Failure> {
    let what = || format!("cannot remove the port maps that another plugin made for {container}");
    let mut change = Change::of(TABLE);
    let mut reader = Reader { socket, table: TABLE };
    for family in Family::ALL {
        let its = |rule: &RuleView<'_>| {
            if rule.note == container && CHAINS.contains(&rule.chain) {
                change.delete_rule(family, rule.chain, rule.handle);
            }
        };
        reader.rules(family, None, its).during(Code::Kernel, what)?;
    }
    commit(change, socket).during(Code::Kernel, what)
}

/// Removes a container's chains of the backend `iptables` over nf_tables; no chains are no error.
pub(super) fn remove_chains(socket: &mut Socket, network: &str, container: &str) -> Result<(), Failure> {
    let what = || format!("cannot remove the chains of iptables with the port maps of {container}");
    let mut change = Change::of(NAT);
    let mut reader = Reader { socket, table: NAT };
    for family in Family::ALL {
        for (prefix, entry) in ENTRIES {
            let chain = chain(prefix, network, container);
            if !reader.has_chain(family, &chain).during(Code::Kernel, what)? {
                continue;
            }
            change.delete_chain_from(&mut reader, family, &chain, entry).during(Code::Kernel, what)?;
        }
    }
    commit(change, socket).during(Code::Kernel, what)
}

/// Removes the chains of a network's containers that are not valid any more, likewise.
pub(super) fn collect(
    socket: &mut Socket,
    network: &str,
    valid: &dyn Fn(&str) -> bool,
) -> Result<(), Failure> {
    let mut left = BTreeSet::new();
    for family in Family::ALL {
        let mut stale = |rule: &RuleView<'_>| {
            let comment = rule.comment();
            let Some(id) = container(network, &comment).filter(|id| !valid(id)) else { return };
            if rule.target() == Some(chain("CNI-DN-", network, id)) {
                left.insert(id.to_owned());
            }
        };
        let read = Reader { socket, table: NAT }.rules(family, Some(DNAT), &mut stale);
        read.during(Code::Kernel, || "cannot read the chains of iptables with port maps".into())?;
    }
    if left.is_empty() {
        return Ok(());
    }
    let _turn = Turn::take();
    left.iter().try_for_each(|id| remove_chains(socket, network, id))
}

/// The container that the comment of a rule names, if it is of this network.
pub(super) fn container<'a>(network: &str, comment: &'a str) -> Option<&'a str> {
    comment.strip_prefix(&format!("dnat name: \"{network}\" id: \""))?.strip_suffix('"')
}

/// What another process removed meanwhile is no error.
fn commit(change: Change<'_>, socket: &mut Socket) -> Result<(), NetlinkError> {
    match change.commit(socket, None) {
        Err(error) if error.errno() == Errno::ENOENT => Ok(()),
        other => other,
    }
}
