//! The hosts of a net, and how they are wired.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::resume_unwind;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::host::{Host, end_all};
use crate::live::end_strangers;
use crate::namespace::Namespace;
use crate::rundir::RunDir;
use crate::wire::Switch;

/// The link of every host to the underlay.
pub const UPLINK: &str = "eth0";

/// Address families, of the underlay or of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// IPv4 only.
    #[default]
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl Family {
    /// The single families in it, IPv4 first.
    pub fn each(self) -> &'static [Self] {
        match self {
            Self::V4 => &[Self::V4],
            Self::V6 => &[Self::V6],
            Self::Dual => &[Self::V4, Self::V6],
        }
    }

    /// True when `address` belongs to it.
    pub fn has(self, address: IpAddr) -> bool {
        self == Self::Dual || (self == Self::V6) == address.is_ipv6()
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Dual => "dual",
        })
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::V4, Self::V6, Self::Dual];
        all.into_iter()
            .find(|family| family.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not v4, v6 or dual"))
    }
}

/// A plan of hosts and wires.
///
/// ```text
/// flat(3)                          racks(&[2, 1])
///
///   h0   h1   h2   store             h0   h1  store        h2
///    └────┴─┬──┴─────┘                └────┴─┬──┘           │
///        switch                           rack0 ─ router ─ rack1
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    racks: Vec<usize>,
    routed: bool,
    family: Family,
    mtu: u32,
    name: Option<String>,
}

impl Topology {
    /// `hosts` hosts on one Ethernet segment.
    pub fn flat(hosts: usize) -> Self {
        Self { racks: vec![hosts], routed: false, family: Family::V4, mtu: 1500, name: None }
    }

    /// One segment per rack with that many hosts, and a router between the racks. At most 250 hosts per rack.
    pub fn racks(sizes: &[usize]) -> Self {
        Self { racks: sizes.to_vec(), routed: true, ..Self::flat(0) }
    }

    /// Families of the underlay; IPv4 by default.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        Self { family, ..self }
    }

    /// MTU of every wire in bytes; 1500 by default.
    #[must_use]
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu, ..self }
    }

    /// A name for the run, which no other running run may have.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// One address of a segment. Flat: 172.30.0.0/16, where a third byte holds 250 hosts. Racks: 172.30.RACK.0/24.
    /// IPv6: fd30:0:0:RACK::/64.
    fn address(&self, rack: usize, family: Family, place: Place) -> Result<IpNetwork> {
        let rack = u16::try_from(rack)?;
        if family == Family::V6 {
            let last = match place {
                Place::Host(number) => u16::try_from(number + 1)?,
                Place::Store => 0xfffd,
                Place::Router => 0xfffe,
            };
            let ip = Ipv6Addr::new(0xfd30, 0, 0, rack, 0, 0, 0, last);
            return Ok(Ipv6Network::new(ip, 64)?.into());
        }
        let wide = !self.routed;
        let (third, fourth) = match place {
            Place::Host(number) if wide => (number / 250, number % 250 + 1),
            Place::Store if wide => (255, 253),
            Place::Router if wide => (255, 254),
            Place::Host(number) => (usize::from(rack), number + 1),
            Place::Store => (usize::from(rack), 253),
            Place::Router => (usize::from(rack), 254),
        };
        let ip = Ipv4Addr::new(172, 30, u8::try_from(third)?, u8::try_from(fourth)?);
        Ok(Ipv4Network::new(ip, if wide { 16 } else { 24 })?.into())
    }
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Host(usize),
    Store,
    Router,
}

/// A topology that exists. Dropping it ends every process in it and removes all of it.
#[derive(Debug)]
pub struct Net {
    hosts: Vec<Host>,
    store: Host,
    router: Option<Namespace>,
    switches: Vec<Switch>,
    plan: Topology,
    /// How many hosts were ever made; a name is never used twice.
    born: usize,
    run: Arc<RunDir>,
}

impl Net {
    /// Builds a topology: hosts h0, h1, … and one more, `store`, which no disturbance touches.
    pub fn build(plan: Topology) -> Result<Self> {
        if plan.racks.iter().sum::<usize>() > 10_000
            || (plan.routed && plan.racks.iter().any(|size| *size > 250))
        {
            bail!("at most 10,000 hosts on one segment, or 250 in a rack");
        }
        let run = RunDir::create(plan.name.as_deref())?;
        let switches: Vec<Switch> = (0..plan.racks.len())
            .map(|rack| Switch::create(&run, &format!("switch{rack}"), plan.mtu))
            .collect::<Result<_>>()?;
        let store = Host::create(&run, "store")?;
        let mut net = Self { hosts: Vec::new(), store, router: None, switches, plan, born: 0, run };
        if net.plan.routed {
            net.router = Some(net.add_router()?);
        }
        net.connect(&net.store.clone(), 0, Place::Store)?;
        net.switches[0].settle()?;
        for (rack, size) in net.plan.racks.clone().into_iter().enumerate() {
            net.add_hosts(rack, size)?;
        }
        Ok(net)
    }

    /// All hosts but the store's host, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The `n`-th host, from 0.
    ///
    /// # Panics
    /// When there are fewer hosts.
    pub fn host(&self, n: usize) -> &Host {
        &self.hosts[n]
    }

    /// The host of that name.
    pub fn named(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().chain([&self.store]).find(|host| host.name() == name)
    }

    /// The host for the store.
    pub fn store(&self) -> &Host {
        &self.store
    }

    /// The switches, one per rack.
    pub fn switches(&mut self) -> &mut [Switch] {
        &mut self.switches
    }

    /// Families of the underlay.
    pub fn family(&self) -> Family {
        self.plan.family
    }

    /// The run's directory.
    pub fn run_dir(&self) -> &Arc<RunDir> {
        &self.run
    }

    /// Adds one more host to the first segment.
    pub fn add_host(&mut self) -> Result<&Host> {
        self.add_hosts(0, 1)?;
        Ok(&self.hosts[self.hosts.len() - 1])
    }

    /// Removes a host as if its power had failed.
    pub fn remove_host(&mut self, name: &str) -> Result<()> {
        let at = self.hosts.iter().position(|host| host.name() == name);
        let host = self.hosts.remove(at.with_context(|| format!("no host is named {name}"))?);
        end_all(&host.processes());
        host.link_down(UPLINK)
    }

    /// Cuts the `number`-th host's cable; returns when the host has lost its carrier.
    pub fn cut(&self, number: usize) -> Result<()> {
        self.set_cable(number, false)
    }

    /// Connects the cable again.
    pub fn mend(&self, number: usize) -> Result<()> {
        self.set_cable(number, true)
    }

    /// Replaces the `number`-th host's wire: the new link has the old name, MAC and addresses, and another
    /// index.
    pub fn rewire(&mut self, number: usize) -> Result<()> {
        let host = self.host(number).clone();
        let switch = self.switch_of(&host)?;
        self.switches[switch].replug(host.space(), UPLINK)?;
        let netlink = host.netlink()?;
        let _ = host.space().sysctl(&format!("ipv6/conf/{UPLINK}/accept_dad"), "0");
        netlink.set_up(UPLINK)?;
        netlink.settle(UPLINK)?;
        host.addresses().into_iter().try_for_each(|own| host.space().add_address(UPLINK, own))
    }

    fn set_cable(&self, number: usize, up: bool) -> Result<()> {
        let host = self.host(number);
        self.switches[self.switch_of(host)?].set_port(host.space(), up)?;
        let expected = if up { "1" } else { "0" };
        let carrier = || host.run(|| std::fs::read_to_string(format!("/sys/class/net/{UPLINK}/carrier")));
        eventually(Duration::from_secs(5), || match carrier()?? {
            found if found.trim() == expected => Ok(()),
            found => bail!("the carrier of {UPLINK} on {} is {found}", host.name()),
        })
        .map(drop)
    }

    fn switch_of(&self, host: &Host) -> Result<usize> {
        let found = self.switches.iter().position(|switch| switch.has(host.space()));
        found.with_context(|| format!("{} is connected to no switch", host.name()))
    }

    /// Each step makes the kernel wait for all CPUs several times, so hosts are made in parallel.
    fn add_hosts(&mut self, rack: usize, count: usize) -> Result<()> {
        let numbers: Vec<usize> = (self.born..self.born + count).collect();
        self.born += count;
        let before: usize = self.plan.racks.iter().take(rack).sum();
        let place = |number: usize| Place::Host(number - before.min(number));
        let hosts = side_by_side(&numbers, |number| Host::create(&self.run, &format!("h{number}")))?;
        for host in &hosts {
            self.switches[rack].plug(host.space(), UPLINK)?;
        }
        let wired: Vec<_> = hosts.iter().zip(&numbers).collect();
        side_by_side(&wired, |(host, number)| self.configure(host, rack, place(**number)))?;
        self.hosts.extend(hosts);
        self.switches[rack].settle()
    }

    fn connect(&mut self, host: &Host, rack: usize, place: Place) -> Result<()> {
        self.switches[rack].plug(host.space(), UPLINK)?;
        self.configure(host, rack, place)
    }

    fn configure(&self, host: &Host, rack: usize, place: Place) -> Result<()> {
        let _ = host.space().sysctl(&format!("ipv6/conf/{UPLINK}/accept_dad"), "0");
        let netlink = host.netlink()?;
        netlink.set_up(UPLINK)?;
        netlink.settle(UPLINK)?;
        for family in self.plan.family.each() {
            host.add_address(UPLINK, self.plan.address(rack, *family, place)?)?;
            let router = match self.plan.routed {
                true => Some(self.plan.address(rack, *family, Place::Router)?.ip()),
                false => None,
            };
            netlink.add_route(everything(*family)?, router, UPLINK)?;
        }
        Ok(())
    }

    fn add_router(&mut self) -> Result<Namespace> {
        let router = Namespace::create(&self.run, "router")?;
        router.sysctl("ipv4/ip_forward", "1")?;
        if self.plan.family != Family::V4 {
            router.sysctl("ipv6/conf/all/forwarding", "1")?;
        }
        let netlink = router.netlink()?;
        for (rack, switch) in self.switches.iter_mut().enumerate() {
            let link = format!("rack{rack}");
            switch.plug(&router, &link)?;
            let _ = router.sysctl(&format!("ipv6/conf/{link}/accept_dad"), "0");
            netlink.set_up(&link)?;
            netlink.settle(&link)?;
            for family in self.plan.family.each() {
                router.add_address(&link, self.plan.address(rack, *family, Place::Router)?)?;
            }
        }
        Ok(router)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let hosts = || self.hosts.iter().chain([&self.store]);
        end_all(&hosts().flat_map(Host::processes).collect::<Vec<_>>());
        end_strangers(hosts().map(|host| host.space().fd()));
    }
}

/// Does one job for all items on a few threads; results are in the order of the items.
fn side_by_side<I: Sync, T: Send>(items: &[I], job: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
    const THREADS: usize = 16;
    let share = items.len().div_ceil(THREADS).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = items
            .chunks(share)
            .map(|chunk| scope.spawn(|| chunk.iter().map(&job).collect::<Result<Vec<_>>>()))
            .collect();
        let results =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        Ok(results.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

/// The default route's destination.
fn everything(family: Family) -> Result<IpNetwork> {
    Ok(match family {
        Family::V6 => Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0)?.into(),
        _ => Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0)?.into(),
    })
}

/// How many times slower than usual this machine is: `SELVAGE_SLOW`, which a test run in an emulated machine sets.
fn slowness() -> u32 {
    std::env::var("SELVAGE_SLOW").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// One attempt and the pause after it count for at most this time: a machine that stood still, or was busy,
/// proves nothing.
const STEP: Duration = Duration::from_millis(500);

/// Repeats `ask` until it succeeds, and returns how long that took. After `patience` the last error is
/// returned.
pub fn eventually(patience: Duration, mut ask: impl FnMut() -> Result<()>) -> Result<Duration> {
    let patience = patience * slowness();
    let start = Instant::now();
    let (mut last, mut waited) = (start, Duration::ZERO);
    loop {
        let answer = ask();
        let now = Instant::now();
        waited += (now - last).min(STEP);
        last = now;
        match answer {
            Ok(()) => return Ok(start.elapsed()),
            Err(reason) if waited > patience => {
                return Err(reason).with_context(|| format!("not so after {patience:?}"));
            }
            Err(_) => thread::sleep(Duration::from_micros(200)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_of_a_large_flat_segment_has_an_address_of_its_own() {
        let plan = Topology::flat(1_200).family(Family::Dual);
        for family in [Family::V4, Family::V6] {
            let mut all: Vec<_> =
                (0..1_200).map(|n| plan.address(0, family, Place::Host(n)).unwrap().ip()).collect();
            all.push(plan.address(0, family, Place::Store).unwrap().ip());
            all.push(plan.address(0, family, Place::Router).unwrap().ip());
            let total = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), total);
        }
    }

    #[test]
    fn racks_are_subnets_of_their_own_with_the_router_inside() {
        let plan = Topology::racks(&[2, 2]);
        let host = plan.address(1, Family::V4, Place::Host(0)).unwrap();
        let router = plan.address(1, Family::V4, Place::Router).unwrap();
        assert_eq!(host.to_string(), "172.30.1.1/24");
        assert!(host.contains(router.ip()));
        assert!(!host.contains(plan.address(0, Family::V4, Place::Host(0)).unwrap().ip()));
    }

    #[test]
    fn a_family_is_read_as_it_is_written() {
        for family in [Family::V4, Family::V6, Family::Dual] {
            assert_eq!(family.to_string().parse(), Ok(family));
        }
        assert_eq!("ipv4".parse::<Family>(), Err("\"ipv4\" is not v4, v6 or dual".to_owned()));
    }
}
