//! Files with settings, which are read at the start alone: the one of `--config`, and the environment file of the daemon's unit.
//! What changes in them later has no effect before the next start, and whoever changed them should learn that.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::raw::{Environment, RawConfig, environment_file};
use crate::cli::{self, Given};

/// The environment file of the unit that comes with this program.
pub(crate) const UNIT_FILE: &str = "/etc/default/flanneld";

/// No file of settings is longer, in bytes.
const LONGEST: u64 = 1 << 20;

/// The files, and what the settings were at the start.
#[derive(Debug)]
pub struct SettingsFiles {
    given: Vec<Given>,
    environment: Environment,
    /// The unit's file with its variables, where the daemon was started with them.
    unit: Option<(PathBuf, Environment)>,
    config: Option<PathBuf>,
    started: RawConfig,
}

impl SettingsFiles {
    /// Of a daemon with these flags and this environment.
    pub(crate) fn at_start(given: &[Given], environment: &Environment, unit: &Path) -> Self {
        let is_in_force = |(name, value): (&String, &String)| environment.get(name) == Some(value);
        let file = variables(unit).filter(|file| !file.is_empty() && file.iter().all(is_in_force));
        let (started, _) = RawConfig::gather_of_process(given, environment);
        let config = Some(started.one("config")).filter(|path| !path.is_empty());
        Self {
            given: given.to_vec(),
            environment: environment.clone(),
            unit: file.map(|file| (unit.to_owned(), file)),
            config: config.map(PathBuf::from),
            started,
        }
    }

    /// Which settings a restart would change.
    pub(crate) fn changed(&self) -> Option<String> {
        let mut environment = self.environment.clone();
        // A file that is being replaced is missing for a moment.
        if let Some((now, started)) = self.unit.as_ref().and_then(|(path, s)| Some((variables(path)?, s))) {
            environment.retain(|name, _| !started.contains_key(name));
            environment.extend(now);
        }
        if self.config.as_ref().is_some_and(|path| !path.exists()) {
            return None;
        }
        let (now, wrong) = RawConfig::gather_of_process(&self.given, &environment);
        if !wrong.is_empty() {
            return Some(format!("{}; flanneld would not start with that again", wrong.join("; ")));
        }
        let differs = |name: &&str| now.setting(name).values != self.started.setting(name).values;
        let names: BTreeSet<_> = cli::rows().map(|flag| flag.name).filter(differs).collect();
        let names: Vec<_> = names.into_iter().collect();
        let files: Vec<_> = self.files().map(|path| path.display().to_string()).collect();
        (!names.is_empty()).then(|| {
            format!(
                "{} changed since the start ({}), and flanneld runs with what was in it: restart flanneld to use it",
                files.join(" or "),
                names.join(", ")
            )
        })
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        self.unit.iter().map(|(path, _)| path.as_path()).chain(self.config.as_deref())
    }

    /// The folders to watch.
    pub(crate) fn folders(&self) -> Vec<String> {
        self.files().filter_map(|path| Some(path.parent()?.to_str()?.to_owned())).collect()
    }
}

/// The daemon's variables in the unit's file.
fn variables(path: &Path) -> Option<Environment> {
    let length = fs::metadata(path).ok()?.len();
    let text = if length <= LONGEST { fs::read_to_string(path).ok()? } else { return None };
    let mut variables = environment_file(&text);
    variables.retain(|name, _| name.starts_with("FLANNELD_"));
    Some(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_unit_s_file_is_named_and_one_of_another_daemon_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flanneld");
        let write = |text: &str| fs::write(&path, text).unwrap();
        let environment =
            |value: &str| Environment::from([("FLANNELD_IP_MASQ".to_owned(), value.to_owned())]);
        write("# ours\nFLANNELD_IP_MASQ=\"true\"\nPATH=/bin\n");
        let files = SettingsFiles::at_start(&[], &environment("true"), &path);
        let other = SettingsFiles::at_start(&[], &environment("false"), &path);
        assert_eq!((files.changed(), other.changed()), (None, None));
        write("FLANNELD_IP_MASQ=true\nPATH=/sbin\n");
        assert_eq!(files.changed(), None, "other spelling, same settings");
        write("FLANNELD_IP_MASQ=false\nFLANNELD_IFACE=eth1\n");
        let said = files.changed().unwrap();
        assert!(said.contains("flanneld changed since the start (iface, ip-masq)"), "{said}");
        assert!(said.contains("restart flanneld") && other.changed().is_none(), "{said}");
        fs::remove_file(&path).unwrap();
        assert_eq!(files.changed(), None);
    }

    #[test]
    fn a_change_of_the_config_file_counts_where_no_flag_overrides_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flanneld.json");
        let write = |text: &str| fs::write(&path, text).unwrap();
        write(r#"{"ip-masq": true, "iface": "eth0"}"#);
        let given = [("config", path.to_str().unwrap()), ("iface", "eth9")]
            .map(|(name, value)| Given { name, value: value.to_owned() });
        let files = SettingsFiles::at_start(&given, &Environment::new(), Path::new("/nowhere/flanneld"));
        assert_eq!(files.changed(), None);
        assert_eq!(files.folders(), [folder.path().to_str().unwrap()]);
        write(r#"{"ip-masq": true, "iface": "eth1"}"#);
        assert_eq!(files.changed(), None, "the flag is in force");
        write(r#"{"ip-masq": false}"#);
        assert!(files.changed().unwrap().contains("(ip-masq)"));
        write(r#"{"ip-masq": "#);
        assert!(files.changed().unwrap().contains("would not start"));
    }
}
