//! What is on a node's host and not ours: it stays, whatever we do.

use backends::kernel::fake::{Namespace, RoutePlace};
use backends::{Address, Fdb, IfName, Link, LinkKind, Mac, Neigh, Object, Route, Vxlan};
use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::Node;
use super::site::{eth0, outward};

/// `RTPROT_KERNEL` and `RTPROT_BIRD`.
const KERNEL: u8 = 2;
const BIRD: u8 = 12;

impl Node {
    /// What the host's own network service does: link, addresses, default routes, and the strangers beside ours.
    pub(super) fn plug(&mut self) {
        let net = &mut self.kernel.net;
        let [.., a, b] = self.site.number.to_be_bytes();
        let _ = net.add_link(eth0(), self.site.mtu, Mac([2, 0xee, 0, 0, a, b]));
        net.set_up(eth0(), true).unwrap();
        for address in &self.site.addresses {
            net.put_address(eth0(), *address).unwrap();
        }
        for route in self.site.gateways() {
            net.put_route(&route, RoutePlace::Replace).unwrap();
        }
        self.foreign.clear();
        self.plant_routes();
        self.plant_tunnel();
        self.pods();
    }

    /// Unplugged here, plugged in elsewhere.
    pub(super) fn resettle(&mut self, mut site: super::Site) {
        site.mtu = self.site.mtu;
        let net = &mut self.kernel.net;
        for old in &self.site.addresses {
            net.delete_address(eth0(), *old).unwrap();
        }
        let strangers =
            self.foreign.iter().filter_map(|o| if let Object::Route(r) = o { Some(*r) } else { None });
        for route in self.site.gateways().into_iter().chain(strangers.filter(|r| r.link == Some(eth0()))) {
            let _ = net.delete_route(&route);
        }
        self.site = site;
        self.plug();
    }

    /// The first stranger's object that is gone.
    pub(super) fn lost(&self, net: &Namespace) -> Option<&Object> {
        self.foreign.iter().find(|object| !net.has(object))
    }

    /// Routes elsewhere, more specific than a lease, and wider than one; a neighbour of the host.
    fn plant_routes(&mut self) {
        let via = self.site.gateways()[0].via.unwrap();
        let mut routes = ["192.0.2.0/24", "10.255.255.64/28", "10.255.0.0/20"].map(|d| outward(net(d), via));
        routes[1].protocol = BIRD;
        for route in routes {
            self.kernel.net.put_route(&route, RoutePlace::Replace).unwrap();
            self.foreign.push(Object::Route(route));
        }
        let neigh = Neigh { link: eth0(), address: via, mac: Mac([2, 0xfe, 0, 0, 0, 1]) };
        self.kernel.net.put_neighbour(&neigh).unwrap();
        self.foreign.push(Object::Neigh(neigh));
    }

    /// Another network's tunnel, with a route inside our network.
    fn plant_tunnel(&mut self) {
        let name: IfName = "vx0".parse().unwrap();
        let kind = Vxlan { vni: 99, port: 4789, local: None, parent: 0, learning: true, gbp: false };
        let (mac, far) = (Mac([2, 0xfd, 0, 0, 0, 1]), Mac([2, 0xfd, 0, 0, 0, 2]));
        let link = Link {
            name,
            kind: LinkKind::Vxlan(kind),
            mtu: 1450,
            mac,
            tag: "selvage:other".into(),
            master: 0,
        };
        let fdb = Fdb { link: name, mac: far, dst: [198, 51, 100, 2].into(), diverted: false };
        let neigh = Neigh { link: name, address: [192, 168, 77, 2].into(), mac: far };
        let address = Address { link: name, net: net("192.168.77.1/24"), narrow: false };
        let route = Route { link: Some(name), ..outward(net("10.255.254.0/28"), neigh.address) };
        let here = &mut self.kernel.net;
        let _ = here.put_link(&link, None);
        here.set_up(name, true).unwrap();
        here.put_address(name, address.net).unwrap();
        here.put_fdb(&fdb, true).unwrap();
        here.put_neighbour(&neigh).unwrap();
        here.put_route(&route, RoutePlace::Replace).unwrap();
        self.foreign.extend([
            Object::Link(Box::new(link)),
            Object::Address(address),
            Object::Up(name),
            Object::Fdb(fdb),
            Object::Neigh(neigh),
            Object::Route(route),
        ]);
    }

    /// What the plugin makes when subnet.env is there: a bridge for pods, in our own subnet.
    pub(super) fn pods(&mut self) {
        let Some(subnets) = self.env.and_then(|env| env.leased()) else { return };
        let cni0: IfName = "cni0".parse().unwrap();
        let here = &mut self.kernel.net;
        let _ = here.add_link(cni0, 1450, Mac([2, 0xfc, 0, 0, 0, 1]));
        here.set_up(cni0, true).unwrap();
        for subnet in Family::ALL.into_iter().filter_map(|f| subnets.family(f)) {
            let first = subnet.iter().nth(1).unwrap();
            let address =
                Address { link: cni0, net: IpNetwork::new(first, subnet.prefix()).unwrap(), narrow: false };
            here.put_address(cni0, address.net).unwrap();
            let (scope, metric) = if subnet.is_ipv4() { (253, 0) } else { (0, 256) };
            let connected = Route {
                via: None,
                link: Some(cni0),
                scope,
                metric,
                protocol: KERNEL,
                ..Route::blackhole(subnet)
            };
            let connected = Route { kind: backends::RouteKind::Unicast, ..connected };
            for object in [Object::Address(address), Object::Up(cni0), Object::Route(connected)] {
                if !self.foreign.contains(&object) {
                    self.foreign.push(object);
                }
            }
        }
    }
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}
