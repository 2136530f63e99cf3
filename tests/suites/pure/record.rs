//! The recording is what happened: every input can be read back, a replay decides the same, and the reader
//! survives any file.

mod inputs;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::kernel::{KernelEvent, Own};
use backends::{Fdb, IfName, Mac, Neigh, Object, Route};
use flanneld::core::{Effect, Input, NodeCore};
use flanneld::recorder::text::{below, line};
use flanneld::recorder::{Comparison, Entry, FILE_BYTES, Known, Reader, Recorder, Replay, Ring, Step, older};
use inputs::input;
use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use subnet_lease::{BackendAttrs, Lease, StoreEvent, VxlanData};
use tests::solo::settings;
use tests::world::{Shape, World};

/// The decisions of a core are not of interest here.
fn record(inputs: Vec<Input>) -> Vec<u8> {
    let mut recorder = Recorder::new(Vec::new(), || Duration::from_secs(1_800_000_000));
    let mut core = NodeCore::new(settings());
    recorder.start(Duration::ZERO, &core);
    for (n, input) in inputs.into_iter().enumerate() {
        recorder.handle(&mut core, Duration::from_nanos(n as u64 * 1_000_000_001), Some(input));
    }
    assert!(recorder.failure().is_none());
    recorder.into_tape()
}

fn read(bytes: Vec<u8>) -> Vec<Entry> {
    let mut reader = Reader::of(bytes);
    std::iter::from_fn(|| reader.entry().unwrap()).collect()
}

/// The output of a replay, and whether it differs anywhere.
fn replay(reader: Reader) -> (Vec<Step>, Option<NodeCore>) {
    let mut replay = Replay::new(reader);
    let steps = std::iter::from_fn(|| replay.step().unwrap()).collect();
    (steps, replay.into_core())
}

fn differs(step: &Step) -> bool {
    !matches!(
        step,
        Step::Start { problem: None, .. }
            | Step::Input { comparison: Comparison::Same(_) | Comparison::Unknown(_), .. }
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_input_reads_back_as_it_was(inputs in vec(input(), 0..20)) {
        let before: Vec<_> = inputs.iter().map(|input| format!("{input:?}")).collect();
        let mut known = Known::default();
        let mut after = Vec::new();
        for entry in read(record(inputs)) {
            if let Entry::Input { received, .. } = entry {
                after.push(format!("{:?}", received.input(&mut known).unwrap().unwrap()));
            }
        }
        prop_assert_eq!(after, before);
    }

    #[test]
    fn a_file_cut_anywhere_still_has_what_comes_before(inputs in vec(input(), 1..12), at in any::<Index>()) {
        let mut bytes = record(inputs);
        let whole = read(bytes.clone()).len();
        bytes.truncate(at.index(bytes.len()));
        let lines = bytes.iter().filter(|b| **b == b'\n').count();
        let entries = read(bytes);
        prop_assert!(entries.len() <= whole + 1);
        let damaged: usize = entries.iter().map(|e| if let Entry::Damaged(n) = e { *n } else { 0 }).sum();
        prop_assert!(damaged <= 1, "only the last line: {damaged}");
        let whole = entries.len() - damaged;
        prop_assert!(3 * whole + 1 >= lines, "{whole} entries from {lines} lines: at most three a piece");
    }

    #[test]
    fn a_file_with_any_bytes_changed_is_read_to_its_end(
        inputs in vec(input(), 1..12), harm in vec((any::<Index>(), any::<u8>()), 1..20), cut in any::<bool>()
    ) {
        let mut bytes = record(inputs);
        for (at, byte) in harm {
            let at = at.index(bytes.len());
            if cut { bytes.remove(at); } else { bytes[at] = byte; }
        }
        replay(Reader::of(bytes));
    }
}

/// A small world in which node 0 is recorded through its first seconds.
fn small_world(seed: u64, file: &Path) -> World {
    let network = r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    let shape =
        Shape { nodes: 3, network: network.to_owned(), racks: 2, six: false, lag: 40, every_step: false };
    let mut world = World::new(shape, seed);
    world.record(0, file);
    world.start_all(Duration::from_millis(200));
    world
}

#[test]
fn a_replayed_world_decides_the_same_and_ends_in_the_same_state() {
    for seed in 0..30 {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        let mut world = small_world(seed, &file);
        world.troubles(8, Duration::from_secs(3));
        world.run_for(Duration::from_secs(90));
        let (steps, core) = replay(Reader::open(&file, true).unwrap());
        assert!(steps.len() > 20, "seed {seed}: {} steps", steps.len());
        assert!(!steps.iter().any(differs), "seed {seed}: {:?}", steps.iter().find(|s| differs(s)));
        let state = |core: &NodeCore| serde_json::to_string(core).unwrap();
        if let Some(there) = world.core(0) {
            assert_eq!(state(&core.unwrap()), state(there), "seed {seed}");
        }
    }
}

#[test]
fn a_core_saved_at_any_moment_continues_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events");
    let mut world = small_world(7, &file);
    world.run_for(Duration::from_secs(40));
    let mut reader = Reader::open(&file, true).unwrap();
    let (mut known, mut core) = (Known::default(), NodeCore::new(settings()));
    let mut steps = 0;
    while let Some(entry) = reader.entry().unwrap() {
        let Entry::Input { at, received, .. } = entry else { continue };
        let again = || serde_json::to_string(&core).unwrap();
        let mut other = NodeCore::restored(&again()).unwrap();
        assert_eq!(serde_json::to_string(&other).unwrap(), again(), "step {steps}");
        let [one, two] = match received.input(&mut known).unwrap() {
            None => [core.tick(at), other.tick(at)],
            Some(input) => [core.handle(at, input.clone()), other.handle(at, input)],
        };
        // What it listens to follows from the readings; the one that was written down says it once more.
        let decided = |effects: Vec<Effect>| -> Vec<_> {
            let decided = effects.into_iter().filter(|effect| !matches!(effect, Effect::Listen(_)));
            decided.map(|effect| format!("{effect:?}")).collect()
        };
        assert_eq!(decided(one), decided(two), "step {steps}");
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
}

/// A snapshot of that many leases, all different in every round.
fn snapshot(count: u32, round: u32) -> Input {
    let lease = |n: u32| {
        let subnets = format!("10.{}.{}.0-24", n >> 8, n & 255).parse().unwrap();
        let [.., a, b, c] = (n + round).to_be_bytes();
        let data = VxlanData { vni: 1, mac: [2, 4, 0, a, b, c] };
        let public = [IpAddr::from([172, 16, b, c])].into_iter().collect();
        Lease::new(subnets, public, BackendAttrs::vxlan(Some(data), None))
    };
    Input::Store(StoreEvent::Snapshot {
        leases: (0..count).map(lease).collect(),
        unreadable: Vec::new(),
        foreign: false,
    })
}

fn net_conf() -> Input {
    Input::Store(StoreEvent::Config(br#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#.to_vec()))
}

#[test]
fn a_hundred_mebibytes_of_inputs_leave_two_bounded_files_and_the_newer_replays_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events");
    let mut recorder = Recorder::new(Ring::open(&file).unwrap(), || Duration::ZERO);
    let mut core = NodeCore::new(settings());
    recorder.start(Duration::ZERO, &core);
    recorder.handle(&mut core, Duration::ZERO, Some(net_conf()));
    let length = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
    let (mut written, mut turned) = (0, 0);
    for round in 0u32.. {
        let before = length(&file);
        recorder.handle(&mut core, Duration::from_secs(u64::from(round)), Some(snapshot(4000, round)));
        assert!(length(&file) <= FILE_BYTES && length(&older(&file)) <= FILE_BYTES);
        written += length(&file).checked_sub(before).unwrap_or_else(|| {
            turned += 1;
            length(&file)
        });
        if written > 100 << 20 {
            break;
        }
    }
    assert!(recorder.failure().is_none() && turned > 10, "{turned}");
    let (steps, _) = replay(Reader::open(&file, false).unwrap());
    assert!(matches!(&steps[0], Step::Start { new: false, problem: None, .. }), "{:?}", steps[0]);
    assert!(steps.len() > 1 && !steps.iter().any(differs));
    assert!(replay(Reader::open(&file, true).unwrap()).0.len() > steps.len(), "the older half is read, too");
}

#[test]
fn an_input_too_large_to_record_is_named_and_a_replay_works_again_after_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events");
    let mut recorder = Recorder::new(Ring::open(&file).unwrap(), || Duration::ZERO);
    let mut core = NodeCore::new(settings());
    recorder.start(Duration::ZERO, &core);
    recorder.handle(&mut core, Duration::ZERO, Some(net_conf()));
    recorder.handle(&mut core, Duration::ZERO, Some(snapshot(65_000, 0)));
    recorder.handle(&mut core, Duration::ZERO, Some(Input::File));
    assert!(!older(&file).exists(), "a file that is hardly used is not turned over for it");
    recorder.start(Duration::ZERO, &NodeCore::new(settings()));
    recorder.handle(&mut NodeCore::new(settings()), Duration::ZERO, Some(Input::File));
    let (steps, _) = replay(Reader::open(&file, true).unwrap());
    let impossible = |step: &Step| match step {
        Step::Input { comparison: Comparison::Impossible(why), .. } => why.contains("too large"),
        _ => false,
    };
    let impossible_steps: Vec<_> = steps.iter().map(impossible).collect();
    assert_eq!(impossible_steps, [false, false, true, true, false, false], "{steps:?}");
}

#[test]
fn a_locked_file_a_pipe_and_a_link_are_refused_and_a_torn_end_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let refused = |path: &Path| Ring::open(path).err().map(|error| error.to_string()).unwrap_or_default();
    let held = Ring::open(&path("events")).unwrap();
    assert_eq!(refused(&path("events")), "another daemon writes it");
    drop(held);
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(refused(&path("pipe")), "not a file");
    std::os::unix::fs::symlink(path("events"), path("link")).unwrap();
    assert!(refused(&path("link")).contains("symbolic link"), "{}", refused(&path("link")));

    fs::write(path("torn"), "{\"heard\":[0,").unwrap();
    let mut recorder = Recorder::new(Ring::open(&path("torn")).unwrap(), || Duration::ZERO);
    recorder.start(Duration::ZERO, &NodeCore::new(settings()));
    let entries = read(fs::read(path("torn")).unwrap());
    assert!(matches!(entries[..], [Entry::Damaged(1), Entry::Start { .. }]), "{entries:?}");
}

#[test]
fn a_file_deleted_with_its_folder_is_made_again_and_replays() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flannel/events");
    let mut recorder = Recorder::new(Ring::open(&file).unwrap(), || Duration::ZERO);
    let mut core = NodeCore::new(settings());
    recorder.start(Duration::ZERO, &core);
    recorder.handle(&mut core, Duration::ZERO, Some(net_conf()));
    recorder.handle(&mut core, Duration::ZERO, Some(Input::File));
    assert_eq!(replay(Reader::open(&file, true).unwrap()).0.len(), 3, "what is there is kept");
    fs::rename(dir.path().join("flannel"), dir.path().join("elsewhere")).unwrap();
    recorder.handle(&mut core, Duration::ZERO, Some(Input::File));
    recorder.handle(&mut core, Duration::ZERO, Some(snapshot(3, 0)));
    assert!(recorder.failure().is_none());
    let (steps, _) = replay(Reader::open(&file, true).unwrap());
    assert!(matches!(steps[..], [Step::Start { new: false, problem: None, .. }, _, _]), "{steps:?}");
    assert!(!steps.iter().any(differs));
}

#[test]
fn no_secret_is_recorded() {
    let text =
        r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "PSK": "s3cret"}, "Token": "s3cret"}"#;
    let written = r#"{"PublicIP":"172.16.0.2","BackendType":"vxlan","Password":"s3cret"}"#;
    let lease = Lease::from_record("10.0.1.0-24", written.as_bytes()).unwrap();
    assert!(!lease.extra.is_empty());
    let bytes = record(vec![
        Input::Store(StoreEvent::Config(text.into())),
        Input::Store(StoreEvent::Snapshot {
            leases: vec![lease.clone()],
            unreadable: Vec::new(),
            foreign: false,
        }),
        Input::Store(StoreEvent::Upsert(lease)),
    ]);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("10.0.1.0-24") && !text.contains("s3cret"), "{text}");
    assert!(!replay(Reader::of(text.into_bytes())).0.iter().any(differs), "it means the same");
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/recorded")
}

/// The output of a replay.
fn page(file: &Path) -> String {
    let mut text = String::new();
    for step in replay(Reader::open(file, false).unwrap()).0 {
        match step {
            Step::Start { program, new, problem, .. } => text += &format!("# {program} {new} {problem:?}\n"),
            Step::Damaged(lines) => text += &format!("# {lines} damaged\n"),
            Step::Input { wall, received, failures, comparison, .. } => {
                text += &line(wall, &received);
                text.extend(failures.iter().map(|failure| below(failure)));
                match comparison {
                    Comparison::Same(did) | Comparison::Unknown(did) => {
                        text.extend(did.iter().map(|did| below(&did.to_string())));
                    }
                    other => text += &below(&format!("{other:?}")),
                }
            }
        }
    }
    text
}

/// A file recorded earlier, perhaps by an older program. The text beside it has this program's decisions.
/// `UPDATE=1` writes the texts again, `RECORD=1` the recordings.
#[test]
fn golden_recordings_replay_to_their_texts() {
    if std::env::var_os("RECORD").is_some() {
        fs::create_dir_all(golden()).unwrap();
        for (name, seed, troubles) in [("start", 1, 0), ("troubles", 2, 6)] {
            let file = golden().join(format!("{name}.rec"));
            let _ = fs::remove_file(&file);
            let mut world = small_world(seed, &file);
            world.troubles(troubles, Duration::from_secs(3));
            world.run_for(Duration::from_secs(35));
        }
    }
    let files = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "rec")).collect();
    assert!(files.len() >= 2, "the recordings are gone");
    for file in files {
        let (text, now) = (file.with_extension("txt"), page(&file));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&text, &now).unwrap();
        }
        let then = fs::read_to_string(&text).unwrap_or_default();
        assert!(then == now, "{} should be (UPDATE=1 writes it):\n{now}", text.display());
    }
}

/// A dump of a node with that many peers.
fn dump(peers: u32) -> Input {
    let link: IfName = "flannel.1".parse().unwrap();
    let of = |n: u32| {
        let [.., a, b, c] = n.to_be_bytes();
        let (mac, dst) = (Mac([2, 4, 0, a, b, c]), IpNetwork::new(IpAddr::from([10, b, c, 0]), 24).unwrap());
        let via = IpAddr::from([10, b, c, 0]);
        [
            Object::Fdb(Fdb { link, mac, dst: IpAddr::from([172, 16, b, c]), diverted: false }),
            Object::Neigh(Neigh { link, address: IpAddr::from([10, b, c, 0]), mac }),
            Object::Route(Route { via: Some(via), link: Some(link), onlink: true, ..Route::blackhole(dst) }),
        ]
    };
    let state = (0..peers).flat_map(of).collect();
    Input::Own(Ok(Own { state, ..Own::default() }))
}

#[test]
fn only_the_difference_of_a_large_dump_is_written() {
    let bytes = record(vec![dump(1000), dump(1000), dump(1001), dump(999)]);
    let received = bytes.split(|b| *b == b'\n').filter(|line| line.starts_with(b"{\"heard\""));
    let lengths: Vec<_> = received.map(<[u8]>::len).collect();
    assert!(lengths[0] > 100_000, "{lengths:?}");
    assert!(lengths[1..].iter().all(|length| *length < 600), "{lengths:?}");
}

/// The cost of the recorder: `cargo test --release -p tests --test pure what_recording -- --ignored
/// --nocapture`.
#[test]
#[ignore = "prints figures, and proves nothing"]
fn what_recording_costs() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let cpu =
        || Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    for peers in [1_000, 10_000] {
        let file = dir.path().join(format!("events-{peers}"));
        let mut recorder = Recorder::new(Ring::open(&file).unwrap(), flanneld::shell::clock::wall);
        let mut core = NodeCore::new(settings());
        recorder.start(Duration::ZERO, &core);
        let mut cost = |what: &str, times: u32, make: &dyn Fn() -> Input| {
            let (mut with, mut without, bytes) =
                (Duration::ZERO, Duration::ZERO, fs::metadata(&file).unwrap().len());
            for _ in 0..times {
                let (one, two) = (make(), make());
                let begin = cpu();
                recorder.handle(&mut core, Duration::ZERO, Some(one));
                with += cpu() - begin;
                let begin = cpu();
                core.handle(Duration::ZERO, two);
                without += cpu() - begin;
            }
            let bytes = fs::metadata(&file).unwrap().len().saturating_sub(bytes) / u64::from(times);
            println!(
                "{peers:>6} peers, {what:<24} {:>9.1?} more, {bytes} bytes",
                with.saturating_sub(without) / times
            );
        };
        cost("a notification", 1000, &|| Input::Kernel(KernelEvent::Own));
        cost("the first dump", 1, &|| dump(peers));
        cost("the same dump again", 20, &|| dump(peers));
        cost("a dump with a peer more", 1, &|| dump(peers + 1));
        cost("all leases", 1, &|| snapshot(peers, 0));
        cost("all leases again", 5, &|| snapshot(peers, 0));
    }
}
