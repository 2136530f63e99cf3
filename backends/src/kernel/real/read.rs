//! What the messages of a dump say, without the socket they came through: bytes in, objects out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::packet::Packet;
use crate::netlink::address::{AddressView, IFA_F_PERMANENT};
use crate::netlink::link::{IFF_UP, LinkView, RT_SCOPE_LINK};
use crate::netlink::neigh::{NUD_PERMANENT, NeighView};
use crate::netlink::route::{RT_TABLE_MAIN, RTN_BLACKHOLE, RTN_UNICAST, RouteView};
use crate::netlink::{AF_BRIDGE, AF_INET, AF_INET6, RawMessage, Unread};
use crate::plan::Owner;
use crate::state::{
    Address, Fdb, IfName, KernelState, Link, LinkKind, Neigh, Object, Route, RouteKind, default_metric,
};

/// Messages that could not be read, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unreadable(pub u64);

impl Unreadable {
    /// What was read, if anything; counts what should have been and could not.
    pub(super) fn note<T>(&mut self, read: Result<T, Unread>) -> Option<T> {
        self.0 += u64::from(matches!(read, Err(Unread::Broken)));
        read.ok()
    }
}

/// What may be ours, message by message.
pub struct OwnReader<'a> {
    owner: &'a Owner,
    /// The name of a link of this index that is not ours.
    name_of: fn(u32) -> Option<IfName>,
    names: HashMap<u32, Option<IfName>>,
    links: HashMap<u32, IfName>,
    objects: Vec<Object>,
    unreadable: Unreadable,
}

impl<'a> OwnReader<'a> {
    /// Reads for this owner.
    pub fn new(owner: &'a Owner, name_of: fn(u32) -> Option<IfName>) -> Self {
        let (names, links) = (HashMap::new(), HashMap::new());
        Self { owner, name_of, names, links, objects: Vec::new(), unreadable: Unreadable::default() }
    }

    /// A message of the dump of links.
    pub fn link(&mut self, message: &RawMessage<'_>) {
        let Some(view) = self.unreadable.note(LinkView::parse(message)) else { return };
        let Some(kind) = LinkKind::read(&view) else { return };
        if !self.owner.owns_link(view.name, view.alias.filter(|a| !a.is_empty())) {
            return;
        }
        self.links.insert(view.index, view.name);
        if view.flags & IFF_UP != 0 && !view.held_down {
            self.objects.push(Object::Up(view.name));
        }
        self.objects.push(Object::Link(Box::new(Link {
            name: view.name,
            kind,
            mtu: view.mtu,
            mac: view.mac.unwrap_or_default(),
            tag: view.alias.unwrap_or_default().to_owned(),
            master: view.master.unwrap_or(0),
        })));
    }

    /// A message of the dump of a link's addresses.
    pub fn address(&mut self, message: &RawMessage<'_>, index: u32, link: IfName) {
        let Some(view) = self.unreadable.note(AddressView::parse(message)) else { return };
        let narrow = view.scope >= RT_SCOPE_LINK;
        // The link-local ones are the kernel's own.
        let ours = view.flags & IFA_F_PERMANENT != 0 && (!narrow || self.owner.inside_address(view.net.ip()));
        if view.link == index && ours {
            self.objects.push(Object::Address(Address { link, net: view.net, narrow }));
        }
    }

    /// A message of the dump of a link's neighbours or FDB entries.
    pub fn neighbour(&mut self, message: &RawMessage<'_>, family: u8, index: u32, link: IfName) {
        let Some(view) = self.unreadable.note(NeighView::parse(message)) else { return };
        // A dump for a family that the kernel lacks answers with all families.
        if view.family != family || view.link != index || view.state & NUD_PERMANENT == 0 {
            return;
        }
        match (family, view.dst, view.mac) {
            (AF_BRIDGE, dst, Some(mac)) if dst.is_some() || view.diverted => {
                let dst = dst.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                self.objects.push(Object::Fdb(Fdb { link, mac, dst, diverted: view.diverted }));
            }
            (AF_INET | AF_INET6, Some(address), Some(mac)) => {
                self.objects.push(Object::Neigh(Neigh { link, address, mac }));
            }
            _ => {}
        }
    }

    /// A message of the dump of a family's routes. The links were read before.
    pub fn route(&mut self, message: &RawMessage<'_>, family: u8) {
        let Self { owner, name_of, names, links, objects, .. } = self;
        let read = RouteView::parse(message, |view| {
            let six = family == AF_INET6;
            let elsewhere = view.table != u32::from(RT_TABLE_MAIN) || view.tos != 0;
            if elsewhere || view.cloned || view.dst.is_ipv6() != six {
                return;
            }
            let ours = links.get(&view.link).copied();
            let route = route(&view, ours);
            if owner.may_be_ours(&route, ours.is_some()) {
                let mut named = |index| *names.entry(index).or_insert_with(|| name_of(index));
                let link = ours.or_else(|| if view.link == 0 { None } else { named(view.link) });
                let link = link.filter(|_| route.kind != RouteKind::Blackhole);
                objects.push(Object::Route(Route { link, ..route }));
            }
        });
        self.unreadable.note(read);
    }

    /// Something that is not told in messages of these kinds.
    pub fn push(&mut self, object: Object) {
        self.objects.push(object);
    }

    /// Our links so far, by index.
    pub fn links(&self) -> Vec<(u32, IfName)> {
        self.links.iter().map(|(index, name)| (*index, *name)).collect()
    }

    /// What our links so far receive from other hosts.
    pub(super) fn packets(&self) -> Vec<Packet> {
        let link = |object: &Object| if let Object::Link(link) = object { Packet::of(link) } else { None };
        self.objects.iter().filter_map(link).collect()
    }

    /// All of it.
    pub fn finish(self) -> (KernelState, Unreadable) {
        (self.objects.into_iter().collect(), self.unreadable)
    }
}

fn route(view: &RouteView, link: Option<IfName>) -> Route {
    Route {
        dst: view.dst,
        metric: if view.metric == 0 { default_metric(&view.dst) } else { view.metric },
        kind: match view.kind {
            RTN_UNICAST if view.special => RouteKind::Special,
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
