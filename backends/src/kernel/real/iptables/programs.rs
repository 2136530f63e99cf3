//! Which programs there are: `iptables-nft-restore`, `ip6tables-legacy-save` and so on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use subnet_lease::Family;

use crate::kernel::KernelError;
use crate::local::processes::{self, Limits};
use crate::rules::iptables::{Flavour, program};

/// 20,000 rules are printed within half a second, and are some three million bytes. The limits are ours.
const LIMITS: Limits = Limits { time: Duration::from_secs(10), output: 64 << 20 };

/// How long they wait for the lock that all of the older flavour share, in seconds. Ours: what stands behind us in the
/// same thread is peers' routes, so we rather come again.
const WAIT: &str = "--wait=1";

/// The programs of a flavour and family: `-restore` and `-save`.
type Pair = [PathBuf; 2];

/// The programs that were found.
pub(super) struct Programs(HashMap<(Flavour, Family), Pair>);

impl Programs {
    /// Looks for them.
    pub(super) fn find() -> Self {
        let pair = |word: &str| {
            Some([processes::find(&format!("{word}-restore"))?, processes::find(&format!("{word}-save"))?])
        };
        let mut all = HashMap::new();
        for flavour in Flavour::ALL {
            let pairs = Family::ALL
                .map(|family| pair(&program(flavour, family)).or_else(|| unnamed(&pair, flavour, family)));
            if let [Some(four), Some(six)] = pairs {
                all.extend([((flavour, Family::V4), four), ((flavour, Family::V6), six)]);
            }
        }
        Self(all)
    }

    /// The flavours that can be used.
    pub(super) fn flavours(&self) -> Vec<Flavour> {
        Flavour::ALL.into_iter().filter(|f| self.0.contains_key(&(*f, Family::V4))).collect()
    }

    /// All rules as text.
    pub(super) fn save(&self, flavour: Flavour, family: Family) -> Result<String, KernelError> {
        let [_, save] = self.pair(flavour, family)?;
        run(save, &[], "")
    }

    /// Performs an input.
    pub(super) fn restore(&self, flavour: Flavour, family: Family, input: &str) -> Result<(), KernelError> {
        let [restore, _] = self.pair(flavour, family)?;
        run(restore, &["--noflush", WAIT], input).map(drop)
    }

    fn pair(&self, flavour: Flavour, family: Family) -> Result<&Pair, KernelError> {
        self.0.get(&(flavour, family)).ok_or_else(|| KernelError::Program {
            program: program(flavour, family),
            said: "not installed; the package iptables has it".to_owned(),
        })
    }
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, KernelError> {
    processes::run(program, arguments, input, LIMITS).map_err(|error| {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        KernelError::Program { program: name, said: error.to_string() }
    })
}

/// Where the names don't show the flavour there is one flavour only: the target of the name shows it, else its version.
fn unnamed(pair: &impl Fn(&str) -> Option<Pair>, flavour: Flavour, family: Family) -> Option<Pair> {
    let six = if family == Family::V6 { "6" } else { "" };
    let found = pair(&format!("ip{six}tables"))?;
    (flavour_of(&found[0])? == flavour).then_some(found)
}

fn flavour_of(program: &Path) -> Option<Flavour> {
    let real = program.canonicalize().ok()?;
    match real.file_name()?.to_str()? {
        "xtables-nft-multi" => Some(Flavour::Nft),
        "xtables-legacy-multi" => Some(Flavour::Legacy),
        _ => {
            let version = run(program, &["--version"], "").ok()?;
            Some(if version.contains("nf_tables") { Flavour::Nft } else { Flavour::Legacy })
        }
    }
}
