//! Reading what may be ours: vxlan links with our tag or name, what hangs on them, the routes that matter, our tables.

use std::fs;

use nix::net::if_::if_indextoname;
use subnet_lease::Family;

use super::iptables::Iptables;
use super::read::OwnReader;
use crate::kernel::{KernelError, Own};
use crate::name::IfName;
use crate::netlink::route::read_routes;
use crate::netlink::{AF_BRIDGE, AF_INET, AF_INET6, Batch, RawMessage, Socket, link, neigh, nft};
use crate::owner::Owner;
use crate::state::{Object, Sysctl};

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
    dump.each(link::dump_links(Some("vxlan")), |reader, message| reader.link(message))?;
    for (index, link) in dump.reader.links() {
        dump.hanging_on(index, link)?;
    }
    dump.settings(owner);
    for family in [AF_INET, AF_INET6] {
        let reader = &mut dump.reader;
        let read = read_routes(dump.socket, family, |message| reader.route(message, family))?;
        dump.interrupted |= read.interrupted;
    }
    let (firewall, rules) = iptables.look(netfilter.as_deref_mut())?;
    if let Some(netfilter) = netfilter.filter(|_| firewall.nf_tables) {
        dump.tables(netfilter)?;
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
        self.each(link::dump_addresses(index), |reader, message| reader.address(message, index, link))?;
        for family in [AF_INET, AF_INET6, AF_BRIDGE] {
            let request = neigh::dump_neighbours(family, index);
            self.each(request, |reader, message| reader.neighbour(message, family, index, link))?;
        }
        Ok(())
    }

    /// The settings of our links, of the pods' and of the underlay, and under its name those of the host.
    fn settings(&mut self, owner: &Owner) {
        for (_, link) in self.reader.links() {
            self.setting(link, Sysctl::AcceptRa, false);
            self.setting(link, Sysctl::Forward, false);
        }
        for link in
            owner.external.iter().chain(owner.pods.iter().filter(|pods| Some(**pods) != owner.external))
        {
            self.setting(*link, Sysctl::Forward, false);
        }
        if let Some(external) = owner.external {
            self.setting(external, Sysctl::HostForward(Family::V4), false);
            if let Some(forwards) = self.setting(external, Sysctl::HostForward(Family::V6), false) {
                self.setting(external, Sysctl::RouterRa, forwards != 0);
            }
        }
    }

    /// What a file says, if there is one: a kernel without IPv6 has none of its files.
    fn setting(&mut self, link: IfName, name: Sysctl, host_forwards: bool) -> Option<i32> {
        let text = fs::read_to_string(name.path(link)).ok()?;
        let value = name.read(text.trim().parse().ok()?, host_forwards);
        self.reader.push(Object::Sysctl(link, name, value));
        Some(value)
    }

    fn tables(&mut self, netfilter: &mut Socket) -> Result<(), KernelError> {
        for family in Family::ALL {
            if let Some(table) = nft::read(netfilter, family)? {
                self.reader.push(Object::Table(Box::new(table)));
            }
        }
        Ok(())
    }
}

fn name(index: u32) -> Option<IfName> {
    if_indextoname(index).ok().map(|n| IfName::from_kernel(n.as_bytes()))
}
