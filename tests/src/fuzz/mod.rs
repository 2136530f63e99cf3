//! Mutation fuzzing without a fuzzer: seeds are taken apart and recombined wrongly. A reader must not panic,
//! and must not accept nonsense. The same seed number gives the same cases on every machine.
//!
//! ```text
//!   tests/golden/fuzz/TARGET/*  ─▶ each as it is ─┐
//!   seeds built by our own code ─▶ mutated ───────┼─▶ Target::read ── panic ─▶ found-…, kept in the folder
//! ```
//!
//! `FUZZ_CASES` is the number of cases per target, `FUZZ_SEED` selects them. The recorded files of `netlink`
//! are answers and notifications of Linux 6.18 in a namespace with two tunnels, routes of all kinds and three
//! tables.

pub mod answers;
pub mod kernel;
mod mutate;
pub mod store;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

pub use mutate::Mutator;

/// A reader of bytes from outside.
pub struct Target {
    /// Its folder under `tests/golden/fuzz`.
    pub name: &'static str,
    /// The default number of cases.
    pub cases: u64,
    /// The start of a case, beside the files of the folder.
    pub seeds: Vec<Vec<u8>>,
    /// Words that the reader understands.
    pub words: &'static [&'static str],
    /// Reads the bytes, and panics when the outcome is wrong.
    pub read: fn(&[u8]),
}

impl Target {
    /// Runs the files of the folder, then the mutated cases.
    ///
    /// # Panics
    /// On the first case that panics, with the command to repeat it.
    pub fn run(self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/fuzz").join(self.name);
        let mut seeds = self.seeds;
        for path in files(&folder) {
            let bytes = fs::read(&path).unwrap_or_default();
            let read = catch_unwind(AssertUnwindSafe(|| (self.read)(&bytes)));
            assert!(read.is_ok(), "{} is read wrongly", path.display());
            seeds.push(bytes);
        }
        let seed = number("FUZZ_SEED").unwrap_or(1);
        let cases = number("FUZZ_CASES").unwrap_or(self.cases);
        let mut mutator = Mutator::new(seed, seeds, self.words);
        for case in 0..cases {
            let bytes = mutator.case();
            if catch_unwind(AssertUnwindSafe(|| (self.read)(bytes))).is_err() {
                let found = keep(&folder, bytes);
                panic!(
                    "case {case} of FUZZ_SEED={seed} FUZZ_CASES={cases}; kept as {}: from now on every run reads it",
                    found.display()
                );
            }
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn keep(folder: &Path, bytes: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let path = folder.join(format!("found-{:016x}", hasher.finish()));
    // The panic that follows has the same text; a read-only checkout must not hide it.
    let _ = fs::create_dir_all(folder).and_then(|()| fs::write(&path, bytes));
    path
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
