//! Tracked connections of UDP. They have neither end nor handshake, so they would go on to where a port led before.

use std::net::IpAddr;

use backends::netlink::address::{AddressView, dump_addresses};
use backends::netlink::{
    AF_INET, AF_INET6, Attrs, Batch, NetlinkError, RawMessage, Socket, address_from, read_u16,
};
use nix::errno::Errno;
use subnet_lease::Family;

/// A tracked connection of UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flow {
    family: Family,
    /// Where its first packet was sent to.
    pub(super) to: (IpAddr, u16),
    /// Where that packet went in the end, which is where answers come from.
    pub(super) answers: (IpAddr, u16),
    /// What names it to the kernel: attributes as they came.
    name: Vec<(u16, Vec<u8>)>,
}

/// Deletes the connections of one family that are meant.
pub(super) fn forget(
    socket: &mut Socket,
    family: Family,
    meant: impl Fn(&Flow) -> bool,
) -> Result<(), NetlinkError> {
    let mut flows = Vec::new();
    socket.dump(&mut dump_udp(family), |message| {
        flows.extend(Flow::read(&message, family).filter(|flow| meant(flow)));
    })?;
    if flows.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for flow in &flows {
        batch.message(DELETE, REQUEST, &fixed(family));
        for (kind, bytes) in &flow.name {
            batch.attr(*kind, bytes);
        }
    }
    let results = socket.apply(&mut batch);
    // A connection that ended by itself is no error.
    results
        .into_iter()
        .filter_map(Result::err)
        .find(|error| error.errno() != Errno::ENOENT)
        .map_or(Ok(()), Err)
}

/// The host's own addresses.
pub(super) fn host_addresses(route: &mut Socket) -> Result<Vec<IpAddr>, NetlinkError> {
    let mut own = Vec::new();
    route.dump(&mut dump_addresses(0), |message| {
        own.extend(AddressView::parse(&message).ok().map(|address| address.net.ip()));
    })?;
    Ok(own)
}

/// Asks for the connections of UDP; kernels before 5.8 do not filter and send all.
fn dump_udp(family: Family) -> Batch {
    let mut batch = Batch::new();
    batch.message(GET, REQUEST | DUMP, &fixed(family));
    let tuple = batch.nest(TUPLE_ORIGINAL);
    let proto = batch.nest(TUPLE_PROTO);
    batch.attr(PROTO_NUMBER, &[UDP]);
    batch.end(proto).end(tuple);
    let filter = batch.nest(FILTER);
    batch.attr_u32(FILTER_ORIGINAL, FILTER_PROTO_NUMBER);
    batch.end(filter);
    batch
}

impl Flow {
    fn read(message: &RawMessage<'_>, family: Family) -> Option<Self> {
        if message.kind != NEW {
            return None;
        }
        let attrs = Attrs::after(message.payload, 4);
        let find = |kind| attrs.clone().find(kind);
        let (original, reply) = (Attrs::new(find(TUPLE_ORIGINAL)?), Attrs::new(find(TUPLE_REPLY)?));
        let proto = Attrs::new(original.clone().find(TUPLE_PROTO)?);
        if proto.clone().find(PROTO_NUMBER) != Some(&[UDP]) {
            return None;
        }
        let (source, destination) = if family == Family::V4 { (1, 2) } else { (3, 4) };
        let end = |tuple: &Attrs<'_>, address, port| {
            let ip = Attrs::new(tuple.clone().find(TUPLE_IP)?).find(address).and_then(address_from)?;
            let port = Attrs::new(tuple.clone().find(TUPLE_PROTO)?).find(port).and_then(read_u16)?;
            Some((ip, u16::from_be(port)))
        };
        let names = [(TUPLE_ORIGINAL | NESTED, TUPLE_ORIGINAL), (ZONE, ZONE), (ID, ID)];
        let name =
            names.into_iter().filter_map(|(as_written, kind)| Some((as_written, find(kind)?.to_vec())));
        Some(Self {
            family,
            to: end(&original, destination, PORT_DESTINATION)?,
            answers: end(&reply, source, PORT_SOURCE)?,
            name: name.collect(),
        })
    }
}

fn fixed(family: Family) -> [u8; 4] {
    [if family == Family::V4 { AF_INET } else { AF_INET6 }, 0, 0, 0]
}

/// `NFNL_SUBSYS_CTNETLINK`, in the high half of each message type.
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM`.
const FILTER_PROTO_NUMBER: u32 = 1 << 3;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PORT_SOURCE: u16 = 2;
const PORT_DESTINATION: u16 = 3;
const UDP: u8 = 17;
