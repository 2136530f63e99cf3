//! Reading what may be ours: links of our kinds with our tag or name, what hangs on them, the routes that matter, our tables.

use std::fs;

use nix::net::if_::if_indextoname;
use subnet_lease::Family;

use super::ethtool;
use super::iptables::Iptables;
use super::nft;
use super::read::OwnReader;
use crate::kernel::{KernelError, Own};
use crate::netlink::route::read_routes;
use crate::netlink::{AF_BRIDGE, AF_INET, AF_INET6, Batch, RawMessage, Socket, address, link, neigh};
use crate::plan::Owner;
use crate::rules::RuleNames;
use crate::state::{IfName, LINK_KINDS, Object, Sysctl, TableKey};

/// One dump in progress.
struct Dumping<'a> {
    socket: &'a mut Socket,
    reader: OwnReader<'a>,
    interrupted: bool,
}

pub(super) fn own(
    socket: &mut Socket,
    mut netfilter: Option<&mut Socket>,
    iptables: &mut Iptables,
    owner: &Owner,
) -> Result<Own, KernelError> {
    let mut dump = Dumping { socket, reader: OwnReader::new(owner, name), interrupted: false };
    for kind in &LINK_KINDS {
        dump.each(link::dump_links(Some(kind.word)), |reader, message| reader.link(message))?;
    }
    for (index, link) in dump.reader.links() {
        dump.hanging_on(index, link)?;
    }
    dump.settings(owner);
    for family in [AF_INET, AF_INET6] {
        let reader = &mut dump.reader;
        let read = read_routes(dump.socket, family, |message| reader.route(message, family))?;
        dump.interrupted |= read.interrupted;
    }
    let names = owner.rule_names();
    let packets = dump.reader.packets();
    let (firewall, rules) = iptables.look(netfilter.as_deref_mut(), &names, &packets)?;
    if let Some(netfilter) = netfilter.filter(|_| firewall.nf_tables) {
        dump.tables(netfilter, &names)?;
    }
    // Whom else firewalld trusts is none of our business.
    let counts = |o: &Object| !matches!(o, Object::Trusted(net) if !owner.networks.contains(net));
    rules.into_iter().filter(counts).for_each(|object| dump.reader.push(object));
    let (state, unreadable) = dump.reader.finish();
    Ok(Own { state, interrupted: dump.interrupted, unreadable: unreadable.0, firewall })
}

impl Dumping<'_> {
    fn each(
        &mut self,
        mut request: Batch,
        mut read: impl FnMut(&mut OwnReader<'_>, &RawMessage<'_>),
    ) -> Result<(), KernelError> {
        let reader = &mut self.reader;
        self.interrupted |= self.socket.dump(&mut request, |message| read(reader, &message))?.interrupted;
        Ok(())
    }

    fn hanging_on(&mut self, index: u32, link: IfName) -> Result<(), KernelError> {
        self.each(address::dump_addresses(index), |reader, message| reader.address(message, index, link))?;
        for family in [AF_INET, AF_INET6, AF_BRIDGE] {
            let request = neigh::dump_neighbours(family, index);
            self.each(request, |reader, message| reader.neighbour(message, family, index, link))?;
        }
        Ok(())
    }

    /// The settings of our links, of the pods' and of the underlay, and under its name those of the host.
    fn settings(&mut self, owner: &Owner) {
        for (_, link) in self.reader.links() {
            for name in OF_TUNNELS {
                self.setting(link, name);
            }
            // A driver that can't say is not one that was told otherwise.
            if let Ok(on) = ethtool::tx_checksum(link) {
                self.reader.push(Object::Sysctl(link, Sysctl::TxChecksum, i32::from(on)));
            }
        }
        for link in
            owner.external.iter().chain(owner.pods.iter().filter(|pods| Some(**pods) != owner.external))
        {
            self.setting(*link, Sysctl::Forward);
        }
        for name in owner.external.iter().flat_map(|_| OF_THE_HOST) {
            self.setting(owner.external.unwrap_or_default(), name);
        }
    }

    /// What a file says, if there is one: a kernel without IPv6 has none of its files.
    fn setting(&mut self, link: IfName, name: Sysctl) {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<i32>().ok();
        let Some(text) = number(&name.path(link)) else { return };
        let value = name.read(text, name.beside().and_then(number).unwrap_or(0));
        self.reader.push(Object::Sysctl(link, name, value));
    }

    fn tables(&mut self, netfilter: &mut Socket, names: &[RuleNames]) -> Result<(), KernelError> {
        for key in names.iter().flat_map(|names| Family::ALL.map(|family| TableKey { family, names: *names }))
        {
            if let Some(table) = nft::read(netfilter, key)? {
                self.reader.push(Object::Table(Box::new(table)));
            }
        }
        Ok(())
    }
}

/// What is set on tunnel devices.
const OF_TUNNELS: [Sysctl; 4] = [Sysctl::AcceptRa, Sysctl::Forward, Sysctl::ReturnPath, Sysctl::NoIpv6];

/// What is set on the underlay, and of the host.
const OF_THE_HOST: [Sysctl; 8] = [
    Sysctl::HostForward(Family::V4),
    Sysctl::HostForward(Family::V6),
    Sysctl::RouterRa,
    Sysctl::ReturnPath,
    Sysctl::BridgeCall(Family::V4),
    Sysctl::BridgeCall(Family::V6),
    Sysctl::NeighbourRoom(Family::V4),
    Sysctl::NeighbourRoom(Family::V6),
];

fn name(index: u32) -> Option<IfName> {
    if_indextoname(index).ok().map(|n| IfName::from_kernel(n.as_bytes()))
}
