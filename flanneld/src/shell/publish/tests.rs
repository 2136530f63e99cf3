use std::time::Duration;

use subnet_lease::{NetworkConfig, Subnets};
use tokio::time::timeout;

use super::*;

/// A directory that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("selvage-publish-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("subnet.env")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn env(mtu: u32) -> SubnetEnv {
    let (network, _) =
        NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "alloc"}}"#).unwrap();
    let subnets: Subnets = "10.5.7.0-24".parse().unwrap();
    SubnetEnv::new(&network, &subnets, mtu, false)
}

fn written_at(path: &Path) -> (u64, std::time::SystemTime) {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).unwrap();
    (metadata.ino(), metadata.modified().unwrap())
}

#[test]
fn subnet_env_is_written_when_it_is_missing_or_differs_and_left_alone_otherwise() {
    let dir = Dir::new("write");
    write(&dir.file(), &env(1450)).unwrap();
    let first = written_at(&dir.file());
    write(&dir.file(), &env(1450)).unwrap();
    assert_eq!(written_at(&dir.file()), first);
    write(&dir.file(), &env(1400)).unwrap();
    assert_eq!(SubnetEnv::read(&dir.file()).unwrap(), env(1400));
    fs::write(dir.file(), format!("{}# edited\n", env(1400).text())).unwrap();
    write(&dir.file(), &env(1400)).unwrap();
    assert_eq!(fs::read_to_string(dir.file()).unwrap(), env(1400).text());
}

#[test]
fn writing_makes_the_directory_replaces_the_file_whole_and_leaves_nothing_else() {
    let dir = Dir::new("whole");
    let path = dir.0.join("a").join("subnet.env");
    for mtu in [1500, 1450] {
        write(&path, &env(mtu)).unwrap();
    }
    let folder = path.parent().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(folder)), (0o644, 0o755));
    let names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["subnet.env"]);
    assert_eq!(SubnetEnv::read(&path).unwrap(), env(1450));
}

#[test]
fn a_lost_subnet_leaves_its_file_under_another_name() {
    let dir = Dir::new("withdraw");
    write(&dir.file(), &env(1450)).unwrap();
    withdraw(&dir.file(), "held by node-2");
    withdraw(&dir.file(), "held by node-2");
    assert!(!dir.file().exists());
    assert!(dir.0.join("subnet.env.lost").exists());
}

/// Watches the file, waits until that has begun, does something, and waits for the notification.
fn notified_of(name: &str, act: impl FnOnce(&Dir)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = Dir::new(name);
        fs::create_dir(&dir.0).unwrap();
        fs::write(dir.file(), "").unwrap();
        let (inbox, mut inputs) = mpsc::channel(64);
        watch(&dir.file(), inbox);
        expect_file(&mut inputs).await;
        act(&dir);
        expect_file(&mut inputs).await;
    });
}

async fn expect_file(inputs: &mut mpsc::Receiver<Input>) {
    let input = timeout(Duration::from_secs(10), inputs.recv()).await;
    assert!(matches!(input, Ok(Some(Input::File))), "{input:?}");
}

#[test]
fn whatever_happens_to_the_file_is_notified() {
    notified_of("replaced", |dir| write(&dir.file(), &env(1450)).unwrap());
    notified_of("edited", |dir| fs::write(dir.file(), "x").unwrap());
    notified_of("removed", |dir| fs::remove_file(dir.file()).unwrap());
    notified_of("renamed", |dir| fs::rename(dir.file(), dir.0.join("other")).unwrap());
    notified_of("directory removed", |dir| fs::remove_dir_all(&dir.0).unwrap());
}

#[test]
fn a_directory_that_comes_again_is_watched_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = Dir::new("again");
        fs::create_dir(&dir.0).unwrap();
        let (inbox, mut inputs) = mpsc::channel(64);
        watch(&dir.file(), inbox);
        expect_file(&mut inputs).await;
        fs::remove_dir(&dir.0).unwrap();
        expect_file(&mut inputs).await;
        expect_file(&mut inputs).await; // and again while it is missing
        write(&dir.file(), &env(1450)).unwrap();
        expect_file(&mut inputs).await;
        write(&dir.file(), &env(1400)).unwrap();
        expect_file(&mut inputs).await;
        let moved = Dir::new("moved");
        fs::rename(&dir.0, &moved.0).unwrap();
        expect_file(&mut inputs).await;
    });
}
