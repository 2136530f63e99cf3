//! One side: a host on which the plugins of one folder are called and timed.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_harness::flannel::SUBNET_ENV;
use netns_harness::{Host, Program, Sandbox, eventually};
use serde_json::Value;

use super::aftermath::{self, Node};

/// Where host-local keeps the addresses of the network.
const STORE: &str = "/var/lib/cni/networks/cbr0";
const PATIENCE: Duration = Duration::from_secs(30);
/// The subnet.env for a host without a daemon, with room for many addresses.
const WRITTEN: &str =
    "FLANNEL_NETWORK=10.240.0.0/12\nFLANNEL_SUBNET=10.244.0.1/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

pub(super) struct Side {
    folder: PathBuf,
    host: Host,
    sandboxes: Vec<Sandbox>,
    node: Option<Node>,
    /// Processes that stay, of all sides.
    kept: Vec<u32>,
}

/// Times of calls of one kind, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Timings {
    wall: Vec<f64>,
    cpu: Vec<f64>,
    /// The daemon's CPU time during the call.
    daemon: Vec<f64>,
}

impl Timings {
    pub(super) fn median(&self) -> f64 {
        median(&self.wall)
    }

    pub(super) fn p99(&self) -> f64 {
        let sorted = sorted(&self.wall);
        // The value that one in a hundred exceeds.
        sorted.get(sorted.len() - 1 - sorted.len() / 100).copied().unwrap_or(f64::NAN)
    }

    /// CPU time of all processes that follow from a call.
    pub(super) fn cpu(&self) -> f64 {
        mean(&self.cpu)
    }

    /// CPU time of the daemon meanwhile: the work it was handed, and its reaction to a link that comes or
    /// goes.
    pub(super) fn daemon(&self) -> f64 {
        mean(&self.daemon)
    }

    pub(super) fn cpu_with_daemon(&self) -> f64 {
        self.cpu() + self.daemon()
    }
}

/// The mean of short times, which some kernels count in steps.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / f64::from(u32::try_from(values.len()).unwrap_or(u32::MAX))
}

pub(super) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

impl Side {
    /// A host with a daemon or, without one, its file, and containers that no plugin has connected.
    pub(super) fn new(folder: &Path, host: &Host, containers: usize, node: Option<Node>) -> Result<Self> {
        if node.is_none() {
            fs::create_dir_all(host.path("/run/flannel"))?;
            fs::write(host.path(SUBNET_ENV), WRITTEN)?;
        }
        let sandboxes =
            (0..containers).map(|one| Sandbox::new(host, &format!("c{one}"))).collect::<Result<_>>()?;
        Ok(Self { folder: folder.to_owned(), host: host.clone(), sandboxes, node, kept: Vec::new() })
    }

    /// The processes that run as long as this side does.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.node.iter().flat_map(Node::pids).collect()
    }

    /// The processes whose end is not waited for.
    pub(super) fn keep(&mut self, pids: &[u32]) {
        pids.clone_into(&mut self.kept);
    }

    /// Waits until nothing of a call still runs, and the daemon has done what it was handed.
    fn settle(&self) -> Result<()> {
        aftermath::settle(&self.kept)?;
        self.node.as_ref().map_or(Ok(()), Node::rest)
    }

    /// CPU time of the calls so far, and of the daemon beside them.
    fn cpu(&self) -> Result<[Duration; 2]> {
        Ok([aftermath::cpu()?, self.node.as_ref().map_or(Ok(Duration::ZERO), Node::cpu)?])
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn has(&self, plugin: &str) -> bool {
        self.folder.join(plugin).exists()
    }

    /// Does `work` on this side's host, and adds its time and all CPU time that followed from it.
    pub(super) fn timed<T: Send>(
        &self,
        timings: &mut Timings,
        work: impl Fn() -> Result<T> + Sync,
    ) -> Result<T> {
        let before = self.cpu()?;
        let (result, wall) = self.host.run(|| {
            let start = Instant::now();
            (work(), start.elapsed())
        })?;
        self.settle()?;
        timings.wall.push(wall.as_secs_f64() * 1e3);
        for ((now, before), times) in
            self.cpu()?.into_iter().zip(before).zip([&mut timings.cpu, &mut timings.daemon])
        {
            times.push(now.saturating_sub(before).as_secs_f64() * 1e3);
        }
        result
    }

    /// Calls the plugins in order, as a runtime does; returns the last result. Runs on this side's host.
    pub(super) fn add(&self, container: usize, plugins: &[Value]) -> Result<Value> {
        let mut previous = Value::Null;
        for conf in plugins {
            previous = self.call("ADD", container, conf, &previous)?;
        }
        Ok(previous)
    }

    /// Calls DEL of the plugins in reverse order.
    pub(super) fn del(&self, container: usize, plugins: &[Value], result: &Value) -> Result<()> {
        plugins.iter().rev().try_for_each(|conf| self.call("DEL", container, conf, result).map(drop))
    }

    fn call(&self, verb: &str, container: usize, conf: &Value, previous: &Value) -> Result<Value> {
        let kind = conf["type"].as_str().context("a plugin's configuration has no type")?;
        let mut conf = conf.clone();
        if !previous.is_null() {
            conf["prevResult"] = previous.clone();
        }
        let mut child = self.command(kind, verb, container)?.spawn().with_context(|| kind.to_owned())?;
        // The plugin may answer before it has read all of its input.
        let _ = child.stdin.take().context("stdin")?.write_all(conf.to_string().as_bytes());
        let mut text = String::new();
        child.stdout.take().context("stdout")?.read_to_string(&mut text)?;
        let status = child.wait()?;
        ensure!(status.success(), "{verb} of {kind} in {}: {status} {text}", self.folder.display());
        Ok(if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    fn command(&self, kind: &str, verb: &str, container: usize) -> Result<Command> {
        let netns = self.sandboxes[container].path();
        let mut command = Command::new(self.folder.join(kind));
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("container-{container}"))
            .env("CNI_NETNS", netns.as_ref())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Ok(command)
    }

    /// The time in milliseconds until `work` is done for all containers and nothing of it still runs.
    pub(super) fn crowd(
        &self,
        count: usize,
        at_a_time: usize,
        work: impl Fn(usize) -> Result<()> + Sync,
    ) -> Result<f64> {
        let next = AtomicUsize::new(0);
        let worker = || -> Result<()> {
            loop {
                let one = next.fetch_add(1, Ordering::Relaxed);
                if one >= count {
                    return Ok(());
                }
                work(one)?;
            }
        };
        let start = Instant::now();
        self.host.run(|| {
            thread::scope(|scope| {
                let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(worker)).collect();
                let ends =
                    workers.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("a worker panicked")));
                ends.collect::<Result<()>>()
            })
        })??;
        self.settle()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Checks that nothing of any attachment is left: no address is held, and the bridge has no port.
    pub(super) fn is_empty(&self) -> Result<()> {
        eventually(PATIENCE, || {
            let held = self.held()?;
            ensure!(held == 0, "{}: {held} addresses are still held", self.folder.display());
            let ports = self.host.exec(&Program::new("ip").args(["-o", "link", "show", "master", "cni0"]))?;
            ensure!(ports.is_empty(), "{}: the bridge still has {ports}", self.folder.display());
            Ok(())
        })
        .map(drop)
    }

    fn held(&self) -> Result<usize> {
        let names = fs::read_dir(self.host.path(STORE))?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        Ok(names.iter().filter(|name| name.to_string_lossy().starts_with("10.")).count())
    }

    /// Reserves that many addresses, from the second of the subnet on, in host-local's format.
    pub(super) fn hold(&self, count: u32) -> Result<()> {
        let folder = self.host.path(STORE);
        fs::create_dir_all(&folder)?;
        let first = u32::from(std::net::Ipv4Addr::new(10, 244, 0, 2));
        for number in 0..count {
            let address = std::net::Ipv4Addr::from(first + number);
            fs::write(folder.join(address.to_string()), format!("other-{number}\r\neth0"))?;
        }
        let last = std::net::Ipv4Addr::from(first + count - 1);
        Ok(fs::write(folder.join("last_reserved_ip.0"), last.to_string())?)
    }

    /// Medians of `VERSION` and of a program that does nothing, in turns, in milliseconds.
    pub(super) fn version_beside(&self, empty: &Path, rounds: usize) -> Result<[f64; 2]> {
        let (mut version, mut nothing) = (Vec::new(), Vec::new());
        self.host.run(|| -> Result<()> {
            for _ in 0..rounds {
                version.push(run(&mut self.command("flannel", "VERSION", 0)?)?);
                nothing.push(run(Command::new(empty).stdin(Stdio::piped()).stdout(Stdio::piped()))?);
            }
            Ok(())
        })??;
        Ok([median(&version), median(&nothing)])
    }

    /// The system calls of a second ADD in all its processes and threads, by strace.
    pub(super) fn system_calls(&self, conf: &Value) -> Result<f64> {
        let plugins = std::slice::from_ref(conf);
        self.host.run(|| self.add(0, plugins))??;
        let trace = self.host.path("/run/trace");
        let plugin = self.folder.join("flannel");
        let mut program = Program::new("strace").args(["-f", "-qq", "-e", "signal=none", "-o", "/run/trace"]);
        for (key, value) in self.command("flannel", "ADD", 1)?.get_envs() {
            program = program.env(&key.to_string_lossy(), value.unwrap_or_default());
        }
        self.host.exec(&program.arg(plugin).stdin(conf.to_string()))?;
        self.settle()?;
        for container in 0..2 {
            self.host.run(|| self.del(container, plugins, &Value::Null))??;
        }
        self.settle()?;
        let text = fs::read_to_string(trace)?;
        let calls = text.lines().filter(|line| line.contains('(') && !line.contains(" resumed>")).count();
        Ok(f64::from(u32::try_from(calls)?))
    }
}

fn run(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let mut child = command.spawn()?;
    drop(child.stdin.take());
    let mut text = Vec::new();
    child.stdout.take().context("stdout")?.read_to_end(&mut text)?;
    let status = child.wait()?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took)
}
