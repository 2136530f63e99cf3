//! CNI configurations that a runtime takes in place of ours, because their file names come first.

use std::fs;
use std::path::Path;

/// The file name of our configuration. Part of the interface.
pub(crate) const CONFLIST: &str = "10-flannel.conflist";

/// Folders of the runtimes that take the first configuration by name.
pub(crate) const FOLDERS: [&str; 2] = ["/etc/cni/net.d", "/var/lib/rancher/k3s/agent/etc/cni/net.d"];

/// Names of files that are shown; a folder has a handful.
const SHOWN: usize = 8;

/// A sentence for each of the [`FOLDERS`] where a configuration comes before ours.
pub(crate) fn all() -> Vec<String> {
    let folders = FOLDERS.iter().map(Path::new).filter(|folder| folder.join(CONFLIST).exists());
    folders.filter_map(before).collect()
}

/// Which configurations of this folder come before ours, once that is there.
pub(crate) fn before(folder: &Path) -> Option<String> {
    let entries = fs::read_dir(folder).ok()?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_conf = |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    let names = names.filter(is_conf).filter(|name| name.as_str() < CONFLIST);
    let mut first: Vec<_> = names.collect();
    if first.is_empty() {
        return None;
    }
    first.sort_unstable();
    first.truncate(SHOWN);
    let (list, folder) = (first.join(", "), folder.display());
    let comes = if first.len() == 1 { "comes" } else { "come" };
    Some(format!(
        "in {folder} {list} {comes} before {CONFLIST}, and the runtime takes the first: pods are not on this network (remove or \
         rename what comes before)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_ours_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(before(folder.path()), None);
        for name in ["05-other.conflist", "00-notes.txt", "20-later.conf"] {
            fs::write(folder.path().join(name), "{}").unwrap();
        }
        let text = before(folder.path()).unwrap();
        assert!(text.contains("05-other.conflist comes before 10-flannel.conflist"), "{text}");
        assert!(!text.contains("notes") && !text.contains("20-later"), "{text}");
        assert_eq!(before(Path::new("/nowhere")), None);
    }
}
