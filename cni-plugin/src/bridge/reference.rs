//! Masquerade rules that the reference plugin made for one container, with either of its backends: our DEL takes them away
//! as well, so that a node can change to this plugin with containers running.
//!
//! ```text
//!   backend iptables   table nat                         POSTROUTING ──▶ CNI-<hash of network and container>
//!   backend nftables   table inet cni_plugins_masquerade   masq_checks: a rule with the comment "<hash>-<hash>, net: …"
//! ```

use backends::netlink::{Batch, NetlinkError, Socket};
use nix::errno::Errno;
use subnet_lease::Family;

use super::masquerade::{
    ACK, DELRULE, DUMP, GETRULE, NEWRULE, RULE_CHAIN, RULE_HANDLE, RULE_TABLE, RULE_USERDATA, attributes,
    begin, end, header, text,
};
use crate::cni::{Call, Code, During, Failure};
use crate::hash;
use crate::iptables::{Plan, Table, Turn, has_legacy};
use crate::nft::{Change, Reader, comment_text};

const TABLE: &str = "cni_plugins_masquerade";
const CHAIN: &str = "masq_checks";
/// `NFPROTO_INET`.
const INET: u8 = 1;
const NAT: &str = "nat";
const ENTRY: &str = "POSTROUTING";
/// Longest name of a chain of iptables.
const NAME: usize = 28;

/// Removes what there is of the call's attachment; none there, or no nf_tables, is fine.
pub(super) fn remove_masquerade(call: &Call) -> Result<(), Failure> {
    let what =
        || format!("cannot remove the masquerade rules that another plugin made for {}", call.container);
    if let Ok(mut socket) = Socket::netfilter() {
        remove_rules(&mut socket, call).during(Code::Kernel, what)?;
        remove_chain(&mut socket, call).during(Code::Kernel, what)?;
    }
    remove_legacy(call)
}

fn remove_rules(socket: &mut Socket, call: &Call) -> Result<(), NetlinkError> {
    let own = mark(call);
    let mut request = Batch::new();
    header(&mut request, GETRULE, DUMP, INET).attr_str(RULE_TABLE, TABLE).attr_str(RULE_CHAIN, CHAIN);
    let mut handles = Vec::new();
    let read = socket.dump(&mut request, |message| {
        let Some(attrs) = attributes(&message, NEWRULE) else { return };
        let note = attrs.clone().find(RULE_USERDATA).and_then(comment_text).unwrap_or_default();
        // Old kernels ignore the filter.
        if text(&attrs, RULE_TABLE) == Some(TABLE) && note.starts_with(&own) {
            handles.extend(attrs.find(RULE_HANDLE).map(<[u8]>::to_vec));
        }
    });
    if read.is_err() || handles.is_empty() {
        // No nf_tables, or no such table: no rules.
        return Ok(());
    }
    let mut batch = Batch::new();
    begin(&mut batch);
    for (n, handle) in handles.iter().enumerate() {
        header(&mut batch, DELRULE, if n + 1 == handles.len() { ACK } else { 0 }, INET);
        batch.attr_str(RULE_TABLE, TABLE).attr_str(RULE_CHAIN, CHAIN).attr(RULE_HANDLE, handle);
    }
    end(&mut batch);
    gone(socket.transaction(&mut batch).map_err(|(_, error)| error))
}

/// How the comments of an attachment's rules begin.
fn mark(call: &Call) -> String {
    let attachment = format!("{}:{}", call.ifname, call.container);
    format!("{}-{}, ", hash::name("", &call.network, 16), hash::name("", &attachment, 16))
}

fn chain(call: &Call) -> String {
    hash::name("CNI-", &format!("{}{}", call.network, call.container), NAME)
}

fn remove_chain(socket: &mut Socket, call: &Call) -> Result<(), NetlinkError> {
    let chain = chain(call);
    for family in Family::ALL {
        let mut reader = Reader { socket, table: NAT };
        if !reader.has_chain(family, &chain).unwrap_or(false) {
            continue;
        }
        let _turn = Turn::take();
        let mut change = Change::of(NAT);
        change.delete_chain_from(&mut reader, family, &chain, ENTRY)?;
        gone(change.commit(socket, None))?;
    }
    Ok(())
}

/// From tables of the old kernel interface, where there are any.
fn remove_legacy(call: &Call) -> Result<(), Failure> {
    let chain = chain(call);
    for family in Family::ALL.into_iter().filter(|family| has_legacy(*family, NAT)) {
        Table { family, name: NAT, legacy: true }.change(|saved| {
            let mut plan = Plan::default();
            plan.delete_chain(saved, &chain, ENTRY);
            plan
        })?;
    }
    Ok(())
}

/// What somebody else removed meanwhile is gone as well.
fn gone(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == Errno::ENOENT => Ok(()),
        other => other,
    }
}
