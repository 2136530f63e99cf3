//! Who may have set a kernel setting that is set back again and again. The kernel does not report who wrote to `/proc/sys`, so
//! this is a search: files that set it at the boot, and programs known to set such.

use std::fs;
use std::path::{Path, PathBuf};

/// Where `sysctl --system` and systemd-sysctl read.
const FOLDERS: [&str; 4] = ["etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d"];
const FILE: &str = "etc/sysctl.conf";

/// Programs that set forwarding, filters or RA of links that they manage, by the names of their processes; the kernel cuts
/// names at fifteen bytes.
const PROGRAMS: [(&str, &str); 7] = [
    ("systemd-network", "systemd-networkd"),
    ("NetworkManager", "NetworkManager"),
    ("connmand", "connman"),
    ("tuned", "tuned"),
    ("dockerd", "docker"),
    ("firewalld", "firewalld"),
    ("ufw", "ufw"),
];

/// No file of settings is longer, in bytes.
const LONGEST: u64 = 1 << 20;
/// So many are named.
const NAMED: usize = 6;

/// Files and programs that may set this path below `/proc/sys` to something other than `ours`.
pub(crate) fn suspects(root: &Path, path: &str, ours: &str) -> Vec<String> {
    let Some(key) = path.strip_prefix("/proc/sys/") else { return Vec::new() };
    let files = files(root).into_iter().filter_map(|file| set_in(&file, key, ours));
    files.chain(programs(root)).take(NAMED).collect()
}

fn files(root: &Path) -> Vec<PathBuf> {
    let of_folder = |folder: &&str| {
        let entries =
            fs::read_dir(root.join(folder)).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<_> =
            entries.filter(|path| path.extension().is_some_and(|end| end == "conf")).collect();
        files.sort();
        files
    };
    FOLDERS.iter().flat_map(of_folder).chain([root.join(FILE)]).collect()
}

/// The file and its line, where that sets the key to another value.
fn set_in(file: &Path, key: &str, ours: &str) -> Option<String> {
    let length = fs::metadata(file).ok()?.len();
    let text = if length <= LONGEST { fs::read_to_string(file).ok()? } else { return None };
    let is_other = |line: &&str| {
        let line = line.trim().trim_start_matches('-');
        let is_comment = line.starts_with(['#', ';']);
        let set = line.split_once('=').map(|(name, value)| (spelled(name.trim()), value.trim()));
        !is_comment && set.is_some_and(|(name, value)| matches(&name, key) && value != ours)
    };
    // Of several in one file the last is in force.
    let line = text.lines().rfind(is_other)?;
    Some(format!("{} has `{}`", file.display(), line.trim()))
}

/// With slashes; the first of dots and slashes that is used separates, and the other stands for itself.
fn spelled(name: &str) -> String {
    let first = name.find(['.', '/']).map(|at| &name[at..=at]);
    if first == Some("/") {
        return name.to_owned();
    }
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    name.chars().map(swap).collect()
}

/// Names are equal part by part, where `*` is any; `all` and `default` reach new links.
fn matches(name: &str, key: &str) -> bool {
    let (names, keys): (Vec<_>, Vec<_>) = (name.split('/').collect(), key.split('/').collect());
    let is_one =
        |(name, key): (&&str, &&str)| name == key || *name == "*" || matches!(*name, "all" | "default");
    names.len() == keys.len() && names.iter().zip(&keys).all(is_one)
}

fn programs(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    let running: Vec<String> = names.map(|name| name.trim_end().to_owned()).collect();
    let is_running = |(name, _): &&(&str, &str)| running.iter().any(|other| other == name);
    PROGRAMS.iter().filter(is_running).map(|(_, program)| format!("{program} runs")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_set_another_value_and_running_programs_are_named() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "etc/sysctl.d/10-hard.conf",
            "# net.ipv4.ip_forward = 0\nnet.ipv4.ip_forward=1\n -net.ipv4.ip_forward = 0\n",
        );
        write("etc/sysctl.d/90-flannel.conf", "net.ipv4.ip_forward = 1\n");
        write("etc/sysctl.d/README", "net.ipv4.ip_forward = 0\n");
        write(
            "usr/lib/sysctl.d/50-default.conf",
            "net.ipv4.conf.*.rp_filter = 1\nnet/ipv4/conf/eth0.7/rp_filter = 1\n",
        );
        write("etc/sysctl.conf", "net/ipv4/ip_forward=0\n");
        write("proc/7/comm", "systemd-network\n");
        write("proc/8/comm", "bash\n");
        let found = |path: &str, ours| {
            let found = suspects(root.path(), path, ours);
            found.iter().map(|line| line.replace(root.path().to_str().unwrap(), "")).collect::<Vec<_>>()
        };
        assert_eq!(
            found("/proc/sys/net/ipv4/ip_forward", "1"),
            [
                "/etc/sysctl.d/10-hard.conf has `-net.ipv4.ip_forward = 0`",
                "/etc/sysctl.conf has `net/ipv4/ip_forward=0`",
                "systemd-networkd runs",
            ]
        );
        let filter = "/usr/lib/sysctl.d/50-default.conf has `net.ipv4.conf.*.rp_filter = 1`";
        assert_eq!(
            found("/proc/sys/net/ipv4/conf/flannel.1/rp_filter", "2"),
            [filter, "systemd-networkd runs"]
        );
        let dotted = "/usr/lib/sysctl.d/50-default.conf has `net/ipv4/conf/eth0.7/rp_filter = 1`";
        assert_eq!(found("/proc/sys/net/ipv4/conf/eth0.7/rp_filter", "2")[0], dotted);
        assert!(found("ip route replace 10.42.9.0/24", "1").is_empty());
    }
}
