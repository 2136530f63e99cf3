//! What others filter on this host, and what follows from that for our rules: by which program they are made, and where
//! else an accept of ours must stand.
//!
//! An accept ends only its own base chain: a drop in any other chain of the forward hook is final (law 16).

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use subnet_lease::{Family, contains_net};

use super::iptables::{self, Flavour, Gate, IptablesRules, Parts};
use super::tunnel::kept_out;
use super::{End, RuleInput, RuleTable, TunnelDrop};

/// What others filter on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewall {
    /// The kernel has nf_tables.
    pub nf_tables: bool,
    /// Which iptables can be run here.
    pub programs: Vec<Flavour>,
    /// Which iptables holds chains of others.
    pub used: Vec<Flavour>,
    /// Chains of others that every forwarded packet passes, and the ones of iptables that our rules may stand in.
    pub chains: Vec<ForeignChain>,
    /// firewalld can be talked to.
    #[serde(default)]
    pub firewalld: bool,
    /// Chains of ours in an iptables whose program is not here, or does not work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<(Flavour, Family)>,
    /// Addresses of containers for which somebody drops what does not come from their bridge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub walled: Vec<std::net::IpAddr>,
    /// Chains of others that keep tunnel packets out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnel_drops: Vec<TunnelDrop>,
    /// Names of the chains of others that packets to this host pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
}

/// A host on which nobody filters.
impl Default for Firewall {
    fn default() -> Self {
        Self {
            nf_tables: true,
            programs: Vec::new(),
            used: Vec::new(),
            chains: Vec::new(),
            firewalld: false,
            unreadable: Vec::new(),
            walled: Vec::new(),
            tunnel_drops: Vec::new(),
            inputs: Vec::new(),
        }
    }
}

/// A chain of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignChain {
    /// Whose packets pass it.
    pub family: Family,
    /// What made it.
    pub home: Home,
    /// Its table, with the family as nft says it where that differs: `inet filter`.
    pub table: String,
    /// Its name.
    pub name: String,
    /// What happens to a packet that no rule with a condition decides.
    pub fate: Fate,
    /// Its first rule that takes every packet, counted from one; 0 when it has none.
    pub end: u32,
    /// The chains that it hands every packet to, in order, up to that rule. One that decides about every packet is that
    /// rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<String>,
    /// What it accepts with no other condition, before that rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed: Vec<(End, IpNetwork)>,
}

/// What made a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Home {
    /// An iptables.
    Iptables(Flavour),
    /// firewalld.
    Firewalld,
    /// Anything else over nf_tables.
    Nftables,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It passes.
    Accepted,
    /// It is dropped, or its sender is told that it was refused.
    Dropped,
    /// Of a chain that no hook calls: it goes back.
    Returned,
}

/// How our rules are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Renderer {
    /// Tables of our own in nf_tables.
    Nftables,
    /// flannel's chains of iptables.
    Iptables(Flavour),
}

/// How the operator wants them made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    /// As the cluster's configuration says and the host can.
    #[default]
    Auto,
    /// By nf_tables.
    Nftables,
    /// By iptables: the flavour that others use here.
    Iptables,
    /// By this iptables.
    Flavour(Flavour),
}

/// How rules are made on this host, and why. `network` is `EnableNFTables` of the cluster's configuration.
///
/// # Errors
/// One sentence when what is asked for is not here.
pub fn choose(
    asked: Asked,
    network: Option<bool>,
    firewall: &Firewall,
) -> Result<(Renderer, &'static str), String> {
    let nftables = |why| Ok((Renderer::Nftables, why));
    match (asked, network, firewall.nf_tables) {
        (Asked::Nftables, _, true) => nftables("asked for by --traffic-rules"),
        (Asked::Nftables, _, false) => Err(NO_NF_TABLES.to_owned()),
        (Asked::Flavour(flavour), ..) => iptables(firewall, Some(flavour), "asked for by --traffic-rules"),
        (Asked::Iptables, ..) => iptables(firewall, None, "asked for by --traffic-rules"),
        (Asked::Auto, Some(false), has) => {
            let chosen = iptables(firewall, None, "EnableNFTables is false");
            if has {
                chosen.or_else(|_| nftables("EnableNFTables is false, and no iptables is installed"))
            } else {
                chosen
            }
        }
        (Asked::Auto, Some(true), true) => nftables("EnableNFTables is true"),
        (Asked::Auto, None, true) => nftables("the kernel has it"),
        (Asked::Auto, _, false) => {
            iptables(firewall, None, "the kernel has no nf_tables").map_err(|_| NO_NF_TABLES.to_owned())
        }
    }
}

const NO_NF_TABLES: &str = "this kernel has no nf_tables: load the module (modprobe nf_tables), or install iptables and \
    run with --traffic-rules=iptables-legacy";

fn iptables(
    firewall: &Firewall,
    flavour: Option<Flavour>,
    why: &'static str,
) -> Result<(Renderer, &'static str), String> {
    let can = |f: &Flavour| firewall.programs.contains(f) && (*f == Flavour::Legacy || firewall.nf_tables);
    let only_used = |f: &Flavour| firewall.used.as_slice() == [*f];
    let found = match flavour {
        Some(flavour) => Some(flavour).filter(can),
        // The one that others use here, so that all rules are seen with one program; else the newer.
        None => Flavour::ALL
            .into_iter()
            .filter(can)
            .find(only_used)
            .or_else(|| Flavour::ALL.into_iter().find(can)),
    };
    let Some(found) = found else {
        let what = flavour.map_or_else(|| "iptables".to_owned(), |f| f.to_string());
        return Err(format!(
            "{what} can't be used here: install the package iptables (the programs {what}-restore and {what}-save), \
             or run with --traffic-rules=nftables"
        ));
    };
    Ok((Renderer::Iptables(found), why))
}

/// The rules that should stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Tables of our own.
    pub tables: Vec<RuleTable>,
    /// Rules in iptables.
    pub iptables: Vec<IptablesRules>,
    /// Networks that firewalld is to trust.
    pub trusted: Vec<IpNetwork>,
    /// What lets no pod traffic pass and is not ours to change: a sentence each, with the way out.
    pub in_the_way: Vec<String>,
}

/// All rules of ours by one renderer on a host with this firewall.
pub fn standing(input: &RuleInput, renderer: Renderer, firewall: &Firewall) -> Standing {
    let mut standing = Standing::default();
    if renderer == Renderer::Nftables {
        standing.tables = super::rules(input);
    }
    for family in Family::ALL {
        for flavour in Flavour::ALL {
            let parts = parts(input, renderer, firewall, flavour, family);
            standing.iptables.extend(iptables::rules(input, flavour, family, parts));
        }
    }
    standing.trusted = firewall.to_be_trusted(input);
    standing.in_the_way = firewall.in_the_way(input);
    standing.in_the_way.extend(kept_out(&firewall.tunnel_drops, input));
    standing
}

fn parts<'a>(
    input: &RuleInput,
    renderer: Renderer,
    firewall: &'a Firewall,
    flavour: Flavour,
    family: Family,
) -> Parts<'a> {
    let chain = |name: &str| firewall.iptables_chain(flavour, family, name);
    let end = |name: &str| chain(name).map_or(0, |c| c.end);
    if renderer == Renderer::Iptables(flavour) {
        let gate = Gate { chain: "FORWARD", end: end("FORWARD") };
        return Parts {
            masquerade: input.settings.masquerade.then(|| end("POSTROUTING")),
            forward: input.settings.forward_rules.then_some(gate),
        };
    }
    let dropping = chain("FORWARD").filter(|forward| forward.fate == Fate::Dropped);
    let usable = input.settings.forward_rules && firewall.programs.contains(&flavour);
    let gate = |forward: &'a ForeignChain| {
        // Docker looks into this one first, and leaves it alone.
        let docker = chain(DOCKER_USER).filter(|_| forward.calls.iter().any(|c| c == DOCKER_USER));
        let chosen = docker.unwrap_or(forward);
        Gate { chain: &chosen.name, end: chosen.end }
    };
    Parts { masquerade: None, forward: dropping.filter(|_| usable).map(gate) }
}

/// Docker's chain for rules of others.
const DOCKER_USER: &str = "DOCKER-USER";

impl Firewall {
    fn iptables_chain(&self, flavour: Flavour, family: Family, name: &str) -> Option<&ForeignChain> {
        let home = Home::Iptables(flavour);
        self.chains.iter().find(|c| c.home == home && c.family == family && c.name == name)
    }

    /// The chains that forwarded packets and packets to this host pass. Not those that a proxy writes anew all day: they drop nothing by default.
    pub fn gates(&self) -> Vec<String> {
        let names = self.chains.iter().flat_map(|chain| std::iter::once(&chain.name).chain(&chain.calls));
        names.chain(&self.inputs).filter(|name| !name.starts_with("KUBE-")).cloned().collect()
    }

    /// Chains that drop by default and that no rule of ours stands in.
    fn in_the_way(&self, input: &RuleInput) -> Vec<String> {
        let concerned =
            |c: &&ForeignChain| input.of(c.family).next().is_some() && input.settings.forward_rules;
        let dropping = self.chains.iter().filter(|c| c.fate == Fate::Dropped).filter(concerned);
        let mut told: Vec<_> = dropping.filter_map(|chain| self.sentence(chain, input)).collect();
        told.dedup();
        told.extend(self.unreadable.iter().map(|(flavour, family)| {
            format!(
                "chains of ours are in {flavour}, and {}-save does not tell what they hold: install the package \
                 iptables, or see what it says",
                iptables::program(*flavour, *family)
            )
        }));
        told.extend(self.walled(input));
        told
    }

    /// Where firewalld refuses what is in no zone, the cluster's networks belong to its zone for what is trusted.
    fn to_be_trusted(&self, input: &RuleInput) -> Vec<IpNetwork> {
        let refuses = |c: &&ForeignChain| c.home == Home::Firewalld && c.fate == Fate::Dropped;
        let asked = self.firewalld && input.settings.forward_rules;
        let refusing = self.chains.iter().filter(refuses).filter(|_| asked);
        refusing
            .flat_map(|chain| input.of(chain.family))
            .map(|(cluster, _)| super::without_host_bits(cluster))
            .collect()
    }

    fn sentence(&self, chain: &ForeignChain, input: &RuleInput) -> Option<String> {
        let ForeignChain { table, name, .. } = chain;
        let passes = |end, net| chain.passed.iter().any(|(e, n)| *e == end && contains_net(*n, net));
        let open = |net| passes(End::Source, net) && passes(End::Destination, net);
        let nets: Vec<_> =
            input.of(chain.family).map(|(cluster, _)| cluster).filter(|net| !open(*net)).collect();
        let nets: Vec<_> = nets.iter().map(ToString::to_string).collect();
        match chain.home {
            _ if nets.is_empty() => None,
            Home::Firewalld if self.firewalld => None,
            Home::Iptables(flavour) if self.programs.contains(&flavour) => None,
            Home::Iptables(flavour) => {
                let lines = nets.iter().flat_map(|net| {
                    ["-s", "-d"].map(|end| {
                        format!(
                            "{} -A FORWARD {end} {net} -j ACCEPT",
                            iptables::program(flavour, chain.family)
                        )
                    })
                });
                Some(format!(
                    "chain FORWARD of {flavour} drops forwarded packets by default, and its program is not here to \
                     let pods through: install it, or `{}`",
                    lines.collect::<Vec<_>>().join("; ")
                ))
            }
            Home::Firewalld => {
                let lines = nets
                    .iter()
                    .map(|net| format!("firewall-cmd --permanent --zone=trusted --add-source={net}"));
                Some(format!(
                    "firewalld rejects forwarded packets of interfaces that are in no zone: `{}; firewall-cmd --reload` \
                     lets pods through",
                    lines.collect::<Vec<_>>().join("; ")
                ))
            }
            Home::Nftables => {
                let family = if chain.family == Family::V4 { "ip" } else { "ip6" };
                let lines = nets.iter().flat_map(|net| {
                    ["saddr", "daddr"]
                        .map(|end| format!("nft insert rule {table} {name} {family} {end} {net} accept"))
                });
                Some(format!(
                    "chain {name} of table {table} drops forwarded packets by default: `{}` lets pods through",
                    lines.collect::<Vec<_>>().join("; ")
                ))
            }
        }
    }

    /// Since version 28 Docker drops what reaches a container of a bridge network directly rather than by a published port.
    fn walled(&self, input: &RuleInput) -> Option<String> {
        let own = |address: &&std::net::IpAddr| {
            Family::ALL.into_iter().flat_map(|f| input.of(f)).any(|(_, own)| own.contains(**address))
        };
        let first = self.walled.iter().find(own)?;
        Some(format!(
            "chain PREROUTING of table raw drops what other hosts send to the container {first}: Docker does so since \
             version 28; `\"allow-direct-routing\": true` in /etc/docker/daemon.json (28.2 and later), or the network's \
             option com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected, ends that"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firewall(nf_tables: bool, programs: &[Flavour], used: &[Flavour]) -> Firewall {
        Firewall { nf_tables, programs: programs.to_vec(), used: used.to_vec(), ..Firewall::default() }
    }

    #[test]
    fn the_renderer_follows_the_flag_then_the_cluster_then_the_host() {
        use Flavour::{Legacy, Nft};
        let both = &[Nft, Legacy][..];
        let nftables = Some(Renderer::Nftables);
        let ipt = |flavour| Some(Renderer::Iptables(flavour));
        for (asked, network, host, expected) in [
            (Asked::Auto, None, firewall(true, both, both), nftables),
            (Asked::Auto, Some(true), firewall(true, &[], &[]), nftables),
            (Asked::Auto, Some(true), firewall(false, &[Legacy], &[]), ipt(Legacy)),
            (Asked::Auto, None, firewall(false, both, &[]), ipt(Legacy)),
            (Asked::Auto, None, firewall(false, &[], &[]), None),
            (Asked::Auto, Some(false), firewall(true, both, &[]), ipt(Nft)),
            (Asked::Auto, Some(false), firewall(true, both, &[Legacy]), ipt(Legacy)),
            (Asked::Auto, Some(false), firewall(true, both, both), ipt(Nft)),
            (Asked::Auto, Some(false), firewall(true, &[Legacy], &[Nft]), ipt(Legacy)),
            (Asked::Auto, Some(false), firewall(true, &[], &[Legacy]), nftables),
            (Asked::Auto, Some(false), firewall(false, &[], &[]), None),
            (Asked::Nftables, Some(false), firewall(true, both, both), nftables),
            (Asked::Nftables, None, firewall(false, both, both), None),
            (Asked::Iptables, Some(true), firewall(true, both, &[Legacy]), ipt(Legacy)),
            (Asked::Flavour(Nft), None, firewall(true, both, &[Legacy]), ipt(Nft)),
            (Asked::Flavour(Nft), None, firewall(false, both, &[]), None),
            (Asked::Flavour(Legacy), Some(true), firewall(true, both, &[]), ipt(Legacy)),
            (Asked::Flavour(Legacy), None, firewall(true, &[Nft], &[]), None),
        ] {
            let chosen = choose(asked, network, &host);
            assert_eq!(chosen.ok().map(|(renderer, _)| renderer), expected, "{asked:?} {network:?} {host:?}");
        }
    }
}
