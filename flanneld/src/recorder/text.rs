//! Records as lines for people.

use std::fmt::{self, Write as _};
use std::time::Duration;

use backends::kernel::Touch;

use super::{Did, InputRecord};

const DAY: u64 = 86_400;

impl fmt::Display for InputRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("due"),
            Self::Remembered(env) => match env.leased() {
                Some(subnets) => write!(f, "subnet.env of an earlier run: {subnets}"),
                None => f.write_str("subnet.env of an earlier run"),
            },
            Self::Recalled { own, peers, warm, .. } => {
                let host = if *warm { "" } else { ", before the host started" };
                write!(f, "what an earlier run knew{host}: {} and peers {}", own.subnets, peers.brief())
            }
            Self::Config(text) => write!(f, "store: net-conf {text}"),
            Self::Snapshot { leases, unreadable, foreign } => {
                let history = if *foreign { " in another history" } else { "" };
                write!(f, "store: all leases{history}: {}", leases.brief())?;
                match unreadable.is_nothing() {
                    true => Ok(()),
                    false => write!(f, ", unreadable: {}", unreadable.brief()),
                }
            }
            Self::Upsert(lease) => write!(f, "store: {} at {}", lease.subnets, lease.public),
            Self::Removed(gone) => match **gone {
                [ref one] => write!(f, "store: {one} is gone"),
                [ref first, ref more @ ..] => {
                    write!(f, "store: {first} and {} more are gone at once", more.len())
                }
                [] => f.write_str("store: nobody is gone"),
            },
            Self::Unreadable(key, why) => write!(f, "store: {key} can't be read: {why}"),
            Self::Gone(key) => write!(f, "store: {key} is gone"),
            Self::Stale(why) => write!(f, "store: {why}"),
            Self::Kernel(event) => write!(f, "kernel: changed: {event:?}"),
            Self::Touched(touches) => touched(touches, f),
            Self::Shared(others) => write!(f, "other networks of this host: {}", others.len()),
            Self::File => f.write_str("subnet.env was touched"),
            Self::Host { links, addresses, routes, interrupted, .. } => {
                let rest = if *interrupted { " (interrupted)" } else { "" };
                let [links, addresses, routes] = [links.brief(), addresses.brief(), routes.brief()];
                write!(f, "host: links {links}, addresses {addresses}, routes {routes}{rest}")
            }
            Self::HostFailed(error) => write!(f, "host: can't be read: {error}"),
            Self::Own { objects, interrupted, .. } => {
                write!(f, "our own: {}{}", objects.brief(), if *interrupted { " (interrupted)" } else { "" })
            }
            Self::OwnFailed(error) => write!(f, "our own: can't be read: {error}"),
            Self::Applied(applied) => {
                write!(f, "applied: {} steps, {} failed", applied.steps, applied.failures())
            }
            Self::Claimed(result) => match &**result {
                Ok(own) => write!(f, "claimed: {} at {}", own.lease.subnets, own.lease.public),
                Err(error) => write!(f, "not claimed: {error}"),
            },
            Self::Plane(outcome) => {
                write!(
                    f,
                    "plane of {}: {} rows in place, {} failed",
                    outcome.backend, outcome.in_place, outcome.failed
                )
            }
            Self::TooLarge(name) => write!(f, "{name}: too large to be kept"),
        }
    }
}

fn touched(touches: &[Touch], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(first) = touches.first() else { return f.write_str("kernel: nobody touched anything") };
    match &first.by {
        Some(who) => write!(f, "kernel: {who} touched {:?}", first.what)?,
        None => write!(f, "kernel: somebody touched {:?}", first.what)?,
    }
    if touches.len() > 1 { write!(f, " and {} more", touches.len() - 1) } else { Ok(()) }
}

impl InputRecord<'_> {
    /// What failed, as lines.
    pub fn failures(&self) -> &[String] {
        if let Self::Applied(applied) = self { &applied.lines } else { &[] }
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = match self {
            Self::Text(text) => return f.write_str(text),
            Self::Plan(note) => note,
        };
        let (created, replaced, deleted) = note.counts;
        write!(f, "plan {}: create {created}, replace {replaced}, delete {deleted}", note.sum)?;
        note.steps.iter().flat_map(|step| step.lines()).try_for_each(|line| write!(f, "\n  {line}"))?;
        match note.left_out() {
            0 => Ok(()),
            more => write!(f, "\n  ... and {more} more"),
        }
    }
}

impl Did {
    /// It only reads, or publishes again what is published.
    pub fn is_quiet(&self) -> bool {
        matches!(self, Self::Text(text) if text.starts_with("read ") || text.starts_with("publish "))
    }
}

/// A line with its time.
pub fn line(wall: Duration, text: &str) -> String {
    plain(&format!("{}  {text}", time(wall)))
}

/// Lines that belong to the line above them.
pub fn below(text: &str) -> String {
    text.lines().map(|line| plain(&format!("    {}", line.replace('\t', "  ")))).collect()
}

/// The line is not cut: its end is often what a person looks for.
fn plain(line: &str) -> String {
    // Some of the text comes from other hosts: a terminal must not act on it.
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    line.chars().map(plain).chain(['\n']).collect()
}

/// A time since 1970 as UTC, with milliseconds: `2026-11-21 10:26:07.123Z`.
pub fn time(wall: Duration) -> String {
    let (day, second) = (wall.as_secs() / DAY, wall.as_secs() % DAY);
    // Counted from the first of March of the year 0, so that the leap day is a year's last (Hinnant, civil_from_days).
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let mut text = format!("{year:04}-{month:02}-{:02} ", of_year - (153 * shifted + 2) / 5 + 1);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let _ = write!(text, "{hour:02}:{minute:02}:{:02}.{:03}Z", second % 60, wall.subsec_millis());
    text
}

/// A time as people write it: `10m` ago, or `2026-11-21`, `2026-11-21T10:26:07Z`, UTC.
pub fn since(text: &str, now: Duration) -> Option<Duration> {
    if let Some(ago) = span(text) {
        return Some(now.saturating_sub(ago));
    }
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let date = numbers(date, '-')?;
    let (whole, _) = time.split_once('.').unwrap_or((time, ""));
    let time = numbers(whole, ':')?;
    let fits = (1970..=9999).contains(&date[0])
        && (1..=12).contains(&date[1])
        && (1..=31).contains(&date[2])
        && time[0] < 24
        && time[1] < 60
        && time[2] < 61;
    fits.then(|| Duration::from_secs(days(date) * DAY + time[0] * 3600 + time[1] * 60 + time[2]))
}

/// A span of time as Go reads it: `10m`, `1h30m`, `1.5h`, `300ms`, `0`; and days, `3d`.
pub fn span(text: &str) -> Option<Duration> {
    let mut left = text.strip_prefix('+').unwrap_or(text);
    if left == "0" {
        return Some(Duration::ZERO);
    }
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut total: u128 = 0;
    if left.is_empty() {
        return None;
    }
    while !left.is_empty() {
        let (whole, after) = left.split_at(digits(left));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        let (unit, after) =
            after.split_at(after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len()));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit = nanoseconds(unit)?;
        // No more than eighteen digits behind the point count.
        let fraction = &fraction[..fraction.len().min(18)];
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let number = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok() };
        total += u128::from(number(whole)?) * unit + u128::from(number(fraction)?) * unit / scale;
        left = after;
    }
    // Go's spans end after 292 years.
    i64::try_from(total).ok().map(|nanoseconds| Duration::from_nanos(nanoseconds.unsigned_abs()))
}

fn nanoseconds(unit: &str) -> Option<u128> {
    let seconds = 1_000_000_000;
    Some(match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => seconds,
        "m" => 60 * seconds,
        "h" => 3600 * seconds,
        "d" => u128::from(DAY) * seconds,
        _ => return None,
    })
}

fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let numbers: Option<Vec<u64>> = text.split(between).map(|part| part.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// Days since 1970; the other way round of [`time`].
fn days([year, month, day]: [u64; 3]) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_back_as_it_prints() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00.000Z"),
            (951_782_399, "2000-02-28 23:59:59.000Z"),
            (951_782_400, "2000-02-29 00:00:00.000Z"),
            (1_795_256_767, "2026-11-21 10:26:07.000Z"),
        ] {
            let wall = Duration::from_secs(seconds);
            assert_eq!(time(wall), text);
            assert_eq!(since(text, Duration::ZERO), Some(wall));
        }
        assert_eq!(since("2026-11-21", Duration::ZERO), Some(Duration::from_secs(1_795_219_200)));
    }

    #[test]
    fn so_long_ago_is_counted_from_now_and_nonsense_is_refused() {
        let now = Duration::from_secs(1_000_000);
        for (text, seconds) in [("30s", 999_970), ("10m", 999_400), ("2h", 992_800), ("90d", 0)] {
            assert_eq!(since(text, now), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "m",
            "-1m",
            "10",
            "10w",
            "é",
            "2026-13-01",
            "2026-11-21T25:00:00",
            "1:2:3",
            "99999999999999999d",
        ] {
            assert_eq!(since(text, now), None, "{text}");
        }
    }

    #[test]
    fn no_line_is_cut_or_moves_the_cursor() {
        let line = line(Duration::ZERO, &("\u{1b}[2Jä".repeat(60) + "its end"));
        assert!(!line.contains('\u{1b}') && line.ends_with("its end\n"), "{line}");
    }
}
