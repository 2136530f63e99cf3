//! The loopback plugin: the container's `lo` is up. `CNI_IFNAME` is not looked at, since there is only one.

use backends::IfName;
use backends::netlink::address::{AddressView, dump_addresses};
use backends::netlink::link::{self, IFF_UP, LinkView, get_link};
use backends::netlink::{Batch, Socket};
use ipnetwork::IpNetwork;

use crate::contract::{Address, Attachment, Call, Code, Device, During, Failure, Interface};
use crate::plugin::Plugin;
use crate::sys::netns::{Namespace, NoEntry};

/// The row of the table.
pub(crate) const PLUGIN: Plugin =
    Plugin { name: "loopback", add, del, check, status: |_| Ok(()), gc: |_| Ok(()) };

fn add(call: &Call) -> Result<Attachment, Failure> {
    let previous = call.previous()?;
    let own = Namespace::own()?;
    let mut inside = Namespace::of(call, &own)?.socket(&own)?;
    let (index, _) = find(&mut inside)?;
    set(&mut inside, index, IFF_UP)?;
    let addresses = addresses(&mut inside, index)?;
    if let Some(net) = addresses.iter().find(|net| !net.ip().is_loopback()) {
        return Err(Failure::new(
            Code::Config,
            format!("lo of the container has {net}, which is no loopback address"),
        ));
    }
    Ok(previous.unwrap_or_else(|| result(call, &addresses)))
}

/// The first address of each family, IPv4 first.
fn result(call: &Call, addresses: &[IpNetwork]) -> Attachment {
    let lo = Interface {
        name: IfName::from_kernel(LO.as_bytes()),
        mac: backends::Mac::default().to_string(),
        mtu: 0,
        sandbox: call.netns.clone(),
        device: Device::default(),
    };
    let first = |v4: bool| addresses.iter().find(|net| net.is_ipv4() == v4);
    let ips = [first(true), first(false)].into_iter().flatten();
    Attachment {
        interfaces: vec![lo],
        ips: ips.map(|net| Address { net: *net, gateway: None, interface: Some(0) }).collect(),
        ..Attachment::default()
    }
}

fn del(call: &Call) -> Result<(), Failure> {
    let own = Namespace::own()?;
    match Namespace::of(call, &own) {
        Ok(namespace) => match namespace.socket(&own) {
            Ok(mut inside) => find(&mut inside).and_then(|(index, _)| set(&mut inside, index, 0)),
            // It is there, and is no namespace.
            Err(_) => Ok(()),
        },
        Err(NoEntry::Gone(_) | NoEntry::Own(_)) => Ok(()),
    }
}

fn check(call: &Call) -> Result<(), Failure> {
    let own = Namespace::own()?;
    let mut inside = Namespace::of(call, &own)?.socket(&own)?;
    match find(&mut inside)? {
        (_, flags) if flags & IFF_UP != 0 => Ok(()),
        _ => Err(Failure::new(Code::Check, "lo of the container is down")),
    }
}

/// Index and flags.
fn find(inside: &mut Socket) -> Result<(u32, u32), Failure> {
    let what = || "cannot read lo of the container".to_owned();
    let mut ask = get_link(IfName::from_kernel(LO.as_bytes()));
    let found =
        inside.get(&mut ask, |message| LinkView::parse(&message).ok().map(|link| (link.index, link.flags)));
    found.during(Code::Kernel, what)?.ok_or_else(|| Failure::new(Code::Kernel, what()))
}

fn set(inside: &mut Socket, index: u32, flags: u32) -> Result<(), Failure> {
    let mut batch = Batch::new();
    link::change(&mut batch, index, flags, IFF_UP);
    inside.request(&mut batch).during(Code::Kernel, || "cannot set lo of the container up or down".into())
}

fn addresses(inside: &mut Socket, index: u32) -> Result<Vec<IpNetwork>, Failure> {
    let mut found = Vec::new();
    let read = inside.dump(&mut dump_addresses(index), |message| {
        found.extend(AddressView::parse(&message).ok().filter(|a| a.link == index).map(|a| a.net));
    });
    read.during(Code::Kernel, || "cannot read the addresses of lo of the container".into())?;
    Ok(found)
}

const LO: &str = "lo";
