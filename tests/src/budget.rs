//! What the workspace may depend on, and how large the CNI plugin may be.
//!
//! ```text
//!   subnet-lease <--- backends <--- flanneld
//!        ^               ^
//!        +---- cni-plugin (neither's features)        netns-harness: none of them        tests: all
//! ```
//!
//! Every check takes a value and returns one sentence per broken rule.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// The members of the workspace, each in the folder of its name, with the members it may depend on.
const ARROWS: [(&str, &[&str]); 6] = [
    ("subnet-lease", &[]),
    ("backends", &["subnet-lease"]),
    ("flanneld", &["subnet-lease", "backends"]),
    ("cni-plugin", &["subnet-lease", "backends"]),
    ("netns-harness", &[]),
    ("tests", &["subnet-lease", "backends", "flanneld", "cni-plugin", "netns-harness"]),
];

/// The member that must stay small, and the crates that it must never have: runtimes, flag parsers, store
/// clients.
const PLUGIN: &str = "cni-plugin";
const PLUGIN_NEVER: [&str; 7] = ["tokio", "futures", "clap", "etcd-client", "tonic", "redb", "rtnetlink"];

/// Ten more than the plugin had at first, so that growth is a decision.
pub const PLUGIN_MAX_CRATES: usize = 35;
/// In bytes; half of it is the C library and Rust's own. A runtime starts a plugin several times per pod.
pub const PLUGIN_MAX_SIZE: usize = 2 << 20;

/// The workspace, as `cargo metadata --no-deps` prints it.
#[derive(Debug, Deserialize)]
pub struct Workspace {
    packages: Vec<Package>,
    workspace_root: String,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    features: Vec<String>,
    uses_default_features: bool,
}

impl Workspace {
    /// Runs `cargo metadata` in `root`.
    ///
    /// # Errors
    /// When cargo cannot be run, refuses the workspace, or answers in another form.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let metadata = cargo(root, &["metadata", "--no-deps", "--format-version", "1"])?;
        serde_json::from_str(&metadata).context("cargo metadata")
    }

    /// Members that are missing, new, or not in the folder of their name. There is no "common" crate.
    #[must_use]
    pub fn stray_members(&self) -> Vec<String> {
        let found: BTreeSet<_> = self.packages.iter().map(|p| p.name.as_str()).collect();
        let fixed = BTreeSet::from(ARROWS.map(|(name, _)| name));
        let missing = fixed.difference(&found).map(|name| format!("{name} is not a member"));
        let new = found.difference(&fixed).map(|name| format!("{name} is a member beside the fixed six"));
        let misplaced = (self.packages.iter())
            .filter(|p| p.manifest_path != format!("{}/{}/Cargo.toml", self.workspace_root, p.name))
            .map(|p| format!("{} lives in {}, not in the folder of its name", p.name, p.manifest_path));
        missing.chain(new).chain(misplaced).collect()
    }

    /// Dependencies between members, of any kind, that are not in the drawing above.
    #[must_use]
    pub fn wrong_arrows(&self) -> Vec<String> {
        (self.packages.iter())
            .flat_map(|package| package.dependencies.iter().map(move |on| (package.name.as_str(), on)))
            .filter_map(|(from, on)| wrong_arrow(from, on))
            .collect()
    }
}

fn wrong_arrow(from: &str, on: &Dependency) -> Option<String> {
    let is_member = ARROWS.iter().any(|(name, _)| *name == on.name);
    let allowed = ARROWS.iter().any(|(name, on_these)| *name == from && on_these.contains(&on.name.as_str()));
    let bare = on.features.is_empty() && !on.uses_default_features;
    match (is_member, allowed) {
        (true, false) => Some(format!("{from} depends on {}", on.name)),
        (true, true) if from == PLUGIN && !bare => Some(format!("{from} takes {} with features", on.name)),
        _ => None,
    }
}

/// The crates that the plugin is made of, as `name version`, procedural macros included.
///
/// # Errors
/// When cargo cannot be run or does not know the plugin.
pub fn plugin_crates(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let tree = cargo(root, &["tree", "--package", PLUGIN, "--edges", "normal", "--prefix", "none"])?;
    Ok(crates_of(&tree))
}

/// Reads lines like `serde v1.0.229 (*)`. A crate that several others need occurs several times.
fn crates_of(tree: &str) -> BTreeSet<String> {
    let first_two = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    tree.lines().map(first_two).filter(|line| !line.is_empty()).collect()
}

/// The rules that these crates break.
#[must_use]
pub fn plugin_overweight(crates: &BTreeSet<String>) -> Vec<String> {
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let never = (crates.iter().map(|line| name(line)))
        .filter(|name| PLUGIN_NEVER.contains(&name.as_str()))
        .map(|name| format!("{PLUGIN} is built with {name}"));
    let many = (crates.len() > PLUGIN_MAX_CRATES)
        .then(|| format!("{PLUGIN} is made of {} crates, and {PLUGIN_MAX_CRATES} are allowed", crates.len()));
    never.chain(many).collect()
}

/// The rules that the plugin's program breaks: it must be small, static, and without symbols.
#[must_use]
pub fn plugin_unfit(program: &[u8]) -> Vec<String> {
    let mut broken = Vec::new();
    if program.len() > PLUGIN_MAX_SIZE {
        broken.push(format!("{PLUGIN} has {} bytes, and {PLUGIN_MAX_SIZE} are allowed", program.len()));
    }
    match Elf::read(program) {
        None => broken.push(format!("{PLUGIN} is not a 64-bit little-endian ELF file")),
        Some(elf) => {
            if elf.segments.contains(&PT_INTERP) {
                broken.push(format!("{PLUGIN} is not static: it asks for a loader"));
            }
            if elf.sections.contains(&SHT_SYMTAB) {
                broken.push(format!("{PLUGIN} is not stripped: it carries a symbol table"));
            }
        }
    }
    broken
}

// From the ELF specification: the segment that names the loader, and the section that `strip` removes.
const PT_INTERP: u32 = 3;
const SHT_SYMTAB: u32 = 2;

/// The types of an ELF file's segments and sections.
struct Elf {
    segments: Vec<u32>,
    sections: Vec<u32>,
}

impl Elf {
    /// The offsets are those of the 64-bit header: the start of each table, the size of its entries, and
    /// their number. The type is the first word of a segment's entry and the second word of a section's
    /// entry.
    fn read(file: &[u8]) -> Option<Self> {
        file.starts_with(b"\x7fELF\x02\x01").then_some(())?;
        let segments = column(file, word64(file, 0x20)?, half(file, 0x36)?, half(file, 0x38)?, 0)?;
        let sections = column(file, word64(file, 0x28)?, half(file, 0x3a)?, half(file, 0x3c)?, 4)?;
        Some(Self { segments, sections })
    }
}

fn column(file: &[u8], start: usize, size: usize, count: usize, field: usize) -> Option<Vec<u32>> {
    (0..count)
        .map(|i| {
            let at = start.checked_add(i * size + field)?;
            Some(u32::from_le_bytes(bytes(file, at)?))
        })
        .collect()
}

fn half(file: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes(file, at)?).into())
}

fn word64(file: &[u8], at: usize) -> Option<usize> {
    u64::from_le_bytes(bytes(file, at)?).try_into().ok()
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn cargo(root: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("cargo").args(args).current_dir(root).output().context("cargo")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {}: {}", args.join(" "), text.trim());
    String::from_utf8(output.stdout).context("cargo's answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_keeps_its_members_and_arrows() {
        let workspace = Workspace::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))).unwrap();
        assert_eq!(workspace.stray_members(), Vec::<String>::new());
        assert_eq!(workspace.wrong_arrows(), Vec::<String>::new());
    }

    #[test]
    fn the_plugin_is_made_of_few_crates_and_no_runtime() {
        let crates = plugin_crates(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))).unwrap();
        assert!(crates.iter().any(|name| name.starts_with("cni-plugin ")), "{crates:?}");
        assert_eq!(plugin_overweight(&crates), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_that_points_back_or_to_the_product_is_named() {
        let workspace = made_up(vec![
            package("subnet-lease", "subnet-lease", vec![on("backends", &[], false)]),
            package("netns-harness", "netns-harness", vec![on("flanneld", &[], true)]),
            package("flanneld", "flanneld", vec![on("backends", &["kernel"], true)]),
            package("backends", "backends", vec![on("serde", &["derive"], true)]),
        ]);
        let expected = ["subnet-lease depends on backends", "netns-harness depends on flanneld"];
        assert_eq!(workspace.wrong_arrows(), expected);
    }

    #[test]
    fn the_plugin_may_take_members_only_without_features() {
        let workspace = made_up(vec![
            package("cni-plugin", "cni-plugin", vec![on("backends", &["kernel"], false)]),
            package("cni-plugin", "cni-plugin", vec![on("subnet-lease", &[], true)]),
        ]);
        let expected = ["backends", "subnet-lease"].map(|on| format!("cni-plugin takes {on} with features"));
        assert_eq!(workspace.wrong_arrows(), expected);
    }

    #[test]
    fn a_seventh_member_a_missing_and_a_misplaced_one_are_named() {
        let mut packages: Vec<_> =
            ARROWS.iter().skip(1).map(|(name, _)| package(name, name, vec![])).collect();
        packages.push(package("common", "flanneld/common", vec![]));
        let expected = [
            "subnet-lease is not a member",
            "common is a member beside the fixed six",
            "common lives in /w/flanneld/common/Cargo.toml, not in the folder of its name",
        ];
        assert_eq!(made_up(packages).stray_members(), expected);
    }

    #[test]
    fn a_runtime_or_a_crate_too_many_in_the_plugin_is_named() {
        let crates = crates_of("cni-plugin v0.1.0 (/w/x)\nserde v1.0.1\nserde v1.0.1 (*)\n\ntokio v1.2.3\n");
        assert_eq!(crates.len(), 3);
        assert_eq!(plugin_overweight(&crates), ["cni-plugin is built with tokio"]);

        let crates = (0..36).map(|i| format!("crate{i} v1.0.0")).collect();
        assert_eq!(plugin_overweight(&crates), ["cni-plugin is made of 36 crates, and 35 are allowed"]);
    }

    #[test]
    fn a_static_stripped_small_program_is_fit_and_any_other_is_not() {
        const PT_LOAD: u32 = 1;
        const SHT_PROGBITS: u32 = 1;
        assert_eq!(plugin_unfit(&elf(PT_LOAD, SHT_PROGBITS)), Vec::<String>::new());
        let has = |program: &[u8], word: &str| {
            let broken = plugin_unfit(program);
            assert!(broken.len() == 1 && broken[0].contains(word), "{broken:?}");
        };
        has(&elf(PT_INTERP, SHT_PROGBITS), "loader");
        has(&elf(PT_LOAD, SHT_SYMTAB), "symbol table");
        has(b"#!/bin/sh", "not a 64-bit");
        has(&elf(PT_LOAD, SHT_PROGBITS)[..0x70], "not a 64-bit");
        let mut large = elf(PT_LOAD, SHT_PROGBITS);
        large.resize(PLUGIN_MAX_SIZE + 1, 0);
        has(&large, "2097153 bytes");
    }

    /// The workspace in `/w` with these packages.
    fn made_up(packages: Vec<Package>) -> Workspace {
        Workspace { packages, workspace_root: "/w".to_owned() }
    }

    fn package(name: &str, folder: &str, dependencies: Vec<Dependency>) -> Package {
        Package { name: name.to_owned(), manifest_path: format!("/w/{folder}/Cargo.toml"), dependencies }
    }

    fn on(name: &str, features: &[&str], uses_default_features: bool) -> Dependency {
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        Dependency { name: name.to_owned(), features, uses_default_features }
    }

    /// A file of one segment (at 0x40, 0x38 bytes) and one section (behind it, 0x40 bytes) of these types.
    fn elf(segment: u32, section: u32) -> Vec<u8> {
        let mut file = vec![0; 0x40 + 0x38 + 0x40];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        put(0x20, &0x40_u64.to_le_bytes());
        put(0x28, &0x78_u64.to_le_bytes());
        for (at, value) in [(0x36, 0x38_u16), (0x38, 1), (0x3a, 0x40), (0x3c, 1)] {
            put(at, &value.to_le_bytes());
        }
        put(0x40, &segment.to_le_bytes());
        put(0x78 + 4, &section.to_le_bytes());
        file
    }
}
