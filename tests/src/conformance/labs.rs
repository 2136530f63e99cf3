//! The two labs: the fake kernel, and the real one in a network namespace on a thread of its own.

use std::any::Any;

use backends::kernel::fake::{FakeKernel, RoutePlace};
use backends::kernel::real::{EventFilter, Events, RealKernel};
use backends::kernel::{Kernel, KernelEvent};
use backends::netlink::{Batch, Socket, address, link, neigh, route};
use backends::{Fdb, IfName, Mac, Route, RouteKind, default_metric};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use super::{Act, Lab, owner};

/// The fake kernel.
pub struct FakeLab(FakeKernel);

impl Default for FakeLab {
    fn default() -> Self {
        Self(FakeKernel::new(0))
    }
}

impl Lab for FakeLab {
    fn kernel(&mut self) -> &mut dyn Kernel {
        &mut self.0
    }

    fn hand(&mut self, act: &Act) -> Result<(), Errno> {
        let net = &mut self.0.net;
        match act {
            Act::AddLink(name, mac) => net.add_link(*name, 1500, *mac).map(|_| ()),
            Act::DeleteLink(name) => net.delete_link(*name),
            Act::SetUp(name, up) => net.set_up(*name, *up),
            Act::AddAddress(link, to) => net.put_address(*link, *to),
            Act::AddNarrow(link, to) => net.put_narrow_address(*link, *to),
            Act::Rename(link, to) => net.rename_link(*link, *to),
            Act::DeleteAddress(link, to) => net.delete_address(*link, *to),
            Act::PutRoute(route, place) => net.put_route(route, *place),
            Act::DeleteRoute(route) => net.delete_route(route),
            Act::DeleteNeigh(neigh) => net.delete_neighbour(neigh),
            Act::AppendFdb(fdb) => net.append_fdb(fdb),
            Act::PutFdb(fdb, own) => net.put_fdb(fdb, *own),
            Act::DeleteFdb(fdb) => net.delete_fdb(fdb),
        }
    }

    fn notified(&mut self) -> Option<KernelEvent> {
        let weight = |event: &KernelEvent| match event {
            KernelEvent::Own => 1,
            KernelEvent::Host => 2,
            KernelEvent::Overrun => 3,
        };
        self.0.events().into_iter().max_by_key(weight)
    }
}

/// The real kernel in the network namespace of the calling thread.
pub struct RealLab {
    kernel: RealKernel,
    socket: Socket,
    events: Events,
}

/// Runs a test on a thread of its own in a fresh network namespace, which goes with the thread. Needs
/// `CAP_SYS_ADMIN`, as root has or a user namespace gives.
///
/// # Errors
/// The panic of the test, or why there is no namespace.
pub fn in_namespace(test: impl FnOnce(&mut dyn Lab) + Send) -> Result<(), Box<dyn Any + Send>> {
    std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own");
            test(&mut RealLab::open());
        };
        scope.spawn(run).join()
    })
}

impl RealLab {
    /// Opens it where the calling thread is: a namespace made for this.
    pub fn open() -> Self {
        Self {
            events: Events::route().expect("notifications"),
            kernel: RealKernel::open().expect("the real kernel"),
            socket: Socket::route().expect("a netlink socket"),
        }
    }

    fn send(&mut self, fill: impl FnOnce(&mut Batch)) -> Result<(), Errno> {
        let mut batch = Batch::new();
        fill(&mut batch);
        self.socket.apply(&mut batch).into_iter().try_for_each(|done| done.map_err(|e| e.errno()))
    }
}

impl Lab for RealLab {
    fn kernel(&mut self) -> &mut dyn Kernel {
        &mut self.kernel
    }

    fn hand(&mut self, act: &Act) -> Result<(), Errno> {
        match act {
            Act::AddLink(name, mac) => {
                self.send(|b| add_veth(b, *name, *mac))?;
                let far = index(far_end(*name))?;
                self.send(|b| set_up(b, far, true))
            }
            Act::DeleteLink(name) => index(*name).and_then(|i| self.send(|b| link::delete_link(b, i))),
            Act::SetUp(name, up) => index(*name).and_then(|i| self.send(|b| set_up(b, i, *up))),
            Act::AddAddress(link, to) => {
                index(*link).and_then(|i| self.send(|b| address::add_address(b, i, *to)))
            }
            Act::DeleteAddress(link, to) => {
                index(*link).and_then(|i| self.send(|b| address::delete_address(b, i, *to)))
            }
            Act::AddNarrow(link, to) => index(*link).and_then(|i| self.send(|b| narrow_address(b, i, *to))),
            Act::Rename(link, to) => index(*link).and_then(|i| self.send(|b| rename(b, i, *to))),
            Act::PutRoute(route, place) if route.kind == RouteKind::Special => {
                self.send(|b| next_hop(b, &view(route)))?;
                self.send(|b| put_route(b, route, *place))
            }
            Act::PutRoute(route, place) => self.send(|b| put_route(b, route, *place)),
            Act::DeleteRoute(route) => self.send(|b| route::delete_route(b, &view(route))),
            Act::DeleteNeigh(n) => {
                index(n.link).and_then(|i| self.send(|b| neigh::delete_neighbour(b, i, n.address)))
            }
            Act::AppendFdb(f) => index(f.link).and_then(|i| self.send(|b| entry(b, i, f, APPEND))),
            Act::PutFdb(f, true) if f.diverted => {
                if f.dst.is_unspecified() {
                    self.send(next_hop_group)?;
                }
                index(f.link).and_then(|i| self.send(|b| entry(b, i, f, REPLACE)))
            }
            Act::PutFdb(f, true) => {
                index(f.link).and_then(|i| self.send(|b| neigh::put_fdb(b, i, f.mac, f.dst)))
            }
            Act::PutFdb(f, false) => index(f.link).and_then(|i| self.send(|b| fdb_without_self(b, i, f.mac))),
            Act::DeleteFdb(f) => index(f.link)
                .and_then(|i| self.send(|b| neigh::delete_fdb(b, i, f.mac, (!f.diverted).then_some(f.dst)))),
        }
    }

    fn notified(&mut self) -> Option<KernelEvent> {
        let owner = owner();
        let filter = EventFilter { networks: owner.networks, links: owner.names, ..EventFilter::default() };
        self.events.drain(&filter).expect("notifications").event
    }
}

fn index(name: IfName) -> Result<u32, Errno> {
    if_nametoindex(name.as_str())
}

fn far_end(name: IfName) -> IfName {
    IfName::from_kernel(format!("far-{name}").as_bytes())
}

/// A veth pair with both ends here: a link with carrier, without any hardware.
fn add_veth(batch: &mut Batch, name: IfName, mac: Mac) {
    link::mac(link::name(link::create(batch, 0), name), mac);
    link::veth(batch, |batch| {
        link::name(batch, far_end(name));
    });
}

fn set_up(batch: &mut Batch, index: u32, up: bool) {
    link::change(batch, index, u32::from(up), IFF_UP);
}

fn fdb_without_self(batch: &mut Batch, link: u32, mac: Mac) {
    let mut header = [0; 12];
    header[0] = backends::netlink::AF_BRIDGE;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&neigh::NUD_PERMANENT.to_ne_bytes());
    batch.message(RTM_NEWNEIGH, REQUEST | CREATE | REPLACE, &header).attr(NDA_LLADDR, &mac.0);
}

fn rename(batch: &mut Batch, index: u32, to: IfName) {
    link::name(link::change(batch, index, 0, 0), to);
}

fn narrow_address(batch: &mut Batch, link: u32, net: IpNetwork) {
    let mut header = [0; 8];
    header[0] = backends::netlink::family_of(&net.ip());
    (header[1], header[3]) = (net.prefix(), RT_SCOPE_LINK);
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    batch.message(RTM_NEWADDR, REQUEST | CREATE | REPLACE, &header);
    batch.attr(IFA_LOCAL, &backends::netlink::address_bytes(&net.ip()));
}

/// A forwarding entry; a diverted one over another port, or to the group of next hops.
fn entry(batch: &mut Batch, link: u32, fdb: &Fdb, flags: u16) {
    let mut header = [0; 12];
    header[0] = backends::netlink::AF_BRIDGE;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&(neigh::NUD_PERMANENT | neigh::NUD_NOARP).to_ne_bytes());
    header[10] = neigh::NTF_SELF;
    batch.message(RTM_NEWNEIGH, REQUEST | CREATE | flags, &header).attr(NDA_LLADDR, &fdb.mac.0);
    if fdb.dst.is_unspecified() {
        batch.attr_u32(NDA_NH_ID, GROUP);
        return;
    }
    batch.attr(NDA_DST, &backends::netlink::address_bytes(&fdb.dst));
    if fdb.diverted {
        batch.attr(NDA_PORT, &999u16.to_be_bytes());
    }
}

/// A next hop object for a route, made or replaced.
fn next_hop(batch: &mut Batch, view: &route::RouteView) {
    let Some(gateway) = view.gateway else { return };
    batch.message(
        RTM_NEWNEXTHOP,
        REQUEST | CREATE | REPLACE,
        &[backends::netlink::family_of(&gateway), 0, 0, 0, 0, 0, 0, 0],
    );
    batch.attr_u32(NHA_ID, HOP).attr_u32(NHA_OIF, view.link);
    batch.attr(NHA_GATEWAY, &backends::netlink::address_bytes(&gateway));
}

/// A group of one next hop for forwarding entries, and that hop.
fn next_hop_group(batch: &mut Batch) {
    let flags = REQUEST | CREATE | REPLACE;
    batch
        .message(RTM_NEWNEXTHOP, flags, &[backends::netlink::AF_INET, 0, 0, 0, 0, 0, 0, 0])
        .attr_u32(NHA_ID, HOP);
    batch.attr(NHA_GATEWAY, &[172, 16, 0, 9]).attr(NHA_FDB, &[]);
    batch.message(RTM_NEWNEXTHOP, flags, &[0; 8]).attr_u32(NHA_ID, GROUP);
    // struct nexthop_grp: the id, then weight and padding.
    let mut hop = [0; 8];
    hop[..4].copy_from_slice(&HOP.to_ne_bytes());
    batch.attr(NHA_GROUP, &hop).attr(NHA_FDB, &[]);
}

/// The product's own message with the flags of another place.
fn put_route(batch: &mut Batch, route: &Route, place: RoutePlace) {
    let view = view(route);
    if place == RoutePlace::Replace {
        return route::put_route(batch, &view);
    }
    let flags = match place {
        RoutePlace::Replace => REPLACE,
        RoutePlace::Alone => EXCL,
        RoutePlace::First => 0,
        RoutePlace::Last => APPEND,
    };
    let four = view.dst.is_ipv4();
    let mut header = [0; 12];
    header[0] = if four { backends::netlink::AF_INET } else { backends::netlink::AF_INET6 };
    header[1] = view.dst.prefix();
    header[4] = route::RT_TABLE_MAIN;
    header[5] = view.protocol;
    header[6] = view.scope;
    header[7] = view.kind;
    header[8] = if view.onlink { RTNH_F_ONLINK } else { 0 };
    batch.message(RTM_NEWROUTE, REQUEST | CREATE | flags, &header);
    batch.attr(RTA_DST, &backends::netlink::address_bytes(&view.dst.network()));
    if let Some(via) = view.gateway.filter(|_| route.kind != RouteKind::Special) {
        batch.attr(RTA_GATEWAY, &backends::netlink::address_bytes(&via));
    }
    if route.kind == RouteKind::Special {
        batch.attr_u32(RTA_NH_ID, HOP);
    } else if view.link != 0 {
        batch.attr_u32(RTA_OIF, view.link);
    }
    if view.metric != 0 {
        batch.attr_u32(RTA_PRIORITY, view.metric);
    }
}

fn view(route: &Route) -> route::RouteView {
    route::RouteView {
        dst: route.dst,
        table: u32::from(route::RT_TABLE_MAIN),
        tos: 0,
        protocol: route.protocol,
        scope: route.scope,
        kind: match route.kind {
            RouteKind::Unicast | RouteKind::Special => route::RTN_UNICAST,
            RouteKind::Blackhole => route::RTN_BLACKHOLE,
            RouteKind::Other(kind) => kind,
        },
        metric: if route.metric == default_metric(&route.dst) { 0 } else { route.metric },
        gateway: route.via,
        link: route.link.map_or(0, |link| index(link).unwrap_or(0)),
        onlink: route.onlink,
        source: None,
        cloned: false,
        special: false,
        mtu: 0,
    }
}

const REQUEST: u16 = 1;
const REPLACE: u16 = 0x100;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWNEXTHOP: u16 = 104;
const IFF_UP: u32 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_NH_ID: u16 = 30;
const RT_SCOPE_LINK: u8 = 253;
const IFA_LOCAL: u16 = 2;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_FDB: u16 = 11;
/// Ids of next hop objects; ours, in a namespace of our own.
const HOP: u32 = 11;
const GROUP: u32 = 12;
const RTNH_F_ONLINK: u8 = 4;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_NH_ID: u16 = 13;
