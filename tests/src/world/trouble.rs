//! What can strike a node, as values that can be written down.

use std::time::Duration;

use backends::Object;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::hand::is;
use super::{What, World};

/// One trouble. Spans are in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// No trouble: the daemon is started.
    Start,
    /// The daemon is killed and comes back after so long.
    Restart(u64),
    /// The daemon is killed after that many more steps, and comes back after so long.
    KillAfter(u64, u64),
    /// The daemon comes back without subnet.env.
    Forget(u64),
    /// The host restarts: an empty kernel.
    Reboot(u64),
    /// The daemon stops and an operator ends its lease.
    Leave,
    /// The host moves to another rack.
    Move,
    /// … while the daemon is away.
    MoveAway(u64),
    /// The host gets another address where it is.
    Readdress,
    /// … while the daemon is away.
    ReaddressAway(u64),
    /// The underlay's driver is loaded anew: another index.
    Renumber,
    /// … while the daemon is away.
    RenumberAway(u64),
    /// The underlay's MTU changes.
    Mtu(u32),
    /// The underlay goes down and up, and the host's network service puts back what is its own.
    FlapUnderlay,
    /// The tunnel devices go down and up that often, so far apart.
    FlapTunnel(u32, u64),
    /// Somebody renames a tunnel device.
    RenameTunnel,
    /// Somebody deletes a tunnel device and makes one of that name, that is not ours.
    RemakeTunnel,
    /// Somebody gives a tunnel device another address in place of ours.
    ReaddressTunnel,
    /// A stranger deletes that many objects of ours.
    Delete(usize),
    /// A stranger changes that many objects of ours.
    Change(usize),
    /// A stranger deletes all of ours of a kind.
    Flush(Kind),
    /// A stranger puts a route to a peer's subnet before ours.
    Shadow,
    /// A stranger puts a route to a peer's subnet beside ours, with another metric.
    Beside,
    /// A stranger deletes or changes the same object of ours that often, so far apart.
    Fight(u32, u64),
    /// This many notifications without anything new.
    Storm(u32),
    /// One of the next steps fails.
    Refuse(u64, Why),
    /// Every step on one object of ours fails for a while.
    RefuseKey(u64, Why),
    /// Every step on one object of this kind fails for a while.
    RefuseKind(Kind, u64, Why),
    /// The next dumps fail.
    FailDumps(u32),
    /// The next dumps are interrupted.
    Interrupt(u32),
    /// Notifications are lost.
    Overrun,
    /// No way to the store for a while.
    Partition(u64),
    /// The store sends this many of its events again.
    OldNews(usize),
    /// The store sends a new snapshot.
    Gap,
    /// An operator deletes the node's lease; the node claims again.
    Revoke,
    /// The store loses every lease. It sends that as one step, or sends nothing and has another history afterwards.
    Wipe(bool),
    /// What ends a trouble that lasts.
    Heal,
    /// The way to the store is back.
    Rejoin,
}

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Tunnel devices.
    Links,
    /// Addresses on them.
    Addresses,
    /// Forwarding entries.
    Forwarding,
    /// Neighbours.
    Neighbours,
    /// Routes.
    Routes,
    /// Traffic rules.
    Rules,
}

/// What the kernel says when it refuses for no reason of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// EBUSY.
    Busy,
    /// ENOBUFS.
    NoBuffers,
    /// ENETDOWN.
    NetDown,
    /// ENODEV.
    NoDevice,
}

/// Longer than a partition and the back-off after it: until then everybody has heard of a lease's end and return.
const DOUBT: Duration = Duration::from_secs(30);

impl Why {
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Busy => Errno::EBUSY,
            Self::NoBuffers => Errno::ENOBUFS,
            Self::NetDown => Errno::ENETDOWN,
            Self::NoDevice => Errno::ENODEV,
        }
    }
}

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl World {
    pub(super) fn strike(&mut self, n: usize, trouble: Trouble) {
        use Trouble as T;
        if self.nodes[n].left || trouble != T::Start && self.nodes[n].life == 0 {
            return;
        }
        self.say(n, || format!("{trouble:?}"));
        let faults = &mut self.nodes[n].kernel.faults;
        match trouble {
            T::Start => self.boot(n),
            T::Restart(back) => self.restart(n, back),
            T::Forget(back) => {
                self.nodes[n].env = None;
                self.restart(n, back);
            }
            T::KillAfter(steps, back) => {
                faults.stop_after(steps + 1);
                self.nodes[n].back = ms(back);
            }
            T::Leave => self.leave(n),
            T::Refuse(step, why) => faults.fail_nth(step, why.errno()),
            T::RefuseKey(span, why) => self.refuse_key(n, span, why, |_| true),
            T::RefuseKind(kind, span, why) => self.refuse_key(n, span, why, |o| is(kind, o)),
            T::FailDumps(times) => faults.fail_dumps(times),
            T::Interrupt(times) => faults.interrupt_dumps(times),
            T::Heal => faults.heal(),
            T::Partition(span) => {
                self.nodes[n].partitioned = true;
                self.trouble(n, ms(span), T::Rejoin);
            }
            T::Rejoin => {
                self.nodes[n].partitioned = false;
                self.deliver_soon(n);
            }
            T::OldNews(back) => self.old_news(n, back),
            T::Gap => self.subscribe(n),
            T::Wipe(notified) => self.wipe(notified),
            T::Revoke => self.revoke_lease(n),
            hand => self.hand(n, &hand),
        }
    }

    pub(super) fn restart(&mut self, n: usize, back: u64) {
        self.kill(n);
        self.send(ms(back), n, What::Start);
    }

    fn revoke_lease(&mut self, n: usize) {
        if let Some(subnets) = self.nodes[n].subnets {
            self.watch.doubt(n, self.now + DOUBT);
            self.revoke(&subnets);
        }
    }

    fn leave(&mut self, n: usize) {
        self.revoke_lease(n);
        self.kill(n);
        self.nodes[n].left = true;
    }

    fn refuse_key(&mut self, n: usize, span: u64, why: Why, fits: impl Fn(&Object) -> bool) {
        if let Some(object) = self.one_of_ours(n, fits) {
            self.nodes[n].kernel.faults.fail_key(object.key(), why.errno());
            self.trouble(n, ms(span), Trouble::Heal);
        }
    }
}
