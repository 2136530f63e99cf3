//! The harness with the machine's kernel. Needs root, or user namespaces by a call of `enter` in a main of
//! its own.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]
#![allow(clippy::disallowed_methods, reason = "the harness measures time and waits for other programs")]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netns_harness::probe::{ping, ping_until, tcp_connect, throughput};
use netns_harness::stream::Stream;
use netns_harness::{Family, Net, Program, Topology, UPLINK, eventually, rundir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn hosts_of_a_flat_net_reach_each_other_and_the_store_in_both_families() {
    let net = Net::build(Topology::flat(3).family(Family::Dual)).unwrap();
    for from in net.hosts() {
        for to in net.hosts().iter().chain([net.store()]) {
            for family in [Family::V4, Family::V6] {
                ping(from.space(), to.address(family).unwrap(), SECOND).unwrap();
            }
        }
    }
}

#[test]
fn racks_reach_each_other_through_the_router() {
    let net = Net::build(Topology::racks(&[1, 2]).family(Family::Dual)).unwrap();
    for family in [Family::V4, Family::V6] {
        ping(net.host(0).space(), net.host(2).address(family).unwrap(), SECOND).unwrap();
        ping(net.host(1).space(), net.store().address(family).unwrap(), SECOND).unwrap();
    }
}

#[test]
fn a_host_has_its_own_run_and_var_lib_and_sees_the_machines_other_files() {
    let net = Net::build(Topology::flat(2)).unwrap();
    let script = "hostname && mkdir /run/flannel && echo here > /run/flannel/subnet.env && echo x > /var/lib/y && ls /sys/class/net";
    let links = net.host(0).exec(&Program::new("sh").args(["-c", script])).unwrap();
    assert!(links.starts_with("h0\n") && links.contains(UPLINK), "{links}");
    assert_eq!(fs::read_to_string(net.host(0).path("/run/flannel/subnet.env")).unwrap(), "here\n");
    assert!(net.host(0).path("/var/lib/y").exists());
    assert!(!net.host(1).path("/run/flannel").exists());
    assert!(!Path::new("/run/flannel/subnet.env").exists() && !Path::new("/var/lib/y").exists());
}

#[test]
fn the_printed_command_enters_the_host() {
    let net = Net::build(Topology::flat(1)).unwrap();
    fs::write(net.host(0).path("/run/mark"), "yes").unwrap();
    let script = format!("{} cat /run/mark /proc/net/if_inet6 /proc/net/dev", net.host(0).enter_command());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("yes") && text.contains(UPLINK), "{script}: {output:?}");
}

#[test]
fn nothing_is_left_of_a_dropped_net() {
    let net = Net::build(Topology::flat(2)).unwrap();
    let outer = net.run_dir().outer().to_owned();
    let process = net.host(0).spawn(&Program::new("sh").args(["-c", "sleep 1000 & sleep 1000"])).unwrap();
    let shell = process.pid();
    eventually(SECOND, || match children(shell).len() {
        2 => Ok(()),
        some => anyhow::bail!("{some} children"),
    })
    .unwrap();
    let grandchildren = children(shell);
    assert!(outer.exists());
    drop(net);
    assert!(!outer.exists());
    for pid in grandchildren {
        eventually(SECOND, || match alive(pid) {
            true => anyhow::bail!("{pid} lives"),
            false => Ok(()),
        })
        .unwrap();
    }
    assert!(process.status().is_some());
}

#[test]
fn a_cut_wire_is_a_gap_and_an_uncut_one_is_not() {
    let net = Net::build(Topology::flat(2)).unwrap();
    let (from, to) = (net.host(0), net.host(1));
    let start = || {
        Stream::start(from.space(), to.space(), to.address(Family::V4).unwrap(), Duration::from_micros(250))
            .unwrap()
    };
    let sent = |stream: &Stream, count: u64| {
        let goal = stream.sent() + count;
        eventually(20 * SECOND, || if stream.sent() < goal { anyhow::bail!("too few") } else { Ok(()) })
            .unwrap();
    };
    let stream = start();
    sent(&stream, 400);
    assert_eq!(stream.stop().unwrap().lost(), 0);

    let stream = start();
    sent(&stream, 100);
    let netlink = to.netlink().unwrap();
    netlink.set_down(UPLINK).unwrap();
    sent(&stream, 200);
    netlink.set_up(UPLINK).unwrap();
    sent(&stream, 200);
    let report = stream.stop().unwrap();
    assert!(report.lost() > 50, "{report:?}");
    // The sender never sends faster than the interval, so the gap is at least as long as the lost packets.
    assert!(report.outage() >= Duration::from_micros(250 * (report.lost() - 1)), "{report:?}");
}

#[test]
fn tcp_connects_and_carries_a_flood() {
    let net = Net::build(Topology::flat(2)).unwrap();
    let (from, to) = (net.host(0), net.host(1));
    let at = to.address(Family::V4).unwrap();
    let listener = to.space().run(|| std::net::TcpListener::bind(SocketAddr::new(at, 0))).unwrap().unwrap();
    tcp_connect(from.space(), listener.local_addr().unwrap(), SECOND).unwrap();
    let flood = throughput(from.space(), to.space(), at, Duration::from_millis(200)).unwrap();
    assert!(flood.gbit_per_s() > 0.1, "{flood:?}");
}

#[test]
fn a_deleted_route_is_gone_until_it_is_added_again() {
    let net = Net::build(Topology::flat(2)).unwrap();
    let netlink = net.host(0).netlink().unwrap();
    let far = "10.99.0.0/24".parse().unwrap();
    netlink.add_route(far, Some(net.host(1).address(Family::V4).unwrap()), UPLINK).unwrap();
    net.host(1).netlink().unwrap().add_address("lo", "10.99.0.1/32".parse().unwrap()).unwrap();
    ping_until(net.host(0).space(), "10.99.0.1".parse().unwrap(), SECOND).unwrap();
    assert!(netlink.routes(UPLINK).unwrap().contains(&far));
    assert!(netlink.delete_route(far).unwrap());
    assert!(!netlink.delete_route(far).unwrap());
    assert!(!netlink.routes(UPLINK).unwrap().contains(&far));
}

#[test]
fn a_program_that_fails_is_quoted() {
    let net = Net::build(Topology::flat(1)).unwrap();
    let error = net.host(0).exec(&Program::new("sh").args(["-c", "echo no luck >&2; exit 3"])).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("no luck") && text.contains("exit status: 3") && text.contains("h0"), "{text}");
    let error = net.host(0).spawn(&Program::new("/nowhere/flanneld")).unwrap_err();
    assert!(format!("{error:#}").contains("/nowhere/flanneld: no such file"), "{error:#}");
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_and_one_that_is_killed_leaves_what_the_next_run_sweeps() {
    let scratch = std::env::temp_dir().join(format!("harness-signals-{}", std::process::id()));
    fs::create_dir(&scratch).unwrap();
    for program in ["flanneld", "flannel"] {
        fs::write(scratch.join(program), "#!/bin/sh\nexec sleep 1000\n").unwrap();
        fs::set_permissions(scratch.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
        let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
        demo.env("SELVAGE_BIN", &scratch).env("XDG_RUNTIME_DIR", &scratch).stdout(Stdio::null());
        let mut demo = demo.spawn().unwrap();
        let store = eventually_some(|| all_children(demo.id()).into_iter().find(|pid| runs(*pid, "sleep")));
        let status = fs::read_to_string(format!("/proc/{store}/status")).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"), "a child can't be stopped: {status}");
        kill(Pid::from_raw(demo.id().try_into().unwrap()), signal).unwrap();
        let status = demo.wait().unwrap();
        assert_eq!(status.code(), (signal != Signal::SIGKILL).then_some(128 + signal as i32));
        eventually_some(|| (!alive(store)).then_some(()));
        let left = runs_in(&scratch);
        assert_eq!(left, usize::from(signal == Signal::SIGKILL), "after {signal}");
    }
    rundir::sweep(&scratch);
    assert_eq!(runs_in(&scratch), 0);
    fs::remove_dir_all(&scratch).unwrap();
}

fn eventually_some<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(20 * SECOND, || {
        found = ask();
        if found.is_some() { Ok(()) } else { anyhow::bail!("not yet") }
    })
    .unwrap();
    found.unwrap()
}

fn runs_in(dir: &Path) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|it| it.file_name().to_string_lossy().starts_with(rundir::PREFIX))
        .count()
}

/// Of all threads: a child belongs to the thread that forked it.
fn all_children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let text = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    text.flat_map(|text| text.split_whitespace().flat_map(str::parse).collect::<Vec<u32>>()).collect()
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().flat_map(str::parse).collect()
}

fn runs(pid: u32, program: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == program)
}

/// A zombie is dead: its parent is the machine's init, which may reap it later.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

#[test]
#[ignore = "takes half a gigabyte"]
fn a_net_of_1200_hosts_spans_several_bridges() {
    let start = Instant::now();
    let net = Net::build(Topology::flat(1_200)).unwrap();
    println!("built in {:?}", start.elapsed());
    ping(net.host(3).space(), net.host(1_199).address(Family::V4).unwrap(), SECOND).unwrap();
    let start = Instant::now();
    drop(net);
    println!("dropped in {:?}", start.elapsed());
}
