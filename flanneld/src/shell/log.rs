//! Where the log goes, and how much of it.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Our crates; of others only warnings are logged.
const OURS: [&str; 3] = ["flanneld", "backends", "subnet_lease"];

/// Starts logging to standard error. `RUST_LOG` can choose more than flannel's `-v`, and replaces it. Colour is for
/// terminals only. The journal adds the time itself.
pub fn start(verbosity: i64) {
    let chosen = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = EnvFilter::builder().parse_lossy(chosen.unwrap_or_else(|| directives(verbosity)));
    let terminal = stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colour).with_target(verbosity > 0);
    // A second start in one process keeps the first.
    let journal = !terminal && std::env::var_os("JOURNAL_STREAM").is_some();
    let _ = if journal { log.without_time().try_init() } else { log.try_init() };
}

fn directives(verbosity: i64) -> String {
    let level = match verbosity {
        i64::MIN..=0 => "info",
        1..=5 => "debug",
        _ => "trace",
    };
    let ours: Vec<_> = OURS.iter().map(|name| format!("{name}={level}")).collect();
    format!("warn,{}", ours.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_grows_with_the_number_and_only_for_our_own_crates() {
        assert_eq!(directives(-1), "warn,flanneld=info,backends=info,subnet_lease=info");
        assert_eq!(directives(3), "warn,flanneld=debug,backends=debug,subnet_lease=debug");
        assert_eq!(directives(10), "warn,flanneld=trace,backends=trace,subnet_lease=trace");
    }
}
