//! Rules in iptables. What is there is looked at by system calls; a program runs only to read what is ours, when that
//! changed, and to change it.
//!
//! ```text
//!   nft::survey, legacy::survey ──▶ Firewall, and: is there anything of ours? has it changed?
//!                                        │ yes, both
//!                                        ▼
//!   iptables-save ──▶ IptablesRules ── diff ──▶ iptables-restore --noflush --wait=1
//! ```

mod legacy;
mod programs;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use subnet_lease::Family;

use self::programs::Programs;
use super::packet::Packet;
use super::{firewalld, nft};
use crate::kernel::KernelError;
use crate::netlink::Socket;
use crate::rules::iptables::{Flavour, IptablesRules, read, restore};
use crate::rules::{Firewall, RuleNames};
use crate::state::Object;

/// One of the four rule sets that a host can have in iptables.
type Place = (Flavour, Family);

/// What was read last, and what the kernel looked like then.
struct Memo {
    fingerprint: u64,
    rules: Vec<IptablesRules>,
}

/// Both flavours of iptables in one network namespace.
pub(super) struct Iptables {
    programs: Programs,
    memos: HashMap<Place, Memo>,
    /// What could not be read, and is not written over.
    unread: HashMap<Place, KernelError>,
    /// The older kind as it was read last: when, and how long that took.
    older: HashMap<Family, (Instant, Duration, Option<legacy::Survey>)>,
}

/// What takes no longer is read each time. Ours: some thousand rules.
const SHORT: Duration = Duration::from_millis(2);

impl Iptables {
    pub(super) fn new() -> Self {
        Self {
            programs: Programs::find(),
            memos: HashMap::new(),
            unread: HashMap::new(),
            older: HashMap::new(),
        }
    }

    /// What others filter here, also of these packets, and what has these names in iptables.
    pub(super) fn look(
        &mut self,
        netfilter: Option<&mut Socket>,
        names: &[RuleNames],
        packets: &[Packet],
    ) -> Result<(Firewall, Vec<Object>), KernelError> {
        let nft =
            netfilter.map_or_else(|| Ok(nft::Survey::default()), |socket| nft::survey(socket, packets))?;
        let mut firewall = Firewall {
            nf_tables: nft.nf_tables,
            programs: self.programs.flavours(),
            used: nft.used.then_some(Flavour::Nft).into_iter().collect(),
            chains: nft.chains,
            walled: nft.walled,
            firewalld: firewalld::is_there(),
            unreadable: Vec::new(),
            tunnel_drops: nft.drops,
            inputs: nft.inputs,
        };
        let mut ours: Vec<_> = nft.ours.iter().map(|f| ((Flavour::Nft, *f), nft.fingerprint)).collect();
        for family in Family::ALL {
            let Some(legacy) = self.older(family, packets) else { continue };
            firewall.chains.extend(legacy.chains);
            firewall.walled.extend(legacy.walled);
            firewall.tunnel_drops.extend(legacy.drops);
            if legacy.used && !firewall.used.contains(&Flavour::Legacy) {
                firewall.used.push(Flavour::Legacy);
            }
            ours.extend(legacy.ours.then_some(((Flavour::Legacy, family), legacy.fingerprint)));
        }
        self.memos.retain(|place, _| ours.iter().any(|(there, _)| there == place));
        self.unread.clear();
        let rules: Vec<_> =
            ours.into_iter().flat_map(|(place, print)| self.read(place, print, names)).collect();
        let rules = rules.into_iter().map(|rules| Object::Iptables(Box::new(rules)));
        firewall.unreadable = self.unread.keys().copied().collect();
        firewall.unreadable.sort_unstable();
        let trusted = nft.trusted.into_iter().map(Object::Trusted);
        Ok((firewall, trusted.chain(rules).collect()))
    }

    /// The older kind can only be read whole. Where that takes long it is read no more often than a hundredth of the time
    /// allows, except after a change of ours.
    #[allow(clippy::disallowed_methods, reason = "measures what reading costs; decides nothing else")]
    fn older(&mut self, family: Family, packets: &[Packet]) -> Option<legacy::Survey> {
        let began = Instant::now();
        let fresh = |(read, took, _): &&(Instant, Duration, Option<legacy::Survey>)| {
            began.duration_since(*read) < *took * 100 && *took > SHORT
        };
        if let Some((.., survey)) = self.older.get(&family).filter(fresh) {
            return survey.clone();
        }
        let survey = legacy::survey(family, packets);
        self.older.insert(family, (began, began.elapsed(), survey.clone()));
        survey
    }

    fn read(&mut self, place: Place, fingerprint: u64, names: &[RuleNames]) -> Vec<IptablesRules> {
        if let Some(memo) = self.memos.get(&place).filter(|memo| memo.fingerprint == fingerprint) {
            return memo.rules.clone();
        }
        let (flavour, family) = place;
        match self.programs.save(flavour, family) {
            Ok(saved) => {
                let of = |names: &RuleNames| read(flavour, family, *names, &saved);
                let rules: Vec<_> = names.iter().filter_map(of).collect();
                self.memos.insert(place, Memo { fingerprint, rules: rules.clone() });
                rules
            }
            Err(error) => {
                self.unread.insert(place, error);
                Vec::new()
            }
        }
    }

    /// Makes what `have` shows into what is wanted; none: takes it away.
    pub(super) fn put(
        &mut self,
        want: Option<&IptablesRules>,
        have: Option<&IptablesRules>,
    ) -> Result<(), KernelError> {
        let Some(rules) = want.or(have) else { return Ok(()) };
        let place = (rules.flavour, rules.family);
        if let Some(error) = self.unread.get(&place) {
            return Err(error.clone());
        }
        self.memos.remove(&place);
        self.older.remove(&rules.family);
        let input = restore(want, have);
        if input.is_empty() { Ok(()) } else { self.programs.restore(rules.flavour, rules.family, &input) }
    }
}
