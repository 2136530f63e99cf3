//! Reading what may be ours: vxlan links with our tag or name, what hangs on them, the routes that matter, our tables.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;

use nix::net::if_::if_indextoname;
use subnet_lease::Family;

use crate::kernel::{KernelError, Own};
use crate::name::{IfName, Mac};
use crate::netlink::link::{AddressView, IFA_F_PERMANENT, IFF_UP, LinkView, RT_SCOPE_LINK};
use crate::netlink::neigh::{NUD_PERMANENT, NeighView};
use crate::netlink::route::{RT_TABLE_MAIN, RTN_BLACKHOLE, RTN_UNICAST, RouteView, read_routes};
use crate::netlink::{AF_BRIDGE, AF_INET, AF_INET6, Socket, address_from, link, neigh, nft, read_u32};
use crate::owner::Owner;
use crate::state::{
    Address, Fdb, Link, LinkKind, Neigh, Object, Route, RouteKind, Sysctl, Vxlan, default_metric,
};

/// One dump in progress.
struct Reader<'a> {
    socket: &'a mut Socket,
    owner: &'a Owner,
    objects: Vec<Object>,
    interrupted: bool,
    /// Our links by index.
    links: HashMap<u32, IfName>,
}

pub(super) fn own(
    socket: &mut Socket,
    netfilter: Option<&mut Socket>,
    owner: &Owner,
) -> Result<Own, KernelError> {
    let mut reader = Reader { socket, owner, objects: Vec::new(), interrupted: false, links: HashMap::new() };
    reader.links()?;
    for (index, link) in reader.links.clone() {
        reader.hanging_on(index, link)?;
    }
    for family in [AF_INET, AF_INET6] {
        reader.routes(family)?;
    }
    if let Some(netfilter) = netfilter {
        reader.tables(netfilter)?;
    }
    Ok(Own { state: reader.objects.into_iter().collect(), interrupted: reader.interrupted })
}

impl Reader<'_> {
    fn links(&mut self) -> Result<(), KernelError> {
        let (owner, objects, links) = (self.owner, &mut self.objects, &mut self.links);
        let dump = self.socket.dump(&mut link::dump_links(Some("vxlan")), |message| {
            let Some(view) = LinkView::parse(&message) else { return };
            if view.kind != "vxlan" || !owner.owns_link(view.name, view.alias.filter(|a| !a.is_empty())) {
                return;
            }
            links.insert(view.index, view.name);
            if view.flags & IFF_UP != 0 {
                objects.push(Object::Up(view.name));
            }
            objects.push(Object::Link(Box::new(vxlan(&view))));
        })?;
        self.interrupted |= dump.interrupted;
        Ok(())
    }

    fn hanging_on(&mut self, index: u32, link: IfName) -> Result<(), KernelError> {
        self.addresses(index, link)?;
        self.neighbours(index, link)?;
        if let Ok(text) = fs::read_to_string(Sysctl::AcceptRa.path(link))
            && let Ok(value) = text.trim().parse()
        {
            self.objects.push(Object::Sysctl(link, Sysctl::AcceptRa, value));
        }
        Ok(())
    }

    fn addresses(&mut self, index: u32, link: IfName) -> Result<(), KernelError> {
        let objects = &mut self.objects;
        let dump = self.socket.dump(&mut link::dump_addresses(index), |message| {
            let Some(view) = AddressView::parse(&message) else { return };
            let ours = view.flags & IFA_F_PERMANENT != 0 && view.scope < RT_SCOPE_LINK;
            if view.link == index && ours {
                objects.push(Object::Address(Address { link, net: view.net }));
            }
        })?;
        self.interrupted |= dump.interrupted;
        Ok(())
    }

    fn neighbours(&mut self, index: u32, link: IfName) -> Result<(), KernelError> {
        for family in [AF_INET, AF_INET6, AF_BRIDGE] {
            let objects = &mut self.objects;
            let dump = self.socket.dump(&mut neigh::dump_neighbours(family, index), |message| {
                let Some(view) = NeighView::parse(&message) else { return };
                // A dump for a family that the kernel lacks answers with all families.
                if view.family != family || view.link != index || view.state & NUD_PERMANENT == 0 {
                    return;
                }
                if let (Some(dst), Some(mac)) = (view.dst, view.mac) {
                    objects.push(entry(family, link, dst, mac));
                }
            })?;
            self.interrupted |= dump.interrupted;
        }
        Ok(())
    }

    fn routes(&mut self, family: u8) -> Result<(), KernelError> {
        let (owner, links, objects) = (self.owner, &self.links, &mut self.objects);
        let mut names = HashMap::new();
        let dump = read_routes(self.socket, family, |view| {
            let six = family == AF_INET6;
            if view.table != u32::from(RT_TABLE_MAIN) || view.cloned || view.dst.is_ipv6() != six {
                return;
            }
            let ours = links.get(&view.link).copied();
            let route = route(&view, ours);
            if owner.may_be_ours(&route, ours.is_some()) {
                let link = ours.or_else(|| *names.entry(view.link).or_insert_with(|| name(view.link)));
                let link = link.filter(|_| route.kind != RouteKind::Blackhole);
                objects.push(Object::Route(Route { link, ..route }));
            }
        })?;
        self.interrupted |= dump.interrupted;
        Ok(())
    }

    fn tables(&mut self, netfilter: &mut Socket) -> Result<(), KernelError> {
        for family in Family::ALL {
            self.objects.extend(nft::read(netfilter, family)?.map(|t| Object::Table(Box::new(t))));
        }
        Ok(())
    }
}

fn entry(family: u8, link: IfName, address: IpAddr, mac: Mac) -> Object {
    match family {
        AF_BRIDGE => Object::Fdb(Fdb { link, mac, dst: address }),
        _ => Object::Neigh(Neigh { link, address, mac }),
    }
}

fn route(view: &RouteView, link: Option<IfName>) -> Route {
    Route {
        dst: view.dst,
        metric: if view.metric == 0 { default_metric(&view.dst) } else { view.metric },
        kind: match view.kind {
            RTN_UNICAST => RouteKind::Unicast,
            RTN_BLACKHOLE => RouteKind::Blackhole,
            other => RouteKind::Other(other),
        },
        via: view.gateway,
        link,
        onlink: view.onlink,
        scope: if view.dst.is_ipv4() { view.scope } else { 0 },
        protocol: view.protocol,
    }
}

fn name(index: u32) -> Option<IfName> {
    if_indextoname(index).ok().map(|n| IfName::from_kernel(n.as_bytes()))
}

fn vxlan(view: &LinkView<'_>) -> Link {
    let mut kind = Vxlan { vni: 0, port: 0, local: None, parent: 0, learning: false, gbp: false };
    for (attr, bytes) in view.data.clone() {
        match attr {
            IFLA_VXLAN_ID => kind.vni = read_u32(bytes).unwrap_or(0),
            IFLA_VXLAN_LINK => kind.parent = read_u32(bytes).unwrap_or(0),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => kind.local = address_from(bytes),
            IFLA_VXLAN_LEARNING => kind.learning = bytes.first().is_some_and(|b| *b != 0),
            IFLA_VXLAN_PORT => kind.port = link::port_from(bytes).unwrap_or(0),
            IFLA_VXLAN_GBP => kind.gbp = true,
            _ => {}
        }
    }
    let tag = view.alias.unwrap_or_default().to_owned();
    Link {
        name: view.name,
        kind: LinkKind::Vxlan(kind),
        mtu: view.mtu,
        mac: view.mac.unwrap_or_default(),
        tag,
    }
}

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;
