//! The underlay: what was read of the host, and the interface to the other hosts that follows from it.

use std::time::Duration;

use backends::kernel::KernelEvent;
use backends::{External, Facts, IfName};
use subnet_lease::{Family, Subnets};
use tracing::{info, warn};

use super::Tick;
use super::saved::{Held, Saved};
use crate::host::iface::{self, Choice, IfaceWish};

/// The host as it was read last, and the interface that was chosen.
#[derive(Debug)]
pub(super) struct Underlay {
    facts: Option<Facts>,
    /// Something of the host changed since it was read.
    stale: bool,
    external: Option<External>,
    /// Why this interface.
    why: String,
    /// Why no interface fits, or why a better one is not taken.
    problem: Option<String>,
    /// Since when no named interface fits.
    unfit_since: Option<Tick>,
}

impl Underlay {
    /// Nothing is read yet.
    pub(super) fn new() -> Self {
        let (facts, external, problem, unfit_since) = (None, None, None, None);
        Self { facts, stale: true, external, why: String::new(), problem, unfit_since }
    }

    /// The kernel sent a notification.
    pub(super) fn note(&mut self, event: KernelEvent) {
        self.stale |= event != KernelEvent::Own;
    }

    /// Whether the host is to be read; if so it counts as asked for.
    pub(super) fn begin_reading(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    /// Takes the answer. False for an interrupted one, if there is a whole one: on that nothing is chosen anew.
    pub(super) fn read(&mut self, facts: Facts) -> bool {
        self.stale |= facts.interrupted;
        let better = !facts.interrupted || self.facts.is_none();
        if better {
            self.facts = Some(facts);
        }
        better
    }

    /// The host could not be read.
    pub(super) fn unread(&mut self) {
        self.stale = true;
    }

    /// Chooses the interface from the newest facts; whether one fits. A chosen one is replaced only by a better one, never by
    /// none: a missing fact must not take down what works.
    pub(super) fn choose(&mut self, now: Tick, wish: &IfaceWish, families: &[Family]) -> bool {
        let Some(facts) = &self.facts else { return false };
        match iface::choose(facts, wish, families) {
            Ok(choice) if self.falls_back(&choice) => {
                self.problem = Some(format!("{}: only a link-local address is left", choice.external.link));
                false
            }
            Ok(choice) => {
                self.take(choice);
                true
            }
            Err(error) => {
                self.lack(now, error.to_string(), wish);
                false
            }
        }
    }

    /// An address that is being replaced, or comes up, leaves the link-local one for a moment: that one is not published.
    fn falls_back(&self, choice: &Choice) -> bool {
        self.external.as_ref().is_some_and(|old| iface::falls_back(old.local, choice.external.local))
    }

    fn take(&mut self, Choice { external, why }: Choice) {
        if self.external.as_ref() != Some(&external) {
            let e = &external;
            info!(link = %e.link, mtu = e.mtu, local = %e.local, public = %e.public, "underlay: {why}");
        }
        (self.external, self.why) = (Some(external), why);
        (self.problem, self.unfit_since) = (None, None);
    }

    fn lack(&mut self, now: Tick, sentence: String, wish: &IfaceWish) {
        if self.problem.as_ref() != Some(&sentence) {
            warn!("{sentence}");
        }
        self.problem = Some(sentence);
        self.follow_index();
        if self.external.is_none() && wish.names_something() {
            self.unfit_since.get_or_insert(now);
        }
    }

    /// An interface with another name or MTU that no longer fits what was asked for is the same interface.
    fn follow_index(&mut self) {
        let (Some(external), Some(facts)) = (&mut self.external, &self.facts) else { return };
        let Some(link) = facts.link(external.index) else { return };
        if (external.link, external.mtu) != (link.name, link.mtu) && link.mtu > 0 {
            info!(was = %external.link, link = %link.name, mtu = link.mtu, "underlay: the same interface");
            (external.link, external.mtu) = (link.name, link.mtu);
        }
    }

    /// When waiting for a named interface ends.
    pub(super) fn unfit_at(&self, wait: Option<Duration>) -> Tick {
        let at = |since: Tick| Some(since.saturating_add(wait?));
        self.unfit_since.and_then(at).unwrap_or(Tick::MAX)
    }

    /// The sentence with which the daemon ends, once the wait for a named interface is over.
    pub(super) fn given_up(&mut self, now: Tick, wait: Option<Duration>) -> Option<String> {
        if self.unfit_at(wait) > now {
            return None;
        }
        self.unfit_since = None;
        let waited = wait.filter(|wait| *wait > Duration::ZERO);
        let waited = waited.map(|wait| format!(", after {} s", wait.as_secs())).unwrap_or_default();
        let problem = self.problem.as_deref().unwrap_or("no interface fits");
        Some(format!("{problem}{waited}"))
    }

    /// The host as it was read last.
    pub(super) fn facts(&self) -> Option<&Facts> {
        self.facts.as_ref()
    }

    /// Whether the host is to be read again.
    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// The chosen interface.
    pub(super) fn external(&self) -> Option<&External> {
        self.external.as_ref()
    }

    /// Why it was chosen.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// Why no interface fits.
    pub(super) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// Links of others with an address of our subnets: the pods' bridges.
    pub(super) fn pods(&self, own: Option<Subnets>) -> Vec<IfName> {
        let (Some(facts), Some(own)) = (&self.facts, own) else { return Vec::new() };
        facts.links_within(&own.iter().collect::<Vec<_>>())
    }

    /// Other interfaces that would do, and how one is chosen.
    pub(super) fn candidates(&self, families: &[Family]) -> String {
        let (Some(facts), Some(external)) = (&self.facts, &self.external) else { return String::new() };
        match iface::candidates(facts, families, external.index).as_slice() {
            [] => "; no other interface here has one".to_owned(),
            others => format!("; here are also {}: --iface chooses one", others.join(", ")),
        }
    }

    pub(super) fn save<'a>(&'a self, to: &mut Saved<'a>) {
        (to.facts, to.external) = (Held::of(&self.facts), Held::of(&self.external));
        (to.host_stale, to.unfit_since) = (self.stale, self.unfit_since);
        (to.external_why, to.external_problem) = (self.why.clone(), self.problem.clone());
    }

    pub(super) fn restore(from: &mut Saved<'_>) -> Self {
        Self {
            facts: from.facts.take(),
            stale: from.host_stale,
            external: from.external.take(),
            why: std::mem::take(&mut from.external_why),
            problem: from.external_problem.take(),
            unfit_since: from.unfit_since,
        }
    }
}
