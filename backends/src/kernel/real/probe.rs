//! What this kernel has: asked of the kernel where that is possible, since what is asked for may come as a module.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::utsname::uname;
use subnet_lease::Family;

use super::nft;
use crate::netlink::{Batch, NetlinkError, Socket, link};
use crate::rules::RuleNames;
use crate::state::{Feature, LINK_KINDS, Sysctl, System, TableKey};

/// Asks. A feature counts as missing only when the kernel says so.
pub(super) fn system(route: &mut Socket, netfilter: Option<&mut Socket>) -> System {
    let kinds = LINK_KINDS.iter().map(|kind| (kind.feature, knows_kind(route, kind.word)));
    let mut there: Vec<_> = kinds.collect();
    there.extend([
        (Feature::NfTables, netfilter.is_some_and(knows_tables)),
        (Feature::Ipv6, Path::new("/proc/sys/net/ipv6").exists()),
        (Feature::BridgeNetfilter, Path::new("/proc/sys/net/bridge").exists()),
    ]);
    System {
        release: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        distribution: distribution(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        lacks: there.into_iter().filter(|(_, is)| !is).map(|(feature, _)| feature).collect(),
        settings: Sysctl::optional_here(),
    }
}

/// Asks for a device without saying which: refused in any case (EINVAL), and for a kind that nobody knows, neither the
/// kernel nor a module that it asked for, with another word. So no device is made and none has to be taken away.
fn knows_kind(route: &mut Socket, kind: &str) -> bool {
    let answers = route.apply(&mut bare_link(kind));
    !answers.into_iter().any(|answer| answer.is_err_and(|error| error.errno() == Errno::EOPNOTSUPP))
}

fn bare_link(kind: &str) -> Batch {
    let mut batch = Batch::new();
    link::kind(link::create(&mut batch, 0), kind);
    batch
}

fn knows_tables(netfilter: &mut Socket) -> bool {
    let unknown = |error: NetlinkError| {
        matches!(error.errno(), Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EINVAL)
    };
    let key = TableKey { family: Family::V4, names: RuleNames::Flannel };
    !nft::read(netfilter, key).is_err_and(unknown)
}

/// `ID` of os-release, a shell's assignment.
fn distribution(os_release: &str) -> String {
    let id = os_release.lines().find_map(|line| line.strip_prefix("ID="));
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    id.unwrap_or_default().chars().filter(plain).take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_one_plain_word() {
        for (text, expected) in [
            ("NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n", "debian"),
            ("ID=\"rhel\"\nID_LIKE=\"fedora\"", "rhel"),
            ("ID=x\u{1b}[2J", "x2J"),
            ("", ""),
        ] {
            assert_eq!(distribution(text), expected);
        }
    }
}
