//! The firewall in iptables: the reference plugin's chains and rules, word for word, so that either binary takes away
//! what the other one made.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use subnet_lease::Family;

use super::conf::{Firewall, Ingress};
use crate::contract::{Code, Failure};
use crate::sys::iptables::{Plan, Saved, Table};

const FORWARD: &str = "FORWARD";
const PRIVATE: &str = "CNI-FORWARD";
const TO_PRIVATE: [&str; 6] = ["-m", "comment", "--comment", "CNI firewall plugin rules", "-j", PRIVATE];
const STAGES: [&str; 2] = ["CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"];
const OF_BOTH: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";

fn filter(family: Family) -> Table {
    Table { family, name: "filter", legacy: false }
}

fn to_admin(chain: &str) -> [&str; 6] {
    ["-m", "comment", "--comment", "CNI firewall plugin admin overrides", "-j", chain]
}

/// Answers to the address may pass, and whatever it sends.
fn rules_of(net: &str) -> [Vec<&str>; 2] {
    [
        vec!["-d", net, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"],
        vec!["-s", net, "-j", "ACCEPT"],
    ]
}

fn of_family(addresses: &[IpAddr], family: Family) -> Vec<String> {
    let mine = addresses.iter().filter(|ip| Family::of(ip) == family);
    mine.map(|ip| IpNetwork::from(*ip).to_string()).collect()
}

/// What iptables does for a container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) conf: &'a Firewall,
    /// Lets its packets pass; firewalld does it otherwise.
    pub(super) accepts: bool,
    /// The bridge whose policy it keeps.
    pub(super) bridge: Option<&'a str>,
}

impl Part<'_> {
    /// Makes what is missing for these addresses.
    pub(super) fn add(self, addresses: &[IpAddr]) -> Result<(), Failure> {
        for family in Family::ALL {
            let nets = of_family(addresses, family);
            if !nets.is_empty() && !self.is_nothing() {
                filter(family).change(|saved| self.plan(&nets, saved))?;
            }
        }
        Ok(())
    }

    /// Whether all of it is there.
    pub(super) fn check(self, addresses: &[IpAddr]) -> Result<(), Failure> {
        for family in Family::ALL {
            let nets = of_family(addresses, family);
            if nets.is_empty() || self.is_nothing() {
                continue;
            }
            let missing = self.plan(&nets, &filter(family).read()?);
            if let Some(line) = missing.first() {
                let msg = format!("table filter of {family} has lost what this would make: {line}");
                return Err(Failure::new(Code::Check, msg));
            }
        }
        Ok(())
    }

    fn is_nothing(self) -> bool {
        !self.accepts && self.bridge.is_none()
    }

    fn plan(self, nets: &[String], saved: &Saved) -> Plan {
        let (mut plan, conf) = (Plan::default(), self.conf);
        if self.accepts {
            plan.chain(saved, PRIVATE);
            plan.chain(saved, &conf.admin);
            plan.rule(saved, FORWARD, &TO_PRIVATE, true);
            plan.rule(saved, PRIVATE, &to_admin(&conf.admin), true);
            for rule in nets.iter().flat_map(|net| rules_of(net)) {
                plan.rule(saved, PRIVATE, &rule, false);
            }
        }
        if let Some(bridge) = self.bridge {
            isolate(&mut plan, conf.ingress == Ingress::Isolated, bridge, saved);
        }
        plan
    }
}

/// Keeps other bridges' containers away from this one's, and with `alone` its own from each other.
fn isolate(plan: &mut Plan, alone: bool, bridge: &str, saved: &Saved) {
    let [first, second] = STAGES;
    let policy = format!(
        "CNI firewall plugin rules (ingressPolicy: {})",
        if alone { "isolated" } else { "same-bridge" }
    );
    let note = |text| ["-m", "comment", "--comment", text];
    STAGES.into_iter().for_each(|chain| plan.chain(saved, chain));
    plan.rule(saved, FORWARD, &[&note(OF_BOTH)[..], &["-j", first]].concat(), true);
    let leaves = ["-i", bridge, "!", "-o", bridge];
    plan.rule(saved, first, &[&leaves[..], &note(&policy), &["-j", second]].concat(), true);
    if alone {
        let stays = ["-i", bridge, "-o", bridge];
        plan.rule(saved, first, &[&stays[..], &note(&policy), &["-j", "DROP"]].concat(), true);
    }
    let back = [&note(OF_BOTH)[..], &["-j", "RETURN"]].concat();
    plan.rule(saved, first, &back, false);
    plan.rule(saved, second, &[&["-o", bridge][..], &note(OF_BOTH), &["-j", "DROP"]].concat(), true);
    plan.rule(saved, second, &back, false);
}

/// Removes the rules of these addresses. The chains stay, and so do the policies of bridges, which are everybody's.
pub(super) fn remove(addresses: &[IpAddr]) -> Result<(), Failure> {
    for family in Family::ALL {
        let nets = of_family(addresses, family);
        if nets.is_empty() || !filter(family).is_there() {
            continue;
        }
        filter(family).change(|saved| {
            let mut plan = Plan::default();
            for words in nets.iter().flat_map(|net| rules_of(net)) {
                saved.rules(PRIVATE).filter(|rule| rule.is(&words)).for_each(|rule| plan.delete(rule));
            }
            plan
        })?;
    }
    Ok(())
}

/// Whether the programs are there and the kernel answers them.
pub(super) fn usable() -> Result<(), Failure> {
    filter(Family::V4).read().map(|_| ())
}
