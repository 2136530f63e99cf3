//! Whether the documents name only files and tests that exist.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A name of a test has at least this many underscores; names of functions and settings in documents have fewer.
const TEST_NAME_UNDERSCORES: usize = 4;

/// Broken references in the README and in `flanneld/docs` of the workspace at `root`, one sentence each.
///
/// # Errors
/// When a file cannot be read.
pub fn broken(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut sources = Vec::new();
    for folder in ["subnet-lease", "backends", "flanneld", "cni-plugin", "netns-harness", "tests"] {
        collect(&root.join(folder), "rs", &mut sources)?;
    }
    let source = sources.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?.concat();
    let mut pages = vec![root.join("README.md")];
    collect(&root.join("flanneld/docs"), "md", &mut pages)?;
    let mut broken = Vec::new();
    for page in pages {
        let text = read(&page)?;
        let folder = page.parent().context("a page is in a folder")?;
        let name = page.strip_prefix(root)?.display().to_string();
        let lost = links(&text).filter(|link| !folder.join(link).exists());
        broken.extend(lost.map(|link| format!("{name} links to {link}, which does not exist")));
        let lost = test_names(&text).filter(|test| !source.contains(test));
        broken.extend(lost.map(|test| format!("{name} names the test {test}, which does not exist")));
    }
    Ok(broken)
}

pub(crate) fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| file.display().to_string())
}

pub(crate) fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, extension, files)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// Targets of `[text](target)` inside the checkout, without their anchors.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    let inside = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    inside.map(|target| target.split('#').next().unwrap_or_default())
}

/// What stands in backticks and is written like the name of a test. Names with a variable part are left out.
fn test_names(text: &str) -> impl Iterator<Item = &str> {
    let is_name = |word: &&str| {
        word.matches('_').count() >= TEST_NAME_UNDERSCORES
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    text.split('`').skip(1).step_by(2).filter(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_name_only_files_and_tests_that_exist() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert_eq!(broken(root).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn links_and_names_of_tests_are_found() {
        let text =
            "See [a](a.md#x), [b](https://b) and `a_test_of_four_words`, `FLANNEL_A_B_C_D`, `one_two`.";
        assert_eq!(links(text).collect::<Vec<_>>(), ["a.md"]);
        assert_eq!(test_names(text).collect::<Vec<_>>(), ["a_test_of_four_words"]);
    }
}
