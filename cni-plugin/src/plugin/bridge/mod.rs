//! The bridge plugin: containers of this host on one bridge.
//!
//! ```text
//!        host                          │  container
//!   bridge (gateway addresses) ── veth1a2b3c4d ══ eth0 (address, routes)
//! ```
//!
//! ADD makes the bridge, its addresses, the pair and what is inside of the container, and waits for the port. A step that
//! fails undoes the steps before it, except the bridge, which all containers share. DEL goes the other way; what is already
//! gone is not an error.

mod check;
mod collect;
mod conf;
mod device;
mod events;
mod inside;
mod key;
mod local;
mod masquerade;
mod pod;
mod reference;
mod removal;
mod spoof;

use backends::netlink::Socket;
use backends::{IfName, Mac};

pub(crate) use check::check;
pub(crate) use collect::gc;
use conf::Bridge;
use device::Device;
use local::wait_until_local;
use pod::{Pair, pod_mac};
pub(crate) use removal::{FINISHER, finish};

use crate::contract::{
    Address, Attachment, Call, Code, Device as Hardware, Dns, During, Failure, Interface, Route, Version,
};
use crate::plugin::Plugin;
use crate::plugin::ipam::{self, Grant, Lease};
use crate::sys::netns::Namespace;

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin { name: "bridge", add, del, check, status, gc };

/// ADD.
pub(crate) fn add(call: &Call) -> Result<Attachment, Failure> {
    let bridge = Bridge::read(call)?;
    let own = Namespace::own()?;
    let namespace = Namespace::of(call, &own)?;
    // Entered first, since that alone shows that it is a namespace, and nothing is made yet.
    let inside = namespace.socket(&own)?;
    let host = Socket::route().during(Code::Kernel, || "no netlink socket".into())?;
    let mut grant = bridge.source.reserve(call)?;
    if bridge.gateway {
        grant.leases.iter_mut().for_each(default_gateway);
    }
    let mut attach = Attach { call, bridge: &bridge, grant: &grant, own, namespace, inside, host };
    attach.run().inspect_err(|_| {
        if !grant.leases.is_empty() {
            let _ = ipam::free(call);
        }
    })
}

/// DEL. Whatever of the configuration makes no sense any more, the link and the addresses are found without it.
pub(crate) fn del(call: &Call) -> Result<(), Failure> {
    let ours = removal::remove_link(call)?;
    // Without a link of ours, another plugin may have made the attachment. The alias of a link of ours names what else there
    // is.
    let masquerade = if ours.is_none() { reference::remove_masquerade(call) } else { Ok(()) };
    let spoof = if ours.is_none_or(|end| end.checked) { spoof::remove(call) } else { Ok(()) };
    masquerade.and(spoof)?;
    ipam::free(call)
}

/// STATUS: whether an ADD would get its addresses. A bridge with spanning tree takes containers, so it is only reported.
pub(crate) fn status(call: &Call) -> Result<(), Failure> {
    let bridge = Bridge::read(call)?;
    if let Some(delay) = device::spanning_tree_delay(bridge.name) {
        eprintln!(
            "bridge: {} runs spanning tree: packets of a new container are lost for {delay} s \
             (ip link set {} type bridge stp_state 0)",
            bridge.name, bridge.name
        );
    }
    bridge.source.status(call)
}

/// One ADD that has its addresses.
struct Attach<'a> {
    call: &'a Call,
    bridge: &'a Bridge,
    grant: &'a Grant,
    own: Namespace,
    namespace: Namespace,
    inside: Socket,
    host: Socket,
}

impl Attach<'_> {
    fn run(&mut self) -> Result<Attachment, Failure> {
        let leases = &self.grant.leases;
        let device = Device::ensure(&mut self.host, self.bridge)?;
        if self.bridge.gateway && !leases.is_empty() {
            device.serve(&mut self.host, &self.own, leases, self.bridge.force_address)?;
        }
        if self.bridge.masquerade {
            masquerade::ensure(&self.call.network, leases)?;
        }
        let mac = pod_mac(self.bridge.mac, leases);
        let pair = Pair::create(&mut self.host, (self.call, self.bridge), &device, &self.namespace, mac)?;
        self.finish(&device, &pair).inspect_err(|_| self.undo(&pair))
    }

    /// What is left once the pair is there.
    fn finish(&mut self, device: &Device, pair: &Pair) -> Result<Attachment, Failure> {
        let leases = &self.grant.leases;
        let routes = routes(self.bridge, self.grant);
        if self.bridge.spoof_check {
            spoof::ensure(self.call, pair.host.0, pair.pod.1)?;
        }
        self.namespace.enter()?;
        inside::furnish(self.bridge, pair, &mut self.inside, leases, &with_gateways(&routes, leases))?;
        if !self.bridge.stay_down {
            pair.wait_until_packets_pass(&mut self.host, &self.own, device)?;
        }
        if !leases.is_empty() {
            inside::announce(pair, &mut self.inside)?;
        }
        if self.bridge.detect_duplicates {
            inside::detect(pair, &mut self.inside, &self.namespace)?;
        }
        let addresses = leases.iter().map(|lease| lease.net.ip());
        wait_until_local(&mut self.inside, &self.namespace, addresses)?;
        Ok(self.attachment(device, pair, routes))
    }

    /// After a failure.
    fn undo(&mut self, pair: &Pair) {
        pair.delete(&mut self.host);
        if self.bridge.spoof_check && self.own.enter().is_ok() {
            let _ = spoof::remove(self.call);
        }
    }

    fn attachment(&self, device: &Device, pair: &Pair, routes: Vec<Route>) -> Attachment {
        // The bridge's MTU follows from all of its ports'. Results before 1.1.0 have none.
        let mtu = if self.call.version >= Version::V1_1_0 { self.bridge.mtu } else { 0 };
        let interface = |(name, mac): (IfName, Mac), mtu, sandbox: &str| Interface {
            name,
            mac: mac.to_string(),
            mtu,
            sandbox: sandbox.to_owned(),
            device: Hardware::default(),
        };
        let address = |lease: &Lease| Address { net: lease.net, gateway: lease.gateway, interface: Some(2) };
        let dns = if self.bridge.dns == Dns::default() { &self.grant.dns } else { &self.bridge.dns };
        Attachment {
            interfaces: vec![
                interface((device.name, device.mac), 0, ""),
                interface(pair.host, mtu, ""),
                interface(pair.pod, mtu, &self.call.netns),
            ],
            ips: self.grant.leases.iter().map(address).collect(),
            routes,
            dns: dns.clone(),
        }
    }
}

/// Where address management names no gateway, the subnet's first address is it.
fn default_gateway(lease: &mut Lease) {
    let first = || lease.net.iter().nth(1);
    lease.gateway = lease.gateway.or_else(first);
}

/// The configured routes, and a default route for every family that has none through a gateway.
fn routes(bridge: &Bridge, grant: &Grant) -> Vec<Route> {
    let mut routes = grant.routes.clone();
    if !bridge.default_route {
        return routes;
    }
    for lease in &grant.leases {
        let v4 = lease.net.is_ipv4();
        let is_default = |r: &Route| r.dst.is_ipv4() == v4 && r.dst.prefix() == 0 && r.gateway.is_some();
        let Ok(everywhere) = (if v4 { "0.0.0.0/0" } else { "::/0" }).parse() else { continue };
        if !routes.iter().any(is_default) {
            routes.push(Route { gateway: lease.gateway, ..Route::to(everywhere) });
        }
    }
    routes
}

/// The routes as the container gets them: through the gateway of their family where they name none, and the first of
/// those to the same destination, since the kernel takes no second one.
fn with_gateways(routes: &[Route], leases: &[Lease]) -> Vec<Route> {
    let gateway =
        |r: &Route| leases.iter().find(|l| l.net.is_ipv4() == r.dst.is_ipv4()).and_then(|l| l.gateway);
    let place = |r: &Route| (r.dst.network(), r.dst.prefix(), r.table, r.priority);
    let mut all: Vec<Route> = Vec::with_capacity(routes.len());
    for route in routes {
        if !all.iter().any(|other| place(other) == place(route)) {
            all.push(Route { gateway: route.gateway.or_else(|| gateway(route)), ..route.clone() });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(net: &str, gateway: &str) -> Lease {
        Lease { net: net.parse().unwrap(), gateway: gateway.parse().ok() }
    }

    #[test]
    fn a_route_without_a_gateway_goes_through_that_of_its_family() {
        let leases = [lease("10.1.2.3/24", "10.1.2.1"), lease("fc00::3/64", "fc00::1")];
        let routes = ["10.1.0.0/16", "fc00::/48"].map(|dst| Route::to(dst.parse().unwrap()));
        let through: Vec<_> =
            with_gateways(&routes, &leases).iter().map(|r| r.gateway.unwrap().to_string()).collect();
        assert_eq!(through, ["10.1.2.1", "fc00::1"]);
    }

    #[test]
    fn of_routes_to_the_same_destination_the_first_counts() {
        let leases = [lease("10.1.2.3/24", "10.1.2.1")];
        let mut routes = vec![Route::to("0.0.0.0/0".parse().unwrap()); 3];
        routes[1].gateway = "10.1.2.9".parse().ok();
        routes[2].table = 7;
        let got = with_gateways(&routes, &leases);
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].gateway, got[1].table), (leases[0].gateway, 7));
    }

    #[test]
    fn a_container_keeps_the_ethernet_address_that_follows_from_its_address() {
        let four = [lease("10.1.2.3/24", "10.1.2.1")];
        assert_eq!(pod_mac(None, &four).to_string(), "0a:58:0a:01:02:03");
        let asked = "02:00:00:00:00:07".parse().unwrap();
        assert_eq!(pod_mac(Some(asked), &four), asked);
        let six = |net| pod_mac(None, &[lease(net, "fc00::1")]);
        assert_eq!(six("fc00::3/64"), six("fc00::3/64"));
        assert_ne!(six("fc00::3/64"), six("fc00::4/64"));
        assert_ne!(six("fc00::3/64"), six("fc00:1::3/64"));
    }
}
