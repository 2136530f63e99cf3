//! The rules as data, and which of them should stand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Asked, RuleNames};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::Family;

pub use crate::netlink::nft::End;

/// What an operator chooses about the rules. The names in recordings are those of the flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSettings {
    /// Hide pods' addresses from the world outside (`--ip-masq`).
    #[serde(rename = "ip_masq")]
    pub masquerade: bool,
    /// Choose source ports at random when masquerading, so that two packets racing for one port don't lose one.
    pub fully_random: bool,
    /// Let forwarded pod traffic pass (`--iptables-forward-rules`).
    pub forward_rules: bool,
    /// Destinations outside the cluster that see pods' own addresses; of both families.
    #[serde(default)]
    pub no_masquerade: Vec<IpNetwork>,
    /// Which program makes the rules (`--traffic-rules`).
    #[serde(default, rename = "traffic_rules")]
    pub program: Asked,
}

/// What the rules follow from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleInput {
    /// What the tables and chains are called.
    pub names: RuleNames,
    /// Cluster network and own lease's subnet, one pair per enabled family.
    pub networks: Vec<(IpNetwork, IpNetwork)>,
    /// What the operator chooses.
    pub settings: RuleSettings,
}

/// A table of one family.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RuleTable {
    /// Address family.
    pub family: Family,
    /// What it is called.
    #[serde(default, skip_serializing_if = "RuleNames::are_flannels")]
    pub names: RuleNames,
    /// The chains, by name.
    pub chains: Vec<Chain>,
    /// Table flags as the kernel reports them; wanted are none. 1 is *dormant*: the rules are there and do nothing.
    pub flags: u32,
}

/// A chain with its place in the packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// What its rules may do.
    pub kind: ChainKind,
    /// Where it is called.
    pub hook: Hook,
    /// When, among the chains of the hook; lower is earlier.
    pub priority: i32,
    /// The fate of a packet that no rule decides.
    pub policy: Policy,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

/// Type of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChainKind {
    /// Accepts and drops.
    Filter,
    /// Rewrites addresses.
    Nat,
    /// Never ours, by its kernel name; empty for a chain that no hook calls.
    Other(String),
}

/// Where a chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Hook {
    /// Packets passing through this host.
    Forward,
    /// Packets leaving this host.
    Postrouting,
    /// Never ours, by its kernel number; none for a chain that no hook calls.
    Other(Option<u32>),
}

/// The fate of a packet that no rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Policy {
    /// It passes.
    Accept,
    /// It is dropped.
    Drop,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Rule {
    /// When all of these hold, then that.
    When(Vec<Match>, Verdict),
    /// A rule of the kernel that we would not write, by the names of its expressions. Never in a wish, hence equal to
    /// nothing in it.
    Unknown(String),
}

/// A condition on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Match {
    /// An address of the packet lies inside the network, or outside of it.
    Address {
        /// Which address.
        end: End,
        /// Inside, else outside.
        inside: bool,
        /// The network, host bits clear.
        net: IpNetwork,
    },
    /// The packet's mark has these bits set; other bits don't matter.
    Mark(u32),
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// Passes this chain's hook.
    Accept,
    /// No further rule of this chain sees it.
    Return,
    /// Gets the outgoing interface's address as its source.
    Masquerade {
        /// From a random port.
        fully_random: bool,
    },
}

/// `NF_IP_PRI_FILTER`.
const FILTER: i32 = 0;
/// `NF_IP_PRI_NAT_SRC`.
const SRCNAT: i32 = 100;
/// The bit by which kube-proxy marks what it masquerades itself: chosen by Kubernetes.
const KUBE_MARK: u32 = 0x4000;

/// The tables that should stand: one for each family that has a network, none when there is nothing to put in it.
pub fn rules(input: &RuleInput) -> Vec<RuleTable> {
    let table = |family| {
        let chains: Vec<_> =
            [forward(input, family), postrouting(input, family)].into_iter().flatten().collect();
        (!chains.is_empty()).then_some(RuleTable { family, names: input.names, chains, flags: 0 })
    };
    Family::ALL.into_iter().filter_map(table).collect()
}

pub(super) fn forward(input: &RuleInput, family: Family) -> Option<Chain> {
    let pass = |(cluster, _)| {
        [End::Source, End::Destination].map(|end| Rule::When(vec![inside(end, cluster)], Verdict::Accept))
    };
    let rules: Vec<_> = input.of(family).flat_map(pass).collect();
    let chain = Chain {
        name: "forward".to_owned(),
        kind: ChainKind::Filter,
        hook: Hook::Forward,
        priority: FILTER,
        policy: Policy::Accept,
        rules,
    };
    (input.settings.forward_rules && !chain.rules.is_empty()).then_some(chain)
}

pub(super) fn postrouting(input: &RuleInput, family: Family) -> Option<Chain> {
    let mut rules = vec![Rule::When(vec![Match::Mark(KUBE_MARK)], Verdict::Return)];
    rules.extend(input.of(family).flat_map(|(cluster, own)| input.masquerade(cluster, own)));
    let chain = Chain {
        name: "postrtg".to_owned(),
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        priority: SRCNAT,
        policy: Policy::Accept,
        rules,
    };
    (input.settings.masquerade && chain.rules.len() > 1).then_some(chain)
}

impl RuleInput {
    pub(super) fn of(&self, family: Family) -> impl Iterator<Item = (IpNetwork, IpNetwork)> {
        let fits = move |(cluster, own): &&(IpNetwork, IpNetwork)| {
            [cluster, own].iter().all(|net| Family::of(&net.ip()) == family)
        };
        self.networks.iter().filter(fits).copied()
    }

    fn masquerade(&self, cluster: IpNetwork, own: IpNetwork) -> Vec<Rule> {
        use End::{Destination, Source};
        let masquerade = Verdict::Masquerade { fully_random: self.settings.fully_random };
        let exempt = self.settings.no_masquerade.iter().filter(|net| net.is_ipv4() == cluster.is_ipv4());
        let exempt = exempt
            .map(|net| Rule::When(vec![inside(Source, cluster), inside(Destination, *net)], Verdict::Return));
        let mut rules = vec![
            Rule::When(vec![inside(Source, own), inside(Destination, cluster)], Verdict::Return),
            Rule::When(vec![inside(Source, cluster), inside(Destination, own)], Verdict::Return),
            // Flannel's nftables rules say `not own → cluster` here, which takes away what the last rule is for.
            Rule::When(vec![outside(Source, cluster), inside(Destination, own)], Verdict::Return),
        ];
        rules.extend(exempt);
        rules.extend([
            Rule::When(vec![inside(Source, cluster), outside(Destination, multicast(cluster))], masquerade),
            Rule::When(vec![outside(Source, cluster), inside(Destination, cluster)], masquerade),
        ]);
        rules
    }
}

fn inside(end: End, net: IpNetwork) -> Match {
    Match::Address { end, inside: true, net: without_host_bits(net) }
}

fn outside(end: End, net: IpNetwork) -> Match {
    Match::Address { end, inside: false, net: without_host_bits(net) }
}

pub(super) fn without_host_bits(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

/// All multicast addresses of the family: 224.0.0.0/4 or ff00::/8.
fn multicast(like: IpNetwork) -> IpNetwork {
    let (address, prefix) = match like {
        IpNetwork::V4(_) => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        IpNetwork::V6(_) => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNetwork::new(address, prefix).unwrap_or(like)
}
