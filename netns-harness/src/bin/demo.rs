//! A cluster in network namespaces: built, disturbed twice, and removed again.
#![allow(clippy::disallowed_methods, reason = "a demonstration measures time")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use ipnetwork::IpNetwork;
use netns_harness::caps::{Caps, Need};
use netns_harness::flannel::{Backend, Products, StoreKind, subnet_env};
use netns_harness::stream::Report;
use netns_harness::{Cluster, Family, Screen, Spec, UPLINK, disturb, enter, probe};

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs virtual hosts with real daemons and pods on this machine, disturbs them, and removes them again.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Flags {
    /// How many virtual hosts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=200), value_name = "N")]
    hosts: u16,
    /// How packets travel between hosts: vxlan or host-gw
    #[arg(long, default_value_t = Backend::Vxlan)]
    backend: Backend,
    /// Where leases are kept: embedded or etcd
    #[arg(long, default_value_t = StoreKind::Embedded)]
    store: StoreKind,
    /// Address families: v4, v6 or dual
    #[arg(long, default_value_t = Family::V4)]
    family: Family,
    /// At the end, keep the cluster until Enter or Ctrl-C, and print how to enter a host
    #[arg(long)]
    hold: bool,
    /// Only report whether this machine can run the demo, and what is missing
    #[arg(long)]
    probe: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let screen = Screen::new();
    match enter().and_then(|()| run(&flags, screen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.say(&format!("demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags, screen: Screen) -> Result<()> {
    let start = Instant::now();
    let spec = Spec {
        hosts: flags.hosts.into(),
        backend: flags.backend,
        store: flags.store,
        family: flags.family,
        ..Spec::default()
    };
    screen.step("check this machine", || Caps::probe().require(&needs(&spec)))?;
    if flags.probe {
        return Ok(());
    }
    let products = Products::find()?;
    let cluster = build(&spec, &products, screen)?;
    show_leases(&cluster, &products, screen)?;
    let cluster = show_plan(cluster, &products, screen)?;
    show_pings(&cluster, screen)?;
    show_throughput(&cluster, screen)?;
    disturb_routes(&cluster, screen)?;
    disturb_links(&cluster, screen)?;
    if flags.hold {
        hold(&cluster, screen);
    }
    screen.step("remove everything", || {
        drop(cluster);
        Ok(())
    })?;
    screen.say(&format!("done in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}

/// Waits for Enter; without a terminal, for a signal.
fn hold(cluster: &Cluster, screen: Screen) {
    screen.say("the cluster stays until Enter or Ctrl-C; to enter h0 from another shell:");
    screen.say(&cluster.net.host(0).enter_command());
    let read = std::io::stdin().read_line(&mut String::new());
    if !read.is_ok_and(|length| length > 0) {
        loop {
            std::thread::park();
        }
    }
}

fn needs(spec: &Spec) -> Vec<Need> {
    let mut needs = vec![Need::Namespaces, Need::Sysctl, Need::Veth, Need::Bridge, Need::NfTables];
    needs.extend((spec.backend == Backend::Vxlan).then_some(Need::Vxlan));
    needs.extend((spec.family != Family::V4).then_some(Need::Ipv6));
    needs
}

fn build(spec: &Spec, products: &Products, screen: Screen) -> Result<Cluster> {
    let Spec { hosts, backend, store, family, .. } = spec;
    let what = format!("{hosts} hosts in network namespaces, {store} store, {backend}, {family}");
    let mut cluster = screen.step(&what, || {
        let cluster = Cluster::prepare(spec, products)?;
        cluster.set_network()?;
        Ok(cluster)
    })?;
    screen.step("one daemon on each host, until it has a subnet", || cluster.start_daemons())?;
    screen.step("one pod on each host, by the CNI plugin", || cluster.add_pods())?;
    screen.step("every pod reaches every other", || cluster.wait_for_pings(PATIENCE))?;
    Ok(cluster)
}

fn show_leases(cluster: &Cluster, products: &Products, screen: Screen) -> Result<()> {
    let list = products.control(&cluster.store).args(["lease", "list"]);
    let text = screen.step("flannelctl lease list", || cluster.net.store().exec(&list))?;
    screen.detail(&text);
    Ok(())
}

/// With the daemon stopped and the routes to peers deleted, the plan shows what the next pass would do.
fn show_plan(mut cluster: Cluster, products: &Products, screen: Screen) -> Result<Cluster> {
    let host = cluster.net.host(0).clone();
    let text =
        screen.step("flannelctl plan on h0, after its daemon stopped and its routes were deleted", || {
            cluster.daemons[0].stop()?;
            let netlink = host.netlink()?;
            for family in cluster.spec().family.each() {
                for peer in 1..cluster.pods.len() {
                    netlink.delete_route(subnet(&cluster, peer, *family)?)?;
                }
            }
            host.exec(&products.control_on_host(&cluster.store).arg("plan"))
        })?;
    screen.detail(&text);
    screen.step("start the daemon again", || {
        cluster.restart_daemon(0)?;
        cluster.wait_for_pings(PATIENCE)
    })?;
    Ok(cluster)
}

fn show_pings(cluster: &Cluster, screen: Screen) -> Result<()> {
    let pings =
        screen.step("pings between all pods, both directions", || cluster.pings(Duration::from_secs(1)))?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    if cluster.pods.len() > 8 {
        let slowest = pings.iter().map(|(.., time)| *time).max().unwrap_or_default();
        screen.detail(&format!(
            "{} of {} answered, the slowest in {:.2} ms",
            pings.len(),
            pings.len(),
            ms(slowest)
        ));
        return Ok(());
    }
    let names = cluster.pods.iter().map(|pod| format!("{:>9}", pod.host().name()));
    screen.detail(&format!("{:34}{} ms", "from \\ to", names.collect::<String>()));
    for (family, position) in cluster.spec().family.each().iter().zip(0..) {
        for (from, pod) in cluster.pods.iter().enumerate() {
            let cells = (0..cluster.pods.len()).map(|to| {
                let mut found = pings.iter().filter(|ping| (ping.0, ping.1) == (from, to));
                found
                    .nth(position)
                    .map_or_else(|| format!("{:>9}", "-"), |ping| format!("{:>9.3}", ms(ping.2)))
            });
            let cells: String = cells.collect();
            screen.detail(&format!("{:4}{:30}{cells}", pod.host().name(), pod.address(*family)?.to_string()));
        }
    }
    Ok(())
}

fn show_throughput(cluster: &Cluster, screen: Screen) -> Result<()> {
    let (from, to) = (&cluster.pods[0], &cluster.pods[1]);
    for family in cluster.spec().family.each() {
        let what = format!("TCP from {} to {}, {family}", from.name(), to.name());
        let flow = screen.step(&what, || {
            probe::throughput(from.space(), to.space(), to.address(*family)?, Duration::from_millis(500))
        })?;
        screen.detail(&screen.strong(&format!("{:.2} Gbit/s", flow.gbit_per_s())));
    }
    Ok(())
}

fn disturb_routes(cluster: &Cluster, screen: Screen) -> Result<()> {
    let (from, to) = (&cluster.pods[0], &cluster.pods[1]);
    for family in cluster.spec().family.each() {
        let route = subnet(cluster, 1, *family)?;
        let report = screen.step(&format!("delete the route to {route} on h0, under traffic"), || {
            disturb::outage(from, to, *family, PATIENCE, || {
                from.host().netlink()?.delete_route(route).map(drop)
            })
        })?;
        show_outage(report, screen);
    }
    Ok(())
}

fn disturb_links(cluster: &Cluster, screen: Screen) -> Result<()> {
    let (from, to) = (&cluster.pods[0], &cluster.pods[1]);
    for family in cluster.spec().family.each() {
        let link = cluster.spec().backend.link(*family);
        if link == UPLINK {
            screen.detail("no tunnel device to flap with this backend");
            return Ok(());
        }
        let report = screen.step(&format!("set {link} down and up on h0, under traffic"), || {
            disturb::outage(from, to, *family, PATIENCE, || {
                let netlink = from.host().netlink()?;
                netlink.set_down(link)?;
                netlink.set_up(link)
            })
        })?;
        show_outage(report, screen);
    }
    Ok(())
}

fn show_outage(report: Report, screen: Screen) {
    let ms = format!("{:.1} ms until the pods reach each other again", report.outage().as_secs_f64() * 1e3);
    screen.detail(&format!("{}, {} of {} packets lost", screen.strong(&ms), report.lost(), report.sent));
}

/// The subnet of a host, from its subnet.env.
fn subnet(cluster: &Cluster, number: usize, family: Family) -> Result<IpNetwork> {
    let key = if family == Family::V6 { "FLANNEL_IPV6_SUBNET" } else { "FLANNEL_SUBNET" };
    let env = subnet_env(cluster.net.host(number)).with_context(|| format!("h{number} has no subnet"))?;
    let first: IpNetwork = env.get(key).with_context(|| format!("h{number} has no {key}"))?.parse()?;
    Ok(IpNetwork::new(first.network(), first.prefix())?)
}
