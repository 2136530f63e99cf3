//! What the reference plugin made for a container, with either of its backends: our DEL takes it away as well, so that
//! a node can change to this plugin with containers running.
//!
//! Its rules name the container alone, neither network nor interface; so it, and we, remove all of a container's.

use std::collections::BTreeSet;

use backends::netlink::Socket;
use nix::errno::Errno;
use subnet_lease::Family;

use crate::contract::{Code, During, Failure};
use crate::sys::hash;
use crate::sys::iptables::Turn;
use crate::sys::nft::{Change, Reader, RuleView};

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

/// Removes a container's rules of the backend `nftables`; none there is fine.
pub(super) fn remove_rules(socket: &mut Socket, container: &str) -> Result<(), Failure> {
    let what = || format!("cannot remove the port maps that another plugin made for {container}");
    let mut change = Change::of(TABLE);
    let mut reader = Reader { socket, table: TABLE };
    for family in Family::ALL {
        for rule in reader.rules(family, None).during(Code::Kernel, what)? {
            if rule.note == container && CHAINS.contains(&&*rule.chain) {
                change.delete_rule(family, &rule.chain, rule.handle);
            }
        }
    }
    commit(change, socket).during(Code::Kernel, what)
}

/// Removes a container's chains of the backend `iptables`, where that is made of nf_tables; none there is fine.
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
        let rules = Reader { socket, table: NAT }.rules(family, Some(DNAT));
        let rules =
            rules.during(Code::Kernel, || "cannot read the chains of iptables with port maps".into())?;
        let stale = |rule: &RuleView| {
            let id = container(network, rule.comment()).filter(|id| !valid(id))?;
            (rule.target() == Some(&chain("CNI-DN-", network, id))).then(|| id.to_owned())
        };
        left.extend(rules.iter().filter_map(stale));
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

/// What somebody else removed meanwhile is gone as well.
fn commit(change: Change, socket: &mut Socket) -> Result<(), backends::netlink::NetlinkError> {
    match change.commit(socket, None) {
        Err(error) if error.errno() == Errno::ENOENT => Ok(()),
        other => other,
    }
}
