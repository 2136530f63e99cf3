//! Wires and switches, and the routing socket that makes, breaks and reads them.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoBridge, InfoData, InfoVeth, LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, route::RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::{Builder, Runtime};

use crate::namespace::Namespace;
use crate::rundir::RunDir;
use crate::topology::eventually;

/// The kernel has not answered a request within this time: it never will.
const ANSWER: Duration = Duration::from_secs(10);

/// A bridge takes 1,023 ports; some are for the links between bridges.
const PORTS: usize = 1_000;

/// A routing socket of one network namespace, usable from any thread. Links are addressed by name.
#[derive(Debug)]
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace; [`Namespace::netlink`] is the usual way.
    pub fn open() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a routing socket")?;
        runtime.spawn(connection);
        drop(guard);
        Ok(Self { runtime, handle })
    }

    /// Sets a link up.
    pub fn set_up(&self, link: &str) -> Result<()> {
        self.set(LinkUnspec::new_with_name(link).up().build(), &format!("set {link} up"))
    }

    /// Waits until a link that was set up carries frames. The kernel activates it, and IPv6 on it, from a
    /// work queue, which takes milliseconds on a busy machine. Until then frames are dropped silently.
    pub fn settle(&self, link: &str) -> Result<()> {
        let index = self.index(link)?;
        self.wait_until_up(|found| found.header.index == index).with_context(|| link.to_owned())
    }

    fn wait_until_up(&self, is_meant: impl Fn(&LinkMessage) -> bool) -> Result<()> {
        let is_up = |link: &&LinkMessage| link.attributes.contains(&LinkAttribute::OperState(State::Up));
        eventually(ANSWER, || {
            let all: Vec<LinkMessage> =
                self.ask("read links", self.handle.link().get().execute().try_collect())?;
            let asleep = all.iter().filter(|link| is_meant(link) && !is_up(link)).count();
            if asleep > 0 { bail!("{asleep} links carry no frames") } else { Ok(()) }
        })
        .map(drop)
    }

    /// Sets a link down. With that the kernel deletes its routes, permanent neighbours and IPv6 addresses.
    pub fn set_down(&self, link: &str) -> Result<()> {
        self.set(LinkUnspec::new_with_name(link).down().build(), &format!("set {link} down"))
    }

    /// Sets a link's MTU, in bytes.
    pub fn set_mtu(&self, link: &str, mtu: u32) -> Result<()> {
        self.set(LinkUnspec::new_with_name(link).mtu(mtu).build(), &format!("set the MTU of {link} to {mtu}"))
    }

    /// Deletes a link and everything that depends on it.
    pub fn delete_link(&self, link: &str) -> Result<()> {
        let index = self.index(link)?;
        self.ask(&format!("delete {link}"), self.handle.link().del(index).execute())
    }

    /// The kernel's index of a link.
    pub fn index(&self, link: &str) -> Result<u32> {
        self.link(link).map(|found| found.header.index)
    }

    /// A link's Ethernet address.
    pub fn mac(&self, link: &str) -> Result<Vec<u8>> {
        let mac =
            |it: &LinkAttribute| if let LinkAttribute::Address(mac) = it { Some(mac.clone()) } else { None };
        self.link(link)?.attributes.iter().find_map(mac).with_context(|| format!("{link} has no MAC"))
    }

    fn link(&self, link: &str) -> Result<LinkMessage> {
        let mut found = self.handle.link().get().match_name(link.to_owned()).execute();
        let found = self.ask(&format!("find {link}"), async move { found.try_next().await })?;
        found.with_context(|| format!("no link is named {link}"))
    }

    /// True when a link of that name exists.
    pub fn has_link(&self, link: &str) -> bool {
        self.index(link).is_ok()
    }

    /// Adds an address that is usable at once (no duplicate detection).
    pub fn add_address(&self, link: &str, address: IpNetwork) -> Result<()> {
        let mut request = self.handle.address().add(self.index(link)?, address.ip(), address.prefix());
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        self.ask(&format!("add {address} to {link}"), request.execute())
    }

    /// Deletes an address.
    pub fn delete_address(&self, link: &str, address: IpNetwork) -> Result<()> {
        let index = self.index(link)?;
        let is_it = |message: &AddressMessage| {
            message.header.index == index
                && message.header.prefix_len == address.prefix()
                && message.attributes.contains(&AddressAttribute::Address(address.ip()))
        };
        let all: Vec<_> = self.ask("read addresses", self.handle.address().get().execute().try_collect())?;
        let found =
            all.into_iter().find(is_it).with_context(|| format!("{link} has no address {address}"))?;
        self.ask(&format!("delete {address} from {link}"), self.handle.address().del(found).execute())
    }

    /// Adds a route to `to`, by the router `via` or directly over the link.
    pub fn add_route(&self, to: IpNetwork, via: Option<IpAddr>, link: &str) -> Result<()> {
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.network(), to.prefix())?
            .output_interface(self.index(link)?);
        route = match via {
            Some(router) => route.gateway(router)?,
            None if to.is_ipv4() => route.scope(RouteScope::Link),
            None => route,
        };
        self.ask(&format!("add a route to {to}"), self.handle.route().add(route.build()).execute())
    }

    /// Destinations of all unicast routes of the main table over `link`.
    pub fn routes(&self, link: &str) -> Result<BTreeSet<IpNetwork>> {
        let index = self.index(link)?;
        let on_link = |route: &RouteMessage| route.attributes.contains(&RouteAttribute::Oif(index));
        Ok(self.route_dump()?.iter().filter(|route| on_link(route)).filter_map(destination).collect())
    }

    /// Deletes every route of the main table to exactly `to`; returns whether there was one.
    pub fn delete_route(&self, to: IpNetwork) -> Result<bool> {
        let mut found = false;
        for route in self.route_dump()?.into_iter().filter(|route| destination(route) == Some(to)) {
            self.ask(&format!("delete the route to {to}"), self.handle.route().del(route).execute())?;
            found = true;
        }
        Ok(found)
    }

    /// Number of permanent neighbours of `link`: neighbour entries, and FDB entries of its bridge or tunnel.
    pub fn neighbours(&self, link: &str) -> Result<(usize, usize)> {
        let index = self.index(link)?;
        let count = |entries: Vec<NeighbourMessage>| {
            let has_mac = |entry: &NeighbourMessage| {
                entry
                    .attributes
                    .iter()
                    .any(|attribute| matches!(attribute, NeighbourAttribute::LinkLayerAddress(_)))
            };
            entries.iter().filter(|entry| entry.header.ifindex == index && has_mac(entry)).count()
        };
        let mut forwarding = self.handle.neighbours().get();
        forwarding.message_mut().header.family = AddressFamily::Bridge;
        let resolved = self.ask("read neighbours", self.handle.neighbours().get().execute().try_collect())?;
        let forwarding = self.ask("read forwarding entries", forwarding.execute().try_collect())?;
        Ok((count(resolved), count(forwarding)))
    }

    /// Number of IPv6 routes over `link` that have a gateway; 0 while there is no such link.
    pub fn gateways6(&self, link: &str) -> Result<usize> {
        let Ok(index) = self.index(link) else { return Ok(0) };
        let mut all = RouteMessage::default();
        all.header.address_family = AddressFamily::Inet6;
        let is_one = |route: &RouteMessage| {
            let has = |wanted: fn(&RouteAttribute, u32) -> bool| {
                route.attributes.iter().any(|attribute| wanted(attribute, index))
            };
            has(|attribute, index| matches!(attribute, RouteAttribute::Oif(oif) if *oif == index))
                && has(|attribute, _| matches!(attribute, RouteAttribute::Gateway(_)))
        };
        let routes = self.handle.route().get(all).execute();
        let count = routes.try_fold(0, async |count, route| Ok(count + usize::from(is_one(&route))));
        self.ask("read IPv6 routes", count)
    }

    /// Makes a link of any kind.
    pub(crate) fn add_link(&self, what: &str, message: LinkMessage) -> Result<()> {
        self.ask(&format!("make {what}"), self.handle.link().add(message).execute())
    }

    fn set(&self, message: LinkMessage, what: &str) -> Result<()> {
        self.ask(what, self.handle.link().set(message).execute())
    }

    fn route_dump(&self) -> Result<Vec<RouteMessage>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut all = RouteMessage::default();
            all.header.address_family = family;
            let dump: Vec<_> =
                self.ask("read routes", self.handle.route().get(all).execute().try_collect())?;
            routes.extend(dump.into_iter().filter(|route| route.header.table == MAIN_TABLE));
        }
        Ok(routes)
    }

    fn ask<T>(&self, what: &str, answer: impl Future<Output = Result<T, rtnetlink::Error>>) -> Result<T> {
        self.runtime
            .block_on(async { tokio::time::timeout(ANSWER, answer).await })
            .with_context(|| format!("no answer from the kernel: {what}"))?
            .with_context(|| format!("cannot {what}"))
    }
}

/// RT_TABLE_MAIN of linux/rtnetlink.h.
const MAIN_TABLE: u8 = 254;

fn destination(route: &RouteMessage) -> Option<IpNetwork> {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    IpNetwork::new(to, route.header.destination_prefix_length).ok()
}

/// A namespace with bridges that together are one Ethernet segment.
#[derive(Debug)]
pub struct Switch {
    space: Namespace,
    netlink: Netlink,
    bridges: Vec<u32>,
    /// The host of each port's wire.
    ports: Vec<String>,
    mtu: u32,
}

impl Switch {
    /// Makes an empty switch whose wires carry `mtu` bytes.
    pub fn create(run: &Arc<RunDir>, name: &str, mtu: u32) -> Result<Self> {
        let space = Namespace::create(run, name)?;
        // A switch has no address of its own, and sends nothing by itself.
        for conf in ["all", "default"] {
            let _ = space.sysctl(&format!("ipv6/conf/{conf}/disable_ipv6"), "1");
        }
        let netlink = space.netlink()?;
        Ok(Self { space, netlink, bridges: Vec::new(), ports: Vec::new(), mtu })
    }

    /// Connects `host`: the wire's far end is created inside that namespace under the name `link`, down.
    pub fn plug(&mut self, host: &Namespace, link: &str) -> Result<()> {
        let number = self.ports.len();
        if number / PORTS == self.bridges.len() {
            self.add_bridge()?;
        }
        self.add_port(number, host, peer(link, self.mtu))?;
        self.ports.push(host.name().to_owned());
        Ok(())
    }

    /// Whether a wire goes to `host`.
    pub fn has(&self, host: &Namespace) -> bool {
        self.ports.iter().any(|name| name == host.name())
    }

    /// Removes the wire to `host` with the link at its far end, and makes a new one. The MAC stays: otherwise
    /// peers would send to the old MAC while their caches call it reachable, up to 45 s over IPv6.
    pub fn replug(&self, host: &Namespace, link: &str) -> Result<()> {
        let number = self.port(host)?;
        let mac = host.netlink()?.mac(link)?;
        self.netlink.delete_link(&format!("p{number}"))?;
        self.add_port(number, host, peer(link, self.mtu).address(mac))
    }

    /// Sets our end of the wire to `host` down or up: the far end loses or regains its carrier.
    pub fn set_port(&self, host: &Namespace, up: bool) -> Result<()> {
        let port = format!("p{}", self.port(host)?);
        if up { self.netlink.set_up(&port) } else { self.netlink.set_down(&port) }
    }

    fn port(&self, host: &Namespace) -> Result<usize> {
        let found = self.ports.iter().position(|name| name == host.name());
        found.with_context(|| format!("no wire goes to {}", host.name()))
    }

    fn add_port(&self, number: usize, host: &Namespace, far: LinkMessageBuilder<LinkUnspec>) -> Result<()> {
        let far_end = far.setns_by_fd(host.fd().as_raw_fd()).build();
        let wire = self.wire(&format!("p{number}"), self.bridges[number / PORTS], far_end);
        self.netlink.add_link(&format!("a wire to {}", host.name()), wire)
    }

    /// Waits until every wire carries frames; see [`Netlink::settle`].
    pub fn settle(&self) -> Result<()> {
        let is_port =
            |link: &LinkMessage| link.attributes.iter().any(|it| matches!(it, LinkAttribute::Controller(_)));
        self.netlink.wait_until_up(is_port).with_context(|| format!("the wires of {}", self.space.name()))
    }

    /// The namespace of the bridges.
    pub fn space(&self) -> &Namespace {
        &self.space
    }

    /// Every further bridge is connected to the first, so the segment stays one tree.
    fn add_bridge(&mut self) -> Result<()> {
        let number = self.bridges.len();
        let name = format!("br{number}");
        let bridge = LinkBridge::new(&name)
            .mtu(self.mtu)
            .append_info_data(InfoBridge::MulticastSnooping(false))
            .build();
        self.netlink.add_link("a bridge", bridge)?;
        let index = self.netlink.index(&name)?;
        if let Some(first) = self.bridges.first() {
            let far = format!("down{number}");
            let uplink = self.wire(&format!("up{number}"), index, peer(&far, self.mtu).build());
            self.netlink.add_link("a wire between bridges", uplink)?;
            let far = LinkUnspec::new_with_name(&far).controller(*first).up().build();
            self.netlink.set(far, "join two bridges")?;
        }
        self.bridges.push(index);
        Ok(())
    }

    fn wire(&self, port: &str, bridge: u32, far_end: LinkMessage) -> LinkMessage {
        LinkMessageBuilder::<LinkVeth>::new(port, "")
            .mtu(self.mtu)
            .controller(bridge)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far_end)))
            .up()
            .build()
    }
}

fn peer(name: &str, mtu: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkMessageBuilder::<LinkUnspec>::new().name(name).mtu(mtu)
}

/// A wire directly from one namespace to another, both ends up: `link` here, `far_link` there.
pub fn wire(here: &Namespace, link: &str, there: &Namespace, far_link: &str) -> Result<()> {
    let far: BorrowedFd<'_> = there.fd().as_fd();
    let message = LinkMessageBuilder::<LinkVeth>::new(link, "")
        .set_info_data(InfoData::Veth(InfoVeth::Peer(
            peer(far_link, 1500).setns_by_fd(far.as_raw_fd()).build(),
        )))
        .up()
        .build();
    here.netlink()?.add_link(&format!("a wire from {} to {}", here.name(), there.name()), message)?;
    there.netlink()?.set_up(far_link)
}
