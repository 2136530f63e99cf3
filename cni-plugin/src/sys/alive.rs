//! Which addresses the network namespaces of this host have: the proof that one is free.
//!
//! ```text
//!   /proc/<pid>/ns/net           namespaces of processes          ─┐
//!   /proc/self/mountinfo, nsfs   namespaces kept by a mount       ─┼─▶ entered, each once ─▶ its addresses
//!   veth pairs of our own        namespaces at their other ends   ───▶ asked from here    ─▶ its addresses
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use backends::local::mounts;
use backends::netlink::address::{AddressView, dump_addresses, dump_addresses_in};
use backends::netlink::link::{LinkView, dump_links};
use backends::netlink::{Batch, Socket};

use crate::contract::{Code, During, Failure};
use crate::sys::netns::Namespace;

/// An address that a namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) ip: IpAddr,
    /// Index of the host's end, where the address is on the other end of a veth pair of this namespace.
    pub(crate) host_end: Option<u32>,
}

/// Every address of every namespace that can be found, ours among them.
///
/// # Errors
/// When one of them cannot be looked into: then what is not in the list proves nothing.
pub(crate) fn addresses() -> Result<Vec<Live>, Failure> {
    let own = Namespace::own()?;
    let mut found = behind_pairs()?;
    let mut seen = BTreeSet::new();
    for path in paths()? {
        // Gone since it was listed.
        let Ok(namespace) = Namespace::open(&path.to_string_lossy()) else { continue };
        if !seen.insert(namespace.id()) {
            continue;
        }
        let mut socket = namespace.socket(&own)?;
        let ips = read(&mut socket, dump_addresses(0))?;
        found.extend(ips.into_iter().map(|(ip, _)| Live { ip, host_end: None }));
    }
    Ok(found)
}

/// The addresses at the other ends of this namespace's veth pairs.
pub(crate) fn behind_pairs() -> Result<Vec<Live>, Failure> {
    let mut socket = Socket::route().during(Code::Kernel, || "no netlink socket".into())?;
    let mut pairs = Vec::new();
    let listed = socket.dump(&mut dump_links(Some("veth")), |message| {
        let link = LinkView::parse(&message).ok();
        pairs.extend(link.and_then(|link| Some((link.peer_namespace?, link.peer, link.index))));
    });
    listed.during(Code::Kernel, || "cannot list the veth pairs".into())?;
    let namespaces: BTreeSet<_> = pairs.iter().map(|(namespace, ..)| *namespace).collect();
    let mut found = Vec::new();
    for namespace in namespaces {
        for (ip, link) in read(&mut socket, dump_addresses_in(namespace))? {
            let end = pairs.iter().find(|(of, peer, _)| (*of, *peer) == (namespace, link));
            found.push(Live { ip, host_end: end.map(|(.., index)| *index) });
        }
    }
    Ok(found)
}

/// Addresses with the index of their link.
fn read(socket: &mut Socket, mut request: Batch) -> Result<Vec<(IpAddr, u32)>, Failure> {
    let mut found = Vec::new();
    let read = socket.dump(&mut request, |message| {
        found.extend(AddressView::parse(&message).map(|address| (address.net.ip(), address.link)));
    });
    read.during(Code::Kernel, || "cannot read the addresses of a namespace".into())?;
    Ok(found)
}

/// Where namespaces can be opened; many of them are the same one.
fn paths() -> Result<Vec<PathBuf>, Failure> {
    let what = || "cannot list the processes".to_owned();
    let mut seen = BTreeSet::new();
    let mut paths = Vec::new();
    for entry in fs::read_dir("/proc").during(Code::Io, what)? {
        let name = entry.during(Code::Io, what)?.file_name();
        let path = PathBuf::from("/proc").join(&name).join("ns/net");
        if !name.to_string_lossy().starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        // Reading the link is cheaper than opening it; a process that is gone has none.
        if fs::read_link(&path).is_ok_and(|target| seen.insert(target)) {
            paths.push(path);
        }
    }
    paths.extend(mounts::network_namespaces().during(Code::Io, || "cannot list the mounts".into())?);
    Ok(paths)
}
