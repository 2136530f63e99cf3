//! `flannelctl host-setup`: files that keep other programs from changing what is ours. `flannelctl cleanup` removes them.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use backends::local::files::Draft;
use serde_json::{Value, json};

use super::Answer;
use crate::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print what would be written. Nothing is written.
    #[arg(long)]
    dry_run: bool,
    /// The host's root directory, for a container that has it mounted or for an image.
    #[arg(long, default_value = "/")]
    root: PathBuf,
}

/// A file for another program.
struct DropIn {
    /// Below the root; its directory is made.
    path: &'static str,
    /// Where there is no such directory there is no such program.
    program: &'static str,
    text: &'static str,
    /// The command that applies it now; at the next boot it applies by itself.
    then: &'static str,
}

/// The first line of every file, by which it is known to be ours. Part of the format on disk.
const MARK: &str = "# Made by flannelctl host-setup";

const FILES: [DropIn; 6] = [
    DropIn {
        path: "etc/systemd/networkd.conf.d/10-flannel.conf",
        program: "etc/systemd",
        text: include_str!("../../dist/10-flannel-networkd.conf"),
        then: "systemctl try-restart systemd-networkd",
    },
    DropIn {
        path: "etc/systemd/network/10-flannel.network",
        program: "etc/systemd",
        text: include_str!("../../dist/10-flannel.network"),
        then: "systemctl try-restart systemd-networkd",
    },
    DropIn {
        path: "etc/systemd/network/10-flannel.link",
        program: "etc/systemd",
        text: include_str!("../../dist/10-flannel.link"),
        then: "udevadm control --reload",
    },
    DropIn {
        path: "etc/NetworkManager/conf.d/10-flannel.conf",
        program: "etc/NetworkManager",
        text: include_str!("../../dist/10-flannel-networkmanager.conf"),
        then: "systemctl reload NetworkManager",
    },
    DropIn {
        path: "etc/modules-load.d/flannel.conf",
        program: "etc/modules-load.d",
        text: include_str!("../../dist/flannel-modules.conf"),
        then: "systemctl restart systemd-modules-load",
    },
    DropIn {
        path: "etc/sysctl.d/90-flannel.conf",
        program: "etc/sysctl.d",
        text: include_str!("../../dist/90-flannel-sysctl.conf"),
        then: "sysctl --system",
    },
];

/// What is at a file's place.
enum Found {
    Nothing,
    /// Ours, of this or another version.
    Ours(String),
    Foreign,
}

pub(super) fn run(arguments: &Arguments) -> Result<Answer, Failure> {
    let (mut text, mut foreign, mut then) = (String::new(), Vec::new(), Vec::new());
    let mut written: Vec<Value> = Vec::new();
    for file in &FILES {
        let path = arguments.root.join(file.path);
        if !arguments.root.join(file.program).is_dir() {
            line(&mut text, &format!("# {}: no {} here", path.display(), file.program));
            continue;
        }
        match find(&path)? {
            Found::Ours(there) if there == file.text => continue,
            Found::Foreign => foreign.push(path.display().to_string()),
            Found::Nothing | Found::Ours(_) => {
                line(&mut text, &format!("cat > {} <<'END'\n{}END", path.display(), file.text));
                written.push(
                    json!({ "file": path.display().to_string(), "text": file.text, "then": file.then }),
                );
                then.extend(Some(file.then).filter(|then| !then.is_empty()));
                if !arguments.dry_run {
                    write(&path, file.text).map_err(|error| Failure::of(&path, &error))?;
                }
            }
        }
    }
    then.dedup();
    then.iter().for_each(|then| line(&mut text, &format!("# to apply it before the next boot: {then}")));
    if foreign.is_empty() {
        let json = json!({ "dry_run": arguments.dry_run, "files": written, "then": then });
        return Ok(Answer::new(json).text(if text.is_empty() { "nothing to do\n".to_owned() } else { text }));
    }
    let sentence =
        format!("{}: exists already and is not from host-setup; left unchanged", foreign.join(", "));
    Err(Failure::new(Exit::Failed, text + &sentence))
}

/// Removes files that are [ours](ours), whatever else somebody wrote into them.
pub(super) fn remove(files: &[PathBuf]) -> Result<(), Failure> {
    files.iter().try_for_each(|path| fs::remove_file(path).map_err(|error| Failure::of(path, &error)))
}

/// Our files that exist below this root.
pub(super) fn ours(root: &Path) -> Vec<PathBuf> {
    let paths = FILES.iter().map(|file| root.join(file.path));
    paths.filter(|path| matches!(find(path), Ok(Found::Ours(_)))).collect()
}

fn find(path: &Path) -> Result<Found, Failure> {
    match fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => Ok(Found::Ours(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Ok(_) => Ok(Found::Foreign),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Found::Foreign),
        Err(error) => Err(Failure::of(path, &error)),
    }
}

/// Written whole or not at all. The programs that read these folders ignore names that end so.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut draft = Draft::named(path, path.with_extension("new~"), 0o644)?;
    draft.write_all(text.as_bytes())?;
    draft.put()
}

fn line(text: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(directories: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        directories.iter().for_each(|dir| fs::create_dir_all(root.path().join(dir)).unwrap());
        root
    }

    fn setup(root: &Path, dry_run: bool) -> Result<String, Failure> {
        let answer = run(&Arguments { dry_run, root: root.to_owned() })?;
        Ok(answer.print(super::super::Form::Text, None))
    }

    const ALL: [&str; 4] = ["etc/systemd", "etc/NetworkManager", "etc/modules-load.d", "etc/sysctl.d"];

    #[test]
    fn every_file_begins_with_the_mark_and_says_what_it_is_for() {
        for file in &FILES {
            assert!(file.text.starts_with(MARK) && file.text.ends_with('\n'), "{}", file.path);
            assert!(file.text.lines().filter(|line| line.starts_with('#')).count() > 1, "{}", file.path);
            assert!(file.path.starts_with(file.program), "{}", file.path);
        }
    }

    #[test]
    fn a_dry_run_prints_all_and_writes_nothing_and_cleanup_takes_away_what_was_written() {
        let root = host(&ALL);
        let printed = setup(root.path(), true).unwrap();
        for word in
            ["ManageForeignRoutes=no", "Unmanaged=yes", "MACAddressPolicy=none", "br_netfilter", "ip_forward"]
        {
            assert!(printed.contains(word), "{word} in:\n{printed}");
        }
        assert!(ours(root.path()).is_empty(), "a dry run wrote something");
        assert_eq!(setup(root.path(), false).unwrap(), printed);
        assert_eq!(ours(root.path()).len(), FILES.len());
        assert_eq!(setup(root.path(), false).unwrap(), "nothing to do\n");
        remove(&ours(root.path())).unwrap();
        assert!(ours(root.path()).is_empty());
    }

    #[test]
    fn what_somebody_else_put_there_stays_and_is_named_and_an_older_one_of_ours_is_replaced() {
        let root = host(&ALL);
        let theirs = root.path().join(FILES[5].path);
        fs::write(&theirs, "net.ipv4.ip_forward = 0\n").unwrap();
        let older = root.path().join(FILES[4].path);
        fs::write(&older, format!("{MARK}, an older one\nudp_tunnel\n")).unwrap();
        let failure = setup(root.path(), false).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("90-flannel.conf: exists already"), "{failure}");
        assert_eq!(fs::read_to_string(&older).unwrap(), FILES[4].text);
        remove(&ours(root.path())).unwrap();
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "net.ipv4.ip_forward = 0\n");
    }

    #[test]
    fn a_host_without_a_program_gets_no_file_for_it() {
        let root = host(&ALL[2..]);
        let printed = setup(root.path(), false).unwrap();
        assert!(printed.contains("no etc/NetworkManager here"), "{printed}");
        assert_eq!(ours(root.path()).len(), 2);
        assert!(!root.path().join("etc/systemd").exists());
    }
}
