//! What follows after a call has answered: processes that it leaves behind, and work that it hands to the
//! host's daemon. Both are waited for, and their CPU time counts for the call.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_harness::flannel::{Products, Store, StoreKind, wait_for_subnet};
use netns_harness::{Host, Process};
use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::sys::wait::waitpid;
use nix::time::ClockId;
use nix::unistd::Pid;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);
/// The time between two checks: short beside a millisecond's work of many threads, long beside the check
/// itself.
const PAUSE: Duration = Duration::from_micros(500);

/// The daemon of a host, as it runs in a cluster, and the store of that cluster.
pub(super) struct Node {
    store: Store,
    daemon: Process,
}

impl Node {
    /// Starts both. The subnet is the same as on the other sides, with room for many addresses.
    pub(super) fn start(host: &Host, store: &Host, products: &Products) -> Result<Self> {
        let store = Store::start(store, StoreKind::Embedded, products)?;
        let conf = json!({
            "Network": "10.240.0.0/12", "SubnetLen": 16, "SubnetMin": "10.244.0.0", "SubnetMax": "10.244.0.0",
            "EnableNFTables": true, "Backend": { "Type": "vxlan" },
        });
        store.set_network(products, &conf)?;
        let daemon = host.spawn(&products.daemon(&store))?;
        wait_for_subnet(host, &daemon, PATIENCE)?;
        Ok(Self { store, daemon })
    }

    /// The processes that stay.
    pub(super) fn pids(&self) -> [u32; 2] {
        [self.store.process().pid(), self.daemon.pid()]
    }

    /// CPU time of the daemon so far, with that of its threads that have ended.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(self.daemon.pid().try_into()?))?;
        Ok(clock.now()?.into())
    }

    /// Waits until the daemon has nothing to do: all of its threads sleep, and none waits inside the kernel.
    pub(super) fn rest(&self) -> Result<()> {
        let tasks = format!("/proc/{}/task", self.daemon.pid());
        let end = Instant::now() + PATIENCE;
        while !sleeps(Path::new(&tasks))? {
            ensure!(Instant::now() < end, "the daemon does not become idle");
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// Whether all these threads wait for an event (`S`). Running threads are `R`; threads that wait inside the
/// kernel are `D`.
fn sleeps(tasks: &Path) -> Result<bool> {
    for task in fs::read_dir(tasks).context("the daemon has ended")? {
        // A thread that has just ended does no more work.
        let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else { continue };
        // The state follows the name, which may contain brackets.
        if stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('S')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits for every process that is left: orphans of the plugins become children of this process. The
/// processes of `kept` stay.
pub(super) fn settle(kept: &[u32]) -> Result<()> {
    loop {
        let over: Vec<u32> = children()?.into_iter().filter(|pid| !kept.contains(pid)).collect();
        if over.is_empty() {
            return Ok(());
        }
        for pid in over {
            match waitpid(Pid::from_raw(pid.try_into()?), None) {
                Ok(_) | Err(Errno::ECHILD | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Each thread has its own children, and orphans go to any of them.
fn children() -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let Ok(text) = fs::read_to_string(task?.path().join("children")) else { continue };
        all.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(all)
}

/// CPU time of all reaped children and of their reaped children.
pub(super) fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |part: TimeVal| -> Result<Duration> {
        Ok(Duration::from_secs(u64::try_from(part.tv_sec())?)
            + Duration::from_micros(u64::try_from(part.tv_usec())?))
    };
    Ok(time(usage.user_time())? + time(usage.system_time())?)
}
