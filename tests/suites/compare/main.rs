//! The reference plugins and ours, given the same configurations: results, kernel, files. Names that are drawn and
//! Ethernet addresses apart, what differs is either decided, with its reason in `table.json`, or a failure.
//!
//! ```text
//!   table.json ──▶ configuration ─┬─▶ a host with Go's plugins ──▶ facts ─┐
//!                                 └─▶ a host with ours         ──▶ facts ─┴─▶ same │ decided │ FAILS
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests panic to fail, and this one prints a table"
)]

mod facts;
mod picture;
mod reach;
mod stage;
mod table;
mod verdict;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, ensure};
use table::{Configuration, Table};
use verdict::Verdict;

fn main() -> ExitCode {
    match netns_harness::enter().and_then(|()| run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is as decided. Words of the command line choose configurations by a part of their name.
fn run() -> Result<bool> {
    facts::prove();
    let Some(go) = folder("SELVAGE_PEERS")? else {
        println!("skipped: the programs of tests/peers are not built");
        return Ok(std::env::var_os("SELVAGE_ALLOW_SKIPS").is_none_or(|names| names.is_empty()));
    };
    let ours = folder("SELVAGE_PRODUCTS")?.context("SELVAGE_PRODUCTS is not set: run `tests/run netns`")?;
    let table = Table::read(include_str!("table.json"))?;
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let chosen: Vec<&Configuration> = (table.configurations.iter())
        .filter(|one| words.is_empty() || words.iter().any(|word| one.name.contains(word.as_str())))
        .collect();
    ensure!(!chosen.is_empty(), "no configuration is called {words:?}");
    let verdicts = all(&chosen, |one| verdict::judge(&table.decided, one, &go, &ours));
    verdicts.iter().flat_map(Verdict::lines).for_each(|line| println!("{line}"));
    println!("{}", verdict::summary(&verdicts));
    let unused = if words.is_empty() { unused(&table, &verdicts) } else { vec![] };
    unused.iter().for_each(|why| println!("no longer differs anywhere: {why}"));
    Ok(unused.is_empty() && verdicts.iter().all(Verdict::is_well))
}

/// A folder of programs by its variable.
fn folder(variable: &str) -> Result<Option<PathBuf>> {
    let Some(folder) = std::env::var_os(variable).filter(|folder| !folder.is_empty()) else {
        return Ok(None);
    };
    Ok(Some(Path::new(&folder).canonicalize().with_context(|| format!("{variable}={}", folder.display()))?))
}

/// As many at a time as there are processors; the verdicts stay in order.
fn all(chosen: &[&Configuration], judge: impl Fn(&Configuration) -> Verdict + Sync) -> Vec<Verdict> {
    let next = Mutex::new(chosen.iter().enumerate());
    let found = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some((at, one)) = next.lock().unwrap().next() else { return };
            let verdict = judge(one);
            found.lock().unwrap().push((at, verdict));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, verdict)| verdict).collect()
}

/// Decided differences that no configuration shows.
fn unused<'a>(table: &'a Table, verdicts: &[Verdict]) -> Vec<&'a str> {
    let used: BTreeSet<&str> = verdicts.iter().flat_map(Verdict::reasons).collect();
    table.decided.iter().map(|one| one.why.as_str()).filter(|why| !used.contains(why)).collect()
}
