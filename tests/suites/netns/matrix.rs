//! Every backend, family and kind of rules: which hosts and pods reach each other, and which source address
//! the receiver sees. The table is in `flanneld/docs/traffic.md`.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netns_harness::flannel::{Backend, subnet_env};
use netns_harness::{Cluster, Family, Host, Namespace, Pod, Program, Spec, probe};
use serde_json::json;

use crate::case::{Case, case, cluster, spec};
use crate::rules::{MAKERS, Maker, anew, held_by};

const SOON: Duration = Duration::from_secs(10);
const DOCS: &str = include_str!("../../../flanneld/docs/traffic.md");

/// How packets travel; a column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Vxlan,
    HostGw,
    Direct,
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (word, way) in [("vxlan", Way::Vxlan), ("host_gw", Way::HostGw), ("direct", Way::Direct)] {
        for family in [Family::V4, Family::V6, Family::Dual] {
            let name = format!("every_row_of_the_table_works_and_has_its_source_address_{word}_{family}");
            cases.push(
                case(name, move || row(way, family))
                    .with_programs_anywhere(&["iptables-nft-restore", "iptables-legacy-restore"]),
            );
        }
    }
    cases
}

fn row(way: Way, family: Family) -> Result<()> {
    let backend = if way == Way::HostGw { Backend::HostGw } else { Backend::Vxlan };
    let direct = json!({"Type": backend.to_string(), "DirectRouting": way == Way::Direct});
    let network = json!({"Backend": direct}).as_object().cloned().unwrap_or_default();
    let mut cluster = cluster(Spec { hosts: 2, backend, network, ..spec(family) })?;
    let neighbour = Pod::add(cluster.net.host(0), "neighbour", &crate::case::products()?.cni())?;
    quiet_outside(cluster.net.store())?;
    for maker in MAKERS {
        switch(&mut cluster, maker)?;
        for family in family.each() {
            table(&cluster, &neighbour, way, *family).with_context(|| format!("{maker:?}, {family}"))?;
        }
    }
    family.each().iter().try_for_each(|family| sizes(&cluster, way, *family))
}

/// The outside keeps the route that it got.
fn quiet_outside(outside: &Host) -> Result<()> {
    for name in [
        "ipv4/conf/all/accept_redirects",
        "ipv4/conf/eth0/accept_redirects",
        "ipv6/conf/eth0/accept_redirects",
    ] {
        outside.space().sysctl(name, "0")?;
    }
    Ok(())
}

/// Starts both daemons with another kind of rules. Then its rules exist, and no others.
fn switch(cluster: &mut Cluster, maker: Maker) -> Result<()> {
    cluster.set_flags(&[maker.flag]);
    for n in 0..2 {
        anew(cluster, n)?;
        let (host, daemon) = (cluster.net.host(n), &cluster.daemons[n]);
        let held = held_by(host)?;
        ensure!(held == [maker.flag], "rules of {held:?}\n{}", daemon.log());
    }
    Ok(())
}

/// Every place that has an address of a family.
struct Ends<'a> {
    cluster: &'a Cluster,
    neighbour: &'a Pod,
    family: Family,
    way: Way,
}

fn table(cluster: &Cluster, neighbour: &Pod, way: Way, family: Family) -> Result<()> {
    let ends = Ends { cluster, neighbour, family, way };
    let rows = documented();
    ensure!(rows.len() == 9, "{rows:?}");
    for [from, to, over_vxlan, over_routes] in rows {
        let expected = if way == Way::Vxlan { over_vxlan } else { over_routes };
        let seen = ends.seen(from, to).with_context(|| format!("{from} → {to}"))?;
        let expected = ends.address(expected)?;
        ensure!(seen == expected, "{from} → {to}: {seen} is seen, and {expected} should be");
    }
    Ok(())
}

/// The rows of the table with this heading: from, to, seen over vxlan, seen over routes.
fn documented() -> Vec<[&'static str; 4]> {
    let lines = DOCS.lines().skip_while(|line| !line.starts_with("| from | to |")).skip(2);
    let cells = |line: &'static str| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        cells.try_into().ok()
    };
    lines.map_while(|line| line.starts_with('|').then_some(line)).filter_map(cells).collect()
}

impl Ends<'_> {
    /// The source address that the receiver sees.
    fn seen(&self, from: &str, to: &str) -> Result<IpAddr> {
        let [here, there] = [0, 1].map(|n| self.cluster.net.host(n));
        let pods = &self.cluster.pods;
        let from = match from {
            "a pod" => pods[0].space(),
            "a host" => here.space(),
            "outside" => self.cluster.net.store().space(),
            other => bail!("nobody is {other}"),
        };
        let (space, at) = match to {
            "a pod of its host" => (self.neighbour.space(), self.neighbour.address(self.family)?),
            "a pod of another host" => (pods[1].space(), pods[1].address(self.family)?),
            "its pod" => (pods[0].space(), pods[0].address(self.family)?),
            "its host" => (here.space(), here.address(self.family)?),
            "another host" => (there.space(), there.address(self.family)?),
            "outside" => (self.cluster.net.store().space(), self.cluster.net.store().address(self.family)?),
            "a pod, by the pod's host" => self.by(there)?,
            "a pod, by another host" => self.by(here)?,
            other => bail!("nobody is {other}"),
        };
        let listener = space.run(|| TcpListener::bind((at, 0)))??;
        let address = listener.local_addr()?;
        // The listener's queue takes it before it is read.
        let stream = from.run(|| TcpStream::connect_timeout(&address, SOON))?;
        let _stream = stream.with_context(|| format!("{} → {address}", from.name()))?;
        Ok(listener.accept()?.1.ip())
    }

    /// The outside sends to the second host's pods by way of this host.
    fn by(&self, host: &Host) -> Result<(&Namespace, IpAddr)> {
        let pod = &self.cluster.pods[1];
        let at = pod.address(self.family)?;
        let (via, length) = (host.address(self.family)?, if at.is_ipv6() { 128 } else { 32 });
        let way = format!("ip route replace {at}/{length} via {via}");
        self.cluster.net.store().exec(&Program::new("sh").args(["-c", &way]))?;
        Ok((pod.space(), at))
    }

    /// The place that a word of the table names.
    fn address(&self, word: &str) -> Result<IpAddr> {
        let here = self.cluster.net.host(0);
        match word {
            "the pod" => self.cluster.pods[0].address(self.family),
            "its host" | "the host" | "that host" => here.address(self.family),
            "outside" => self.cluster.net.store().address(self.family),
            "its bridge" => self.of_link(here, "cni0"),
            "its tunnel device" | "that host's tunnel device" => {
                self.of_link(here, Backend::Vxlan.link(self.family))
            }
            other => bail!("{other:?} is no address, over {:?}", self.way),
        }
    }

    fn of_link(&self, host: &Host, link: &str) -> Result<IpAddr> {
        let six = if self.family == Family::V6 { "-6" } else { "-4" };
        let args = [six, "-o", "address", "show", "dev", link, "scope", "global"];
        let text = host.exec(&Program::new("ip").args(args))?;
        let address = text.split_whitespace().nth(3).and_then(|net| net.split('/').next());
        address.context("no address")?.parse().with_context(|| text.clone())
    }
}

/// Packets of exactly the pods' MTU pass unfragmented. From outside, one byte more is refused with that MTU.
fn sizes(cluster: &Cluster, way: Way, family: Family) -> Result<()> {
    let mtu: usize = subnet_env(cluster.net.host(0)).context("subnet.env")?["FLANNEL_MTU"].parse()?;
    let headers = if family == Family::V6 { 48 } else { 28 };
    let ends = Ends { cluster, neighbour: &cluster.pods[0], family, way };
    let (one, other) = (&cluster.pods[0], &cluster.pods[1]);
    // A packet that fits its own link carries DF, or is an IPv6 packet, which no router fragments.
    probe::ping_sized(one.space(), other.address(family)?, mtu - headers, SOON)?;
    if way == Way::HostGw {
        return Ok(());
    }
    let (_, at) = ends.by(cluster.net.host(0))?;
    let outside = cluster.net.store();
    let tunnel = if way == Way::Vxlan { mtu } else { pods_mtu(cluster)? };
    probe::ping_sized(outside.space(), at, tunnel - headers, SOON)?;
    ensure!(known_mtu(outside, at)?.is_none(), "a packet that fits is not answered with an MTU");
    let refused = probe::ping_sized(outside.space(), at, tunnel - headers + 1, Duration::from_millis(200));
    ensure!(refused.is_err(), "a packet of {} octets passed", tunnel + 1);
    let reported = known_mtu(outside, at)?;
    ensure!(reported == Some(tunnel), "{reported:?} was reported, and the MTU is {tunnel}");
    Ok(())
}

/// The MTU of the pods' own link.
fn pods_mtu(cluster: &Cluster) -> Result<usize> {
    let mtu =
        cluster.pods[1].space().run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu"))??;
    Ok(mtu.trim().parse()?)
}

/// The path MTU to an address that ICMP reported.
fn known_mtu(host: &Host, to: IpAddr) -> Result<Option<usize>> {
    let text = host.exec(&Program::new("ip").args(["route", "get", &to.to_string()]))?;
    let mut words = text.split_whitespace();
    words.find(|word| *word == "mtu").and_then(|_| words.next()).map(|mtu| Ok(mtu.parse()?)).transpose()
}
