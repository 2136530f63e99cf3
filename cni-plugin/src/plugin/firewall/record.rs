//! Whose an address is, and what lets it pass: a file for each, named after the address. The rules themselves do not say
//! it, since the reference plugin must be able to delete them.
//!
//! ```text
//!   /run/cni/firewall/10.244.1.2     net/c1/eth0
//!                                    iptables            or: firewalld trusted
//! ```

use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use backends::local::files::Draft;

use crate::sys::{hash, small_file};

/// What lets an address pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gate {
    Iptables,
    /// A zone of firewalld.
    Zone(String),
}

impl Gate {
    fn text(&self) -> String {
        match self {
            Self::Iptables => "iptables".to_owned(),
            Self::Zone(zone) => format!("firewalld {zone}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == "iptables" {
            return Some(Self::Iptables);
        }
        text.strip_prefix("firewalld ").map(|zone| Self::Zone(zone.to_owned()))
    }
}

/// Records that these addresses belong to an attachment now. Where the record cannot be written, as on a host with a
/// read-only `/run/cni`, the rules work all the same; the error is printed.
pub(super) fn write(folder: &Path, addresses: &[IpAddr], owner: &str, gate: &Gate) {
    let text = format!("{owner}\n{}", gate.text());
    let one = |ip: &IpAddr| {
        let mut file = Draft::named(&folder.join(ip.to_string()), draft(folder, owner), 0o600)?;
        file.write_all(text.as_bytes())?;
        file.put()
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    if let Err(error) = made.and_then(|()| addresses.iter().try_for_each(one)) {
        let folder = folder.display();
        eprintln!(
            "firewall: cannot write to {folder}: {error}; a DEL without a \"prevResult\" leaves the rules"
        );
    }
}

/// Under this name a file is written before it gets its own: what an attachment left of it can be found.
fn draft(folder: &Path, owner: &str) -> PathBuf {
    folder.join(hash::name("draft-", owner, 24))
}

/// Removes what was left of a file that was not finished.
pub(super) fn forget_draft(folder: &Path, owner: &str) {
    let _ = fs::remove_file(draft(folder, owner));
}

/// Who has an address; none where nothing is written.
pub(super) fn owner(folder: &Path, ip: IpAddr) -> Option<String> {
    line(folder, ip, 0).filter(|owner| !owner.is_empty())
}

/// What lets an address pass; none where that is not written.
pub(super) fn gate(folder: &Path, ip: IpAddr) -> Option<Gate> {
    Gate::parse(&line(folder, ip, 1)?)
}

fn line(folder: &Path, ip: IpAddr, n: usize) -> Option<String> {
    small_file::read(&folder.join(ip.to_string())).ok()?.lines().nth(n).map(str::to_owned)
}

/// The addresses whose owner is meant.
pub(super) fn find(folder: &Path, meant: impl Fn(&str) -> bool) -> Vec<IpAddr> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let ips = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ips.filter(|ip| owner(folder, *ip).is_some_and(|owner| meant(&owner))).collect()
}

/// Removes what is recorded of an address. What cannot be removed is named: the rules are gone, and the next owner of
/// the address replaces the record.
pub(super) fn forget(folder: &Path, ip: IpAddr) {
    match fs::remove_file(folder.join(ip.to_string())) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            eprintln!("firewall: cannot remove {ip} from {}: {error}", folder.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::scratch::Folder;

    #[test]
    fn an_address_has_the_owner_that_came_last() {
        let folder = Folder::new();
        let path = folder.path().join("firewall");
        let ips: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fc00::2".parse().unwrap()];
        let zone = Gate::Zone("trusted".to_owned());
        write(&path, &ips, "n/c1/eth0", &zone);
        write(&path, &ips[..1], "n/c2/eth0", &Gate::Iptables);
        assert_eq!(ips.map(|ip| gate(&path, ip)), [Some(Gate::Iptables), Some(zone)]);
        assert_eq!(owner(&path, ips[0]).as_deref(), Some("n/c2/eth0"));
        assert_eq!(find(&path, |owner| owner == "n/c1/eth0"), [ips[1]]);
        fs::write(draft(&path, "n/c1/eth0"), "n/c1/eth0").unwrap();
        forget_draft(&path, "n/c1/eth0");
        assert!(!draft(&path, "n/c1/eth0").exists());
        fs::write(path.join("notes"), "n/c1/eth0").unwrap();
        fs::write(path.join("10.0.0.9"), "").unwrap();
        assert_eq!(find(&path, |_| true).len(), 2);
        fs::write(path.join("10.0.0.8"), "n/c1/eth0").unwrap();
        assert_eq!(gate(&path, "10.0.0.8".parse().unwrap()), None);
        ips.into_iter().for_each(|ip| forget(&path, ip));
        forget(&path, ips[0]);
        assert_eq!(owner(&path, ips[0]), None);
    }
}
