//! Queueing disciplines and the filter: messages that make them, and what the kernel reports of them.

use backends::IfName;
use backends::netlink::link::{self, IFF_UP};
use backends::netlink::{Attrs, Batch, NetlinkError, Socket, read_u32};

use super::conf::Limit;

/// A token bucket as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Bytes per second.
    pub(super) rate: u64,
    /// Bytes that may wait.
    pub(super) limit: u32,
    /// Time that the burst lasts, in the kernel's ticks; none when it does not fit into that number.
    pub(super) buffer: Option<u32>,
}

impl Bucket {
    /// As the reference plugin calculates it, but that what is too large for the kernel's number is not cut.
    pub(super) fn of(limit: Limit, ticks_in_us: f64) -> Self {
        let (rate, burst) = (limit.rate as f64, f64::from(limit.burst));
        let us = (burst * 1e6 / rate).trunc();
        let waiting = whole(rate * LATENCY_US / 1e6).saturating_add(limit.burst);
        let ticks = us * ticks_in_us;
        let fits = us <= f64::from(u32::MAX) && ticks <= f64::from(u32::MAX);
        Self { rate: limit.rate, limit: waiting, buffer: fits.then(|| whole(ticks)) }
    }

    fn read(options: &[u8]) -> Option<Self> {
        let parms = Attrs::new(options).find(TBF_PARMS)?;
        let at = |offset: usize| parms.get(offset..).and_then(read_u32);
        let large =
            Attrs::new(options).find(TBF_RATE64).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
        let rate = large.or_else(|| at(8).map(u64::from))?;
        Some(Self { rate, limit: at(24)?, buffer: at(28) })
    }
}

/// The kernel's ticks in a microsecond, from the text of `/proc/net/psched`.
pub(super) fn ticks_in_us(psched: &str) -> Option<f64> {
    let mut numbers = psched.split_whitespace().map(|word| u32::from_str_radix(word, 16).ok().map(f64::from));
    let [to_us, from_ticks, resolution] = [numbers.next()??, numbers.next()??, numbers.next()??];
    let to_us = if resolution == 1e9 { from_ticks } else { to_us };
    (from_ticks > 0.0).then(|| to_us / from_ticks * (resolution / 1e6))
}

/// Adds to the batch: a token bucket that everything leaving through a link goes through.
pub(super) fn add_bucket(batch: &mut Batch, link: u32, bucket: Bucket, burst: u32) {
    let mut parms = [0; 36];
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    parms[8..12].copy_from_slice(&rate.to_ne_bytes());
    parms[24..28].copy_from_slice(&bucket.limit.to_ne_bytes());
    parms[28..32].copy_from_slice(&bucket.buffer.unwrap_or(u32::MAX).to_ne_bytes());
    qdisc(batch, link, FIRST, ROOT).attr_str(KIND, "tbf");
    let options = batch.nest(OPTIONS);
    batch.attr(TBF_PARMS, &parms);
    if rate == u32::MAX {
        batch.attr(TBF_RATE64, &bucket.rate.to_ne_bytes());
    }
    if bucket.buffer.is_none() {
        batch.attr_u32(TBF_BURST, burst);
    }
    batch.end(options);
}

/// Adds to the batch: what comes in through a link leaves through another one first.
pub(super) fn redirect(batch: &mut Batch, from: u32, to: u32) {
    qdisc(batch, from, INGRESS_HANDLE, INGRESS).attr_str(KIND, "ingress");
    let first_of_all_protocols = 1 << 16 | u32::from(ETH_P_ALL.to_be());
    batch
        .message(NEWFILTER, REQUEST | NEW, &tcmsg(from, 0, INGRESS_HANDLE, first_of_all_protocols))
        .attr_str(KIND, "u32");
    let options = batch.nest(OPTIONS);
    batch.attr(U32_SELECTOR, &everything()).attr_u32(U32_CLASS, FIRST | 1);
    let actions = batch.nest(U32_ACTIONS);
    let action = batch.nest(1);
    batch.attr_str(KIND, "mirred");
    let inner = batch.nest(OPTIONS);
    batch.attr(MIRRED_PARMS, &steal_to(to));
    batch.end(inner).end(action).end(actions).end(options);
}

/// Adds to the batch: take away what limits a link in both directions.
pub(super) fn clear(batch: &mut Batch, link: u32) {
    for (handle, parent) in [(FIRST, ROOT), (INGRESS_HANDLE, INGRESS)] {
        batch.message(DELQDISC, REQUEST, &tcmsg(link, handle, parent, 0));
    }
}

/// Adds to the batch: an intermediate device that is up, and whose it is as its alias.
pub(super) fn add_ifb(batch: &mut Batch, name: IfName, mtu: u32, owner: &str) {
    link::mtu(link::name(link::create(batch, IFF_UP), name), mtu);
    // With a queue of its own it would drop by another rule than the bucket's.
    link::queue_length(batch, 0);
    link::kind(batch, "ifb");
    link::alias(link::change_named(batch, name), owner);
}

/// The token bucket at the root of a link, if there is one.
pub(super) fn bucket_of(socket: &mut Socket, link: u32) -> Result<Option<Bucket>, NetlinkError> {
    let mut found = None;
    qdiscs(socket, link, |parent, kind, options| {
        if parent == ROOT && kind == b"tbf\0" {
            found = Bucket::read(options);
        }
    })?;
    Ok(found)
}

/// Whether what comes in through a link leaves through this other one first.
pub(super) fn redirects(socket: &mut Socket, from: u32, to: u32) -> Result<bool, NetlinkError> {
    let mut found = false;
    let mut ask = Batch::new();
    ask.message(GETFILTER, REQUEST | DUMP, &tcmsg(from, 0, INGRESS_HANDLE, 0));
    socket.dump(&mut ask, |message| {
        let attrs = Attrs::after(message.payload, TCMSG);
        if message.kind == NEWFILTER && attrs.clone().find(KIND) == Some(b"u32\0") {
            found |= attrs.find(OPTIONS).is_some_and(|options| steals_to(options, to));
        }
    })?;
    Ok(found)
}

/// Whether a filter's actions hand packets over to a link.
fn steals_to(options: &[u8], to: u32) -> bool {
    let actions = Attrs::new(options).find(U32_ACTIONS).unwrap_or_default();
    Attrs::new(actions).any(|(_, action)| {
        let action = Attrs::new(action);
        let parms = action.clone().find(OPTIONS).and_then(|inner| Attrs::new(inner).find(MIRRED_PARMS));
        let at = |offset: usize| parms?.get(offset..).and_then(read_u32);
        action.clone().find(KIND) == Some(b"mirred\0") && at(20) == Some(REDIRECT) && at(24) == Some(to)
    })
}

fn qdiscs(
    socket: &mut Socket,
    link: u32,
    mut each: impl FnMut(u32, &[u8], &[u8]),
) -> Result<(), NetlinkError> {
    let mut ask = Batch::new();
    ask.message(GETQDISC, REQUEST | DUMP, &tcmsg(link, 0, 0, 0));
    let read = socket.dump(&mut ask, |message| {
        let number = |offset: usize| message.payload.get(offset..).and_then(read_u32);
        let attrs = Attrs::after(message.payload, TCMSG);
        // The kernel does not filter by link.
        if message.kind == NEWQDISC && number(4) == Some(link) {
            let find = |kind| attrs.clone().find(kind).unwrap_or_default();
            each(number(12).unwrap_or(0), find(KIND), find(OPTIONS));
        }
    });
    read.map(|_| ())
}

fn qdisc(batch: &mut Batch, link: u32, handle: u32, parent: u32) -> &mut Batch {
    batch.message(NEWQDISC, REQUEST | NEW, &tcmsg(link, handle, parent, 0))
}

fn tcmsg(link: u32, handle: u32, parent: u32, more: u32) -> [u8; TCMSG] {
    let mut header = [0; TCMSG];
    for (at, value) in [(4, link), (8, handle), (12, parent), (16, more)] {
        header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    header
}

/// `struct tc_u32_sel` with one key that matches anything.
fn everything() -> [u8; 32] {
    let mut selector = [0; 32];
    selector[0] = TERMINAL;
    selector[2] = 1;
    selector
}

/// `struct tc_mirred`.
fn steal_to(link: u32) -> [u8; 28] {
    let mut parms = [0; 28];
    for (at, value) in [(8, STOLEN), (20, REDIRECT), (24, link)] {
        parms[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    parms
}

/// Without its fraction, and no more than fits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut at the ends, which is meant")]
fn whole(number: f64) -> u32 {
    number as u32
}

/// How long a packet may wait: the reference plugin's choice.
const LATENCY_US: f64 = 25_000.0;

/// Size of `struct tcmsg`.
const TCMSG: usize = 20;
const REQUEST: u16 = 1;
const NEWQDISC: u16 = 36;
const DELQDISC: u16 = 37;
const GETQDISC: u16 = 38;
const NEWFILTER: u16 = 44;
const GETFILTER: u16 = 46;
/// `NLM_F_CREATE | NLM_F_EXCL`.
const NEW: u16 = 0x400 | 0x200;
const DUMP: u16 = 0x300;
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
/// `ffff:`.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// `1:`.
const FIRST: u32 = 0x0001_0000;
const ETH_P_ALL: u16 = 3;
/// `TCA_KIND`, `TCA_OPTIONS`, and the same for actions.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
const U32_CLASS: u16 = 1;
const U32_SELECTOR: u16 = 5;
const U32_ACTIONS: u16 = 7;
const TERMINAL: u8 = 1;
const MIRRED_PARMS: u16 = 2;
/// `TC_ACT_STOLEN`.
const STOLEN: u32 = 4;
/// `TCA_EGRESS_REDIR`.
const REDIRECT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const PSCHED: &str = "000003e8 00000040 000f4240 3b9aca00\n";

    #[test]
    fn a_tick_is_what_the_kernel_says() {
        assert_eq!(ticks_in_us(PSCHED), Some(15.625));
        for broken in ["", "1 2", "x y z", "000003e8 00000000 000f4240"] {
            assert_eq!(ticks_in_us(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_bucket_is_calculated_as_the_reference_plugin_does() {
        let bucket = Bucket::of(Limit { rate: 1000, burst: 10 }, 15.625);
        // 10 bytes last 10 ms; 25 bytes may wait for their turn beside them.
        assert_eq!(bucket, Bucket { rate: 1000, limit: 35, buffer: Some(156_250) });
    }

    #[test]
    fn the_largest_burst_is_not_cut() {
        let slow = Bucket::of(Limit { rate: 125_000, burst: 536_870_911 }, 15.625);
        assert_eq!((slow.limit, slow.buffer), (536_870_911 + 3125, None));
        let fast = Bucket::of(Limit { rate: 125_000_000, burst: 536_870_911 }, 15.625);
        assert_eq!(fast.buffer, Some(67_108_859));
        assert_eq!(Bucket::of(Limit { rate: u64::MAX / 8, burst: u32::MAX - 1 }, 15.625).limit, u32::MAX);
    }
}
