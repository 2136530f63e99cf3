//! Which settings a verb goes by. On a node they are those of the daemon that runs there, so that `plan` shows what that
//! daemon would do and `lease list` asks the daemon's store with the daemon's credentials.
//!
//! ```text
//!   flags  >  variables of this shell  >  the running daemon, or without one its unit's environment file  >  defaults
//!
//!   socket ─▶ process id ─▶ /proc/PID/{cmdline,environ}: the kernel decides who may read them, and no password is sent
//! ```

use std::fs;
use std::io;
use std::path::Path;

use backends::local::daemon::DAEMONS;
use subnet_lease::NetworkId;

use crate::cli::Given;
use crate::config::{Environment, RawConfig, Source, environment_file};
use crate::serve::socket;
use crate::shell::block_on;
use crate::shell::rival;

/// Where this program runs.
pub(super) struct Surroundings<'a> {
    pub(super) environment: &'a Environment,
    pub(super) unit_file: &'a Path,
    /// Columns of the terminal; none where the output goes elsewhere.
    pub(super) width: Option<usize>,
}

/// These decide together who may use a store: they are taken together or not at all.
const CREDENTIALS: [&str; 5] =
    ["etcd-cafile", "etcd-certfile", "etcd-keyfile", "etcd-username", "etcd-password"];

/// The settings of this command line alone.
pub(super) fn alone(given: &[Given], around: &Surroundings<'_>) -> RawConfig {
    RawConfig::gather(given, around.environment)
}

/// The settings of this node, and sentences on where they come from.
pub(super) fn on_node(given: &[Given], around: &Surroundings<'_>) -> (RawConfig, Vec<String>) {
    let own = alone(given, around);
    let mut notices = Vec::new();
    let found = running(&own, &mut notices).or_else(|| unit(&own, around.unit_file, &mut notices));
    let Some((base, place)) = found else { return (own, notices) };
    (combined(own, &base, &place, &mut notices), notices)
}

/// Adds the node's settings to those given here. Credentials go only to the servers that they were written for.
fn combined(own: RawConfig, base: &RawConfig, place: &str, notices: &mut Vec<String>) -> RawConfig {
    let is_own = |name: &str| own.setting(name).source != Source::Default;
    let servers = |raw: &RawConfig| -> Vec<String> {
        let list =
            raw.one("etcd-endpoints").split(',').map(|one| one.trim().trim_end_matches('/').to_owned());
        list.collect()
    };
    let known = servers(base);
    let elsewhere = is_own("etcd-endpoints") && !servers(&own).iter().all(|one| known.contains(one));
    let leave_out = elsewhere || CREDENTIALS.iter().any(|name| is_own(name));
    let is_left_out = |name: &str| leave_out && CREDENTIALS.contains(&name);
    if elsewhere && CREDENTIALS.iter().any(|name| base.setting(name).source != Source::Default) {
        notices
            .push(format!("the credentials of {place} are not used: --etcd-endpoints names other servers"));
    }
    let (raw, taken) = own.or(base, is_left_out);
    if !taken.is_empty() {
        notices.push(format!("settings of {place} are used: {}", taken.join(", ")));
    }
    raw
}

type Found = Option<(RawConfig, String)>;

/// The daemon of this network that runs here, ours or a Go one; where no network was named, the only one that runs.
fn running(own: &RawConfig, notices: &mut Vec<String>) -> Found {
    let prefix = own.setting("etcd-prefix");
    let named = (prefix.source != Source::Default).then(|| own.one("etcd-prefix").to_owned());
    let usual = NetworkId::new(own.one("etcd-prefix"));
    let holder = block_on(async { Ok(socket::holder(Path::new(DAEMONS), &usual).await) }).ok().flatten();
    let pid = match holder {
        Some(pid) => pid,
        None => {
            let others = if named.is_none() { other_daemons() } else { Vec::new() };
            match others[..] {
                [only] => Some(only),
                [] => rival::find(&usual, Path::new(DAEMONS))?.pid,
                _ => {
                    notices.push(
                        "several flannelds run on this host, and none is of the usual network: --etcd-prefix names one"
                            .to_owned(),
                    );
                    return None;
                }
            }
        }
    };
    let Some(pid) = pid else {
        notices.push(
            "the process of the running flanneld is not visible from here, so its settings are not used"
                .to_owned(),
        );
        return None;
    };
    match rival::settings(pid) {
        Ok((raw, problem)) => {
            notices.extend(problem.map(|why| format!("flanneld (pid {pid}): {why}")));
            Some((raw.of_daemon(), format!("the running flanneld (pid {pid})")))
        }
        Err(error) => {
            let why = match error.kind() {
                io::ErrorKind::PermissionDenied => "only root can read them".to_owned(),
                _ => error.to_string(),
            };
            notices.push(format!("the settings of the running flanneld (pid {pid}) are not used: {why}"));
            None
        }
    }
}

fn other_daemons() -> Vec<u32> {
    block_on(async { Ok(socket::holders(Path::new(DAEMONS)).await) }).unwrap_or_default()
}

/// What the unit would start the daemon with; not where a network was named that is another one's.
fn unit(own: &RawConfig, file: &Path, notices: &mut Vec<String>) -> Found {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            notices.push(format!("{} is not used: {error}", file.display()));
            return None;
        }
    };
    let raw = RawConfig::gather(&[], &environment_file(&text)).of_environment_file(file);
    let prefix = own.setting("etcd-prefix");
    if prefix.source != Source::Default && own.one("etcd-prefix") != raw.one("etcd-prefix") {
        return None;
    }
    Some((raw, file.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(flags: &[(&'static str, &str)]) -> RawConfig {
        let given: Vec<_> =
            flags.iter().map(|(name, value)| Given { name, value: (*value).to_owned() }).collect();
        RawConfig::gather(&given, &Environment::new())
    }

    const DAEMON: [(&str, &str); 5] = [
        ("etcd-endpoints", "https://10.0.0.1:2379,https://10.0.0.2:2379"),
        ("etcd-username", "flannel"),
        ("etcd-password", "hunter2"),
        ("etcd-cafile", "/etc/ca.pem"),
        ("ip-masq", "true"),
    ];

    fn over(own: &[(&'static str, &str)]) -> (RawConfig, Vec<String>) {
        let mut notices = Vec::new();
        let base = raw(&DAEMON).of_daemon();
        let raw = combined(raw(own), &base, "the running flanneld (pid 7)", &mut notices);
        (raw, notices)
    }

    #[test]
    fn the_daemon_s_settings_are_used_and_named_and_its_password_is_not_shown() {
        let (raw, notices) = over(&[]);
        assert_eq!((raw.one("ip-masq"), raw.one("etcd-password")), ("true", "hunter2"));
        assert_eq!(raw.setting("ip-masq").source.to_string(), "flanneld's flag");
        assert!(notices[0].starts_with("settings of the running flanneld (pid 7) are used: "), "{notices:?}");
        assert!(notices[0].contains("ip-masq") && !notices.join("").contains("hunter2"), "{notices:?}");
        assert!(raw.effective().all(|(_, value, _)| !value.contains("hunter2")));
    }

    #[test]
    fn a_flag_given_here_overrides_the_daemon_s() {
        let (raw, notices) = over(&[("ip-masq", "false")]);
        assert_eq!((raw.one("ip-masq"), raw.one("etcd-username")), ("false", "flannel"));
        assert!(!notices[0].contains("ip-masq"), "{notices:?}");
    }

    #[test]
    fn credentials_go_to_the_daemon_s_own_servers_only() {
        let (raw, _) = over(&[("etcd-endpoints", "https://10.0.0.2:2379/")]);
        assert_eq!(raw.one("etcd-password"), "hunter2");
        let (raw, notices) = over(&[("etcd-endpoints", "https://192.0.2.9:2379")]);
        assert_eq!((raw.one("etcd-password"), raw.one("etcd-username")), ("", ""));
        assert!(notices[0].contains("are not used"), "{notices:?}");
        let (raw, _) = over(&[("etcd-username", "me"), ("etcd-password", "mine")]);
        assert_eq!(
            (raw.one("etcd-username"), raw.one("etcd-password"), raw.one("etcd-cafile")),
            ("me", "mine", "")
        );
    }

    #[test]
    fn without_a_daemon_the_unit_s_environment_file_counts_for_its_own_network() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flanneld");
        let mut notices = Vec::new();
        assert!(unit(&raw(&[]), &file, &mut notices).is_none() && notices.is_empty());
        fs::write(&file, "# settings\nFLANNELD_ETCD_PREFIX=/a\nFLANNELD_IP_MASQ=\"true\"\n").unwrap();
        let (found, place) = unit(&raw(&[]), &file, &mut notices).unwrap();
        assert_eq!((found.one("etcd-prefix"), found.one("ip-masq")), ("/a", "true"));
        assert_eq!(place, file.display().to_string());
        assert!(unit(&raw(&[("etcd-prefix", "/b")]), &file, &mut notices).is_none());
        assert!(unit(&raw(&[("etcd-prefix", "/a")]), &file, &mut notices).is_some());
    }
}
