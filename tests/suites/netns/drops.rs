//! Packets that another program drops in an unusual place: status names the cause and the way out, and the
//! way out works.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::{Cluster, Family, Host, Program, Spec, eventually};

use crate::case::{Case, case, cluster, products, spec};
use crate::rules::{IPTABLES, anew};

const SOON: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![case("a_chain_that_calls_a_dropping_chain_is_named_with_the_line_to_add", called)];
    for flavour in ["nft", "legacy"] {
        let name = format!("our_rules_come_before_the_call_of_a_rejecting_chain_{flavour}");
        cases.push(case(name, move || calling(flavour)));
        let name =
            format!("packets_that_docker_drops_before_routing_are_named_with_dockers_switch_{flavour}");
        cases.push(case(name, move || walled(flavour)));
    }
    for maker in ["nft", "iptables-nft", "iptables-legacy"] {
        let name = format!("an_input_chain_that_keeps_the_tunnel_out_is_named_with_the_line_to_add_{maker}");
        cases.push(case(name, move || kept_out(maker)));
    }
    cases.into_iter().map(|case| case.with_programs_anywhere(&IPTABLES)).collect()
}

fn sh(host: &Host, script: &str) -> Result<String> {
    host.exec(&Program::new("sh").args(["-e", "-c", script]))
}

fn two() -> Result<Cluster> {
    cluster(Spec { hosts: 2, ..spec(Family::V4) })
}

/// Reads the conflicts in status until they are as wanted.
fn wait_for_conflict(cluster: &Cluster, host: &Host, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let ask = products()?.control_on_host(&cluster.store).args(["status", "--output=json"]);
    let mut conflicts = String::new();
    eventually(SOON, || {
        // The exit code shows whether the node is ready; it is not.
        let text = String::from_utf8_lossy(&host.output(&ask)?.stdout).into_owned();
        let status: serde_json::Value = serde_json::from_str(&text)?;
        conflicts = status["conflicts"].to_string();
        ensure!(wanted(&conflicts), "{conflicts}");
        Ok(())
    })?;
    Ok(conflicts)
}

fn refused(cluster: &Cluster) -> Result<()> {
    let ping = cluster.pods[0].ping(&cluster.pods[1], Family::V4, Duration::from_millis(300));
    ensure!(ping.is_err(), "what should be dropped passes");
    Ok(())
}

fn called() -> Result<()> {
    let cluster = two()?;
    let host = cluster.net.host(1);
    sh(
        host,
        "nft 'add table inet site; add chain inet site refuse; add chain inet site ask;
              add rule inet site ask jump refuse;
              add chain inet site guard { type filter hook forward priority 5; policy accept; };
              add rule inet site guard jump ask'",
    )?;
    cluster.wait_for_pings(SOON)?;
    // Neither its own name nor that of the dropping chain says that forwarded packets go there.
    sh(host, "nft add rule inet site ask counter drop")?;
    refused(&cluster)?;
    let conflicts = wait_for_conflict(&cluster, host, |text| text.contains("guard"))?;
    let lines = conflicts.split('`').skip(1).step_by(2).filter(|line| line.starts_with("nft "));
    for line in lines {
        sh(host, line)?;
    }
    cluster.wait_for_pings(SOON)?;
    wait_for_conflict(&cluster, host, |text| !text.contains("guard")).map(drop)
}

/// The way ufw refuses forwarded packets, with `reject` as its policy.
fn calling(flavour: &str) -> Result<()> {
    let mut cluster = two()?;
    let host = cluster.net.host(1).clone();
    let program = format!("iptables-{flavour}");
    sh(
        &host,
        &format!(
            "{program} -N site-reject; {program} -A site-reject -m limit --limit 3/min -j LOG
             {program} -A site-reject -j REJECT; {program} -A FORWARD -j site-reject"
        ),
    )?;
    // The legacy iptables sends no notifications: only a start sees the change.
    anew(&mut cluster, 1)?;
    cluster.wait_for_pings(SOON).with_context(|| cluster.daemons[1].log())?;
    let chain = sh(&host, &format!("{program} -S FORWARD; {program} -S site-reject"))?;
    let order = chain.find("FLANNEL-FWD").zip(chain.find("-j site-reject"));
    ensure!(order.is_some_and(|(ours, theirs)| ours < theirs), "{chain}");
    sh(&host, &format!("{program} -D FORWARD -j site-reject"))?;
    anew(&mut cluster, 1)?;
    let left = sh(&host, &format!("{program}-save"))?;
    ensure!(!left.contains("FLANNEL"), "it goes with the reject: {left}");
    Ok(())
}

/// What a careful operator's input chain lets in, and then everything else is refused: in a chain that it calls, and in nft by
/// its policy.
fn kept_out(maker: &str) -> Result<()> {
    let mut cluster = two()?;
    let host = cluster.net.host(1).clone();
    cluster.wait_for_pings(SOON)?;
    let (script, parts) = if maker == "nft" {
        let script = "nft 'add table inet site; add chain inet site gate { type filter hook input priority 0; policy drop; };
            add rule inet site gate ct state established,related accept; add rule inet site gate iifname lo accept;
            add rule inet site gate meta l4proto tcp accept;
            add rule inet site gate meta l4proto icmp accept; add rule inet site gate udp dport 53 accept'";
        (script.to_owned(), ["chain gate of table inet site", "by its policy"])
    } else {
        let script = format!(
            "{maker} -N site-reject; {maker} -A site-reject -j REJECT
             {maker} -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; {maker} -A INPUT -i lo -j ACCEPT
             {maker} -A INPUT -p tcp -j ACCEPT; {maker} -A INPUT -p icmp -j ACCEPT
             {maker} -A INPUT -p udp --dport 53 -j ACCEPT; {maker} -A INPUT -j site-reject"
        );
        (script, ["chain INPUT of", "with rule 6, which calls site-reject"])
    };
    sh(&host, &script)?;
    refused(&cluster)?;
    // The legacy iptables sends no notifications: only a start sees the change.
    let look = |cluster: &mut Cluster| if maker.ends_with("legacy") { anew(cluster, 1) } else { Ok(()) };
    look(&mut cluster)?;
    let conflicts = wait_for_conflict(&cluster, &host, |said| said.contains("UDP port 8472"))?;
    for part in parts {
        ensure!(conflicts.contains(part), "{part} in {conflicts}");
    }
    let logged = cluster.daemons[1].log().contains(parts[1]);
    ensure!(logged, "{}", cluster.daemons[1].log());
    let line = |text: &str| text.starts_with("nft insert") || text.starts_with("iptables");
    for line in conflicts.split('`').skip(1).step_by(2).filter(|text| line(text)) {
        sh(&host, line)?;
    }
    cluster.wait_for_pings(SOON)?;
    look(&mut cluster)?;
    wait_for_conflict(&cluster, &host, |said| !said.contains("UDP port 8472")).map(drop)
}

/// The rules of Docker 28 and later for a container of a bridge network.
fn walled(flavour: &str) -> Result<()> {
    let mut cluster = two()?;
    let host = cluster.net.host(1).clone();
    let pod = cluster.pods[1].address(Family::V4)?;
    let rule = |verb: &str| {
        sh(&host, &format!("iptables-{flavour} -t raw {verb} PREROUTING -d {pod}/32 ! -i cni0 -j DROP"))
    };
    rule("-A")?;
    refused(&cluster)?;
    if flavour == "legacy" {
        anew(&mut cluster, 1)?;
    }
    let conflicts = wait_for_conflict(&cluster, &host, |text| text.contains("table raw"))?;
    for part in [&format!("the container {pod}"), "gateway_mode_ipv4=nat-unprotected", "allow-direct-routing"]
    {
        ensure!(conflicts.contains(part), "{part} in {conflicts}");
    }
    rule("-D")?;
    cluster.wait_for_pings(SOON)?;
    if flavour == "legacy" {
        anew(&mut cluster, 1)?;
    }
    wait_for_conflict(&cluster, &host, |text| !text.contains("table raw")).map(drop)
}
