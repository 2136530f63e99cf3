//! subnet.env as the plugin needs it, and the wait for it.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::time::{ClockId, clock_gettime};
use subnet_lease::SubnetEnvLines;

use crate::contract::{Code, Failure};
use crate::sys::{daemon, small_file};

/// What the daemon published about this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Env {
    /// The cluster's networks, IPv4 first.
    pub(super) networks: Vec<IpNetwork>,
    /// This node's subnets, without host bits, IPv4 first.
    pub(super) subnets: Vec<IpNetwork>,
    /// In bytes.
    pub(super) mtu: u32,
    /// Whether the daemon masquerades.
    pub(super) ipmasq: bool,
}

impl Env {
    /// Reads the file. One that is missing or incomplete may be right in a moment.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let text = small_file::read(path).map_err(|error| unreadable(path, &error))?;
        if text.is_empty() && path.metadata().is_ok_and(|there| !there.is_file()) {
            return Err(Failure::new(Code::Io, format!("{} is not a regular file", path.display())));
        }
        Self::parse(&text).map_err(|reason| {
            Failure::new(Code::TryAgain, format!("{}: {reason}", path.display()))
                .details("flanneld writes this file; it is rewritten when flanneld starts")
        })
    }

    /// Reads the file, and while it is missing or incomplete waits for it, at most for `within`.
    pub(super) fn await_file(path: &Path, within: Duration) -> Result<Self, Failure> {
        match Self::read(path) {
            Err(failure) if failure.code == Code::TryAgain && !within.is_zero() => {
                watch(path, within, || Self::read(path))
                    .unwrap_or(Err(failure))
                    .map_err(|f| f.details(daemon::why()))
            }
            other => other,
        }
    }

    /// Either family may have networks without a subnet, as the multi-network flannels wrote it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let lines = SubnetEnvLines::parse(text).map_err(|error| error.to_string())?;
        let mut networks: Vec<_> = lines.networks.concat().into_iter().map(without_host_bits).collect();
        networks.dedup();
        let env = Self {
            networks,
            subnets: lines.subnets.into_iter().flatten().map(without_host_bits).collect(),
            mtu: lines.mtu.ok_or("FLANNEL_MTU is missing")?,
            ipmasq: lines.ipmasq.ok_or("FLANNEL_IPMASQ is missing")?,
        };
        match (env.networks.is_empty(), env.subnets.is_empty()) {
            (true, _) => Err("FLANNEL_NETWORK and FLANNEL_IPV6_NETWORK are missing".into()),
            (_, true) => Err("FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET are missing".into()),
            _ => Ok(env),
        }
    }
}

/// Reads again whenever something happens in the file's folder; none when that cannot be watched.
fn watch<T>(
    path: &Path,
    within: Duration,
    read: impl Fn() -> Result<T, Failure>,
) -> Option<Result<T, Failure>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    // The folder may be missing too: then the nearest existing one is watched until it appears.
    let folder = path.ancestors().skip(1).find(|folder| folder.is_dir())?;
    let happens = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
    inotify.add_watch(folder, happens).ok()?;
    let now = || clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).ok();
    let deadline = now()? + within;
    loop {
        let found = read();
        let left = deadline.saturating_sub(now()?);
        if found.is_ok() || left.is_zero() {
            return Some(found);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Some(found),
        }
        let _ = inotify.read_events();
        if path.parent() != Some(folder) && path.parent().is_some_and(Path::is_dir) {
            // The folder has come: watched itself from now on.
            return watch(path, deadline.saturating_sub(now()?), read);
        }
    }
}

fn without_host_bits(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let file = path.display();
    if error.kind() != ErrorKind::NotFound {
        return Failure::new(Code::Io, format!("cannot read {file}: {error}"));
    }
    // The daemon renames the file when another node took its subnet.
    let lost = path.with_file_name(path.file_name().map_or_else(Default::default, |name| {
        let mut name = name.to_owned();
        name.push(".lost");
        name
    }));
    if lost.exists() {
        let msg = format!(
            "this node has lost the lease of its subnet to another node: see {} and flanneld's log",
            lost.display()
        );
        return Failure::new(Code::TryAgain, msg).details("pods start again when flanneld has a new lease");
    }
    Failure::new(
        Code::TryAgain,
        format!("{file} does not exist: flanneld writes it once this node has a subnet"),
    )
    .details("is flanneld running on this node?")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn a_file_of_one_family_is_complete() {
        for (net, sub) in [
            ("NETWORK=10.0.0.0/8", "SUBNET=10.1.2.1/24"),
            ("IPV6_NETWORK=fc00::/48", "IPV6_SUBNET=fc00::1/64"),
        ] {
            let env = Env::parse(&format!("FLANNEL_{net}\nFLANNEL_{sub}\n{REST}# more\n=\nX\n")).unwrap();
            assert_eq!((env.networks.len(), env.subnets.len(), env.mtu, env.ipmasq), (1, 1, 1450, true));
            assert_eq!(env.subnets[0].ip(), env.subnets[0].network(), "host bits are cut");
        }
    }

    #[test]
    fn lists_of_networks_lose_their_duplicates() {
        let text =
            format!("FLANNEL_NETWORK=10.0.0.0/8,10.0.0.0/8, 11.0.0.0/8\nFLANNEL_SUBNET=10.1.2.1/24\n{REST}");
        assert_eq!(Env::parse(&text).unwrap().networks.len(), 2);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (text, named) in [
            ("", "FLANNEL_MTU"),
            ("FLANNEL_MTU=1450", "FLANNEL_IPMASQ"),
            (REST, "FLANNEL_NETWORK"),
            ("FLANNEL_MTU=x", "FLANNEL_MTU"),
            ("FLANNEL_NETWORK=10.0.0.0", "FLANNEL_NETWORK"),
            ("FLANNEL_NETWORK=fc00::/48", "FLANNEL_NETWORK"),
            ("FLANNEL_IPV6_SUBNET=10.1.2.1/24", "FLANNEL_IPV6_SUBNET"),
        ] {
            assert!(Env::parse(text).unwrap_err().contains(named), "{text}");
        }
        assert!(
            Env::parse(&format!("FLANNEL_NETWORK=10.0.0.0/8\n{REST}"))
                .unwrap_err()
                .contains("FLANNEL_SUBNET")
        );
    }

    #[test]
    fn a_missing_file_names_itself_and_the_daemon_and_a_lost_lease_the_reason() {
        let folder = crate::sys::scratch::Folder::new();
        let path = folder.path().join("subnet.env");
        let failure = Env::read(&path).unwrap_err();
        assert_eq!(failure.code, Code::TryAgain);
        let text = failure.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains("flanneld"), "{text}");
        std::fs::write(folder.path().join("subnet.env.lost"), "").unwrap();
        let failure = Env::read(&path).unwrap_err();
        assert_eq!(failure.code, Code::TryAgain);
        assert!(failure.to_string().contains("lost the lease"), "{failure}");
    }
}
