//! `/metrics`: what `flannelctl status` reports, as numbers, in Prometheus' text format or as OpenMetrics. Pure.
//!
//! Made for each request from one [`Status`]: nothing is counted for it, and without requests it costs nothing.

use std::fmt::Write as _;
use std::time::Duration;

use crate::core::{PASS_BOUNDS_US, PassReport, Status};
use crate::host::pool::Pool;

/// Begins every name.
const PREFIX: &str = "flanneld";

/// How the numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus' own, which everything reads.
    Text,
    OpenMetrics,
}

impl Format {
    /// What a client accepts: OpenMetrics only where it prefers that, by the numbers after `q=`.
    pub(crate) fn accepted(accept: &str) -> Self {
        let (mut text, mut open) = (0.0_f32, 0.0_f32);
        for part in accept.split(',') {
            let mut words = part.split(';').map(str::trim);
            let kind = words.next().unwrap_or_default();
            let quality = words.find_map(|word| word.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
            match kind {
                "application/openmetrics-text" => open = open.max(quality),
                "text/plain" | "text/*" | "*/*" => text = text.max(quality),
                _ => {}
            }
        }
        if open > text { Self::OpenMetrics } else { Self::Text }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A metric with its numbers.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
}

/// One number: what follows the metric's name, labels, value.
type Sample = (&'static str, Vec<(&'static str, String)>, f64);

/// A number of the node itself: name, help, value.
type Number = (&'static str, &'static str, fn(&Status) -> f64);

const GAUGES: [Number; 12] = [
    ("ready", "Whether pods can start here and reach the other hosts.", |s| truth(s.ready)),
    ("mtu_bytes", "MTU for pods, 0 while unknown.", |s| s.mtu.unwrap_or(0).into()),
    ("peers", "Peers that are admitted.", |s| count(s.peers)),
    ("peers_vanished", "Admitted peers that the store no longer shows and that are kept for a while.", |s| {
        count(s.vanished)
    }),
    ("leases_refused", "Leases of the store that are refused.", |s| count(s.refused_count)),
    ("store_stale", "Whether the store's answers are out of date.", |s| truth(s.stale.is_some())),
    ("memory_missing", "Whether nothing is remembered for a start without the store.", |s| {
        truth(s.unremembered.is_some())
    }),
    ("contended", "Objects that another program keeps changing back.", |s| count(s.contended_count)),
    ("conflicts", "Peers that this backend can't reach.", |s| count(s.conflicts.len())),
    ("pass_failed_steps", "Steps of the last pass that failed.", |s| {
        s.last_pass.as_ref().map_or(0.0, |pass| count(pass.failed))
    }),
    ("cni_rivals", "Folders where a CNI configuration comes before ours.", |s| {
        count(s.rival_conflists.len())
    }),
    ("store_stale_seconds", "Time since the store's answers were up to date.", |s| {
        s.stale.as_ref().map_or(0.0, |stale| seconds(stale.for_ms, 1e3))
    }),
];

const COUNTERS: [Number; 2] = [
    ("passes", "Passes begun since the start.", |s| float(s.passes)),
    ("unreadable", "Notifications of the kernel that could not be read, since the start.", |s| {
        float(s.unreadable)
    }),
];

/// The whole answer. `wall` is the time since 1970.
pub(crate) fn text(status: &Status, pools: &[Pool], wall: Duration, format: Format) -> String {
    let mut text = String::new();
    for metric in metrics(status, pools, wall) {
        metric.write(&mut text, format);
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

fn metrics(status: &Status, pools: &[Pool], wall: Duration) -> Vec<Metric> {
    let number = |kind| {
        move |(name, help, value): Number| Metric {
            name,
            help,
            kind,
            samples: vec![("", vec![], value(status))],
        }
    };
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    let mut all = vec![Metric {
        name: "build_info",
        help: "The version of this daemon; always 1.",
        kind: Kind::Gauge,
        samples: vec![("", version, 1.0)],
    }];
    all.extend(GAUGES.map(number(Kind::Gauge)));
    all.extend(COUNTERS.map(number(Kind::Counter)));
    all.extend(lease(status, wall));
    all.extend([age(status), passes(status), drift(status)]);
    let of_pools = |name, help, value: fn(&Pool) -> u64| {
        let labels = |pool: &Pool| vec![("network", pool.network.clone()), ("subnet", pool.subnet.clone())];
        let samples = pools.iter().map(|pool| ("", labels(pool), float(value(pool)))).collect();
        Metric { name, help, kind: Kind::Gauge, samples }
    };
    all.push(of_pools("addresses_held", "Pod addresses of this node that are held.", |pool| pool.used));
    all.push(of_pools("addresses", "Pod addresses that this node has.", |pool| pool.size));
    all
}

/// Absent before there is a lease, and for a reservation, which has no end.
fn lease(status: &Status, wall: Duration) -> Option<Metric> {
    let left = status.lease.as_ref()?.left_ms?;
    let end = (wall + Duration::from_millis(left)).as_secs_f64();
    Some(Metric {
        name: "lease_expiry_timestamp_seconds",
        help: "When this node's lease ends unless it is renewed, in seconds since 1970.",
        kind: Kind::Gauge,
        samples: vec![("", vec![], end.round())],
    })
}

fn age(status: &Status) -> Metric {
    let age = |pass: &PassReport| seconds(pass.ago_ms, 1e3);
    Metric {
        name: "pass_age_seconds",
        help: "Time since the last pass began.",
        kind: Kind::Gauge,
        samples: vec![("", vec![], status.last_pass.as_ref().map_or(0.0, age))],
    }
}

fn passes(status: &Status) -> Metric {
    let times = &status.pass_times;
    let mut total = 0;
    let mut samples: Vec<Sample> = Vec::new();
    for (bound, passes) in PASS_BOUNDS_US.iter().zip(times.counts) {
        total += passes;
        samples.push(("_bucket", vec![("le", format!("{:?}", seconds(*bound, 1e6)))], float(total)));
    }
    total += times.longer;
    samples.push(("_bucket", vec![("le", "+Inf".to_owned())], float(total)));
    samples.push(("_sum", vec![], seconds(times.sum_us, 1e6)));
    samples.push(("_count", vec![], float(total)));
    let help = "How long passes took, from the first read to the kernel's last answer.";
    Metric { name: "pass_duration_seconds", help, kind: Kind::Histogram, samples }
}

fn drift(status: &Status) -> Metric {
    let sample = |(kind, count): &(String, u64)| ("", vec![("kind", kind.clone())], float(*count));
    Metric {
        name: "drift",
        help: "Objects found changed by another program and repaired, since the start.",
        kind: Kind::Counter,
        samples: status.drift.iter().map(sample).collect(),
    }
}

impl Metric {
    /// A counter's name ends with `_total`. OpenMetrics leaves that out where it describes the metric, the text format does not.
    fn write(&self, text: &mut String, format: Format) {
        let (kind, ending) = match self.kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
            Kind::Histogram => ("histogram", ""),
        };
        let name = format!("{PREFIX}_{}", self.name);
        let described = if format == Format::Text { format!("{name}{ending}") } else { name.clone() };
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {described} {}", self.help);
        let _ = writeln!(text, "# TYPE {described} {kind}");
        for (suffix, labels, value) in &self.samples {
            let labels: Vec<_> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "{name}{ending}{suffix}{labels} {value}");
        }
    }
}

/// A label's value is text of others.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn truth(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

fn count(number: usize) -> f64 {
    float(u64::try_from(number).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "every number of this format is a float")]
fn float(number: u64) -> f64 {
    number as f64
}

fn seconds(number: u64, in_a_second: f64) -> f64 {
    float(number) / in_a_second
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{LeaseReport, PassTimes, Stale};

    fn numbers(status: &Status, format: Format) -> String {
        let pool =
            Pool { network: "cbr0".to_owned(), subnet: "10.42.7.0/24".to_owned(), used: 12, size: 253 };
        text(status, &[pool], Duration::from_secs(1_000_000), format)
    }

    fn troubled() -> Status {
        Status {
            peers: 3,
            vanished: 1,
            refused_count: 250,
            stale: Some(Stale { for_ms: 65_500, reason: "no store answers".to_owned() }),
            passes: 12,
            last_pass: Some(PassReport { ago_ms: 3000, failed: 2, took_us: 2100, ..PassReport::default() }),
            pass_times: PassTimes { counts: [4, 0, 2, 0, 0, 0, 0, 0], longer: 1, sum_us: 12_500_000 },
            drift: vec![("route".to_owned(), 3)],
            lease: Some(LeaseReport { left_ms: Some(60_000), renewal_ms: None }),
            rival_conflists: vec!["in /etc/cni/net.d".to_owned()],
            ..Status::default()
        }
    }

    #[test]
    fn every_number_of_a_troubled_node_is_in_both_formats() {
        for format in [Format::Text, Format::OpenMetrics] {
            let text = numbers(&troubled(), format);
            for line in [
                concat!("flanneld_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
                "flanneld_ready 0",
                "flanneld_peers 3",
                "flanneld_peers_vanished 1",
                "flanneld_leases_refused 250",
                "flanneld_store_stale 1",
                "flanneld_store_stale_seconds 65.5",
                "flanneld_passes_total 12",
                "flanneld_pass_failed_steps 2",
                "flanneld_pass_age_seconds 3",
                "flanneld_pass_duration_seconds_bucket{le=\"0.0005\"} 4",
                "flanneld_pass_duration_seconds_bucket{le=\"0.005\"} 6",
                "flanneld_pass_duration_seconds_bucket{le=\"10.0\"} 6",
                "flanneld_pass_duration_seconds_bucket{le=\"+Inf\"} 7",
                "flanneld_pass_duration_seconds_sum 12.5",
                "flanneld_pass_duration_seconds_count 7",
                "flanneld_lease_expiry_timestamp_seconds 1000060",
                "flanneld_cni_rivals 1",
                "flanneld_drift_total{kind=\"route\"} 3",
                "flanneld_addresses_held{network=\"cbr0\",subnet=\"10.42.7.0/24\"} 12",
                "flanneld_addresses{network=\"cbr0\",subnet=\"10.42.7.0/24\"} 253",
            ] {
                assert!(text.lines().any(|has| has == line), "{line} in:\n{text}");
            }
            assert_eq!(text.ends_with("# EOF\n"), format == Format::OpenMetrics, "{text}");
            assert!(text.ends_with('\n'));
        }
    }

    #[test]
    fn a_counter_is_described_by_the_name_that_each_format_asks_for() {
        let (text, open) = (numbers(&troubled(), Format::Text), numbers(&troubled(), Format::OpenMetrics));
        assert!(text.contains("# TYPE flanneld_passes_total counter\n"), "{text}");
        assert!(open.contains("# TYPE flanneld_passes counter\n"), "{open}");
    }

    #[test]
    fn every_metric_has_one_help_text_and_no_text_of_others_breaks_a_line() {
        let drift = vec![("ro\"ute\n".to_owned(), 1)];
        let text = numbers(&Status { ready: true, drift, ..troubled() }, Format::Text);
        let names = |mark: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(mark));
            let mut names: Vec<_> =
                lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
            names.sort_unstable();
            names
        };
        let (helps, mut types) = (names("# HELP "), names("# TYPE "));
        assert_eq!(helps, types, "{text}");
        let all = types.len();
        types.dedup();
        assert_eq!(types.len(), all, "{text}");
        assert!(text.contains("flanneld_drift_total{kind=\"ro\\\"ute\\n\"} 1\n"), "{text}");
    }

    #[test]
    fn a_client_gets_the_format_that_it_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.5", Format::Text),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Text),
            ("q=;;,,=", Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}
