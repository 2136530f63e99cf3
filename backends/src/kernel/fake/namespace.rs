//! The kernel proper: links by index, what hangs on them, routes and rules. Every method obeys the laws.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use subnet_lease::Family;

use super::device::Device;
use super::laws;
use super::routes::{Held, RoutePlace, Routes, connected};
use crate::netlink::route::RTPROT_KERNEL;
use crate::rules::iptables::IptablesRules;
use crate::rules::{Firewall, RuleTable};
use crate::state::{Fdb, IfName, IptablesKey, Link, LinkKind, Mac, Neigh, Route, Sysctl, System, TableKey};

/// A network namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    pub(super) devices: BTreeMap<u32, Device>,
    pub(super) routes: Routes,
    pub(super) tables: BTreeMap<TableKey, Box<RuleTable>>,
    pub(super) iptables: BTreeMap<IptablesKey, Box<IptablesRules>>,
    /// Networks that firewalld trusts.
    pub(super) trusted: Vec<IpNetwork>,
    /// What others filter here.
    pub firewall: Firewall,
    pub(super) had_v4: bool,
    pub(super) ipv6: bool,
    /// What the kernel is, and which optional settings the host has.
    pub(super) system: System,
    /// Those settings, where they are not 0.
    pub(super) host: BTreeMap<Sysctl, i32>,
    /// Whether the host forwards, IPv4 and IPv6. A host that runs pods does.
    pub(super) forward: [i32; 2],
    next_index: u32,
    pub(super) changes: Vec<Change>,
}

/// What a notification is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Host,
    Neighbour(IfName),
    Forwarding,
    Route { dst: IpNetwork, protocol: u8, connected: bool },
    Table,
}

impl Namespace {
    pub(super) fn new() -> Self {
        let mut net = Self {
            devices: BTreeMap::new(),
            routes: Routes::default(),
            tables: BTreeMap::new(),
            iptables: BTreeMap::new(),
            trusted: Vec::new(),
            firewall: Firewall::default(),
            had_v4: false,
            ipv6: true,
            system: System::default(),
            host: BTreeMap::new(),
            forward: [1, 1],
            next_index: 1,
            changes: Vec::new(),
        };
        net.add_device(
            IfName::from_kernel(b"lo"),
            Device { loopback: true, mtu: 65536, ..Device::new(Mac::default()) },
        );
        net
    }

    // ---- links

    /// Adds a link that is not a tunnel, down. Returns its index.
    pub fn add_link(&mut self, name: IfName, mtu: u32, mac: Mac) -> Result<u32, Errno> {
        if self.device(name).is_some() {
            return Err(Errno::EEXIST);
        }
        Ok(self.add_device(name, Device { mtu, ..Device::new(mac) }))
    }

    /// Creates a tunnel device, or changes what differs from `have` (laws 8, 17).
    pub fn put_link(&mut self, want: &Link, have: Option<&Link>) -> Result<(), Errno> {
        match have {
            None => self.create(want),
            Some(have) if have.name != want.name => self.rename_link(have.name, want.name),
            Some(have) => self.change(want, have),
        }
    }

    fn create(&mut self, want: &Link) -> Result<(), Errno> {
        if self.device(want.name).is_some() || self.tunnels().any(|l| l.clashes_with(want)) {
            return Err(Errno::EEXIST);
        }
        let room = self.tunnel_room(&want.kind)?;
        let mut device = Device::new(want.mac);
        (device.kind, device.mtu) = (Some(want.kind), want.mtu.min(room));
        device.tag.clone_from(&want.tag);
        self.add_device(want.name, device);
        Ok(())
    }

    fn change(&mut self, want: &Link, have: &Link) -> Result<(), Errno> {
        let (index, device) = self.device(want.name).ok_or(Errno::ENODEV)?;
        let Some(now) = device.link() else { return Err(Errno::EOPNOTSUPP) };
        if have.kind != want.kind && !now.can_become(want) {
            return Err(Errno::EOPNOTSUPP);
        }
        let room = self.tunnel_room(&want.kind)?;
        if want.mtu != have.mtu && want.mtu > room {
            return Err(Errno::EINVAL);
        }
        let device = self.devices.get_mut(&index).ok_or(Errno::ENODEV)?;
        device.kind = Some(want.kind);
        if (want.mtu, want.mac) != (have.mtu, have.mac) {
            device.mtu = want.mtu;
            device.change_mac(want.mac);
        }
        device.tag.clone_from(&want.tag);
        device.master = want.master;
        self.tell(Change::Host);
        Ok(())
    }

    /// Largest MTU of a tunnel over its underlay link.
    fn tunnel_room(&self, kind: &LinkKind) -> Result<u32, Errno> {
        let head = kind.overhead();
        match kind.over() {
            0 => Ok(65535),
            index => self.devices.get(&index).map(|d| d.mtu.saturating_sub(head)).ok_or(Errno::ENODEV),
        }
    }

    /// Deletes a link with all that hangs on it or lies over it (law 5).
    pub fn delete_link(&mut self, name: IfName) -> Result<(), Errno> {
        let (index, _) = self.device(name).ok_or(Errno::ENODEV)?;
        let over = |d: &Device| d.kind.is_some_and(|kind| kind.over() == index);
        self.devices.retain(|i, d| *i != index && !over(d));
        let devices = &self.devices;
        self.routes.flush(|h| h.out != 0 && !devices.contains_key(&h.out));
        self.tell(Change::Host);
        Ok(())
    }

    /// `ip link set NAME up` or `down` (law 4).
    pub fn set_up(&mut self, name: IfName, up: bool) -> Result<(), Errno> {
        let (index, device) = self.device_mut(name)?;
        if std::mem::replace(&mut device.up, up) == up {
            return Ok(());
        }
        if up {
            let prefixes: Vec<_> = device.addresses.iter().filter_map(|net| connected(*net, index)).collect();
            for held in prefixes {
                self.routes.put(held, RoutePlace::Last).or_else(present)?;
            }
        } else {
            device.addresses.retain(IpNetwork::is_ipv4);
            device.narrow.retain(IpNetwork::is_ipv4);
            device.neighbours.clear();
            self.routes.flush(|h| h.out == index);
        }
        self.tell(Change::Host);
        Ok(())
    }

    /// Gives a link another name; nothing is lost with the old one (law 23).
    pub fn rename_link(&mut self, name: IfName, to: IfName) -> Result<(), Errno> {
        if self.device(to).is_some() {
            return Err(Errno::EEXIST);
        }
        self.device_mut(name)?.1.name = to;
        self.tell(Change::Host);
        Ok(())
    }

    /// What a driver reload does: the link comes back, down, under the same name with another index, without its
    /// addresses and routes, and the tunnels over it are gone. Returns the new index.
    pub fn renumber_link(&mut self, name: IfName) -> Result<u32, Errno> {
        let (_, old) = self.device(name).ok_or(Errno::ENODEV)?;
        let (mtu, mac) = (old.mtu, old.mac);
        self.delete_link(name)?;
        self.add_link(name, mtu, mac)
    }

    /// `ip link set NAME mtu MTU`.
    pub fn set_mtu(&mut self, name: IfName, mtu: u32) -> Result<(), Errno> {
        self.device_mut(name)?.1.mtu = mtu;
        self.tell(Change::Host);
        Ok(())
    }

    // ---- what hangs on links

    /// Sets a file under `/proc/sys`.
    pub fn put_sysctl(&mut self, link: IfName, name: Sysctl, value: i32) -> Result<(), Errno> {
        let six = matches!(
            name,
            Sysctl::AcceptRa | Sysctl::RouterRa | Sysctl::NoIpv6 | Sysctl::HostForward(Family::V6)
        );
        let optional = matches!(name, Sysctl::BridgeCall(_) | Sysctl::NeighbourRoom(_));
        if six && !self.ipv6 || optional && !self.system.has(name) {
            return Err(Errno::ENOENT);
        }
        match name {
            Sysctl::HostForward(family) => self.set_forwarding(family, value),
            Sysctl::AcceptRa | Sysctl::RouterRa => {
                self.device_mut(link).map_err(|_| Errno::ENOENT)?.1.accept_ra = value;
            }
            Sysctl::Forward => {
                self.device_mut(link).map_err(|_| Errno::ENOENT)?.1.forward = value;
                self.tell(Change::Forwarding);
            }
            Sysctl::BridgeCall(_) | Sysctl::NeighbourRoom(_) => drop(self.host.insert(name, value)),
            Sysctl::ReturnPath | Sysctl::NoIpv6 | Sysctl::TxChecksum => {
                self.device_mut(link).map_err(|_| Errno::ENOENT)?.1.settings.insert(name, value);
                if name == Sysctl::TxChecksum {
                    self.tell(Change::Host);
                }
            }
        }
        Ok(())
    }

    /// Makes it this kernel.
    pub fn set_system(&mut self, system: System) {
        self.system = system;
    }

    /// Law 21.
    fn set_forwarding(&mut self, family: Family, value: i32) {
        let before = std::mem::replace(&mut self.forward[slot(family)], value);
        if family == Family::V4 {
            self.devices.values_mut().for_each(|d| d.forward = value);
        } else if before == 0 && value != 0 {
            let takes = |out| self.devices.get(&out).is_some_and(|d| d.accept_ra == 2);
            self.routes
                .flush(|h| h.route.dst.prefix() == 0 && h.route.protocol == RTPROT_RA && !takes(h.out));
        }
        self.tell(Change::Forwarding);
    }

    /// Makes a link a port of a bridge, or none of any.
    pub fn set_master(&mut self, link: IfName, bridge: Option<IfName>) -> Result<(), Errno> {
        let index = bridge.map_or(Ok(0), |b| Ok(self.device(b).ok_or(Errno::ENODEV)?.0))?;
        self.device_mut(link)?.1.master = index;
        self.tell(Change::Host);
        Ok(())
    }

    /// `ip address replace NET dev LINK scope link`; one that is there keeps its scope (law 24).
    pub fn put_narrow_address(&mut self, link: IfName, net: IpNetwork) -> Result<(), Errno> {
        let (_, device) = self.device_mut(link)?;
        if !device.addresses.contains(&net) {
            device.narrow.push(net);
        }
        self.put_address(link, net)
    }

    /// `ip address replace NET dev LINK`.
    pub fn put_address(&mut self, link: IfName, net: IpNetwork) -> Result<(), Errno> {
        let (index, device) = self.device_mut(link)?;
        if net.is_ipv6() && device.set(Sysctl::NoIpv6) != 0 {
            return Err(Errno::EACCES);
        }
        if device.addresses.contains(&net) {
            return Ok(());
        }
        device.addresses.push(net);
        let up = device.up;
        self.had_v4 |= net.is_ipv4();
        if let Some(held) = connected(net, index).filter(|_| up) {
            self.routes.put(held, RoutePlace::Last).or_else(present)?;
        }
        self.tell(Change::Host);
        Ok(())
    }

    /// `ip address delete NET dev LINK` (laws 3, 10).
    pub fn delete_address(&mut self, link: IfName, net: IpNetwork) -> Result<(), Errno> {
        let (index, device) = self.device_mut(link)?;
        let before = device.addresses.len();
        device.addresses.retain(|a| *a != net);
        device.narrow.retain(|a| *a != net);
        if device.addresses.len() == before {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let last = net.is_ipv4() && !device.addresses.iter().any(IpNetwork::is_ipv4);
        if last {
            device.neighbours.retain(|address, _| address.is_ipv6());
        }
        let prefix = connected(net, index);
        self.routes.flush(|h| Some(*h) == prefix || last && h.out == index && h.route.dst.is_ipv4());
        self.tell(Change::Host);
        Ok(())
    }

    /// `bridge fdb replace`; `own` is the flag `self` (law 9).
    pub fn put_fdb(&mut self, fdb: &Fdb, own: bool) -> Result<(), Errno> {
        let (_, device) = self.device_mut(fdb.link)?;
        if !own || device.kind.is_none() {
            return Err(Errno::EOPNOTSUPP);
        }
        let to = device.fdb.entry(fdb.mac).or_default();
        // Law 22.
        if !to.first().is_some_and(|(dst, diverted)| *diverted && dst.is_unspecified()) {
            *to = vec![(fdb.dst, fdb.diverted)];
        }
        self.tell(Change::Neighbour(fdb.link));
        Ok(())
    }

    /// `bridge fdb append`: only the address of everybody takes a second end, others keep theirs (law 22).
    pub fn append_fdb(&mut self, fdb: &Fdb) -> Result<(), Errno> {
        let (_, device) = self.device_mut(fdb.link)?;
        device.kind.ok_or(Errno::EOPNOTSUPP)?;
        let to = device.fdb.entry(fdb.mac).or_default();
        let end = (fdb.dst, fdb.diverted);
        if !to.contains(&end) && (to.is_empty() || fdb.mac == Mac::default()) {
            to.push(end);
        }
        self.tell(Change::Neighbour(fdb.link));
        Ok(())
    }

    /// `bridge fdb delete` (laws 10, 22); of a diverted one all there is of its address.
    pub fn delete_fdb(&mut self, fdb: &Fdb) -> Result<(), Errno> {
        let (_, device) = self.device_mut(fdb.link)?;
        let to = device.fdb.get_mut(&fdb.mac).ok_or(Errno::ENOENT)?;
        if fdb.diverted {
            to.clear();
        }
        to.retain(|end| *end != (fdb.dst, false));
        if to.is_empty() {
            device.fdb.remove(&fdb.mac);
        }
        self.tell(Change::Neighbour(fdb.link));
        Ok(())
    }

    /// `ip neigh replace … nud permanent`.
    pub fn put_neighbour(&mut self, neigh: &Neigh) -> Result<(), Errno> {
        self.device_mut(neigh.link)?.1.neighbours.insert(neigh.address, neigh.mac);
        self.tell(Change::Neighbour(neigh.link));
        Ok(())
    }

    /// `ip neigh delete` (law 10).
    pub fn delete_neighbour(&mut self, neigh: &Neigh) -> Result<(), Errno> {
        let gone = self.device_mut(neigh.link)?.1.neighbours.remove(&neigh.address);
        gone.ok_or(Errno::ENOENT)?;
        self.tell(Change::Neighbour(neigh.link));
        Ok(())
    }

    // ---- routes and rules

    /// `ip route replace`, `add`, `prepend`, `append` (laws 1, 2, 6, 14, 18, 19).
    pub fn put_route(&mut self, route: &Route, place: RoutePlace) -> Result<(), Errno> {
        laws::check_route(self, route)?;
        let held = self.held(route);
        self.routes.put(held, place)?;
        self.tell_route(route);
        Ok(())
    }

    /// `ip route delete`, exactly this one (laws 10, 14, 20, 25).
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Errno> {
        let held = self.held(route);
        let any_metric = route.metric == crate::state::default_metric(&route.dst) && route.dst.is_ipv4();
        self.routes.delete(&held, any_metric)?;
        self.tell_route(route);
        Ok(())
    }

    pub(super) fn behind_a_host_route(&mut self, route: &Route) -> Result<(), Errno> {
        let Some(via) = route.via else { return Err(Errno::EINVAL) };
        let dst = IpNetwork::from(via);
        let host =
            Route { dst, via: None, onlink: false, metric: crate::state::default_metric(&dst), ..*route };
        self.put_route(&host, RoutePlace::Replace)?;
        let result = self.put_route(route, RoutePlace::Replace);
        self.delete_route(&host)?;
        result
    }

    /// Replaces a table of rules as one.
    pub fn put_table(&mut self, table: &RuleTable) -> Result<(), Errno> {
        self.tables.insert(table.key(), Box::new(table.clone()));
        self.tell(Change::Table);
        Ok(())
    }

    /// Deletes a table of rules.
    pub fn delete_table(&mut self, key: TableKey) -> Result<(), Errno> {
        self.tables.remove(&key).ok_or(Errno::ENOENT)?;
        self.tell(Change::Table);
        Ok(())
    }

    /// Replaces what is ours in one iptables.
    pub fn put_iptables(&mut self, rules: &IptablesRules) -> Result<(), Errno> {
        self.iptables.insert(rules.key(), Box::new(rules.clone()));
        self.tell(Change::Table);
        Ok(())
    }

    /// Takes away what is ours in one iptables.
    pub fn delete_iptables(&mut self, rules: &IptablesRules) -> Result<(), Errno> {
        self.iptables.remove(&rules.key()).ok_or(Errno::ENOENT)?;
        self.tell(Change::Table);
        Ok(())
    }

    /// Has firewalld trust a network, or not.
    pub fn trust(&mut self, net: IpNetwork, trusted: bool) -> Result<(), Errno> {
        self.trusted.retain(|other| *other != net);
        self.trusted.extend(trusted.then_some(net));
        self.tell(Change::Table);
        Ok(())
    }

    pub(super) fn device(&self, name: IfName) -> Option<(u32, &Device)> {
        self.devices.iter().find(|(_, d)| d.name == name).map(|(index, d)| (*index, d))
    }

    /// Whether an address is one of this host's.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        self.devices.values().any(|d| d.addresses.iter().any(|net| net.ip() == address))
    }

    fn device_mut(&mut self, name: IfName) -> Result<(u32, &mut Device), Errno> {
        let found = self.devices.iter_mut().find(|(_, d)| d.name == name);
        found.map(|(index, d)| (*index, d)).ok_or(Errno::ENODEV)
    }

    fn add_device(&mut self, name: IfName, device: Device) -> u32 {
        let index = self.next_index;
        self.next_index += 1;
        let forward = self.forward[slot(Family::V4)];
        self.devices.insert(index, Device { name, forward, ..device });
        self.tell(Change::Host);
        index
    }

    fn tunnels(&self) -> impl Iterator<Item = Link> {
        self.devices.values().filter_map(Device::link)
    }

    pub(super) fn held(&self, route: &Route) -> Held {
        let out = route.link.and_then(|name| self.device(name)).map_or(0, |(index, _)| index);
        Held { route: Route { link: None, ..*route }, out, source: None }
    }

    fn tell(&mut self, change: Change) {
        self.changes.push(change);
    }

    fn tell_route(&mut self, route: &Route) {
        let connected = route.via.is_none() && route.protocol == RTPROT_KERNEL;
        self.tell(Change::Route { dst: route.dst, protocol: route.protocol, connected });
    }
}

fn slot(family: Family) -> usize {
    usize::from(family == Family::V6)
}

/// Router advertisements.
const RTPROT_RA: u8 = 9;

/// A second address of one prefix finds the connected route there already.
fn present(errno: Errno) -> Result<(), Errno> {
    if errno == Errno::EEXIST { Ok(()) } else { Err(errno) }
}
