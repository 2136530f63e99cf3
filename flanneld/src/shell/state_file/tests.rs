use proptest::prelude::*;
use subnet_lease::{BackendAttrs, VxlanData};

use super::*;

const BOOT: &str = "b1";

fn lease_of(n: u8) -> Lease {
    let subnets = format!("10.5.{n}.0-24").parse().unwrap();
    let public = [format!("192.168.0.{n}").parse::<std::net::IpAddr>().unwrap()].into_iter().collect();
    let attrs = BackendAttrs::vxlan(Some(VxlanData { vni: 1, mac: [2, 0, 0, 0, 0, n] }), None);
    Lease { node: Some(format!("node-{n}")), epoch: n.into(), ..Lease::new(subnets, public, attrs) }
}

fn memory() -> Memory {
    let config = br#"{"Network":"10.5.0.0/16"}"#.to_vec();
    Memory {
        config,
        own: lease_of(1),
        peers: vec![lease_of(2), lease_of(3)],
        settings: Vec::new(),
        hold: None,
    }
}

fn written() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep").join(NAME);
    write(&path, &NetworkId::default(), BOOT, &memory(), None).unwrap();
    (directory, path)
}

fn why(path: &Path) -> String {
    match read(path, &NetworkId::default(), BOOT) {
        Err(Unread::Wrong(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read_and_a_restart_of_the_host_is_noticed() {
    let (_directory, path) = written();
    assert_eq!(read(&path, &NetworkId::default(), BOOT), Ok((memory(), true)));
    assert_eq!(read(&path, &NetworkId::default(), "b2"), Ok((memory(), false)));
    assert_eq!(read(&path.with_extension("not"), &NetworkId::default(), BOOT), Err(Unread::Missing));
}

#[test]
fn a_file_of_another_version_or_network_or_a_damaged_one_is_refused_with_the_reason() {
    let (_directory, path) = written();
    let whole = fs::read_to_string(&path).unwrap();
    for (text, reason) in [
        (whole.replacen("state 1", "state 2", 1), "not a state file of this version"),
        (whole.replacen("10.5.2.0-24", "10.5.9.0-24", 1), "the checksum differs"),
        (whole[..whole.len() / 2].to_owned(), "the checksum differs"),
        (HEAD.to_owned(), "no body"),
        (String::new(), "not a state file"),
        (format!("{HEAD}{}\n[]", Fnv64::of(b"[]")), "invalid"),
        ("x".repeat(usize::try_from(LARGEST).unwrap() + 1), "larger than"),
    ] {
        fs::write(&path, text).unwrap();
        assert!(why(&path).contains(reason), "{} lacks {reason}", why(&path));
    }
    fs::write(&path, &whole).unwrap();
    let other = read(&path, &NetworkId::new("/other"), BOOT);
    assert!(matches!(&other, Err(Unread::Wrong(why)) if why.contains("another network")), "{other:?}");
}

#[test]
fn a_hold_is_written_and_a_file_of_before_there_were_holds_is_read() {
    let (_directory, path) = written();
    assert!(!fs::read_to_string(&path).unwrap().contains("hold"));
    let hold = Hold { until: std::time::Duration::from_secs(70), vanished: vec![lease_of(3).subnets] };
    let held = Memory { hold: Some(hold), ..memory() };
    write(&path, &NetworkId::default(), BOOT, &held, None).unwrap();
    assert_eq!(read(&path, &NetworkId::default(), BOOT), Ok((held, true)));
}

#[test]
fn fields_of_a_later_version_are_passed_over() {
    let (_directory, path) = written();
    let whole = fs::read_to_string(&path).unwrap();
    let body = whole.split_once('\n').unwrap().1.replacen('{', r#"{"later":{"a":[1]},"#, 1);
    fs::write(&path, format!("{HEAD}{}\n{body}", Fnv64::of(body.as_bytes()))).unwrap();
    assert_eq!(read(&path, &NetworkId::default(), BOOT), Ok((memory(), true)));
}

#[test]
fn a_peer_that_is_no_lease_is_left_out() {
    let (_directory, path) = written();
    let body = fs::read_to_string(&path).unwrap().split_once('\n').unwrap().1.replacen(
        "10.5.2.0-24",
        "10.5.2.1-24",
        1,
    );
    fs::write(&path, format!("{HEAD}{}\n{body}", Fnv64::of(body.as_bytes()))).unwrap();
    let (read, _) = read(&path, &NetworkId::default(), BOOT).unwrap();
    assert_eq!(read.peers, [lease_of(3)]);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_said_and_stops_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let state = StateFile::open(&file, &NetworkId::default());
    state.keep(memory());
    let mut problem = state.problem.clone();
    problem.wait_for(Option::is_some).await.unwrap();
    assert!(state.problem().unwrap().contains("can't be written"));
    assert!(state.read().is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes: Vec<u8>, sum: bool) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        fs::write(&path, if sum { format!("{HEAD}{}\n{text}", Fnv64::of(text.as_bytes())) } else { text }).unwrap();
        prop_assert!(read(&path, &NetworkId::default(), BOOT).is_err());
    }
}
