//! Figures, as a table for people and as JSON lines for machines.

use std::fs;
use std::path::Path;
use std::thread;

use serde_json::json;

/// One figure: the median of all values. Smaller is better for every figure.
#[derive(Debug)]
struct Measure {
    name: String,
    unit: &'static str,
    goal: Option<f64>,
    all: Vec<f64>,
}

/// Figures in the order in which they were first added.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Measure>);

impl Measure {
    fn median(&self) -> f64 {
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn is_missed(&self) -> bool {
        self.goal.is_some_and(|goal| self.median() > goal)
    }
}

impl Figures {
    /// Adds a value to the measure of this name.
    pub(crate) fn add(&mut self, name: &str, unit: &'static str, goal: impl Into<Option<f64>>, value: f64) {
        match self.0.iter_mut().find(|measure| measure.name == name) {
            Some(measure) => measure.all.push(value),
            None => self.0.push(Measure { name: name.to_owned(), unit, goal: goal.into(), all: vec![value] }),
        }
    }

    /// Whether every target is met.
    pub(crate) fn reached(&self) -> bool {
        !self.0.iter().any(Measure::is_missed)
    }

    /// A table of at most a hundred columns; with another daemon's figures, also the ratios.
    pub(crate) fn table(&self, other: Option<&Self>) -> Vec<String> {
        let mut head = format!("{:62} {:>10} {:>9}", title(), "this", "target");
        if other.is_some() {
            head += &format!(" {:>9} {:>6}", "against", "ratio");
        }
        let row = |own: &Measure| {
            let goal = own.goal.map_or_else(|| "-".to_owned(), |goal| format!("{goal:.2}"));
            let mark = if own.is_missed() { "!" } else { " " };
            let name = format!("{} [{}]", own.name, own.unit);
            let mut line = format!("{name:62} {:>10.2} {goal:>8}{mark}", own.median());
            if let Some(theirs) = other.and_then(|o| o.0.iter().find(|m| m.name == own.name)) {
                let ratio = theirs.median() / own.median();
                let ratio = if ratio.is_finite() { format!("{ratio:.1}") } else { "-".to_owned() };
                line += &format!(" {:>9.2} {ratio:>6}", theirs.median());
            }
            line
        };
        std::iter::once(head).chain(self.0.iter().map(row)).collect()
    }

    /// One JSON line a measure.
    pub(crate) fn lines(&self, daemon: &Path) -> Vec<String> {
        let line = |one: &Measure| {
            json!({
                "measure": one.name, "unit": one.unit, "value": one.median(), "all": one.all,
                "target": one.goal, "daemon": daemon, "kernel": kernel(), "load": load(), "cpus": cpus(),
            })
            .to_string()
        };
        self.0.iter().map(line).collect()
    }
}

/// A figure has no meaning without its kernel, and little on a busy machine.
pub(crate) fn title() -> String {
    format!("Linux {}, load average {}", kernel(), load())
}

pub(crate) fn cpus() -> usize {
    thread::available_parallelism().map_or(0, usize::from)
}

pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_and_is_missed_above_its_goal() {
        let mut figures = Figures::default();
        for value in [9.0, 1.0, 2.0] {
            figures.add("start", "ms", 2.0, value);
        }
        assert!(figures.reached());
        figures.add("start", "ms", 2.0, 8.0);
        figures.add("start", "ms", 2.0, 8.0);
        assert!(!figures.reached());
        let table = figures.table(Some(&figures));
        assert!(table.iter().all(|line| line.chars().count() <= 100), "{table:?}");
        assert!(table[1].contains("8.00     2.00!"), "{table:?}");
    }

    #[test]
    fn what_has_no_goal_is_never_missed() {
        let mut figures = Figures::default();
        figures.add("peak", "MiB", None, 1e9);
        assert!(figures.reached());
    }
}
