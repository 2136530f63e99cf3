//! Which folder of a crate may use which other folder, and which crate of the workspace.
//!
//! Each crate is a list of its folders, from the bottom to the top, with the folders below that each of them uses. An arrow
//! that is not in the list is an error. Arrows that point up are in a list of their own; it may only become shorter.
//!
//! Only the text is read: `crate::…`, `super::…` and paths that begin with a crate of the workspace. Comments, strings and
//! tests are left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

mod list;
mod source;

use list::{CRATES, UPWARD};
use source::{paths, without_tests};

/// A folder, and what it may use: folders of its own crate by name, crates of the workspace by their package names.
type Folder = (&'static str, &'static [&'static str]);

/// An arrow from a folder of a crate to a folder that is not below it.
type Upward = (&'static str, &'static str, &'static str);

/// The crates whose source may be named in another one, as they are written in a path.
const MEMBERS: [(&str, &str); 3] =
    [("subnet_lease", "subnet-lease"), ("backends", "backends"), ("flanneld", "flanneld")];

/// Broken rules of all crates in the workspace at `root`, one sentence each.
///
/// # Errors
/// When a source file cannot be read.
pub fn broken(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    for (name, folders) in CRATES {
        let found = arrows(&root.join(name).join("src"))?;
        broken.extend(compare(name, folders, UPWARD, &found));
    }
    Ok(broken)
}

/// Arrows by folder; the value of each is a file that has it.
type Arrows = BTreeMap<(String, String), PathBuf>;

fn compare(name: &str, folders: &[Folder], upward: &[Upward], found: &Arrows) -> Vec<String> {
    let mut broken = Vec::new();
    for (at, (folder, uses)) in folders.iter().enumerate() {
        let below = |used: &str| {
            folders[..at].iter().any(|(below, _)| *below == used) || MEMBERS.iter().any(|(_, it)| *it == used)
        };
        let wrong = uses.iter().filter(|used| !below(used));
        broken.extend(
            wrong.map(|used| format!("the list of {name} has {used} under {folder}, but not below it")),
        );
    }
    for ((folder, used), file) in found {
        let Some((_, uses)) = folders.iter().find(|(known, _)| known == folder) else {
            broken.push(format!("{name}/src/{folder} is not in the list of {name}"));
            continue;
        };
        if !uses.contains(&used.as_str()) && !upward.contains(&(name, folder, used)) {
            broken.push(format!("{name}/src/{folder} uses {used}, in {}", file.display()));
        }
    }
    broken
}

/// Every arrow in the source of one crate.
fn arrows(src: &Path) -> anyhow::Result<Arrows> {
    let mut files = Vec::new();
    collect(src, &mut files)?;
    let exports = exports(&src.join("lib.rs"))?;
    let mut found = Arrows::new();
    for file in files {
        let inside = file.strip_prefix(src)?;
        let module = module(inside);
        let Some(folder) = module.first() else { continue };
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        for path in paths(&without_tests(&text)) {
            if let Some(used) = target(&path, &module, &exports)
                && used != *folder
                && (is_module(src, &used) || MEMBERS.iter().any(|(_, member)| *member == used))
            {
                found.entry((folder.clone(), used)).or_insert_with(|| inside.to_owned());
            }
        }
    }
    Ok(found)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" {
                collect(&path, files)?;
            }
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// `a/b.rs` is the module `a::b`, `a/mod.rs` is `a`; the crate's root has no name.
fn module(inside: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        inside.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// What is no module is an item of the crate's root, or of another crate.
fn is_module(src: &Path, name: &str) -> bool {
    src.join(name).is_dir() || src.join(name).with_extension("rs").is_file()
}

/// The folder that each name stands for which the crate's root offers.
fn exports(lib: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut exports = BTreeMap::new();
    if !lib.exists() {
        return Ok(exports);
    }
    let text = fs::read_to_string(lib).with_context(|| lib.display().to_string())?;
    for statement in without_tests(&text).split(';') {
        let Some(path) = statement.trim().strip_prefix("pub use ") else { continue };
        for path in paths(&format!("crate::{path}")) {
            if let (Some(folder), Some(name)) = (path.get(1), path.last()) {
                exports.insert(name.clone(), folder.clone());
            }
        }
    }
    Ok(exports)
}

/// The folder or the crate at which a path points.
fn target(path: &[String], module: &[String], exports: &BTreeMap<String, String>) -> Option<String> {
    let first = path.first()?.as_str();
    if let Some((_, member)) = MEMBERS.iter().find(|(written, _)| *written == first) {
        return Some((*member).to_owned());
    }
    let ups = path.iter().take_while(|part| *part == "super").count();
    let name = match first {
        "crate" => path.get(1)?,
        "super" if ups < module.len() => return Some(module.first()?.clone()),
        "super" => path.get(ups)?,
        _ => return None,
    };
    Some(exports.get(name).unwrap_or(name).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_uses_only_what_its_list_has() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert_eq!(broken(root).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_that_is_not_in_the_list_is_named() {
        let folders: &[Folder] = &[("net", &[]), ("plan", &["net"]), ("apply", &["watch"])];
        let found = [("plan", "net"), ("net", "plan"), ("net", "apply"), ("new", "net")]
            .map(|(from, to)| ((from.to_owned(), to.to_owned()), PathBuf::from("x.rs")));
        let expected = [
            "the list of it has watch under apply, but not below it",
            "it/src/net uses plan, in x.rs",
            "it/src/new is not in the list of it",
        ];
        let upward = [("it", "net", "apply")];
        assert_eq!(compare("it", folders, &upward, &found.into_iter().collect()), expected);
    }

    #[test]
    fn a_path_is_followed_through_super_and_through_what_the_root_offers() {
        let exports = BTreeMap::from([("Plan".to_owned(), "plan".to_owned())]);
        let module = ["kernel".to_owned(), "real".to_owned()];
        let to =
            |path: &str| target(&path.split("::").map(str::to_owned).collect::<Vec<_>>(), &module, &exports);
        assert_eq!(to("crate::Plan").as_deref(), Some("plan"));
        assert_eq!(to("crate::netlink::Batch").as_deref(), Some("netlink"));
        assert_eq!(to("super::Kernel").as_deref(), Some("kernel"));
        assert_eq!(to("super::super::state::Key").as_deref(), Some("state"));
        assert_eq!(to("subnet_lease::Lease").as_deref(), Some("subnet-lease"));
        assert_eq!(to("std::fs::read"), None);
    }
}
