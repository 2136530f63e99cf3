//! Reading what may be ours: vxlan links with our tag or name, what hangs on them, the routes that matter, our tables.

use std::fs;

use nix::net::if_::if_indextoname;
use subnet_lease::Family;

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
    netfilter: Option<&mut Socket>,
    owner: &Owner,
) -> Result<Own, KernelError> {
    let mut dump = Dumping { socket, reader: OwnReader::new(owner, name), interrupted: false };
    dump.each(link::dump_links(Some("vxlan")), |reader, message| reader.link(message))?;
    for (index, link) in dump.reader.links() {
        dump.hanging_on(index, link)?;
    }
    for family in [AF_INET, AF_INET6] {
        let reader = &mut dump.reader;
        let read = read_routes(dump.socket, family, |message| reader.route(message, family))?;
        dump.interrupted |= read.interrupted;
    }
    if let Some(netfilter) = netfilter {
        dump.tables(netfilter)?;
    }
    let (state, unreadable) = dump.reader.finish();
    Ok(Own { state, interrupted: dump.interrupted, unreadable: unreadable.0 })
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
        if let Ok(text) = fs::read_to_string(Sysctl::AcceptRa.path(link))
            && let Ok(value) = text.trim().parse()
        {
            self.reader.push(Object::Sysctl(link, Sysctl::AcceptRa, value));
        }
        Ok(())
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
