//! The two labs: the fake kernel, and the real one in a network namespace on a thread of its own.

use std::any::Any;

use backends::kernel::fake::{FakeKernel, Place};
use backends::kernel::real::{EventFilter, Events, RealKernel};
use backends::kernel::{Kernel, KernelEvent};
use backends::netlink::{Batch, Socket, neigh, route, veth};
use backends::{IfName, Mac, Route, RouteKind, default_metric};
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
            Act::DeleteAddress(link, to) => net.delete_address(*link, *to),
            Act::PutRoute(route, place) => net.put_route(route, *place),
            Act::DeleteRoute(route) => net.delete_route(route),
            Act::DeleteNeigh(neigh) => net.delete_neighbour(neigh),
            Act::PutFdb(fdb, own) => net.put_fdb(fdb, *own),
            Act::DeleteFdb(fdb) => net.delete_fdb(fdb),
        }
    }

    fn told(&mut self) -> Option<KernelEvent> {
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
        self.socket.request(&mut batch).map_err(|e| e.errno())
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
                self.send(|b| veth::set_flags(b, far, IFF_UP))
            }
            Act::DeleteLink(name) => index(*name).and_then(|i| self.send(|b| veth::delete_link(b, i))),
            Act::SetUp(name, up) => index(*name).and_then(|i| self.send(|b| set_up(b, i, *up))),
            Act::AddAddress(link, to) => {
                index(*link).and_then(|i| self.send(|b| veth::add_address(b, i, *to)))
            }
            Act::DeleteAddress(link, to) => {
                index(*link).and_then(|i| self.send(|b| veth::delete_address(b, i, *to)))
            }
            Act::PutRoute(route, place) => self.send(|b| put_route(b, route, *place)),
            Act::DeleteRoute(route) => self.send(|b| route::delete_route(b, &view(route))),
            Act::DeleteNeigh(n) => {
                index(n.link).and_then(|i| self.send(|b| neigh::delete_neighbour(b, i, n.address)))
            }
            Act::PutFdb(f, true) => {
                index(f.link).and_then(|i| self.send(|b| neigh::put_fdb(b, i, f.mac, f.dst)))
            }
            Act::PutFdb(f, false) => index(f.link).and_then(|i| self.send(|b| fdb_without_self(b, i, f.mac))),
            Act::DeleteFdb(f) => {
                index(f.link).and_then(|i| self.send(|b| neigh::delete_fdb(b, i, f.mac, Some(f.dst))))
            }
        }
    }

    fn told(&mut self) -> Option<KernelEvent> {
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
    batch.message(RTM_NEWLINK, REQUEST | CREATE | EXCL, &[0; IFINFO]);
    batch.attr_str(IFLA_IFNAME, name.as_str()).attr(IFLA_ADDRESS, &mac.0);
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_KIND, b"veth");
    let data = batch.nest(IFLA_INFO_DATA);
    let peer = batch.nest(VETH_INFO_PEER);
    batch.raw(&[0; IFINFO]).attr_str(IFLA_IFNAME, far_end(name).as_str());
    batch.end(peer).end(data).end(info);
}

fn set_up(batch: &mut Batch, link: u32, up: bool) {
    let mut header = [0; IFINFO];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..12].copy_from_slice(&u32::from(up).to_ne_bytes());
    header[12..].copy_from_slice(&IFF_UP.to_ne_bytes());
    batch.message(RTM_NEWLINK, REQUEST, &header);
}

fn fdb_without_self(batch: &mut Batch, link: u32, mac: Mac) {
    let mut header = [0; 12];
    header[0] = backends::netlink::AF_BRIDGE;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&neigh::NUD_PERMANENT.to_ne_bytes());
    batch.message(RTM_NEWNEIGH, REQUEST | CREATE | REPLACE, &header).attr(NDA_LLADDR, &mac.0);
}

/// The product's own message with the flags of another place.
fn put_route(batch: &mut Batch, route: &Route, place: Place) {
    let view = view(route);
    if place == Place::Replace {
        return route::put_route(batch, &view);
    }
    let flags = match place {
        Place::Replace => REPLACE,
        Place::Alone => EXCL,
        Place::First => 0,
        Place::Last => APPEND,
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
    if let Some(via) = view.gateway {
        batch.attr(RTA_GATEWAY, &backends::netlink::address_bytes(&via));
    }
    if view.link != 0 {
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
    }
}

const REQUEST: u16 = 1;
const REPLACE: u16 = 0x100;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
/// Size of `struct ifinfomsg`.
const IFINFO: usize = 16;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTNH_F_ONLINK: u8 = 4;
const NDA_LLADDR: u16 = 2;
