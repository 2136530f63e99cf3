//! A sequence as the difference to the one before.
//!
//! The writer keeps eight bytes of each item and no item; the reader keeps the items. So thirty thousand objects cost a
//! daemon a quarter of a megabyte.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

/// What turns a sequence into the next one. An empty difference means that nothing changed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "T: Clone + Serialize", deserialize = "T: Clone + Deserialize<'de>"))]
pub struct Delta<'a, T: Clone> {
    /// Begin from nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    whole: bool,
    /// Runs to leave out: place in the old sequence, and length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    out: Vec<(usize, usize)>,
    /// Runs to put in: place in the new sequence, and the items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    put: Vec<(usize, Cow<'a, [T]>)>,
}

/// What the writer remembers of a sequence; nothing at first.
pub(super) type Base = Option<Vec<u64>>;

impl<'a, T: Clone + Hash> Delta<'a, T> {
    /// The difference from the remembered sequence to `items`; `items` are remembered from now on.
    pub(super) fn to(items: &'a [T], base: &mut Base) -> Self {
        let prints: Vec<u64> = items.iter().map(print).collect();
        let delta = base.as_ref().and_then(|old| Self::between(old, &prints, items));
        *base = Some(prints);
        let whole = || vec![(0, Cow::Borrowed(items))];
        delta.unwrap_or_else(|| Self { whole: true, out: Vec::new(), put: whole() })
    }

    /// None where the items that stay changed their order: then the sequence is written as a whole.
    fn between(old: &[u64], new: &[u64], items: &'a [T]) -> Option<Self> {
        if old == new {
            return Some(Self { whole: false, out: Vec::new(), put: Vec::new() });
        }
        let sorted = |prints: &[u64]| {
            let mut sorted = prints.to_vec();
            sorted.sort_unstable();
            sorted
        };
        let (in_old, in_new) = (sorted(old), sorted(new));
        let stays = |print: &&u64| in_new.binary_search(print).is_ok();
        let stayed = |print: &&u64| in_old.binary_search(print).is_ok();
        if !old.iter().filter(stays).eq(new.iter().filter(stayed)) {
            return None;
        }
        let put = runs(new, &in_old).into_iter().map(|(at, n)| (at, Cow::Borrowed(&items[at..at + n])));
        Some(Self { whole: false, out: runs(old, &in_new), put: put.collect() })
    }
}

/// The runs of items that are not among the others.
fn runs(prints: &[u64], others: &[u64]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, _) in prints.iter().enumerate().filter(|(_, p)| others.binary_search(p).is_err()) {
        match runs.last_mut() {
            Some((start, length)) if *start + *length == at => *length += 1,
            _ => runs.push((at, 1)),
        }
    }
    runs
}

/// Valid in one process only, so it is never written to a file.
fn print<T: Hash>(item: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    item.hash(&mut hasher);
    hasher.finish()
}

impl<T: Clone> Delta<'_, T> {
    /// Turns `items` into the next sequence. An error when the difference does not fit them.
    pub(super) fn apply(self, items: &mut Vec<T>) -> Result<(), &'static str> {
        const UNFIT: &str = "a difference to what is not on file";
        let old = std::mem::take(items);
        let mut stay: Vec<T> = Vec::with_capacity(old.len());
        let mut left = if self.whole { Vec::new() } else { old }.into_iter();
        let mut read = 0;
        for (at, length) in self.out {
            stay.extend(left.by_ref().take(at.checked_sub(read).ok_or(UNFIT)?));
            left.nth(length.checked_sub(1).ok_or(UNFIT)?).ok_or(UNFIT)?;
            read = at + length;
        }
        stay.extend(left);
        let mut stay = stay.into_iter();
        for (at, run) in self.put {
            let gap = at.checked_sub(items.len()).ok_or(UNFIT)?;
            items.extend(stay.by_ref().take(gap));
            if items.len() != at {
                return Err(UNFIT);
            }
            items.extend(run.into_owned());
        }
        items.extend(stay);
        Ok(())
    }

    /// In a few characters: `unchanged`, `30000`, `+2 -1`.
    pub fn brief(&self) -> String {
        let put: usize = self.put.iter().map(|(_, run)| run.len()).sum();
        let out: usize = self.out.iter().fold(0, |sum, (_, length)| sum.saturating_add(*length));
        match (self.whole, put, out) {
            (true, ..) => put.to_string(),
            (false, 0, 0) => "unchanged".to_owned(),
            (false, put, out) => format!("+{put} -{out}"),
        }
    }

    /// Whether nothing changed.
    pub fn is_nothing(&self) -> bool {
        !self.whole && self.out.is_empty() && self.put.is_empty()
    }
}
