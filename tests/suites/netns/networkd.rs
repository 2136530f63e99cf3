//! The real systemd-networkd runs on a host and manages its underlay, or by mistake our tunnel. When it
//! configures a link, it deletes what is not in its files (`ManageForeignRoutes`, on by default). Our objects
//! come back.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::disturb::{PATIENCE, Picture, outage};
use netns_harness::flannel::{Backend, last_lines};
use netns_harness::{Cluster, Family, Host, Process, Program, Spec, UPLINK, eventually};

use crate::case::{Case, case, cluster, spec};

pub(crate) const NETWORKD: &str = "/lib/systemd/systemd-networkd";
const SOON: Duration = Duration::from_secs(10);
/// The longest outage of pods while the underlay's addresses and our routes go and come back: far shorter
/// than the time to an audit, also on a busy machine. On a quiet machine it is 5 to 120 ms.
const FELT: Duration = PATIENCE;

pub(crate) fn cases() -> Vec<Case> {
    let all = [
        ("the_underlay_host_gw", Backend::HostGw, UPLINK),
        ("the_underlay_vxlan", Backend::Vxlan, UPLINK),
        ("our_tunnel_by_mistake", Backend::Vxlan, "flannel.1"),
    ];
    let named = all.map(|(word, backend, link)| {
        let name = format!("pods_lose_few_packets_while_systemd_networkd_configures_{word}");
        case(name, move || reconfigured(backend, link)).with_programs(&[NETWORKD, "/usr/bin/dbus-daemon"])
    });
    named.into()
}

fn reconfigured(backend: Backend, link: &str) -> Result<()> {
    let cluster = cluster(Spec { backend, ..spec(Family::Dual) })?;
    let host = cluster.net.host(1);
    let before = Picture::of(host)?;
    let config =
        if link == UPLINK { underlay(host) } else { "[Network]\nLinkLocalAddressing=no\n".to_owned() };
    let bus = host.spawn(&bus(host)?)?;
    let mut networkd = start(host, link, &config)?;
    configured(host, link, &networkd)?;
    for how in ["networkctl reconfigure", "a restart"] {
        let felt = outage(&cluster.pods[1], &cluster.pods[0], Family::V4, SOON, || {
            if how == "a restart" {
                networkd.stop()?;
                networkd = start(host, link, &config)?;
            } else {
                host.exec(&Program::new("networkctl").args(["reconfigure", link]))?;
            }
            configured(host, link, &networkd)
        })?;
        println!("{backend}, {link}, {how}: {:?} cut, {} packets lost", felt.outage(), felt.lost());
        ensure!(felt.outage() < FELT, "{how}: {felt:?}");
        as_before(&cluster, &before).with_context(|| how.to_owned())?;
    }
    if !(backend == Backend::Vxlan && link == UPLINK) {
        let removed = |line: &&str| line.contains("Removing foreign") && line.contains("route");
        // One log for all starts.
        let log = networkd.log();
        ensure!(
            log.lines().any(|line| removed(&line) && line.contains("proto: 67")),
            "our routes were never at stake"
        );
    }
    ensure!(bus.status().is_none(), "the bus ended");
    cluster.wait_for_pings(SOON).map(drop)
}

/// A host's own file with the settings of the harness.
fn underlay(host: &Host) -> String {
    let mut text = "[Network]\nLinkLocalAddressing=ipv6\nIPv6AcceptRA=no\n".to_owned();
    for own in host.addresses() {
        text += &format!("Address={own}\n");
    }
    text + "[Route]\nDestination=0.0.0.0/0\nScope=link\n[Route]\nDestination=::/0\n"
}

/// A message bus of the host's own, for networkctl.
fn bus(host: &Host) -> Result<Program> {
    fs::create_dir_all(host.path("/run/dbus"))?;
    Ok(Program::new("dbus-daemon").args(["--system", "--nofork", "--nopidfile", "--nosyslog"]))
}

fn start(host: &Host, link: &str, config: &str) -> Result<Process> {
    fs::create_dir_all(host.path("/run/systemd/network"))?;
    fs::write(host.path("/run/systemd/network/10-link.network"), format!("[Match]\nName={link}\n{config}"))?;
    // If /sys is writable, networkd waits until udev has seen each link; udev does not run here.
    let script = format!(
        "mkdir -p /run/systemd/netif && chown -R systemd-network: /run/systemd/netif && \
         mount -o remount,ro,bind /sys && exec {NETWORKD}"
    );
    let program = Program::new("unshare").args(["-m", "sh", "-ec", &script]).named("networkd");
    host.spawn(&program.env("SYSTEMD_LOG_LEVEL", "debug").env("SYSTEMD_LOG_TARGET", "console"))
}

fn configured(host: &Host, link: &str, networkd: &Process) -> Result<()> {
    let list = Program::new("networkctl").args(["list", "--no-legend", "--no-pager"]);
    eventually(SOON, || {
        let links = host.exec(&list)?;
        let done =
            links.lines().any(|line| line.contains(&format!(" {link} ")) && line.contains(" configured"));
        ensure!(done, "{links}\n{}", last_lines(&networkd.log(), 5));
        Ok(())
    })
    .map(drop)
}

fn as_before(cluster: &Cluster, before: &Picture) -> Result<()> {
    eventually(SOON, || {
        let different = before.differences(&Picture::of(cluster.net.host(1))?);
        ensure!(
            different.is_empty(),
            "{}\n{}",
            different.join("\n"),
            last_lines(&cluster.daemons[1].log(), 20)
        );
        Ok(())
    })
    .map(drop)
}
