//! Other programs filter on the same host: pods pass what those programs drop by default, packets that they
//! drop on purpose stay dropped, and none of their rules is changed.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_harness::{Cluster, Family, Host, Process, Program, Spec, eventually};

use crate::case::{Case, case, cluster, products, spec};
use crate::rules::{IPTABLES, anew};

const SOON: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for flavour in ["nft", "legacy"] {
        let name = format!(
            "pods_reach_each_other_under_a_dropping_forward_policy_and_our_accept_goes_with_it_{flavour}"
        );
        cases.push(case(name, move || dropped(flavour)));
        let name = format!("our_accept_is_in_dockers_chain_before_its_return_{flavour}");
        cases.push(case(name, move || docker(flavour)));
        let name = format!("the_rules_of_a_policy_engine_come_before_ours_{flavour}");
        cases.push(case(name, move || policy(flavour)));
        let name = format!("our_iptables_rules_come_before_a_final_reject_{flavour}");
        cases.push(case(name, move || rejected(flavour)));
    }
    cases.push(case("pods_reach_each_other_under_ufw", ufw).with_programs(&["/lib/ufw/ufw-init"]));
    cases.push(
        case("firewalld_trusts_pods_also_after_a_reload", firewalld).with_programs(&["/usr/sbin/firewalld"]),
    );
    for form in ["iptables", "nftables"] {
        let name = format!("services_of_a_real_kube_proxy_with_{form}_reach_pods_with_the_right_source");
        cases.push(case(name, move || services(form)));
    }
    cases.push(case("a_foreign_chain_that_drops_is_named_with_the_line_to_add", named));
    cases.push(case("a_held_iptables_lock_delays_rules_and_nothing_else", locked));
    cases.push(case("twenty_thousand_foreign_rules_start_no_program_and_cost_no_time", crowd));
    cases.into_iter().map(|case| case.with_programs_anywhere(&IPTABLES)).collect()
}

fn sh(host: &Host, script: &str) -> Result<String> {
    host.exec(&Program::new("sh").args(["-e", "-c", script]))
}

fn two(family: Family) -> Result<Cluster> {
    cluster(Spec { hosts: 2, ..spec(family) })
}

fn talk(cluster: &Cluster) -> Result<()> {
    let why = || cluster.daemons.iter().map(Process::log).collect::<Vec<_>>().join("\n---\n");
    cluster.wait_for_pings(SOON).with_context(why).map(drop)
}

fn save(host: &Host, flavour: &str) -> Result<String> {
    sh(host, &format!("iptables-{flavour}-save | grep -v '^#' | sed 's/\\[.*//'"))
}

fn wait_for(host: &Host, flavour: &str, is: impl Fn(&str) -> bool) -> Result<Duration> {
    eventually(SOON, || {
        let saved = save(host, flavour)?;
        ensure!(is(&saved), "{saved}");
        Ok(())
    })
}

const JUMP: &str = "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD";

/// Go's daemon checks every five seconds; the legacy iptables sends no notifications.
const QUICK: &str = "--iptables-resync=1";

fn dropped(flavour: &str) -> Result<()> {
    let mut cluster = cluster(Spec { hosts: 2, flags: vec![QUICK.to_owned()], ..spec(Family::Dual) })?;
    for host in cluster.net.hosts() {
        sh(host, &format!("iptables-{flavour} -P FORWARD DROP; ip6tables-{flavour} -P FORWARD DROP"))?;
    }
    // The legacy iptables sends no notifications: only a start sees the change.
    for n in 0..2 {
        anew(&mut cluster, n)?;
    }
    talk(&cluster)?;
    let host = cluster.net.host(0);
    let stands = format!("-A FORWARD {JUMP}");
    ensure!(save(host, flavour)?.contains(&stands), "{}", save(host, flavour)?);
    sh(host, &format!("iptables-{flavour} -F FORWARD"))?;
    wait_for(host, flavour, |saved| saved.contains(&stands))?;
    talk(&cluster)?;
    sh(host, &format!("iptables-{flavour} -P FORWARD ACCEPT"))?;
    wait_for(host, flavour, |saved| !saved.contains("FLANNEL"))?;
    cluster.daemons[1].stop()?;
    let host = cluster.net.host(1);
    host.exec(&products()?.control_on_host(&cluster.store).arg("cleanup"))?;
    let left = save(host, flavour)?;
    ensure!(left.contains(":FORWARD DROP") && !left.contains("FLANNEL"), "{left}");
    Ok(())
}

fn docker(flavour: &str) -> Result<()> {
    let mut cluster = two(Family::V4)?;
    // The state that Docker 27 leaves.
    let script = format!(
        "iptables-{flavour}-restore --noflush <<'END'
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -s 192.0.2.0/24 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
END"
    );
    let mut before = Vec::new();
    for n in 0..2 {
        sh(cluster.net.host(n), &script)?;
        before.push(save(cluster.net.host(n), flavour)?);
        anew(&mut cluster, n)?;
    }
    talk(&cluster)?;
    let saved = save(cluster.net.host(0), flavour)?;
    let order =
        format!("-A DOCKER-USER -s 192.0.2.0/24 -j DROP\n-A DOCKER-USER {JUMP}\n-A DOCKER-USER -j RETURN\n");
    ensure!(saved.contains(&order), "{saved}");
    // With nf_tables the daemon may be faster than the first check.
    let theirs = |saved: &str| -> Vec<String> {
        saved.lines().filter(|line| !line.contains("FLANNEL")).map(str::to_owned).collect()
    };
    ensure!(theirs(&saved) == theirs(&before[0]), "before:\n{}\nnow:\n{saved}", before[0]);
    Ok(())
}

/// Calico's chains are first in FORWARD. They mark the packets that they accept, and return them.
fn policy(flavour: &str) -> Result<()> {
    let mut cluster = two(Family::V4)?;
    let (denied, asks) = (cluster.pods[0].address(Family::V4)?, cluster.net.host(0).clone());
    let other = netns_harness::Pod::add(&asks, "other", &products()?.cni())?;
    let script = format!(
        "iptables-{flavour}-restore --noflush <<'END'
*filter
:FORWARD DROP [0:0]
:cali-FORWARD - [0:0]
:cali-from-wl-dispatch - [0:0]
-A FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -j cali-from-wl-dispatch
-A cali-from-wl-dispatch -s {denied} -p icmp -m icmp --icmp-type 8 -j DROP
COMMIT
END"
    );
    sh(&asks, &script)?;
    anew(&mut cluster, 0)?;
    let to = &cluster.pods[1];
    eventually(SOON, || other.ping(to, Family::V4, Duration::from_millis(200)).map(drop))?;
    let passed = cluster.pods[0].ping(to, Family::V4, Duration::from_millis(300));
    ensure!(passed.is_err(), "what the policy drops came through:\n{}", save(&asks, flavour)?);
    Ok(())
}

fn rejected(flavour: &str) -> Result<()> {
    let mut cluster = two(Family::V4)?;
    // Like the rules of RHEL's iptables-services.
    for n in 0..2 {
        sh(
            cluster.net.host(n),
            &format!("iptables-{flavour} -A FORWARD -j REJECT --reject-with icmp-host-prohibited"),
        )?;
    }
    for maker in ["--traffic-rules=nftables".to_owned(), format!("--traffic-rules=iptables-{flavour}")] {
        cluster.set_flags(&[&maker]);
        for n in 0..2 {
            anew(&mut cluster, n)?;
        }
        talk(&cluster)?;
        let saved = save(cluster.net.host(0), flavour)?;
        let order = format!("-A FORWARD {JUMP}\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n");
        ensure!(saved.contains(&order), "{maker}: {saved}");
    }
    Ok(())
}

fn ufw() -> Result<()> {
    let cluster = two(Family::Dual)?;
    for host in cluster.net.hosts() {
        // Its switch is a file of the machine: this host gets its own copy.
        sh(
            host,
            "cp -r /etc/ufw /run/ufw-etc; sed -i 's/^ENABLED=.*/ENABLED=yes/' /run/ufw-etc/ufw.conf
             mount --bind /run/ufw-etc /etc/ufw
             /lib/ufw/ufw-init start; iptables -S FORWARD | grep -q -- '-P FORWARD DROP'
             iptables -I ufw-before-input -p udp -j ACCEPT; ip6tables -I ufw6-before-input -p udp -j ACCEPT",
        )?;
    }
    talk(&cluster)
}

fn firewalld() -> Result<()> {
    let cluster = two(Family::V4)?;
    let host = cluster.net.host(1);
    // Its permanent settings are a file of the machine: this host gets its own copy.
    let files = "mkdir -p /run/dbus /run/firewalld; cp -r /etc/firewalld /run/firewalld-etc
        mount --bind /run/firewalld-etc /etc/firewalld";
    sh(host, files)?;
    let _bus = host.spawn(&Program::new("dbus-daemon").args(["--system", "--nofork", "--nopidfile"]))?;
    let daemon = host.spawn(&Program::new("/usr/sbin/firewalld").args(["--nopid", "--nofork"]))?;
    eventually(Duration::from_secs(60), || sh(host, "firewall-cmd --state").map(drop))
        .with_context(|| daemon.log())?;
    // The packets of the tunnel are for the host itself; the operator decides about those.
    sh(host, "firewall-cmd --permanent --add-port=8472/udp; firewall-cmd --add-port=8472/udp")?;
    let trusted = || sh(host, "firewall-cmd --zone=trusted --list-sources");
    let in_force = || {
        eventually(Duration::from_secs(30), || {
            ensure!(trusted()?.contains("10.42.0.0/16"), "{}", cluster.daemons[1].log());
            Ok(())
        })
    };
    in_force()?;
    talk(&cluster)?;
    let tables = sh(host, "nft list tables")?;
    sh(host, "firewall-cmd --reload")?;
    in_force()?;
    talk(&cluster)?;
    ensure!(sh(host, "nft list tables")? == tables, "a reload takes nothing of ours");
    cluster.daemons[1].stop()?;
    host.exec(&products()?.control_on_host(&cluster.store).arg("cleanup"))?;
    eventually(SOON, || {
        ensure!(!trusted()?.contains("10.42."), "still trusted");
        Ok(())
    })
    .map(drop)
}

/// The rules of a real kube-proxy, with the endpoint of its services `web` and `local` replaced by a pod of
/// the second host.
fn kube_proxy(form: &str, pod: SocketAddr) -> Program {
    let (rules, load) = match form {
        "nftables" => (include_str!("foreign/kube-proxy.nft"), Program::new("nft").args(["-f", "-"])),
        _ => (include_str!("foreign/kube-proxy.iptables"), Program::new("iptables-nft-restore")),
    };
    let rules = rules.replace("10.42.99.2", &pod.ip().to_string()).replace("9999", &pod.port().to_string());
    // Named counters: kube-proxy makes them beforehand, with the right to do so.
    let counts = |line: &str| {
        let (head, tail) = line.split_once(" -m nfacct --nfacct-name  ")?;
        Some(format!("{head} {}", tail.split_once(' ')?.1))
    };
    let rules = rules.lines().map(|line| counts(line).unwrap_or_else(|| line.to_owned()) + "\n");
    load.stdin(rules.collect::<String>())
}

fn services(form: &str) -> Result<()> {
    let mut cluster = two(Family::V4)?;
    let (host, pod) = (cluster.net.host(0).clone(), cluster.pods[1].address(Family::V4)?);
    ensure!(host.address(Family::V4)?.to_string() == "172.30.0.1", "the node of the recording");
    let listener = cluster.pods[1].space().run(|| TcpListener::bind((pod, 0)))??;
    host.exec(&kube_proxy(form, listener.local_addr()?))?;
    let theirs = |host: &Host| -> Result<Vec<String>> {
        let all = sh(host, "nft list table ip kube-proxy 2>/dev/null || iptables-nft-save")?;
        let line = |l: &str| l.split(" [").next().unwrap_or_default().to_owned();
        Ok(all.lines().filter(|l| !l.contains("FLANNEL") && !l.starts_with('#')).map(line).collect())
    };
    let before = theirs(&host)?;
    let outside = cluster.net.store().clone();
    for maker in ["--traffic-rules=nftables", "--traffic-rules=iptables-nft"] {
        cluster.set_flags(&[maker]);
        anew(&mut cluster, 0)?;
        let tunnel = sh(&host, "ip -4 -o address show dev flannel.1 | sed 's/.*inet //; s,/.*,,'")?;
        let (pods, tunnel) = (cluster.pods[0].address(Family::V4)?, tunnel.trim().parse()?);
        for (from, to, expected) in [
            (cluster.pods[0].space(), "10.96.0.10:80", pods),
            (host.space(), "10.96.0.10:80", tunnel),
            (outside.space(), "172.30.0.1:30080", tunnel),
            // A Service with local endpoints only has none here; its cluster address works.
            (cluster.pods[0].space(), "10.96.0.11:80", pods),
        ] {
            let to = to.parse()?;
            let stream = from.run(|| TcpStream::connect_timeout(&to, SOON))?;
            let _stream = stream.with_context(|| format!("{maker}: {} → {to}", from.name()))?;
            let seen: IpAddr = listener.accept()?.1.ip();
            ensure!(seen == expected, "{maker}: {} → {to}: {seen} is seen, and not {expected}", from.name());
        }
        for (from, to) in [(outside.space(), "172.30.0.1:30081"), (cluster.pods[0].space(), "10.96.0.12:80")]
        {
            let to = to.parse()?;
            let stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))?;
            ensure!(
                stream.is_err(),
                "{maker}: {} → {to}: our accept lifts the proxy's own drop",
                from.name()
            );
        }
        ensure!(theirs(&host)? == before, "{maker}: something of theirs changed");
    }
    Ok(())
}

fn named() -> Result<()> {
    let cluster = two(Family::V4)?;
    let host = cluster.net.host(1);
    let chain = "add table inet site; add chain inet site guard { type filter hook forward priority 5; policy drop; }";
    sh(host, &format!("nft '{chain}'"))?;
    let refused = cluster.pods[0].ping(&cluster.pods[1], Family::V4, Duration::from_millis(300));
    ensure!(refused.is_err(), "the foreign chain does not drop");
    let ask = products()?.control_on_host(&cluster.store).args(["status", "--output=json"]);
    let mut lines = Vec::new();
    eventually(SOON, || {
        let text = String::from_utf8_lossy(&host.output(&ask)?.stdout).into_owned();
        let conflicts: serde_json::Value = serde_json::from_str(&text)?;
        let conflicts = conflicts["conflicts"].to_string();
        lines = conflicts
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .filter(|l| l.starts_with("nft "))
            .collect();
        ensure!(lines.len() == 1, "{text}");
        Ok(())
    })?;
    for line in &lines {
        sh(host, line)?;
    }
    talk(&cluster)?;
    sh(host, "nft delete table inet site")?;
    eventually(SOON, || {
        let text = String::from_utf8_lossy(&host.output(&ask)?.stdout).into_owned();
        ensure!(!text.contains("site"), "{text}");
        Ok(())
    })
    .map(drop)
}

/// Another program holds the lock: peers join and leave as usual, and the rules follow when the lock is free.
fn locked() -> Result<()> {
    let mut cluster = cluster(Spec { hosts: 1, ..spec(Family::V4) })?;
    let host = cluster.net.host(0).clone();
    let holder =
        host.spawn(&Program::new("flock").args(["--no-fork", "/run/xtables.lock", "sleep", "600"]))?;
    cluster.set_flags(&["--traffic-rules=iptables-legacy", QUICK]);
    cluster.restart_daemon(0)?;
    eventually(SOON, || {
        let log = cluster.daemons[0].log();
        ensure!(log.matches("xtables lock").count() >= 2, "{log}");
        Ok(())
    })?;
    ensure!(
        sh(&host, "nft list tables")?.contains("flannel-ipv4"),
        "the old rules stand until the new ones do"
    );
    let lease =
        netns_harness::flannel::vxlan_lease("10.42.240.0/24", "172.30.0.240".parse()?, "02:00:00:00:00:f0");
    cluster.store.put(&[lease])?;
    eventually(SOON, || {
        let routes = sh(&host, "ip route")?;
        ensure!(routes.contains("10.42.240.0/24"), "{routes}\n{}", cluster.daemons[0].log());
        Ok(())
    })?;
    holder.kill();
    eventually(Duration::from_secs(40), || {
        ensure!(save(&host, "legacy")?.contains(JUMP), "{}", cluster.daemons[0].log());
        ensure!(!sh(&host, "nft list tables")?.contains("flannel-ipv4"), "the old rules are left");
        Ok(())
    })
    .map(drop)
}

/// The rules of a proxy with many services, in both flavours.
fn crowd() -> Result<()> {
    let mut cluster = cluster(Spec { hosts: 1, ..spec(Family::V4) })?;
    let host = cluster.net.host(0).clone();
    let mut input = "*nat\n:SERVICES - [0:0]\n-A PREROUTING -j SERVICES\n".to_owned();
    for n in 0..10_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        input += &format!(
            "-A SERVICES -d 10.96.{b}.{c}/32 -p tcp -m tcp --dport {} -j ACCEPT\n",
            1000 + u32::from(a)
        );
    }
    input += "COMMIT\n*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
    for flavour in ["nft", "legacy"] {
        host.exec(
            &Program::new(format!("iptables-{flavour}-restore")).arg("--noflush").stdin(input.clone()),
        )?;
    }
    for maker in ["nftables", "iptables-nft", "iptables-legacy"] {
        cluster.set_flags(&[&format!("--traffic-rules={maker}"), QUICK]);
        anew(&mut cluster, 0)?;
        let daemon = &cluster.daemons[0];
        quiet(&cluster, daemon).with_context(|| maker)?;
    }
    Ok(())
}

/// Checks that no program is started during some audits.
fn quiet(cluster: &Cluster, daemon: &Process) -> Result<()> {
    let host = cluster.net.host(0);
    let ask = products()?.control_on_host(&cluster.store).args(["status", "--output=json"]);
    let passes = || -> Result<u64> {
        let text = host.output(&ask)?.stdout;
        let status: serde_json::Value = serde_json::from_slice(&text)?;
        status["passes"].as_u64().context("passes")
    };
    let after = |passed: u64| {
        eventually(Duration::from_secs(60), || {
            ensure!(passes()? >= passed, "no audit");
            Ok(())
        })
    };
    // The daemon's own start causes notifications.
    after(passes()? + 2)?;
    let (began, forks) = (passes()?, children_faults(daemon)?);
    after(began + 3)?;
    ensure!(children_faults(daemon)? == forks, "a program was run\n{}", daemon.log());
    Ok(())
}

/// Page faults of the process's ended children: every child has some.
fn children_faults(daemon: &Process) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))?;
    let after_name = stat.rsplit(')').next().context("stat")?;
    Ok(after_name.split_whitespace().nth(8).context("cminflt")?.parse()?)
}
