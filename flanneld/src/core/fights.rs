//! Holds back steps for objects that somebody else keeps changing back.
//!
//! ```text
//!   plan ─▶ repairs among it ─▶ counted per key: five in ten seconds ─▶ contended: held until a moment
//!                │                                                      (what hangs on a held link, too)
//!                └─▶ drift, by kind                everything else goes on; the released is tried again
//! ```
//!
//! A repair is a step for something that an earlier pass of this run had put right and that is wished for as before; a
//! deletion as well as a creation. What the kernel takes along with a link (law 4, 5, 17) is not counted: the link is.
//!
//! A pause is a quarter of the time that the fight has lasted, a minute at most. So it grows exponentially, and what was
//! disturbed for a while is right again within a quarter of that time, or a second. The kernel notifies changes of a link even
//! while we hold still, so silence on a link shows that the storm over it has ended, and ends the hold.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use backends::kernel::{Touch, Who};
use backends::{IfName, KernelState, Key, Object, Op, Plan, Sysctl};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::Tick;
use super::digest::digest;
use super::drift::Drift;
use super::pace::mix;
use super::status::{ContendedReport, LISTED, millis};

/// This many repairs of one object ...
const REPAIRS: u32 = 5;
/// ... within this time are a fight. A fight is forgotten when nothing happened for this time after a pause.
const WINDOW: Duration = Duration::from_secs(10);
/// The first pause. With jitter and [`GRID`] it stays below a second.
const FIRST: Duration = Duration::from_millis(700);
/// The longest.
const LAST: Duration = Duration::from_secs(60);
/// Pauses end on multiples of this: ten thousand held objects are not ten thousand passes.
const GRID: u64 = 200;
/// After this much silence a link that was changed while we held still counts as left alone.
const SILENCE: Duration = Duration::from_millis(500);
/// A setting that was set back stays as it is for this time after it was last seen so.
const YIELDED: Duration = Duration::from_secs(3600);
/// How many touches are remembered.
const TOUCHES: usize = 64;
/// How many contended objects of one pass are logged by name.
const LOGGED: usize = 3;

/// One object that was repaired lately. Thirty thousand of them, a flushed table of ten thousand peers, are 2 MB.
#[derive(Debug, Serialize, Deserialize)]
struct Fight {
    /// What we wish for in its place; 0 = nothing.
    wish: u64,
    /// The first repair.
    since: Tick,
    repairs: u32,
    /// Contended: no step before this.
    until: Option<Tick>,
    /// We hold still since then.
    held: Option<Tick>,
    /// The last pass that looked at it.
    pass: u64,
}

/// What status and log show of one.
#[derive(Debug, Serialize, Deserialize)]
struct Named {
    key: Key,
    line: String,
    by: Option<Who>,
}

/// Who undoes what.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Fights {
    /// What was wished for at the end of the last pass and not refused: digests, sorted.
    settled: Vec<u64>,
    /// The same of the pass that runs.
    wished: Vec<u64>,
    /// Keys of the last pass's steps that failed: trying again is no repair. Sorted.
    failed: Vec<u64>,
    /// By the digest of the key.
    fights: BTreeMap<u64, Fight>,
    /// The first contended ones.
    named: BTreeMap<u64, Named>,
    touches: VecDeque<(Tick, Touch)>,
    /// A link was touched while something was held.
    stirred: Option<Tick>,
    /// When the first of what the last pass held is released.
    release: Option<Tick>,
    /// A held object that pods can't do without.
    own_end: Option<String>,
    pub(super) drift: Drift,
}

impl Fights {
    /// Notes the wish of the pass that begins to compare.
    pub(super) fn wish(&mut self, want: &KernelState) {
        self.wished = want.iter().map(digest).collect();
        self.wished.sort_unstable();
    }

    /// Removes from the plan the steps that are held. Nothing is counted on an incomplete dump.
    pub(super) fn hold(&mut self, now: Tick, pass: u64, plan: &mut Plan, whole: bool) {
        self.forget(now);
        (self.release, self.own_end) = (None, None);
        let mut watch = Watch { now, pass, whole, fights: self, contended: Vec::new() };
        let of_links = |op: &&Op| moves(&op.object().key()).is_some();
        let links: Vec<Op> = plan.ops.iter().filter(of_links).cloned().collect();
        let moved: Vec<IfName> = links.iter().filter_map(|op| moves(&op.object().key())).collect();
        let made_anew = |link| links.iter().any(|op| op.object().key() == Key::Link(link));
        let mut held: Vec<IfName> = Vec::new();
        // Links first: what hangs on a held one is held, and what hangs on a moved one moves with it.
        for op in &links {
            let goes_along = matches!(op.object(), Object::Up(link) if made_anew(*link));
            if !goes_along && watch.holds(op) {
                held.extend(moves(&op.object().key()));
            }
        }
        plan.ops.retain(|op| {
            let link = op.object().link().or_else(|| moves(&op.object().key()));
            match link {
                Some(link) if held.contains(&link) => false,
                Some(link) if moved.contains(&link) => true,
                _ => !watch.holds(op),
            }
        });
        let contended = watch.contended;
        self.report(&contended);
        self.drift.report(now);
    }

    /// The pass is over; these objects' steps failed.
    pub(super) fn settle<'a>(&mut self, failures: impl Iterator<Item = &'a Object>) {
        let (mut keys, mut objects) = (Vec::new(), Vec::new());
        for object in failures {
            keys.push(digest(&object.key()));
            objects.push(digest(object));
        }
        keys.sort_unstable();
        objects.sort_unstable();
        self.settled = std::mem::take(&mut self.wished);
        if !objects.is_empty() {
            self.settled.retain(|wish| objects.binary_search(wish).is_err());
        }
        self.failed = keys;
    }

    /// Notifications named who touched what.
    pub(super) fn touched(&mut self, now: Tick, touches: Vec<Touch>) {
        if self.release.is_some() && touches.iter().any(|t| matches!(t.what, Key::Link(_))) {
            self.stirred = Some(now);
        }
        for touch in touches {
            for named in self.named.values_mut().filter(|n| concerns(&touch.what, &n.key)) {
                if named.by.is_none() && touch.by.is_some() {
                    warn!("{}: undone by {}", named.line, by(touch.by.as_ref()));
                }
                named.by = touch.by.clone().or_else(|| named.by.take());
            }
            if touch.by.is_some() {
                self.touches.truncate(TOUCHES - 1);
                self.touches.push_front((now, touch));
            }
        }
    }

    /// When [`due`](Self::due) must be called next.
    pub(super) fn next(&self) -> Tick {
        let silence = self.stirred.map(|at| at + SILENCE);
        self.release.into_iter().chain(silence).min().unwrap_or(Tick::MAX)
    }

    /// Whether something is released now.
    pub(super) fn due(&mut self, now: Tick) -> bool {
        if let Some(stirred) = self.stirred.filter(|at| *at + SILENCE <= now) {
            self.stirred = None;
            for fight in self.fights.values_mut().filter(|f| f.held.is_some_and(|at| at < stirred)) {
                fight.until = Some(now);
                self.release = Some(now);
            }
        }
        self.release.take_if(|at| *at <= now).is_some()
    }

    /// Whether anything is contended, as far as the last pass knew.
    pub(super) fn is_fighting(&self) -> bool {
        !self.named.is_empty()
    }

    /// How many objects are contended.
    pub(super) fn contended(&self, now: Tick) -> usize {
        self.fights.values().filter(|fight| fight.is_contended(now)).count()
    }

    /// What is held of what pods can't do without.
    pub(super) fn own_end(&self) -> Option<&String> {
        self.own_end.as_ref()
    }

    /// The first of them, for people.
    pub(super) fn reports(&self, now: Tick) -> Vec<ContendedReport> {
        let report = |(key, named): (&u64, &Named)| {
            let fight = self.fights.get(key).filter(|fight| fight.is_contended(now))?;
            Some(ContendedReport {
                line: named.line.clone(),
                for_ms: millis(now.saturating_sub(fight.since)),
                repairs: u64::from(fight.repairs),
                again_ms: fight.held.and(fight.until).map_or(0, |at| millis(at.saturating_sub(now))),
                by: named.by.as_ref().map(Who::to_string),
            })
        };
        self.named.iter().filter_map(report).collect()
    }

    fn forget(&mut self, now: Tick) {
        let before = self.named.len();
        self.fights.retain(|_, fight| {
            fight.is_contended(now) || fight.until.is_none() && fight.since + WINDOW > now
        });
        let (fights, mut line) = (&self.fights, None);
        self.named.retain(|key, named| {
            let stays = fights.contains_key(key);
            if !stays {
                line.get_or_insert_with(|| std::mem::take(&mut named.line));
            }
            stays
        });
        if let Some(line) = line {
            info!("no longer undone: {line}{}", more(before - self.named.len()));
        }
        self.touches.retain(|(at, _)| *at + WINDOW > now);
    }

    fn report(&mut self, contended: &[(u64, Key, String)]) {
        for (n, (digest, key, line)) in contended.iter().enumerate() {
            let culprit = self.touches.iter().find(|(_, touch)| concerns(&touch.what, key));
            let culprit = culprit.and_then(|(_, touch)| touch.by.clone());
            if n < LOGGED && yields(key) {
                warn!("somebody set this back, and it stays so: {line}");
            } else if n < LOGGED {
                warn!(
                    "somebody keeps undoing this ({REPAIRS} times within {WINDOW:?}); trying more slowly: {line} (undone by {})",
                    by(culprit.as_ref())
                );
            }
            if self.named.len() < LISTED {
                self.named.insert(*digest, Named { key: *key, line: line.clone(), by: culprit });
            }
        }
        if contended.len() > LOGGED {
            warn!("somebody keeps undoing {} more", contended.len() - LOGGED);
        }
    }
}

/// One look at a plan.
struct Watch<'a> {
    now: Tick,
    pass: u64,
    whole: bool,
    fights: &'a mut Fights,
    /// Since now.
    contended: Vec<(u64, Key, String)>,
}

impl Watch<'_> {
    /// Whether this step has to wait.
    fn holds(&mut self, op: &Op) -> bool {
        let (now, key) = (self.now, op.object().key());
        let (at, wish) = (digest(&key), wish(op));
        let all = &mut *self.fights;
        // A route and its twin are two steps for one key, with one decision.
        if let Some(fight) = all.fights.get(&at).filter(|fight| fight.pass == self.pass) {
            return fight.held.is_some();
        }
        if all.fights.get(&at).is_some_and(|fight| fight.wish != wish) {
            all.fights.remove(&at);
            all.named.remove(&at);
        }
        let known = all.fights.get(&at).is_some_and(|fight| fight.until.is_some());
        let counts = known || self.whole && all.is_repair(op, at);
        if !counts {
            return false;
        }
        let fight = all.fights.entry(at).or_insert(Fight {
            wish,
            since: now,
            repairs: 0,
            until: None,
            held: None,
            pass: 0,
        });
        fight.pass = self.pass;
        if yields(&key) {
            if fight.until.is_none() {
                self.contended.push((at, key, line(op)));
            }
            fight.until = Some(now + YIELDED);
            fight.held.get_or_insert(now);
            return true;
        }
        if let Some(until) = fight.until.filter(|until| *until > now) {
            fight.held.get_or_insert(now);
            all.release = Some(all.release.map_or(until, |at| at.min(until)));
            if super::pass::is_own_end(op.object()) || loses_packets(op.object()) {
                all.own_end.get_or_insert_with(|| line(op));
            }
            return true;
        }
        fight.held = None;
        fight.repairs = fight.repairs.saturating_add(1);
        if fight.repairs >= REPAIRS {
            if fight.until.is_none() {
                self.contended.push((at, key, line(op)));
            }
            fight.until = Some(pause_end(now, now.saturating_sub(fight.since), self.pass));
        }
        all.drift.count(&key);
        false
    }
}

impl Fights {
    /// Whether somebody undid what an earlier pass had put right.
    fn is_repair(&self, op: &Op, key: u64) -> bool {
        let settled = |object| self.settled.binary_search(&digest::<Object>(object)).is_ok();
        let undone = match op {
            Op::Put { want, .. } => settled(want),
            // An object that was wished for goes because the wish changed. Before the first pass every object is old.
            Op::Delete(have) => !self.settled.is_empty() && !settled(have),
        };
        undone && self.failed.binary_search(&key).is_err()
    }
}

impl Fight {
    fn is_contended(&self, now: Tick) -> bool {
        self.until.is_some_and(|until| until + WINDOW > now)
    }
}

/// When a fight of this age is taken up again.
fn pause_end(now: Tick, age: Duration, seed: u64) -> Tick {
    let percent = 90 + u32::try_from(mix(seed) % 21).unwrap_or(10);
    let span = (age / 4).clamp(FIRST, LAST) * percent / 100;
    Duration::from_millis(millis(now + span).div_ceil(GRID) * GRID)
}

/// Settings of the whole host that can hurt others. Who sets one back wants it so, and it stays.
fn yields(key: &Key) -> bool {
    matches!(key, Key::Sysctl(_, Sysctl::BridgeCall(_)))
}

/// A setting without which pods' packets are dropped.
fn loses_packets(object: &Object) -> bool {
    let Object::Sysctl(_, name, _) = object else { return false };
    match name {
        Sysctl::HostForward(_) | Sysctl::Forward | Sysctl::ReturnPath | Sysctl::NoIpv6 => true,
        Sysctl::AcceptRa | Sysctl::RouterRa | Sysctl::TxChecksum => false,
        Sysctl::BridgeCall(_) | Sysctl::NeighbourRoom(_) => false,
    }
}

/// The link that everything on it depends on, if the key is one of its.
fn moves(key: &Key) -> Option<IfName> {
    if let Key::Link(link) | Key::Up(link) = key { Some(*link) } else { None }
}

fn wish(op: &Op) -> u64 {
    if let Op::Put { want, .. } = op { digest(want).max(1) } else { 0 }
}

/// Whether a change of `touched` can have undone `key`. Routes to one destination conflict whatever their metrics are.
fn concerns(touched: &Key, key: &Key) -> bool {
    match (touched, key) {
        (Key::Route(touched, _), Key::Route(dst, _)) => touched == dst,
        (Key::Link(touched), Key::Up(link)) => touched == link,
        _ => touched == key,
    }
}

/// A step in one line; that of a table is many.
fn line(op: &Op) -> String {
    match op {
        Op::Put { want: Object::Table(table), .. } => {
            format!("nft replace table {} {}", table.nft_family(), table.name())
        }
        Op::Put { want: Object::Iptables(rules), .. } => format!("{}-restore of our chains", rules.program()),
        op => op.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}

fn by(who: Option<&Who>) -> String {
    who.map_or_else(|| "somebody unknown".to_owned(), Who::to_string)
}

fn more(count: usize) -> String {
    if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use backends::Sysctl;
    use subnet_lease::Family;

    use super::*;

    fn switch(value: i32) -> Object {
        Object::Sysctl("eth0".parse().unwrap(), Sysctl::BridgeCall(Family::V4), value)
    }

    /// A pass at this second that finds the switch off; whether it was switched on.
    fn pass(fights: &mut Fights, second: u64) -> bool {
        let now = Tick::from_secs(second);
        fights.wish(&[switch(1)].into_iter().collect());
        let mut plan = Plan { ops: vec![Op::Put { want: switch(1), have: Some(switch(0)) }] };
        fights.hold(now, second, &mut plan, true);
        fights.settle(std::iter::empty());
        !plan.is_empty()
    }

    #[test]
    fn a_switch_of_the_whole_host_that_is_set_back_stays_so_and_is_reported() {
        let mut fights = Fights::default();
        assert!(pass(&mut fights, 1), "it is switched on once");
        for second in [2, 30, 3000, 6000] {
            assert!(!pass(&mut fights, second), "{second}");
            assert_eq!(fights.contended(Tick::from_secs(second)), 1);
        }
        assert_eq!(fights.reports(Tick::from_secs(6000))[0].repairs, 0);
        assert_eq!(fights.own_end(), None, "the node stays ready");
    }
}
