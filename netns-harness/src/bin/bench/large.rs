//! One host whose store already holds the leases of all its peers.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_harness::flannel::{self, Backend, Products, Store, StoreKind, net_conf};
use netns_harness::{Cost, Family, Host, Net, Netlink, Process, Program, Topology, eventually};
use serde_json::Value;

use crate::leases::leases;

/// Some daemons take half a minute for five thousand peers.
const PATIENCE: Duration = Duration::from_secs(120);
const HEALTH: u16 = 10_254;
/// The peers of a large cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) backend: Backend,
    /// One family.
    pub(crate) family: Family,
    pub(crate) peers: usize,
}

/// The host, its store and its daemon.
pub(crate) struct Large {
    size: Size,
    net: Net,
    store: Store,
    program: Program,
    netlink: Netlink,
    daemon: Option<Process>,
    /// Peers by number, the oldest first: they leave in the order in which they joined.
    present: std::ops::Range<usize>,
}

impl Large {
    /// A store with the leases, without a daemon.
    pub(crate) fn build(products: &Products, size: Size, nftables: bool) -> Result<Self> {
        let Size { backend, family, peers } = size;
        let net = Net::build(Topology::flat(1).family(family))?;
        let store = Store::start(net.store(), StoreKind::Etcd, products)?;
        store.put(&[("config".to_owned(), conf(size, nftables).to_string())])?;
        store.put(&leases(backend, family, 0, peers)?)?;
        let program = products.daemon(&store).args(health_flags());
        let netlink = net.host(0).netlink()?;
        Ok(Self { size, net, store, program, netlink, daemon: None, present: 0..peers })
    }

    /// Whether peers are reached through a device of the daemon.
    pub(crate) fn has_tunnel(&self) -> bool {
        self.size.backend == Backend::Vxlan
    }

    /// From the daemon's start until the kernel has all peers.
    pub(crate) fn start(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.daemon = Some(self.host().spawn(&self.program)?);
        self.programmed()?;
        let took = start.elapsed();
        // Routes are written last. What is written before them is counted once.
        if self.has_tunnel() {
            let (resolved, forwarding) = self.netlink.neighbours(self.link())?;
            let peers = self.present.len();
            ensure!(
                resolved >= peers && forwarding >= peers,
                "{resolved} neighbours, {forwarding} forwarding entries of {peers}"
            );
        }
        Ok(took)
    }

    /// Whether the daemon reports when it is ready; not every flannel does.
    pub(crate) fn reports_ready(&self) -> bool {
        health(self.host(), "/readyz").is_ok_and(|status| status != 404)
    }

    /// Ends the daemon and starts it on the unchanged host: the time from the start until it reports that it
    /// is ready.
    pub(crate) fn restart(&mut self) -> Result<Duration> {
        self.daemon()?.stop()?;
        let start = Instant::now();
        self.daemon = Some(self.host().spawn(&self.program)?);
        let ready = eventually(PATIENCE, || match health(self.host(), "/readyz")? {
            200 => Ok(()),
            other => bail!("the health port answers {other}"),
        });
        ready.with_context(|| self.log_end())?;
        Ok(start.elapsed())
    }

    /// The time from the store's answer to the last of `count` new leases until the kernel has them. Writing
    /// them is the store's work.
    pub(crate) fn join(&mut self, count: usize) -> Result<Duration> {
        let Size { backend, family, .. } = self.size;
        let end = self.present.end;
        self.store.put(&leases(backend, family, end, end + count)?)?;
        self.present.end += count;
        let start = Instant::now();
        self.programmed()?;
        Ok(start.elapsed())
    }

    /// The same for leases that end.
    pub(crate) fn leave(&mut self, count: usize) -> Result<Duration> {
        let Size { backend, family, .. } = self.size;
        let begin = self.present.start;
        let keys = leases(backend, family, begin, begin + count)?.into_iter().map(|(key, _)| key);
        self.store.delete(&keys.collect::<Vec<_>>())?;
        self.present.start += count;
        let start = Instant::now();
        self.programmed()?;
        Ok(start.elapsed())
    }

    /// How long the kernel takes to set the peers' link down, and how long until everything is as before.
    pub(crate) fn flap(&mut self) -> Result<(Duration, Duration)> {
        let start = Instant::now();
        self.netlink.set_down(self.link())?;
        let down = start.elapsed();
        self.programmed()?;
        Ok((down, start.elapsed() - down))
    }

    /// Ends the store and starts it again on its data.
    pub(crate) fn lose_the_store(&mut self) -> Result<()> {
        self.store.restart()
    }

    pub(crate) fn daemon(&self) -> Result<&Process> {
        self.daemon.as_ref().context("no daemon was started")
    }

    /// The daemon's cost so far.
    pub(crate) fn cost(&self) -> Result<Cost> {
        let daemon = self.daemon()?;
        daemon.cost().with_context(|| format!("{} ended\n{}", daemon.name(), self.log_end()))
    }

    /// CPU use in percent of one CPU, some time after the last change.
    pub(crate) fn idle(&self, time: Duration) -> Result<f64> {
        thread::sleep(Duration::from_secs(2));
        let before = self.cost()?.cpu;
        thread::sleep(time);
        Ok(self.cost()?.cpu.saturating_sub(before).as_secs_f64() / time.as_secs_f64() * 100.0)
    }

    /// A line of the daemon's `/proc/PID/status`, in KiB.
    pub(crate) fn memory(&self, line: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.daemon()?.pid()))?;
        let found =
            text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next());
        Ok(found.with_context(|| format!("no {line}"))?.parse()?)
    }

    /// Whether the daemon has, or had, children: reaped children leave their page faults in its figures.
    pub(crate) fn has_forked(&self) -> Result<bool> {
        let pid = self.daemon()?.pid();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // cminflt is the 11th field of proc(5); the name in brackets is the second.
        let faults = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(8));
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        let mut living = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        Ok(faults != Some("0") || living.any(|children| !children.trim().is_empty()))
    }

    /// Waits until the kernel has a route for every peer and no other.
    fn programmed(&self) -> Result<()> {
        let (peers, link) = (self.present.len(), self.link());
        let count = || match self.size.family {
            // The time for the kernel's list grows with the square of its length.
            Family::V6 => self.netlink.gateways6(link),
            _ => gateways(link),
        };
        let wait = || {
            let end = Instant::now() + PATIENCE;
            loop {
                let look = Instant::now();
                let routes = count()?;
                if routes == peers {
                    return Ok(());
                }
                ensure!(look < end, "{routes} routes of {peers} after {PATIENCE:?}");
                // Reading takes a CPU that the daemon may need.
                thread::sleep((look.elapsed() * 3).max(Duration::from_millis(1)));
            }
        };
        self.host().run(wait)?.with_context(|| self.log_end())
    }

    fn host(&self) -> &Host {
        self.net.host(0)
    }

    fn link(&self) -> &'static str {
        self.size.backend.link(self.size.family)
    }

    fn log_end(&self) -> String {
        self.daemon.as_ref().map_or_else(String::new, |daemon| flannel::last_lines(&daemon.log(), 8))
    }
}

/// The first subnets are left for the host itself; no peer has one of them.
fn conf(size: Size, nftables: bool) -> Value {
    let mut conf = net_conf(1, size.backend, size.family);
    conf["EnableNFTables"] = nftables.into();
    if size.family != Family::V6 {
        conf["Network"] = "10.0.0.0/8".into();
    }
    let (min, max, first, last) = match size.family {
        Family::V6 => ("IPv6SubnetMin", "IPv6SubnetMax", "fd42:0:0:1::", "fd42:0:0:ff::"),
        _ => ("SubnetMin", "SubnetMax", "10.0.1.0", "10.0.255.0"),
    };
    (conf[min], conf[max]) = (first.into(), last.into());
    conf
}

/// The flags that open a daemon's health port.
pub(crate) fn health_flags() -> [String; 2] {
    [format!("--healthz-port={HEALTH}"), "--healthz-ip=127.0.0.1".to_owned()]
}

/// The HTTP status on the health port of a host's daemon.
pub(crate) fn health(host: &Host, path: &str) -> Result<u16> {
    let ask = || -> Result<u16> {
        let address = SocketAddr::from(([127, 0, 0, 1], HEALTH));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split(' ').nth(1).context("an answer without a status")?.parse()?)
    };
    host.run(ask)?
}

/// The number of IPv4 routes in this thread's namespace over one link and with a gateway. The kernel's own
/// list is read several times faster than a dump: ten thousand routes take 4 ms.
fn gateways(link: &str) -> Result<usize> {
    // Interface, destination, gateway, flags, …
    let is_one = |line: &&str| {
        let mut fields = line.split_whitespace();
        let (name, flags) = (fields.next(), fields.nth(2));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
        name == Some(link) && flags & RTF_GATEWAY != 0
    };
    Ok(fs::read_to_string("/proc/thread-self/net/route")?.lines().filter(is_one).count())
}

/// `RTF_GATEWAY` of linux/route.h.
const RTF_GATEWAY: u32 = 2;
