//! Which way the host sends packets to an address.

use std::net::IpAddr;

use backends::IfName;
use backends::netlink::link::LinkView;
use backends::netlink::veth::get_link_at;
use backends::netlink::{Attrs, Batch, Socket, address_bytes, family_of, read_u32};

/// The interface towards an address; none when there is no way.
pub(crate) fn interface_to(socket: &mut Socket, ip: IpAddr) -> Option<IfName> {
    let address = address_bytes(&ip);
    let mut header = [0; RTM];
    header[0] = family_of(&ip);
    header[1] = u8::try_from(address.len() * 8).unwrap_or(0);
    let mut ask = Batch::new();
    ask.message(GETROUTE, REQUEST, &header).attr(DESTINATION, &address);
    let index =
        socket.get(&mut ask, |message| Attrs::after(message.payload, RTM).find(OUT).and_then(read_u32));
    let index = index.ok()??;
    socket
        .get(&mut get_link_at(index), |message| LinkView::parse(&message).ok().map(|link| link.name))
        .ok()?
}

/// Size of `struct rtmsg`.
const RTM: usize = 12;
const REQUEST: u16 = 1;
/// `RTM_GETROUTE`.
const GETROUTE: u16 = 26;
/// `RTA_DST`.
const DESTINATION: u16 = 1;
/// `RTA_OIF`.
const OUT: u16 = 4;
