//! The bridge plugin: containers of this host on one bridge.
//!
//! ```text
//!        host                          │  container
//!   bridge (gateway addresses) ── veth1a2b3c4d ══ eth0 (address, routes)
//! ```
//!
//! ADD: bridge, addresses, pair, inside of the container, port. What fails undoes what went before it, the bridge
//! apart, which is everybody's. DEL goes the other way and misses nothing that is not there.

mod check;
mod conf;
mod device;
mod pod;
mod removal;

use backends::netlink::Socket;

pub(crate) use check::check;
use conf::Bridge;
use device::Device;
use pod::{Pair, pod_mac};
pub(crate) use removal::{FINISHER, finish};

use crate::cni::{Address, Attachment, Call, Code, Dns, During, Failure, Interface, Route};
use crate::ipam::{self, Lease};
use crate::json::Object;
use crate::netns::{Namespace, NoEntry};
use crate::plugin::Plugin;

/// The row of the table.
pub(crate) const PLUGIN: Plugin = Plugin {
    name: "bridge",
    level: "v1.9.1",
    add: |call| add(call, &call.conf),
    del: |call| del(call, &call.conf),
    check: |call| check(call, &call.conf),
    status: |call| status(call, &call.conf),
    gc: |call| gc(call, &call.conf),
};

/// ADD with the call's configuration or one made for a delegate.
pub(crate) fn add(call: &Call, conf: &Object) -> Result<Attachment, Failure> {
    let bridge = Bridge::read(call, conf)?;
    let own = Namespace::own()?;
    let namespace = Namespace::of(call, &own)?;
    // Entered first, since that alone shows that it is a namespace, and nothing is made yet.
    let inside = namespace.socket(&own)?;
    let host = Socket::route().during(Code::Kernel, || "no netlink socket".into())?;
    let leases = bridge.ipam.as_ref().map_or_else(|| Ok(vec![]), |ipam| ipam.reserve(&call.holder()))?;
    let mut attach = Attach { call, bridge: &bridge, leases: &leases, own, namespace, inside, host };
    attach.run().inspect_err(|_| {
        if !leases.is_empty() {
            let _ = ipam::release(&ipam::folder(call, conf), &call.holder());
        }
    })
}

/// DEL with the call's configuration or a stored one. Whatever of the configuration makes no sense any more, the link
/// and the addresses are found without it.
pub(crate) fn del(call: &Call, conf: &Object) -> Result<(), Failure> {
    match Namespace::of(call, &Namespace::own()?) {
        Ok(namespace) => removal::remove_link(&namespace, call.ifname)?,
        // Gone with everything in it; or the host's, in which an ADD has made nothing.
        Err(NoEntry::Gone(_) | NoEntry::Own(_)) => {}
    }
    ipam::release(&ipam::folder(call, conf), &call.holder())
}

/// STATUS: whether an ADD would get its addresses.
pub(crate) fn status(call: &Call, conf: &Object) -> Result<(), Failure> {
    Bridge::read(call, conf)?.ipam.map_or(Ok(()), |ipam| ipam.check_free())
}

/// GC: frees the addresses of what is no valid attachment.
pub(crate) fn gc(call: &Call, conf: &Object) -> Result<(), Failure> {
    ipam::collect(&ipam::folder(call, conf), &call.valid()?)
}

/// One ADD that has its addresses.
struct Attach<'a> {
    call: &'a Call,
    bridge: &'a Bridge,
    leases: &'a [Lease],
    own: Namespace,
    namespace: Namespace,
    inside: Socket,
    host: Socket,
}

impl Attach<'_> {
    fn run(&mut self) -> Result<Attachment, Failure> {
        let device = Device::ensure(&mut self.host, self.bridge)?;
        if self.bridge.gateway && !self.leases.is_empty() {
            device.serve(&mut self.host, self.leases, self.bridge.force_address)?;
        }
        let end = (self.call.ifname, pod_mac(self.bridge.mac, self.leases));
        let pair = Pair::create(&mut self.host, self.bridge, &device, &self.namespace, end)?;
        let routes = routes(self.bridge, self.leases);
        self.namespace
            .enter()
            .and_then(|()| pair.furnish(&mut self.inside, self.leases, &with_gateways(&routes, self.leases)))
            .and_then(|()| pair.wait_forwarding(&mut self.host, &self.own))
            .inspect_err(|_| pair.delete(&mut self.host))?;
        Ok(self.attachment(&device, &pair, routes))
    }

    fn attachment(&self, device: &Device, pair: &Pair, routes: Vec<Route>) -> Attachment {
        // The bridge's MTU follows from all of its ports'.
        let interface = |(name, mac), mtu, sandbox: &str| Interface {
            name,
            mac: Some(mac),
            mtu,
            sandbox: sandbox.to_owned(),
            device: crate::cni::Device::default(),
        };
        let address =
            |lease: &Lease| Address { net: lease.net, gateway: Some(lease.gateway), interface: Some(2) };
        let ipam_dns = self.bridge.ipam.as_ref().map(|ipam| ipam.dns.clone()).unwrap_or_default();
        Attachment {
            interfaces: vec![
                interface((device.name, device.mac), 0, ""),
                interface(pair.host, self.bridge.mtu, ""),
                interface(pair.pod, self.bridge.mtu, &self.call.netns),
            ],
            ips: self.leases.iter().map(address).collect(),
            routes,
            dns: if self.bridge.dns == Dns::default() { ipam_dns } else { self.bridge.dns.clone() },
        }
    }
}

/// The configured routes, and a default route for every family that has none through a gateway.
fn routes(bridge: &Bridge, leases: &[Lease]) -> Vec<Route> {
    let mut routes = bridge.ipam.as_ref().map(|ipam| ipam.routes.clone()).unwrap_or_default();
    if !bridge.default_route {
        return routes;
    }
    for lease in leases {
        let v4 = lease.net.is_ipv4();
        let is_default = |r: &Route| r.dst.is_ipv4() == v4 && r.dst.prefix() == 0 && r.gateway.is_some();
        let Ok(everywhere) = (if v4 { "0.0.0.0/0" } else { "::/0" }).parse() else { continue };
        if !routes.iter().any(is_default) {
            routes.push(Route { gateway: Some(lease.gateway), ..Route::to(everywhere) });
        }
    }
    routes
}

/// Routes that name no gateway go through that of their family.
fn with_gateways(routes: &[Route], leases: &[Lease]) -> Vec<Route> {
    let gateway = |r: &Route| leases.iter().find(|l| l.net.is_ipv4() == r.dst.is_ipv4()).map(|l| l.gateway);
    routes
        .iter()
        .map(|route| Route { gateway: route.gateway.or_else(|| gateway(route)), ..route.clone() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(net: &str, gateway: &str) -> Lease {
        Lease { net: net.parse().unwrap(), gateway: gateway.parse().unwrap() }
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
