//! `/metrics`: what `flannelctl status` tells, as numbers, in the OpenMetrics text form. Pure.
//!
//! Made anew for each request from one [`Status`]: nothing is counted for it, and a daemon that nobody asks pays nothing.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::core::{PassReport, Status};
use crate::host::pool::Pool;

/// Begins every name.
const PREFIX: &str = "flanneld";

/// A number of the node itself: name, help, value.
type Gauge = (&'static str, &'static str, fn(&Status) -> u64);

const GAUGES: [Gauge; 10] = [
    ("ready", "Whether pods can start here and reach the others", |s| s.ready.into()),
    ("mtu", "MTU for pods in bytes, 0 while unknown", |s| s.mtu.unwrap_or(0).into()),
    ("peers", "Peers that are admitted", |s| count(s.peers)),
    ("peers_vanished", "Of them, those that the store shows no more and that are kept for a while", |s| {
        count(s.vanished)
    }),
    ("leases_refused", "Leases of the store that are not believed", |s| count(s.refused_count)),
    ("store_stale", "Whether what the store shows is not up to date", |s| s.stale.is_some().into()),
    ("memory_missing", "Whether nothing is remembered for a start without the store", |s| {
        s.unremembered.is_some().into()
    }),
    ("contended", "Objects that somebody keeps changing back", |s| count(s.contended_count)),
    ("conflicts", "Peers that this backend can't reach", |s| count(s.conflicts.len())),
    ("pass_failed_steps", "Steps of the last pass that failed", |s| {
        s.last_pass.as_ref().map_or(0, |pass| count(pass.failed))
    }),
];

const COUNTERS: [Gauge; 2] = [
    ("passes", "Passes begun since the start", |s| s.passes),
    ("unreadable", "Notifications of the kernel that could not be read, since the start", |s| s.unreadable),
];

/// The content type of what [`text`] makes.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The whole answer; an error only if memory can't be written to.
pub(crate) fn text(status: Status, pools: Vec<Pool>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Told { status, pools }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Told {
    status: Status,
    pools: Vec<Pool>,
}

impl Collector for Told {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let status = &self.status;
        for (name, help, value) in GAUGES {
            let number = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value(status)).encode(number)?;
        }
        for (name, help, value) in COUNTERS {
            let number = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value(status)).encode(number)?;
        }
        self.seconds(&mut to)?;
        self.drift(&mut to)?;
        self.addresses(&mut to, "addresses_held", "Pod addresses of this node that are held", |pool| {
            pool.used
        })?;
        self.addresses(&mut to, "addresses", "Pod addresses that this node has", |pool| pool.size)
    }
}

impl Told {
    fn seconds(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stale = self.status.stale.as_ref().map_or(0.0, |stale| seconds(stale.for_ms, 1e3));
        let pass = self.status.last_pass.as_ref();
        let of_pass = |value: fn(&PassReport) -> f64| pass.map_or(0.0, value);
        for (name, help, value) in [
            ("store_stale", "For how long what the store shows has not been up to date", stale),
            ("pass", "How long the last pass took", of_pass(|pass| seconds(pass.took_us, 1e6))),
            ("pass_age", "How long ago the last pass began", of_pass(|pass| seconds(pass.ago_ms, 1e3))),
        ] {
            let number = to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
            ConstGauge::new(value).encode(number)?;
        }
        Ok(())
    }

    fn drift(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Objects found changed by somebody else and put right, since the start";
        let mut all = to.encode_descriptor("drift", help, None, MetricType::Counter)?;
        for (kind, count) in &self.status.drift {
            ConstCounter::new(*count).encode(all.encode_family(&[("kind", kind.as_str())])?)?;
        }
        Ok(())
    }

    fn addresses(
        &self,
        to: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: fn(&Pool) -> u64,
    ) -> fmt::Result {
        let mut all = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for pool in &self.pools {
            let labels = [("network", pool.network.as_str()), ("subnet", pool.subnet.as_str())];
            ConstGauge::new(value(pool)).encode(all.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "beyond 2^52 nobody counts milliseconds")]
fn seconds(number: u64, in_a_second: f64) -> f64 {
    number as f64 / in_a_second
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Stale;

    fn said(status: Status) -> String {
        let pool =
            Pool { network: "cbr0".to_owned(), subnet: "10.42.7.0/24".to_owned(), used: 12, size: 253 };
        text(status, vec![pool]).unwrap()
    }

    #[test]
    fn every_number_of_a_troubled_node_is_told() {
        let text = said(Status {
            peers: 3,
            vanished: 1,
            refused_count: 250,
            stale: Some(Stale { for_ms: 65_500, reason: "no store answers".to_owned() }),
            passes: 12,
            last_pass: Some(PassReport { ago_ms: 3000, failed: 2, took_us: 2100, ..PassReport::default() }),
            drift: vec![("route".to_owned(), 3)],
            ..Status::default()
        });
        for line in [
            "flanneld_ready 0",
            "flanneld_peers 3",
            "flanneld_peers_vanished 1",
            "flanneld_leases_refused 250",
            "flanneld_store_stale 1",
            "flanneld_store_stale_seconds 65.5",
            "flanneld_passes_total 12",
            "flanneld_pass_failed_steps 2",
            "flanneld_pass_seconds 0.0021",
            "flanneld_drift_total{kind=\"route\"} 3",
            "flanneld_addresses_held{network=\"cbr0\",subnet=\"10.42.7.0/24\"} 12",
            "flanneld_addresses{network=\"cbr0\",subnet=\"10.42.7.0/24\"} 253",
        ] {
            assert!(text.lines().any(|has| has == line), "{line} in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn no_name_is_told_twice_and_no_text_of_others_breaks_a_line() {
        let drift = vec![("ro\"ute\n".to_owned(), 1)];
        let text = said(Status { ready: true, drift, ..Status::default() });
        let mut names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "{text}");
        assert!(text.contains("flanneld_drift_total{kind=\"ro\\\"ute\\n\"} 1\n"), "{text}");
    }
}
