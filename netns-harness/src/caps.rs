//! What this machine supports, found by trying it in a scratch namespace.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use rtnetlink::packet_route::link::{InfoKind, MacVlanMode};
use rtnetlink::{
    LinkBridge, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan, LinkVrf, LinkVxlan,
};

use crate::enter::{is_rootless, why_closed};
use crate::namespace::Namespace;
use crate::rundir::RunDir;

/// One feature that a test or a demonstration may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Network and mount namespaces of our own.
    Namespaces,
    /// Namespaces without being root.
    UserNamespaces,
    /// Writable /proc/sys/net in a namespace of ours.
    Sysctl,
    /// Virtual wires.
    Veth,
    /// Virtual switches.
    Bridge,
    /// The vxlan tunnel.
    Vxlan,
    /// The wireguard tunnel.
    Wireguard,
    /// The IP-in-IP tunnel.
    Ipip,
    /// Several ports as one.
    Bond,
    /// Tagged Ethernet.
    Vlan,
    /// More Ethernet addresses on one port.
    Macvlan,
    /// Routing domains.
    Vrf,
    /// User-space tunnels.
    Tun,
    /// Packet filters, the newer kind.
    NfTables,
    /// IPv6 in a namespace of ours.
    Ipv6,
}

impl Need {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Namespaces,
        Self::UserNamespaces,
        Self::Sysctl,
        Self::Veth,
        Self::Bridge,
        Self::Vxlan,
        Self::Wireguard,
        Self::Ipip,
        Self::Bond,
        Self::Vlan,
        Self::Macvlan,
        Self::Vrf,
        Self::Tun,
        Self::NfTables,
        Self::Ipv6,
    ];

    /// The message for a missing feature: what is missing, and how to get it.
    fn way_out(self) -> &'static str {
        match self {
            Self::Namespaces => {
                "network namespaces can't be made; run as root, or as a user who may make user namespaces"
            }
            Self::UserNamespaces => "user namespaces are closed; run as root",
            Self::Sysctl => "/proc/sys/net is read-only here; a container needs to be started privileged",
            Self::Veth => "the kernel has no veth; try `sudo modprobe veth`",
            Self::Bridge => "the kernel has no bridge; try `sudo modprobe bridge`",
            Self::Vxlan => "the kernel has no vxlan; try `sudo modprobe vxlan`, or the host-gw backend",
            Self::Wireguard => "the kernel has no wireguard; try `sudo modprobe wireguard`",
            Self::Ipip => "the kernel has no ipip; try `sudo modprobe ipip`",
            Self::Bond => "the kernel has no bonding; try `sudo modprobe bonding`",
            Self::Vlan => "the kernel has no VLAN devices; try `sudo modprobe 8021q`",
            Self::Macvlan => "the kernel has no macvlan; try `sudo modprobe macvlan`",
            Self::Vrf => "the kernel has no VRF; try `sudo modprobe vrf`",
            Self::Tun => "/dev/net/tun can't be opened; try `sudo modprobe tun`, and run as root",
            Self::NfTables => "the kernel has no nf_tables; try `sudo modprobe nf_tables`",
            Self::Ipv6 => "IPv6 is switched off in this kernel (ipv6.disable=1 at boot?); use IPv4 only",
        }
    }
}

/// The features that are missing here.
#[derive(Debug, Clone, Default)]
pub struct Caps {
    missing: BTreeMap<Need, String>,
}

impl Caps {
    /// Tries everything once per process, in about 30 ms. Call [`crate::enter`] before.
    pub fn probe() -> &'static Self {
        static CAPS: OnceLock<Caps> = OnceLock::new();
        CAPS.get_or_init(|| {
            let mut caps = Self::default();
            let space = RunDir::create(None).and_then(|run| Namespace::create(&run, "probe"));
            for need in Need::ALL {
                let answer = match &space {
                    Ok(space) => attempt(need, space),
                    Err(error) => Err(anyhow!("{error:#}")),
                };
                if let Err(error) = answer {
                    caps.missing.insert(need, format!("{} ({error:#})", need.way_out()));
                }
            }
            caps
        })
    }

    /// One sentence for each of `needs` that is missing: what is missing, and how to get it.
    pub fn missing(&self, needs: &[Need]) -> Vec<&str> {
        needs.iter().filter_map(|need| self.missing.get(need)).map(String::as_str).collect()
    }

    /// Returns an error that names what is missing of `needs` and how to get it.
    pub fn require(&self, needs: &[Need]) -> Result<()> {
        match self.missing(needs) {
            none if none.is_empty() => Ok(()),
            some => bail!("{}", some.join("; ")),
        }
    }
}

fn attempt(need: Need, space: &Namespace) -> Result<()> {
    let link = |message| space.netlink()?.add_link("it", message);
    match need {
        Need::Namespaces => Ok(()),
        Need::UserNamespaces if is_rootless() => Ok(()),
        Need::UserNamespaces => why_closed().map_or(Ok(()), |why| bail!("{why}")),
        Need::Sysctl => space.sysctl("ipv4/ip_forward", "1"),
        Need::Veth => link(LinkVeth::new("veth", "peer").build()),
        Need::Bridge => link(LinkBridge::new("bridge").build()),
        Need::Vxlan => link(LinkVxlan::new("vxlan", 7).port(8472).build()),
        Need::Wireguard => link(bare("wireguard", InfoKind::Wireguard)),
        Need::Ipip => link(bare("ipip", InfoKind::IpIp)),
        Need::Bond => link(bare("bond", InfoKind::Bond)),
        Need::Vlan => link(LinkVlan::new("vlan", port(space, "vlan-port")?, 5).build()),
        Need::Macvlan => {
            link(LinkMacVlan::new("macvlan", port(space, "macvlan-port")?, MacVlanMode::Bridge).build())
        }
        Need::Vrf => link(LinkVrf::new("vrf", 100).build()),
        Need::Tun => {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .map(drop)
                .context("/dev/net/tun")?;
            if is_rootless() { bail!("not in a user namespace") } else { Ok(()) }
        }
        Need::NfTables => space.run(nf_tables)?,
        Need::Ipv6 => space.netlink()?.add_address("lo", "fd00::1/128".parse()?),
    }
}

/// An Ethernet port for a device on top of it.
fn port(space: &Namespace, name: &str) -> Result<u32> {
    space.netlink()?.add_link("a port", LinkVeth::new(name, &format!("{name}-2")).build())?;
    space.netlink()?.index(name)
}

fn bare(name: &str, kind: InfoKind) -> rtnetlink::packet_route::link::LinkMessage {
    LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind).name(name).build()
}

/// Requests the generation number of nf_tables, its smallest request.
fn nf_tables() -> Result<()> {
    /// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETGEN, NFT_MSG_NEWGEN of linux/netfilter/nf_tables.h.
    const ASK: u16 = 10 << 8 | 16;
    const ANSWER: u16 = 10 << 8 | 15;
    let kind = SockProtocol::NetlinkNetFilter;
    let mut kernel = File::from(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind)?);
    // nlmsghdr (length, type, NLM_F_REQUEST, sequence, port), then an empty nfgenmsg.
    let mut message = Vec::from(20_u32.to_ne_bytes());
    message.extend(ASK.to_ne_bytes());
    message.extend(1_u16.to_ne_bytes());
    message.extend([0; 12]);
    kernel.write_all(&message)?;
    let mut answer = [0; 256];
    let length = kernel.read(&mut answer)?;
    if length >= 6 && answer[4..6] == ANSWER.to_ne_bytes() {
        Ok(())
    } else {
        bail!("nf_tables does not answer")
    }
}
