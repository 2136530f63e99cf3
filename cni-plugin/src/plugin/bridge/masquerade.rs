//! Masquerade (`ipMasq`): packets that leave a subnet of the network get the host's address. A table of our own has one
//! chain with one rule for each subnet, made on first need. Nothing is made for a single container, so DEL removes nothing.
//!
//! ```text
//!   table ip selvage-masquerade { chain cbr0-10.244.1.0/24 {
//!       type nat hook postrouting priority 100
//!       ip saddr 10.244.1.0/24 ip daddr != 10.244.1.0/24 ip daddr != 224.0.0.0/4 masquerade comment "cbr0 10.244.1.0/24"
//!   } }
//! ```

use std::collections::BTreeSet;

use backends::local::hash::Fnv64;
use backends::netlink::nft::{BaseChain, Change, End, Expr, NF_ACCEPT, POSTROUTING, Reader, Rule};
use backends::netlink::{NetlinkError, Socket};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use subnet_lease::Family;

use crate::contract::{Code, During, Failure};
use crate::plugin::ipam::Lease;

const TABLE: &str = "selvage-masquerade";
/// After the destination of a connection is decided (`srcnat`).
const BASE: BaseChain<'_> =
    BaseChain { kind: "nat", hook: POSTROUTING, priority: 100, policy: Some(NF_ACCEPT) };
/// The longest name of a chain, in bytes.
const LONGEST_NAME: usize = 120;

/// Makes the rules of the leases' subnets where they are missing.
pub(super) fn ensure(network: &str, leases: &[Lease]) -> Result<(), Failure> {
    let mut socket = open()?;
    for subnet in subnets(leases) {
        let rule = rule(network, subnet);
        if !stands(&mut socket, subnet, &rule)? {
            put(&mut socket, subnet, &rule).during(Code::Kernel, || format!("cannot masquerade {subnet}"))?;
        }
    }
    Ok(())
}

/// The first of the leases' subnets whose rule is missing.
pub(super) fn missing(network: &str, leases: &[Lease]) -> Result<Option<IpNetwork>, Failure> {
    let mut socket = open()?;
    for subnet in subnets(leases) {
        if !stands(&mut socket, subnet, &rule(network, subnet))? {
            return Ok(Some(subnet));
        }
    }
    Ok(None)
}

/// Removes the rules of a network; nothing there, or no table, is no error.
pub(super) fn remove(network: &str) -> Result<(), Failure> {
    let Ok(mut socket) = Socket::netfilter() else { return Ok(()) };
    for family in Family::ALL {
        let mut names = Vec::new();
        let read = Reader { socket: &mut socket, table: TABLE }.chains(family, |chain| {
            names.extend(is_of(network, chain.name).then(|| chain.name.to_owned()));
        });
        if read.is_err() {
            continue; // without nf_tables there are no rules
        }
        for name in names {
            let mut change = Change::of(TABLE);
            change.delete_chain(family, &name);
            match change.commit(&mut socket, None) {
                Err(error) if error.errno() == Errno::ENOENT => {}
                other => other.during(Code::Kernel, || format!("cannot remove chain {name}"))?,
            }
        }
    }
    Ok(())
}

fn open() -> Result<Socket, Failure> {
    Socket::netfilter().during(Code::Kernel, || "ipMasq needs nf_tables: no netlink socket".into())
}

fn subnets(leases: &[Lease]) -> BTreeSet<IpNetwork> {
    leases.iter().filter_map(|l| IpNetwork::new(l.net.network(), l.net.prefix()).ok()).collect()
}

/// Whether the subnet's rule is there as we would write it, and is the only one of its chain.
fn stands(socket: &mut Socket, subnet: IpNetwork, wanted: &Rule) -> Result<bool, Failure> {
    let (mut rules, mut right) = (0, 0);
    let family = Family::of(&subnet.ip());
    let read = Reader { socket, table: TABLE }.rules(family, Some(&wanted.chain), |rule| {
        rules += 1;
        right += u32::from(rule.is(wanted));
    });
    read.during(Code::Kernel, || "cannot read the masquerade rules".into())?;
    Ok(rules == 1 && right == 1)
}

/// Makes the chain hold only this rule, whatever it held: two processes that do so at once write the same.
fn put(socket: &mut Socket, subnet: IpNetwork, rule: &Rule) -> Result<(), NetlinkError> {
    let family = Family::of(&subnet.ip());
    let mut change = Change::of(TABLE);
    change.table(family, "");
    change.base_chain(family, &rule.chain, BASE);
    change.empty_chain(family, &rule.chain);
    change.rule(family, rule);
    change.commit(socket, None)
}

/// Whether a chain of our table is the network's.
fn is_of(network: &str, name: &str) -> bool {
    let subnet = name.strip_prefix(&format!("masq-{network}-")).map(|text| text.replace('_', ":").parse());
    subnet.is_some_and(|subnet| subnet.is_ok_and(|subnet| chain_name(network, subnet) == name))
}

/// `nft` accepts no colon in a name.
fn chain_name(network: &str, subnet: IpNetwork) -> String {
    let name = format!("masq-{network}-{}", subnet.to_string().replace(':', "_"));
    if name.len() <= LONGEST_NAME { name } else { format!("masq-{}", Fnv64::of(name.as_bytes())) }
}

/// From the subnet, to other addresses, not to multicast: masquerade.
fn rule(network: &str, subnet: IpNetwork) -> Rule {
    let multicast = if subnet.is_ipv4() { "224.0.0.0/4" } else { "ff00::/8" }.parse();
    let mut exprs = Expr::within(End::Source, subnet, true);
    for net in [Ok(subnet), multicast].into_iter().flatten() {
        exprs.extend(Expr::within(End::Destination, net, false));
    }
    exprs.push(Expr::Masquerade { flags: 0 });
    Rule { chain: chain_name(network, subnet), note: format!("{network} {subnet}"), exprs, first: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_named_after_its_network_and_subnet_and_read_back() {
        let six = "fc00::/64".parse().unwrap();
        assert_eq!(chain_name("cbr0", six), "masq-cbr0-fc00__/64");
        let long = chain_name(&"n".repeat(200), six);
        assert!(long.len() <= LONGEST_NAME && long.starts_with("masq-"), "{long}");
    }
}
