//! Words that must not come back into code and documents, because each of them stood for several ideas.
//!
//! The glossary (`flanneld/docs/glossary.md`) has the words to use instead.

use std::path::Path;

use crate::documents::{collect, read};

/// The verb that stood for publish, notify, record, log and report.
const NEVER: [&str; 4] = ["tell", "tells", "told", "telling"];

/// Where the words are gone. Folders and files are added, never removed.
const CLEAN: [&str; 38] = [
    "README.md",
    "backends/src/backend",
    "backends/src/local",
    "backends/src/netlink",
    "backends/src/plan",
    "backends/src/plane",
    "backends/src/state",
    "cni-plugin",
    "flanneld/src",
    "netns-harness",
    "tests/benches",
    "tests/src/arrows",
    "tests/src/bin",
    "tests/src/conformance",
    "tests/src/fuzz",
    "tests/src/world",
    "tests/suites",
    "flanneld/docs/README.md",
    "flanneld/docs/bench.md",
    "flanneld/docs/cni-chain.md",
    "flanneld/docs/cni-config.md",
    "flanneld/docs/cni-proof.md",
    "flanneld/docs/cni.md",
    "flanneld/docs/config.md",
    "flanneld/docs/flags.md",
    "flanneld/docs/formats.md",
    "flanneld/docs/harness.md",
    "flanneld/docs/host.md",
    "flanneld/docs/install.md",
    "flanneld/docs/kubernetes.md",
    "flanneld/docs/lease.md",
    "flanneld/docs/netlink.md",
    "flanneld/docs/operate.md",
    "flanneld/docs/reconcile.md",
    "flanneld/docs/recorder.md",
    "flanneld/docs/threats.md",
    "flanneld/docs/traffic.md",
    "flanneld/docs/troubleshooting.md",
];

/// Lines with such a word in the workspace at `root`.
///
/// # Errors
/// When a file cannot be read.
pub fn broken(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for place in CLEAN {
        let place = root.join(place);
        if place.is_dir() {
            collect(&place, "rs", &mut files)?;
        } else {
            files.push(place);
        }
    }
    let mut broken = Vec::new();
    for file in files {
        let text = read(&file)?;
        let name = file.strip_prefix(root)?.display();
        let lines = text.lines().zip(1..).filter_map(|(line, number)| Some((number, word(line)?)));
        broken.extend(lines.map(|(number, word)| format!("{name}:{number} has the word {word:?}")));
    }
    Ok(broken)
}

/// The first such word. Parts of names count, because `_` separates words.
fn word(line: &str) -> Option<&str> {
    line.split(|c: char| !c.is_alphabetic()).find(|word| NEVER.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_do_not_come_back() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert_eq!(broken(root).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_word_is_found_in_prose_and_in_names_and_not_inside_other_words() {
        assert_eq!(word("the kernel tells it"), Some("tells"));
        assert_eq!(word("let was_told = 1;"), Some("told"));
        assert_eq!(word("tellurium, retold stories"), None);
    }
}
