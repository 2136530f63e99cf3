//! The difference of two sides, and what is thought of it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::facts::{Facts, is_like};
use crate::stage::play;
use crate::table::{Configuration, Decided};

/// What came out of one configuration.
#[derive(Debug)]
pub(crate) struct Verdict {
    name: String,
    /// Reasons of the decided differences, each with how many facts it covers.
    decided: BTreeMap<String, usize>,
    /// What nobody decided: `-` is seen with Go's plugins only, `+` with ours only.
    open: Vec<String>,
}

pub(crate) fn judge(decided: &[Decided], configuration: &Configuration, go: &Path, ours: &Path) -> Verdict {
    let mut verdict =
        Verdict { name: configuration.name.clone(), decided: BTreeMap::new(), open: Vec::new() };
    let sides = play(go, configuration).and_then(|go| Ok((go, play(ours, configuration)?)));
    match sides {
        Ok((go, ours)) => verdict.weigh(decided, configuration, &go, &ours),
        Err(error) => verdict.open.push(format!("{error:#}")),
    }
    verdict
}

impl Verdict {
    fn weigh(&mut self, decided: &[Decided], configuration: &Configuration, go: &Facts, ours: &Facts) {
        let near: Vec<&Decided> =
            decided.iter().filter(|one| configuration.name.contains(&one.within)).collect();
        self.expect_failures(configuration, go, ours);
        let Configuration { fails_in_go, fails_in_ours, .. } = configuration;
        if fails_in_go.contains_key("ADD") || fails_in_ours.contains_key("ADD") {
            return;
        }
        for fact in go.beyond(ours) {
            self.place(&fact, '-', near.iter().find(|one| one.go.iter().any(|like| is_like(&fact, like))));
        }
        for fact in ours.beyond(go) {
            self.place(&fact, '+', near.iter().find(|one| one.ours.iter().any(|like| is_like(&fact, like))));
        }
    }

    fn place(&mut self, fact: &str, side: char, decision: Option<&&Decided>) {
        match decision {
            Some(one) => *self.decided.entry(one.why.clone()).or_default() += 1,
            None => self.open.push(format!("{side} {fact}")),
        }
    }

    /// The sides fail in the steps that are meant to fail, ours with our code, and in no other.
    fn expect_failures(&mut self, configuration: &Configuration, go: &Facts, ours: &Facts) {
        let Configuration { fails, fails_in_go, fails_in_ours, .. } = configuration;
        for (step, why) in fails_in_go {
            self.decided.insert(why.clone(), 1);
            self.expect(!go.failures().contains_key(step), || {
                format!("{step} does not fail with Go's plugins any more")
            });
        }
        for (step, (_, why)) in fails_in_ours {
            self.decided.insert(why.clone(), 1);
            self.expect(go.failures().contains_key(step), || format!("{step} fails with Go's plugins too"));
        }
        for step in fails.keys() {
            self.expect(!go.failures().contains_key(step), || {
                format!("{step} does not fail with Go's plugins")
            });
        }
        let codes = fails.iter().chain(fails_in_ours.iter().map(|(step, (code, _))| (step, code)));
        for (step, code) in codes {
            let found = ours.failures().get(step).map(|document| &document["code"]);
            let as_meant = found.and_then(serde_json::Value::as_u64) == Some(*code);
            self.expect(!as_meant, || format!("{step} ends with {found:?} instead of code {code}"));
        }
        let by_go = |step: &String| fails.contains_key(step) || fails_in_go.contains_key(step);
        let by_us = |step: &String| fails.contains_key(step) || fails_in_ours.contains_key(step);
        let strays = go.failures().iter().filter(|(step, _)| !by_go(step));
        self.open
            .extend(strays.map(|(step, document)| format!("{step} fails with Go's plugins: {document}")));
        let strays = ours.failures().iter().filter(|(step, _)| !by_us(step));
        self.open.extend(strays.map(|(step, document)| format!("{step} fails with ours: {document}")));
    }

    fn expect(&mut self, broken: bool, what: impl FnOnce() -> String) {
        if broken {
            self.open.push(what());
        }
    }

    pub(crate) fn is_well(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn reasons(&self) -> impl Iterator<Item = &str> {
        self.decided.keys().map(String::as_str)
    }

    /// The row of the table, and what is open below it.
    pub(crate) fn lines(&self) -> Vec<String> {
        let word = if !self.is_well() {
            "DIFFERS"
        } else if self.decided.is_empty() {
            "same"
        } else {
            "differs as decided"
        };
        let why: Vec<_> = self.decided.iter().map(|(why, facts)| format!("{why} ({facts})")).collect();
        let mut lines = vec![format!("{:58} {word:18} {}", self.name, why.join("; "))];
        lines.extend(self.open.iter().map(|line| format!("    {line}")));
        lines
    }
}

pub(crate) fn summary(verdicts: &[Verdict]) -> String {
    let count = |is: fn(&Verdict) -> bool| verdicts.iter().filter(|one| is(one)).count();
    format!(
        "{} configurations: {} the same, {} different as decided, {} otherwise",
        verdicts.len(),
        count(|one| one.is_well() && one.decided.is_empty()),
        count(|one| one.is_well() && !one.decided.is_empty()),
        count(|one| !one.is_well()),
    )
}
