use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::ValueEnum;
use tempfile::TempDir;

use super::*;

fn text(answer: &Answer) -> String {
    answer.print(crate::admin::Form::Text, None)
}

struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        fs::write(host.path("plugin"), "version 1").unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn target(&self) -> Target {
        Target { runtime: Runtime::Kubernetes, bin_dir: None, conf_dir: None, root: self.0.path().to_owned() }
    }

    fn install(&self) -> String {
        let plugin = Some(self.path("plugin"));
        let arguments =
            |dry_run| Install { target: self.target(), plugin: plugin.clone(), conflist: None, dry_run };
        let before = text(&install(&arguments(true)).unwrap());
        let done = text(&install(&arguments(false)).unwrap());
        assert_eq!(before, done, "a dry run prints the same lines");
        done
    }

    fn uninstall(&self) -> String {
        let folders = self.target().folders();
        let before = text(&uninstall(&folders, true).unwrap());
        let done = text(&uninstall(&folders, false).unwrap());
        assert_eq!(before, done, "a dry run prints the same lines");
        done
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_is_installed_is_found_under_every_name_and_goes_without_a_trace() {
    let host = Host::new();
    host.install();
    for name in [OWN, PROGRAM].iter().chain(&OTHERS) {
        assert_eq!(fs::read_to_string(host.path("opt/cni/bin").join(name)).unwrap(), "version 1", "{name}");
    }
    assert_eq!(host.names("etc/cni/net.d"), [CONFLIST]);
    assert_eq!(host.install(), "everything is in place already\n");
    host.uninstall();
    assert_eq!((host.names("opt/cni/bin"), host.names("etc/cni/net.d")), (vec![], vec![]));
    assert_eq!(host.uninstall(), "nothing of ours is there\n");
}

#[test]
fn a_dry_run_makes_nothing_not_even_a_folder() {
    let host = Host::new();
    let plugin = Some(host.path("plugin"));
    let arguments = Install { target: host.target(), plugin, conflist: None, dry_run: true };
    assert!(text(&install(&arguments).unwrap()).contains("selvage-cni: installed"));
    assert_eq!(host.names(""), ["plugin"]);
}

#[test]
fn what_was_there_comes_back_also_after_updates_and_other_programs_are_left_alone() {
    let host = Host::new();
    for (folder, name) in [("opt/cni/bin", OWN), ("opt/cni/bin", "bridge"), ("etc/cni/net.d", CONFLIST)] {
        fs::create_dir_all(host.path(folder)).unwrap();
        fs::write(host.path(folder).join(name), "theirs").unwrap();
    }
    let output = host.install();
    assert!(output.contains("bin/bridge: another program's, left alone"), "{output}");
    fs::write(host.path("plugin"), "version 2").unwrap();
    assert!(host.install().contains("selvage-cni: updated"));
    assert_eq!(fs::read_to_string(host.path("opt/cni/bin/flannel")).unwrap(), "version 2");
    host.uninstall();
    for (folder, name) in [("opt/cni/bin", OWN), ("opt/cni/bin", "bridge"), ("etc/cni/net.d", CONFLIST)] {
        assert_eq!(fs::read_to_string(host.path(folder).join(name)).unwrap(), "theirs", "{name}");
    }
    assert_eq!(host.names("opt/cni/bin"), ["bridge", "flannel"]);
}

#[test]
fn an_update_of_our_own_configuration_keeps_no_copy() {
    let host = Host::new();
    host.install();
    let list = host.path("list");
    fs::write(&list, r#"{"name":"n","plugins":[{"type":"flannel"}]}"#).unwrap();
    let plugin = Some(host.path("plugin"));
    let arguments = Install { target: host.target(), plugin, conflist: Some(list), dry_run: false };
    install(&arguments).unwrap();
    assert_eq!(host.names("etc/cni/net.d"), [CONFLIST]);
    for bad in ["{", r#"{"plugins":[{}]}"#, r#"{"name":"n","plugins":[]}"#] {
        fs::write(host.path("list"), bad).unwrap();
        assert!(install(&arguments).is_err(), "{bad}");
    }
}

#[test]
fn a_rival_configuration_that_comes_first_is_named() {
    let host = Host::new();
    let folder = host.path("etc/cni/net.d");
    fs::create_dir_all(&folder).unwrap();
    for name in ["05-other.conflist", "00-notes.txt", "20-later.conf"] {
        fs::write(folder.join(name), "{}").unwrap();
    }
    let output = host.install();
    assert!(output.contains("05-other.conflist comes before") && !output.contains("notes"), "{output}");
    assert!(!output.contains("20-later"), "{output}");
}

#[test]
fn whoever_reads_the_program_during_updates_reads_one_whole_version() {
    let host = Host::new();
    host.install();
    let (program, over) = (host.path("opt/cni/bin/flannel"), AtomicBool::new(false));
    let versions = ["a", "b"].map(|letter| letter.repeat(100_000));
    fs::write(host.path("plugin"), &versions[0]).unwrap();
    host.install();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !over.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&program).unwrap();
                assert!(versions.contains(&text), "{} bytes", text.len());
                reads += 1;
            }
            reads
        });
        for n in 0..100 {
            fs::write(host.path("plugin"), &versions[n % 2]).unwrap();
            host.install();
        }
        over.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn every_runtime_has_folders_of_its_own_and_k3s_the_one_that_lasts() {
    let host = Host::new();
    for runtime in Runtime::value_variants() {
        let folders = runtime.folders(host.0.path());
        assert!(folders.bin.starts_with(host.0.path()) && folders.conf.starts_with(host.0.path()));
    }
    assert!(Runtime::K3s.folders(host.0.path()).bin.ends_with("data/current/bin"));
    fs::create_dir_all(host.path("var/lib/rancher/k3s/data/cni")).unwrap();
    assert!(Runtime::K3s.folders(host.0.path()).bin.ends_with("data/cni"));
}

#[test]
fn a_link_of_somebody_else_under_another_name_is_left_alone() {
    let host = Host::new();
    fs::create_dir_all(host.path("opt/cni/bin")).unwrap();
    symlink("/usr/lib/cni/portmap", host.path("opt/cni/bin/portmap")).unwrap();
    host.install();
    assert_eq!(fs::read_link(host.path("opt/cni/bin/portmap")).unwrap(), Path::new("/usr/lib/cni/portmap"));
}
