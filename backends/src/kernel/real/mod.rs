//! The real kernel over the raw netlink layer: dumps, batches and notifications.

mod dump;
mod ethtool;
mod events;
mod firewalld;
mod host;
mod iptables;
mod links;
pub mod nft;
mod packet;
mod probe;
mod read;

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

pub use events::{EventFilter, Events, Notice};
pub use host::HostReader;
use iptables::Iptables;
use links::Links;
pub use read::{OwnReader, Unreadable};

use super::{Failed, Kernel, KernelError, OpError, Own, benign};
use crate::netlink::address::{delete_address, put_address};
use crate::netlink::route::{RT_TABLE_MAIN, RTN_BLACKHOLE, RTN_UNICAST, RouteView, delete_route, put_route};
use crate::netlink::{Batch, NetlinkError, Socket, neigh};
use crate::plan::{Op, Owner};
use crate::state::{Facts, IfName, Object, Route, RouteKind, Sysctl, System, default_metric};

/// The kernel of the network namespace it was opened in. Lives on one thread.
pub struct RealKernel {
    route: Socket,
    /// None where the kernel has no nf_tables.
    netfilter: Option<Socket>,
    iptables: Iptables,
    indexes: HashMap<IfName, u32>,
    /// The way to this address is among the facts.
    reach: Option<IpAddr>,
    /// What this kernel has, once it was asked.
    system: Option<System>,
    /// It was said that some of what the kernel tells cannot be read.
    told: bool,
}

type Results = Vec<Result<(), OpError>>;

/// Steps that are put into bytes before the first of them is sent: more would cost memory and save nothing.
const GATHERED: usize = 1000;

impl RealKernel {
    /// Opens it.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self {
            route: Socket::route()?,
            netfilter: Socket::netfilter().ok(),
            iptables: Iptables::new(),
            indexes: HashMap::new(),
            reach: None,
            system: None,
            told: false,
        })
    }

    /// The same, which also says which way leads to this address.
    pub fn looking_for(self, reach: Option<IpAddr>) -> Self {
        Self { reach, ..self }
    }

    /// The netlink ports of its requests: by them our own notifications are known.
    pub fn ports(&self) -> Vec<u32> {
        let netfilter = self.netfilter.as_ref().map(Socket::port);
        [self.route.port()].into_iter().chain(netfilter).collect()
    }

    /// The index of a link, asked once a pass.
    fn index(&mut self, name: IfName) -> Option<u32> {
        if let Some(index) = self.indexes.get(&name) {
            return Some(*index);
        }
        let index = if_nametoindex(name.as_str()).ok()?;
        self.indexes.insert(name, index);
        Some(index)
    }

    /// Once, not each pass: a kernel that we cannot read stays so.
    fn tell(&mut self, unreadable: u64) {
        if unreadable > 0 && !self.told {
            tracing::warn!(
                unreadable,
                "messages in the kernel's dumps could not be read and were passed over"
            );
            self.told = true;
        }
    }

    /// Does one step, or adds it to the batch if it is of the kind that is gathered.
    fn step(&mut self, op: &Op, batch: &mut Batch) -> Result<(), KernelError> {
        match op {
            Op::Put { want: Object::Link(want), have } => {
                let have = if let Some(Object::Link(have)) = have { Some(&**have) } else { None };
                self.indexes.remove(&want.name);
                self.indexes.remove(&have.map_or(want.name, |have| have.name));
                Links(&mut self.route).put(want, have)
            }
            Op::Delete(Object::Link(have)) => {
                let index = self.index(have.name);
                self.indexes.remove(&have.name);
                index.map_or(Ok(()), |index| Links(&mut self.route).delete(index))
            }
            Op::Put { want: Object::Address(want), .. } => {
                self.with_index(want.link, |socket, index| send(socket, |b| put_address(b, index, want.net)))
            }
            Op::Delete(Object::Address(have)) => self
                .with_index(have.link, |socket, index| send(socket, |b| delete_address(b, index, have.net))),
            Op::Put { want: Object::Up(link), .. } => {
                self.with_index(*link, |socket, index| Links(socket).set_up(index))
            }
            Op::Put { want: Object::Sysctl(link, name @ Sysctl::TxChecksum, value), .. } => {
                let refused = |errno| KernelError::Sysctl { path: name.path(*link), errno };
                ethtool::set_tx_checksum(*link, *value != 0).map_err(refused)
            }
            Op::Put { want: Object::Sysctl(link, name, value), .. } => {
                write_sysctl(&name.path(*link), *value)
            }
            Op::Delete(Object::Up(_) | Object::Sysctl(..)) => Ok(()),
            Op::Put { want: Object::Fdb(f), .. } => {
                let index = self.required(f.link)?;
                neigh::put_fdb(batch, index, f.mac, f.dst);
                Ok(())
            }
            Op::Delete(Object::Fdb(f)) => {
                let index = self.required(f.link)?;
                neigh::delete_fdb(batch, index, f.mac, (!f.diverted).then_some(f.dst));
                Ok(())
            }
            Op::Put { want: Object::Neigh(n), .. } => {
                let index = self.required(n.link)?;
                neigh::put_neighbour(batch, index, n.address, n.mac);
                Ok(())
            }
            Op::Delete(Object::Neigh(n)) => {
                let index = self.required(n.link)?;
                neigh::delete_neighbour(batch, index, n.address);
                Ok(())
            }
            Op::Put { want: Object::Route(r), .. } => {
                let index = r.link.map_or(Ok(0), |link| self.required(link))?;
                put_route(batch, &view(r, index));
                Ok(())
            }
            Op::Delete(Object::Route(r)) => {
                // A link that is gone took its routes with it, whatever identifies this one.
                let index = r.link.map_or(Ok(0), |link| self.required(link))?;
                let r = r.deletable();
                delete_route(batch, &view(&r, if r.link.is_some() { index } else { 0 }));
                Ok(())
            }
            Op::Put { want: Object::Table(table), .. } => {
                self.with_netfilter(|socket| nft::replace(socket, table))
            }
            Op::Delete(Object::Table(table)) => {
                self.with_netfilter(|socket| nft::delete(socket, table.key()))
            }
            Op::Put { want: Object::Iptables(want), have } => {
                let have = if let Some(Object::Iptables(have)) = have { Some(&**have) } else { None };
                self.iptables.put(Some(want), have)
            }
            Op::Delete(Object::Iptables(have)) => self.iptables.put(None, Some(have)),
            Op::Put { want: Object::Trusted(net), .. } => firewalld::trust(*net),
            Op::Delete(Object::Trusted(net)) => firewalld::distrust(*net),
        }
    }

    fn required(&mut self, link: IfName) -> Result<u32, KernelError> {
        self.index(link).ok_or_else(no_device)
    }

    fn with_index(
        &mut self,
        link: IfName,
        act: impl FnOnce(&mut Socket, u32) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let index = self.required(link)?;
        act(&mut self.route, index)
    }

    fn with_netfilter(
        &mut self,
        act: impl FnOnce(&mut Socket) -> Result<(), NetlinkError>,
    ) -> Result<(), KernelError> {
        let missing = NetlinkError::Socket(Errno::EPROTONOSUPPORT);
        Ok(act(self.netfilter.as_mut().ok_or(missing)?)?)
    }

    /// Sends what was gathered and files the answers under the steps they belong to.
    fn flush(&mut self, batch: &mut Batch, at: &mut Vec<usize>, ops: &[Op], results: &mut Results) {
        let answers = self.route.apply(batch);
        for (n, answer) in at.drain(..).zip(answers) {
            results[n] = match answer {
                Err(error) if benign(&ops[n], error.errno()) => Ok(()),
                Err(error) if error.errno() == Errno::EINVAL => self.behind_a_host_route(&ops[n], error),
                answer => answer.map_err(|e| OpError::Failed(e.into())),
            };
        }
        *batch = Batch::new();
    }

    /// An IPv6 onlink route is refused while a wider route of another device covers its gateway (law 2): a host route
    /// to the gateway goes first, and away afterwards.
    fn behind_a_host_route(&mut self, op: &Op, refused: NetlinkError) -> Result<(), OpError> {
        let Op::Put { want: Object::Route(route @ Route { via: Some(via), link: Some(link), .. }), .. } = op
        else {
            return Err(KernelError::from(refused).into());
        };
        let (true, Some(index)) = (via.is_ipv6() && route.onlink, self.index(*link)) else {
            return Err(KernelError::from(refused).into());
        };
        let dst = ipnetwork::IpNetwork::from(*via);
        let host = Route { dst, via: None, onlink: false, metric: default_metric(&dst), ..*route };
        let mut batch = Batch::new();
        put_route(&mut batch, &view(&host, index));
        put_route(&mut batch, &view(route, index));
        delete_route(&mut batch, &view(&host, index));
        let result = self.route.apply(&mut batch).swap_remove(1);
        result.map_err(|e| OpError::Failed(e.into()))
    }
}

impl Kernel for RealKernel {
    fn own(&mut self, owner: &Owner) -> Result<Own, KernelError> {
        self.indexes.clear();
        let own = dump::own(&mut self.route, self.netfilter.as_mut(), &mut self.iptables, owner)?;
        self.tell(own.unreadable);
        Ok(own)
    }

    fn host(&mut self) -> Result<Facts, KernelError> {
        let (facts, unreadable) = host::facts(&mut self.route, self.reach)?;
        self.tell(unreadable.0);
        // Asked once; again while something is missing, since it may come with a module.
        if self.system.as_ref().is_none_or(|system| !system.lacks.is_empty()) {
            self.system = Some(probe::system(&mut self.route, self.netfilter.as_mut()));
        }
        Ok(Facts { system: self.system.clone().unwrap_or_default(), ..facts })
    }

    fn apply(&mut self, ops: &[Op]) -> Results {
        let mut results: Results = vec![Ok(()); ops.len()];
        let (mut batch, mut at) = (Batch::new(), Vec::new());
        let mut failed = Failed::default();
        for (n, op) in ops.iter().enumerate() {
            if let Some(error) = failed.skips(op) {
                results[n] = Err(error);
                continue;
            }
            let gathered = is_gathered(op.object());
            if !gathered || at.len() == GATHERED {
                self.flush(&mut batch, &mut at, ops, &mut results);
            }
            match self.step(op, &mut batch) {
                Ok(()) if gathered => at.push(n),
                Ok(()) => {}
                Err(error) if benign(op, errno(&error)) => {}
                Err(error) => {
                    failed.note(op);
                    results[n] = Err(error.into());
                }
            }
        }
        self.flush(&mut batch, &mut at, ops, &mut results);
        results
    }
}

/// The many: they are sent in batches.
fn is_gathered(object: &Object) -> bool {
    match object {
        Object::Fdb(_) | Object::Neigh(_) | Object::Route(_) => true,
        Object::Link(_) | Object::Sysctl(..) | Object::Address(_) | Object::Up(_) => false,
        Object::Table(_) | Object::Iptables(_) | Object::Trusted(_) => false,
    }
}

fn send(socket: &mut Socket, fill: impl FnOnce(&mut Batch)) -> Result<(), KernelError> {
    let mut batch = Batch::new();
    fill(&mut batch);
    Ok(socket.request(&mut batch)?)
}

fn view(route: &Route, link: u32) -> RouteView {
    RouteView {
        dst: route.dst,
        table: u32::from(RT_TABLE_MAIN),
        tos: 0,
        protocol: route.protocol,
        scope: route.scope,
        kind: match route.kind {
            RouteKind::Unicast | RouteKind::Special => RTN_UNICAST,
            RouteKind::Blackhole => RTN_BLACKHOLE,
            RouteKind::Other(kind) => kind,
        },
        metric: if route.metric == default_metric(&route.dst) { 0 } else { route.metric },
        gateway: route.via,
        link,
        onlink: route.onlink,
        source: None,
        cloned: false,
        special: false,
        mtu: 0,
    }
}

fn write_sysctl(path: &str, value: i32) -> Result<(), KernelError> {
    fs::write(path, value.to_string()).map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        KernelError::Sysctl { path: path.to_owned(), errno }
    })
}

fn no_device() -> KernelError {
    NetlinkError::Socket(Errno::ENODEV).into()
}

fn errno(error: &KernelError) -> Errno {
    match error {
        KernelError::Netlink(error) => error.errno(),
        KernelError::Sysctl { errno, .. } => *errno,
        KernelError::Program { .. } => Errno::EIO,
    }
}
