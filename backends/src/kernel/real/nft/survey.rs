//! Chains of others that forwarded packets or tunnel packets pass, and those of iptables that our rules may stand in. Only
//! read.
//!
//! One dump of all chains, then the rules of a handful of them: thousands of foreign rules elsewhere cost nothing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use subnet_lease::Family;

use super::foreign::{Foreign, outcome, passed};
use crate::kernel::real::packet::{Packet, Step, fate};
use crate::netlink::nft::{self, ChainView, End, FORWARD, INPUT, RuleView, TableFamily, dump_chains};
use crate::netlink::{NetlinkError, Socket};
use crate::rules::iptables::Flavour;
use crate::rules::{Fate, ForeignChain, Home, RuleNames, TunnelDrop};

/// What was found.
#[derive(Debug, Default)]
pub(in crate::kernel::real) struct Survey {
    /// The kernel has nf_tables.
    pub(in crate::kernel::real) nf_tables: bool,
    /// Chains of others.
    pub(in crate::kernel::real) chains: Vec<ForeignChain>,
    /// iptables over nf_tables has chains of its own.
    pub(in crate::kernel::real) used: bool,
    /// Containers behind a drop in table raw.
    pub(in crate::kernel::real) walled: Vec<IpAddr>,
    /// Networks whose packets firewalld takes for trusted.
    pub(in crate::kernel::real) trusted: Vec<IpNetwork>,
    /// Families in which iptables over nf_tables has chains of ours.
    pub(in crate::kernel::real) ours: Vec<Family>,
    /// Chains that keep tunnel packets out.
    pub(in crate::kernel::real) drops: Vec<TunnelDrop>,
    /// Names of the chains that packets to this host pass.
    pub(in crate::kernel::real) inputs: Vec<String>,
    /// A number that changes with the rules of the chains that we read of iptables.
    pub(in crate::kernel::real) fingerprint: u64,
}

/// A chain as far as it counts here.
struct Seen {
    of: TableFamily,
    table: String,
    name: String,
    /// The forward hook calls it.
    forwards: bool,
    /// The input hook calls it.
    enters: bool,
    drops: bool,
}

/// Looks at all chains of this namespace.
///
/// # Errors
/// Refused by the kernel (permission), or its answer was lost. A kernel without nf_tables is an answer.
pub(in crate::kernel::real) fn survey(
    socket: &mut Socket,
    packets: &[Packet],
) -> Result<Survey, NetlinkError> {
    let mut attempts = 4;
    loop {
        match survey_once(socket, packets) {
            // A change in between is a notification that makes everything look again.
            Ok((survey, interrupted)) if !interrupted || attempts == 0 => return Ok(survey),
            Ok(_) => attempts -= 1,
            Err(error) if [Errno::EINVAL, Errno::EOPNOTSUPP].contains(&error.errno()) => {
                return Ok(Survey::default());
            }
            Err(error) => return Err(error),
        }
    }
}

fn survey_once(socket: &mut Socket, packets: &[Packet]) -> Result<(Survey, bool), NetlinkError> {
    let mut seen = Vec::new();
    let dump = socket.dump(&mut dump_chains(TableFamily::ANY), |message| {
        seen.extend(ChainView::parse(&message).as_ref().map(Seen::of));
    })?;
    let interrupted = dump.interrupted;
    let mut survey = Survey { nf_tables: true, ..Survey::default() };
    let mut hasher = DefaultHasher::new();
    let mut reader =
        Reader { socket, seen: &seen, interrupted, left: FOLLOWED, steps: FOLLOWED, failed: None };
    for chain in seen.iter().filter(|chain| chain.counts()) {
        let rules = reader.rules(chain, Some(&mut hasher))?;
        survey.take(chain, &rules, &mut reader);
    }
    // Whoever has no tunnel yet is asked for nothing.
    for chain in seen.iter().filter(|chain| chain.enters && chain.is_foreign() && !packets.is_empty()) {
        survey.enter(chain, packets, &mut reader)?;
    }
    if let Some(error) = reader.failed {
        return Err(error);
    }
    let interrupted = reader.interrupted;
    survey.used = seen.iter().any(|chain| chain.is_iptables() && !chain.is_ours());
    survey.fingerprint = hasher.finish();
    Ok((survey, interrupted))
}

/// Reads rules of chains that were seen.
struct Reader<'a> {
    socket: &'a mut Socket,
    seen: &'a [Seen],
    interrupted: bool,
    /// So many more chains are followed that others call.
    left: u32,
    /// And so many by chains of the input hook.
    steps: u32,
    failed: Option<NetlinkError>,
}

impl Reader<'_> {
    fn rules(
        &mut self,
        chain: &Seen,
        mut hasher: Option<&mut DefaultHasher>,
    ) -> Result<Vec<Foreign>, NetlinkError> {
        let mut rules = Vec::new();
        let dump = nft::rules(self.socket, chain.of, &chain.table, Some(&chain.name), |_, rule| {
            if let Some(hasher) = hasher.as_deref_mut().filter(|_| chain.is_iptables()) {
                chain.hash(rule, hasher);
            }
            rules.push(Foreign::read(rule.exprs()));
        });
        match dump {
            Ok(dump) => self.interrupted |= dump.interrupted,
            // Gone since.
            Err(error) if error.errno() == Errno::ENOENT => self.interrupted = true,
            Err(error) => return Err(error),
        }
        Ok(rules)
    }

    /// What a chain does with a tunnel packet, rule by rule.
    fn steps(&mut self, chain: &Seen, packet: &Packet) -> Result<Vec<Step>, NetlinkError> {
        let mut steps = Vec::new();
        let dump = nft::rules(self.socket, chain.of, &chain.table, Some(&chain.name), |_, rule| {
            steps.push(packet.step(&rule.exprs().collect::<Vec<_>>()));
        });
        match dump {
            Ok(dump) => self.interrupted |= dump.interrupted,
            // Gone since.
            Err(error) if error.errno() == Errno::ENOENT => self.interrupted = true,
            Err(error) => return Err(error),
        }
        Ok(steps)
    }

    /// What becomes of a tunnel packet in a chain that another hands it to.
    fn entered(&mut self, from: &Seen, name: &str, packet: &Packet, passed: &mut Vec<String>) -> Fate {
        let seen = self.seen;
        let same = |c: &&Seen| c.of == from.of && c.table == from.table && c.name == name;
        let chain = seen.iter().find(same).filter(|chain| !chain.is_ours() && self.steps > 0);
        // The chains of a proxy accept and mark; they are long, and written anew all day.
        let Some(chain) = chain.filter(|chain| !chain.name.starts_with("KUBE-")) else {
            return Fate::Returned;
        };
        self.steps -= 1;
        passed.push(chain.name.clone());
        match self.steps(chain, packet) {
            Ok(steps) => {
                fate(&steps, Fate::Returned, &mut |name| self.entered(chain, name, packet, passed)).0
            }
            Err(error) => {
                self.failed = Some(error);
                Fate::Returned
            }
        }
    }

    /// What becomes of every packet in a chain that this one hands it to. The kernel knows no calls in circles.
    fn called(&mut self, from: &Seen, name: &str) -> Fate {
        let seen = self.seen;
        let same = |c: &&Seen| c.of == from.of && c.table == from.table && c.name == name;
        let chain = seen.iter().find(same).filter(|chain| !chain.is_ours() && self.left > 0);
        let Some(chain) = chain else { return Fate::Returned };
        self.left -= 1;
        match self.rules(chain, None) {
            Ok(rules) => outcome(&rules, Fate::Returned, &mut |name| self.called(chain, name)).0,
            Err(error) => {
                self.failed = Some(error);
                Fate::Returned
            }
        }
    }
}

impl Survey {
    /// A chain of the input hook.
    fn enter(
        &mut self,
        chain: &Seen,
        packets: &[Packet],
        reader: &mut Reader<'_>,
    ) -> Result<(), NetlinkError> {
        let policy = if chain.drops { Fate::Dropped } else { Fate::Accepted };
        let mut passed = vec![chain.name.clone()];
        for packet in packets.iter().filter(|packet| chain.of.families().contains(&packet.family())) {
            let steps = reader.steps(chain, packet)?;
            let (fate, rule, call) =
                fate(&steps, policy, &mut |name| reader.entered(chain, name, packet, &mut passed));
            if fate == Fate::Dropped {
                let (family, home, table) = (packet.family(), chain.home(), chain.place());
                let (chain, port) = (chain.name.clone(), packet.port);
                self.drops.push(TunnelDrop { family, home, table, chain, rule, call, port });
            }
        }
        self.inputs.extend(passed);
        Ok(())
    }

    fn take(&mut self, chain: &Seen, rules: &[Foreign], reader: &mut Reader<'_>) {
        if chain.is_ours() {
            let new: Vec<_> = chain.of.families().iter().filter(|f| !self.ours.contains(f)).collect();
            self.ours.extend(new);
            return;
        }
        if chain.table == RAW {
            self.walled
                .extend(rules.iter().filter(|rule| rule.fate == Some(Fate::Dropped)).filter_map(|r| r.to));
            return;
        }
        if !chain.forwards && chain.home() == Home::Firewalld {
            let sources = rules.iter().filter(|r| r.calls.as_deref() == Some("filter_FWD_trusted"));
            self.trusted.extend(
                sources.filter_map(|r| r.only).filter(|(end, _)| *end == End::Source).map(|(_, net)| net),
            );
            return;
        }
        let policy = match (chain.forwards, chain.drops) {
            (true, true) => Fate::Dropped,
            (true, false) => Fate::Accepted,
            (false, _) => Fate::Returned,
        };
        let (fate, end, calls) = outcome(rules, policy, &mut |name| reader.called(chain, name));
        let passed = passed(rules, end);
        let (home, table) = (chain.home(), chain.place());
        for family in chain.of.families() {
            let (table, name, calls, passed) =
                (table.clone(), chain.name.clone(), calls.clone(), passed.clone());
            self.chains.push(ForeignChain { family: *family, home, table, name, fate, end, calls, passed });
        }
    }
}

impl Seen {
    fn of(view: &ChainView<'_>) -> Self {
        Self {
            of: view.family,
            table: view.table.to_owned(),
            name: view.name.to_owned(),
            forwards: view.hook.is_some_and(|(number, _)| number == FORWARD) && view.kind == "filter",
            enters: view.hook.is_some_and(|(number, _)| number == INPUT) && view.kind == "filter",
            drops: view.drops,
        }
    }

    /// Everything of a rule but what packets change.
    fn hash(&self, rule: &RuleView<'_>, hasher: &mut DefaultHasher) {
        (self.of, &self.table, &self.name, rule.handle).hash(hasher);
        let lasting = rule.raw_exprs().zip(rule.exprs()).filter(|(_, expr)| expr.name() != "counter");
        lasting.for_each(|(bytes, _)| bytes.hash(hasher));
    }

    fn is_iptables(&self) -> bool {
        self.of.families().len() == 1 && ["filter", "nat", RAW].contains(&self.table.as_str())
    }

    /// Of any network of this host.
    fn is_ours(&self) -> bool {
        self.is_iptables() && RuleNames::of_chain(&self.name).is_some()
    }

    /// A table that is not one of ours, of whichever network.
    fn is_foreign(&self) -> bool {
        !self.of.families().is_empty() && !self.table.starts_with("flannel-ipv")
    }

    /// Its table in words.
    fn place(&self) -> String {
        match self.home() {
            Home::Iptables(_) => self.table.clone(),
            _ => format!("{} {}", self.of, self.table),
        }
    }

    fn home(&self) -> Home {
        match self.table.as_str() {
            "firewalld" => Home::Firewalld,
            _ if self.is_iptables() => Home::Iptables(Flavour::Nft),
            _ => Home::Nftables,
        }
    }

    /// Whether its rules are looked at.
    fn counts(&self) -> bool {
        let foreign = self.forwards && self.is_foreign();
        let place = match self.table.as_str() {
            "filter" => self.name == "DOCKER-USER" || self.is_ours(),
            "nat" => self.name == "POSTROUTING" || self.is_ours(),
            RAW => self.name == "PREROUTING",
            "firewalld" => return foreign || ZONES.contains(&self.name.as_str()),
            _ => false,
        };
        foreign || self.is_iptables() && place
    }
}

/// Ours: a host has a handful of chains that all forwarded packets go through, and each costs a question.
const FOLLOWED: u32 = 32;
/// Where firewalld tells zones apart, in its versions 1 and 0.
const ZONES: [&str; 2] = ["filter_FORWARD_ZONES", "filter_FORWARD_IN_ZONES"];
/// The table of iptables before all others.
const RAW: &str = "raw";
