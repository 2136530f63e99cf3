//! Chance, before the world begins.

use std::time::Duration;

use backends::kernel::fake::Rng;

use super::{Kind, Scenario, Trouble, Why, World};

/// So many kinds of trouble are drawn from.
const KINDS: usize = 31;

impl Scenario {
    /// Another act in which every node starts within a span of milliseconds.
    #[must_use]
    pub fn all_start(self, within: usize) -> Self {
        let (mut rng, nodes) = (self.dice(), self.shape.nodes);
        self.act((0..nodes).map(move |n| (rng.below(within + 1) as u64, n, Trouble::Start)))
    }

    /// Troubles at random nodes of the last act, within a span of milliseconds.
    #[must_use]
    pub fn troubled(self, count: usize, within: usize) -> Self {
        let (mut rng, nodes) = (self.dice(), self.shape.nodes);
        let strikes: Vec<_> = (0..count)
            .map(|_| (rng.below(within + 1) as u64, rng.below(nodes), any_trouble(&mut rng)))
            .collect();
        self.and(strikes)
    }

    /// New ones for each act and for what is added to it.
    fn dice(&self) -> Rng {
        let drawn: usize = self.acts.iter().map(|act| act.len() + 1).sum();
        Rng::new(self.seed ^ (drawn as u64) << 40)
    }
}

impl World {
    /// Lets some troubles strike at random nodes within a span.
    pub fn troubles(&mut self, how_many: usize, within: Duration) {
        for _ in 0..how_many {
            let node = self.rng.below(self.nodes.len());
            let trouble = any_trouble(&mut self.rng);
            let after = self.up_to(node, within);
            self.trouble(node, after, trouble);
        }
    }
}

/// One of all.
pub fn any_trouble(rng: &mut Rng) -> Trouble {
    use Trouble as T;
    let back = rng.below(3000) as u64;
    let n = rng.below(12);
    let few = 1 + rng.next_u64() % 12;
    let why = *rng.pick(&[Why::Busy, Why::NoBuffers, Why::NetDown, Why::NoDevice]).unwrap_or(&Why::Busy);
    let kinds = [Kind::Links, Kind::Addresses, Kind::Forwarding, Kind::Neighbours, Kind::Routes, Kind::Rules];
    match rng.below(KINDS) {
        0 => T::Restart(back),
        1 => T::KillAfter(few, back),
        2 => T::Forget(back),
        3 => T::Reboot(back),
        4 => T::Leave,
        5 => T::Move,
        6 => T::MoveAway(back),
        7 => T::Readdress,
        8 => T::ReaddressAway(back),
        9 => T::Renumber,
        10 => T::RenumberAway(back),
        11 => T::Mtu(if n < 6 { 1400 } else { 1500 }),
        12 => T::FlapUnderlay,
        13 => T::FlapTunnel(1, 0),
        14 => T::FlapTunnel(20, 50),
        15 => T::RenameTunnel,
        16 => T::RemakeTunnel,
        17 => T::ReaddressTunnel,
        18 => T::Delete(n),
        19 => T::Change(n),
        20 => T::Flush(*rng.pick(&kinds).unwrap_or(&Kind::Routes)),
        21 => T::Shadow,
        22 => T::Beside,
        23 => T::Fight(100, few * 10),
        24 => T::Storm(100),
        25 => T::Refuse(few, why),
        26 if n < 6 => T::RefuseKey(back, why),
        26 => T::RefuseKind(*rng.pick(&kinds).unwrap_or(&Kind::Routes), back, why),
        27 => {
            if n < 6 {
                T::FailDumps(1 + u32::from(n > 3))
            } else {
                T::Interrupt(1 + u32::from(n > 8))
            }
        }
        28 => T::Overrun,
        29 => T::Partition(back * 2),
        _ => match n {
            0..4 => T::OldNews(n * 10),
            4..8 => T::Gap,
            _ => T::Revoke,
        },
    }
}
