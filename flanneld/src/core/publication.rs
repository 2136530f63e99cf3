//! Our lease is a wish, too: the lease as we want it is compared with the lease that the store shows.

use std::time::Duration;

use backends::kernel::Own;
use backends::{Backends, Devices, Identity, Sources};
use serde::{Deserialize, Serialize};
use subnet_lease::{
    BackendAttrs, Claim, Class, Lease, OwnLease, PublicAddrs, StoreError, SubnetEnv, Subnets,
};
use tracing::{info, warn};

use super::pace::mix;
use super::saved::{Held, Saved};
use super::{Effect, NodeCore, Tick};
use crate::exit::Exit;

/// First pause after a claim that failed; doubles to [`RETRY_LAST`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// After a lease was held for this long, its loss is no repetition of an earlier loss.
const CALM: Duration = Duration::from_secs(10);

/// This many times our lease must show another host's address, each within [`CALM`] of the last, to count as a cloned machine.
/// Fewer can be late events about an address that we had.
const FLIPS: u32 = 3;
/// A cloned machine is shown in status for this long after its last sign.
const SHOWN: Duration = Duration::from_secs(60);

/// Our lease, and what it publishes about us.
#[derive(Debug, Default)]
pub(super) struct Publication {
    /// What an earlier run left in subnet.env.
    remembered: Option<SubnetEnv>,
    /// Our subnets, once claimed.
    own: Option<Subnets>,
    /// What peers know our backends by, once that is settled: what we claimed is what we keep.
    identities: Option<Vec<Identity>>,
    /// The devices of ours that there are now.
    devices: Option<Devices>,
    claim: ClaimState,
}

/// Where our claim stands.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ClaimState {
    in_flight: bool,
    /// The store granted the last one in this run.
    confirmed: bool,
    /// When the lease ends.
    expires: Option<Tick>,
    /// When to try again what failed; before that nothing is claimed.
    retry: Option<Tick>,
    /// When what somebody undid is claimed again; another claim does not wait for it.
    paced: Option<Tick>,
    failures: u32,
    /// When a claim last succeeded, and from when on the same may be made again.
    held_at: Tick,
    not_before: Tick,
    /// What was last claimed, and whether that was because somebody had undone it.
    wish: Option<(PublicAddrs, BackendAttrs)>,
    undone: bool,
    problem: Option<String>,
    /// The addresses that we published in this run.
    published: Vec<PublicAddrs>,
    /// The address that our lease showed before our first claim of this run.
    replaced: Option<PublicAddrs>,
    contest: Contest,
}

/// Another host that publishes our lease as its own, under our name: a cloned machine.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Contest {
    flips: u32,
    last: Tick,
    /// What it is, and the way out.
    sentence: Option<String>,
    /// It was there first: we leave the lease to it.
    lost: bool,
}

impl ClaimState {
    /// A changed wish is claimed at once, and so is the first claim after a calm time. A lease that somebody keeps changing back
    /// is claimed again with back-off.
    fn succeeded(&mut self, now: Tick) {
        let calm = !self.undone || now.saturating_sub(self.held_at) > CALM;
        self.failures = if calm { 0 } else { self.failures + 1 };
        self.not_before = if calm { now } else { now + self.pause() };
        self.held_at = now;
        self.problem = None;
        self.confirmed = true;
    }

    fn failed(&mut self, now: Tick) {
        self.failures += 1;
        self.retry = Some(now + self.pause());
    }

    fn pause(&self) -> Duration {
        RETRY_FIRST.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(RETRY_LAST)
    }

    fn renewal(&self, margin: Duration) -> Option<Tick> {
        self.expires.map(|at| at.saturating_sub(margin))
    }
}

impl Publication {
    /// What an earlier run left in subnet.env.
    pub(super) fn remember(&mut self, env: SubnetEnv) {
        self.remembered = Some(env);
    }

    /// Uses the subnets of an earlier run, while the store can't be asked.
    pub(super) fn own_by_memory(&mut self, subnets: Subnets) {
        self.own = Some(subnets);
    }

    /// When to look at the claim again.
    pub(super) fn next(&self, margin: Duration) -> Tick {
        let claim = &self.claim;
        if claim.in_flight {
            return Tick::MAX;
        }
        claim.retry.or(claim.paced).or_else(|| claim.renewal(margin)).unwrap_or(Tick::MAX)
    }

    /// When the lease ends; none for a reservation.
    pub(super) fn ends(&self) -> Option<Tick> {
        self.claim.expires
    }

    /// Our subnets, once claimed.
    pub(super) fn own(&self) -> Option<Subnets> {
        self.own
    }

    /// What peers know our backends by, once settled.
    pub(super) fn identities(&self) -> Option<&[Identity]> {
        self.identities.as_deref()
    }

    /// What an earlier run left in subnet.env.
    pub(super) fn remembered(&self) -> Option<&SubnetEnv> {
        self.remembered.as_ref()
    }

    /// Why we hold no lease.
    pub(super) fn problem(&self) -> Option<&String> {
        self.claim.problem.as_ref()
    }

    /// What is known of another host that publishes our lease.
    pub(super) fn contest(&self) -> Option<&String> {
        self.claim.contest.sentence.as_ref()
    }

    /// Whether a lease is ours, or publishes what ours does: only such can be a cloned machine's.
    pub(super) fn concerns(&self, lease: &Lease) -> bool {
        self.own == Some(lease.subnets)
            || self.claim.wish.as_ref().is_some_and(|(_, attrs)| *attrs == lease.attrs)
    }

    /// An operator made the lease a reservation, or gave a reservation its end again: a new claim finds out how long it
    /// lasts now.
    pub(super) fn note_reservation(&mut self, before: Option<&Lease>, now: Option<&Lease>) {
        if let (Some(before), Some(now)) = (before, now) {
            self.claim.confirmed &= before.ttl.is_some() == now.ttl.is_some();
        }
    }

    /// Our lease shows another address than ours. The first two times that may be a late event. After that another host publishes
    /// it, and the host that had it first keeps it. Returns whether that is the other host.
    fn flipped(&mut self, now: Tick, own: Subnets, theirs: PublicAddrs, node: Option<&str>) -> bool {
        let Some((ours, _)) = &self.claim.wish else { return false };
        let (ours, contest) = (*ours, &mut self.claim.contest);
        let again = now.saturating_sub(contest.last) <= CALM;
        contest.flips = if again { contest.flips + 1 } else { 1 };
        contest.last = now;
        if contest.flips < FLIPS || contest.lost {
            return false;
        }
        contest.lost = self.claim.replaced == Some(theirs);
        let end = if contest.lost { "this one leaves it" } else { "this one keeps it, being there first" };
        let name = node.map_or_else(String::new, |node| format!(" under our name {node:?}"));
        let sentence = format!(
            "two hosts publish the lease {own}, {theirs} and this one at {ours}{name}: {end}; most likely one was cloned \
             from the other: give the clone a host name of its own (or --node-id), remove its state file, and restart it"
        );
        if contest.sentence.as_ref() != Some(&sentence) {
            warn!("{sentence}");
        }
        contest.sentence = Some(sentence);
        contest.lost
    }

    /// Whether a claim may be made now.
    fn may_claim(&mut self, now: Tick) -> bool {
        let contest = &mut self.claim.contest;
        if !contest.lost && contest.last + SHOWN < now {
            contest.sentence = None;
        }
        if self.claim.in_flight || self.claim.retry.is_some_and(|at| at > now) {
            return false;
        }
        (self.claim.retry, self.claim.paced) = (None, None);
        true
    }

    /// Whether this claim is made now; if so it counts as made. `shown`: the store shows our lease like this.
    fn begin(&mut self, now: Tick, claim: &Claim, shown: bool, margin: Duration) -> bool {
        let state = &mut self.claim;
        let renew = state.renewal(margin).is_some_and(|at| at <= now);
        if self.own.is_some() && state.confirmed && shown && !renew {
            return false;
        }
        let same = state.wish.as_ref().is_some_and(|w| (&w.0, &w.1) == (&claim.public, &claim.attrs));
        if same && state.not_before > now {
            state.paced = Some(state.not_before);
            return false;
        }
        state.undone = same && state.confirmed && !shown;
        state.confirmed &= same;
        state.wish = Some((claim.public, claim.attrs.clone()));
        if !state.published.contains(&claim.public) {
            state.published.push(claim.public);
        }
        state.in_flight = true;
        true
    }

    /// Chooses what peers know our backends by: before any device is made, and kept from then on. A device that is changed is
    /// put back, not followed. None before the devices are known.
    fn settle(
        &mut self,
        backends: &Backends,
        shown: Option<&Lease>,
        remembered: Option<&Lease>,
        seed: u64,
    ) -> Option<()> {
        if self.identities.is_none() {
            let devices = self.devices.as_ref()?;
            let sources = Sources { shown, devices, remembered, random: random(seed) };
            self.identities = Some(backends.prepare(&sources));
        }
        Some(())
    }

    /// Another identity, that no other host has.
    fn redraw(&mut self, backends: &Backends, seed: u64) {
        let devices = &Devices::default();
        let sources = Sources { shown: None, devices, remembered: None, random: random(!seed) };
        self.identities = Some(backends.prepare(&sources));
    }

    pub(super) fn save<'a>(&'a self, to: &mut Saved<'a>) {
        (to.remembered, to.own) = (self.remembered, self.own);
        (to.identities, to.devices) = (self.identities.clone(), self.devices.clone());
        to.claim = Held::Borrowed(&self.claim);
    }

    pub(super) fn restore(from: &mut Saved<'_>) -> Self {
        Self {
            remembered: from.remembered,
            own: from.own,
            identities: from.identities.take().or_else(|| from.macs.map(|macs| vec![Identity::Macs(macs)])),
            devices: from.devices.take(),
            claim: from.claim.take().unwrap_or_default(),
        }
    }
}

impl NodeCore {
    /// Claims when the store does not show what we would publish, or when the lease is to be renewed.
    pub(super) fn claim_if_due(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if !self.publication.may_claim(now) {
            return;
        }
        let Some(claim) = self.wished_claim() else { return };
        let shown = self.membership.shown();
        let shown = shown.is_some_and(|l| l.public == claim.public && l.attrs == claim.attrs);
        if self.publication.begin(now, &claim, shown, self.settings.renew_margin) {
            self.note_replaced(&claim);
            effects.push(Effect::Claim(Box::new(claim)));
        }
    }

    /// Notes whose address our first claim writes over.
    fn note_replaced(&mut self, claim: &Claim) {
        if self.publication.own.is_some() || self.publication.claim.replaced.is_some() {
            return;
        }
        let there =
            claim.previous.zip(self.membership.peers()).and_then(|(own, peers)| peers.public_of(&own));
        self.publication.claim.replaced = there.filter(|there| *there != claim.public);
    }

    /// The store showed our lease, or one that publishes what ours does: that may be a cloned machine's.
    pub(super) fn look_for_twin(&mut self, now: Tick) {
        let node = self.settings.node.as_deref();
        let (Some(shown), Some(network)) = (self.membership.shown(), self.membership.network()) else {
            return;
        };
        let publication = &mut self.publication;
        let settled = publication.own == Some(shown.subnets) && !publication.claim.in_flight;
        let ours = publication.claim.published.contains(&shown.public);
        if settled && publication.claim.confirmed && !ours && !self.memories.in_use() {
            if publication.flipped(now, shown.subnets, shown.public, node) {
                publication.redraw(&network.backends, self.settings.seed);
            }
        } else if let Some((_, attrs)) = publication.claim.wish.clone() {
            self.leave_twins_identity(&attrs);
        }
    }

    /// Takes another identity if one that was there before us has the one in these attributes. Returns whether it did.
    fn leave_twins_identity(&mut self, attrs: &BackendAttrs) -> bool {
        let (Some(network), Some(peers)) = (self.membership.network(), self.membership.peers()) else {
            return false;
        };
        let epoch = self.membership.shown().map_or(u64::MAX, |lease| lease.epoch);
        let twin = peers.earlier_twin(attrs, self.settings.node.as_deref(), epoch);
        if let Some((subnets, name, public)) = twin {
            warn!(
                "node {name:?} at {public} ({subnets}) publishes what only one host may have, and did before us: this machine \
                 was cloned from that one; taking another identity"
            );
            self.publication.redraw(&network.backends, self.settings.seed);
        }
        twin.is_some()
    }

    /// None while what it takes is not known.
    fn wished_claim(&mut self) -> Option<Claim> {
        self.membership.peers()?;
        let settled = self.publication.identities.is_some();
        let backends = &self.membership.network()?.backends;
        let (shown, recalled) = (self.membership.shown(), self.memories.own());
        self.publication.settle(backends, shown, recalled, self.settings.seed)?;
        if self.memories.in_use() {
            // The store can't be asked; with the identities known, all is known that a pass needs.
            if !settled {
                self.pass.mark_fresh();
            }
            return None;
        }
        let mut attrs = self.wished_attributes()?;
        if !settled && self.leave_twins_identity(&attrs) {
            attrs = self.wished_attributes()?;
        }
        let (network, external) = (self.membership.network()?, self.underlay.external()?);
        let (shown, recalled) = (self.membership.shown(), self.memories.own());
        let publication = &self.publication;
        let remembered = || publication.remembered.as_ref().and_then(SubnetEnv::leased);
        let previous = publication.own.or_else(|| shown.map(|l| l.subnets)).or_else(remembered);
        let previous =
            previous.or_else(|| recalled.map(|l| l.subnets)).or_else(|| self.lease_of_our_devices());
        Some(Claim {
            public: external.public,
            attrs,
            previous: previous.filter(|_| !publication.claim.contest.lost),
            network: network.config.clone(),
            avoid: self.outside(previous),
            node: self.settings.node.clone(),
        })
    }

    fn wished_attributes(&self) -> Option<BackendAttrs> {
        let (network, external) = (self.membership.network()?, self.underlay.external()?);
        Some(network.backends.attributes(&network.config, external, self.publication.identities()?))
    }

    /// The lease that publishes what our devices have: ours from before the host got another address. Without it we
    /// would take a second lease, and the others refuse that one for its address until the first runs out.
    fn lease_of_our_devices(&self) -> Option<Subnets> {
        let (network, devices) = (self.membership.network()?, self.publication.devices.as_ref()?);
        let mut peers = self.membership.peers()?.peers();
        peers.find(|peer| network.backends.is_ours(devices, peer)).map(|peer| peer.key())
    }

    /// Notes what devices are already there.
    pub(super) fn note_devices(&mut self, own: &Own) {
        let Some(network) = self.membership.network() else { return };
        self.publication.devices = Some(Devices::of(&own.state, &network.backends.links()));
    }

    pub(super) fn claimed(
        &mut self,
        now: Tick,
        result: Result<OwnLease, StoreError>,
        effects: &mut Vec<Effect>,
    ) {
        self.publication.claim.in_flight = false;
        match result {
            Ok(own) => self.hold(now, own, effects),
            Err(error) => self.claim_failed(now, &error, effects),
        }
    }

    fn hold(&mut self, now: Tick, OwnLease { lease, expires_in }: OwnLease, effects: &mut Vec<Effect>) {
        let publication = &mut self.publication;
        if let Some(lost) = publication.own.filter(|lost| *lost != lease.subnets) {
            // The store gave us another one. Running pods keep the old one in the kernel; new pods get a clear error
            // until a supervisor starts us into the new claim.
            publication.claim.failed(now);
            let reason = self.lost(lost, &lease);
            self.ending = Some(reason.clone());
            effects.push(Effect::Withdraw(reason));
            return effects.push(Effect::Exit(Exit::LeaseLost));
        }
        if publication.own.is_none() {
            info!(subnets = %lease.subnets, public = %lease.public, "lease held");
        }
        publication.own = Some(lease.subnets);
        publication.claim.expires = expires_in.map(|left| now + left);
        publication.claim.succeeded(now);
        self.memories.granted(now, lease.clone());
        self.membership.granted(lease);
        self.pass.mark_fresh();
    }

    /// Who has our subnets now, and what we have instead.
    fn lost(&self, lost: Subnets, now_held: &Lease) -> String {
        let name = |lease: &Lease| {
            let node = lease.node.as_deref().unwrap_or("without a name");
            format!("node {node} at {}", lease.public)
        };
        let other = |lease: &&Lease| lease.subnets == lost && lease.public != now_held.public;
        let holder = self.membership.shown().filter(other);
        let holder = holder.map_or_else(|| "another host".to_owned(), name);
        let why = self.publication.contest().map(|sentence| format!(" ({sentence})")).unwrap_or_default();
        format!(
            "the lease of {lost} went to {holder}; this one, {}, now holds {}{why}",
            name(now_held),
            now_held.subnets
        )
    }

    fn claim_failed(&mut self, now: Tick, error: &StoreError, effects: &mut Vec<Effect>) {
        let sentence = error.to_string();
        if error.class() == Class::Fatal {
            return self.end(Exit::Invalid, sentence, effects);
        }
        let claim = &mut self.publication.claim;
        if claim.problem.as_ref() != Some(&sentence) {
            warn!("lease not held yet: {sentence}");
        }
        claim.problem = Some(sentence);
        claim.failed(now);
    }
}

/// Two numbers from a seed.
fn random(seed: u64) -> [u64; 2] {
    let first = mix(seed);
    [first, mix(first)]
}
