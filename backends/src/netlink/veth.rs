//! A pod's link: the veth pair and what stands on its ends. Requests to write, and what a bridge port's link says.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnetwork::IpNetwork;

use super::link::{
    DUMP, IFA_F_NODAD, IFADDR, IFF_UP, IFINFO, REQUEST, RTM_DELADDR, RTM_DELLINK, RTM_GETADDR, RTM_GETLINK,
    RTM_NEWADDR, RTM_NEWLINK,
};
use super::route::{RT_TABLE_MAIN, RTM_NEWROUTE, RTN_UNICAST, RTPROT_BOOT};
use super::{AF_INET, AF_INET6, Attrs, Batch, RawMessage, address_bytes, family_of, read_u32};
use crate::state::{IfName, Mac};

/// A veth pair to make: the host's end as a port of a bridge and up, the pod's end born in its namespace.
/// The pod's end cannot be up from birth: the kernel answers ENOTCONN while it has no peer yet.
#[derive(Debug, Clone, Copy)]
pub struct VethPair<'a> {
    /// Name and Ethernet address of the host's end.
    pub host: (IfName, Mac),
    /// Name and Ethernet address of the pod's end.
    pub pod: (IfName, Mac),
    /// Of both ends, in bytes; 0 leaves the kernel's default.
    pub mtu: u32,
    /// Index of the bridge.
    pub bridge: u32,
    /// The pod's network namespace.
    pub namespace: BorrowedFd<'a>,
}

/// Adds to the batch: make the pair; refused with EEXIST when either name is taken.
pub fn create_veth(batch: &mut Batch, pair: &VethPair<'_>) {
    batch.message(RTM_NEWLINK, REQUEST | NEW, &link_header(0, IFF_UP, IFF_UP));
    end(batch, pair.host, pair.mtu);
    batch.attr_u32(IFLA_MASTER, pair.bridge);
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_KIND, b"veth");
    let data = batch.nest(IFLA_INFO_DATA);
    let peer = batch.nest(VETH_INFO_PEER);
    batch.raw(&[0; IFINFO]);
    end(batch, pair.pod, pair.mtu);
    batch.attr_u32(IFLA_NET_NS_FD, pair.namespace.as_raw_fd().cast_unsigned());
    batch.end(peer).end(data).end(info);
}

/// One queue each way, which is what a veth uses unless told otherwise. Without the number the kernel makes one per
/// processor, and then waits until nobody uses the others.
fn end(batch: &mut Batch, (name, mac): (IfName, Mac), mtu: u32) {
    batch.attr_str(IFLA_IFNAME, name.as_str()).attr(IFLA_ADDRESS, &mac.0);
    batch.attr_u32(IFLA_NUM_TX_QUEUES, 1).attr_u32(IFLA_NUM_RX_QUEUES, 1);
    if mtu != 0 {
        batch.attr_u32(IFLA_MTU, mtu);
    }
}

/// What a bridge does with the frames of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortMode {
    /// A frame may go back where it came from.
    pub hairpin: bool,
    /// No frame goes to another port of this mode.
    pub isolated: bool,
}

/// Adds to the batch: set the alias of a bridge port, which its creation cannot (the kernel takes no notice of it
/// there), and its mode. By name, so that it can follow the creation in one batch.
///
/// With IPv6 it also says that the port gets no address of its own, for which it has no use: the kernel would make one, ask
/// all ports whether another has it, and take it away again. Without IPv6 that is refused with EAFNOSUPPORT.
pub fn set_port(batch: &mut Batch, port: IfName, alias: &str, mode: PortMode, has_ipv6: bool) {
    batch.message(RTM_NEWLINK, REQUEST, &link_header(0, 0, 0)).attr_str(IFLA_IFNAME, port.as_str());
    batch.attr(IFLA_IFALIAS, alias.as_bytes());
    if has_ipv6 {
        let families = batch.nest(IFLA_AF_SPEC);
        let family = batch.nest(u16::from(AF_INET6));
        batch.attr_u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
        batch.end(family).end(families);
    }
    if mode == PortMode::default() {
        return;
    }
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_SLAVE_KIND, b"bridge");
    let data = batch.nest(IFLA_INFO_SLAVE_DATA);
    batch.attr_u8(IFLA_BRPORT_MODE, u8::from(mode.hairpin));
    if mode.isolated {
        batch.attr_u8(IFLA_BRPORT_ISOLATED, 1);
    }
    batch.end(data).end(info);
}

/// Adds to the batch: set these `IFF_…` flags of a link.
pub fn set_flags(batch: &mut Batch, link: u32, flags: u32) {
    batch.message(RTM_NEWLINK, REQUEST, &link_header(link, flags, flags));
}

/// Adds to the batch: tell the neighbours about IPv4 addresses of a link (the sysctl `arp_notify`), and set these
/// `IFF_…` flags of it.
pub fn set_announcing(batch: &mut Batch, link: u32, flags: u32) {
    batch.message(RTM_NEWLINK, REQUEST, &link_header(link, flags, flags));
    let families = batch.nest(IFLA_AF_SPEC);
    let family = batch.nest(u16::from(AF_INET));
    let settings = batch.nest(IFLA_INET_CONF);
    batch.attr_u32(IPV4_DEVCONF_ARP_NOTIFY, 1);
    batch.end(settings).end(family).end(families);
}

/// Adds to the batch: set the MTU of a link, in bytes.
pub fn set_mtu(batch: &mut Batch, link: u32, mtu: u32) {
    batch.message(RTM_NEWLINK, REQUEST, &link_header(link, 0, 0)).attr_u32(IFLA_MTU, mtu);
}

/// Asks which number a network namespace has in ours (`IFLA_LINK_NETNSID` of links that lead there).
pub fn namespace_number(namespace: BorrowedFd<'_>) -> Batch {
    let mut batch = Batch::new();
    batch.message(RTM_GETNSID, REQUEST, &[0; RTGEN]);
    batch.attr_u32(NETNSA_FD, namespace.as_raw_fd().cast_unsigned());
    batch
}

/// The answer; none where the namespace has no number, since no link of ours leads there.
pub fn read_namespace_number(message: &RawMessage<'_>) -> Option<u32> {
    let number = Attrs::after(message.payload, RTGEN).find(NETNSA_NSID).and_then(read_u32);
    number.filter(|number| message.kind == RTM_NEWNSID && number.cast_signed() >= 0)
}

/// Asks for one link by index.
pub fn get_link_at(link: u32) -> Batch {
    let mut batch = Batch::new();
    batch.message(RTM_GETLINK, REQUEST, &link_header(link, 0, 0));
    batch
}

/// Asks for the ports of a bridge.
pub fn dump_ports(bridge: u32) -> Batch {
    let mut batch = Batch::new();
    batch.message(RTM_GETLINK, REQUEST | DUMP, &link_header(0, 0, 0)).attr_u32(IFLA_MASTER, bridge);
    batch
}

/// Asks for the addresses of another namespace, by the number that it has in this one (`IFLA_LINK_NETNSID`). The
/// kernel knows the question since Linux 4.20.
pub fn dump_addresses_in(namespace: u32) -> Batch {
    let mut batch = Batch::new();
    batch.message(RTM_GETADDR, REQUEST | DUMP, &[0; IFADDR]).attr_u32(IFA_TARGET_NETNSID, namespace);
    batch
}

/// Adds to the batch: delete a link, and with a veth its other end.
pub fn delete_link(batch: &mut Batch, link: u32) {
    batch.message(RTM_DELLINK, REQUEST, &link_header(link, 0, 0));
}

/// Adds to the batch: a new address, usable at once (no duplicate address detection). EEXIST when it is there.
pub fn add_address(batch: &mut Batch, link: u32, net: IpNetwork) {
    new_address(batch, link, net, NODAD);
}

/// The same, but whether another host has the address is found out first: it is tentative for a second or two.
pub fn add_address_after_detection(batch: &mut Batch, link: u32, net: IpNetwork) {
    new_address(batch, link, net, 0);
}

fn new_address(batch: &mut Batch, link: u32, net: IpNetwork, flags: u8) {
    address(batch, RTM_NEWADDR, NEW, link, net, flags);
    if let IpNetwork::V4(v4) = net
        && v4.prefix() < 31
    {
        batch.attr(IFA_BROADCAST, &v4.broadcast().octets());
    }
}

/// Adds to the batch: delete an address.
pub fn delete_address(batch: &mut Batch, link: u32, net: IpNetwork) {
    address(batch, RTM_DELADDR, 0, link, net, NODAD);
}

fn address(batch: &mut Batch, kind: u16, flags: u16, link: u32, net: IpNetwork, address_flags: u8) {
    let mut header = [0; IFADDR];
    header[0] = family_of(&net.ip());
    header[1] = net.prefix();
    header[2] = if net.is_ipv6() { address_flags } else { 0 };
    header[4..].copy_from_slice(&link.to_ne_bytes());
    let bytes = address_bytes(&net.ip());
    batch.message(kind, REQUEST | flags, &header).attr(IFA_LOCAL, &bytes).attr(IFA_ADDRESS, &bytes);
}

/// A route to add beside those of the same destination that are there.
#[derive(Debug, Clone, Copy)]
pub struct NewRoute {
    /// Destination.
    pub dst: IpNetwork,
    /// Gateway; none for a route to the link itself.
    pub gateway: Option<IpAddr>,
    /// Interface index.
    pub link: u32,
    /// Routing table; 0 is the main one.
    pub table: u32,
    /// `RT_SCOPE_…`.
    pub scope: u8,
    /// Metric; 0 leaves the kernel's default.
    pub metric: u32,
    /// Path MTU in bytes; 0 for none.
    pub mtu: u32,
    /// Advertised TCP segment size in bytes; 0 for none.
    pub advmss: u32,
}

/// Adds to the batch: a route after those of the same destination and metric, so that it takes nothing over.
pub fn add_route(batch: &mut Batch, route: &NewRoute) {
    let table = if route.table == 0 { u32::from(RT_TABLE_MAIN) } else { route.table };
    let mut header = [0; RTM];
    header[0] = family_of(&route.dst.ip());
    header[1] = route.dst.prefix();
    header[5] = RTPROT_BOOT;
    header[6] = route.scope;
    header[7] = RTN_UNICAST;
    batch
        .message(RTM_NEWROUTE, REQUEST | APPEND, &header)
        .attr(RTA_DST, &address_bytes(&route.dst.network()))
        .attr_u32(RTA_OIF, route.link)
        .attr_u32(RTA_TABLE, table);
    if let Some(gateway) = route.gateway {
        batch.attr(RTA_GATEWAY, &address_bytes(&gateway));
    }
    if route.metric != 0 {
        batch.attr_u32(RTA_PRIORITY, route.metric);
    }
    if route.mtu != 0 || route.advmss != 0 {
        let metrics = batch.nest(RTA_METRICS);
        for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
            if value != 0 {
                batch.attr_u32(kind, value);
            }
        }
        batch.end(metrics);
    }
}

/// What the link of a veth end says about its pair and its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethView {
    /// Interface index.
    pub index: u32,
    /// Index of the other end, in that one's namespace.
    pub peer: u32,
    /// Operationally up: there is carrier, packets pass.
    pub running: bool,
    /// Where it is a bridge port: whether the bridge forwards through it.
    pub forwarding: bool,
    /// Where it is a bridge port: its mode.
    pub mode: PortMode,
    /// The number of the other end's namespace in this one; none when it is the same.
    pub namespace: Option<u32>,
}

impl VethView {
    /// Reads an `RTM_NEWLINK`; none for other messages and for truncated ones.
    pub fn parse(message: &RawMessage<'_>) -> Option<Self> {
        if message.kind != RTM_NEWLINK || message.payload.len() < IFINFO {
            return None;
        }
        let attrs = Attrs::after(message.payload, IFINFO);
        let namespace = attrs.clone().find(IFLA_LINK_NETNSID).and_then(read_u32);
        let state =
            attrs.clone().find(IFLA_LINKINFO).and_then(|info| Attrs::new(info).find(IFLA_INFO_SLAVE_DATA));
        let port = state.map(Attrs::new);
        let of_port = |kind| port.clone().and_then(|port| port.find(kind));
        Some(Self {
            index: read_u32(&message.payload[4..])?,
            peer: attrs.clone().find(IFLA_LINK).and_then(read_u32).unwrap_or(0),
            running: attrs.find(IFLA_OPERSTATE) == Some(&[IF_OPER_UP]),
            forwarding: of_port(IFLA_BRPORT_STATE) == Some(&[BR_STATE_FORWARDING]),
            mode: PortMode {
                hairpin: of_port(IFLA_BRPORT_MODE) == Some(&[1]),
                isolated: of_port(IFLA_BRPORT_ISOLATED) == Some(&[1]),
            },
            namespace,
        })
    }
}

pub(super) fn link_header(link: u32, flags: u32, change: u32) -> [u8; IFINFO] {
    let mut header = [0; IFINFO];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `NLM_F_CREATE | NLM_F_EXCL`.
pub(super) const NEW: u16 = 0x400 | 0x200;
/// `NLM_F_CREATE | NLM_F_APPEND`.
const APPEND: u16 = 0x400 | 0x800;
/// `IFA_F_NODAD` in the byte that the header has for flags.
const NODAD: u8 = IFA_F_NODAD.to_le_bytes()[0];
/// Size of `struct rtgenmsg`, with what fills it up.
const RTGEN: usize = 4;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// Size of `struct rtmsg`.
const RTM: usize = 12;

pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;
pub(super) const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
const IF_OPER_UP: u8 = 6;
const BR_STATE_FORWARDING: u8 = 3;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_TARGET_NETNSID: u16 = 10;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::netlink::Messages;

    #[test]
    fn a_veth_request_carries_the_pod_end_inside_with_its_namespace() {
        let here = std::fs::File::open("/proc/self/ns/net").unwrap();
        let mut batch = Batch::new();
        let pair = VethPair {
            host: ("veth1".parse().unwrap(), Mac([2, 0, 0, 0, 0, 1])),
            pod: ("eth0".parse().unwrap(), Mac([2, 0, 0, 0, 0, 2])),
            mtu: 1450,
            bridge: 7,
            namespace: here.as_fd(),
        };
        create_veth(&mut batch, &pair);
        let bytes = batch.seal_for_test(1);
        let message = Messages::new(&bytes).next().unwrap();
        let attrs = Attrs::after(message.payload, IFINFO);
        assert_eq!(attrs.clone().find(IFLA_MASTER).and_then(read_u32), Some(7));
        let info = Attrs::new(attrs.find(IFLA_LINKINFO).unwrap());
        let peer = Attrs::new(info.find(IFLA_INFO_DATA).unwrap()).find(VETH_INFO_PEER).unwrap();
        let inside = Attrs::after(peer, IFINFO);
        assert_eq!(inside.clone().find(IFLA_IFNAME), Some(&b"eth0\0"[..]));
        assert_eq!(inside.clone().find(IFLA_MTU).and_then(read_u32), Some(1450));
        assert_eq!(inside.find(IFLA_NET_NS_FD).and_then(read_u32), Some(here.as_raw_fd().cast_unsigned()));
    }

    #[test]
    fn an_ipv6_address_skips_duplicate_detection_and_an_ipv4_address_names_its_broadcast() {
        let mut batch = Batch::new();
        add_address(&mut batch, 3, "fc00::2/64".parse().unwrap());
        add_address(&mut batch, 3, "10.1.2.3/24".parse().unwrap());
        let bytes = batch.seal_for_test(1);
        let [six, four] = Messages::new(&bytes).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(six.payload[2], NODAD);
        assert_eq!(Attrs::after(four.payload, IFADDR).find(IFA_BROADCAST), Some(&[10, 1, 2, 255][..]));
    }
}
