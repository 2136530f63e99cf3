//! Makes a failing scenario small: as few nodes, then as few troubles as break the same rule, by halves (delta
//! debugging), then plainer numbers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Failure, Scenario, Strike, Trouble};

/// Chosen so that a red test is not a hung one.
const LONGEST: Duration = Duration::from_secs(30);

/// A smaller scenario that breaks the same rule, and how.
pub fn shrink(scenario: &Scenario, failure: Failure) -> (Scenario, Failure) {
    let mut search = Search { best: scenario.clone(), failure, until: now() + LONGEST };
    while search.round() {}
    search.renumber();
    search.plainer();
    (search.best, search.failure)
}

struct Search {
    best: Scenario,
    failure: Failure,
    until: Instant,
}

impl Search {
    /// Whether there was progress.
    fn round(&mut self) -> bool {
        let before = self.size();
        self.without(|strikes| {
            let mut nodes: Vec<_> = strikes.iter().map(|s| s.node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes
                .into_iter()
                .map(|n| (0..strikes.len()).filter(|i| strikes[*i].node == n).collect())
                .collect()
        });
        self.without(|strikes| {
            let troubles = (0..strikes.len()).filter(|i| strikes[*i].trouble != Trouble::Start);
            troubles.map(|i| vec![i]).collect()
        });
        self.size() < before && now() < self.until
    }

    /// Leaves out groups of strikes: half of all groups at once, then quarters, down to single ones.
    fn without(&mut self, groups: fn(&[Strike]) -> Vec<Vec<usize>>) {
        let mut parts = 2;
        loop {
            let all: Vec<Strike> = self.best.acts.concat();
            let groups = groups(&all);
            let size = groups.len().div_ceil(parts).max(1);
            let smaller = groups.chunks(size).any(|chunk| {
                let gone = chunk.concat();
                self.attempt(|scenario| {
                    let mut number = 0;
                    for act in &mut scenario.acts {
                        act.retain(|_| {
                            number += 1;
                            !gone.contains(&(number - 1))
                        });
                    }
                })
            });
            if !smaller {
                if size == 1 || now() >= self.until {
                    return;
                }
                parts *= 2;
            }
        }
    }

    /// Nodes 0, 1, 2 … in place of 7, 19, 42 …, and no others.
    fn renumber(&mut self) {
        let nodes = self.best.acts.iter().flatten().map(|s| s.node);
        let mut names: BTreeMap<usize, usize> = nodes.map(|n| (n, 0)).collect();
        names.values_mut().enumerate().for_each(|(n, name)| *name = n);
        let last = self.best.acts.iter().flatten().map(|s| s.node).max().unwrap_or(0);
        let renamed = self.attempt(|scenario| {
            scenario.shape.nodes = names.len();
            scenario.acts.iter_mut().flatten().for_each(|s| s.node = names[&s.node]);
        });
        if !renamed {
            self.attempt(|scenario| scenario.shape.nodes = last + 1);
        }
    }

    fn plainer(&mut self) {
        self.attempt(|scenario| scenario.acts.retain(|act| !act.is_empty()));
        self.attempt(|scenario| scenario.shape.racks = 1);
        self.attempt(|scenario| scenario.shape.lag = 1);
        for trouble in (0..self.best.acts.concat().len()).rev() {
            for divisor in [10_000, 1000, 100] {
                // Times as a person would choose them.
                self.attempt(|scenario| {
                    let strike = scenario.acts.iter_mut().flatten().nth(trouble);
                    strike.into_iter().for_each(|s| s.at -= s.at % divisor);
                });
            }
        }
    }

    /// Takes a change over if it breaks the same rule.
    fn attempt(&mut self, change: impl Fn(&mut Scenario)) -> bool {
        if now() >= self.until {
            return false;
        }
        let mut smaller = self.best.clone();
        change(&mut smaller);
        match smaller.run() {
            Err(failure) if failure.rule == self.failure.rule => {
                (self.best, self.failure) = (smaller, failure);
                true
            }
            _ => false,
        }
    }

    fn size(&self) -> usize {
        self.best.acts.iter().map(Vec::len).sum()
    }
}

#[allow(clippy::disallowed_methods, reason = "how long a person waits for a red test is wall-clock time")]
fn now() -> Instant {
    Instant::now()
}
