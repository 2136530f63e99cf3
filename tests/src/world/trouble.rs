//! What can strike a node.

use std::time::Duration;

use backends::kernel::fake::{Alter, FakeKernel};
use backends::{IfName, Object, ROUTE_PROTOCOL};
use nix::errno::Errno;

use super::node::eth0;
use super::{Site, What, World};

/// One trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The daemon is killed and comes back.
    Restart,
    /// The daemon is killed after that many more steps, and comes back.
    KillAfter(u64),
    /// The daemon comes back without subnet.env.
    Forget,
    /// The host restarts: an empty kernel.
    Reboot,
    /// A stranger deletes that many objects of ours.
    Delete(usize),
    /// A stranger changes that many objects of ours.
    Change(usize),
    /// A tunnel device goes down and up.
    FlapTunnel,
    /// The underlay goes down and up, and the host's network service puts back what is its own.
    FlapUnderlay,
    /// The underlay's driver is loaded anew: another index.
    Renumber,
    /// The host moves to another rack.
    Move,
    /// The underlay's MTU changes.
    Mtu(u32),
    /// One of the next steps fails.
    FailNth(u64),
    /// Every step on one object of ours fails for a while.
    FailKey,
    /// The next dumps are interrupted.
    Interrupt(u32),
    /// Notifications are lost.
    Overrun,
    /// No way to the store for a while.
    Partition,
    /// An operator deletes the node's lease; the node claims again.
    Revoke,
    /// What ends a trouble that lasts.
    Heal,
    /// The way to the store is back.
    Rejoin,
}

/// Longer than a partition and the back-off after it: until then everybody has heard of a lease's end and return.
const DOUBT: Duration = Duration::from_secs(30);

impl World {
    /// Lets some troubles strike at random nodes within a span.
    pub fn troubles(&mut self, how_many: usize, within: Duration) {
        for _ in 0..how_many {
            let node = self.rng.below(self.nodes.len());
            let (after, trouble) = (self.up_to(within), self.any_trouble());
            self.trouble(node, after, trouble);
        }
    }

    fn any_trouble(&mut self) -> Trouble {
        let n = self.rng.below(12);
        match self.rng.below(17) {
            0 => Trouble::Restart,
            1 => Trouble::KillAfter(n as u64),
            2 => Trouble::Forget,
            3 => Trouble::Reboot,
            4 => Trouble::Delete(n),
            5 => Trouble::Change(n),
            6 => Trouble::FlapTunnel,
            7 => Trouble::FlapUnderlay,
            8 => Trouble::Renumber,
            9 => Trouble::Move,
            10 => Trouble::Mtu(if n < 6 { 1400 } else { 1500 }),
            11 => Trouble::FailNth(n as u64),
            12 => Trouble::FailKey,
            13 => Trouble::Interrupt(1 + u32::from(n > 6)),
            14 => Trouble::Overrun,
            15 => Trouble::Partition,
            _ => Trouble::Revoke,
        }
    }

    pub(super) fn strike(&mut self, n: usize, trouble: Trouble) {
        if self.nodes[n].left {
            return;
        }
        if self.trace == Some(n) {
            println!("{:?} {trouble:?}", self.now);
        }
        match trouble {
            Trouble::Restart => self.restart(n),
            Trouble::Forget => {
                self.nodes[n].env = None;
                self.restart(n);
            }
            Trouble::KillAfter(steps) => self.nodes[n].kernel.faults.stop_after(steps + 1),
            Trouble::FailNth(step) => self.nodes[n].kernel.faults.fail_nth(step, Errno::EBUSY),
            Trouble::FailKey => self.fail_key(n),
            Trouble::Interrupt(times) => self.nodes[n].kernel.faults.interrupt_dumps(times),
            Trouble::Heal => self.nodes[n].kernel.faults.heal(),
            Trouble::Partition => {
                self.nodes[n].partitioned = true;
                let after = self.up_to_ms(5000);
                self.trouble(n, after, Trouble::Rejoin);
            }
            Trouble::Rejoin => {
                self.nodes[n].partitioned = false;
                self.deliver_soon(n);
            }
            Trouble::Revoke => {
                if let Some(subnets) = self.nodes[n].subnets {
                    self.watch.doubt(n, self.now + DOUBT);
                    self.revoke(&subnets);
                }
            }
            hand => self.hand(n, &hand),
        }
    }

    /// Troubles that change the kernel from outside, and are told.
    fn hand(&mut self, n: usize, trouble: &Trouble) {
        if *trouble != Trouble::Overrun {
            self.watch.touch(n);
        }
        match trouble {
            Trouble::Overrun => self.nodes[n].kernel.faults.lose_events(),
            Trouble::Reboot => self.reboot(n),
            Trouble::Delete(count) => self.stranger(n, *count, Alter::Delete),
            Trouble::Change(count) => self.stranger(n, *count, Alter::Change),
            Trouble::FlapTunnel => {
                let tunnels: Vec<_> = self.tunnels(n);
                for link in tunnels {
                    self.flap(n, link);
                }
            }
            Trouble::FlapUnderlay => {
                self.flap(n, eth0());
                self.nodes[n].plug();
            }
            Trouble::Renumber => {
                self.nodes[n].kernel.net.renumber_link(eth0()).unwrap();
                self.nodes[n].plug();
            }
            Trouble::Move => self.relocate(n),
            Trouble::Mtu(mtu) => {
                self.nodes[n].site.mtu = *mtu;
                self.nodes[n].kernel.net.set_mtu(eth0(), *mtu).unwrap();
            }
            _ => {}
        }
        self.tell(n);
    }

    fn restart(&mut self, n: usize) {
        self.kill(n);
        let after = self.up_to_ms(3000);
        self.send(after, n, What::Start);
    }

    fn reboot(&mut self, n: usize) {
        let seed = self.rng.next_u64();
        self.kill(n);
        let node = &mut self.nodes[n];
        (node.kernel, node.env) = (FakeKernel::new(seed), None);
        node.plug();
        let after = self.up_to_ms(3000);
        self.send(after, n, What::Start);
    }

    fn tunnels(&self, n: usize) -> Vec<IfName> {
        let all = self.nodes[n].kernel.net.everything();
        all.iter().filter_map(|o| if let Object::Link(l) = o { Some(l.name) } else { None }).collect()
    }

    fn flap(&mut self, n: usize, link: IfName) {
        let net = &mut self.nodes[n].kernel.net;
        net.set_up(link, false).unwrap();
        net.set_up(link, true).unwrap();
    }

    /// A stranger's hand on objects of ours.
    fn stranger(&mut self, n: usize, count: usize, how: Alter) {
        for _ in 0..count {
            if let Some(object) = self.one_of_ours(n) {
                // It may be gone already, with the link that was hit before.
                let _ = self.nodes[n].kernel.net.alter(&object, how);
            }
        }
    }

    fn one_of_ours(&mut self, n: usize) -> Option<Object> {
        let eth0 = eth0();
        let mut all = self.nodes[n].kernel.net.everything();
        all.retain(|o| match o {
            Object::Route(r) => r.protocol == ROUTE_PROTOCOL,
            other => other.link() != Some(eth0),
        });
        self.rng.pick(&all).cloned()
    }

    fn fail_key(&mut self, n: usize) {
        if let Some(object) = self.one_of_ours(n) {
            self.nodes[n].kernel.faults.fail_key(object.key(), Errno::EBUSY);
            let after = self.up_to_ms(4000);
            self.trouble(n, after, Trouble::Heal);
        }
    }

    /// Unplugged here, plugged in elsewhere.
    fn relocate(&mut self, n: usize) {
        let rack = (self.nodes[n].site.rack + 1) % (self.shape.racks + 1);
        let mut site = Site::at(n, rack, self.shape.six);
        let node = &mut self.nodes[n];
        site.mtu = node.site.mtu;
        for old in &node.site.addresses {
            node.kernel.net.delete_address(eth0(), *old).unwrap();
        }
        let stale: Vec<_> = node.site.gateways_and(&node.foreign);
        for route in stale {
            let _ = node.kernel.net.delete_route(&route);
        }
        node.site = site;
        node.plug();
    }
}
