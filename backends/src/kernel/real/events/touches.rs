//! Who it was: the netlink port of a request is mostly the process that made it, and nf_tables names it outright.
//!
//! Measured on Linux 6.18: routes, IPv4 addresses, new neighbours and rules carry the port; links, forwarding
//! entries, deleted neighbours and all that goes along with something else carry 0.

use std::collections::HashMap;
use std::fs;

use subnet_lease::Family;

use super::filter::{EventFilter, passes_pods};
use crate::kernel::{Touch, Who};
use crate::netlink::address::{AddressView, RTM_DELADDR, RTM_NEWADDR};
use crate::netlink::link::{LinkView, RTM_DELLINK, RTM_NEWLINK};
use crate::netlink::neigh::{NeighView, RTM_DELNEIGH, RTM_NEWNEIGH};
use crate::netlink::nft::{generation_program, table_of};
use crate::netlink::route::{RT_TABLE_MAIN, RTM_NEWROUTE, RTPROT_KERNEL, RouteView};
use crate::netlink::{AF_BRIDGE, AF_INET, AF_INET6, Messages, RawMessage};
use crate::rules::RuleNames;
use crate::rules::iptables::Flavour;
use crate::state::{IptablesKey, Key, TableKey, default_metric};

/// More than this are not told at once. Ours: a fight is over a few objects, and a flood is not read for names.
const MOST: usize = 32;

/// The touches of one drain.
#[derive(Default)]
pub(super) struct Touches {
    list: Vec<Touch>,
    /// What the programs behind the ports are called.
    programs: HashMap<u32, Option<String>>,
}

impl Touches {
    /// Adds what a datagram tells. What we did ourselves is passed over unread.
    pub(super) fn read(&mut self, messages: Messages<'_>, netfilter: bool, filter: &EventFilter) {
        for message in messages.filter(|m| !filter.ours.contains(&m.port)) {
            if let Some(program) = generation_program(&message).filter(|_| netfilter) {
                self.generation(message.port, program);
            } else if self.list.len() >= MOST {
                // A generation, which has the name, comes last.
            } else if netfilter {
                self.rules(&message, filter);
            } else {
                self.route_or_link(&message, filter);
            }
        }
    }

    /// All of them.
    pub(super) fn finish(mut self) -> Vec<Touch> {
        for who in self.list.iter_mut().filter_map(|touch| touch.by.as_mut()) {
            who.program = self.programs.get(&who.port).cloned().flatten();
        }
        self.list
    }

    fn route_or_link(&mut self, message: &RawMessage<'_>, filter: &EventFilter) {
        match message.kind {
            RTM_NEWLINK | RTM_DELLINK => {
                let link = LinkView::parse(message).ok().map(|view| view.name);
                let ours = link.filter(|l| filter.links.contains(l) || filter.external == Some(*l));
                ours.into_iter().for_each(|link| self.push(Key::Link(link), message.port, None));
            }
            // The kernel's own doing.
            RTM_NEWADDR | RTM_DELADDR | RTM_NEWNEIGH | RTM_DELNEIGH if message.port == 0 => {}
            RTM_NEWADDR | RTM_DELADDR => {
                let Ok(view) = AddressView::parse(message) else { return };
                let link = filter.our_link(view.link);
                link.into_iter().for_each(|l| self.push(Key::Address(l, view.net), message.port, None));
            }
            RTM_NEWNEIGH | RTM_DELNEIGH => self.neighbour(message, filter),
            kind => {
                // The protocol of a route that goes is its maker's, not that of who took it away.
                let made = kind == RTM_NEWROUTE;
                let each = |view: RouteView| self.route(&view, message.port, made, filter);
                // One that cannot be read is counted by the filter.
                let _ = RouteView::parse(message, each);
            }
        }
    }

    fn route(&mut self, view: &RouteView, port: u32, made: bool, filter: &EventFilter) {
        let noise = view.table != u32::from(RT_TABLE_MAIN) || view.cloned;
        if noise || !filter.inside(view.dst) || port == 0 && (!made || view.protocol == RTPROT_KERNEL) {
            return;
        }
        let metric = if view.metric == 0 { default_metric(&view.dst) } else { view.metric };
        self.push(Key::Route(view.dst, metric), port, made.then_some(view.protocol));
    }

    fn neighbour(&mut self, message: &RawMessage<'_>, filter: &EventFilter) {
        let Ok(view) = NeighView::parse(message) else { return };
        let Some(link) = filter.our_link(view.link) else { return };
        let key = match view.family {
            AF_BRIDGE => view.mac.map(|mac| Key::Fdb(link, mac)),
            _ => view.dst.map(|address| Key::Neigh(link, address)),
        };
        key.into_iter().for_each(|key| self.push(key, message.port, None));
    }

    fn rules(&mut self, message: &RawMessage<'_>, filter: &EventFilter) {
        let of = message.payload.first().and_then(|of| Some((*of, RuleNames::of_table(table_of(message)?)?)));
        match of {
            Some((AF_INET, (family @ Family::V4, names)) | (AF_INET6, (family @ Family::V6, names))) => {
                self.push(Key::Table(TableKey { family, names }), message.port, None);
            }
            _ => self.iptables(message, filter.rules),
        }
    }

    /// Rules of iptables over nf_tables.
    fn iptables(&mut self, message: &RawMessage<'_>, names: RuleNames) {
        let family = match (message.payload.first(), table_of(message)) {
            (Some(&AF_INET), Some("filter" | "nat")) => Family::V4,
            (Some(&AF_INET6), Some("filter" | "nat")) => Family::V6,
            _ => return,
        };
        if passes_pods(message) {
            let key = IptablesKey { flavour: Flavour::Nft, family, names };
            self.push(Key::Iptables(key), message.port, None);
        }
    }

    /// The end of a transaction: the kernel says whose it was.
    fn generation(&mut self, port: u32, program: &[u8]) {
        if !program.is_empty() && self.programs.len() < MOST {
            self.programs.insert(port, Some(printable(program)));
        }
    }

    fn push(&mut self, what: Key, port: u32, protocol: Option<u8>) {
        let who = protocol.map_or_else(Who::default, Who::with_protocol);
        let touch = Touch { what, by: Some(Who { port, ..who }).filter(Who::is_known) };
        if !self.list.contains(&touch) {
            // Now, since the program may end any moment.
            self.programs.entry(port).or_insert_with(|| program(port));
            self.list.push(touch);
        }
    }
}

/// A port is the process id of a program with one netlink socket, if it is one of a process at all.
fn program(port: u32) -> Option<String> {
    let port = i32::try_from(port).ok().filter(|port| *port > 0)?;
    fs::read(format!("/proc/{port}/comm")).ok().map(|name| printable(&name))
}

/// A program chooses its own name: it gets no line breaks and no colours into a log.
fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.trim_end_matches(['\0', '\n'])
        .chars()
        .take(16)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
