//! The table: our figure, the other's, the ratio, and the target.

use serde_json::json;

use crate::figures::{cpus, kernel, load, title};

/// A target, as an absolute figure and as a ratio to the other's figure. Machines differ: with another plugin
/// the ratio counts, without one the absolute figure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    absolute: f64,
    part: Option<f64>,
}

impl Goal {
    pub(super) fn ratio((absolute, part): (f64, f64)) -> Self {
        Self { absolute, part: Some(part) }
    }

    pub(super) fn absolute(absolute: f64) -> Self {
        Self { absolute, part: None }
    }

    fn figure(self) -> String {
        if self.absolute.is_finite() { format!("{:.2}", self.absolute) } else { "-".to_owned() }
    }

    /// No target.
    pub(super) fn none() -> Self {
        Self::absolute(f64::INFINITY)
    }
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    goal: Goal,
    ours: f64,
    other: Option<f64>,
}

#[derive(Debug)]
pub(super) struct Rows {
    rows: Vec<Row>,
    notes: Vec<String>,
    compared: bool,
}

impl Row {
    fn part(&self) -> Option<f64> {
        self.other.map(|other| self.ours / other).filter(|part| part.is_finite())
    }

    fn is_missed(&self) -> bool {
        match (self.part(), self.goal.part) {
            (Some(part), Some(goal)) => part > goal,
            _ => self.ours > self.goal.absolute,
        }
    }
}

impl Rows {
    pub(super) fn new(compared: bool) -> Self {
        Self { rows: Vec::new(), notes: Vec::new(), compared }
    }

    /// A measure of every side, our side first.
    pub(super) fn add(&mut self, name: &str, unit: &'static str, goal: Goal, figures: Vec<f64>) {
        let ours = figures.first().copied().unwrap_or(f64::NAN);
        self.rows.push(Row { name: name.to_owned(), unit, goal, ours, other: figures.get(1).copied() });
    }

    /// A sentence below the table.
    pub(super) fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    pub(super) fn reached(&self) -> bool {
        !self.rows.iter().any(Row::is_missed)
    }

    pub(super) fn table(&self) -> Vec<String> {
        let mut lines = vec![format!("{:50} {:>9} {:>9}", title(), "ours", "target")];
        if self.compared {
            lines[0] += &format!(" {:>9} {:>7} {:>9}", "other", "ratio", "target");
        }
        for row in &self.rows {
            let unit = if row.unit.is_empty() { String::new() } else { format!(" [{}]", row.unit) };
            let mut line =
                format!("{:50} {:>9.2} {:>9}", row.name.clone() + &unit, row.ours, row.goal.figure());
            if let Some(other) = row.other {
                let figure = |figure: Option<f64>, digits| {
                    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
                };
                line +=
                    &format!(" {other:>9.2} {:>7} {:>9}", figure(row.part(), 3), figure(row.goal.part, 2));
            }
            lines.push(line + if row.is_missed() { " !" } else { "" });
        }
        lines.extend(self.notes.iter().cloned());
        lines
    }

    /// One JSON line a measure.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |row: &Row| {
            json!({
                "measure": row.name, "unit": row.unit, "ours": row.ours, "other": row.other, "ratio": row.part(),
                "target": row.goal.absolute, "ratio_target": row.goal.part, "missed": row.is_missed(),
                "kernel": kernel(), "load": load(), "cpus": cpus(),
            })
            .to_string()
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_another_beside_it_the_ratio_counts_and_without_one_the_figure() {
        let mut rows = Rows::new(true);
        rows.add("ADD", "ms", Goal::ratio((2.0, 0.25)), vec![3.0, 20.0]);
        assert!(rows.reached());
        rows.add("DEL", "ms", Goal::ratio((2.0, 0.25)), vec![1.0, 3.0]);
        assert!(!rows.reached() && rows.table()[2].ends_with(" !"), "{:?}", rows.table());
        let mut rows = Rows::new(false);
        rows.add("ADD", "ms", Goal::ratio((2.0, 0.25)), vec![3.0]);
        assert!(!rows.reached());
    }
}
