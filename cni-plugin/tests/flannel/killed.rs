//! Calls that are killed at any of their system calls, as a runtime does whose time is over: a DEL leaves the host as it
//! was before the ADD, and the next ADD works.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::thread;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::{DUAL, Host, Namespace, Whose};

/// More stops than any call makes.
const MOST: usize = 2000;

/// Calls the plugin and kills it when it stops for the `n`th time at a system call; whether it came that far.
fn kill_at(host: &Host, verb: &str, n: usize, netns: &str) -> bool {
    let variables = [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", netns), ("CNI_IFNAME", "eth0")];
    let mut command = host.command(Whose::Ours, "flannel", verb, &variables);
    host.net.run(|| {
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        // Up to here it has only read: it waits for its input.
        while !is_waiting(child.id()) {
            thread::yield_now();
        }
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).unwrap();
        ptrace::interrupt(pid).unwrap();
        waitpid(pid, None).unwrap();
        child.stdin.take().unwrap().write_all(conf(host).to_string().as_bytes()).unwrap();
        let came = step_to(pid, n);
        if came {
            kill(pid, Signal::SIGKILL).unwrap();
        }
        // One that ended by itself has been waited for.
        let _ = child.wait();
        came
    })
}

/// Lets it run to its `n`th stop at a system call; whether it came that far before its end.
fn step_to(pid: Pid, n: usize) -> bool {
    let (mut stops, mut signal) = (0, None);
    while stops < n {
        ptrace::syscall(pid, signal.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => stops += 1,
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return false,
            _ => {}
        }
    }
    true
}

fn is_waiting(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('S')
}

/// With the keys that make most.
fn conf(host: &Host) -> Value {
    let mut conf = host.conf();
    conf["delegate"]["macspoofchk"] = true.into();
    conf
}

/// Everything of the host that an ADD may touch.
fn snapshot(host: &Host, pod: &Namespace) -> [Vec<String>; 8] {
    let names = |folder: &str| {
        let mut names: Vec<_> = fs::read_dir(host.path(folder))
            .map(|all| all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    };
    let index = fs::read_dir(host.path("index")).unwrap().next().unwrap().unwrap().file_name();
    let index = names(&format!("index/{}", index.to_str().unwrap()));
    let mut links = host.net.links();
    links.sort();
    let rules = host.net.run(|| Command::new("nft").args(["list", "ruleset"]).output().unwrap());
    let rules = String::from_utf8(rules.stdout).unwrap().lines().map(str::to_owned).collect();
    let (state, network) = (names("state"), names("networks/cbr0"));
    [links, host.net.addresses(), pod.links(), rules, host.reserved(), state, network, index]
}

/// Each system call is two stops, before and after; every second one is every boundary between two calls.
fn each_boundary(host: &Host, verb: &str, netns: &str, mut after: impl FnMut(usize)) {
    for (boundaries, n) in (1..MOST).step_by(2).enumerate() {
        if !kill_at(host, verb, n, netns) {
            // It ended by itself: all boundaries are behind us.
            assert!(boundaries > 10, "{boundaries} boundaries of {verb} are too few to be all");
            return;
        }
        after(n);
    }
    panic!("{verb} makes more than {} system calls", MOST / 2);
}

/// With another container on the bridge, which is not to notice.
fn host() -> (Host, Namespace, Namespace) {
    let (host, other, pod) = (Host::with_env(DUAL), Namespace::new(), Namespace::new());
    for container in ["c1", "c0"] {
        assert!(host.flannel("ADD", container, &other.path(), &conf(&host)).well);
        if container == "c1" {
            assert!(host.flannel("DEL", container, &other.path(), &conf(&host)).well);
        }
    }
    (host, other, pod)
}

#[test]
fn an_add_killed_at_any_system_call_leaves_nothing_that_a_delete_does_not_find() {
    let (host, other, pod) = host();
    let before = snapshot(&host, &pod);
    each_boundary(&host, "ADD", &pod.path(), |n| {
        // As runtimes do it: with the namespace, or without when that is gone from their books.
        let netns = if n % 4 == 1 { pod.path() } else { String::new() };
        let answer = host.flannel("DEL", "c1", &netns, &conf(&host));
        assert!(answer.well, "boundary {n}: {}", answer.document);
        assert_eq!(snapshot(&host, &pod), before, "boundary {n}");
    });
    assert!(before[3].iter().any(|rule| rule.contains("macspoofchk-c0-eth0")), "{:?}", before[3]);
    assert_eq!(other.links(), ["eth0 1430"]);
    assert!(host.flannel("DEL", "c1", &pod.path(), &conf(&host)).well);
    assert!(host.flannel("ADD", "c1", &pod.path(), &conf(&host)).well);
}

#[test]
fn a_delete_killed_at_any_system_call_is_finished_by_the_next_one() {
    let (host, other, pod) = host();
    let before = snapshot(&host, &pod);
    assert!(host.flannel("ADD", "c1", &pod.path(), &conf(&host)).well);
    each_boundary(&host, "DEL", &pod.path(), |n| {
        let answer = host.flannel("DEL", "c1", &pod.path(), &conf(&host));
        assert!(answer.well, "boundary {n}: {}", answer.document);
        assert_eq!(snapshot(&host, &pod), before, "boundary {n}");
        let answer = host.flannel("ADD", "c1", &pod.path(), &conf(&host));
        assert!(answer.well, "boundary {n}: {}", answer.document);
    });
    assert_eq!(other.links(), ["eth0 1430"]);
}
