//! What the kernel reports of a link.

use super::*;
use crate::netlink::{Attrs, RawMessage, Unread, read_u16, read_u32};

/// Begins the alias of every link that our CNI plugin makes; the attachment follows.
pub const CONTAINER_ALIAS: &str = "cni ";

/// A link as the kernel reports it; borrowed from the message.
#[derive(Debug)]
pub struct LinkView<'a> {
    /// Interface index.
    pub index: u32,
    /// `IFF_…`.
    pub flags: u32,
    /// Interface name.
    pub name: IfName,
    /// MTU in bytes.
    pub mtu: u32,
    /// Ethernet address, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// `ip link … alias`.
    pub alias: Option<&'a str>,
    /// Kind (`vxlan`, `veth`, …); empty for physical links.
    pub kind: &'a str,
    /// The attributes of that kind.
    pub data: Attrs<'a>,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// `ip link … protodown on`: up, and yet without carrier.
    pub held_down: bool,
    /// Operationally up: there is carrier, and the kernel has switched its transmit side on.
    pub running: bool,
    /// Length of its transmit queue in packets.
    pub queue_length: u32,
    /// How many programs want to see every frame (`IFLA_PROMISCUITY`).
    pub watchers: u32,
    /// Index of the other end of a veth, in that one's namespace; 0 for none.
    pub peer: u32,
    /// The number of the other end's namespace in this one; none when it is the same.
    pub peer_namespace: Option<u32>,
    /// Where it is a port of a bridge: what the bridge does with its frames.
    pub port: Option<Port>,
}

impl<'a> LinkView<'a> {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`. A link always has a name.
    pub fn parse(message: &RawMessage<'a>) -> Result<Self, Unread> {
        if !matches!(message.kind, RTM_NEWLINK | RTM_DELLINK) {
            return Err(Unread::Other);
        }
        Self::read(message.payload).ok_or(Unread::Broken)
    }

    /// Whether our CNI plugin made it, for a container.
    pub fn is_containers(&self) -> bool {
        self.kind == "veth" && self.alias.is_some_and(|alias| alias.starts_with(CONTAINER_ALIAS))
    }

    /// Of a bridge that runs spanning tree: the seconds until a new port forwards.
    pub fn spanning_tree_delay(&self) -> Option<u32> {
        let number = |kind| self.data.clone().find(kind).and_then(read_u32);
        let runs = self.kind == "bridge" && number(IFLA_BR_STP_STATE).unwrap_or(0) != 0;
        // It listens, then learns, for this long each (hundredths of a second).
        if runs { number(IFLA_BR_FORWARD_DELAY).map(|delay| delay / 50) } else { None }
    }

    fn read(payload: &'a [u8]) -> Option<Self> {
        if payload.len() < IFINFO {
            return None;
        }
        let mut link = Self {
            index: read_u32(&payload[4..])?,
            flags: read_u32(&payload[8..])?,
            name: IfName::default(),
            mtu: 0,
            mac: None,
            alias: None,
            kind: "",
            data: Attrs::new(&[]),
            master: None,
            held_down: false,
            running: false,
            queue_length: 0,
            watchers: 0,
            peer: 0,
            peer_namespace: None,
            port: None,
        };
        for (kind, bytes) in Attrs::after(payload, IFINFO) {
            match kind {
                IFLA_IFNAME => link.name = IfName::from_kernel(bytes),
                IFLA_MTU => link.mtu = read_u32(bytes).unwrap_or(0),
                IFLA_ADDRESS => link.mac = <[u8; 6]>::try_from(bytes).ok().map(Mac),
                IFLA_IFALIAS => link.alias = text(bytes),
                IFLA_MASTER => link.master = read_u32(bytes),
                IFLA_TXQLEN => link.queue_length = read_u32(bytes).unwrap_or(0),
                IFLA_PROMISCUITY => link.watchers = read_u32(bytes).unwrap_or(0),
                IFLA_LINK => link.peer = read_u32(bytes).unwrap_or(0),
                IFLA_LINK_NETNSID => link.peer_namespace = read_u32(bytes),
                IFLA_OPERSTATE => link.running = bytes == [IF_OPER_UP],
                IFLA_PROTO_DOWN => link.held_down = bytes.first().is_some_and(|b| *b != 0),
                IFLA_LINKINFO => {
                    let info = Attrs::new(bytes);
                    link.kind = info.clone().find(IFLA_INFO_KIND).and_then(text).unwrap_or_default();
                    link.data = Attrs::new(info.clone().find(IFLA_INFO_DATA).unwrap_or_default());
                    link.port = info.find(IFLA_INFO_SLAVE_DATA).map(|data| Port::read(&Attrs::new(data)));
                }
                _ => {}
            }
        }
        Some(link).filter(|link| link.name != IfName::default())
    }
}

/// A port of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// `FORWARDING`, `LISTENING`, ….
    pub state: u8,
    /// What the bridge does with its frames.
    pub mode: PortMode,
}

impl Port {
    fn read(data: &Attrs<'_>) -> Self {
        let is_on = |kind| data.clone().find(kind) == Some(&[1]);
        Self {
            state: data.clone().find(IFLA_BRPORT_STATE).and_then(|b| b.first().copied()).unwrap_or(0),
            mode: PortMode { hairpin: is_on(IFLA_BRPORT_MODE), isolated: is_on(IFLA_BRPORT_ISOLATED) },
        }
    }

    /// The bridge passes frames through it.
    pub fn forwards(&self) -> bool {
        self.state == BR_STATE_FORWARDING
    }

    /// Spanning tree has not decided yet: it listens to others, or learns where they are, and then forwards.
    pub fn waits_for_spanning_tree(&self) -> bool {
        matches!(self.state, BR_STATE_LISTENING | BR_STATE_LEARNING)
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|b| *b == 0).next()?).ok()
}

/// The two-byte value of an attribute in network order.
pub fn port_from(bytes: &[u8]) -> Option<u16> {
    read_u16(bytes).map(u16::from_be)
}

const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IF_OPER_UP: u8 = 6;
const BR_STATE_LISTENING: u8 = 1;
const BR_STATE_LEARNING: u8 = 2;
const BR_STATE_FORWARDING: u8 = 3;
