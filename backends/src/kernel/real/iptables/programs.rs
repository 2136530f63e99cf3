//! Which programs there are: `iptables-nft-restore`, `ip6tables-legacy-save` and so on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use subnet_lease::Family;

use super::process;
use crate::kernel::KernelError;
use crate::rules::iptables::{Flavour, program};

/// Where they are beside the directories of `PATH`, which a service's often lacks.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

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
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories: Vec<_> =
            std::env::split_paths(&path).chain(DIRECTORIES.into_iter().map(PathBuf::from)).collect();
        let found = |name: String| directories.iter().map(|dir| dir.join(&name)).find(|file| file.is_file());
        let pair = |word: &str| Some([found(format!("{word}-restore"))?, found(format!("{word}-save"))?]);
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
        process::run(save, &[], "")
    }

    /// Performs an input.
    pub(super) fn restore(&self, flavour: Flavour, family: Family, input: &str) -> Result<(), KernelError> {
        let [restore, _] = self.pair(flavour, family)?;
        process::run(restore, &["--noflush", WAIT], input).map(drop)
    }

    fn pair(&self, flavour: Flavour, family: Family) -> Result<&Pair, KernelError> {
        self.0.get(&(flavour, family)).ok_or_else(|| KernelError::Program {
            program: program(flavour, family),
            said: "not installed; the package iptables has it".to_owned(),
        })
    }
}

/// Where the names don't tell the flavour there is one only: what the name leads to tells it, else its version.
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
            let version = process::run(program, &["--version"], "").ok()?;
            Some(if version.contains("nf_tables") { Flavour::Nft } else { Flavour::Legacy })
        }
    }
}
