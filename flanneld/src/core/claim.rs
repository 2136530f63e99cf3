//! What we publish is a wish too: our lease as we would have it, compared with what the store shows.

use std::time::Duration;

use backends::kernel::Own;
use backends::{Devices, Sources};
use serde::{Deserialize, Serialize};
use subnet_lease::{
    BackendAttrs, Claim, Class, Lease, OwnLease, PublicAddrs, StoreError, SubnetEnv, Subnets,
};
use tracing::{info, warn};

use super::pace::mix;
use super::{Effect, NodeCore, Tick};
use crate::exit::Exit;

/// First pause after a claim that failed; doubles to [`RETRY_LAST`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// A lease held for this long was not taken away by somebody who keeps doing so.
const CALM: Duration = Duration::from_secs(10);

/// Where our claim stands.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ClaimState {
    in_flight: bool,
    /// The store granted the last one in this run.
    confirmed: bool,
    /// When the lease ends.
    expires: Option<Tick>,
    /// When to try again what failed; before that nothing is claimed.
    retry: Option<Tick>,
    /// When what somebody undid is claimed again; another claim does not wait for it.
    #[serde(default)]
    paced: Option<Tick>,
    failures: u32,
    /// When a claim last succeeded, and from when on the same may be made again.
    held_at: Tick,
    not_before: Tick,
    /// What was last claimed, and whether that was because somebody had undone it.
    #[serde(default)]
    wish: Option<(PublicAddrs, BackendAttrs)>,
    #[serde(default)]
    undone: bool,
    pub(super) problem: Option<String>,
}

impl ClaimState {
    /// When to look at the claim again.
    pub(super) fn next(&self, margin: Duration) -> Tick {
        if self.in_flight {
            return Tick::MAX;
        }
        self.retry.or(self.paced).or_else(|| self.renewal(margin)).unwrap_or(Tick::MAX)
    }

    /// A wish of ours that changed is told at once, and so is the first claim after a calm time; what somebody undoes
    /// again and again is claimed again ever more slowly.
    fn succeeded(&mut self, now: Tick) {
        let calm = !self.undone || now.saturating_sub(self.held_at) > CALM;
        self.failures = if calm { 0 } else { self.failures + 1 };
        self.not_before = if calm { now } else { now + self.pause() };
        self.held_at = now;
        self.problem = None;
        self.confirmed = true;
    }

    /// An operator made the lease a reservation, or gave a reservation its end again: a new claim finds out how long it
    /// lasts now.
    pub(super) fn note_reservation(&mut self, before: Option<&Lease>, now: Option<&Lease>) {
        if let (Some(before), Some(now)) = (before, now) {
            self.confirmed &= before.ttl.is_some() == now.ttl.is_some();
        }
    }

    fn failed(&mut self, now: Tick) {
        self.failures += 1;
        self.retry = Some(now + self.pause());
    }

    fn pause(&self) -> Duration {
        RETRY_FIRST.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(RETRY_LAST)
    }

    /// When the lease ends; none for a reservation.
    pub(super) fn ends(&self) -> Option<Tick> {
        self.expires
    }

    fn renewal(&self, margin: Duration) -> Option<Tick> {
        self.expires.map(|at| at.saturating_sub(margin))
    }
}

impl NodeCore {
    /// Claims when the store does not show what we would publish, or when the lease is to be renewed.
    pub(super) fn claim_if_due(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if self.claim.in_flight || self.claim.retry.is_some_and(|at| at > now) {
            return;
        }
        (self.claim.retry, self.claim.paced) = (None, None);
        let Some(claim) = self.wished_claim() else { return };
        let shown = self.leases.shown.as_ref();
        let as_wished = |l: &Lease| l.public == claim.public && l.attrs == claim.attrs;
        let renew = self.claim.renewal(self.settings.renew_margin).is_some_and(|at| at <= now);
        if self.own.is_some() && self.claim.confirmed && shown.is_some_and(as_wished) && !renew {
            return;
        }
        let same = self.claim.wish.as_ref().is_some_and(|w| (&w.0, &w.1) == (&claim.public, &claim.attrs));
        if same && self.claim.not_before > now {
            self.claim.paced = Some(self.claim.not_before);
            return;
        }
        self.claim.undone = same && self.claim.confirmed && !shown.is_some_and(as_wished);
        self.claim.confirmed &= same;
        self.claim.wish = Some((claim.public, claim.attrs.clone()));
        self.claim.in_flight = true;
        effects.push(Effect::Claim(Box::new(claim)));
    }

    /// None while what it takes is not known.
    fn wished_claim(&mut self) -> Option<Claim> {
        self.peers.as_ref()?;
        let settled = self.identities.is_some();
        self.settle_identities()?;
        if self.memories.in_use {
            // There is nobody to ask; with the identities known, all is known that a pass needs.
            if !settled {
                self.pace.mark_fresh();
            }
            return None;
        }
        let (network, external) = (self.network.as_ref()?, self.external.as_ref()?);
        let identities = self.identities.as_ref()?;
        let remembered = || self.remembered.as_ref().and_then(SubnetEnv::leased);
        let shown = || self.leases.shown.as_ref().map(|l| l.subnets);
        let recalled = || self.memories.own.as_ref().map(|l| l.subnets);
        Some(Claim {
            public: external.public,
            attrs: network.backends.attributes(&network.config, external, identities),
            previous: self
                .own
                .or_else(shown)
                .or_else(remembered)
                .or_else(recalled)
                .or_else(|| self.lease_of_our_devices()),
            network: network.config.clone(),
            avoid: self.outside(),
            node: self.settings.node.clone(),
        })
    }

    /// The lease that publishes what our devices have: ours from before the host got another address. Without it we
    /// would take a second lease, and the others refuse that one for its address until the first runs out.
    fn lease_of_our_devices(&self) -> Option<Subnets> {
        let (network, devices) = (self.network.as_ref()?, self.devices.as_ref()?);
        self.peers
            .as_ref()?
            .peers()
            .find(|peer| network.backends.is_ours(devices, peer))
            .map(|peer| peer.key())
    }

    /// What peers know our backends by. It is chosen before any device is made, and kept from then on: a device that is
    /// changed is put back, not followed.
    fn settle_identities(&mut self) -> Option<()> {
        if self.identities.is_none() {
            let first = mix(self.settings.seed);
            let sources = Sources {
                shown: self.leases.shown.as_ref(),
                devices: self.devices.as_ref()?,
                remembered: self.memories.own.as_ref(),
                random: [first, mix(first)],
            };
            self.identities = Some(self.network.as_ref()?.backends.prepare(&sources));
        }
        Some(())
    }

    /// Notes what devices are already there.
    pub(super) fn note_devices(&mut self, own: &Own) {
        let Some(network) = &self.network else { return };
        self.devices = Some(Devices::of(&own.state, &network.backends.links()));
    }

    pub(super) fn claimed(
        &mut self,
        now: Tick,
        result: Result<OwnLease, StoreError>,
        effects: &mut Vec<Effect>,
    ) {
        self.claim.in_flight = false;
        match result {
            Ok(own) => self.hold(now, own, effects),
            Err(error) => self.claim_failed(now, &error, effects),
        }
    }

    fn hold(&mut self, now: Tick, own: OwnLease, effects: &mut Vec<Effect>) {
        if let Some(lost) = self.own.filter(|lost| *lost != own.lease.subnets) {
            // The store gave us another one. Running pods keep the old one in the kernel; new pods get a clear error
            // until a supervisor starts us into the new claim.
            let reason = self.lost(lost, &own.lease);
            self.claim.failed(now);
            self.ending = Some(reason.clone());
            effects.push(Effect::Withdraw(reason));
            return effects.push(Effect::Exit(Exit::LeaseLost));
        }
        if self.own.is_none() {
            info!(subnets = %own.lease.subnets, public = %own.lease.public, "lease held");
            self.own = Some(own.lease.subnets);
            if let Some(peers) = &mut self.peers {
                peers.set_own(self.own, own.lease.public);
            }
        }
        if let Some(peers) = &mut self.peers {
            peers.upsert(own.lease.clone());
        }
        self.claim.expires = own.expires_in.map(|left| now + left);
        self.claim.succeeded(now);
        self.leases.shown = Some(own.lease);
        self.remember_soon(now);
        self.pace.mark_fresh();
    }

    /// Who has our subnets now, and what we have instead.
    fn lost(&self, lost: Subnets, now_held: &Lease) -> String {
        let name = |lease: &Lease| {
            let node = lease.node.as_deref().unwrap_or("without a name");
            format!("node {node} at {}", lease.public)
        };
        let other = |lease: &&Lease| lease.subnets == lost && lease.public != now_held.public;
        let holder = self.leases.shown.as_ref().filter(other);
        let holder = holder.map_or_else(|| "another host".to_owned(), name);
        format!(
            "the lease of {lost} went to {holder}; this one, {}, now holds {}",
            name(now_held),
            now_held.subnets
        )
    }

    fn claim_failed(&mut self, now: Tick, error: &StoreError, effects: &mut Vec<Effect>) {
        let sentence = error.to_string();
        if error.class() == Class::Fatal {
            return self.end(Exit::Invalid, sentence, effects);
        }
        if self.claim.problem.as_ref() != Some(&sentence) {
            warn!("lease not held yet: {sentence}");
        }
        self.claim.problem = Some(sentence);
        self.claim.failed(now);
    }
}
