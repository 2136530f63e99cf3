//! The best test there is: the same random history against a real etcd and against ours, with the same answers.

use std::fmt::Debug;

use etcd_client::proto::{PbTxnOpResponse, PbTxnResponse};
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions,
    PutOptions, SortOrder, SortTarget, Txn, TxnOp, WatchFilterType, WatchOptions, WatchStream,
};

use super::fixture::{Etcd, Store, runtime};

/// Steps in one history.
const STEPS: usize = 400;

/// The same seed gives the same history.
struct Dice(fastrand::Rng);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0.u64(..sides)
    }

    fn number(&mut self, sides: u64) -> i64 {
        i64::try_from(self.roll(sides)).unwrap()
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.roll(chance) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }

    /// One of twelve keys: so few are sorted by etcd without moving equal ones. Rarely none.
    fn key(&mut self) -> String {
        if self.one_in(60) {
            return String::new();
        }
        format!("{}{}", self.pick(&["k/", "k/", "l/", ""]), self.pick(&["a", "b", "c", "ab"]))
    }

    fn value(&mut self) -> String {
        format!("{:x}", self.roll(u64::MAX))
    }

    fn lease(&mut self) -> i64 {
        1 + self.number(4)
    }

    /// A revision from before the start to after the end of what there is.
    fn revision(&mut self, now: i64) -> i64 {
        if self.one_in(20) { now + 1 } else { now - self.number(12) }
    }
}

fn put_options(dice: &mut Dice) -> PutOptions {
    let mut options = PutOptions::new();
    if dice.one_in(3) {
        options = options.with_prev_key();
    }
    if dice.one_in(4) {
        options = options.with_lease(dice.lease());
    }
    if dice.one_in(12) {
        options = options.with_ignore_value();
    }
    if dice.one_in(8) {
        options = options.with_ignore_lease();
    }
    options
}

fn get_options(dice: &mut Dice, now: i64) -> GetOptions {
    let mut options = match dice.roll(5) {
        0 => GetOptions::new().with_prefix(),
        1 => GetOptions::new().with_from_key(),
        2 => GetOptions::new().with_range(dice.key()),
        3 => GetOptions::new().with_all_keys(),
        _ => GetOptions::new(),
    };
    if dice.one_in(4) {
        options = options.with_revision(dice.revision(now));
    }
    if dice.one_in(3) {
        options = options.with_limit(dice.number(4));
    }
    if dice.one_in(3) {
        let targets =
            [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
        let target = dice.pick(&targets);
        options =
            options.with_sort(target, dice.pick(&[SortOrder::Ascend, SortOrder::Descend, SortOrder::None]));
    }
    if dice.one_in(6) {
        options = options.with_keys_only();
    }
    if dice.one_in(8) {
        options = options.with_count_only();
    }
    if dice.one_in(8) {
        options = options.with_min_mod_revision(dice.revision(now)).with_max_mod_revision(dice.revision(now));
    }
    if dice.one_in(8) {
        options = options.with_min_create_revision(dice.revision(now));
    }
    options
}

fn delete_options(dice: &mut Dice) -> DeleteOptions {
    let mut options = match dice.roll(6) {
        0 => DeleteOptions::new().with_prefix(),
        1 => DeleteOptions::new().with_range(dice.key()),
        _ => DeleteOptions::new(),
    };
    if dice.one_in(2) {
        options = options.with_prev_key();
    }
    options
}

fn compare(dice: &mut Dice, now: i64) -> Compare {
    let how = dice.pick(&[CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less]);
    let key = dice.key();
    let compare = match dice.roll(5) {
        0 => Compare::version(key, how, dice.number(3)),
        1 => Compare::create_revision(key, how, dice.revision(now)),
        2 => Compare::mod_revision(key, how, dice.revision(now)),
        3 => Compare::value(key, how, dice.value()),
        _ => Compare::lease(key, how, dice.lease() - 1),
    };
    match dice.roll(5) {
        0 => compare.with_prefix(),
        1 => compare.with_range(dice.key()),
        _ => compare,
    }
}

fn txn(dice: &mut Dice, now: i64, depth: u64) -> Txn {
    let compares: Vec<_> = (0..dice.roll(3)).map(|_| compare(dice, now)).collect();
    let [success, failure] = [(); 2].map(|()| {
        let ops = 0..dice.roll(4);
        ops.map(|_| match dice.roll(if depth > 0 { 8 } else { 7 }) {
            0..3 => TxnOp::put(dice.key(), dice.value(), Some(put_options(dice))),
            3..5 => TxnOp::get(dice.key(), Some(get_options(dice, now))),
            5..7 => TxnOp::delete(dice.key(), Some(delete_options(dice))),
            _ => TxnOp::txn(txn(dice, now, depth - 1)),
        })
        .collect::<Vec<_>>()
    });
    Txn::new().when(compares).and_then(success).or_else(failure)
}

/// One client, and what is known of its server.
struct Side {
    client: Client,
    watches: [WatchStream; 2],
    seen: [Vec<String>; 2],
    revision: i64,
    compacted: i64,
}

fn text<T: Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Ok(answer) => format!("{answer:?}"),
        Err(Error::GRpcStatus(status)) => format!("{:?}: {}", status.code(), status.message()),
        Err(other) => panic!("not an answer of the server: {other}"),
    }
}

/// Removes from a header what differs between any two stores.
macro_rules! strip {
    ($answer:expr) => {
        if let Some(header) = &mut $answer.header {
            (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
        }
    };
}

fn strip_txn(answer: &mut PbTxnResponse) {
    strip!(answer);
    for op in &mut answer.responses {
        if let Some(PbTxnOpResponse::ResponseTxn(nested)) = &mut op.response {
            strip_txn(nested);
        }
    }
}

impl Side {
    async fn new(endpoint: &str) -> Self {
        let mut client = Client::connect([endpoint], None).await.unwrap();
        let all = WatchOptions::new().with_all_keys().with_start_revision(1);
        let some = WatchOptions::new().with_prefix().with_filters([WatchFilterType::NoPut]);
        let watches = [
            client.watch("", Some(all.with_prev_key())).await.unwrap(),
            client.watch("k/", Some(some.with_prev_key())).await.unwrap(),
        ];
        Self { client, watches, seen: Default::default(), revision: 1, compacted: 0 }
    }

    /// Plays one step. Both sides get the same dice, hence the same step.
    async fn step(&mut self, dice: &mut Dice) -> String {
        let now = self.revision;
        let client = &mut self.client;
        match dice.roll(40) {
            0..14 => {
                let (key, value) = (dice.key(), dice.value());
                let mut answer = client.put(key, value, Some(put_options(dice))).await;
                answer.iter_mut().for_each(|answer| strip!(answer.0));
                self.note(
                    answer.as_ref().ok().and_then(|answer| answer.header()).map(|header| header.revision()),
                );
                text(answer)
            }
            14..22 => {
                let mut answer = client.get(dice.key(), Some(get_options(dice, now))).await;
                answer.iter_mut().for_each(|answer| strip!(answer.0));
                text(answer)
            }
            22..27 => {
                let mut answer = client.delete(dice.key(), Some(delete_options(dice))).await;
                answer.iter_mut().for_each(|answer| strip!(answer.0));
                self.note(
                    answer.as_ref().ok().and_then(|answer| answer.header()).map(|header| header.revision()),
                );
                text(answer)
            }
            27..34 => {
                let mut answer = client.txn(txn(dice, now, 2)).await;
                answer.iter_mut().for_each(|answer| strip_txn(&mut answer.0));
                self.note(
                    answer.as_ref().ok().and_then(|answer| answer.header()).map(|header| header.revision()),
                );
                text(answer)
            }
            34..39 => self.lease_step(dice).await,
            _ => {
                // What a watch shows of the past may depend on whether it was read before it was compacted.
                self.read_watches().await;
                let at = dice.revision(now);
                let mut answer = self.client.compact(at, None).await;
                answer.iter_mut().for_each(|answer| strip!(answer.0));
                self.compacted = if answer.is_ok() { at } else { self.compacted };
                text(answer)
            }
        }
    }

    async fn lease_step(&mut self, dice: &mut Dice) -> String {
        let client = &mut self.client;
        let id = dice.lease();
        match dice.roll(5) {
            0 | 1 => {
                let ttl = dice.pick(&[0, 1, 1000, 9_000_000_001]);
                // A lease that lives is made long, so that none ends by itself.
                let ttl = if ttl < 2 { ttl + 5000 } else { ttl };
                let mut answer = client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await;
                answer.iter_mut().for_each(|answer| strip!(answer.0));
                text(answer)
            }
            2 => {
                let mut answer = client.lease_revoke(id).await;
                answer.iter_mut().for_each(|answer| strip!(answer.0));
                self.note(
                    answer.as_ref().ok().and_then(|answer| answer.header()).map(|header| header.revision()),
                );
                text(answer)
            }
            3 => {
                let mut answer =
                    client.lease_time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await;
                if let Ok(answer) = &mut answer {
                    strip!(answer.0);
                    answer.0.ttl = answer.0.ttl.min(0);
                    answer.0.keys.sort();
                }
                text(answer)
            }
            _ => {
                let mut answer = client.leases().await;
                answer.iter_mut().for_each(|answer| strip!(answer.0));
                text(answer)
            }
        }
    }

    fn note(&mut self, revision: Option<i64>) {
        self.revision = self.revision.max(revision.unwrap_or(0));
    }

    /// Reads both watches up to the present, which two keys written for it mark.
    async fn read_watches(&mut self) {
        let end = self.client.put("k/~end", "", None).await.unwrap().header().unwrap().revision();
        let gone = self.client.delete("k/~end", None).await.unwrap().header().unwrap().revision();
        assert_eq!(gone, end + 1);
        self.revision = gone;
        for (watch, seen) in self.watches.iter_mut().zip(&mut self.seen) {
            let mut last = 0;
            while last < gone {
                let message = watch.message().await.unwrap().unwrap();
                for event in message.events() {
                    last = event.kv().unwrap().mod_revision();
                    seen.push(format!("{event:?}"));
                }
            }
        }
    }

    /// What watches started now see of the past: from each of these revisions, the end or the events.
    async fn replay(&mut self, from: i64) -> Vec<String> {
        let options = WatchOptions::new().with_all_keys().with_start_revision(from);
        let mut stream = self.client.watch("", Some(options)).await.unwrap();
        assert!(stream.message().await.unwrap().unwrap().created());
        let (mut seen, mut last) = (Vec::new(), 0);
        while last < self.revision {
            let message = stream.message().await.unwrap().unwrap();
            if message.canceled() {
                seen.push(format!("compacted at {}", message.compact_revision()));
                break;
            }
            for event in message.events() {
                last = event.kv().unwrap().mod_revision();
                seen.push(format!("{event:?}"));
            }
        }
        seen
    }
}

async fn compare_histories(seed: u64) {
    println!("seed {seed}");
    let (etcd, store) = (Etcd::new(), Store::new());
    let mut sides = [Side::new(&etcd.endpoint).await, Side::new(&store.endpoint).await];
    let [real, ours] = &mut sides;
    let (mut dice, mut same_dice) =
        (Dice(fastrand::Rng::with_seed(seed)), Dice(fastrand::Rng::with_seed(seed)));
    for step in 0..STEPS {
        let wanted = real.step(&mut dice).await;
        let found = ours.step(&mut same_dice).await;
        assert_eq!(found, wanted, "seed {seed}, step {step}");
        assert_eq!(dice.0.get_seed(), same_dice.0.get_seed());
    }
    for side in [&mut *real, &mut *ours] {
        side.read_watches().await;
    }
    for (found, wanted) in ours.seen.iter().zip(&real.seen) {
        for (found, wanted) in found.iter().zip(wanted) {
            assert_eq!(found, wanted, "seed {seed}: watch");
        }
        assert_eq!(found.len(), wanted.len(), "seed {seed}: events watched");
    }
    // A watch from the very revision of the compaction: etcd 3.4.23 loses deletes made at it, later versions do not.
    let starts = (1..ours.revision).rev().step_by(7).filter(|from| *from != ours.compacted).take(12);
    for from in starts.collect::<Vec<_>>() {
        assert_eq!(ours.replay(from).await, real.replay(from).await, "seed {seed}: watch from {from}");
    }
}

#[test]
fn a_real_etcd_gives_the_same_answers_to_the_same_history() {
    // Two histories that stay (they delete and put one key in one transaction), and one that nobody has seen.
    let new = std::process::id();
    for seed in [15_576, 25_639, u64::from(new)] {
        runtime().block_on(compare_histories(seed));
    }
}
