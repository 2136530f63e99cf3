//! What the node reports about itself: one value, the whole answer of `flannelctl status`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Fact, LeaseReport, NodeCore, PassTimes, PeerReport, Readiness, Tick};

/// A request for the status, and where its answer goes.
#[derive(Debug)]
pub struct StatusRequest {
    /// How many peers to list.
    pub peers: usize,
    /// Where the answer goes.
    pub answer: tokio::sync::oneshot::Sender<Status>,
}

/// Where the node stands. Spans of time are in milliseconds and end now; a list that could be as long as the cluster
/// is cut at [`LISTED`], and a number beside it is the whole count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether pods can start here and reach the others.
    pub ready: bool,
    /// What the node waits for and what is wrong, also where that does not stop the node.
    pub reasons: Vec<String>,
    /// The node's name, as the store shows it.
    pub node: Option<String>,
    /// The cluster's networks.
    pub networks: Vec<String>,
    /// The backend's name.
    pub backend: Option<String>,
    /// Our own subnets.
    pub subnets: Vec<String>,
    /// The underlay.
    pub external: Option<UnderlayReport>,
    /// The MTU for pods, in bytes.
    pub mtu: Option<u32>,
    /// The program that makes the traffic rules, and why that one.
    #[serde(default)]
    pub traffic_rules: Option<String>,
    /// Every fact that the node uses, with its origin.
    #[serde(default)]
    pub facts: Vec<Fact>,
    /// Our lease, once held.
    #[serde(default)]
    pub lease: Option<LeaseReport>,
    /// Peers that are admitted.
    pub peers: usize,
    /// The first of them, as many as were asked for.
    #[serde(default)]
    pub listed_peers: Vec<PeerReport>,
    /// Of them, those that the store does not show any more and that are kept for a while.
    #[serde(default)]
    pub vanished: usize,
    /// Leases that are refused, all of them counted.
    pub refused_count: usize,
    /// The first of them.
    pub refused: Vec<Refused>,
    /// What keeps the store from being up to date; none while it is.
    pub stale: Option<Stale>,
    /// Passes begun since the start.
    pub passes: u64,
    /// The last pass that ended.
    pub last_pass: Option<PassReport>,
    /// Of the steps that failed in the last pass, the first of each kind.
    pub failures: Vec<FailureReport>,
    /// Objects found changed while nothing of ours or of the store's had changed, by kind, since the start.
    pub drift: Vec<(String, u64)>,
    /// Objects that somebody keeps changing back, all of them counted.
    pub contended_count: usize,
    /// The first of them.
    pub contended: Vec<ContendedReport>,
    /// Peers that this backend can't reach, a sentence each.
    pub conflicts: Vec<String>,
    /// Notifications of the kernel that could not be read, since the start.
    pub unreadable: u64,
    /// Why nothing is remembered for a start without the store.
    #[serde(default)]
    pub unremembered: Option<String>,
    /// How long passes took, since the start.
    #[serde(default)]
    pub pass_times: PassTimes,
    /// CNI configurations that container runtimes take in place of ours, a sentence for each folder.
    #[serde(default)]
    pub rival_conflists: Vec<String>,
    /// What changed in the settings file since the start, which is not in force.
    #[serde(default)]
    pub changed_settings: Option<String>,
}

/// The interface between the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderlayReport {
    /// Its name.
    pub link: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses that count.
    pub local: String,
    /// The addresses published to the peers.
    pub public: String,
    /// Why this one.
    pub why: String,
}

/// A refused lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its key in the store.
    pub lease: String,
    /// Why.
    pub reason: String,
}

/// What the store shows is not up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    /// For so long.
    pub for_ms: u64,
    /// Why.
    pub reason: String,
}

/// A pass that ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassReport {
    /// How long ago it began.
    pub ago_ms: u64,
    /// Objects created.
    pub added: usize,
    /// Objects replaced.
    pub changed: usize,
    /// Objects deleted.
    pub removed: usize,
    /// Steps that failed, those skipped included.
    pub failed: usize,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// Steps that failed for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureReport {
    /// The first of them, as an operator would type it.
    pub line: String,
    /// What the kernel answered.
    pub reason: String,
    /// How many.
    pub count: usize,
}

/// An object that somebody keeps changing back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContendedReport {
    /// Our step, as an operator would type it.
    pub line: String,
    /// For how long it has been so.
    pub for_ms: u64,
    /// How often we put it right.
    pub repairs: u64,
    /// Time until we try again; zero when the object is as we wish it.
    pub again_ms: u64,
    /// Who did it last, as far as the kernel reports.
    pub by: Option<String>,
}

/// How many entries of a list are shown. Ours: what a person reads, and what fits one answer.
pub const LISTED: usize = 100;

impl NodeCore {
    /// Where the node stands now.
    pub fn status(&self, now: Tick) -> Status {
        let Readiness { ready, reasons } = self.judge();
        let (network, external) = (self.membership.network(), self.underlay.external());
        let (peers, last, fights) = (self.membership.peers(), self.pass.last(), self.pass.fights());
        let refused = peers.into_iter().flat_map(|peers| peers.refused());
        Status {
            ready,
            reasons,
            node: self.settings.node.clone(),
            networks: network.iter().flat_map(|n| n.config.pools()).map(|p| p.network.to_string()).collect(),
            subnets: self
                .publication
                .own()
                .iter()
                .flat_map(|own| own.iter())
                .map(|net| net.to_string())
                .collect(),
            external: external.map(|e| UnderlayReport {
                link: e.link.to_string(),
                mtu: e.mtu,
                local: e.local.to_string(),
                public: e.public.to_string(),
                why: self.underlay.why().to_owned(),
            }),
            mtu: network.zip(external).map(|(n, e)| n.backends.mtu(&n.config, e)),
            traffic_rules: self.rules.text(),
            facts: self.known_facts(),
            backend: network.map(|n| n.config.backend.name().to_owned()),
            lease: self.lease_report(now),
            // Made by whoever asks for them.
            listed_peers: Vec::new(),
            peers: peers.map_or(0, |peers| peers.len()),
            vanished: peers.map_or(0, |peers| peers.vanished()),
            refused: refused.take(LISTED).map(|(lease, reason)| Refused { lease, reason }).collect(),
            refused_count: peers.map_or(0, |peers| peers.refused().count()),
            stale: self.membership.stale().map(|(reason, since)| Stale {
                for_ms: millis(now.saturating_sub(since)),
                reason: reason.clone(),
            }),
            passes: self.pass.begun(),
            last_pass: last.report.as_ref().map(|(began, report)| PassReport {
                ago_ms: millis(now.saturating_sub(*began)),
                ..report.clone()
            }),
            failures: last.failures.clone(),
            drift: fights.drift.counts().map(|(kind, count)| (kind.to_owned(), count)).collect(),
            contended_count: fights.contended(now),
            contended: fights.reports(now),
            conflicts: last.conflicts.iter().take(LISTED).cloned().collect(),
            // The shell counts what it could not read, and knows what it could not write.
            unreadable: 0,
            unremembered: None,
            pass_times: last.times,
            rival_conflists: Vec::new(),
            changed_settings: None,
        }
    }
}

/// Whole milliseconds.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
