//! The older iptables of the kernel, looked at without a program: `getsockopt` gives a table as one block of entries.
//!
//! Tables that nobody has loaded stay so: asking for one would load it.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use subnet_lease::Family;

use super::super::nft::{Foreign, outcome, passed};
use super::super::packet::{self, Act, Holds, Packet, Step, fate};
use crate::netlink::{address_from, read_u32};
use crate::rules::iptables::Flavour;
use crate::rules::{Fate, ForeignChain, Home, RuleNames, TunnelDrop};

/// What was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Survey {
    pub(super) chains: Vec<ForeignChain>,
    pub(super) walled: Vec<IpAddr>,
    /// Chains that keep tunnel packets out.
    pub(super) drops: Vec<TunnelDrop>,
    /// There are rules, or a policy that drops.
    pub(super) used: bool,
    /// There are chains of ours.
    pub(super) ours: bool,
    /// Changes with the rules.
    pub(super) fingerprint: u64,
}

/// The tables that we look at, with the number of entries that an empty one has.
const TABLES: [(&str, u32); 3] = [("filter", 4), ("nat", 5), ("raw", 3)];

/// Looks at the tables of a family; none when none is loaded or the kernel lets us not.
pub(super) fn survey(family: Family, packets: &[Packet]) -> Option<Survey> {
    let file = if family == Family::V4 { "ip_tables_names" } else { "ip6_tables_names" };
    let loaded = fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
    let loaded: Vec<_> = TABLES.iter().filter(|(name, _)| loaded.lines().any(|line| line == *name)).collect();
    if loaded.is_empty() {
        return None;
    }
    let domain = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, RAW_PROTOCOL).ok()?;
    let mut survey = Survey::default();
    let mut hasher = DefaultHasher::new();
    for (name, empty) in loaded {
        let table = Table::read(&socket, family, name)?;
        table.hash(&mut hasher);
        survey.used |= table.count > *empty;
        table.tell(name, family, &mut survey);
        let packets = packets.iter().filter(|packet| *name == "filter" && packet.family() == family);
        survey.drops.extend(packets.filter_map(|packet| table.keeps_out(packet)));
    }
    survey.fingerprint = hasher.finish();
    Some(survey)
}

/// A table as the kernel gives it out: `struct ipt_getinfo` and the entries.
struct Table {
    layout: Layout,
    /// Where the chains of the five hooks begin.
    hooks: [u32; 5],
    /// Where their policies stand.
    policies: [u32; 5],
    valid: u32,
    count: u32,
    entries: Vec<u8>,
}

/// `struct ipt_entry` and `struct ip6t_entry`: where things are, in bytes.
#[derive(Clone, Copy)]
struct Layout {
    /// Length of the conditions on the header.
    head: usize,
    /// Offset of `target_offset`; `next_offset` follows, `comefrom` after that.
    target: usize,
    /// Length of the entry before matches.
    entry: usize,
    /// Length of an address: source, destination and their masks come first.
    address: usize,
    /// Offset of the transport protocol.
    protocol: usize,
    /// Offset of the flags of inversion; the other flags are before them.
    inverted: usize,
    /// The flag of a call without a way back.
    goto: u8,
}

const V4: Layout =
    Layout { head: 84, target: 88, entry: 112, address: 4, protocol: 80, inverted: 83, goto: 2 };
const V6: Layout =
    Layout { head: 133, target: 140, entry: 168, address: 16, protocol: 128, inverted: 132, goto: 4 };
/// Packets and bytes, at the end of the entry's fixed part.
const COUNTERS: usize = 16;

/// An entry.
struct Entry<'a> {
    at: u32,
    next: u32,
    target: &'a str,
    payload: &'a [u8],
    rule: Foreign,
    /// The conditions on the header, and the matches behind them.
    head: &'a [u8],
    matches: &'a [u8],
}

impl Table {
    fn read(socket: &OwnedFd, family: Family, name: &str) -> Option<Self> {
        let (level, layout) =
            if family == Family::V4 { (libc::IPPROTO_IP, V4) } else { (libc::IPPROTO_IPV6, V6) };
        // It may grow between the two questions.
        (0..4).find_map(|_| {
            let mut info = vec![0; INFO];
            info[..name.len()].copy_from_slice(name.as_bytes());
            option(socket, level, GET_INFO, &mut info).ok()?;
            let numbers: Vec<u32> = info[NAME..].chunks_exact(4).filter_map(read_u32).collect();
            let [valid, ref rest @ ..] = numbers[..] else { return None };
            let (hooks, rest) = rest.split_first_chunk::<5>()?;
            let (policies, rest) = rest.split_first_chunk::<5>()?;
            let [count, size] = *rest else { return None };
            let mut block = vec![0; ENTRIES + usize::try_from(size).ok()?];
            block[..name.len()].copy_from_slice(name.as_bytes());
            block[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
            option(socket, level, GET_ENTRIES, &mut block).ok()?;
            let entries = block.split_off(ENTRIES);
            Some(Self { layout, hooks: *hooks, policies: *policies, valid, count, entries })
        })
    }

    /// Where each chain that a hook calls begins.
    fn base(&self, hook: usize) -> Option<(u32, u32)> {
        (self.valid & (1 << hook) != 0).then_some((self.hooks[hook], self.policies[hook]))
    }

    fn entry(&self, at: u32) -> Option<Entry<'_>> {
        let bytes = self.entries.get(usize::try_from(at).ok()?..)?;
        let short =
            |at: usize| Some(usize::from(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
        let (target, next) = (short(self.layout.target)?, short(self.layout.target + 2)?);
        let bytes = bytes.get(..next).filter(|_| next > target && target >= self.layout.entry)?;
        let (name, payload) = extension(bytes.get(target..)?)?;
        let matches = bytes.get(self.layout.entry..target)?;
        let head = bytes.get(..self.layout.head)?;
        let conditional =
            head.iter().any(|b| *b != 0) || Extensions(matches).any(|(name, _)| name != "comment");
        let rule = Foreign { conditional, to: self.destination(head), ..Foreign::default() };
        Some(Entry { at, next: at + u32::try_from(next).ok()?, target: name, payload, rule, head, matches })
    }

    /// The one address that a packet must go to.
    fn destination(&self, head: &[u8]) -> Option<IpAddr> {
        let Layout { address: len, inverted, .. } = self.layout;
        let mask = head.get(3 * len..4 * len)?;
        let exact = mask.iter().all(|b| *b == 0xff) && head.get(inverted)? & INVERTED_DESTINATION == 0;
        head.get(len..2 * len).filter(|_| exact).and_then(address_from)
    }

    /// Every entry with what it does.
    fn walk(&self) -> Vec<Entry<'_>> {
        let mut entries = Vec::new();
        let mut at = 0;
        while let Some(entry) = self.entry(at) {
            at = entry.next;
            entries.push(entry);
        }
        let names: HashMap<u32, &str> = entries.iter().filter_map(|e| Some((e.next, e.begins()?))).collect();
        for entry in &mut entries {
            match (
                entry.target,
                entry.payload.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes),
            ) {
                ("", Some(DROP)) | ("REJECT", _) => entry.rule.fate = Some(Fate::Dropped),
                ("", Some(ACCEPT)) => entry.rule.fate = Some(Fate::Accepted),
                ("", Some(RETURN)) => entry.rule.fate = Some(Fate::Returned),
                ("", Some(to)) => {
                    let to = u32::try_from(to).ok();
                    entry.rule.calls = to.and_then(|to| names.get(&to)).map(|name| (*name).to_owned());
                }
                _ => {}
            }
        }
        entries
    }

    /// The input chain, if it keeps a tunnel packet out.
    fn keeps_out(&self, packet: &Packet) -> Option<TunnelDrop> {
        let entries = self.walk();
        let (first, policy) = self.base(INPUT)?;
        let inside = entries.iter().filter(|e| e.at >= first && e.at < policy);
        let steps: Vec<_> = inside.map(|e| e.step(packet, self.layout)).collect();
        let policy = entries.iter().find(|e| e.at == policy)?.rule.fate?;
        let mut left = FOLLOWED;
        let (fate, rule, call) =
            fate(&steps, policy, &mut |name| entered(&entries, self.layout, name, packet, &mut left));
        (fate == Fate::Dropped).then(|| TunnelDrop {
            family: packet.family(),
            home: Home::Iptables(Flavour::Legacy),
            table: "filter".to_owned(),
            chain: "INPUT".to_owned(),
            rule,
            call,
            port: packet.port,
        })
    }

    fn tell(&self, table: &str, family: Family, survey: &mut Survey) {
        let entries = self.walk();
        let user =
            |name: &str| Some(of_chain(&entries, name)?.iter().map(|e| e.rule.clone()).collect::<Vec<_>>());
        let base = |hook: usize| {
            let (first, policy) = self.base(hook)?;
            let inside = entries.iter().filter(|e| e.at >= first && e.at < policy);
            let fate = entries.iter().find(|e| e.at == policy)?.rule.fate?;
            Some((inside.map(|e| e.rule.clone()).collect::<Vec<_>>(), fate))
        };
        let mut left = FOLLOWED;
        let mut push = |name: &str, rules: &[Foreign], policy| {
            let (fate, end, calls) = outcome(rules, policy, &mut |name| called(&user, name, &mut left));
            let (home, table, name) = (Home::Iptables(Flavour::Legacy), table.to_owned(), name.to_owned());
            let passed = passed(rules, end);
            survey.chains.push(ForeignChain { family, home, table, name, fate, end, calls, passed });
        };
        match table {
            "filter" => {
                if let Some((rules, policy)) = base(FORWARD) {
                    push("FORWARD", &rules, policy);
                    survey.used |= policy == Fate::Dropped;
                }
                if let Some(rules) = user(DOCKER_USER) {
                    push(DOCKER_USER, &rules, Fate::Returned);
                }
            }
            "nat" => {
                if let Some((rules, policy)) = base(POSTROUTING) {
                    push("POSTROUTING", &rules, policy);
                }
            }
            _ => {
                let rules = base(PREROUTING).map(|(rules, _)| rules).unwrap_or_default();
                survey
                    .walled
                    .extend(rules.iter().filter(|r| r.fate == Some(Fate::Dropped)).filter_map(|r| r.to));
            }
        }
        survey.ours |=
            entries.iter().filter_map(Entry::begins).any(|name| RuleNames::of_chain(name).is_some());
    }
}

/// The entries of a chain that other chains call.
fn of_chain<'a, 'b>(entries: &'b [Entry<'a>], name: &str) -> Option<&'b [Entry<'a>]> {
    let begin = entries.iter().position(|e| e.begins() == Some(name))? + 1;
    let rest = &entries[begin..];
    // The last is the way back, which everybody has.
    let end = rest.iter().position(|e| e.begins().is_some())?.saturating_sub(1);
    Some(&rest[..end])
}

/// What becomes of a tunnel packet in a chain that another hands it to.
fn entered(entries: &[Entry<'_>], layout: Layout, name: &str, packet: &Packet, left: &mut u32) -> Fate {
    // The chains of a proxy accept and mark; they are long.
    if *left == 0 || RuleNames::of_chain(name).is_some() || name.starts_with("KUBE-") {
        return Fate::Returned;
    }
    *left -= 1;
    let steps: Vec<_> =
        of_chain(entries, name).unwrap_or_default().iter().map(|e| e.step(packet, layout)).collect();
    fate(&steps, Fate::Returned, &mut |name| entered(entries, layout, name, packet, left)).0
}

/// What becomes of every packet in a chain that another hands it to.
fn called(user: &dyn Fn(&str) -> Option<Vec<Foreign>>, name: &str, left: &mut u32) -> Fate {
    if *left == 0 || RuleNames::of_chain(name).is_some() {
        return Fate::Returned;
    }
    *left -= 1;
    let rules = user(name).unwrap_or_default();
    outcome(&rules, Fate::Returned, &mut |name| called(user, name, left)).0
}

/// Everything but what packets change.
impl Hash for Table {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Layout { entry, target, .. } = self.layout;
        let mut at = 0;
        while let Some(found) = self.entry(at) {
            let bytes = usize::try_from(at).ok().zip(usize::try_from(found.next).ok());
            let Some(bytes) = bytes.and_then(|(from, to)| self.entries.get(from..to)) else { break };
            bytes[..target + 4].hash(hasher);
            bytes.get(entry..).unwrap_or_default().hash(hasher);
            at = found.next;
        }
        debug_assert!(entry >= target + 8 + COUNTERS, "comefrom and counters lie in between");
    }
}

impl<'a> Entry<'a> {
    /// The name of the chain that begins behind it, or `ERROR` at the table's end.
    fn begins(&self) -> Option<&'a str> {
        (self.target == "ERROR").then(|| name(self.payload.get(..30).unwrap_or(self.payload)))
    }

    /// What it does with a tunnel packet.
    fn step(&self, packet: &Packet, layout: Layout) -> Step {
        let head = self.holds(packet, layout).unwrap_or(Holds::Some);
        let holds =
            Extensions(self.matches).fold(head, |all, (name, info)| all.and(packet.extension(name, info)));
        let goto = self.head.get(layout.inverted - 1).is_some_and(|flags| flags & layout.goto != 0);
        let act = match (self.rule.fate, &self.rule.calls) {
            (Some(fate), _) => Act::Decide(fate),
            (None, Some(chain)) if goto => Act::Goto(chain.clone()),
            (None, Some(chain)) => Act::Jump(chain.clone()),
            (None, None) => Act::Nothing,
        };
        Step { holds, act }
    }

    /// For which tunnel packets the conditions on the header hold.
    fn holds(&self, packet: &Packet, layout: Layout) -> Option<Holds> {
        let Layout { address, protocol, inverted, .. } = layout;
        let part = |from: usize, len: usize| self.head.get(from..from + len);
        let inverted = *self.head.get(inverted)?;
        let (link, link_mask) = (part(4 * address, 16)?, part(4 * address + 32, 16)?);
        let name = packet::padded(packet.link.0);
        let same =
            name.iter().zip(link).zip(link_mask).all(|((name, link), mask)| name & mask == link & mask);
        let by = same != (inverted & INVERTED_LINK != 0);
        let protocol = u16::from_ne_bytes(part(protocol, 2)?.try_into().ok()?);
        let udp =
            protocol == 0 || (protocol == u16::from(packet::UDP)) != (inverted & INVERTED_PROTOCOL != 0);
        // Masks of addresses and of the interface that a packet leaves by.
        let others = [part(2 * address, 2 * address)?, part(4 * address + 48, 16)?].concat();
        let any = if others.iter().all(|byte| *byte == 0) { Holds::All } else { Holds::Some };
        Some(Holds::of(Some(by && udp)).and(any))
    }
}

/// `struct xt_entry_match` one after the other: their names, and what belongs to them.
struct Extensions<'a>(&'a [u8]);

impl<'a> Iterator for Extensions<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let size = u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?);
        let size = usize::from(size).max(EXTENSION);
        let (name, info) = extension(self.0.get(..size).unwrap_or(self.0))?;
        // One that does not fit is the last.
        self.0 = self.0.get(size..).unwrap_or_default();
        Some((name, info))
    }
}

/// Name and payload of a match or target.
fn extension(bytes: &[u8]) -> Option<(&str, &[u8])> {
    Some((name(bytes.get(2..EXTENSION - 1)?), bytes.get(EXTENSION..)?))
}

fn name(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).unwrap_or("?")
}

/// `getsockopt` into a buffer of exactly the length that the kernel wants to see.
#[allow(unsafe_code, reason = "no safe interface gives out options of this kind")]
fn option(socket: &OwnedFd, level: i32, name: i32, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut len = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EMSGSIZE)?;
    // SAFETY: the kernel writes at most `len` bytes to the pointer, and both are those of `buffer`, which is borrowed
    // mutably for the call and for whose bytes every value is valid. The descriptor is open as long as it is borrowed.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(answer).map(drop)
}

/// `IPPROTO_RAW` would be refused by nobody; these options are answered on any raw socket.
const RAW_PROTOCOL: nix::sys::socket::SockProtocol = nix::sys::socket::SockProtocol::Raw;

/// Docker's chain for rules of others.
const DOCKER_USER: &str = "DOCKER-USER";
/// So many chains are followed that others call. Ours.
const FOLLOWED: u32 = 32;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// Size of `struct ipt_getinfo`.
const INFO: usize = 84;
/// Size of `struct ipt_get_entries`: name, size, and up to the next eight bytes.
const ENTRIES: usize = 40;
/// Header of a match or target: size, name, revision.
const EXTENSION: usize = 32;
/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// `IPT_INV_DSTIP`, `IP6T_INV_DSTIP`.
const INVERTED_DESTINATION: u8 = 0x10;
/// `IPT_INV_VIA_IN`, `IPT_INV_PROTO`; those of IPv6 are the same.
const INVERTED_LINK: u8 = 0x01;
const INVERTED_PROTOCOL: u8 = 0x40;
/// `NF_INET_…`.
const PREROUTING: usize = 0;
const INPUT: usize = 1;
const FORWARD: usize = 2;
const POSTROUTING: usize = 4;
/// Verdicts of the standard target: `-NF_… - 1`, `XT_RETURN`.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
const RETURN: i32 = -5;
