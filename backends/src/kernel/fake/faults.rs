//! What can go wrong, on command.

use std::collections::HashMap;

use nix::errno::Errno;

use super::namespace::Namespace;
use crate::plan::Op;
use crate::state::{Facts, Key, Object, Sysctl};

/// A seeded source of chance (SplitMix64): the same seed, the same run, for as long as seeds of failed runs are kept.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n.max(1) as u64;
        usize::try_from(self.next_u64() % n).unwrap_or(0)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }
}

/// What the kernel refuses, hides or loses from now on.
#[derive(Debug, Clone)]
pub struct Faults {
    rng: Rng,
    nth: Option<(u64, Errno)>,
    keys: HashMap<Key, Errno>,
    stop: Option<u64>,
    interrupt: u32,
    fail: u32,
    overrun: bool,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            nth: None,
            keys: HashMap::new(),
            stop: None,
            interrupt: 0,
            fail: 0,
            overrun: false,
        }
    }

    /// The `n`-th step from now (0 is the next one) fails.
    pub fn fail_nth(&mut self, n: u64, errno: Errno) {
        self.nth = Some((n, errno));
    }

    /// Every step on this key fails until [`heal`](Self::heal).
    pub fn fail_key(&mut self, key: Key, errno: Errno) {
        self.keys.insert(key, errno);
    }

    /// The next `n` dumps are interrupted: flagged, and some objects are missing.
    pub fn interrupt_dumps(&mut self, n: u32) {
        self.interrupt = n;
    }

    /// The next `n` dumps fail: not even an empty one is there.
    pub fn fail_dumps(&mut self, n: u32) {
        self.fail = n;
    }

    /// Notifications are lost: the next one reports that.
    pub fn lose_events(&mut self) {
        self.overrun = true;
    }

    /// After `n` more steps nothing is done any more: the process was killed there.
    pub fn stop_after(&mut self, n: u64) {
        self.stop = Some(n);
    }

    /// Whether [`stop_after`](Self::stop_after) has struck.
    pub fn stopped(&self) -> bool {
        self.stop == Some(0)
    }

    /// No more faults.
    pub fn heal(&mut self) {
        *self = Self { rng: self.rng.clone(), overrun: self.overrun, ..Self::new(0) };
    }

    pub(super) fn overrun(&mut self) -> bool {
        std::mem::take(&mut self.overrun)
    }

    pub(super) fn refusal(&mut self, op: &Op) -> Option<Errno> {
        match &mut self.stop {
            Some(0) => return Some(Errno::EINTR),
            Some(left) => *left -= 1,
            None => {}
        }
        let nth = match &mut self.nth {
            Some((0, _)) => self.nth.take().map(|(_, errno)| errno),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        nth.or_else(|| self.keys.get(&op.object().key()).copied())
    }

    /// Whether this dump fails.
    pub(super) fn dump(&mut self) -> Result<(), Errno> {
        let struck = self.fail > 0;
        self.fail = self.fail.saturating_sub(1);
        if struck { Err(Errno::ENOBUFS) } else { Ok(()) }
    }

    /// Whether this dump is interrupted; then about a tenth of the objects is missing.
    pub(super) fn interrupt(&mut self, objects: &mut Vec<Object>) -> bool {
        let struck = self.struck();
        if struck {
            objects.retain(|_| !self.rng.chance(10));
        }
        struck
    }

    pub(super) fn interrupt_host(&mut self, facts: &mut Facts) -> bool {
        let struck = self.struck();
        if struck {
            facts.links.retain(|_| !self.rng.chance(10));
            facts.addresses.retain(|_| !self.rng.chance(10));
        }
        struck
    }

    fn struck(&mut self) -> bool {
        let struck = self.interrupt > 0;
        self.interrupt = self.interrupt.saturating_sub(1);
        struck
    }
}

/// How a stranger's hand treats an object of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alter {
    /// Deletes it.
    Delete,
    /// Gives it another value, where it has one; else deletes it.
    Change,
}

impl Namespace {
    /// Deletes or changes one object, as some other program would, and returns it as it was. The law for direct
    /// changes holds: it is notified.
    pub fn alter(&mut self, object: &Object, how: Alter) -> Result<(), Errno> {
        if how == Alter::Change
            && let Some(other) = altered(object)
        {
            return self.perform(&Op::Put { want: other, have: Some(object.clone()) });
        }
        match object {
            Object::Up(link) => self.set_up(*link, false),
            // Of all values only one is strict.
            Object::Sysctl(link, name @ Sysctl::ReturnPath, _) => self.put_sysctl(*link, *name, 1),
            Object::Sysctl(link, name, value) => self.put_sysctl(*link, *name, value + 1),
            other => self.perform(&Op::Delete(other.clone())),
        }
    }
}

/// The same object with another value; none where it is nothing but its key.
fn altered(object: &Object) -> Option<Object> {
    let mut other = object.clone();
    match &mut other {
        Object::Link(link) => {
            link.mac.0[5] ^= 1;
            link.mtu -= 10;
        }
        Object::Neigh(n) => n.mac.0[4] ^= 1,
        Object::Fdb(f) => {
            f.dst = if f.dst.is_ipv4() { [192, 0, 2, 1].into() } else { "2001:db8::1".parse().ok()? }
        }
        Object::Route(r) => r.protocol = 4,
        Object::Table(t) => t.flags = 1,
        Object::Iptables(rules) => rules.jumps.clear(),
        Object::Sysctl(..) | Object::Address(_) | Object::Up(_) | Object::Trusted(_) => return None,
    }
    Some(other)
}
