//! Looking at a namespace: as the daemon's dump, as facts, as notifications, and as a packet.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use subnet_lease::{Family, contains_net};

use super::device::Device;
use super::namespace::{Change, Namespace};
use super::routes::{Held, Hop};
use crate::kernel::KernelEvent;
use crate::plan::Owner;
use crate::state::{
    Address, Facts, Fdb, HostAddress, HostLink, HostRoute, Mac, Neigh, Object, ROUTE_PROTOCOL, Route, Sysctl,
};

impl Namespace {
    /// What happens to a packet to this address.
    pub fn forward(&self, to: IpAddr) -> Hop {
        let Some(held) = self.routes.lookup(to) else { return Hop::Lost("no route") };
        if !held.route.kind.sends_on() {
            return Hop::Lost("dropped by a route");
        }
        let Some(device) = self.devices.get(&held.out).filter(|d| d.up) else {
            return Hop::Lost("link is down");
        };
        let next = held.route.via.unwrap_or(to);
        if device.kind.is_none() {
            return Hop::Link(device.name, next);
        }
        let Some(mac) = device.neighbours.get(&next) else { return Hop::Lost("no neighbour") };
        match device.fdb.get(mac).and_then(|to| to.first()) {
            Some((outer, false)) => Hop::Tunnel(device.name, *outer, *mac),
            _ => Hop::Lost("no forwarding entry"),
        }
    }

    /// Whether exactly this route is there, in force or not.
    pub fn has_route(&self, route: &Route) -> bool {
        self.routes.holds(&self.held(route))
    }

    /// Whether exactly this object is there.
    pub fn has(&self, object: &Object) -> bool {
        let device = object.link().and_then(|name| self.device(name)).map(|(_, d)| d);
        match object {
            Object::Address(a) => device.is_some_and(|d| d.addresses.contains(&a.net)),
            Object::Up(_) => device.is_some_and(|d| d.up),
            Object::Fdb(f) => {
                device.is_some_and(|d| d.fdb.get(&f.mac).is_some_and(|to| to.contains(&(f.dst, f.diverted))))
            }
            Object::Neigh(n) => device.is_some_and(|d| d.neighbours.get(&n.address) == Some(&n.mac)),
            Object::Route(route) => self.has_route(route),
            Object::Link(_)
            | Object::Sysctl(..)
            | Object::Table(_)
            | Object::Iptables(_)
            | Object::Trusted(_) => self.everything().contains(object),
        }
    }

    /// Whether a tunnel device with this Ethernet address is up.
    pub fn answers(&self, mac: Mac) -> bool {
        self.devices.values().any(|d| d.up && d.kind.is_some() && d.mac == mac)
    }

    /// Every object that is there, foreign ones too; of links that are no tunnels, what hangs on them.
    pub fn everything(&self) -> Vec<Object> {
        let all: Vec<_> = self.devices.values().collect();
        let mut objects = self.hanging_on(&all);
        objects.extend(self.routes.iter().map(|h| Object::Route(self.named(h))));
        objects.extend(self.tables.values().cloned().map(Object::Table));
        objects.extend(self.iptables.values().cloned().map(Object::Iptables));
        objects.extend(self.trusted.iter().copied().map(Object::Trusted));
        objects
    }

    /// What the real reader reads for this owner, in the order of keys.
    pub(super) fn own(&self, owner: &Owner) -> Vec<Object> {
        let is_ours = |d: &Device| {
            d.kind.is_some() && owner.owns_link(d.name, Some(d.tag.as_str()).filter(|tag| !tag.is_empty()))
        };
        let ours: Vec<_> = self.devices.iter().filter(|(_, d)| is_ours(d)).collect();
        let mut devices: Vec<_> = ours.iter().map(|(_, d)| *d).collect();
        devices.sort_by_key(|d| d.name);
        let mut objects = self.hanging_on(&devices);
        self.settings(owner, &mut objects);
        objects.extend(self.routes.iter().filter_map(|h| {
            let route = self.named(h);
            let on_ours = ours.iter().any(|(index, _)| **index == h.out);
            owner.may_be_ours(&route, on_ours).then_some(Object::Route(route))
        }));
        let names = owner.rule_names();
        let tables = self.tables.values().filter(|table| names.contains(&table.names));
        objects.extend(tables.cloned().map(Object::Table));
        let iptables = self.iptables.values().filter(|rules| names.contains(&rules.names));
        objects.extend(iptables.cloned().map(Object::Iptables));
        objects.extend(self.trusted.iter().copied().map(Object::Trusted));
        objects
    }

    pub(super) fn facts(&self) -> Facts {
        let told = |h: &&Held| h.route.kind.sends_on() && h.route.protocol != ROUTE_PROTOCOL;
        let addresses = |(index, d): (&u32, &Device)| {
            d.addresses.iter().map(|n| host_address(*index, *n)).collect::<Vec<_>>()
        };
        Facts {
            links: self.devices.iter().map(|(index, d)| host_link(*index, d)).collect(),
            addresses: self.devices.iter().flat_map(addresses).collect(),
            routes: self.routes.iter().filter(told).map(host_route).collect(),
            reach: None,
            ipv6: self.ipv6,
            system: self.system.clone(),
            interrupted: false,
        }
    }

    /// The notifications since the last call, judged as the real subscription judges them.
    pub(super) fn told(&mut self, owner: Option<&Owner>) -> Vec<KernelEvent> {
        let judge = |change| match change {
            Change::Host => Some(KernelEvent::Host),
            Change::Table | Change::Forwarding => Some(KernelEvent::Own),
            Change::Neighbour(link) => owner.filter(|o| o.names.contains(&link)).map(|_| KernelEvent::Own),
            Change::Route { dst, protocol, connected } => {
                let inside = owner.is_some_and(|o| o.networks.iter().any(|net| contains_net(*net, dst)));
                if connected || dst.prefix() == 0 {
                    Some(KernelEvent::Host)
                } else {
                    (protocol == ROUTE_PROTOCOL || inside).then_some(KernelEvent::Own)
                }
            }
        };
        std::mem::take(&mut self.changes).into_iter().filter_map(judge).collect()
    }

    /// What the host and links that are no tunnels have set.
    fn settings(&self, owner: &Owner, objects: &mut Vec<Object>) {
        let pods = owner.pods.iter().filter(|pods| Some(**pods) != owner.external);
        let links = owner.external.iter().chain(pods).filter_map(|link| self.device(*link));
        objects.extend(links.map(|(_, d)| Object::Sysctl(d.name, Sysctl::Forward, d.forward)));
        let Some(external) = owner.external else { return };
        let [four, six] = self.forward;
        objects.push(Object::Sysctl(external, Sysctl::HostForward(Family::V4), four));
        if self.ipv6 {
            objects.push(Object::Sysctl(external, Sysctl::HostForward(Family::V6), six));
            let accepts = self.device(external).map(|(_, d)| Sysctl::RouterRa.read(d.accept_ra, six));
            objects.extend(accepts.map(|value| Object::Sysctl(external, Sysctl::RouterRa, value)));
        }
        let underlay = self.device(external).map(|(_, d)| d.set(Sysctl::ReturnPath));
        objects.extend(underlay.map(|value| Object::Sysctl(external, Sysctl::ReturnPath, value)));
        let optional = self.system.settings.iter().map(|name| (*name, self.host.get(name)));
        objects.extend(
            optional.map(|(name, value)| Object::Sysctl(external, name, value.copied().unwrap_or(0))),
        );
    }

    fn named(&self, held: &Held) -> Route {
        Route { link: self.devices.get(&held.out).map(|d| d.name), ..held.route }
    }

    /// The devices and what hangs on them, kind by kind.
    fn hanging_on(&self, devices: &[&Device]) -> Vec<Object> {
        let mut objects: Vec<Object> = Vec::new();
        let tunnels = || devices.iter().filter(|d| d.kind.is_some());
        objects.extend(devices.iter().filter_map(|d| d.link()).map(|l| Object::Link(Box::new(l))));
        if self.ipv6 {
            objects.extend(tunnels().map(|d| Object::Sysctl(d.name, Sysctl::AcceptRa, d.accept_ra)));
        }
        objects.extend(tunnels().map(|d| Object::Sysctl(d.name, Sysctl::Forward, d.forward)));
        for name in [Sysctl::ReturnPath, Sysctl::NoIpv6, Sysctl::TxChecksum] {
            let here = tunnels().filter(|_| self.ipv6 || name != Sysctl::NoIpv6);
            objects.extend(here.map(|d| Object::Sysctl(d.name, name, d.set(name))));
        }
        for d in devices {
            let address = |net: &IpNetwork| {
                Object::Address(Address { link: d.name, net: *net, narrow: d.narrow.contains(net) })
            };
            objects.extend(d.addresses.iter().map(address));
        }
        objects.extend(devices.iter().filter(|d| d.up).map(|d| Object::Up(d.name)));
        for d in devices {
            for (mac, to) in &d.fdb {
                let entry = |(dst, diverted): &(IpAddr, bool)| Fdb {
                    link: d.name,
                    mac: *mac,
                    dst: *dst,
                    diverted: *diverted,
                };
                objects.extend(to.iter().map(entry).map(Object::Fdb));
            }
        }
        for d in devices {
            let neighbour =
                |(address, mac): (&IpAddr, &Mac)| Neigh { link: d.name, address: *address, mac: *mac };
            objects.extend(d.neighbours.iter().map(neighbour).map(Object::Neigh));
        }
        objects
    }
}

fn host_link(index: u32, device: &Device) -> HostLink {
    HostLink {
        index,
        name: device.name,
        kind: device.kind.map_or_else(String::new, |kind| kind.word().to_owned()),
        mtu: device.mtu,
        up: device.up,
        carrier: device.up,
        loopback: device.loopback,
        point_to_point: false,
        master: device.master,
        tunnel: device.kind,
    }
}

fn host_address(index: u32, net: IpNetwork) -> HostAddress {
    HostAddress {
        link: index,
        net,
        peer: None,
        global: !net.ip().is_loopback(),
        permanent: true,
        temporary: false,
        deprecated: false,
        tentative: false,
    }
}

fn host_route(held: &Held) -> HostRoute {
    let Held { route, out, source } = *held;
    HostRoute { dst: route.dst, gateway: route.via, link: out, metric: route.metric, source, mtu: 0 }
}
