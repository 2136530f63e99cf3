//! The kernel's laws as tests: each one function, run against the fake kernel and against the real one in a fresh
//! network namespace. A law that holds in the one and not in the other is a fault of the fake.
//!
//! Laws 11, 12 and 16 (interrupted dumps, lost notifications, an accept that ends only its own chain) need a crowd or
//! packets: `backends/tests/kernel/provoked.rs` shows them; the fake has the first two on command.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a law fails by panicking"
)]

mod address_laws;
mod fault_laws;
mod labs;
mod link_laws;
mod route_laws;
mod setting_laws;

use std::net::IpAddr;

use backends::kernel::fake::RoutePlace;
use backends::kernel::{Kernel, KernelError, KernelEvent, OpError};
use backends::rules::RuleNames;
use backends::{
    Address, Fdb, IfName, KernelState, Link, LinkKind, Mac, Neigh, Object, Op, Owner, ROUTE_PROTOCOL, Route,
    RouteKind, Sysctl, Vxlan, default_metric, tag,
};
use ipnetwork::IpNetwork;
pub use labs::{FakeLab, RealLab, in_namespace};
use nix::errno::Errno;
use subnet_lease::NetworkId;

/// A kernel in a namespace of its own, and an operator's hand in it.
pub trait Lab {
    /// The kernel as the daemon has it.
    fn kernel(&mut self) -> &mut dyn Kernel;

    /// One request to the kernel itself, without the daemon's ways around refusals.
    fn hand(&mut self, act: &Act) -> Result<(), Errno>;

    /// The gravest notification since the last call.
    fn notified(&mut self) -> Option<KernelEvent>;
}

/// What an operator's hand does.
#[derive(Debug, Clone)]
pub enum Act {
    /// Adds an Ethernet link with carrier, down.
    AddLink(IfName, Mac),
    /// Takes a link away.
    DeleteLink(IfName),
    /// `ip link set NAME up` or `down`.
    SetUp(IfName, bool),
    /// `ip address add`.
    AddAddress(IfName, IpNetwork),
    /// The same with `scope link`.
    AddNarrow(IfName, IpNetwork),
    /// `ip link set NAME name NAME`.
    Rename(IfName, IfName),
    /// `ip address delete`.
    DeleteAddress(IfName, IpNetwork),
    /// `ip route replace`, `add`, `prepend`, `append`.
    PutRoute(Route, RoutePlace),
    /// `ip route delete`.
    DeleteRoute(Route),
    /// `ip neigh delete`.
    DeleteNeigh(Neigh),
    /// `bridge fdb append`.
    AppendFdb(Fdb),
    /// `bridge fdb replace`; the flag says whether with `self`. A diverted one goes over another port, or to a next hop
    /// object when it has no destination.
    PutFdb(Fdb, bool),
    /// `bridge fdb delete`.
    DeleteFdb(Fdb),
}

/// A law: its name and what shows it.
pub type Law = (&'static str, fn(&mut dyn Lab));

/// Every law, each for a fresh lab.
pub fn laws() -> Vec<Law> {
    [link_laws::LAWS, address_laws::LAWS, route_laws::LAWS, setting_laws::LAWS, fault_laws::LAWS].concat()
}

// ---- what the laws are written with

pub(crate) fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn eth0() -> IfName {
    name("eth0")
}

fn tunnel(six: bool) -> IfName {
    name(if six { "flannel-v6.1" } else { "flannel.1" })
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

const V4: bool = false;
const V6: bool = true;

/// Peer number `n`'s subnet.
fn subnet(six: bool, n: u8) -> IpNetwork {
    net(&if six { format!("fd00:244:0:{n:x}::/64") } else { format!("10.244.{n}.0/24") })
}

fn route(six: bool, n: u8) -> Route {
    let dst = subnet(six, n);
    Route {
        dst,
        metric: default_metric(&dst),
        kind: RouteKind::Unicast,
        via: Some(dst.network()),
        link: Some(tunnel(six)),
        onlink: true,
        scope: if six { 0 } else { 7 },
        protocol: ROUTE_PROTOCOL,
    }
}

/// A route over the underlay, made by `ip route`.
fn foreign(six: bool, n: u8) -> Route {
    let via = Some(ip(if six { "fd00:172::9" } else { "172.16.0.9" }));
    Route { via, link: Some(eth0()), onlink: false, scope: 0, protocol: 3, ..route(six, n) }
}

fn neigh(six: bool, n: u8) -> Neigh {
    Neigh { link: tunnel(six), address: subnet(six, n).network(), mac: mac(n) }
}

fn fdb(six: bool, n: u8) -> Fdb {
    let dst = ip(&if six { format!("fd00:172::{n:x}") } else { format!("172.16.0.{n}") });
    Fdb { link: tunnel(six), mac: mac(n), dst, diverted: false }
}

fn address(six: bool) -> Address {
    let own = subnet(six, 1).network();
    Address { link: tunnel(six), net: IpNetwork::from(own), narrow: false }
}

/// What the dump says, ours or not; the link-local prefixes that a real kernel adds left out.
fn state(lab: &mut dyn Lab) -> KernelState {
    let own = lab.kernel().own(&owner()).unwrap();
    assert!(!own.interrupted);
    let link_local = |o: &Object| matches!(o, Object::Route(r) if !owner().networks.iter().any(|n| n.contains(r.dst.ip())));
    // Nobody's wish here, and never empty.
    let setting = |o: &Object| matches!(o, Object::Sysctl(_, name, _) if *name != Sysctl::AcceptRa);
    own.state.iter().filter(|o| !link_local(o) && !setting(o)).cloned().collect()
}

fn routes_to(lab: &mut dyn Lab, dst: IpNetwork) -> Vec<Route> {
    let is = |o: &Object| if let Object::Route(r) = o { Some(*r).filter(|r| r.dst == dst) } else { None };
    state(lab).iter().filter_map(is).collect()
}

fn has(lab: &mut dyn Lab, object: impl Thing) -> bool {
    let object = object.object();
    state(lab).iter().any(|o| *o == object)
}

fn owner() -> Owner {
    Owner {
        network: NetworkId::default(),
        networks: vec![net("10.244.0.0/16"), net("fd00:244::/48")],
        names: vec![tunnel(V4), tunnel(V6)],
        external: Some(eth0()),
        pods: Vec::new(),
        pools: Vec::new(),
        routers: Vec::new(),
        rules: RuleNames::Flannel,
        first_pass: false,
    }
}

/// Anything that is an object, for short calls.
trait Thing {
    fn object(self) -> Object;
}

impl Thing for Object {
    fn object(self) -> Object {
        self
    }
}

impl Thing for Link {
    fn object(self) -> Object {
        Object::Link(Box::new(self))
    }
}

impl Thing for Address {
    fn object(self) -> Object {
        Object::Address(self)
    }
}

impl Thing for Fdb {
    fn object(self) -> Object {
        Object::Fdb(self)
    }
}

impl Thing for Neigh {
    fn object(self) -> Object {
        Object::Neigh(self)
    }
}

impl Thing for Route {
    fn object(self) -> Object {
        Object::Route(self)
    }
}

/// One step of the daemon; the error number of its failure.
fn put(lab: &mut dyn Lab, object: impl Thing) -> Result<(), Errno> {
    step(lab, Op::Put { want: object.object(), have: None })
}

fn delete(lab: &mut dyn Lab, object: impl Thing) -> Result<(), Errno> {
    step(lab, Op::Delete(object.object()))
}

fn step(lab: &mut dyn Lab, op: Op) -> Result<(), Errno> {
    lab.kernel().apply(&[op]).pop().unwrap().map_err(|error| errno(&error))
}

fn errno(error: &OpError) -> Errno {
    match error {
        OpError::Failed(KernelError::Netlink(error)) => error.errno(),
        OpError::Failed(KernelError::Sysctl { errno, .. }) => *errno,
        other => panic!("{other}"),
    }
}

/// The underlay, up and with addresses; its index.
fn underlay(lab: &mut dyn Lab) -> u32 {
    lab.hand(&Act::AddLink(eth0(), mac(0xee))).unwrap();
    lab.hand(&Act::SetUp(eth0(), true)).unwrap();
    lab.hand(&Act::AddAddress(eth0(), net("172.16.0.1/24"))).unwrap();
    lab.hand(&Act::AddAddress(eth0(), net("fd00:172::1/64"))).unwrap();
    lab.kernel().host().unwrap().link_named(eth0()).unwrap().index
}

fn vxlan(six: bool, parent: u32) -> Link {
    let local = Some(ip(if six { "fd00:172::1" } else { "172.16.0.1" }));
    let kind = LinkKind::Vxlan(Vxlan { vni: 1, port: 8472, local, parent, learning: false, gbp: false });
    let mtu = if six { 1430 } else { 1450 };
    Link { name: tunnel(six), kind, mtu, mac: mac(1), tag: tag(&NetworkId::default()), master: 0 }
}

/// Underlay and a tunnel end with address, up.
fn tunnel_end(lab: &mut dyn Lab, six: bool) -> Link {
    let link = vxlan(six, underlay(lab));
    put(lab, link.clone()).unwrap();
    put(lab, address(six)).unwrap();
    put(lab, Object::Up(link.name)).unwrap();
    link
}
